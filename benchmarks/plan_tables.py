"""What the trials of `plan_regret` add up to: pure arithmetic on stored values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.plan_tasks import CASES, PlanCase
from benchmarks.plan_training import seconds_between
from benchmarks.summaries import markdown_table

__all__ = [
    "BEST_ARMS",
    "PREDICTION",
    "SEEDS",
    "WAYS",
    "best_of_grid",
    "best_seconds",
    "chosen_seconds",
    "ratios",
    "table",
    "time_key",
    "verdict",
]

PREDICTION = (
    "median seconds of the planned training at most 1.25 x those of the grid's best arm on each "
    "task and at most 1.10 x on the median of the tasks; measuring and planning cost at most 5 % "
    "of the grid and at most 30 % of a training of a minute"
)
SEEDS = (1, 2, 3)
"""Fresh ones: the grid was searched with another."""

BEST_ARMS = 3
"""Of the grid, trained again with each fresh seed."""

WAYS = ("plan", "present", "adam-3e-4", "fill-memory", "random-search", "lightning")
"""Ways to choose, in the order of the table."""

_ON_EACH, _ON_THE_MEDIAN = 1.25, 1.10
_SHARE_OF_GRID, _SHARE_OF_MINUTE = 0.05, 0.30
_Results = dict[str, dict[str, Any]]


# --- seconds ------------------------------------------------------------------------------------


def time_key(mapping: dict[str, Any]) -> str:
    """What the seconds of an update depend on here: update rule, batch size, averaging.

    Args:
        mapping: of a recipe.

    Example:
        >>> time_key({"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32})
        'sgd-32'
    """
    averaged = "-averaged" if mapping.get("averaging") else ""
    return f"{mapping['optimizer']['name']}-{mapping['batch_size']}{averaged}"


def best_of_grid(grid: dict[str, Any]) -> float:
    """Seconds that the grid's best arm took to the target, as the grid timed updates; inf without.

    Args:
        grid: values of its trial; arms best first.
    """
    best = grid["arms"][0]
    if best["reached"] is None:
        return math.inf
    return float(best["reached"] * grid["step_seconds"][str(best["batch_size"])]["cpu_seconds"])


def _seconds(entry: dict[str, Any], case: PlanCase, results: _Results) -> float:
    """Seconds to the target of one training; inf where it was not reached."""
    reached = entry["curve"]["reached"]
    if reached is None:
        return math.inf
    whole = [{"recipe": entry["recipe"], "updates": reached}]
    return sum(
        part["updates"] * _step_seconds(part["recipe"], case, results)
        for part in entry.get("parts", whole)
    )


def _step_seconds(mapping: dict[str, Any], case: PlanCase, results: _Results) -> float:
    """Of an update with a recipe: timed jointly, or until then as the grid timed its batch size."""
    timed = results.get(f"times-{case.name}", {}).get("step_seconds", {})
    known = timed.get(time_key(mapping))
    if known is not None:
        return float(known["wall_seconds"])
    grid = results[f"grid-{case.name}"]["step_seconds"]
    sizes = {int(size): values["cpu_seconds"] for size, values in grid.items()}
    return float(seconds_between(sizes, mapping["batch_size"]))


def chosen_seconds(way: str, case: PlanCase, results: _Results) -> list[float]:
    """Seconds to the target with what one way chose, one for each finished seed.

    Args:
        way: of `WAYS`.
        case: of which.
        results: key -> values of finished trials.
    """
    entries = [results.get(f"{way}-{case.name}-{seed}") for seed in SEEDS]
    return [_seconds(entry, case, results) for entry in entries if entry]


def best_seconds(case: PlanCase, results: _Results) -> list[float]:
    """Seconds of the best arm, one for each finished seed: the arm with the least median.

    Args:
        case: of which.
        results: key -> values of finished trials.
    """
    return [_seconds(arm, case, results) for arm in _best_arm(case, results)]


def _best_arm(case: PlanCase, results: _Results) -> list[dict[str, Any]]:
    trials = [results.get(f"best-{case.name}-{seed}") for seed in SEEDS]
    finished = [trial["arms"] for trial in trials if trial]
    if not finished:
        return []
    arms = [list(entries) for entries in zip(*finished, strict=True)]
    return min(
        arms, key=lambda entries: statistics.median(_seconds(e, case, results) for e in entries)
    )


def ratios(way: str, results: _Results) -> dict[str, list[float]]:
    """Case -> seconds of each seed over the median of the best arm; cases that can be compared.

    Args:
        way: of `WAYS`.
        results: key -> values of finished trials.
    """
    found = {}
    for case in CASES:
        best, chosen = best_seconds(case, results), chosen_seconds(way, case, results)
        if best and chosen and math.isfinite(statistics.median(best)):
            found[case.name] = [value / statistics.median(best) for value in chosen]
    return found


def _asking(way: str, case: PlanCase, results: _Results) -> float | None:
    """Median of what it took to choose."""
    entries = [results.get(f"{way}-{case.name}-{seed}") for seed in SEEDS]
    costs = [entry["asking_seconds"] for entry in entries if entry]
    return statistics.median(costs) if costs else None


# --- words --------------------------------------------------------------------------------------


def verdict(results: _Results) -> str:
    """Ratios of the plan on each task and on the median, its costs, and the others' medians.

    Args:
        results: key -> values of finished trials.
    """
    medians = {
        way: [statistics.median(values) for values in ratios(way, results).values()] for way in WAYS
    }
    others = "; ".join(
        f"{way} {_ratio(statistics.median(medians[way]))}" for way in WAYS[1:] if medians[way]
    )
    if not medians["plan"]:
        return (
            f"no plan yet; median of the others: {others}" if others else "nothing to compare yet"
        )
    worst, middle = max(medians["plan"]), statistics.median(medians["plan"])
    of_grid, of_minute = _shares(results)
    held = (
        len(medians["plan"]) == len(CASES)
        and worst <= _ON_EACH
        and middle <= _ON_THE_MEDIAN
        and of_grid <= _SHARE_OF_GRID
        and of_minute <= _SHARE_OF_MINUTE
    )
    return (
        f"{'holds' if held else 'does not hold'}: {len(medians['plan'])} tasks, median "
        f"{_ratio(middle)}, worst {_ratio(worst)} x the best; cost at most {of_grid:.1%} of the "
        f"grid and {of_minute:.0%} of a minute; medians of the others: {others}"
    )


def _shares(results: _Results) -> tuple[float, float]:
    """The most that measuring and planning cost, of the grid and of a minute."""
    of_grid, of_minute = [0.0], [0.0]
    for case in CASES:
        asked = _asking("plan", case, results)
        if asked is not None:
            of_grid.append(asked / results[f"grid-{case.name}"]["cost_seconds"])
            of_minute.append(asked / 60)
    return max(of_grid), max(of_minute)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not reached"


def table(results: _Results) -> str:
    """The grids, then every way beside the best, then what choosing cost.

    Args:
        results: key -> values of finished trials.
    """
    parts = [
        _grid_table(results),
        "Seconds to the target over the median of the best arm, one figure for each fresh seed "
        "(n = 3), their median first; a training longer than 5 x the grid's best is stopped:",
        _ratio_table(results),
        "Seconds that choosing took (median; of the plan also as shares of the grid and of a "
        "training of a minute):",
        _cost_table(results),
        "Timed together on a quiet machine: "
        + (", ".join(_jointly_timed(results)) or "nothing yet, seconds are those of the grids")
        + ".",
    ]
    return "\n\n".join(parts)


def _jointly_timed(results: _Results) -> list[str]:
    return [case.name for case in CASES if f"times-{case.name}" in results]


def _grid_table(results: _Results) -> str:
    header = ["task", "target", "arms", "grid, s", "best batch", "best lr", "inside",
              "best arm, s: median (each)", "present batch", "present lr"]  # fmt: skip
    rows = []
    for case in CASES:
        grid = results.get(f"grid-{case.name}")
        if grid is None:
            continue
        again = _best_arm(case, results)
        seconds = best_seconds(case, results)
        first = grid["arms"][0]
        size, lr = first["batch_size"], 2.0 ** first["exponent"]
        if again:
            size, lr = again[0]["batch_size"], again[0]["lr"]
        rows.append([
            case.name, str(case.target), str(len(grid["arms"])), f"{grid['cost_seconds']:.0f}",
            str(size), f"{lr:.3g}", "yes" if grid["inside"] else "no",
            _each(seconds, ".2f"), str(case.present_batch_size),
            f"{case.recipe.optimizer.lr:.3g}",
        ])  # fmt: skip
    return markdown_table(header, rows)


def _each(values: Sequence[float], form: str) -> str:
    """Median, and each value in brackets."""
    if not values:
        return ""
    said = [format(v, form) if math.isfinite(v) else "not reached" for v in values]
    middle = statistics.median(values)
    shown = format(middle, form) if math.isfinite(middle) else "not reached"
    return f"{shown} ({', '.join(said)})"


def _ratio_table(results: _Results) -> str:
    by_way = {way: ratios(way, results) for way in WAYS}
    rows = [
        [case.name, *(_each(by_way[way].get(case.name, []), ".2f") for way in WAYS)]
        for case in CASES
    ]
    medians = []
    for way in WAYS:
        values = [statistics.median(each) for each in by_way[way].values()]
        medians.append(_ratio(statistics.median(values)) if values else "")
    return markdown_table(["task", *WAYS], [*rows, ["median of the tasks", *medians]])


def _cost_table(results: _Results) -> str:
    rows = []
    for case in CASES:
        asked = {way: _asking(way, case, results) for way in WAYS}
        texts = ["" if asked[way] is None else f"{asked[way]:.1f}" for way in WAYS]
        plan, grid = asked["plan"], results.get(f"grid-{case.name}")
        if plan is not None and grid is not None:
            texts[0] += f" ({plan / grid['cost_seconds']:.1%}, {plan / 60:.0%})"
        rows.append([case.name, *texts])
    return markdown_table(["task", *WAYS], rows)
