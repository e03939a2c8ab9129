"""Scaling: the model of a cluster beside a published curve, and beside two processes here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.cluster_link import measured_link
from anybatch.planning.arithmetic.cluster_work import work_of
from anybatch.planning.arithmetic.scaling_curve import (
    Link,
    ScalingRequest,
    predict_scaling,
)
from anybatch.run import read_json
from benchmarks.scaling_paper import FITTED_UP_TO, PUBLISHED, VARIANTS, fitted_curve
from benchmarks.scaling_processes import CASES, LOCAL_EVERY, PER_RANK
from benchmarks.summaries import markdown_table, median_and_quartiles

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "scaling"
TITLE = "A model of the cluster"
QUESTION = (
    "Does the model of `anybatch predict-scaling` foretell (a) K-FAC's seconds per iteration on "
    "128 to 2,048 GPUs (ResNet-50, Osawa et al. 2019), when its four constants are fitted to 4 to "
    "64 GPUs, and (b) an update on two processes here, from one process and a measured link?"
)
PREDICTION = (
    "(a) within 10 % at 128 and 256 GPUs, and 15 to 30 % too low at 1,024 and 2,048, as nothing in "
    "it knows of congestion; (b) within 15 % for all four methods"
)

_TOGETHER = 600.0  # seconds that a launch may take


def trials() -> list[str]:
    """Variants of the model of the published curve, and cases of processes."""
    return [*(f"published-{name}" for name in VARIANTS), *(f"processes-{case}" for case in CASES)]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One fit, or one case with one process and with two.

    Args:
        key: one of `trials`.
        folder: for what processes hand over.
    """
    kind, _, name = key.partition("-")
    if kind == "published":
        return fitted_curve(VARIANTS[name])
    one, two = (_launched(name, count, folder) for count in (1, 2))
    return {"one": one, "two": two, "predicted": _predicted(one, two)}


