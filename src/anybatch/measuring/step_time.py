"""Seconds of an update against the examples of its pass: the fitted curve and what follows from it.

    t(b) = a + c b                        where one straight line describes all sizes
    t(b) = a + s1 b, then s2, then s3     continuous, where the slope changes clear of the noise

with a >= 0 and slopes >= 0. The kind is the one of least BIC on logarithms, in which a size may lie
off the curve by its standard error and by 3 %, which no smooth curve of a real machine is free of.
Every estimate can be computed again from the stored samples; nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.measurement import Estimate

__all__ = [
    "StepTimeFit",
    "fit_latency",
    "fit_step_time",
    "fixed_seconds",
    "half_rate_size",
    "interval_of",
    "last_slope",
    "medians_by_round",
    "not_negative_least_squares",
    "relative_error",
    "resampled_fits",
    "seconds_per_update",
]

Array: TypeAlias = NDArray[np.float64]

_IRREGULARITY = 0.03  # relative: what a size may lie off any smooth curve
_LEAST_UNEXPLAINED = 0.02  # of that, what an interval allows for in any case
_PARAMETERS_OF_KINK = 3  # its slope, its place, and that the best of many places was taken
_PLACES = 4  # of a change of slope, from a size to the next
_SIZES_FOR_KINKS = {0: 1, 1: 5, 2: 8}  # at least so many sizes for so many changes of slope
_LEVEL = 0.95


class StepTimeFit(TypedDict):
    """The fitted curve as plain values.

    Keys:
        kind: "affine" or "piecewise".
        knots: [examples, seconds] in ascending order, at least two; straight lines between them,
            and beyond them with the first and the last slope.
    """

    kind: str
    knots: list[list[float]]


def seconds_per_update(fit: Mapping[str, Any], batch_size: float) -> float:
    """Seconds of an update whose one pass has this many examples, loading left out.

    Args:
        fit: `settings["fit"]` of a measurement of kind "throughput".
        batch_size: examples of the pass, > 0.

    Example:
        >>> fit = {"kind": "piecewise", "knots": [[1, 0.02], [100, 0.02], [200, 0.04]]}
        >>> [round(seconds_per_update(fit, size), 6) for size in (1, 150, 400)]
        [0.02, 0.03, 0.08]
    """
    knots = fit["knots"]
    right = next((n for n in range(1, len(knots)) if batch_size <= knots[n][0]), len(knots) - 1)
    (b0, t0), (b1, t1) = knots[right - 1], knots[right]
    return float(max(0.0, t0 + (t1 - t0) * (batch_size - b0) / (b1 - b0)))


def fixed_seconds(fit: Mapping[str, Any]) -> float:
    """a: seconds of an update that no example adds to, the first line at 0 examples."""
    return seconds_per_update(fit, 0.0)


def last_slope(fit: Mapping[str, Any]) -> float:
    """c: seconds that each further example of a large pass adds."""
    (b0, t0), (b1, t1) = fit["knots"][-2:]
    return float((t1 - t0) / (b1 - b0))


def half_rate_size(fit: Mapping[str, Any]) -> float:
    """B_half: the smallest pass that reaches half of the examples per second of a huge one.

    b / t(b) = 1 / (2 c), c being the last slope: a / c where the curve is affine. inf where a
    further example costs nothing yet.

    Example:
        >>> half_rate_size({"kind": "affine", "knots": [[1, 0.03], [101, 0.13]]})  # 0.029 / 0.001
        29.0
    """
    slope = last_slope(fit)
    if slope <= 0.0:
        return math.inf
    knots = [[0.0, fixed_seconds(fit)], *fit["knots"]]
    far = 2.0 * knots[-1][0] + 2.0 * knots[-1][1] / slope
    knots.append([far, seconds_per_update(fit, far)])
    for (b0, t0), (b1, t1) in itertools.pairwise(knots):
        left, right = t0 - 2.0 * slope * b0, t1 - 2.0 * slope * b1  # > 0 below B_half
        if right <= 0.0:
            share = left / (left - right) if left > 0.0 else 0.0
            return float(round(b0 + share * (b1 - b0), 9))
    return math.inf


# --- fitting -----------------------------------------------------------------------------------


def medians_by_round(
    batch_sizes: ArrayLike, rounds: ArrayLike, seconds: ArrayLike
) -> tuple[Array, Array]:
    """The sizes in ascending order, and the median of each (size, round), nan where there is none.

    Args:
        batch_sizes: one value an update.
        rounds: in which it was timed.
        seconds: that it took.

    Returns:
        Sizes of shape (n,), medians of shape (n, rounds).
    """
    sizes, numbers, values = (np.asarray(v, dtype=float) for v in (batch_sizes, rounds, seconds))
    different, visits = np.unique(sizes), np.unique(numbers)
    table = np.full((len(different), len(visits)), np.nan)
    for row, size in enumerate(different):
        for column, visit in enumerate(visits):
            chosen = values[(sizes == size) & (numbers == visit)]
            if len(chosen):
                table[row, column] = np.median(chosen)
    return different, table


def relative_error(table: ArrayLike) -> float:
    """How sure the median of each size is: root mean square of their relative standard errors.

    From the spread between rounds, robustly: sqrt(pi / 2) x 1.4826 x the median absolute deviation
    of the logarithms over the root of the rounds.

    Args:
        table: seconds, shape (n, rounds); see `medians_by_round`.

    Example:
        >>> round(relative_error([[0.9, 1.0, 1.1, 1.0]] * 2), 3)
        0.044
    """
    return float(np.sqrt(np.mean(_standard_errors(np.asarray(table, dtype=float)) ** 2)))


def fit_step_time(sizes: ArrayLike, table: ArrayLike) -> StepTimeFit:
    """The curve through the median of each size.

    Args:
        sizes: ascending, shape (n,), n >= 1.
        table: seconds, shape (n, rounds); see `medians_by_round`.

    Example:
        >>> fit = fit_step_time([1, 2, 4, 8], [[0.011], [0.012], [0.014], [0.018]])
        >>> fit["kind"], round(fixed_seconds(fit), 6), round(last_slope(fit), 6)
        ('affine', 0.01, 0.001)
    """
    b, rounds = np.asarray(sizes, dtype=float), np.asarray(table, dtype=float)
    t = np.nanmedian(rounds, axis=1)
    if len(b) == 1:
        return _constant(b, float(t[0]))
    spread = np.sqrt(_standard_errors(rounds) ** 2 + _IRREGULARITY**2)
    best: tuple[float, Array] | None = None
    for count, needed in _SIZES_FOR_KINKS.items():
        if len(b) < needed:
            continue
        coarse = itertools.combinations(b[1:-1], count)
        _, kinks, _ = _best_curves(b, list(map(np.array, coarse)), t[:, None], spread)
        misfit, kinks, _ = _best_curves(b, _around(b, kinks[0]), t[:, None], spread)
        criterion = misfit[0] + (2 + _PARAMETERS_OF_KINK * count) * math.log(len(b))
        if best is None or criterion < best[0]:
            best = criterion, kinks[0]
    assert best is not None
    _, _, coefficients = _best_curves(b, [best[1]], t[:, None], spread)
    return _as_fit(b, best[1], coefficients[0])


def _around(b: Array, kinks: Array) -> list[Array]:
    """The same changes of slope, each moved towards the sizes beside it."""
    choices = []
    for kink in kinks:
        place = int(np.argmin(np.abs(b - kink)))
        low, high = b[max(1, place - 1)], b[min(len(b) - 2, place + 1)]
        shares = np.linspace(0.0, 1.0, _PLACES)
        below, above = kink * (low / kink) ** shares, kink * (high / kink) ** shares[1:]
        choices.append(np.unique(np.concatenate([below, above])))
    return [np.array(places) for places in itertools.product(*choices)
            if all(left < right for left, right in itertools.pairwise(places))]  # fmt: skip


def _best_curves(
    b: Array, candidates: Sequence[Array], t: Array, spread: Array
) -> tuple[Array, list[Array], list[Array]]:
    """For each column of t the misfit, the changes of slope and the coefficients that fit best."""
    weights = 1.0 / (np.median(t, axis=1) * spread)
    least = np.full(t.shape[1], math.inf)
    kinks, coefficients = [candidates[0]] * len(least), [np.empty(0)] * len(least)
    for candidate in candidates:
        design = _design(b, candidate)
        found = not_negative_least_squares(design * weights[:, None], t * weights[:, None])
        off = np.log(np.maximum(design @ found, 1e-12) / t) / spread[:, None]
        misfit = (off**2).sum(axis=0)
        for column in np.flatnonzero(misfit < least):
            least[column] = misfit[column]
            kinks[column], coefficients[column] = candidate, found[:, column]
    return least, kinks, coefficients


def _design(b: Array, kinks: Array) -> Array:
    """1, and how far b has gone in each segment: t = a + sum of slope * distance."""
    edges = [0.0, *kinks, math.inf]
    distances = [np.clip(b, low, high) - low for low, high in itertools.pairwise(edges)]
    return np.stack([np.ones_like(b), *distances], axis=1)


def not_negative_least_squares(design: Array, targets: Array) -> Array:
    """Coefficients x >= 0 of least |design x - targets|, exact, for each column of targets.

    The optimum is the plain least-squares solution on the coefficients that are not 0: all subsets
    are tried.

    Args:
        design: (rows, coefficients), of few coefficients.
        targets: (rows, columns).

    Returns:
        (coefficients, columns).

    Example:
        >>> design = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
        >>> not_negative_least_squares(design, np.array([[3.0], [2.0], [1.0]])).tolist()
        [[2.0], [0.0]]

    Cost:
        2^coefficients least-squares solutions.
    """
    count = design.shape[1]
    best = np.zeros((count, targets.shape[1]))
    least = (targets**2).sum(axis=0)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part = design[:, chosen]
            found = np.linalg.lstsq(part, targets, rcond=None)[0]
            misfit = ((targets - part @ found) ** 2).sum(axis=0)
            better = (found >= 0.0).all(axis=0) & (misfit < least)
            least = np.where(better, misfit, least)
            full = np.zeros_like(best)
            full[list(chosen)] = found
            best = np.where(better, full, best)
    return best


def _standard_errors(rounds: Array) -> Array:
    """Of the logarithm of each size's median over rounds, from the spread between rounds."""
    logs = np.log(rounds)
    centre = np.nanmedian(logs, axis=1, keepdims=True)
    deviation = 1.4826 * np.nanmedian(np.abs(logs - centre), axis=1)
    known = np.maximum(1, np.isfinite(logs).sum(axis=1))
    return np.asarray(1.2533 * deviation / np.sqrt(known))


