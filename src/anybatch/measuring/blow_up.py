"""Noise of a loss, and the point at which it rises for good."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["blow_up", "error_inflation", "final_rise", "noise_of"]

_Array = NDArray[np.float64]

_NON_FINITE_IN_A_ROW = 10
_RISEN_IN_A_ROW = 5


def noise_of(losses: _Array) -> float:
    """Standard deviation of a single loss about a slowly moving curve.

    1.4826 median |d| / sqrt(1.5) of d_i = l_i - (l_{i-1} + l_{i+1}) / 2: neither a trend nor a few
    spikes count. 0 for fewer than three losses.

    Args:
        losses: (updates,), finite.
    """
    if len(losses) < 3:
        return 0.0
    second = losses[1:-1] - 0.5 * (losses[:-2] + losses[2:])
    return float(1.4826 * np.median(np.abs(second)) / math.sqrt(1.5))


def error_inflation(residual: _Array, lag: int = 1) -> float:
    """Factor on the standard error of a mean where neighbours err alike: sqrt((1 + r) / (1 - r)).

    Args:
        residual: (points,), mean 0.
        lag: distance between neighbours of the same ramp, >= 1.

    Example:
        >>> error_inflation(np.array([1.0, -1.0] * 8)), error_inflation(np.zeros(9))
        (1.0, 1.0)
    """
    square = float(residual @ residual)
    if len(residual) < 4 * lag or square < 1e-300:
        return 1.0
    correlation = float(residual[lag:] @ residual[:-lag]) / square
    r = min(max(correlation, 0.0), 0.95)
    return math.sqrt((1.0 + r) / (1.0 - r))


def blow_up(losses: Sequence[float]) -> int | None:
    """Update at which the loss has begun to rise for good, or None.

    It has where the last five losses all lie above the best five-point median so far by more than
    twice the drop and eight times the noise. So a negative or tiny loss needs no care, and a spike
    decides nothing. Ten losses in a row that are not finite are a blow-up too. Before any drop
    there is nothing to compare with but the loss itself: as much again must then be added.

    Args:
        losses: so far, in order; may hold nan and inf.

    Example:
        >>> blow_up([1.0] * 20) is None
        True
        >>> blow_up([-1.0] * 10 + [-2.0] * 10 + [-1.9, 0.5, 9.0, 99.0, 999.0, 9999.0])
        21
    """
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    if len(values) >= _NON_FINITE_IN_A_ROW and not finite[-_NON_FINITE_IN_A_ROW:].any():
        last = np.flatnonzero(finite)
        return int(last[-1]) + 1 if len(last) else 0
    return final_rise(values, _RISEN_IN_A_ROW, negligible=0.01)


def final_rise(values: _Array, num_points: int, *, negligible: float = 0.0) -> int | None:
    """Where the losses have risen above the limit of `blow_up`, if the last few all have.

    Args:
        values: (updates,), may hold nan and inf.
        num_points: how many of the last must be above.
        negligible: a drop of less than this share of the first loss is none yet.

    Returns:
        The first of those above, or None.
    """
    kept = values[np.isfinite(values)]
    if len(kept) < 8:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(kept, 5), axis=1)
    best, started = float(medians.min()), float(medians[0])
    drop = max(0.0, started - best)
    noise = noise_of(kept[: int(medians.argmin()) + 5])
    rise = max(2.0 * drop, 8.0 * noise)
    if drop <= max(8.0 * noise, negligible * abs(started)):
        rise = max(rise, abs(started))
    above = ~(values <= best + rise)  # what is not finite counts as above
    if not (above[-num_points:].all() and np.isfinite(values[-num_points:]).any()):
        return None
    return int(np.flatnonzero(~above)[-1]) + 1 if (~above).any() else 0