def _launched(case: str, processes: int, folder: Path) -> dict[str, Any]:
    file = folder.resolve() / f"{case}-{processes}.json"
    launcher = [
        "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
        f"--nproc-per-node={processes}",
    ]  # fmt: skip
    command = [sys.executable, *(launcher if processes > 1 else [])]
    command += ["-m", "benchmarks.scaling_processes", case, str(file)]
    subprocess.run(
        command, cwd=Path(__file__).parents[1], check=True, timeout=_TOGETHER,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    values: dict[str, Any] = read_json(file)
    return values


def _predicted(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Method -> ranks, as text -> seconds of an update."""
    throughput = Measurement.from_dict(one["throughput"])
    stages = Measurement.from_dict(one["stage_times"])
    settings = dict(throughput.settings) | {"all_reduce": two["all_reduce"], "world_size": 2}
    link = measured_link(
        Measurement(
            kind="throughput", settings=settings, samples={}, estimates={}, seconds=0.0, examples=0
        )
    )
    request = ScalingRequest(ranks=(1, 2), batch_size_per_rank=PER_RANK, local_every=LOCAL_EVERY)
    found: dict[str, dict[str, float]] = {}
    for prediction in predict_scaling(work_of(throughput, stages), _known(link), request):
        of_method = found.setdefault(prediction.method, {})
        of_method[str(prediction.ranks)] = prediction.stages.total
    return found


def _known(link: Link | None) -> Link:
    assert link is not None  # of two processes
    return link


# --- in words ------------------------------------------------------------------------------------


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """The errors beyond what was fitted, and those of two processes.

    Args:
        results: key -> values of finished trials.
    """
    told = []
    own = results.get("published-by-name-tree")
    if own:
        errors = [error for *_, error, fitted in own["rows"] if not fitted]
        mean = sum(map(abs, errors)) / len(errors)
        told.append(
            f"(a) errors {min(errors):+.0%} to {max(errors):+.0%}, {mean:.0%} in the mean beyond "
            f'{FITTED_UP_TO} GPUs; saying "as on {FITTED_UP_TO}" has '
            f"{own['mean_error_of_flat_line']:.0%}"
        )
    errors = [error for _, _, ranks, _, _, error in _process_rows(results) if ranks == 2]
    if errors:
        told.append(f"(b) errors {min(errors):+.0%} to {max(errors):+.0%} on two processes")
    return "; ".join(told) or "nothing was finished"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Published and foretold seconds with errors; measured and foretold ones here.

    Args:
        results: key -> values of finished trials.
    """
    parts = []
    fits = {
        name: results[f"published-{name}"] for name in VARIANTS if f"published-{name}" in results
    }
    if fits:
        parts += [_published_table(fits), _constants(fits)]
    rows = _process_rows(results)
    if rows:
        header = ["case", "method", "processes", "measured, ms", "foretold, ms", "error"]
        cells = [
            [case, method, str(ranks), measured, f"{1e3 * told:.2f}", f"{error:+.0%}"]
            for case, method, ranks, measured, told, error in rows
        ]
        load = max(
            results[f"processes-{case}"][which]["load_average"]
            for case in CASES
            if f"processes-{case}" in results
            for which in ("one", "two")
        )
        note = (
            f"{PER_RANK} examples a process, one thread each; medians of interleaved rounds of "
            "eight updates with quartiles. Two processes share this machine's caches and memory, "
            f"of which the model knows nothing. Load of the machine at most {load:.1f}."
        )
        parts += [markdown_table(header, cells), note]
    return "\n\n".join(parts)


def _published_table(fits: Mapping[str, dict[str, Any]]) -> str:
    header = ["GPUs", "published, s"]
    for name in fits:
        header += [name.replace("-", " "), "error"]
    rows = []
    for number, count in enumerate(sorted(PUBLISHED)):
        cells = [f"{count:,}" + ("" if count > FITTED_UP_TO else " (fitted)")]
        cells.append(f"{PUBLISHED[count]:.3f}")
        for fit in fits.values():
            _, _, told, error, _ = fit["rows"][number]
            cells += [f"{told:.3f}", f"{error:+.1%}"]
        rows.append(cells)
    return markdown_table(header, rows)


def _constants(fits: Mapping[str, dict[str, Any]]) -> str:
    told = [
        "Published values were read off a figure by eye, to about 0.01 s. Columns: blocks on ranks "
        "by name, as the authors' release places them, or longest first; latency as that of trees "
        "or of rings. Constants, fitted to at most 64 GPUs, each >= 0:"
    ]
    for name, fit in fits.items():
        found = fit["constants"]
        told.append(
            f"- {name.replace('-', ' ')}: passes {found['passes_seconds']:.3f} s, "
            f"{1e12 * found['seconds_per_multiply_add']:.2f} ps a multiply-add, "
            f"{1e6 * found['latency_seconds']:.0f} us a message, "
            f"{1e9 * found['seconds_per_byte']:.2f} ns a byte"
        )
    told.append(
        "Where a message and a byte cost nothing, the fitted points ask for no traffic at all: up "
        "to 64 GPUs it cannot be told from the passes and the busiest rank, and what makes the "
        "curve rise beyond 256 cannot be foretold from there. Four GPUs share a node, whose links "
        "are quicker than those between nodes."
    )
    return "\n".join([told[0], "", *told[1:-1], "", told[-1]])


_ProcessRow = tuple[str, str, int, str, float, float]


def _process_rows(results: dict[str, dict[str, Any]]) -> list[_ProcessRow]:
    """Case, method, processes, measured milliseconds in words, foretold seconds, error."""
    rows: list[_ProcessRow] = []
    for case in CASES:
        values = results.get(f"processes-{case}")
        if values is None:
            continue
        for method, of_ranks in values["predicted"].items():
            for which, ranks in (("one", 1), ("two", 2)):
                median, low, high = median_and_quartiles(values[which]["seconds"][method])
                told = of_ranks[str(ranks)]
                words = f"{1e3 * median:.2f} ({1e3 * low:.2f} to {1e3 * high:.2f})"
                rows.append((case, method, ranks, words, told, told / median - 1.0))
    return rows
