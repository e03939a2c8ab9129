"""The face of every loader: index lists in, batches out.

A `Source` holds the examples of one split. It is asked for batches by example index, so that
order, ranks and micro-batches are decided outside of it and any past batch can be made again.
Three kinds exist: `resident` (whole set in memory), `streamed` (map-style data sets through
worker processes) and `iterable` (a stream without random access).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from anybatch.recipe import Augmentation

__all__ = ["Batch", "Source"]


class Batch(NamedTuple):
    """Some examples, collated.

    Attributes:
        inputs: what the model is called with: a tensor, or a tuple or dict of tensors. First
            dimension = examples.
        targets: what the loss compares with, same first dimension.
        indices: int64 on the CPU, shape (examples,): the example's number within its split.
    """

    inputs: Any
    targets: Any
    indices: Tensor


class Source(Protocol):
    """The examples of one split.

    Without random access, indices must be asked for in ascending order; those in between are
    skipped over.
    """

    @property
    def num_examples(self) -> int | None:
        """Examples in one epoch; None when only the end of a stream tells."""
        ...

    @property
    def random_access(self) -> bool:
        """Whether any index can be fetched at any time."""
        ...

    def batches(
        self,
        index_batches: Iterable[Tensor],
        *,
        epoch: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Batch]:
        """Yield one `Batch` per index tensor, in order, on the source's device.

        A pure function of its arguments: the same (seed, epoch, index) gives the same example
        with the same augmentation draws, bit for bit, whatever else is in the batch.

        Args:
            index_batches: int64 CPU tensors of shape (n,), n >= 1; consumed lazily but possibly
                some batches ahead of what was yielded.
            epoch: number of the pass over the data, from 0; enters the augmentation draws.
            seed: the run's seed; enters the augmentation draws.
            augmentation: training-time augmentation; None for evaluation.
        """
        ...

    def subset(self, indices: Tensor) -> Source:
        """A source of only these examples, renumbered from 0 in the order given."""
        ...

    def to(self, device: torch.device, *, num_workers: int = 0) -> Source:
        """The same examples delivered on `device`; `num_workers` loader processes if streamed."""
        ...
