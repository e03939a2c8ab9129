"""Portion: what one rank takes of one update, held in memory or read part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from anybatch.data.source import Batch, Source
from anybatch.recipe import Augmentation
from anybatch.training.sampling import cuts, part_of

__all__ = ["Portion", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Examples that are not held: each part is read when its turn comes.

    Attributes:
        source: with random access, on the rank's device.
        indices: (examples,) on the CPU, in order.
        epoch: of the augmentation draws.
        seed: of the augmentation draws.
        augmentation: of the images.
    """

    source: Source
    indices: Tensor
    epoch: int
    seed: int
    augmentation: Augmentation

    def batches(self, parts: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """The examples of each (start, stop), in this order; one opening of the source."""
        indices = (self.indices[start:stop] for start, stop in parts)
        return self.source.batches(
            indices, epoch=self.epoch, seed=self.seed, augmentation=self.augmentation
        )


@dataclass(frozen=True, slots=True)
class Portion:
    """What one rank takes of one update.

    Attributes:
        examples: this rank's, held or to be read; one placeholder example where its share is empty.
        num_examples: of the global batch.
        counted: False where the examples are a placeholder that must weigh nothing.
    """

    examples: Batch | Reading
    num_examples: int
    counted: bool

    @property
    def batch(self) -> Batch:
        """This rank's examples at once."""
        return next(self.parts(None))

    @property
    def indices(self) -> Tensor:
        """Numbers of this rank's examples within the training set, (examples,) on the CPU."""
        return self.examples.indices

    def parts(self, size: int | None) -> Iterator[Batch]:
        """This rank's examples in order, `size` at a time; None: all at once."""
        return self.read(cuts(0, len(self.indices), size))

    def read(self, parts: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """The examples of each (start, stop) of this rank's, in this order, also more than once.

        What is held is cut without copies; what is read takes the memory of a part or two.
        """
        if isinstance(self.examples, Reading):
            return self.examples.batches(parts)
        held = self.examples
        return (part_of(held, start, stop) for start, stop in parts)
