"""Branches from one checkpoint: how many updates each may take, and what their losses tell.

The losses of a branch are fitted by a quadratic in log(1 + n / n0); two fits are compared at the
losses that both come to. Errors come from a moving-block bootstrap of what the fit leaves over,
and from the spread over paired seeds.

Reference: moving blocks: Künsch 1989, "The jackknife and the bootstrap for general stationary
observations"; their length: Carlstein 1986, "The use of subseries values for estimating the
variance of a general statistic from a stationary sequence".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError

__all__ = [
    "BranchLosses",
    "TimeDifference",
    "branch_updates",
    "compare_at_equal_time",
    "log_ratio_of_updates",
]

_Array = NDArray[np.float64]

_FEWEST = 12  # updates of a branch that tell anything
_NUM_TERMS = 3
_KNEE = 0.2  # n0 in units of the branch's length
_LEVELS = 9  # losses at which two branches are compared
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchLosses:
    """The losses of one branch.

    Attributes:
        batch_size: examples per update.
        losses: (seeds, updates) training losses, one an update, from the same checkpoint; seeds in
            the order of the other branch's.
    """

    batch_size: int
    losses: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = sorted({len(series) for series in self.losses})
        if len(lengths) != 1:
            raise InputError("branch", "must have series of the same length", lengths)
        if lengths[0] < _FEWEST:
            raise InputError("branch", f"must have at least {_FEWEST} updates", lengths[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeDifference:
    """Loss of one branch less that of another at their ends.

    Attributes:
        value: b less a; negative where b is better.
        low: lower end of the interval.
        high: upper end.
        level: of the interval.
    """

    value: float
    low: float
    high: float
    level: float = 0.95


def branch_updates(seconds_per_update: Mapping[int, float], wall_seconds: float) -> dict[int, int]:
    """Updates of each branch that take the same time, at least 1; fixed before any is trained.

    Args:
        seconds_per_update: measured, by batch size, > 0.
        wall_seconds: of each branch, > 0.

    Example:
        >>> branch_updates({32: 0.01, 256: 0.04}, 8.0)
        {32: 800, 256: 200}
    """
    for batch_size, seconds in seconds_per_update.items():
        if not (math.isfinite(seconds) and seconds > 0):
            raise InputError(f"seconds per update at {batch_size}", "must be > 0", seconds)
    if not (math.isfinite(wall_seconds) and wall_seconds > 0):
        raise InputError("wall_seconds", "must be > 0", wall_seconds)
    return {
        batch_size: max(1, math.floor(wall_seconds / seconds + 1e-9))
        for batch_size, seconds in seconds_per_update.items()
    }


def log_ratio_of_updates(
    branch_a: BranchLosses, branch_b: BranchLosses, *, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Log of (updates of a / updates of b) to a common loss, with its standard error.

    The mean over nine losses between those of the branch that came less far at half of its length
    and at its end. A positive number: a needs more updates.

    Args:
        branch_a: the one above the line.
        branch_b: the one below.
        num_resamples: of the bootstrap, >= 2.
        seed: of the bootstrap.

    Returns:
        The log ratio and its standard error. (0, inf), which says nothing, where the losses are not
        finite or do not fall.

    Cost: under a second for 10,000 updates.

    Example:
        >>> curve = [2.0 * (100 + n) ** -0.3 for n in range(1, 401)]
        >>> slow = BranchLosses(batch_size=8, losses=(tuple(curve),))
        >>> fast = BranchLosses(batch_size=16, losses=(tuple(curve[1::2]),))
        >>> ratio, _ = log_ratio_of_updates(slow, fast)
        >>> round(ratio, 2)  # log 2
        0.69
    """
    a, b = _paired(branch_a, branch_b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0, math.inf
    fit_a, fit_b = _Fit.to(a.mean(0)), _Fit.to(b.mean(0))
    value = _log_ratio(fit_a.values(), fit_b.values())
    if value is None:
        return 0.0, math.inf
    rng = np.random.default_rng(seed)
    resampled = [
        _log_ratio(one, two)
        for one, two in zip(
            _resampled(a, fit_a, num_resamples, rng),
            _resampled(b, fit_b, num_resamples, rng),
            strict=True,
        )
    ]
    known = np.array([ratio for ratio in resampled if ratio is not None])
    if len(known) < 0.8 * num_resamples:
        return 0.0, math.inf
    # By quantiles: a fit that hardly falls makes a few ratios absurd.
    inside = float(np.subtract(*np.quantile(known, [0.9, 0.1]))) / (2.0 * 1.281552)
    each = [
        _log_ratio(_Fit.to(one).values(), _Fit.to(two).values())
        for one, two in zip(a, b, strict=True)
    ]
    told = [ratio for ratio in each if ratio is not None]
    return value, math.hypot(inside, _between(told, inside * math.sqrt(len(a))))


def compare_at_equal_time(
    branch_a: BranchLosses, branch_b: BranchLosses, *, num_resamples: int = 200, seed: int = 0
) -> TimeDifference:
    """The loss of b less that of a at the ends of two branches that took the same time.

    Args:
        branch_a: with as many updates as `branch_updates` says.
        branch_b: likewise.
        num_resamples: of the bootstrap, >= 2.
        seed: of the bootstrap.

    Returns:
        The difference of the fitted losses with a 95 % interval. A branch with a loss that is not
        finite is infinitely worse; where both are so, the interval has no ends.

    Example:
        >>> a = BranchLosses(batch_size=8, losses=(tuple(1 / n for n in range(10, 60)),))
        >>> b = BranchLosses(batch_size=16, losses=(tuple(1 / n for n in range(20, 120, 2)),))
        >>> compare_at_equal_time(a, b).value < 0.0
        True
    """
    a, b = _paired(branch_a, branch_b)
    good_a, good_b = bool(np.isfinite(a).all()), bool(np.isfinite(b).all())
    if not (good_a and good_b):
        if good_a == good_b:
            return TimeDifference(value=0.0, low=-math.inf, high=math.inf)
        worse = math.inf if good_a else -math.inf
        return TimeDifference(value=worse, low=worse, high=worse)
    fit_a, fit_b = _Fit.to(a.mean(0)), _Fit.to(b.mean(0))
    value = float(fit_b.values()[-1] - fit_a.values()[-1])
    rng = np.random.default_rng(seed)
    ends = [
        np.array([values[-1] for values in _resampled(series, fit, num_resamples, rng)])
        for series, fit in ((a, fit_a), (b, fit_b))
    ]
    inside = float((ends[1] - ends[0]).std(ddof=1))
    each = [
        float(_Fit.to(two).values()[-1] - _Fit.to(one).values()[-1])
        for one, two in zip(a, b, strict=True)
    ]
    half = _NORMAL_95 * math.hypot(inside, _between(each, inside * math.sqrt(len(a))))
    return TimeDifference(value=value, low=value - half, high=value + half)


# --- fits and errors -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fit:
    """A quadratic in log(1 + n / n0).

    Attributes:
        basis: (updates, 3), orthonormal columns.
        weights: (3,).
    """

    basis: _Array
    weights: _Array

    @classmethod
    def to(cls, series: _Array) -> _Fit:
        """The least-squares fit to losses, one an update."""
        count = len(series)
        s = np.log1p(np.arange(1, count + 1) / (_KNEE * count))
        basis, _ = np.linalg.qr(np.stack([np.ones(count), s, s**2], axis=1))
        return cls(basis, basis.T @ series)

    def values(self) -> _Array:
        """The fitted losses."""
        fitted: _Array = self.basis @ self.weights
        return fitted


def _paired(branch_a: BranchLosses, branch_b: BranchLosses) -> tuple[_Array, _Array]:
    a, b = np.array(branch_a.losses, dtype=float), np.array(branch_b.losses, dtype=float)
    if len(a) != len(b):
        raise InputError("branches", "must have the same seeds", (len(a), len(b)))
    return a, b


def _log_ratio(a: _Array, b: _Array) -> float | None:
    """From two fitted curves; None where the one that came less far does not fall at its end."""
    if a[-1] < b[-1]:
        turned = _log_ratio(b, a)
        return None if turned is None else -turned
    times = np.linspace(0.5, 1.0, _LEVELS) * len(a)
    levels = np.interp(times, np.arange(1, len(a) + 1), a)
    rounding = 1e-9 * float(np.abs(levels).max())
    if np.any(np.diff(levels) >= -rounding):
        return None
    met = levels < b[0]  # b is above these at its beginning
    if not met.any():
        return None
    falling = np.minimum.accumulate(b)
    crossed = np.interp(-levels[met], -falling, np.arange(1, len(b) + 1))
    return float(np.mean(np.log(times[met] / crossed)))


def _resampled(series: _Array, fit: _Fit, count: int, rng: np.random.Generator) -> list[_Array]:
    """Fitted curves of `count` series made from the fit and blocks of what is left over."""
    num_seeds, length = series.shape
    left = series - (series @ fit.basis) @ fit.basis.T  # of each seed's own fit
    correlation = _correlation(left)
    memory = (1.0 + correlation) / (1.0 - correlation)
    block = _block_length(correlation, length)
    pieces = -(-length // block)
    # What the fit takes away, and what blocks of this length miss of an autoregression's variance.
    kept = 1.0 - _NUM_TERMS * memory / length
    kept *= 1.0 - 2.0 * correlation / ((1.0 - correlation**2) * block)
    few = 1.0 + 1.2 / max(2, num_seeds * pieces - _NUM_TERMS)  # Student's t against the normal
    left = left * few / math.sqrt(max(0.4, kept))
    curves = []
    for _ in range(count):
        starts = rng.integers(0, length - block + 1, (num_seeds, pieces))
        places = (starts[:, :, None] + np.arange(block)).reshape(num_seeds, -1)[:, :length]
        noise = np.take_along_axis(left, places, axis=1).mean(0)
        noise = noise - left.mean()
        curves.append(fit.basis @ (fit.weights + fit.basis.T @ noise))
    return curves


def _correlation(left: _Array) -> float:
    """Of neighbours in time, in [0, 0.99]."""
    whole = float((left**2).sum())
    if whole <= 0.0:
        return 0.0
    return min(0.99, max(0.0, float((left[:, 1:] * left[:, :-1]).sum()) / whole))


def _block_length(correlation: float, length: int) -> int:
    """The best one for a first-order autoregression, at most a quarter of the series."""
    root = math.sqrt(6.0) * correlation / (1.0 - correlation**2)
    best = math.pow(root, 2 / 3) * math.pow(length, 1 / 3)
    return max(1, min(math.ceil(best), length // 4))


def _between(each: Sequence[float], inside: float) -> float:
    """Standard error of the mean by what seeds differ beyond `inside`, the error of one."""
    if len(each) < 2:
        return 0.0
    variance = float(np.var(np.array(each), ddof=1)) - inside**2
    return math.sqrt(max(0.0, variance) / len(each))
