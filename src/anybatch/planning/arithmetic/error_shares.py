"""Which error a plan owes its width to: each source frozen at its median in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from anybatch.planning.arithmetic.posterior import Posterior, weighted_quantile

__all__ = ["SOURCES", "shares_of_choice", "shares_of_seconds"]

_Array = NDArray[np.float64]

SOURCES: Mapping[str, str] = {
    "noise scale": "more probes, later in the pilot, narrow it",
    "calibration": "branches at another batch size narrow it",
    "timing": "a longer timing on a quiet machine narrows it",
    "learning curve": "a longer pilot narrows it",
}
"""The sources of error, and what to do about each."""


def shares_of_choice(posterior: Posterior, batch_sizes: _Array, ranks: int = 1) -> dict[str, float]:
    """Shares of what each source adds to the variance of the log of the best batch size.

    The variance that goes away when a source is frozen, over the sum of those of all sources.

    Args:
        posterior: draws.
        batch_sizes: (sizes,), among which each draw has its best.
        ranks: that train together.

    Returns:
        By source, of sum 1; empty where every draw has the same best.
    """
    logs = np.log(batch_sizes)

    def spread(world: Posterior) -> float:
        seconds = world.relative_updates(batch_sizes) * world.time.seconds_per_update(
            batch_sizes, ranks=ranks
        )
        return _variance(logs[seconds.argmin(axis=1)], world.weights)

    whole = spread(posterior)
    gone = {name: whole - spread(frozen) for name, frozen in _frozen(posterior).items()}
    return _shares(gone, whole)


def shares_of_seconds(posterior: Posterior, batch_size: int, ranks: int = 1) -> dict[str, float]:
    """Shares of what each source adds to the variance of the log of the seconds to the target.

    Args:
        posterior: draws; those that never get there are left out.
        batch_size: at which.
        ranks: that train together.

    Returns:
        By source, of sum 1; empty where the seconds are sure, or no draw gets there.
    """

    def spread(world: Posterior) -> float:
        seconds = world.seconds_to_target([batch_size], ranks)[:, 0]
        reached = np.isfinite(seconds)
        if not reached.any():
            return 0.0
        return _variance(np.log(seconds[reached]), world.weights[reached])

    whole = spread(posterior)
    gone = {name: whole - spread(frozen) for name, frozen in _frozen(posterior).items()}
    return _shares(gone, whole)


def _frozen(posterior: Posterior) -> dict[str, Posterior]:
    def middle(values: _Array) -> _Array:
        median = weighted_quantile(values, posterior.weights, [0.5])[0]
        return np.full_like(values, median)

    return {
        "noise scale": dataclasses.replace(posterior, noise_scale=middle(posterior.noise_scale)),
        "calibration": dataclasses.replace(
            posterior, kappa=middle(posterior.kappa), elbow=middle(posterior.elbow)
        ),
        "timing": dataclasses.replace(posterior, time=posterior.time.frozen()),
        "learning curve": dataclasses.replace(
            posterior, updates_at_pilot=middle(posterior.updates_at_pilot)
        ),
    }


def _variance(values: _Array, weights: _Array) -> float:
    share = weights / weights.sum()
    return float(share @ (values - share @ values) ** 2)


def _shares(gone: Mapping[str, float], whole: float) -> dict[str, float]:
    kept = {name: max(value, 0.0) for name, value in gone.items()}
    total = sum(kept.values())
    if whole <= 1e-12 or total <= 0.0:
        return {}
    return {name: value / total for name, value in kept.items()}
