"""The largest pass that fits: a straight line through the memory that small ones take; no torch.

    bytes(b) = bytes of a known size + slope * (b - that size) <= 90 % of what is free

Whether the whole set fits is looked at first: a pass larger than the set does not exist.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anybatch.measurement import Estimate

__all__ = ["largest_size_within", "memory_estimates", "slope_of_memory"]

_MARGIN = 0.1  # share of the free memory that is left alone


def memory_estimates(
    samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]
) -> dict[str, Estimate]:
    """The estimates "bytes_per_example" and "largest_micro_batch", from what is stored.

    Args:
        samples: columns of a measurement of kind "throughput".
        settings: its settings.
    """
    rows = zip(samples["batch_size"], samples["memory_bytes"], strict=True)
    line = sorted(dict(rows).items())
    memory, total = settings["memory"], settings["examples_per_epoch"]
    share = math.inf if total is None else float(total // int(settings["world_size"]))
    sizes, in_use = [b for b, _ in line], [m for _, m in line]
    resolution = float(memory["resolution_bytes"])
    slope = slope_of_memory(sizes, in_use, resolution=resolution)
    free = memory["free_bytes"]
    largest = sizes[-1]

    def unknown(reason: str, low: float = 0.0, unit: str = "examples") -> Estimate:
        return Estimate(value=None, low=low, unit=unit, reason=reason)

    if free is None or not any(map(math.isfinite, in_use)):
        reason = "memory in use cannot be read on this machine"
        return {
            "bytes_per_example": unknown(reason, unit="bytes per example"),
            "largest_micro_batch": unknown(reason, largest),
        }
    if slope is None:
        reason = f"up to {largest:,.0f} examples, memory does not grow by more than is noise"
        return {
            "bytes_per_example": unknown(reason, unit="bytes per example"),
            "largest_micro_batch": unknown(reason, largest),
        }
    middle, least, greatest = slope
    at = next((b, m) for b, m in reversed(line) if math.isfinite(m))
    usable, ghost = (1.0 - _MARGIN) * float(free), int(settings["ghost_batch_size"] or 1)
    low, value, high = (
        largest_size_within(usable, at, each, multiple=ghost) for each in (greatest, middle, least)
    )
    each = Estimate(value=middle, low=least, high=greatest, unit="bytes per example",
                    reason="the range of slopes among the largest sizes")  # fmt: skip
    if low >= share:
        reason = f"memory is not the limit: all {total:,} examples fit"
        return {"bytes_per_example": each, "largest_micro_batch": unknown(reason, share)}
    ends = [min(float(size), share) for size in (low, value, high)]
    return {
        "bytes_per_example": each,
        "largest_micro_batch": Estimate(
            value=ends[1], low=ends[0], high=ends[2], unit="examples",
            reason="a straight line through the measured sizes, 10 % of what is free left alone",
        ),
    }  # fmt: skip


def slope_of_memory(
    sizes: Sequence[float], num_bytes: Sequence[float], *, resolution: float
) -> tuple[float, float, float] | None:
    """Bytes that each further example of a pass adds: middle, least, greatest.

    Of the largest four sizes, as small ones take what was left over: the median of the slopes
    between all pairs that differ by more than the resolution, and the range between neighbours.

    Args:
        sizes: ascending.
        num_bytes: in use at each; nan where not known.
        resolution: bytes below which a difference says nothing.

    Returns:
        None where no two of them differ by as much.

    Example:
        >>> slope_of_memory([1, 2, 4], [1e6, 3e6, 7e6], resolution=1e5)
        (2000000.0, 2000000.0, 2000000.0)
    """
    known = [(b, m) for b, m in zip(sizes, num_bytes, strict=True) if math.isfinite(m)]
    pairs = [
        (m1 - m0) / (b1 - b0)
        for (b0, m0), (b1, m1) in itertools.combinations(known[-4:], 2)
        if m1 - m0 > resolution
    ]
    if not pairs:
        return None
    neighbours = [
        (m1 - m0) / (b1 - b0)
        for (b0, m0), (b1, m1) in itertools.pairwise(known[-4:])
        if m1 - m0 > resolution
    ]
    middle = float(np.median(pairs))
    return middle, min([middle, *neighbours]), max([middle, *neighbours])


def largest_size_within(
    num_bytes: float, at: tuple[float, float], slope: float, *, multiple: int = 1
) -> int:
    """The largest pass that a straight line through a known size keeps within the memory.

    Args:
        num_bytes: that may be used.
        at: (examples, bytes) of a known size.
        slope: bytes per example, > 0.
        multiple: that the pass must be a multiple of.

    Example:
        >>> largest_size_within(10e6, (4, 1e6), 1e6, multiple=4)
        12
    """
    size = at[0] + (num_bytes - at[1]) / slope
    return max(0, int(size) // multiple * multiple)
