"""How many updates a training still needs, told from its evaluations so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.planning.arithmetic.power_law import BELIEFS, draw_power_laws
from anybatch.recipe_parts import Target

__all__ = ["LearningCurve", "Remaining", "reached_after", "remaining", "summary_of"]

_Array = NDArray[np.float64]

_BLOCK = 0.15  # width in log updates of what is averaged to one point
_FEWEST = 4  # evaluations for a curve to say more than is believed of all curves
_FARTHEST = 1000.0  # times the updates seen; beyond it nothing is foretold
LEVEL = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCurve:
    """Evaluations of one training at a constant, or slowly moving, learning rate.

    Attributes:
        updates: done before each evaluation, > 0, increasing.
        metric: its values.
        loss: mean per example.
        direction: whether a high or a low metric is good.
        num_examples: of the split that was evaluated; with it the error of a share of right
            answers is told, sqrt(p (1 - p) / n). None: not known, or the metric is no share.
    """

    updates: tuple[float, ...]
    metric: tuple[float, ...]
    loss: tuple[float, ...]
    direction: Literal["max", "min"]
    num_examples: int | None = None

    def __post_init__(self) -> None:
        lengths = (len(self.updates), len(self.metric), len(self.loss))
        if len(set(lengths)) > 1:
            raise InputError("curve", "must have columns of the same length", lengths)
        if not self.updates:
            raise InputError("curve", "must hold at least one evaluation")
        if self.updates[0] <= 0 or any(np.diff(self.updates) <= 0):
            raise InputError("updates", "must be > 0 and increase", self.updates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """Draws of the updates to a target, summed up.

    Attributes:
        median: updates in all; inf where more than half of the draws do not reach the target.
        low: lower end of the interval.
        high: upper end; inf where the target may not be reached.
        level: share of the draws inside.
        share_unreachable: of draws that never reach it, in [0, 1].
        reason: what to know about these numbers; empty where there is nothing.
    """

    median: float
    low: float
    high: float
    level: float
    share_unreachable: float
    reason: str = ""


def remaining(
    curve: LearningCurve, target: Target, *, num_draws: int = 2000, seed: int = 0
) -> _Array:
    """Draws of the updates, from the first one, after which an evaluation meets the target.

    A power law with unknown slope, beginning and floor is fitted to the distance from the ideal
    (`power_law`); from the last evaluation it is followed to the target's distance. With u the log
    of how much farther that is, the truth is taken to be u exp(bend u + error sqrt(u) z), z normal:
    the farther, the less is known, and real curves flatten. Evaluations that do not clearly fall
    tell no slope: the last one alone is used, with the slopes of other curves.

    Args:
        curve: the evaluations.
        target: quantity "loss", or any other name for the metric; its relation, if any, must be
            the one that the direction means.
        num_draws: how many, >= 1.
        seed: of the draws; the same seed gives the same ones.

    Returns:
        (num_draws,) updates in all at the curve's batch size; inf where the floor lies above the
        target. If an evaluation has met the target already, its updates, without any spread.

    Raises:
        InputError: a relation against the direction, evaluations that are not finite at the end.

    Cost: about 20 ms.

    Example:
        >>> updates = (100.0, 200.0, 400.0, 800.0)
        >>> curve = LearningCurve(updates=updates, metric=(0.8, 0.87, 0.92, 0.95), loss=(1.0,) * 4,
        ...     direction="max", num_examples=5000)
        >>> remaining(curve, Target.parse("0.92"), num_draws=3).tolist()
        [400.0, 400.0, 400.0]
        >>> bool(1000 < np.median(remaining(curve, Target.parse("0.97"))) < 4000)
        True
    """
    if num_draws < 1:
        raise InputError("num_draws", "must be >= 1", num_draws)
    reached = reached_after(curve, target)
    if reached is not None:
        return np.full(num_draws, reached)
    x, y, distance, bounded, error = _distances(curve, target)
    x, y, error = _blocks(x, y, error) if _falls(y) else (x[-1:], y[-1:], error[-1:])
    laws = draw_power_laws(x, y, error, distance, bounded=bounded, num_draws=num_draws, seed=seed)
    rng = np.random.default_rng((seed, 1))
    room = distance - laws.floor
    unreachable = room <= 0
    needed = laws.log_gap - np.log(np.where(unreachable, 1.0, room))
    farther = np.minimum(np.maximum(0.0, needed) / laws.slope, 50.0)
    z, z_near = rng.standard_normal((2, num_draws))
    stretch = BELIEFS.bend * farther + BELIEFS.error * np.sqrt(farther) * z
    log_growth = farther * np.exp(np.minimum(stretch, 3.0)) + BELIEFS.least_error * z_near
    total = (x[-1] + laws.beginning) * np.exp(np.minimum(log_growth, 50.0)) - laws.beginning
    last = curve.updates[-1]
    spacing = float(np.median(np.diff((0.0, *curve.updates))))
    total = np.maximum(total, last + spacing * rng.uniform(size=num_draws))
    return np.where(unreachable | (total > _FARTHEST * last), np.inf, total)


def summary_of(
    draws: _Array, *, curve: LearningCurve | None = None, target: Target | None = None
) -> Remaining:
    """Median, 80 % interval and share of unreachable among draws of `remaining`.

    Args:
        draws: (num_draws,), inf allowed.
        curve: with `target`: for the reason.
        target: that the draws are about.

    Example:
        >>> summary = summary_of(np.array([1.0, 2.0, 3.0, np.inf]))
        >>> summary.median, summary.high, summary.share_unreachable
        (2.0, inf, 0.25)
    """
    tail = (1.0 - LEVEL) / 2.0
    low, median, high = np.quantile(draws, [tail, 0.5, 1.0 - tail], method="inverted_cdf")
    share = float(np.mean(np.isinf(draws)))
    reason = _reason(curve, target) if curve is not None and target is not None else ""
    if not reason and share > 0.5:
        reason = "may-not-be-reached: the curve flattens before the target"
    return Remaining(
        median=float(median),
        low=float(low),
        high=float(high),
        level=LEVEL,
        share_unreachable=share,
        reason=reason,
    )


def _falls(y: _Array) -> bool:
    """Whether distances fall clearly; where they do not, they tell no slope."""
    if len(y) < _FEWEST:
        return True
    early, late = float(np.median(y[: len(y) // 2])), float(np.median(y[len(y) // 2 :]))
    return early - late > float(np.median(np.abs(np.diff(y))))


def _reason(curve: LearningCurve, target: Target) -> str:
    """What is to be known about a forecast from this curve; its name comes first."""
    if reached_after(curve, target) is not None:
        return "reached: an evaluation has met the target already"
    _, y, distance, *_ = _distances(curve, target)
    if len(y) < _FEWEST:
        return f"few-evaluations: {len(y)}, so what is believed of all curves prevails"
    if not _falls(y):
        return "no-progress: later evaluations are not clearly better than earlier ones"
    if (y[0] - y.min()) < 0.2 * (y[0] - distance):
        return "far-target: the curve has come less than a fifth of the way"
    return ""


def reached_after(curve: LearningCurve, target: Target) -> float | None:
    """Updates before the first evaluation that meets the target; None where none does.

    Args:
        curve: the evaluations.
        target: as for `remaining`.

    Raises:
        InputError: a relation against the direction.
    """
    values, direction = _quantity(curve, target)
    for update, value in zip(curve.updates, values, strict=True):
        if value >= target.value if direction == "max" else value <= target.value:
            return float(update)
    return None


def _quantity(curve: LearningCurve, target: Target) -> tuple[tuple[float, ...], str]:
    """The values that the target is about, and which direction is good."""
    values, direction = (
        (curve.loss, "min") if target.quantity == "loss" else (curve.metric, curve.direction)
    )
    wanted = {"max": ">=", "min": "<="}[direction]
    if target.relation not in ("", wanted):
        rule = f"must be {wanted} where the {direction}imum is the best"
        raise InputError("target relation", rule, target.relation)
    return values, direction


def _distances(curve: LearningCurve, target: Target) -> tuple[_Array, _Array, float, bool, _Array]:
    """Updates, distances from the ideal, the target's, whether 0 bounds them, standard errors."""
    given, direction = _quantity(curve, target)
    values, updates = np.asarray(given, dtype=float), np.asarray(curve.updates, dtype=float)
    finite = np.isfinite(values)
    if not finite[-1]:
        raise InputError("curve", "must end with a finite value", given[-1])
    values, updates = values[finite], updates[finite]
    error = np.zeros_like(values)
    share = direction == "max" and values.min() >= 0 and max(values.max(), target.value) <= 1
    if direction == "max":
        y, distance = (1.0 - values, 1.0 - target.value) if share else (-values, -target.value)
    else:
        y, distance = values, target.value
    if share and curve.num_examples:
        smoothed = (values * curve.num_examples + 1.0) / (curve.num_examples + 2.0)
        error = np.sqrt(smoothed * (1.0 - smoothed) / curve.num_examples)
    if share and curve.num_examples:
        distance = max(distance, 0.5 / curve.num_examples)  # no error at all: fewer than one
    bounded = bool(share or (direction == "min" and y.min() >= 0 and distance >= 0))
    return updates, y, distance, bounded, error


def _blocks(x: _Array, y: _Array, error: _Array) -> tuple[_Array, _Array, _Array]:
    """Means over blocks of log x, counted from the last.

    The error of a block's mean is taken as that of one evaluation: they share the examples.
    """
    number = np.floor(np.log(x[-1] / x) / _BLOCK).astype(int)
    blocks = [number == block for block in sorted(set(number.tolist()), reverse=True)]
    means = np.array([[np.exp(np.log(x[b]).mean()), y[b].mean(), error[b].mean()] for b in blocks])
    return means[:, 0], means[:, 1], means[:, 2]
