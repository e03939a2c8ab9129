"""Comparing two arms: the difference with its interval, and a verdict only where it is resolved.

Runs with the same seed start from the same weights and see the same order, so their difference
varies less than the runs do; they are paired, and Student's interval of the mean difference is
taken. Without seeds in common, Welch's interval of the difference of means serves.

A sign test or bootstrap would not help where seeds are few: five pairs cannot reach 95 % by their
signs, and resampling three values makes intervals that are too short.

Reference: B. L. Welch, The generalization of "Student's" problem when several different population
    variances are involved, Biometrika 34, 1947 (degrees of freedom); X. Bouthillier et al.,
    Accounting for Variance in Machine Learning Benchmarks, MLSys 2021 (pairing by seed).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from anybatch.errors import InputError
from anybatch.reporting.sources import Source, Subject, arm_runs, task_name
from anybatch.reporting.student import samples_needed, student_quantile
from anybatch.reporting.summary import number_text

__all__ = ["TIME_TO_TARGET", "Comparison", "Difference", "compare_runs", "mean_difference"]

TIME_TO_TARGET = "seconds to target"
_FEWEST = 3
_KNOWN_DIRECTIONS: Mapping[str, Literal["max", "min"]] = {
    "accuracy": "max",
    "squared_error": "min",
    "bits_per_token": "min",
    "loss": "min",
    TIME_TO_TARGET: "min",
}


class Difference(NamedTuple):
    """Mean of b - a with its 95 % interval.

    Attributes:
        value: the mean difference.
        low: end of the interval; -inf below two values.
        high: end of the interval; inf below two values.
        deviation: standard deviation that one more seed brings with it.
        number: pairs, or values of the smaller side where they are not paired.
    """

    value: float
    low: float
    high: float
    deviation: float
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One quantity of two arms.

    Attributes:
        quantity: metric's name, "loss" or "seconds to target".
        split: that it was measured on.
        direction: "max" where more is better, "min" where less is; None: not known.
        labels: of A and B.
        counts: values of A and B.
        means: of A and B.
        paired: whether values were paired by seed.
        difference: B - A.
        resolved: whether the interval excludes 0 and there are values enough to say so.
        seeds_needed: a side, to resolve a difference of this size; None where that is not known.
        verdict: in words.
        notes: what was left out or assumed.
    """

    quantity: str
    split: str
    direction: Literal["max", "min"] | None
    labels: tuple[str, str]
    counts: tuple[int, int]
    means: tuple[float, float]
    paired: bool
    difference: Difference
    resolved: bool
    seeds_needed: int | None
    verdict: str
    notes: tuple[str, ...]


