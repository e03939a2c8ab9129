"""What a planned run will take, with intervals: from the posterior, the pilot and the clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anybatch.measurement import Estimate
from anybatch.planning.arithmetic.prices import summary
from anybatch.planning.recipe import LOOKS

if TYPE_CHECKING:
    from anybatch.planning.compose import Composer

__all__ = ["predictions_of"]

_Array = NDArray[np.float64]

_CLOCK_SPREAD = 0.08  # of the natural log: what a machine's speed changes within minutes
_STARTING_SECONDS = 0.03  # at most: the first updates after a checkpoint are slower
_PASSAGE_SPREAD = 0.12  # of the natural log of all updates: when a noisy evaluation meets a target


def predictions_of(composer: Composer) -> dict[str, Estimate]:
    """What the run will take, its pilot included, and what it rests on.

    Args:
        composer: of the plan.
    """
    size, posterior = composer.batch_size, composer.posterior
    pilot, weights = composer.pilot_values(), composer.posterior.weights
    done, spent = pilot.get("updates", 0.0), pilot.get("seconds", 0.0)
    rng = np.random.default_rng((composer.request.seed, 3))
    rest = _updates_left(composer, done, rng)
    starting, seconds = _seconds(composer, len(rest), rng)
    found = {
        "updates": summary(done + rest, weights, "updates"),
        "examples": summary(pilot.get("examples", 0.0) + rest * size, weights, "examples"),
        "seconds": summary(spent + starting + rest * seconds, weights, "seconds"),
    }
    present, ranks = composer.request.present_batch_size, composer.request.ranks
    there = posterior.seconds_to_target([present], ranks)[:, 0]
    found["seconds_of_present"] = summary(there, weights, "seconds")
    found["excess_of_present"] = _present_excess(composer)
    critical = posterior.critical_batch_size
    found["critical_batch_size"] = summary(critical, weights, "examples")
    found["noise_scale"] = summary(posterior.noise_scale, weights, "examples")
    near = composer.decision.near_optimal
    low, high = min((*near, size)), max((*near, size))
    reason = "the interval holds the sizes that cost at most 5 % more"
    found["batch_size"] = Estimate(
        value=float(size), low=float(low), high=float(high), unit="examples", level=0.8,
        reason=reason,
    )  # fmt: skip
    found["lr"] = _lr_estimate(composer)
    return found


def _updates_left(composer: Composer, done: float, rng: np.random.Generator) -> _Array:
    """(draws,) updates after those of the pilot; inf: not reached."""
    posterior, gained = composer.posterior, composer.recommended
    at_pilot = posterior.updates_at_pilot
    left = np.maximum(0.0, 1.0 - done / at_pilot)
    left = np.where(np.isfinite(at_pilot), left, np.inf)
    own = posterior.relative_updates([composer.batch_size])[:, 0]
    rest = left * np.where(np.isfinite(at_pilot), at_pilot, np.inf) * own
    rest = rest if gained is None else rest * gained.updates
    # The target is met at an evaluation, half of their distance late on average.
    late = 1.0 + rng.uniform(size=len(rest)) / LOOKS
    passage = np.exp(_PASSAGE_SPREAD * rng.standard_normal(len(rest)))
    return np.asarray(np.maximum(0.0, (done + rest) * late * passage - done))


def _seconds(composer: Composer, draws: int, rng: np.random.Generator) -> tuple[_Array, _Array]:
    """(draws,) seconds once, at the start, and of each update."""
    posterior, gained = composer.posterior, composer.recommended
    ranks = composer.request.ranks
    starting = _STARTING_SECONDS * rng.uniform(size=draws) ** 3
    clock = np.exp(_CLOCK_SPREAD * rng.standard_normal(draws))
    seconds = clock * posterior.time.seconds_per_update([composer.batch_size], ranks=ranks)[:, 0]
    return starting, seconds if gained is None else seconds * gained.seconds


def _present_excess(composer: Composer) -> Estimate:
    """Seconds at the present choice over those of the plan, less 1."""
    gained = composer.recommended
    if gained is None:
        return composer.decision.present_excess
    ratio = composer.ratio_of_times(composer.request.present_batch_size, composer.batch_size)
    ratio = ratio / (gained.seconds * gained.updates)
    return summary(ratio - 1.0, composer.posterior.weights, "of the seconds")


def _lr_estimate(composer: Composer) -> Estimate:
    """The range test's interval, carried along."""
    lr, measured = composer.lr, composer.measured_lr
    if composer.recommended:
        reason = "the best that was tried; with K-FAC they are on a scale of their own"
        return Estimate(value=lr, low=0.0, high=math.inf, level=0.8, reason=reason)
    if measured is None or measured.value is None:
        reason = "the range test does not know; the present lr was carried"
        return Estimate(value=lr, low=0.0, high=math.inf, level=0.8, reason=reason)
    carried = lr / measured.value
    low, high = measured.low * carried, measured.high * carried
    return Estimate(value=lr, low=min(low, lr), high=max(high, lr), level=measured.level)