def _as_fit(b: Array, kinks: Array, coefficients: Array) -> StepTimeFit:
    """Knots at the ends and at the changes of slope."""
    at = np.unique(np.concatenate([b[[0, -1]], kinks]))
    seconds = _design(at, kinks) @ coefficients
    knots = [[float(size), float(value)] for size, value in zip(at, seconds, strict=True)]
    return {"kind": "piecewise" if len(kinks) else "affine", "knots": knots}


def _constant(b: Array, seconds: float) -> StepTimeFit:
    """Of one size alone: nothing tells a from c, all of it is fixed."""
    return {"kind": "affine", "knots": [[float(b[0]), seconds], [2.0 * float(b[0]), seconds]]}


# --- intervals ---------------------------------------------------------------------------------


def resampled_fits(
    sizes: ArrayLike, table: ArrayLike, fit: Mapping[str, Any], *, num: int = 400, seed: int = 0
) -> list[StepTimeFit]:
    """Curves of the same kind through samples that might have been.

    Whole rounds are drawn again, as what slows a machine down lasts for longer than an update; and
    each size is moved by what the curve leaves unexplained, at least 2 %; in logarithms, both with
    the heavier tails that few rounds and few sizes ask for (Student's).

    Args:
        sizes: as for `fit_step_time`.
        table: as for `fit_step_time`.
        fit: of them.
        num: how many.
        seed: of the draws.
    """
    b, rounds = np.asarray(sizes, dtype=float), np.asarray(table, dtype=float)
    random = np.random.default_rng(seed)
    centre = np.nanmedian(rounds, axis=1)
    filled = np.where(np.isnan(rounds), centre[:, None], rounds)
    drawn = random.integers(0, rounds.shape[1], (num, rounds.shape[1]))
    medians = np.median(filled[:, drawn], axis=2)
    kinks = np.array([knot[0] for knot in fit["knots"][1:-1]])
    errors = _standard_errors(rounds)
    curve = np.array([seconds_per_update(fit, size) for size in b])
    free = max(1, len(b) - 2 - 2 * len(kinks))
    left = float(((np.log(centre) - np.log(curve)) ** 2).sum()) / free
    unexplained = math.sqrt(max(_LEAST_UNEXPLAINED**2, left - float((errors**2).mean())))
    noise = random.normal(size=medians.shape) * unexplained * _tails(random, free, num)
    count = rounds.shape[1]
    wider = math.sqrt(count / max(1, count - 1)) * _tails(random, max(1, count - 1), num)
    medians = centre[:, None] * np.exp(np.log(medians / centre[:, None]) * wider + noise)
    if len(b) == 1:
        return [_constant(b, float(seconds)) for seconds in medians[0]]
    spread = np.sqrt(errors**2 + _IRREGULARITY**2)
    _, places, coefficients = _best_curves(b, _around(b, kinks), medians, spread)
    return [_as_fit(b, *found) for found in zip(places, coefficients, strict=True)]


