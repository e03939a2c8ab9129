"""What K-FAC brings, in words: ratios to SGD with intervals, a table, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from anybatch.reporting.student import student_quantile
from benchmarks.kfac_benefit_arms import arms_of
from benchmarks.kfac_benefit_problems import PROBLEMS, Problem
from benchmarks.summaries import markdown_table

__all__ = ["Ratio", "benefit_table", "benefit_verdict", "paired_ratio", "winners"]

_SHOWN = {"sgd": "SGD", "kfac": "K-FAC", "adamw": "AdamW", "lars": "LARS", "muon": "Muon"}
_EXPECTED_AT_2048 = 0.75

Results = dict[str, dict[str, Any]]


class Ratio(NamedTuple):
    """A geometric mean of paired ratios.

    Attributes:
        mean: of them.
        low: lower end of its 95 % interval, by Student's t on the logarithms; NaN for one pair.
        high: upper end.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int


def paired_ratio(values: Sequence[float], references: Sequence[float]) -> Ratio:
    """Values to references, seed by seed.

    Args:
        values: > 0, at least one.
        references: > 0, of the same seeds.

    Example:
        >>> ratio = paired_ratio([50.0, 50.0, 50.0], [100.0, 100.0, 100.0])
        >>> ratio.mean, ratio.pairs
        (0.5, 3)
    """
    logs = [math.log(a / b) for a, b in zip(values, references, strict=True)]
    mean, count = statistics.fmean(logs), len(logs)
    if count < 2:
        return Ratio(math.exp(mean), math.nan, math.nan, count)
    half = student_quantile(0.975, count - 1) * statistics.stdev(logs) / math.sqrt(count)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count)


def _updates(told: dict[str, Any]) -> dict[int, int]:
    """Seed -> updates, of those runs that reached the target."""
    return {run["seed"]: run["updates"] for run in told["runs"] if run["updates"]}


def _to_sgd(results: Results, problem: Problem, name: str) -> Ratio | None:
    """Updates as a share of SGD's, over the seeds whose two runs reached the target."""
    told = results.get(f"{problem.name}-{name}")
    sgd = results.get(f"{problem.name}-sgd")
    if told is None or sgd is None or name == "sgd":
        return None
    own, others = _updates(told), _updates(sgd)
    both = [seed for seed in own if seed in others]
    if not both:
        return None
    return paired_ratio([own[seed] for seed in both], [others[seed] for seed in both])


def _time_ratios(results: Results, problem: Problem, name: str) -> list[float]:
    """Seconds of an update beside SGD's, round by round."""
    rounds = results.get(f"{problem.name}-seconds", {}).get("rounds", [])
    return [taken[name] / taken["sgd"] for taken in rounds]


def _seconds_ratio(results: Results, problem: Problem, name: str) -> float | None:
    updates, times = _to_sgd(results, problem, name), _time_ratios(results, problem, name)
    return updates.mean * statistics.median(times) if updates and times else None


# --- table --------------------------------------------------------------------------------------


def benefit_table(results: Results) -> str:
    """A row for each problem and arm that was trained, SGD's first.

    Args:
        results: key -> values of finished trials.
    """
    rows = [
        _row(results, problem, arm.name, arm.second)
        for problem in PROBLEMS
        for arm in sorted(arms_of(problem), key=lambda arm: list(_SHOWN).index(arm.name))
        if f"{problem.name}-{arm.name}" in results
    ]
    if not rows:
        return "Not measured yet."
    header = ["problem", "target", "optimizer", "tuned to", "reached", "updates", "to SGD's",
              "ms an update", "seconds", "to SGD's"]  # fmt: skip
    return markdown_table(header, rows) + "\n\n" + _NOTES