def mean_difference(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Difference:
    """The mean of b - a with its 95 % interval, Student's for pairs and Welch's otherwise.

    Args:
        a: at least one value.
        b: as many as `a` where they are paired.
        paired: whether a[i] and b[i] belong together.

    Example:
        >>> found = mean_difference([1.0, 2.0, 3.0], [2.0, 3.5, 4.5], paired=True)
        >>> [round(x, 3) for x in found]
        [1.333, 0.616, 2.05, 0.289, 3]
    """
    if paired:
        differences = [y - x for x, y in zip(a, b, strict=True)]
        value, count = statistics.fmean(differences), len(differences)
        if count < 2:
            return Difference(value, -math.inf, math.inf, math.nan, count)
        deviation = statistics.stdev(differences)
        half = student_quantile(0.975, count - 1) * deviation / math.sqrt(count)
        return Difference(value, value - half, value + half, deviation, count)
    value, count = statistics.fmean(b) - statistics.fmean(a), min(len(a), len(b))
    if count < 2:
        return Difference(value, -math.inf, math.inf, math.nan, count)
    spread = statistics.variance(a), statistics.variance(b)
    errors = spread[0] / len(a), spread[1] / len(b)
    deviation, squared_error = math.sqrt(sum(spread)), sum(errors)
    if squared_error == 0.0:
        return Difference(value, value, value, 0.0, count)
    degrees = squared_error**2 / (errors[0] ** 2 / (len(a) - 1) + errors[1] ** 2 / (len(b) - 1))
    half = student_quantile(0.975, degrees) * math.sqrt(squared_error)
    return Difference(value, value - half, value + half, deviation, count)


def compare_runs(
    a: Source,
    b: Source,
    *,
    metric: str | None = None,
    split: Literal["validation", "test"] | None = None,
) -> list[Comparison]:
    """Compare two arms on the metric, and on the time to the target where runs of both reached it.

    Args:
        a: a run, a study of one arm, "STUDY:ARM", or a folder of runs.
        b: the other one.
        metric: "loss" or the metric's name; None takes the metric, and the time to the target.
        split: None takes test where both have it, else validation.

    Raises:
        InputError: no runs, different metrics or none of that name, or a seed that repeats.
    """
    sides = _side(a), _side(b)
    notes = _notes(sides)
    split = split or _common_split(sides)
    name = _metric_name(sides, split, metric)
    made = [_compared(sides, name, split, notes)]
    if metric is None:
        times = [_times(subjects) for _, subjects in sides]
        targets = {s.status.target for _, subjects in sides for s in subjects}
        if all(times) and len(targets) == 1:
            left_out = [
                f"{label}: {missed} of {len(subjects)} runs did not reach the target: left out"
                for (label, subjects), found in zip(sides, times, strict=True)
                if (missed := len(subjects) - len(found))
            ]
            on = sides[0][1][0].recipe.stopping.target_on
            labels = sides[0][0], sides[1][0]
            made.append(_told(labels, (times[0], times[1]), TIME_TO_TARGET, on, "min", left_out))
    return made


_Side = tuple[str, list[Subject]]


def _side(source: Source) -> _Side:
    label, runs = arm_runs(source)
    if not runs:
        raise InputError(label, "must have at least one run that was begun")
    subjects = [Subject.read(run, run.path.name) for run in runs]
    seeds = [subject.recipe.seed for subject in subjects]
    if len(set(seeds)) != len(seeds):
        repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        raise InputError(label, "must hold each seed once", f"seeds {repeated} more often")
    return label, subjects


def _notes(sides: tuple[_Side, _Side]) -> list[str]:
    """What is left out, and what makes the two sides hard to compare."""
    notes = []
    for label, subjects in sides:
        for outcome in ("diverged", "running", "interrupted", "failed"):
            count = sum(subject.status.name == outcome for subject in subjects)
            if count:
                notes.append(f"{label}: {count} of {len(subjects)} runs {outcome}: left out")
    tasks = {task_name(subject) for _, subjects in sides for subject in subjects}
    if len(tasks) > 1:
        notes.append(f"the tasks differ: {', '.join(sorted(tasks))}")
    return notes


def _common_split(sides: tuple[_Side, _Side]) -> Literal["validation", "test"]:
    has_test = all(any(s.last_eval("test") for s in subjects) for _, subjects in sides)
    return "test" if has_test else "validation"


def _metric_name(sides: tuple[_Side, _Side], split: str, asked: str | None) -> str:
    names = {
        record.metric_name
        for _, subjects in sides
        for subject in subjects
        for record in subject.evals_of(split)
    }
    if asked == "loss":
        return asked
    if len(names) > 1:
        raise InputError("metric", "must be the same in all runs", ", ".join(sorted(names)))
    if asked is not None and asked not in names:
        known = ", ".join(["loss", *names])
        raise InputError("--metric", f"must be one of: {known}", asked)
    if not names:
        raise InputError("runs", f"must have an evaluation of {split}")
    return names.pop()


def _compared(
    sides: tuple[_Side, _Side], name: str, split: str, notes: Sequence[str]
) -> Comparison:
    found: list[dict[int, float]] = []
    notes = list(notes)
    for label, subjects in sides:
        values = _values(subjects, name, split)
        sound = {seed: value for seed, value in values.items() if math.isfinite(value)}
        if len(sound) < len(values):
            notes.append(f"{label}: {len(values) - len(sound)} values are not finite: left out")
        if not sound:
            raise InputError(label, f"must have an ended run with a finite {split} {name}")
        found.append(sound)
    direction, note = _direction(sides, name)
    labels = sides[0][0], sides[1][0]
    notes = [*notes, note] if note else notes
    return _told(labels, (found[0], found[1]), name, split, direction, notes)


def _values(subjects: Sequence[Subject], name: str, split: str) -> dict[int, float]:
    """Last value of each run that ended without diverging, by seed."""
    ended = [s for s in subjects if s.status.name in ("finished", "target-missed")]
    records = {subject.recipe.seed: subject.last_eval(split) for subject in ended}
    return {
        seed: record.loss if name == "loss" else record.metric
        for seed, record in records.items()
        if record is not None
    }


def _times(subjects: Sequence[Subject]) -> dict[int, float]:
    return {
        subject.recipe.seed: subject.status.target_seconds
        for subject in subjects
        if subject.status.target_seconds is not None
    }


def _direction(sides: tuple[_Side, _Side], name: str) -> tuple[Literal["max", "min"] | None, str]:
    """Which way is better, from the runs or the metric's name, and a note where it is guessed."""
    if name == "loss":
        return "min", ""
    for _, subjects in sides:
        for subject in subjects:
            metric = subject.task.get("metric")
            if isinstance(metric, Mapping) and metric.get("name") == name:
                return ("max" if metric.get("direction") == "max" else "min"), ""
    if name in _KNOWN_DIRECTIONS:
        better = {"max": "more", "min": "less"}[_KNOWN_DIRECTIONS[name]]
        return _KNOWN_DIRECTIONS[name], f"{better} {name} is taken to be better, by its name"
    return None, f"which way {name} is better is not recorded in these runs"


def _told(
    labels: tuple[str, str],
    values: tuple[Mapping[int, float], Mapping[int, float]],
    quantity: str,
    split: str,
    direction: Literal["max", "min"] | None,
    notes: Sequence[str],
) -> Comparison:
    """The comparison of values by seed."""
    a, b = values
    common = sorted(set(a) & set(b))
    paired = len(common) >= min(_FEWEST, len(a), len(b)) and bool(common)
    seeds = (common, common) if paired else (sorted(a), sorted(b))
    first, second = [a[seed] for seed in seeds[0]], [b[seed] for seed in seeds[1]]
    alone = sorted(set(a) ^ set(b))
    if paired and alone:
        notes = [*notes, f"seeds {', '.join(map(str, alone))} are on one side only: left out"]
    if not paired:
        notes = [*notes, "too few seeds in common to pair: Welch's interval, which is wider"]
    difference = mean_difference(first, second, paired=paired)
    resolved, needed, verdict = _verdict(labels, difference, quantity, direction, paired)
    return Comparison(
        quantity=quantity,
        split=split,
        direction=direction,
        labels=labels,
        counts=(len(first), len(second)),
        means=(statistics.fmean(first), statistics.fmean(second)),
        paired=paired,
        difference=difference,
        resolved=resolved,
        seeds_needed=needed,
        verdict=verdict,
        notes=tuple(notes),
    )


def _verdict(
    labels: tuple[str, str],
    difference: Difference,
    quantity: str,
    direction: Literal["max", "min"] | None,
    paired: bool,
) -> tuple[bool, int | None, str]:
    """Whether the difference is resolved, seeds needed a side, and the verdict in words."""
    count, value = difference.number, difference.value
    what = (
        ("pair" if paired else "run a side") if count == 1 else "pairs" if paired else "runs a side"
    )
    needed = (
        samples_needed(abs(value) / difference.deviation) if difference.deviation > 0.0 else None
    )
    if count < _FEWEST:
        return False, needed, f"no verdict: {count} {what}, and at least {_FEWEST} are needed"
    if difference.deviation == 0.0:
        text = (
            "no verdict: the values are equal in every pair of seeds, so their spread is not known"
        )
        if value:
            text = "no verdict: every difference is the same, so the spread is not known"
        return False, None, text
    if difference.low <= 0.0 <= difference.high:
        seeds = "more than 10,000" if needed is None else f"about {needed:,}"
        return False, needed, (
            f"not resolved: {seeds} seeds a side would resolve a difference of this size "
            "(95 % interval, 80 % power)"
        )  # fmt: skip
    higher = labels[1] if value > 0.0 else labels[0]
    size = f"{quantity} {'higher' if direction != 'min' else 'lower'} by {number_text(abs(value))}"
    if direction is None:
        return True, needed, f"{higher} has {size}"
    better = labels[1] if (value > 0.0) == (direction == "max") else labels[0]
    return True, needed, f"{better} is better: {size}"
