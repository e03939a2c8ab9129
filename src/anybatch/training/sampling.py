"""Which examples an update takes, and which of them a rank and a micro-batch take: pure functions.

The global batch of an update is a run of consecutive positions in the epoch's order. It is cut
into ghosts of consecutive examples; a rank takes consecutive ghosts, and its micro-batches are
whole ghosts. So the ghosts, and with them BatchNorm's statistics, do not depend on the number of
ranks or on the micro-batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anybatch.data.items import map_tensors
from anybatch.data.source import Batch

__all__ = ["micro_batches", "rank_share"]


def rank_share(num_examples: int, *, rank: int, world_size: int, ghost: int = 1) -> tuple[int, int]:
    """First and past-the-last example of the global batch that a rank takes.

    Whole ghosts are dealt out in order, as evenly as possible; a rank may get none.

    Args:
        num_examples: of the global batch, >= 1.
        rank: in [0, world_size).
        world_size: number of ranks.
        ghost: consecutive examples that stay together; the last ghost may be smaller.

    Example:
        >>> [rank_share(10, rank=r, world_size=4, ghost=4) for r in range(4)]
        [(0, 0), (0, 4), (4, 8), (8, 10)]
    """
    ghosts = -(-num_examples // ghost)
    first, last = ghosts * rank // world_size, ghosts * (rank + 1) // world_size
    return min(first * ghost, num_examples), min(last * ghost, num_examples)


def micro_batches(batch: Batch, micro_batch_size: int | None) -> Iterator[Batch]:
    """Cut a rank's batch into consecutive parts of the micro-batch size; views, no copies."""
    count = len(batch.indices)
    if micro_batch_size is None or count <= micro_batch_size:
        yield batch
        return
    for start in range(0, count, micro_batch_size):
        part = slice(start, start + micro_batch_size)
        yield Batch(_cut(batch.inputs, part), _cut(batch.targets, part), batch.indices[part])


def _cut(nest: Any, part: slice) -> Any:
    return map_tensors(lambda tensor: tensor[part], nest)
