"""`anybatch reproduce`: a claim of an article, tested as far as the time reaches."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.commands.study import seconds_of
from anybatch.errors import ExitCode
from anybatch.records import plain
from anybatch.reporting.reproduction_effects import effects_of, verdict_on
from anybatch.reporting.reproduction_page import write_reproduction
from anybatch.studies.reproductions.folder import ReproductionFolder
from anybatch.studies.reproductions.results import ArmResult, Results
from anybatch.studies.reproductions.table import CLAIMS

if TYPE_CHECKING:
    from anybatch.options.reproduce import Reproduce

__all__ = ["reproduce_claim"]


def reproduce_claim(options: Reproduce) -> int:
    """Carry out `anybatch reproduce` and return its exit code; every verdict is a success.

    Raises:
        InputError: anything given that breaks a rule.
    """
    if options.name is None:
        return _list(as_json=options.json)
    seconds = seconds_of(options.for_)
    path = options.runs / f"{options.name}{'-quick' * options.quick}"
    folder = ReproductionFolder.open(path, options.name, quick=options.quick, seeds=options.seeds)
    try:
        if seconds != 0.0:
            from anybatch.studies.reproductions.reproduce import reproduce

            reproduce(
                folder, data=options.data, on=options.on, seconds=seconds,
                progress=not options.json,
            )  # fmt: skip
    finally:  # also after a signal: what is finished stays so, and is told
        _show(folder, options)
    return ExitCode.OK


def _list(*, as_json: bool) -> int:
    """Print the claims."""
    if as_json:
        known = [{"name": c.NAME, "title": c.TITLE, "source": c.SOURCE} for c in CLAIMS]
        show(json.dumps({"claims": known}))
    else:
        show(table(["claim", "what", "source"], [[c.NAME, c.TITLE, c.SOURCE] for c in CLAIMS]))
    return ExitCode.OK


def _show(folder: ReproductionFolder, options: Reproduce) -> None:
    results = folder.results()
    page = write_reproduction(results, options.out or folder.path / "page")
    if options.json:
        show(json.dumps(_plain(results, page)))
        return
    verdict = verdict_on(results)
    quick = " (quick: far too small to say anything)" if results.quick else ""
    lines = [
        table(["arm", "lr", "n", "test accuracy"], [_row(arm) for arm in results.arms.values()]),
        f"{verdict.name}{quick}: {verdict.sentence}",
        f"page: {page}",
    ]
    if results.missing:
        lines.append(f"next: {_again(options)}")
    show("\n".join(lines))


def _again(options: Reproduce) -> str:
    given = {"--on": options.on, "--data": options.data, "--out": options.out}
    said = [f"{name} {shlex.quote(str(v))}" for name, v in given.items() if v and v != "local"]
    if options.runs != Path("runs/reproductions"):
        said.append(f"--runs {shlex.quote(str(options.runs))}")
    flags = ["--quick"] * options.quick + [f"--seeds {options.seeds}", *said]
    return " ".join(["anybatch reproduce", str(options.name), *flags])


def _row(arm: ArmResult) -> list[str]:
    lr = "not decided" if arm.lr is None else f"{arm.lr:.4g}"
    mean = arm.mean("test_accuracy")
    accuracy = "" if mean is None else f"{100 * mean:.2f} %"
    diverged = f", {arm.diverged} diverged" if arm.diverged else ""
    return [arm.name, lr, f"{len(arm.trials)} of {arm.planned}{diverged}", accuracy]


def _plain(results: Results, page: Path) -> dict[str, object]:
    verdict = verdict_on(results)
    effects = [
        dataclasses.asdict(effect) | {"reading": effect.reading}
        for effect in effects_of(results).values()
    ]
    values: dict[str, object] = plain(
        {
            "claim": results.name,
            "quick": results.quick,
            "verdict": dataclasses.asdict(verdict),
            "effects": effects,
            "missing": results.missing,
            "page": str(page),
            "results": results.to_dict(),
        }
    )
    return values
