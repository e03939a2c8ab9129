"""What the timed updates of a throughput measurement say: pure arithmetic on its samples.

t(b)        seconds of an update of one pass of b examples, the fitted curve (`step_time`)
an update of B examples on R ranks takes, with passes of at most m examples,
    o + sum over the passes b of (t(b) - o),      o: seconds of the optimizer
loading is added to that where nothing reads ahead, else hidden behind it: max(loading, update)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from anybatch.measurement import Estimate
from anybatch.measuring.memory_line import memory_estimates
from anybatch.measuring.step_time import (
    StepTimeFit,
    fit_latency,
    fit_step_time,
    fixed_seconds,
    half_rate_size,
    interval_of,
    last_slope,
    medians_by_round,
    resampled_fits,
    seconds_per_update,
)

__all__ = ["COLUMNS", "Reading", "own_pass", "read_throughput", "seconds_to_load"]

COLUMNS = (
    "batch_size",
    "round",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "loading_seconds",
    "update_seconds",
    "memory_bytes",
)
"""Of the samples, one row a timed update."""

_LEAST_SIZES = 3  # to tell what is fixed from what an example adds
_POINTS = 60  # of the curve that is drawn


class Reading(NamedTuple):
    """What follows from the samples.

    Attributes:
        fit: the curve of seconds against examples.
        estimates: by name.
        fitted: columns "batch_size" and "seconds" of the curve.
        spread: relative, half of what lies between the quartiles of updates of the same size; the
            greatest of all sizes.
        loading_share: by how much loading makes the recipe's updates longer, relative to computing;
            None where the recipe's pass is not known.
    """

    fit: StepTimeFit
    estimates: dict[str, Estimate]
    fitted: dict[str, tuple[float, ...]]
    spread: float
    loading_share: float | None


def read_throughput(samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]) -> Reading:
    """The estimates of a measurement of kind "throughput", from what is stored of it.

    Args:
        samples: its columns.
        settings: its settings.
    """
    sizes, table = medians_by_round(
        samples["batch_size"], samples["round"], samples["update_seconds"]
    )
    fit = fit_step_time(sizes, table)
    others = resampled_fits(sizes, table, fit, seed=int(settings["seed"]) % 2**32)
    optimizer = float(np.median(samples["optimizer_seconds"]))
    estimates = _of_curve(fit, others, len(sizes))
    loading = _loading(settings)
    estimates["loading_seconds_per_example"] = loading
    computing, added = _epoch(fit, optimizer, settings)
    estimates["epoch_compute_seconds"] = _unknown_if_endless(
        settings, lambda: interval_of(computing, fit, others, unit="seconds")
    )
    estimates["epoch_loading_seconds"] = _unknown_if_endless(
        settings, lambda: _spread_like(added(fit), loading)
    )
    estimates |= memory_estimates(samples, settings)
    size = own_pass(settings)
    share = None if size is None else _loading_share(fit, optimizer, settings)
    grid = np.geomspace(sizes[0], max(sizes[-1], size or 0.0), _POINTS)
    fitted = {
        "batch_size": tuple(map(float, grid)),
        "seconds": tuple(seconds_per_update(fit, float(size)) for size in grid),
    }
    return Reading(fit, estimates, fitted, _relative_spread(samples), share)


# --- computing ---------------------------------------------------------------------------------


def _of_curve(
    fit: StepTimeFit, others: Sequence[StepTimeFit], num_sizes: int
) -> dict[str, Estimate]:
    wanted: dict[str, tuple[Callable[[Mapping[str, Any]], float], str]] = {
        "fixed_seconds": (fixed_seconds, "seconds"),
        "seconds_per_example": (last_slope, "seconds per example"),
        "b_half": (half_rate_size, "examples"),
    }
    if num_sizes < _LEAST_SIZES:
        reason = f"{num_sizes} sizes were timed, {_LEAST_SIZES} are needed"
        return {
            name: Estimate(value=None, low=0.0, unit=unit, reason=reason)
            for name, (_, unit) in wanted.items()
        }
    return {
        name: interval_of(function, fit, others, unit=unit)
        for name, (function, unit) in wanted.items()
    }


def own_pass(settings: Mapping[str, Any]) -> int | None:
    """Examples of one pass of one rank under the recipe; None for a full batch of unknown size.

    Args:
        settings: of the measurement.
    """
    size = settings["batch_size"]
    size = settings["examples_per_epoch"] if size == "full" else size
    if size is None:
        return None
    share = -(-int(size) // int(settings["world_size"]))
    return min(share, settings["micro_batch_size"] or share)


def _compute_seconds(
    fit: Mapping[str, Any], optimizer: float, settings: Mapping[str, Any], batch_size: int
) -> float:
    """Of an update of this many examples over all ranks, in passes as the recipe has them."""
    share = -(-batch_size // int(settings["world_size"]))
    passes, rest = divmod(share, min(share, settings["micro_batch_size"] or share))
    full = max(0.0, seconds_per_update(fit, share if not rest else (share - rest) / passes))
    seconds = optimizer + passes * max(0.0, full - optimizer)
    if rest:
        seconds += max(0.0, seconds_per_update(fit, rest) - optimizer)
    return seconds


def _added_loading(computing: float, loading: float, settings: Mapping[str, Any]) -> float:
    """What loading adds to an update: all of it, or with loader processes what is not hidden."""
    return max(0.0, loading - computing) if settings["num_workers"] else loading


def _epoch(
    fit: StepTimeFit, optimizer: float, settings: Mapping[str, Any]
) -> tuple[Callable[[Mapping[str, Any]], float], Callable[[Mapping[str, Any]], float]]:
    """Seconds of an epoch at the recipe's batch size as functions of the curve: both kinds."""
    total = int(settings["examples_per_epoch"] or 0)
    size = total if settings["batch_size"] == "full" else int(settings["batch_size"])
    full, rest = divmod(total, max(1, size))
    updates = [(full, size), (1, rest)] if rest else [(full, size)]

    def computing(curve: Mapping[str, Any]) -> float:
        return sum(n * _compute_seconds(curve, optimizer, settings, b) for n, b in updates)

    def added(curve: Mapping[str, Any]) -> float:
        return sum(
            n
            * _added_loading(
                _compute_seconds(curve, optimizer, settings, b),
                _loading_of_update(settings, b),
                settings,
            )
            for n, b in updates
        )

    return computing, added


