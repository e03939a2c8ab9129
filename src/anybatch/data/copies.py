"""Copies: k fixed augmented views of each example, as one set of k N examples.

Example i + c N of the copies is example i as epoch c of the augmentation draws shows it, in every
epoch: so full-batch training on them is deterministic, and a pass over all k N examples is a pass
over each of the first k epochs' data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anybatch.data.items import refuse_augmentation
from anybatch.data.resident import ResidentSource, groups_of
from anybatch.data.source import Batch, Source
from anybatch.data.streamed import EpochDataset, StreamedSource, seed_item
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

__all__ = ["CopiedDataset", "CopiedSource", "copied", "example_number"]


def copied(source: Source, augmentation: Augmentation) -> Source:
    """The training examples that a recipe's augmentation asks for: the source's own, or copies.

    Args:
        source: training data; what is copied already is returned as it is.
        augmentation: of the recipe; its `copies` says how many, 0 none.

    Raises:
        InputError: copies of a stream, or an augmentation that the data cannot have.
    """
    copies = augmentation.copies
    if copies == 0 or _is_copied(source):
        return source
    if isinstance(source, StreamedSource):
        return _copied_stream(source, augmentation)
    if not source.random_access:
        rule = "must be 0 for a stream without random access"
        raise InputError("augmentation.copies", rule, copies)
    return CopiedSource(source, copies)


def _is_copied(source: Source) -> bool:
    if isinstance(source, StreamedSource):
        return isinstance(source.dataset, CopiedDataset)
    return isinstance(source, CopiedSource)


def example_number(source: Source, index: int) -> int:
    """The number of an example of a source in the data that a user knows.

    Args:
        source: a part set aside, or copies, of which examples are numbered anew.
        index: within the source.
    """
    if isinstance(source, CopiedSource):
        return example_number(source.source, index % source.examples_per_copy)
    if not isinstance(source, StreamedSource):
        return index
    number = index if source.positions is None else int(source.positions[index])
    if isinstance(source.dataset, CopiedDataset):
        number %= len(source.dataset.dataset)
    return number


@dataclass(frozen=True, slots=True, eq=False)
class CopiedSource:
    """Copies of a source with random access; made by `copied`.

    Attributes:
        source: the examples.
        copies: of each, >= 1.
    """

    source: Source
    copies: int

    @property
    def examples_per_copy(self) -> int:
        """Examples of the source."""
        return self.source.num_examples or 0

    @property
    def num_examples(self) -> int:
        """Examples of all copies together."""
        return self.copies * self.examples_per_copy

    @property
    def random_access(self) -> bool:
        """Always True: any example can be had at any time."""
        return True

    def batches(
        self,
        index_batches: Iterable[Tensor],
        *,
        epoch: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Batch]:
        """Yield one `Batch` per index tensor; see `Source.batches`.

        Args:
            index_batches: int64 CPU tensors of shape (n,); read ahead as the source does.
            epoch: makes no difference, as the copies are fixed.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.

        Raises:
            InputError: as of the source.
        """
        ahead = self.source.examples_ahead if isinstance(self.source, ResidentSource) else 1
        for group in groups_of(index_batches, ahead):
            joined = torch.cat(group)
            inputs, targets = self._gathered(joined, seed, augmentation)
            start = 0
            for indices in group:
                part = slice(start, start + len(indices))
                yield Batch(_mapped([inputs], part), _mapped([targets], part), indices)
                start += len(indices)

    def _gathered(
        self, indices: Tensor, seed: int, augmentation: Augmentation | None
    ) -> tuple[Any, Any]:
        """Inputs and targets of these examples, each copy's with the draws of its epoch."""
        copy_of = indices // self.examples_per_copy
        order = torch.argsort(copy_of, stable=True)
        counts = torch.bincount(copy_of).tolist()
        parts = torch.split(indices[order] % self.examples_per_copy, counts)
        batches = [
            next(iter(self.source.batches([part], epoch=c, seed=seed, augmentation=augmentation)))
            for c, part in enumerate(parts)
            if len(part)
        ]
        back = None if len(batches) == 1 else torch.argsort(order)
        inputs = _mapped([batch.inputs for batch in batches], back)
        return inputs, _mapped([batch.targets for batch in batches], back)

    def subset(self, indices: Tensor) -> Source:
        """Not to be had: parts are set aside before examples are copied.

        Raises:
            InputError: always.
        """
        raise InputError("a part of the training data", "must be taken before it is copied")

    def to(self, device: torch.device, *, num_workers: int = 0) -> CopiedSource:
        """The same examples delivered on `device`.

        Args:
            device: where to.
            num_workers: loader processes, where the source has any.
        """
        return replace(self, source=self.source.to(device, num_workers=num_workers))


def _mapped(nests: list[Any], rows: Tensor | slice | None) -> Any:
    """These rows of the nests put one after the other; None: all rows."""
    first = nests[0]
    if isinstance(first, Tensor):
        whole = first if len(nests) == 1 else torch.cat(nests)
        if rows is None:
            return whole
        return whole[rows] if isinstance(rows, slice) else whole[rows.to(whole.device)]
    if isinstance(first, Mapping):
        return {key: _mapped([nest[key] for nest in nests], rows) for key in first}
    return tuple(_mapped(list(column), rows) for column in zip(*nests, strict=True))


def _copied_stream(source: StreamedSource, augmentation: Augmentation) -> StreamedSource:
    if not isinstance(source.dataset, EpochDataset):
        refuse_augmentation(augmentation, thing="a plain Dataset", hint="augment in your Dataset")
    count, positions = len(source.dataset), source.positions
    if positions is not None:
        positions = torch.cat([positions + c * count for c in range(augmentation.copies)])
    dataset = CopiedDataset(source.dataset, augmentation.copies, source.split)
    return replace(source, dataset=dataset, positions=positions)


@dataclass(frozen=True, slots=True, eq=False)
class CopiedDataset:
    """Copies of a map-style data set; an `EpochDataset`, whatever it is made of.

    A plain data set's own random transforms are fixed, too: they draw from generators that are
    seeded as they would be in the epoch of the copy's number.

    Attributes:
        dataset: has `__len__` and either `item` or `__getitem__`.
        copies: of each example, >= 1.
        split: what the data are called in errors.
    """

    dataset: Any
    copies: int
    split: str

    def __len__(self) -> int:
        return self.copies * len(self.dataset)

    def item(self, index: int, *, epoch: int, seed: int, augmentation: Augmentation | None) -> Any:
        """One example; see `EpochDataset.item`.

        Args:
            index: example + copy * examples.
            epoch: makes no difference.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.

        Raises:
            InputError: the example cannot be read.
        """
        copy, example = divmod(index, len(self.dataset))
        seed_item(seed, copy, example)
        try:
            if isinstance(self.dataset, EpochDataset):
                return self.dataset.item(example, epoch=copy, seed=seed, augmentation=augmentation)
            return self.dataset[example]
        except InputError:
            raise
        except Exception as error:  # whatever the data set of a user raises
            cause = f"{type(error).__name__}: {error}"
            rule = f"must give example {example}"
            raise InputError(f"{self.split} dataset", rule, cause) from error
