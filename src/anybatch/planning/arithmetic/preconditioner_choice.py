"""Whether a preconditioner is worth its time: two ratios from branches, and what they leave unsure.

    time = (seconds of an update) * (updates to the same loss), each with over without it
    recommended where P(time < 0.95) >= 80 %; so P(time > 1.1) is below 20 %, too

Both logarithms are normal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError
from anybatch.planning.arithmetic.posterior import weighted_quantile

__all__ = [
    "LogRatio",
    "PreconditionerChoice",
    "PreconditionerTrial",
    "choose_preconditioner",
    "long_run_seconds",
    "ratio_of_seconds",
    "ratio_of_updates",
]

_Array = NDArray[np.float64]

WORTH = 0.95
"""Of the time without it, that a preconditioner must stay below."""

SURE = 0.8
"""Probability with which it must."""

_NORMAL_80 = 1.281552
_CLOCK_ERROR = 0.03  # natural log: what a machine's speed changes between branches
_LONG_RUN_ERROR = 0.15  # natural log: the ratio of a whole run about that of its short branches


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRatio:
    """A measured ratio.

    Attributes:
        value: natural log of it.
        error: standard error of that, >= 0.

    Example:
        >>> [round(end, 3) for end in LogRatio(value=math.log(1.2), error=0.1).band()]
        [1.2, 1.056, 1.364]
    """

    value: float
    error: float

    def band(self) -> tuple[float, float, float]:
        """The ratio, and both ends of its 80 % interval."""
        half = _NORMAL_80 * self.error
        low, middle, high = (math.exp(self.value + far) for far in (-half, 0.0, half))
        return middle, low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class PreconditionerTrial:
    """What branches with and without a preconditioner say.

    Attributes:
        batch_size: of both, global.
        lr: of the best branch with it.
        seconds: of an update in the long run, with over without it.
        updates: to the same loss, with over without it, each at its best lr.
    """

    batch_size: int
    lr: float
    seconds: LogRatio
    updates: LogRatio


@dataclass(frozen=True, kw_only=True, eq=False)
class PreconditionerChoice:
    """A trial weighed.

    Attributes:
        trial: its numbers.
        seconds: (draws,) ratios.
        updates: (draws,) ratios.
        time: (median, low, high) of the ratio of the times to the target, 80 %.
        probability: that the ratio is below 0.95.
    """

    trial: PreconditionerTrial
    seconds: _Array
    updates: _Array
    time: tuple[float, float, float]
    probability: float

    @property
    def recommended(self) -> bool:
        """Whether it is worth it."""
        return self.probability >= SURE


def choose_preconditioner(
    trial: PreconditionerTrial, moved: ArrayLike, weights: ArrayLike, *, seed: int = 0
) -> PreconditionerChoice:
    """Weigh a trial in the worlds of a posterior.

    Args:
        trial: at a batch size.
        moved: (draws,) time to the target at the trial's batch size over that at the size that
            would be trained with otherwise, both without the preconditioner.
        weights: (draws,), of sum 1.
        seed: of the draws.

    Example:
        >>> trial = PreconditionerTrial(
        ...     batch_size=64, lr=0.1,
        ...     seconds=LogRatio(value=math.log(1.2), error=0.03),
        ...     updates=LogRatio(value=math.log(0.5), error=0.15))
        >>> choice = choose_preconditioner(trial, np.ones(1000), np.full(1000, 1e-3))
        >>> choice.recommended, round(choice.time[0], 1)
        (True, 0.6)
    """
    move, share = np.asarray(moved, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    rng = np.random.default_rng((seed, 4))
    seconds, updates = (
        np.exp(ratio.value + ratio.error * rng.standard_normal(len(share)))
        for ratio in (trial.seconds, trial.updates)
    )
    time = seconds * updates * move
    low, middle, high = weighted_quantile(time, share, [0.1, 0.5, 0.9])
    return PreconditionerChoice(
        trial=trial,
        seconds=seconds,
        updates=updates,
        time=(middle, low, high),
        probability=float(share @ (time < WORTH)),
    )


def long_run_seconds(
    seconds: Sequence[float], *, statistics_every: int = 1, inverse_every: int = 1
) -> float:
    """Mean seconds of an update in a run of many refreshes, from a branch of a few.

    (median of updates that invert) / I + (of those that only measure) (1 / M - 1 / I)
    + (of the others) (1 - 1 / M), with statistics every M and inverses every I updates, both at the
    first. The first update, which is slow anyhow, counts where no other does the same: a branch
    shorter than I overstates what an inversion costs.

    Args:
        seconds: of each update, in order, > 0.
        statistics_every: M, in updates; 1 with I = 1: nothing is refreshed.
        inverse_every: I, a multiple of M.

    Raises:
        InputError: a branch that is too short to hold an update of each kind.

    Example:
        >>> seconds = [9.0, 1.0, 2.0, 1.0, 2.0, 1.0]
        >>> long_run_seconds(seconds, statistics_every=2, inverse_every=4)
        1.5
        >>> long_run_seconds([5.0, 1.0, 1.0])
        1.0
    """
    kinds: dict[int, list[float]] = {}
    for number, spent in enumerate(seconds):
        every = next((n for n in (inverse_every, statistics_every) if number % n == 0), 1)
        kinds.setdefault(every, []).append(spent)
    first = next(iter(kinds.values()), [])
    if len(first) > 1:
        del first[0]
    often = {1: 1.0} | {n: 1.0 / n for n in (statistics_every, inverse_every)}
    found, rarer = 0.0, 0.0
    for every, share in sorted(often.items(), reverse=True):
        if every not in kinds:
            raise InputError("branch", "must hold updates of every kind", len(seconds))
        found += (share - rarer) * statistics.median(kinds[every])
        rarer = share
    return found


def ratio_of_seconds(preconditioned: Sequence[float], plain: Sequence[float]) -> LogRatio:
    """Seconds of an update with over without a preconditioner, by means of logs over branches.

    The error has the spread over branches in it, and 0.03 for the clock.

    Args:
        preconditioned: `long_run_seconds` of each branch with it, one or more.
        plain: of each branch without.

    Example:
        >>> ratio_of_seconds([1.3, 1.3], [1.0, 1.0, 1.0]).band()[0]
        1.3
    """
    value, variance = 0.0, _CLOCK_ERROR**2
    for sign, seconds in ((1.0, preconditioned), (-1.0, plain)):
        logs = [math.log(one) for one in seconds]
        value += sign * statistics.fmean(logs)
        variance += statistics.variance(logs) / len(logs) if len(logs) > 1 else 0.0
    return LogRatio(value=value, error=math.sqrt(variance))


def ratio_of_updates(log_ratio: float, standard_error: float) -> LogRatio:
    """Updates of a whole run with over without a preconditioner, from those of branches.

    Args:
        log_ratio: of `log_ratio_of_updates`.
        standard_error: of it; 0.15 is added in squares for what a short branch does not show.
    """
    return LogRatio(value=log_ratio, error=math.hypot(standard_error, _LONG_RUN_ERROR))
