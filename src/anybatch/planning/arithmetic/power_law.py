"""A power law with unknown beginning, floor and noise, fitted to a learning curve; draws of it.

    gap(x) = y(x) - floor = c (x + x0)^-slope

y is a distance from the ideal: an error, or a loss. The posterior stands on a grid of slope, x0,
floor and noise; the intercept log c is integrated out. Points far behind the last one count less:
a curve is not one power law for ever.

Reference: power laws of learning curves: Hestness et al. 2017, "Deep learning scaling is
predictable, empirically"; shift and floor: Domhan et al. 2015, "Speeding up automatic
hyperparameter optimization of deep neural networks by extrapolation of learning curves".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BELIEFS", "Beliefs", "PowerLawDraws", "draw_power_laws"]

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beliefs:
    """What is believed of learning curves before one is seen; all in one place.

    Published slopes against the size of data are 0.07 to 0.35 (Hestness et al. 2017); within one
    training they are steeper. All numbers but those were set on 26 real trainings at constant
    learning rate: digits, MNIST with two networks, two synthetic tasks, SGD and Adam, batch 8 to
    512. `docs/calibration.md` says how often the intervals held on trainings of other seeds and
    batch sizes.

    Attributes:
        slope_median: of the log-normal prior of the slope.
        slope_log_spread: its standard deviation, of the natural log.
        unreachable: probability that the floor lies above the target.
        no_floor: probability of no floor at all, where 0 is a bound of the quantity.
        drift: relative standard error of a point's gap per unit of log distance from the last one.
        bend: mean of the log of (true / extrapolated log distance), per unit of that distance.
        error: its standard deviation, per square root of a unit.
        least_error: standard error of the log of the updates, however near the target is.
    """

    slope_median: float = 0.5
    slope_log_spread: float = 0.5
    unreachable: float = 0.05
    no_floor: float = 0.25
    drift: float = 0.03
    bend: float = 0.1
    error: float = 0.22
    least_error: float = 0.08


BELIEFS = Beliefs()

_SLOPES = np.exp(np.linspace(np.log(0.06), np.log(5.0), 48))
_BEGINNINGS = np.array([0.0, 0.03, 0.1, 0.3, 1.0, 3.0])  # x0 in units of the last x
_BEGINNING_PRIOR = np.array([0.4, 0.25, 0.2, 0.1, 0.04, 0.01])
_NOISES = np.array([0.01, 0.03, 0.08, 0.2, 0.4])  # relative to the gap
_FLOORS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.95])  # in units of the target's distance
_FLOORS_ABOVE = np.array([0.1, 0.35, 0.65, 0.9])  # of the way from the target to the best so far
_FLOORS_BELOW = np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0])  # where there is no bound
_FREEDOM = 4.0  # of Student's t: one odd evaluation does not turn the curve


@dataclass(frozen=True, slots=True)
class PowerLawDraws:
    """Draws of the posterior, arrays of equal length.

    Attributes:
        slope: > 0.
        beginning: x0, in the unit of x.
        floor: in the unit of y.
        log_gap: of the curve itself at the last x.
    """

    slope: _Array
    beginning: _Array
    floor: _Array
    log_gap: _Array


def draw_power_laws(
    x: _Array,
    y: _Array,
    standard_error: _Array,
    target: float,
    *,
    bounded: bool,
    num_draws: int,
    seed: int,
) -> PowerLawDraws:
    """Draws of the power laws that may be behind some points.

    Args:
        x: (points,), > 0, increasing.
        y: (points,), distances, all above `target`.
        standard_error: (points,), of y, as far as it is known, >= 0.
        target: distance to be reached.
        bounded: whether y cannot be below 0.
        num_draws: how many.
        seed: of the draws.
    """
    floors, floor_prior = _floors(y, target, bounded)
    slopes, beginnings, floor, noise = (
        axis.reshape(-1)
        for axis in np.meshgrid(_SLOPES, _BEGINNINGS * x[-1], floors, _NOISES, indexing="ij")
    )
    spread = BELIEFS.slope_log_spread
    log_prior = -0.5 * ((np.log(slopes) - np.log(BELIEFS.slope_median)) / spread) ** 2
    shape = (len(_SLOPES), len(_BEGINNINGS), len(floors), len(_NOISES))
    log_prior = log_prior.reshape(shape) + np.log(_BEGINNING_PRIOR)[None, :, None, None]
    log_prior = (log_prior + np.log(floor_prior)[None, None, :, None]).reshape(-1)

    gap = y[None, :] - floor[:, None]
    shifted = np.log((x[None, :] + beginnings[:, None]) / (x[-1] + beginnings[:, None]))
    behind = np.log(x[-1] / x)[None, :]
    variance = noise[:, None] ** 2 + (standard_error[None, :] / gap) ** 2
    variance = variance + (BELIEFS.drift * behind) ** 2
    level = np.log(gap) + slopes[:, None] * shifted
    weights = 1.0 / variance
    for _ in range(2):
        centre = (weights * level).sum(1) / weights.sum(1)
        squares = (level - centre[:, None]) ** 2 / variance
        weights = (_FREEDOM + 1.0) / (_FREEDOM + squares) / variance
    log_likelihood = -0.5 * (_FREEDOM + 1.0) * np.log1p(squares / _FREEDOM)
    log_likelihood = (log_likelihood - 0.5 * np.log(variance)).sum(1) - 0.5 * np.log(weights.sum(1))

    rng = np.random.default_rng(seed)
    chosen = _chosen(log_prior + log_likelihood, num_draws, rng)
    step = float(np.log(_SLOPES[1] / _SLOPES[0]))
    slope = slopes[chosen] * np.exp(step * rng.uniform(-0.5, 0.5, num_draws))
    deviation = 1.0 / np.sqrt(weights.sum(1)[chosen])
    log_gap = centre[chosen] + deviation * rng.standard_normal(num_draws)
    return PowerLawDraws(slope, beginnings[chosen], floor[chosen], log_gap)


def _floors(y: _Array, target: float, bounded: bool) -> tuple[_Array, _Array]:
    """Floors below and above the target with their prior probabilities."""
    best = float(y.min())
    above = target + (best - target) * _FLOORS_ABOVE
    if bounded:
        below = target * _FLOORS
        rest = (1.0 - BELIEFS.no_floor) / (len(below) - 1)
        prior = np.array([BELIEFS.no_floor, *[rest] * (len(below) - 1)])
    else:
        below = target - (float(y[0]) - target) * _FLOORS_BELOW
        prior = np.full(len(below), 1.0 / len(below))
    above_prior = np.full(len(above), BELIEFS.unreachable / len(above))
    return np.concatenate([below, above]), np.concatenate(
        [prior * (1.0 - BELIEFS.unreachable), above_prior]
    )


def _chosen(log_weight: _Array, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Systematic resampling: `count` indices in proportion to the weights, shuffled."""
    weight = np.exp(log_weight - log_weight.max())
    edges = np.cumsum(weight) / weight.sum()
    places = (rng.uniform() + np.arange(count)) / count
    return rng.permutation(np.minimum(np.searchsorted(edges, places), len(edges) - 1))
