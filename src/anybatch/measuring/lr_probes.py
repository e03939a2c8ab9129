"""Short trainings at a constant learning rate: which to try next, and what they say.

A ramp overshoots: it passes the edge before the loss shows it. So from the ramp's own beginning,
on the same batches, a few constant learning rates are tried, a factor 2 apart at first:

    from the ramp's guess until the best one has a worse neighbour on both sides, the larger first,
        and is better than one three octaves below
    up from there to the first that does not learn, then between the two: the edge, as far up as
        it is wanted
    what is clearly worse than the best so far is given up early

Pure arithmetic; learning rates are kept as log2, since all differences are octaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anybatch.measurement import Estimate
from anybatch.measuring.blow_up import error_inflation

__all__ = [
    "Probe",
    "ProbePlan",
    "best_lr",
    "best_probe",
    "edge",
    "may_learn",
    "next_probe",
    "should_give_up",
]

_Array = NDArray[np.float64]

_TAIL = 0.35  # share of a probe whose losses are its level
_EQUAL = 0.01  # share of the best drop within which two learning rates are as good
_NEARLY_EQUAL = 0.02  # likewise above the best, where more must not be missed
_FALLEN = 0.05  # share of the best drop that a probe must make to count as learning
_CHANCE = 4.0  # standard errors: the lowest of several levels is low by chance
_WORTH_MENTIONING = 0.1  # of the noise of one loss: less is no learning, however sure
_GIVEN_UP = 0.5  # share of the best drop that a probe may lack before it is given up
_EDGE_OCTAVES = 0.25
_ABOVE_BEST = 0.5  # octaves that the best may lie above the best that was tried
_MOST_OCTAVES = 12
_FURTHER_DOWN = 3
_STEADY_ENOUGH = 3  # learning rates without a clear fall, below one that rises: nothing to find
_NON_FINITE_IN_A_ROW = 3
_MODEL_ERROR_OCTAVES = 0.7
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One short training at a constant learning rate.

    Attributes:
        octave: log2 of the learning rate.
        repeat: number of the beginning that it started from.
        losses: (updates,), before each update; may hold nan and inf.
    """

    octave: float
    repeat: int
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """What a search for the best constant learning rate is told.

    Attributes:
        guess: log2 of the learning rate to begin with.
        lowest: log2 of the least learning rate to try.
        highest: log2 of the largest.
        num_updates: of a probe that is not given up, >= 10.
        repeats: beginnings, >= 1.
        start: loss before any learning.
        noise: standard deviation of one loss.
        is_noisy: whether losses must be compared with those of weights that stay.
        edge_within: octaves above the best beyond which the edge is not looked for; inf: anywhere.
    """

    guess: float
    lowest: float
    highest: float
    num_updates: int
    repeats: int
    start: float
    noise: float
    is_noisy: bool = False
    edge_within: float = math.inf


# --- what a probe says -------------------------------------------------------------------------


def _window(num_updates: int) -> int:
    return max(3, round(_TAIL * num_updates))


def _level(losses: Sequence[float], plan: ProbePlan, window: int | None = None) -> float:
    """Mean of the last losses, at most the start: how far above it tells nothing more.

    A loss that is not finite is left out (a bad batch), but not where most of them are.
    """
    values = np.asarray(losses[-(window or _window(len(losses))) :], dtype=np.float64)
    finite = values[np.isfinite(values)]
    if 2 * len(finite) <= len(values):
        return plan.start
    return min(float(finite.mean()), plan.start)


