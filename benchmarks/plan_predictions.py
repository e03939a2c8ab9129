"""Predictions of a plan: is the training over when it was said to be?

Each task is planned with 5 seeds and then trained as planned; the plan's 80 % interval of the
seconds to the target should hold the actual seconds four times out of five. Actual seconds are
those of the updates, the pilot's included, on the same machine and right after the plan.

Only the seeds are held out: what the planner believes of learning curves was set on other seeds of
these five tasks, after their trainings had been seen to end later than the power law told.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.plan_runs import planned_run
from benchmarks.plan_tasks import CASES
from benchmarks.summaries import markdown_table

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "plan_predictions"
TITLE = "Predicted against actual seconds of planned trainings"
QUESTION = (
    "How often do the actual seconds to the target lie inside of the 80 % interval that "
    "`anybatch plan` states, over five tasks and five seeds?"
)
PREDICTION = "16 to 24 of 25 inside, and a median of high / low of at most 3"

_SEEDS = (21, 22, 23, 24, 25)
_FEWEST, _MOST, _WIDEST = 16, 24, 3.0
_CASES = {case.name: case for case in CASES}
_Results = dict[str, dict[str, Any]]


def trials() -> list[str]:
    """One key for each task and seed; every task once before any twice."""
    return [f"{name}-{seed}" for seed in _SEEDS for name in _CASES]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Plan, and train as planned.

    Args:
        key: one of `trials`.
        folder: of the plan and the run.

    Raises:
        TrialSkippedError: the data are not here.
    """
    name, _, seed = key.rpartition("-")
    return planned_run(_CASES[name], int(seed), folder)


def _actual(values: dict[str, Any]) -> float:
    """Seconds to the target; inf where it was not reached."""
    curve = values["curve"]
    return math.inf if curve["reached"] is None else float(curve["wall_seconds"])


def _is_inside(values: dict[str, Any]) -> bool:
    low, _, high = map(float, values["predicted_seconds"])
    return bool(low <= _actual(values) <= high)


def _width(values: dict[str, Any]) -> float:
    low, _, high = map(float, values["predicted_seconds"])
    return float(high / low) if low > 0 else math.inf


def verdict(results: _Results) -> str:
    """How many were inside, and how wide the intervals are.

    Args:
        results: key -> values of finished trials.
    """
    inside = sum(_is_inside(values) for values in results.values())
    width = statistics.median(_width(values) for values in results.values())
    whole = len(results) == len(trials())
    held = "holds" if whole and _FEWEST <= inside <= _MOST and width <= _WIDEST else "does not hold"
    said = held if whole else "not finished"
    return f"{said}: {inside} of {len(results)} inside; median high / low {width:.2f}"


def table(results: _Results) -> str:
    """One row for each task, and one for all.

    Args:
        results: key -> values of finished trials.
    """
    header = ["task", "n", "inside", "actual / predicted median: median (range)",
              "median high / low", "not reached"]  # fmt: skip
    rows = []
    for name in _CASES:
        of_case = [values for key, values in results.items() if key.rpartition("-")[0] == name]
        if of_case:
            rows.append(_row(name, of_case))
    return markdown_table(header, [*rows, _row("all", list(results.values()))])


def _row(name: str, entries: list[dict[str, Any]]) -> list[str]:
    quotients = [_actual(values) / float(values["predicted_seconds"][1]) for values in entries]
    finite = [value for value in quotients if math.isfinite(value)]
    said = ""
    if finite:
        said = f"{statistics.median(finite):.2f} ({min(finite):.2f} to {max(finite):.2f})"
    return [
        name,
        str(len(entries)),
        str(sum(_is_inside(values) for values in entries)),
        said,
        f"{statistics.median(_width(values) for values in entries):.2f}",
        str(len(entries) - len(finite)),
    ]
