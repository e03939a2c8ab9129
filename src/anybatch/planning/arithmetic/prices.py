"""The price list: what each batch size on each number of ranks costs to the target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.plan import Price
from anybatch.planning.arithmetic.decision import near_optimal
from anybatch.planning.arithmetic.posterior import Posterior, weighted_quantile

__all__ = ["price_list", "summary"]

_Array = NDArray[np.float64]

_LEVELS = (0.1, 0.5, 0.9)


def price_list(
    posterior: Posterior, batch_sizes: Sequence[int], ranks: Sequence[int], *, ghost: int = 1
) -> list[Price]:
    """Updates, seconds and device-hours to the target: medians and 80 % intervals.

    `near_optimal` marks the flat region: sizes within 5 % of the least expected seconds among those
    listed that fit, on as many ranks. A price fits where each rank has a ghost or more to work on
    and one ghost can be held; larger parts are accumulated, and the seconds say so.

    Args:
        posterior: draws of what decides.
        batch_sizes: global, in examples, >= 1.
        ranks: numbers of processes that train together, each >= 1.
        ghost: examples that share BatchNorm statistics, the smallest part; 1 where nothing does.

    Returns:
        One price for each pair, ranks by ranks.

    Raises:
        InputError: several ranks where no all-reduce was measured, sizes or ranks below 1.
    """
    sizes = np.asarray(batch_sizes, dtype=np.int64)
    if not len(sizes) or not (sizes >= 1).all():
        raise InputError("batch_sizes", "must hold sizes >= 1", list(batch_sizes))
    updates = posterior.updates_to_target(sizes)
    weights = posterior.weights
    largest = posterior.time.largest_micro_batch
    prices = []
    for count in ranks:
        seconds = posterior.seconds_to_target(sizes, count)
        fits = (sizes >= count * ghost) & (largest is None or largest >= ghost)
        flat = _flat(posterior, sizes, count, fits)
        for column, size in enumerate(sizes.tolist()):
            prices.append(
                Price(
                    batch_size=size,
                    ranks=count,
                    updates=summary(updates[:, column], weights, "updates"),
                    seconds=summary(seconds[:, column], weights, "seconds"),
                    device_hours=summary(
                        seconds[:, column] * (count / 3600.0), weights, "device-hours"
                    ),
                    near_optimal=size in flat,
                    fits=bool(fits[column]),
                )
            )
    return prices


def _flat(
    posterior: Posterior, sizes: NDArray[np.int64], ranks: int, fits: NDArray[np.bool_]
) -> tuple[int, ...]:
    if not fits.any():
        return ()
    per_update = posterior.time.seconds_per_update(sizes[fits], ranks=ranks)
    seconds = posterior.relative_updates(sizes[fits]) * per_update
    return near_optimal(seconds, posterior.weights, sizes[fits].tolist())


def summary(values: _Array, weights: _Array, unit: str) -> Estimate:
    """Median and 80 % interval of draws; no value where half of them never get there.

    Args:
        values: (draws,), may hold inf.
        weights: (draws,), >= 0.
        unit: of the values.

    Example:
        >>> str(summary(np.array([10.0, 20.0, 40.0]), np.ones(3) / 3, "seconds"))
        '20 seconds (10 to 40)'
        >>> summary(np.array([10.0, np.inf, np.inf]), np.ones(3) / 3, "seconds").reason
        'not reached in 67 % of the draws'
    """
    low, middle, high = weighted_quantile(values, weights, _LEVELS)
    if math.isfinite(middle):
        return Estimate(value=middle, low=low, high=high, unit=unit, level=0.8)
    missed = 100.0 * float(weights[~np.isfinite(values)].sum() / weights.sum())
    reason = f"not reached in {missed:.0f} % of the draws"
    low = low if math.isfinite(low) else -math.inf
    return Estimate(value=None, low=low, high=math.inf, unit=unit, level=0.8, reason=reason)