_NOTES = " ".join(
    [
        "Target: lowest validation error (autoencoder: squared error of a pixel) of SGD's best of",
        "6 tuning trainings in the first 3/4 of their length. Every optimizer had 6 of them on one",
        "seed: the lr by steps of 2 to 8, and the setting named. Updates: median of the seeds 1, 2",
        "and 3 that reached it, looked at 5 % apart, at most twice as many as in SGD's tuning.",
        "To SGD's: geometric mean of the ratios of the seeds that both reached, 95 % interval by",
        "Student's t (three seeds: wide). Milliseconds: processor time of one thread, optimizers",
        "in turns of 5 updates, median of 5 rounds; seconds: updates times these. K-FAC measures",
        "its statistics in every update and inverts in every fifth. The lr rises linearly until",
        "the first evaluation (update 5 at batch 2,048, 20 elsewhere) and is constant then.",
    ]
)


def _row(results: Results, problem: Problem, name: str, second: str) -> list[str]:
    told = results[f"{problem.name}-{name}"]
    reached = _updates(told)
    median = statistics.median(reached.values()) if reached else None
    times = results.get(f"{problem.name}-seconds", {}).get("medians", {})
    ratio, seconds = _to_sgd(results, problem, name), _seconds_ratio(results, problem, name)
    one = times.get(name)
    return [
        problem.title,
        f"{told['target']:.{problem.digits}f}",
        _SHOWN[name],
        f"lr {told['lr']:.3g}, {second} {told['second']:g}",
        f"{len(reached)} of {len(told['runs'])}",
        f"> {told['cap']}" if median is None else f"{median:g}",
        "" if ratio is None else _interval(ratio),
        "" if one is None else f"{one * 1e3:.0f}",
        "" if one is None or median is None else f"{one * median:.1f}",
        "" if seconds is None else f"{seconds:.2f}",
    ]


def _interval(ratio: Ratio) -> str:
    if ratio.pairs < 2:
        return f"{ratio.mean:.2f}, 1 pair"
    return f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), {ratio.pairs} pairs"


# --- verdict ------------------------------------------------------------------------------------


def benefit_verdict(results: Results) -> str:
    """K-FAC's updates and seconds as shares of SGD's, and whether 25 % fewer held at 2,048.

    Args:
        results: key -> values of finished trials.
    """
    parts, expected = [], []
    for problem in PROBLEMS:
        ratio, seconds = (
            _to_sgd(results, problem, "kfac"),
            _seconds_ratio(results, problem, "kfac"),
        )
        if ratio is None:
            continue
        timed = "" if seconds is None else f" and {seconds:.2f} x its processor seconds"
        parts.append(f"{problem.name} {ratio.mean:.2f} x SGD's updates{timed}")
        if problem.batch_size == 2048:
            expected.append(ratio.mean <= _EXPECTED_AT_2048)
    if not parts:
        return "not measured yet"
    held = f"25 % fewer updates at batch 2,048 on {sum(expected)} of {len(expected)} networks"
    return "K-FAC: " + ", ".join(parts) + (f"; {held}" if expected else "")


def winners(results: Results) -> str:
    """Which optimizer needs fewest updates, and which fewest processor seconds, on each problem.

    Args:
        results: key -> values of finished trials.
    """
    lines = []
    for problem in PROBLEMS:
        arms = [arm.name for arm in arms_of(problem) if f"{problem.name}-{arm.name}" in results]
        medians = {name: _median(results[f"{problem.name}-{name}"]) for name in arms}
        times = results.get(f"{problem.name}-seconds", {}).get("medians", {})
        if len(arms) < 2:
            continue
        fewest = min(arms, key=lambda name: medians[name])
        line = f"- {problem.title}: fewest updates {_SHOWN[fewest]} ({medians[fewest]:g})"
        if times:
            quickest = min(arms, key=lambda name: medians[name] * times[name])
            seconds = medians[quickest] * times[quickest]
            line += f", fewest seconds {_SHOWN[quickest]} ({seconds:.1f} s)"
        lines.append(f"{line}, of {', '.join(_SHOWN[name] for name in arms)}.")
    return "\n".join(lines)


def _median(told: dict[str, Any]) -> float:
    """Of all seeds, those that did not reach the target last."""
    return float(statistics.median(run["updates"] or math.inf for run in told["runs"]))
