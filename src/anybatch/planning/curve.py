"""The pilot's learning curve, and the updates to the target that it foretells: pure functions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from anybatch.measurement import Measurement
from anybatch.plan import PlanRequest
from anybatch.planning.arithmetic.learning_curve import LearningCurve, reached_after, remaining
from anybatch.recipe import Target

__all__ = ["foretold_updates", "foretold_width"]

_Array = NDArray[np.float64]

_CONFIRMED_LATER = 0.1  # natural log of updates, when a part of validation has met the target
_QUICK_DRAWS = 400

# What is left takes longer than a power law tells, and varies: natural log of (actual / told), mean
# and standard deviation. Set on 40 planned runs of five tasks (`benchmarks/plan_tasks`), of other
# seeds than those that are reported, cut off at 20 to 60 % of their updates.
_LEFT_LONGER, _LEFT_SPREAD = 0.4, 0.5


def foretold_updates(
    pilot: Measurement | None,
    request: PlanRequest,
    *,
    num_draws: int,
    interval_factor: float = 1.0,
) -> _Array:
    """Draws of the updates to the target at the pilot's batch size; inf: not reached.

    Args:
        pilot: its looks; None where there are none.
        request: with the target.
        num_draws: how many.
        interval_factor: by which the ledger tells to widen the interval, on a log scale.
    """
    curve = None if pilot is None else _curve(pilot, request)
    if curve is None:
        return np.full(num_draws, np.inf)
    target = Target.parse(request.target)
    reached = reached_after(curve, target)
    if reached is not None:  # on the watched part; all of validation may say so a little later
        z = np.random.default_rng((request.seed, 2)).standard_normal(num_draws)
        return np.asarray(reached * np.exp(_CONFIRMED_LATER * np.abs(z)))
    draws = remaining(curve, target, num_draws=num_draws, seed=request.seed)
    done = curve.updates[-1]
    z = np.random.default_rng((request.seed, 4)).standard_normal(num_draws)
    draws = done + (draws - done) * np.exp(_LEFT_LONGER + _LEFT_SPREAD * z)
    finite = np.isfinite(draws)
    if not finite.any():
        return draws
    middle = float(np.median(draws[finite]))
    wider = middle * (draws / middle) ** interval_factor
    return np.asarray(np.where(finite, wider, draws))


def foretold_width(pilot: Measurement, request: PlanRequest) -> float:
    """High over low of the 80 % interval of the updates to the target; inf where there is none.

    Args:
        pilot: its looks so far.
        request: with the target.
    """
    draws = foretold_updates(pilot, request, num_draws=_QUICK_DRAWS)
    low, high = (float(end) for end in np.quantile(draws, (0.1, 0.9), method="nearest"))
    return high / low if math.isfinite(high) else math.inf


def _curve(pilot: Measurement, request: PlanRequest) -> LearningCurve | None:
    columns = pilot.samples
    watched = "loss" if Target.parse(request.target).quantity == "loss" else "metric"
    sound = [
        place
        for place, update in enumerate(columns["update"])
        if update > 0 and math.isfinite(columns[watched][place])
    ]
    if not sound:
        return None
    is_share = request.metric_name == "accuracy"
    return LearningCurve(
        updates=tuple(columns["update"][place] for place in sound),
        metric=tuple(columns["metric"][place] for place in sound),
        loss=tuple(columns["loss"][place] for place in sound),
        direction=request.metric_direction,
        num_examples=int(pilot.settings["watched_examples"]) if is_share else None,
    )
