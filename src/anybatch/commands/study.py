"""`anybatch study`: batch sizes against a target, new or resumed; the table, and what to know."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.studies.batch_size_grid import BatchSizeSettings
from anybatch.studies.batch_size_table import BatchSizeRow, BatchSizeStudy, Spread

if TYPE_CHECKING:
    from anybatch.options.study import StudyBatchSize, StudyResume

__all__ = ["batch_sizes_of", "resume_study", "seconds_of", "study_batch_sizes", "summary"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def study_batch_sizes(options: StudyBatchSize) -> int:
    """Carry out `anybatch study batch-size` and return its exit code.

    Raises:
        InputError: anything given that breaks a rule.
    """
    seconds = seconds_of(options.for_)
    settings = BatchSizeSettings(
        batch_sizes=batch_sizes_of(options.batch_sizes),
        target=options.target,
        lr=options.lr,
        seeds=options.seeds,
    )
    recipe = load_recipe(options.recipe or recipe_name_for(options.task), options.set)
    from anybatch.studies.batch_size import create_batch_size_study, resume_batch_size_study
    from anybatch.studies.workers import Workers
    from anybatch.task import load_task

    workers = Workers.parse(options.on)
    task = load_task(options.task, image_size=recipe.image_size)
    made = create_batch_size_study(task, recipe, settings, options.out, workers)
    try:
        resume_batch_size_study(
            made.path, task=task, on=options.on, seconds=seconds, progress=not options.json
        )
    except (KeyboardInterrupt, SystemExit):  # a signal; what is finished stays so
        _show(made.path, as_json=options.json)
        raise
    return _show(made.path, as_json=options.json)


def resume_study(options: StudyResume) -> int:
    """Carry out `anybatch study resume` and return its exit code.

    Raises:
        InputError: anything given that breaks a rule.
    """
    seconds = seconds_of(options.for_)
    made = BatchSizeStudy(options.study)
    if seconds == 0.0:
        return _show(made.path, as_json=options.json)
    from anybatch.studies.batch_size import resume_batch_size_study
    from anybatch.training.loop import task_from

    moved = {"data": str(options.data.resolve())} if options.data is not None else {}
    task = task_from(made.study.task | moved)
    try:
        resume_batch_size_study(
            made.path, task=task, on=options.on, seconds=seconds, progress=not options.json
        )
    except (KeyboardInterrupt, SystemExit):
        _show(made.path, as_json=options.json)
        raise
    return _show(made.path, as_json=options.json)


def batch_sizes_of(text: str | None) -> tuple[int, ...]:
    """Read "8,32,128"; nothing for None.

    Example:
        >>> batch_sizes_of("8,32, 128")
        (8, 32, 128)
    """
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() for part in parts):
        raise InputError("--batch-sizes", "must be whole numbers and commas, as in 8,32,128", text)
    return tuple(map(int, parts))


def seconds_of(text: str | None) -> float | None:
    """Read "150m", "2h", "90s" or "1d" as seconds; None for None.

    Example:
        >>> seconds_of("150m"), seconds_of("1.5h")
        (9000.0, 5400.0)
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if match is None:
        raise InputError("--for", "must be a time as in 150m, 2h or 90s", text)
    return float(match.group(1)) * _SECONDS[match.group(2)]


def _show(path: Path, *, as_json: bool) -> int:
    """Print what the study has found so far; 1 where it is complete and nothing was reached."""
    made = BatchSizeStudy(path)
    show(json.dumps(made.to_dict()) if as_json else summary(made))
    missed = made.is_complete and not any(row.reached for row in made.table())
    return ExitCode.TARGET_MISSED if missed else ExitCode.OK


def summary(made: BatchSizeStudy) -> str:
    """The table of a study, what to know about it, where it is and how it goes on."""
    head = ["batch size", "lr", "reached", "updates", "examples", "seconds", "without loading"]
    lines = [
        f"to {made.target} on {made.recipe.stopping.target_on}, within {made.recipe.duration}",
        table(head, [_cells(row) for row in made.table()]),
        *(f"! {note}" for note in made.notes()),
        f"study: {made.path}",
    ]
    if not made.is_complete:
        lines.append(f"next: anybatch study resume {shlex.quote(str(made.path))}")
    return "\n".join(lines)


def _cells(row: BatchSizeRow) -> list[str]:
    lr = "not decided" if row.lr is None else f"{row.lr:.4g}"
    spreads = (row.updates, row.examples, row.seconds, row.computing_seconds)
    return [f"{row.batch_size:,}", lr, _reached(row), *map(_spread, spreads)]


def _reached(row: BatchSizeRow) -> str:
    text = f"{row.reached} of {row.ended}"
    if row.ended < row.planned:
        text += f" ({row.planned - row.ended} to come)"
    if row.diverged_at:
        text += f", diverged at update {', '.join(map(str, row.diverged_at))}"
    elif row.ended and not row.reached:
        text += ", not within the cap"
    return text


def _spread(spread: Spread | None) -> str:
    """Median and range; "never" for a run that missed the target."""
    if spread is None:
        return "-"
    if math.isinf(spread.lowest):
        return "never"
    if spread.lowest == spread.highest:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.lowest)} to {_number(spread.highest)})"


def _number(value: float) -> str:
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value >= 100.0 or value == round(value) else f"{value:.3g}"