def _error(losses: Sequence[float]) -> float:
    """Standard error of the level: of the last losses about their trend, neighbours being alike."""
    values = np.asarray(losses[-_window(len(losses)) :], dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 4:
        return 0.0
    trend = np.polynomial.Legendre.fit(np.arange(len(values)), values, 2)
    residual = values - trend(np.arange(len(values)))
    deviation = math.sqrt(float(residual @ residual) / (len(values) - 3))
    return deviation / math.sqrt(len(values)) * error_inflation(residual)


def _final_level(probe: Probe, reference: Probe, plan: ProbePlan, probes: Iterable[Probe]) -> float:
    """The level at the full length; of one given up, its distance to the reference at that time.

    It was given up for being behind the best one by then. Where it was not behind the reference,
    which started slowly and won later, the complete ones that it was behind of tell.
    """
    level = _level(probe.losses, plan)
    count = len(probe.losses)
    if count >= plan.num_updates or level >= plan.start:
        return level

    def told_by(other: Probe) -> tuple[float, float]:
        distance = level - _level(other.losses[:count], plan)
        return distance, _level(other.losses, plan) + max(0.0, distance)

    distance, told = told_by(reference)
    if distance <= 0.0:
        others = (p for p in probes if p.repeat == probe.repeat)
        complete = [told_by(p) for p in others if len(p.losses) >= plan.num_updates]
        told = max([told, *(final for behind, final in complete if behind > 0.0)])
    return min(plan.start, told)


def _learns(probe: Probe, drop: float, plan: ProbePlan) -> bool:
    """Whether the loss has fallen by more than chance and by a share of the best drop."""
    level = _level(probe.losses, plan)
    return level < plan.start - max(_FALLEN * drop, min(3.0 * _error(probe.losses), 0.5 * drop))


def best_probe(probes: Sequence[Probe], repeat: int, plan: ProbePlan) -> Probe | None:
    """The complete probe of a beginning, at a whole octave, with the lowest level.

    Args:
        probes: so far.
        repeat: number of the beginning.
        plan: of the search.

    Returns:
        None where none learns.
    """
    best = _lowest(probes, repeat, plan)
    if best is None:
        return None
    needed = max(_CHANCE * _error(best.losses), _WORTH_MENTIONING * plan.noise)
    return best if plan.start - _level(best.losses, plan) > needed else None


def _lowest(probes: Sequence[Probe], repeat: int, plan: ProbePlan) -> Probe | None:
    """The complete probe at a whole octave with the lowest level, whether it learns or not."""
    complete = (p for p in probes if _is_whole(p) and len(p.losses) >= plan.num_updates)
    own = (p for p in complete if p.repeat == repeat)
    return min(own, key=lambda p: _level(p.losses, plan), default=None)


def may_learn(probes: Sequence[Probe], plan: ProbePlan) -> float | None:
    """The lr of a probe that fell by twice its standard error, or None: not sure, not nothing."""
    lowest = _lowest(probes, 0, plan)
    if lowest is None:
        return None
    fell = plan.start - _level(lowest.losses, plan)
    needed = max(0.5 * _CHANCE * _error(lowest.losses), _WORTH_MENTIONING * plan.noise)
    return 2.0**lowest.octave if fell > needed else None


def _is_whole(probe: Probe) -> bool:
    """Whether it lies on the grid of factor 2 that the best one is looked for on."""
    return probe.octave == round(probe.octave)


def should_give_up(losses: Sequence[float], best: Probe | None, plan: ProbePlan) -> bool:
    """Whether a probe in progress need not be carried to its end.

    Args:
        losses: of its updates so far.
        best: of the complete probes from the same beginning, on the same batches.
        plan: of the search.
    """
    count = len(losses)
    if not math.isfinite(losses[-1]):
        return not any(map(math.isfinite, losses[-_NON_FINITE_IN_A_ROW:]))
    recent = float(np.median([loss for loss in losses[-5:] if math.isfinite(loss)]))
    reach = plan.start - (_level(best.losses, plan) if best else plan.start)
    if count >= 5 and recent > plan.start + max(2.0 * abs(reach), 10.0 * plan.noise) + 1e-12:
        return best is not None or count >= plan.num_updates // 3
    if best is None or count < plan.num_updates // 2 or count % 5:
        return False
    chance = 3.0 * plan.noise / math.sqrt(_window(count))
    recently = max(3, _window(count) // 2)  # what is catching up is not given up
    for window in (_window(count), recently):
        level = _level(best.losses[:count], plan, window)
        behind = _level(losses, plan, window) - level
        if behind <= max(_GIVEN_UP * (plan.start - level), chance):
            return False
    return True


# --- which one next ----------------------------------------------------------------------------


def next_probe(probes: Sequence[Probe], plan: ProbePlan) -> tuple[float, int] | None:
    """Octave and beginning of the next probe; None where enough is known.

    Args:
        probes: so far, in any order: the answer is a function of them alone.
        plan: of the search.

    Example:
        >>> plan = ProbePlan(guess=-3.2, lowest=-20, highest=3, num_updates=10, repeats=1,
        ...     start=1.0, noise=0.0)
        >>> next_probe([], plan)
        (-3.0, 0)
    """
    octave = _next_around_best(probes, plan, 0)
    if octave is not None:
        return octave, 0
    octave = _next_at_edge(probes, plan)
    if octave is not None:
        return octave, 0
    for repeat in range(1, plan.repeats):
        octave = _next_around_best(probes, plan, repeat)
        if octave is not None:
            return octave, repeat
    return None


def _next_around_best(probes: Sequence[Probe], plan: ProbePlan, repeat: int) -> float | None:
    """The next whole octave that is needed to enclose the best one."""
    own = {p.octave: p for p in probes if p.repeat == repeat and _is_whole(p)}
    first = best_probe(probes, 0, plan) if repeat else None
    begin = first.octave if first else _within(round(plan.guess), plan)
    if begin not in own:
        return begin
    best = best_probe(probes, repeat, plan)
    if len(own) >= _MOST_OCTAVES:
        return None
    if best is None:
        return _next_where_none_learns(own, plan)
    wanted = [best.octave + 1, best.octave - 1]  # what is too large is the sooner given up
    level = _level(best.losses, plan)
    for step, share in ((-1, _EQUAL), (1, _NEARLY_EQUAL)):  # a longer training may tell them apart
        beside = own.get(best.octave + step)
        limit = level + share * (plan.start - level)
        if beside and _final_level(beside, best, plan, own.values()) <= limit:
            wanted.append(best.octave + 2 * step)
    wanted.append(best.octave - _FURTHER_DOWN)  # a second valley, of slower and better trainings
    inside = [k for k in wanted if plan.lowest <= k <= plan.highest and k not in own]
    return inside[0] if inside else None


def _next_where_none_learns(own: dict[float, Probe], plan: ProbePlan) -> float | None:
    """Down from what rises, up from what only stays where it is; then a little below the two."""
    low, high = min(own), max(own)
    if not _rises(own[high], plan):
        return high + 1 if high + 1 <= plan.highest else None
    steady = sum(not _rises(probe, plan) for probe in own.values())
    return low - 1 if low - 1 >= plan.lowest and steady < _STEADY_ENOUGH else None


def _rises(probe: Probe, plan: ProbePlan) -> bool:
    return len(probe.losses) < plan.num_updates or _level(probe.losses, plan) >= plan.start


def _within(octave: float, plan: ProbePlan) -> float:
    return float(min(max(octave, math.ceil(plan.lowest)), math.floor(plan.highest)))


def _edge_bracket(probes: Sequence[Probe], plan: ProbePlan) -> tuple[float, float | None] | None:
    """The highest octave that learns below the first above the best that does not."""
    best = best_probe(probes, 0, plan)
    if best is None:
        return None
    drop = plan.start - _level(best.losses, plan)
    above = sorted((p for p in probes if p.repeat == 0 and p.octave >= best.octave), key=_octave)
    stable = best.octave
    for probe in above:
        if not _learns(probe, drop, plan):
            return stable, probe.octave
        stable = probe.octave
    return stable, None


def _octave(probe: Probe) -> float:
    return probe.octave


def _next_at_edge(probes: Sequence[Probe], plan: ProbePlan) -> float | None:
    bracket = _edge_bracket(probes, plan)
    if bracket is None:
        return None
    stable, unstable = bracket
    best = best_probe(probes, 0, plan)
    if best is not None and stable - best.octave >= plan.edge_within + _ABOVE_BEST:
        return None
    if unstable is None:
        above = math.floor(stable) + 1.0
        return above if above <= plan.highest else None
    return None if unstable - stable <= _EDGE_OCTAVES else 0.5 * (stable + unstable)


# --- what all of them say ----------------------------------------------------------------------


def edge(probes: Sequence[Probe], plan: ProbePlan) -> Estimate:
    """The edge of stability: the largest constant learning rate at which the loss still falls.

    The geometric middle of the highest that learns and the lowest that does not; the interval is
    these two. Learning means a loss below the start by 5 % of the best drop, clear of the noise.
    """
    bracket = _edge_bracket(probes, plan)
    if bracket is None:
        reason = "no constant learning rate that was tried lowered the loss"
        return Estimate(value=None, reason=reason)
    stable, unstable = bracket
    if unstable is None:
        reason = f"lr {2.0**stable:.3g}, the largest that was tried, still learns"
        return Estimate(value=None, low=2.0**stable, high=math.inf, reason=reason)
    middle = 0.5 * (stable + unstable)
    return Estimate(value=2.0**middle, low=2.0**stable, high=2.0**unstable)


def best_lr(probes: Sequence[Probe], plan: ProbePlan) -> Estimate:
    """The learning rate to train with: the middle of those that are as good as the best.

    Levels are averaged over beginnings; the best is where a parabola through the lowest level and
    its neighbours is lowest (the lowest itself where the one above has learned nothing); from there
    down to where the level is worse by 1 % of the best drop, the learning rates are as good, and
    the geometric middle of them is taken: longer trainings like smaller ones. The interval is that
    of resampled updates and beginnings, widened by the error of short trainings against long ones
    (0.7 octaves, measured by benchmarks/lr_range).
    """
    table = _table(probes, plan)
    if table is None:
        reason = "no constant learning rate that was tried lowered the loss"
        return Estimate(value=None, reason=reason)
    octaves, tails = table
    centre = _preferred(octaves, _levels(tails, plan), plan)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        repeats = generator.integers(0, tails.shape[1], tails.shape[1])
        updates = generator.integers(0, tails.shape[2], tails.shape[2])
        drawn.append(_preferred(octaves, _levels(tails[:, repeats][:, :, updates], plan), plan))
    low, high = np.quantile(drawn, [0.025, 0.975])
    below = math.hypot(max(0.0, centre - float(low)), _MODEL_ERROR_OCTAVES)
    above = math.hypot(max(0.0, float(high) - centre), _MODEL_ERROR_OCTAVES)
    ends = {"low": 2.0 ** (centre - below), "high": 2.0 ** (centre + above), "reason": ""}
    place = int(_levels(tails, plan).argmin())
    if place == len(octaves) - 1:
        ends |= {"high": math.inf, "reason": "the largest lr that was tried is the best"}
    elif place == 0:
        ends |= {"low": 0.0, "reason": "the least lr that was tried is the best"}
    return Estimate(value=2.0**centre, **ends)


def _table(probes: Sequence[Probe], plan: ProbePlan) -> tuple[_Array, _Array] | None:
    """Octaves, and (octaves, repeats, updates) last losses of each probe at full length.

    An octave that a later beginning did not try takes the first one's distance to the best.
    """
    bests = [best_probe(probes, repeat, plan) for repeat in range(plan.repeats)]
    if bests[0] is None:
        return None
    tried = {(p.octave, p.repeat): p for p in probes}
    octaves = sorted({octave for octave, _ in tried})
    rows = []
    for octave in octaves:
        columns = []
        for repeat, best in enumerate(bests):
            if best is None:
                continue
            probe = tried.get((octave, repeat))
            source = probe or tried.get((octave, 0))
            reference = best if probe else bests[0]
            columns.append(_full_tail(source, (reference, best), plan, probes))
        rows.append(columns)
    return np.asarray(octaves, dtype=np.float64), np.asarray(rows, dtype=np.float64)


def _full_tail(
    probe: Probe | None, bests: tuple[Probe, Probe], plan: ProbePlan, probes: Iterable[Probe]
) -> _Array:
    """The last losses of a probe, or the best's ones raised by the distance to it.

    Args:
        probe: of which; None where there is none.
        bests: of the probe's beginning, and of the beginning that is told of.
        plan: of the search.
        probes: all.
    """
    (reference, best), window = bests, _window(plan.num_updates)
    if probe is None:
        return np.full(window, plan.start)
    if probe.repeat == best.repeat and len(probe.losses) >= plan.num_updates:
        return _tail(probe, plan, window)
    distance = _final_level(probe, reference, plan, probes) - _level(reference.losses, plan)
    return _tail(best, plan, window) + distance


def _tail(probe: Probe, plan: ProbePlan, window: int) -> _Array:
    """The last losses; one that is not finite becomes the level of the others."""
    losses = np.asarray(probe.losses[-window:], dtype=np.float64)
    return np.where(np.isfinite(losses), losses, _level(probe.losses, plan))


def _levels(tails: _Array, plan: ProbePlan) -> _Array:
    means: _Array = tails.mean(axis=(1, 2))
    return np.minimum(means, plan.start)


def _preferred(octaves: _Array, levels: _Array, plan: ProbePlan) -> float:
    """The middle between the best octave and the least that is as good."""
    place = int(levels.argmin())
    limit = float(levels[place]) + _EQUAL * (plan.start - float(levels[place]))
    least = place
    while least > 0 and levels[least - 1] <= limit:
        least -= 1
    if least == 0:
        lower = float(octaves[0])
    else:
        above, below = float(levels[least - 1]), float(levels[least])
        share = (limit - below) / (above - below)
        lower = float(octaves[least]) - share * float(octaves[least] - octaves[least - 1])
    return 0.5 * (_vertex(octaves, levels, place, plan.start) + lower)


def _vertex(octaves: _Array, levels: _Array, place: int, start: float) -> float:
    """Where a parabola through the lowest level and its two neighbours is lowest.

    The lowest itself where the one above has learned nothing: what ends in a cliff is no parabola.
    """
    middle = float(octaves[place])
    if place in (0, len(octaves) - 1) or levels[place + 1] >= start:
        return middle
    left, right = middle - float(octaves[place - 1]), float(octaves[place + 1]) - middle
    below, above = (float(levels[place + step] - levels[place]) for step in (-1, 1))
    curvature = left * above + right * below
    if curvature <= 0.0:
        return middle
    return middle + 0.5 * (right**2 * below - left**2 * above) / curvature
