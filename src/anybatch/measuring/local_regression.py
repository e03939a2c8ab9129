"""Local linear regression: a smooth curve and its slope, as linear maps of the points.

Reference: Cleveland 1979, "Robust Locally Weighted Regression and Smoothing Scatterplots".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_bandwidth", "robust_weights", "smoother"]

_Array = NDArray[np.float64]

_BANDWIDTHS = tuple(math.log(10.0) * decades for decades in (0.3, 0.5, 0.8, 1.2))


def smoother(x: _Array, grid: _Array, bandwidth: float, weights: _Array) -> tuple[_Array, _Array]:
    """Linear maps from values at `x` to the fitted curve and its slope on `grid`.

    At each place of the grid a line is fitted with tricube weights (1 - |d / bandwidth|^3)^3, times
    `weights`; where fewer than seven points lie within the bandwidth, it is widened to seven.

    Args:
        x: (points,), in order.
        grid: (places,).
        bandwidth: in the unit of x, > 0.
        weights: (points,), >= 0.

    Returns:
        Two matrices, (places, points) each.

    Example:
        >>> x = np.arange(9.0)
        >>> values, slopes = smoother(x, np.array([2.5, 4.0]), 3.0, np.ones(9))
        >>> (values @ (2 * x + 1)).round(9).tolist(), (slopes @ (2 * x + 1)).round(9).tolist()
        ([6.0, 9.0], [2.0, 2.0])
    """
    distance = x[None, :] - grid[:, None]
    nearest = np.sort(np.abs(distance), axis=1)[:, min(6, len(x) - 1)]
    width = np.maximum(bandwidth, 1.01 * nearest)[:, None]
    kernel = np.clip(1.0 - np.abs(distance / width) ** 3, 0.0, None) ** 3 * weights[None, :]
    kernel += 1e-12 * (np.abs(distance) <= width)
    s0 = kernel.sum(1, keepdims=True)
    mean = (kernel * distance).sum(1, keepdims=True) / s0
    centred = distance - mean
    spread = (kernel * centred**2).sum(1, keepdims=True)
    slope = kernel * centred / np.maximum(spread, 1e-300)
    return kernel / s0 - mean * slope, slope


def best_bandwidth(x: _Array, y: _Array) -> float:
    """The bandwidth of least generalized cross-validation; the smoother of two that are near.

    Args:
        x: (points,), natural logs, in order.
        y: (points,).
    """
    scores = []
    ones = np.ones_like(x)
    for bandwidth in _BANDWIDTHS:
        rows, _ = smoother(x, x, bandwidth, ones)
        freedom = float(np.trace(rows)) / len(x)
        residual = np.abs(y - rows @ y)
        limit = 3.0 * float(np.median(residual)) + 1e-300  # spikes must not choose it
        scores.append(float(np.mean(np.minimum(residual, limit) ** 2)) / (1.0 - freedom) ** 2)
    best = min(scores)
    return max(b for b, score in zip(_BANDWIDTHS, scores, strict=True) if score <= 1.05 * best)


def robust_weights(x: _Array, y: _Array, bandwidth: float) -> _Array:
    """Bisquare weights after three rounds: a spike ends with weight 0.

    Args:
        x: (points,), in order.
        y: (points,).
        bandwidth: in the unit of x.
    """
    weights = np.ones_like(x)
    for _ in range(3):
        rows, _ = smoother(x, x, bandwidth, weights)
        residual = y - rows @ y
        scale = 6.0 * float(np.median(np.abs(residual)))
        if scale <= 0.0:
            break
        weights = np.clip(1.0 - (residual / scale) ** 2, 0.0, None) ** 2
    return weights