def _tails(random: np.random.Generator, freedom: int, num: int) -> Array:
    """Factors that turn normal draws into Student's, at most 3."""
    return np.asarray(np.minimum(3.0, np.sqrt(freedom / random.chisquare(freedom, num))))


def interval_of(
    function: Callable[[Mapping[str, Any]], float],
    fit: Mapping[str, Any],
    resampled: Sequence[Mapping[str, Any]],
    *,
    unit: str,
) -> Estimate:
    """A number that follows from the curve, with the middle 95 % of what might have been.

    Args:
        function: of a curve.
        fit: the curve.
        resampled: what might have been; see `resampled_fits`.
        unit: of the number.
    """
    value = function(fit)
    drawn = np.array([function(other) for other in resampled])
    tail = 0.5 * (1.0 - _LEVEL)
    # Order statistics, not interpolated: drawn values may be inf.
    ends = np.quantile(drawn, [tail, 1.0 - tail], method="nearest")
    low, high = min(float(ends[0]), value), max(float(ends[1]), value)
    if not math.isfinite(value):
        reason = "a further example still costs nothing at the largest size"
        return Estimate(value=None, low=low, high=math.inf, unit=unit, level=_LEVEL, reason=reason)
    return Estimate(value=value, low=low, high=high, unit=unit, level=_LEVEL)


# --- messages ---------------------------------------------------------------------------------


def fit_latency(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(alpha, beta) of seconds = alpha + beta bytes, both >= 0, by relative least squares.

    Args:
        samples: (bytes, seconds), at least one.

    Example:
        >>> [round(v, 9) for v in fit_latency([(1e3, 2e-6 + 1e-6), (1e6, 2e-6 + 1e-3)])]
        [2e-06, 1e-09]
    """
    rows = np.asarray(samples, dtype=float)
    weights = 1.0 / np.maximum(rows[:, 1], 1e-12)
    design = np.stack([np.ones(len(rows)), rows[:, 0]], axis=1) * weights[:, None]
    alpha, beta = not_negative_least_squares(design, (rows[:, 1] * weights)[:, None])[:, 0]
    return float(alpha), float(beta)
