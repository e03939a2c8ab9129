"""Which examples an update takes, and which of them a rank and a micro-batch take: pure functions.

The global batch of an update is a run of consecutive positions in the epoch's order. It is cut
into ghosts of consecutive examples; a rank takes consecutive ghosts, and its micro-batches are
whole ghosts. So the ghosts, and with them BatchNorm's statistics, do not depend on the number of
ranks or on the micro-batch size. Blocks, where gradients are formed block by block, are whole
ghosts that stay on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anybatch.data.items import map_tensors
from anybatch.data.source import Batch
from anybatch.recipe import Recipe

__all__ = ["cuts", "micro_batches", "part_of", "pass_size", "rank_share", "share_unit"]


def share_unit(recipe: Recipe) -> int:
    """Consecutive examples of the global batch that one rank takes together: a block, or a ghost.

    Args:
        recipe: whose blocks are whole ghosts.
    """
    return recipe.ghost_batch_size or 1 if recipe.blocks is None else recipe.blocks.size


def pass_size(recipe: Recipe, *, divisible: bool) -> int | None:
    """Examples of a forward and backward pass of one rank; None: its whole share.

    The recipe's micro-batch size. Where it has none, a full batch is divided by the evaluation
    batch size (whole ghosts of it), so that the memory does not grow with the data.

    Args:
        recipe: of the run.
        divisible: False where examples of a batch are coupled (BatchNorm without ghosts, or the
            loss), so that it must stay whole.

    Example:
        >>> from anybatch.recipe import SGDSettings
        >>> full = Recipe(optimizer=SGDSettings(lr=0.1), batch_size="full", ghost_batch_size=128)
        >>> pass_size(full, divisible=True), pass_size(full, divisible=False)
        (896, None)
    """
    if recipe.micro_batch_size is not None or recipe.batch_size != "full" or not divisible:
        return recipe.micro_batch_size
    ghost = recipe.ghost_batch_size or 1
    return max(1, recipe.compute.evaluation_batch_size // ghost) * ghost


def cuts(first: int, last: int, size: int | None) -> list[tuple[int, int]]:
    """Consecutive (start, stop) of `size` examples from `first` to `last`; the last may be shorter.

    Example:
        >>> cuts(4, 9, 2), cuts(0, 3, None)
        ([(4, 6), (6, 8), (8, 9)], [(0, 3)])
    """
    step = size or max(1, last - first)
    return [(start, min(start + step, last)) for start in range(first, last, step)]


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
    for start, stop in cuts(0, len(batch.indices), micro_batch_size):
        yield part_of(batch, start, stop)


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """The examples from `start` to before `stop` of a batch; views, no copies."""
    if start == 0 and stop == len(batch.indices):
        return batch
    part = slice(start, stop)
    return Batch(_cut(batch.inputs, part), _cut(batch.targets, part), batch.indices[part])


def _cut(nest: Any, part: slice) -> Any:
    return map_tensors(lambda tensor: tensor[part], nest)