def _unknown_if_endless(settings: Mapping[str, Any], known: Callable[[], Estimate]) -> Estimate:
    if settings["examples_per_epoch"] is None:
        reason = "the stream's length is not known"
        return Estimate(value=None, low=0.0, unit="seconds", reason=reason)
    return known()


def _relative_spread(samples: Mapping[str, Sequence[float]]) -> float:
    sizes, seconds = np.asarray(samples["batch_size"]), np.asarray(samples["update_seconds"])
    found = []
    for size in np.unique(sizes):
        low, middle, high = np.quantile(seconds[sizes == size], [0.25, 0.5, 0.75])
        found.append((high - low) / 2.0 / middle)
    return float(np.max(found))


# --- loading -----------------------------------------------------------------------------------


def seconds_to_load(samples: Sequence[Sequence[float]], size: float) -> float:
    """Seconds to load this many examples: the median of what was measured, or a line through it.

    Args:
        samples: (examples, seconds) of a batch.
        size: examples.

    Example:
        >>> samples = [(1, 0.002), (9, 0.010), (9, 0.011), (9, 0.010)]
        >>> seconds_to_load(samples, 9), round(seconds_to_load(samples, 99), 6)
        (0.01, 0.1)
    """
    medians, (fixed, each) = _line_of_loading(tuple((float(b), float(t)) for b, t in samples))
    return medians[size] if size in medians else fixed + each * size


@functools.lru_cache(maxsize=8)
def _line_of_loading(
    samples: tuple[tuple[float, float], ...],
) -> tuple[dict[float, float], tuple[float, float]]:
    """The median of each size, and (fixed, each) of a straight line through them."""
    sizes = sorted({b for b, _ in samples})
    medians = {b: float(np.median([t for other, t in samples if other == b])) for b in sizes}
    return medians, fit_latency(list(medians.items()))


def _loading_of_update(settings: Mapping[str, Any], batch_size: int) -> float:
    """Seconds to load one rank's share of an update."""
    share = -(-batch_size // int(settings["world_size"]))
    return seconds_to_load(settings["loading"]["samples"], share)


def _loading(settings: Mapping[str, Any]) -> Estimate:
    """Seconds for an example in batches of the recipe's size; the range of what was measured."""
    samples = settings["loading"]["samples"]
    size = own_pass(settings) or max(b for b, _ in samples)
    value = seconds_to_load(samples, size) / size
    nearest = min((b for b, _ in samples), key=lambda b: abs(b - size))
    middle = seconds_to_load(samples, nearest) or 1.0
    ratios = [t / middle for b, t in samples if b == nearest]
    return Estimate(
        value=value,
        low=value * min(1.0, *ratios),
        high=value * max(1.0, *ratios),
        unit="seconds per example",
        reason="the range of what was measured",
    )


def _spread_like(value: float, other: Estimate) -> Estimate:
    """A number of seconds with another one's relative interval."""
    assert other.value is not None
    scale = value / other.value if other.value else 0.0
    low, high = min(value, other.low * scale), max(value, other.high * scale)
    return Estimate(value=value, low=low, high=high, unit="seconds", reason=other.reason)


def _loading_share(fit: StepTimeFit, optimizer: float, settings: Mapping[str, Any]) -> float:
    total = settings["examples_per_epoch"]
    size = total if settings["batch_size"] == "full" else int(settings["batch_size"])
    computing = _compute_seconds(fit, optimizer, settings, size)
    loading = _loading_of_update(settings, size)
    return _added_loading(computing, loading, settings) / computing
