"""Updates to a target against batch size: the curve with two ends, and fitting it.

    S(B) = S_min * (1 + (B_crit / B)^p)^(1/p)        E(B) = B * S(B)

Far below B_crit every example counts (E = E_min = S_min * B_crit); far above it only updates do
(S = S_min). p = 1 is the hyperbola (S / S_min - 1)(E / E_min - 1) = 1; tuned trainings with
momentum bend more sharply, p about 3.

Reference: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.3;
Shallue et al. 2019, "Measuring the Effects of Data Parallelism on Neural Network Training".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate

__all__ = ["UpdatesCurve", "UpdatesFit", "fit_updates", "relative_updates"]

_Array = NDArray[np.float64]

_ELBOWS = (0.5, 6.0)
_SIZES_FOR_ELBOW = 5  # fewer cannot tell three parameters and their scatter apart
_DECADES_BEYOND = 2.5  # of the critical batch size, looked for beyond the sizes
_HUBER = 2.0  # scales beyond which a residual counts linearly
_RESAMPLES = 400
_LEVELS = (0.025, 0.975)
_USUAL_SCATTER = (
    0.1  # natural log, of published curves about their best elbow (two sizes tell none)
)


def relative_updates(
    batch_size: ArrayLike, critical_batch_size: ArrayLike, elbow: ArrayLike = 1.0
) -> _Array:
    """S(B) / S_min = (1 + (B_crit / B)^p)^(1/p): updates as a multiple of the fewest.

    Args:
        batch_size: B, examples, > 0; broadcast with the others.
        critical_batch_size: B_crit, examples, > 0.
        elbow: p, > 0; 1 is the hyperbola of McCandlish et al.

    Example:
        >>> relative_updates([50, 200, 800], 200).round(2).tolist()
        [5.0, 2.0, 1.25]
        >>> relative_updates(200, 200, 3).round(3).item()
        1.26
    """
    p = np.asarray(elbow, dtype=np.float64)
    below = np.log(np.asarray(critical_batch_size, dtype=np.float64)) - np.log(
        np.asarray(batch_size, dtype=np.float64)
    )
    return np.asarray(np.exp(np.logaddexp(0.0, p * below) / p))


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatesCurve:
    """One curve of updates to a target.

    Attributes:
        fewest_updates: S_min, that no batch size goes below.
        critical_batch_size: B_crit, examples, at which both ends cost alike.
        elbow: p.
    """

    fewest_updates: float
    critical_batch_size: float
    elbow: float = 1.0

    @property
    def fewest_examples(self) -> float:
        """E_min = S_min * B_crit, that no batch size goes below."""
        return self.fewest_updates * self.critical_batch_size

    def updates(self, batch_size: ArrayLike) -> _Array:
        """S(B), of the shape of `batch_size`."""
        relative = relative_updates(batch_size, self.critical_batch_size, self.elbow)
        return self.fewest_updates * relative


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatesFit:
    """What measured updates to a target say.

    Attributes:
        curve: the best fit, wherever it lies: good between the sizes, a guess beyond them.
        fewest_updates: S_min; without a value where the sizes never reach it.
        fewest_examples: E_min; without a value where the sizes never reach it.
        critical_batch_size: B_crit; without a value where the sizes stay on one side of it.
        elbow: p; without a value where it was given and not fitted.
        log_spread: root mean square of the natural log of measured over fitted updates, over sizes.
    """

    curve: UpdatesCurve
    fewest_updates: Estimate
    fewest_examples: Estimate
    critical_batch_size: Estimate
    elbow: Estimate
    log_spread: float


def fit_updates(
    batch_sizes: Sequence[float], updates: Sequence[float], *, elbow: float | None = None
) -> UpdatesFit:
    """Fit S(B) to measured updates to a target, in log space.

    Each batch size counts as the mean log of its replicates, residuals beyond two robust scales
    count linearly (Huber). Intervals (95 %) are quantiles of 400 refits of updates drawn from the
    fit: replicates of a size are drawn with replacement, and what they do not explain of the misfit
    of the sizes is drawn beside it.
    The critical batch size has a value only where its interval lies within the sizes; otherwise
    it is "at least" or "at most".

    Args:
        batch_sizes: one for each training, > 0; a size that comes again is a replicate.
        updates: to the target, > 0 and finite: trainings that missed it are left out.
        elbow: p; None fits it within [0.5, 6] where there are at least five sizes, and takes
            the hyperbola, 1, where there are fewer.

    Raises:
        InputError: lengths that differ, values that are not positive and finite, fewer than two
            sizes.

    Cost:
        About 0.1 s.

    Example:
        >>> sizes = [8, 32, 128, 512, 2048]
        >>> fit = fit_updates(sizes, UpdatesCurve(
        ...     fewest_updates=170, critical_batch_size=210).updates(sizes), elbow=1.0)
        >>> round(fit.curve.fewest_updates), round(fit.curve.critical_batch_size)
        (170, 210)
    """
    sizes, replicates = _replicates(batch_sizes, updates)
    _check_elbow(elbow)
    logs = np.array([values.mean() for values in replicates])
    grid = _Grid.around(sizes, _elbows(elbow, len(sizes)))
    weights = np.ones(len(sizes))
    for _ in range(10):
        best = grid.refined(logs, weights)
        residual = logs - np.log(best.updates(sizes))
        weights = _huber(residual)
    drawn = _redrawn(sizes, replicates, best, grid)
    return _read(sizes, best, drawn, float(np.sqrt(np.mean(residual**2))), grid)


def _replicates(
    batch_sizes: Sequence[float], updates: Sequence[float]
) -> tuple[_Array, list[_Array]]:
    """Sizes, ascending, and the log updates of each."""
    given = np.asarray(batch_sizes, dtype=np.float64)
    counts = np.asarray(updates, dtype=np.float64)
    if given.ndim != 1 or given.shape != counts.shape:
        raise InputError("updates", "must be one for each batch size", (given.shape, counts.shape))
    for thing, values in (("batch_sizes", given), ("updates", counts)):
        if not (np.isfinite(values) & (values > 0)).all():
            hint = "leave out trainings that missed the target" if thing == "updates" else ""
            raise InputError(thing, "must be > 0 and finite", values.tolist(), hint=hint)
    sizes = np.unique(given)
    if len(sizes) < 2:
        raise InputError("batch_sizes", "must hold at least two sizes", sizes.tolist())
    return sizes, [np.log(counts[given == size]) for size in sizes]


def _check_elbow(elbow: float | None) -> None:
    if elbow is not None and not (math.isfinite(elbow) and elbow > 0.0):
        raise InputError("elbow", "must be > 0", elbow)


def _elbows(elbow: float | None, num_sizes: int) -> _Array:
    if elbow is not None or num_sizes < _SIZES_FOR_ELBOW:
        return np.array([1.0 if elbow is None else elbow])
    return np.asarray(np.geomspace(*_ELBOWS, 26))


def _huber(residual: _Array) -> _Array:
    scale = 1.4826 * float(np.median(np.abs(residual)))
    if scale < 1e-9:
        return np.ones_like(residual)
    return np.asarray(1.0 / np.maximum(1.0, np.abs(residual) / (_HUBER * scale)))


@dataclass(frozen=True)
class _Grid:
    """Critical batch sizes and elbows that are tried; the fewest updates follow from each."""

    sizes: _Array
    critical: _Array  # natural log
    elbows: _Array

    @classmethod
    def around(cls, sizes: _Array, elbows: _Array) -> _Grid:
        beyond = _DECADES_BEYOND * math.log(10.0)
        ends = math.log(sizes[0]) - beyond, math.log(sizes[-1]) + beyond
        return cls(sizes, np.linspace(*ends, 400), elbows)

    def best(self, logs: _Array, weights: _Array) -> tuple[_Array, _Array, _Array]:
        """Log of S_min, log of B_crit and p of the least squares for each row of `logs`."""
        critical, elbows = (a.ravel() for a in np.meshgrid(self.critical, self.elbows))
        below = elbows[:, None] * (critical[:, None] - np.log(self.sizes))
        curves = np.logaddexp(0.0, below) / elbows[:, None]
        share = weights / weights.sum()
        heights, means = curves @ share, logs @ share
        centred, wanted = curves - heights[:, None], logs - means[:, None]
        # The sum of squares, but for a term that is the same for all curves.
        misfit = ((centred**2) @ share)[:, None] - 2.0 * (centred * share) @ wanted.T
        place = misfit.argmin(axis=0)
        return means - heights[place], critical[place], elbows[place]

    def refined(self, logs: _Array, weights: _Array) -> UpdatesCurve:
        """The best curve, on ever finer grids around it."""
        critical, elbows = self.critical, self.elbows
        for _ in range(4):
            grid = _Grid(self.sizes, critical, elbows)
            log_fewest, log_critical, p = (v.item() for v in grid.best(logs[None, :], weights))
            critical = _finer(critical, log_critical, 21)
            elbows = _finer(elbows, p, 11)
        return UpdatesCurve(
            fewest_updates=math.exp(log_fewest),
            critical_batch_size=math.exp(log_critical),
            elbow=p,
        )


def _finer(grid: _Array, centre: float, count: int) -> _Array:
    """A grid over the two steps around a place of another, within it."""
    if len(grid) == 1:
        return grid
    place = int(np.abs(grid - centre).argmin())
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
    return np.linspace(low, high, count)


@dataclass(frozen=True)
class _Drawn:
    """Refits: natural logs of S_min and B_crit, and p."""

    fewest: _Array
    critical: _Array
    elbow: _Array


def _redrawn(
    sizes: _Array, replicates: Sequence[_Array], best: UpdatesCurve, grid: _Grid
) -> _Drawn:
    """Fits to updates drawn from the best fit with the scatter that was seen."""
    rng = np.random.default_rng(0)
    fitted = np.log(best.updates(sizes))
    means = np.array([values.mean() for values in replicates])
    repeated = [values for values in replicates if len(values) > 1]
    within = float(np.mean([values.var(ddof=1) for values in repeated])) if repeated else 0.0
    of_means = within * float(np.mean([1.0 / len(values) for values in replicates]))
    freedom = len(sizes) - (2 if len(grid.elbows) == 1 else 3)
    if freedom > 0:
        misfit = max(float(np.sum((means - fitted) ** 2)) / freedom - of_means, 0.0)
        scale = np.sqrt(freedom / np.maximum(rng.chisquare(freedom, _RESAMPLES), 0.04 * freedom))
    else:
        misfit, scale = (0.0 if repeated else _USUAL_SCATTER**2), np.ones(_RESAMPLES)
    drawn = fitted + math.sqrt(misfit) * scale[:, None] * rng.standard_normal(
        (_RESAMPLES, len(sizes))
    )
    for column, values in enumerate(replicates):
        count = len(values)
        if count > 1:
            away = (values - values.mean()) * math.sqrt(count / (count - 1))
            drawn[:, column] += rng.choice(away, size=(_RESAMPLES, count)).mean(axis=1)
        else:
            drawn[:, column] += rng.normal(0.0, math.sqrt(within), _RESAMPLES)
    return _Drawn(*grid.best(drawn, np.ones(len(sizes))))


def _read(
    sizes: _Array, best: UpdatesCurve, drawn: _Drawn, log_spread: float, grid: _Grid
) -> UpdatesFit:
    """Estimates with their intervals; none where the sizes stay on one side of B_crit."""
    low, high = np.quantile(drawn.critical, _LEVELS)
    is_flat_seen = high < math.log(sizes[-1])
    is_steep_seen = low > math.log(sizes[0])
    flat = "" if is_flat_seen else f"updates still fall at the largest batch size, {sizes[-1]:g}"
    steep = "" if is_steep_seen else f"updates hardly rise at the smallest batch size, {sizes[0]:g}"
    both = "; ".join(filter(None, (flat, steep)))
    # The ends of the grid stand for everything beyond them.
    ends = grid.critical[0] + 1e-9, grid.critical[-1] - 1e-9
    is_below, is_above = drawn.critical <= ends[0], drawn.critical >= ends[1]
    critical = np.where(is_below, -np.inf, np.where(is_above, np.inf, drawn.critical))
    fewest = np.where(is_above, -np.inf, drawn.fewest)
    examples = np.where(is_below, -np.inf, drawn.fewest + drawn.critical)
    elbow = drawn.elbow if len(grid.elbows) > 1 else None
    return UpdatesFit(
        curve=best,
        fewest_updates=_estimate(best.fewest_updates, fewest, "updates", flat),
        fewest_examples=_estimate(best.fewest_examples, examples, "examples", steep),
        critical_batch_size=_estimate(best.critical_batch_size, critical, "examples", both),
        elbow=_elbow_estimate(best.elbow, elbow),
        log_spread=log_spread,
    )


def _estimate(value: float, logs: _Array, unit: str, reason: str) -> Estimate:
    """The value with quantiles of draws, or no value and the reason."""
    drawn = np.sort(np.exp(logs))
    places = [min(int(level * len(drawn)), len(drawn) - 1) for level in _LEVELS]
    low, high = (float(drawn[place]) for place in places)
    if reason:
        return Estimate(value=None, low=low, high=high, unit=unit, reason=reason)
    return Estimate(value=value, low=min(low, value), high=max(high, value), unit=unit)


def _elbow_estimate(value: float, drawn: _Array | None) -> Estimate:
    if drawn is None:
        reason = f"taken as {value:g}: given, or fewer than {_SIZES_FOR_ELBOW} batch sizes"
        return Estimate(value=None, low=0.0, reason=reason)
    low, high = (float(end) for end in np.quantile(drawn, _LEVELS))
    return Estimate(value=value, low=min(low, value), high=max(high, value))
