"""Time to add up gradients over the ranks: seconds = latency + seconds per byte * bytes, measured.

Taken with the collective that a training uses for them (`World.sum_in_place`; the reducer calls the
same one for each bucket), from 1 KiB to the gradient's own size.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from anybatch.measuring.step_time import fit_latency
from anybatch.world import World

__all__ = ["measure_all_reduce"]

_LEAST_BYTES = 1024
_MOST_BYTES = 25 * 2**20  # torch's reducer sends the gradient in buckets of this size
_FACTOR = 8
_REPEATS = 7
_BYTES_PER_VALUE = 4


def measure_all_reduce(
    world: World, gradient_bytes: int, *, repeats: int = _REPEATS
) -> dict[str, Any] | None:
    """The alpha-beta model of the gradient's sum over the ranks.

    Args:
        world: the ranks.
        gradient_bytes: of the model, which are sent in buckets of at most 25 MiB.
        repeats: of each size, after one that is not counted.

    Returns:
        Plain values: "latency_seconds" of each message, "seconds_per_byte" for this many ranks,
        "bytes" of the gradient, "samples" [bytes, seconds], the slowest rank's median of each
        size. None for one rank.

    Cost:
        About 8 messages for each of at most 6 sizes.

    Collectives:
        Those, and one gather; every rank must call.

    Example:
        >>> measure_all_reduce(World(torch.device("cpu")), 10**6) is None
        True
    """
    if world.size == 1:
        return None
    sizes, size = [], _LEAST_BYTES
    largest = max(_LEAST_BYTES, min(gradient_bytes, _MOST_BYTES))
    while size < largest:
        sizes.append(size)
        size *= _FACTOR
    own = [(float(size), _seconds(world, size, repeats)) for size in [*sizes, largest]]
    of_ranks = world.all_values(own)
    samples = [max(rank[n] for rank in of_ranks) for n in range(len(own))]
    latency, per_byte = fit_latency(samples)
    return {
        "latency_seconds": latency,
        "seconds_per_byte": per_byte,
        "bytes": gradient_bytes,
        "samples": [list(sample) for sample in samples],
    }


def _seconds(world: World, num_bytes: int, repeats: int) -> float:
    """Median time of a sum of this size."""
    values = torch.zeros(-(-num_bytes // _BYTES_PER_VALUE), device=world.device)
    found = []
    for _ in range(repeats + 1):
        world.barrier()
        _wait_for(world.device)
        started = time.perf_counter()
        world.sum_in_place(values)
        _wait_for(world.device)
        found.append(time.perf_counter() - started)
    return float(np.median(found[1:]))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
