"""Streamed source: a map-style torch Dataset, read example by example, by loader processes or not.

The law that an example is pure in (seed, epoch, index) is kept for plain datasets too: before each
item the global generators of torch, numpy and Python are seeded from (seed, epoch, index), and they
are put back afterwards. Generators that a dataset owns itself are out of reach.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from anybatch.data.draws import mixed_key
from anybatch.data.items import refuse_augmentation, split_item, to_device
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

__all__ = ["EpochDataset", "StreamedSource", "seed_item"]

_ITEM_STREAM: Final = (1 << 32) + 1
_LOADER_STREAM: Final = (1 << 32) + 2
_COLLATE_STREAM: Final = (1 << 32) + 3


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose items depend on (seed, epoch) and which augments by itself."""

    def __len__(self) -> int: ...

    def item(
        self, index: int, *, epoch: int, seed: int, augmentation: Augmentation | None
    ) -> tuple[Any, Any]:
        """Inputs and target of one example, pure in the arguments.

        Args:
            index: the example's number in the dataset.
            epoch: number of the pass over the data.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StreamedSource:
    """A split read from a map-style dataset.

    Attributes:
        dataset: has `__len__` and either `item` (see `EpochDataset`) or `__getitem__`, which gives
            an (inputs, target) tuple, a longer tuple whose last element is the target, or a dict.
        target_key: where a dict item holds the target.
        collate_fn: makes a batch of the same form from a list of items; None stacks them.
        positions: int64, shape (n,): the dataset's number of each example; None for all in order.
        device: where batches are delivered.
        num_workers: loader processes; 0 reads in this one.
        split: what the split is called in errors.
    """

    dataset: Any
    _: KW_ONLY
    target_key: str = "target"
    collate_fn: Callable[[list[Any]], Any] | None = None
    positions: Tensor | None = None
    device: torch.device = torch.device("cpu")
    num_workers: int = 0
    split: str = "train"

    def __post_init__(self) -> None:
        for method in ("__len__", "__getitem__"):
            if not hasattr(self.dataset, method) and not isinstance(self.dataset, EpochDataset):
                raise InputError(
                    f"{self.split} dataset",
                    f"must have {method}",
                    type(self.dataset).__name__,
                    hint="a stream without it goes into an IterableSource",
                )
        if not self.num_examples:
            raise InputError(f"{self.split} dataset", "must hold at least one example")
        if self.num_workers < 0:
            raise InputError("num_workers", "must be >= 0", self.num_workers)

    @property
    def num_examples(self) -> int:
        """How many examples the split has."""
        return len(self.dataset) if self.positions is None else len(self.positions)

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
            index_batches: int64 CPU tensors of shape (n,); read two ahead for each loader process.
            epoch: number of the pass over the data.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.

        Raises:
            InputError: if augmentation is asked for on a dataset without `item`, an index lies
                outside of the split, or an example cannot be read (the error names it).
        """
        if not isinstance(self.dataset, EpochDataset):
            refuse_augmentation(
                augmentation, thing="a plain Dataset", hint="augment in your Dataset"
            )
        reader = _BatchReader(
            dataset=self.dataset,
            target_key=self.target_key,
            collate_fn=self.collate_fn,
            split=self.split,
            draws=(seed, epoch),
            augmentation=augmentation,
        )
        return self._loaded(index_batches, reader)

    def subset(self, indices: Tensor) -> StreamedSource:
        """A source of only these examples, renumbered from 0 in the order given.

        Draws and errors go by the dataset's own numbers.

        Args:
            indices: int64, shape (n,), n >= 1.

        Raises:
            InputError: if there are none or one lies outside of the split.
        """
        if not len(indices):
            raise InputError(f"{self.split} subset", "must hold at least one example")
        return replace(self, positions=self._positions_of(indices.cpu()))

    def to(self, device: torch.device, *, num_workers: int = 0) -> StreamedSource:
        """The same examples delivered on `device`.

        Args:
            device: where to.
            num_workers: loader processes; 0 reads in this one.
        """
        return replace(self, device=device, num_workers=num_workers)

    def _loaded(self, index_batches: Iterable[Tensor], reader: _BatchReader) -> Iterator[Batch]:
        asked: deque[Tensor] = deque()

        def sampled() -> Iterator[list[int]]:
            for indices in index_batches:
                asked.append(indices)
                # A list, as tensors would travel to the processes through shared-memory files.
                yield self._positions_of(indices).tolist()

        # The loader draws a number when it starts: not from the global generator.
        generator = torch.Generator().manual_seed(mixed_key(*reader.draws, _LOADER_STREAM))
        loader: DataLoader[Any] = DataLoader(
            reader,
            batch_size=None,
            sampler=_Sampled(sampled),
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            generator=generator,
        )
        for loaded in loader:
            if isinstance(loaded, _Failure):
                raise loaded.as_error()
            inputs, targets = loaded
            yield Batch(
                to_device(inputs, self.device), to_device(targets, self.device), asked.popleft()
            )

    def _positions_of(self, indices: Tensor) -> Tensor:
        lowest, highest = (int(value) for value in indices.aminmax())
        if lowest < 0 or highest >= self.num_examples:
            raise InputError(
                f"example index of {self.split}",
                f"must lie in [0, {self.num_examples})",
                lowest if lowest < 0 else highest,
            )
        return indices if self.positions is None else self.positions[indices]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    """An InputError on its way out of a loader process, which can only send plain values."""

    thing: str
    rule: str
    cause: str | None = None
    hint: str = ""

    def as_error(self) -> InputError:
        if self.cause is None:
            return InputError(self.thing, self.rule, hint=self.hint)
        return InputError(self.thing, self.rule, self.cause, hint=self.hint)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The index batches in the form a DataLoader asks for."""

    start: Callable[[], Iterator[list[int]]]

    def __iter__(self) -> Iterator[list[int]]:
        return self.start()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _BatchReader(Dataset[Any]):
    """Reads and collates whole batches; what a loader process holds."""

    dataset: Any
    target_key: str
    collate_fn: Callable[[list[Any]], Any] | None
    split: str
    draws: tuple[int, int]
    augmentation: Augmentation | None

    def __getitem__(self, positions: list[int]) -> Any:
        seed, epoch = self.draws
        items = []
        with _generators_put_back():
            for position in positions:
                seed_item(seed, epoch, position)
                try:
                    items.append(self._item(position, seed, epoch))
                except InputError as error:
                    return _Failure(thing=error.thing, rule=_without_thing(error))
                except Exception as error:  # whatever the dataset of a user raises
                    return _Failure(
                        thing=f"{self.split} dataset",
                        rule=f"must give example {position}",
                        cause=f"{type(error).__name__}: {error}",
                    )
            # A collation that draws (masking, say) depends on the batch, but on nothing else.
            _seed_generators(mixed_key(seed, epoch, _COLLATE_STREAM, positions[0]))
            return self._collated(items, positions)

    def _item(self, position: int, seed: int, epoch: int) -> Any:
        if isinstance(self.dataset, EpochDataset):
            return self.dataset.item(
                position, epoch=epoch, seed=seed, augmentation=self.augmentation
            )
        item = self.dataset[position]
        if self.collate_fn is None:
            split_item(item, target_key=self.target_key, thing=f"{self.split} example {position}")
        return item

    def _collated(self, items: list[Any], positions: list[int]) -> Any:
        collate = default_collate if self.collate_fn is None else self.collate_fn
        thing = f"{self.split} batch"
        try:
            return split_item(collate(items), target_key=self.target_key, thing=thing)
        except InputError as error:
            return _Failure(thing=error.thing, rule=_without_thing(error))
        except Exception as error:  # default_collate raises many kinds
            return _Failure(
                thing=thing,
                rule=f"of examples {_shortened(positions)} must be collated",
                cause=f"{type(error).__name__}: {error}",
                hint="give a collate_fn",
            )


def _unchanged(batch: Any) -> Any:
    return batch


def _without_thing(error: InputError) -> str:
    return str(error).removeprefix(error.thing).lstrip()


def _shortened(positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:4]))
    return shown if len(positions) <= 4 else f"{shown}, ..."


def seed_item(seed: int, epoch: int, position: int) -> None:
    """Seed the generators of torch, numpy and Python for one example of one epoch.

    Args:
        seed: the run's seed.
        epoch: number of the pass over the data.
        position: the example's number in its data set.
    """
    _seed_generators(mixed_key(seed, epoch, _ITEM_STREAM, position))


def _seed_generators(key: int) -> None:
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - the global one is what transforms use


@contextmanager
def _generators_put_back() -> Iterator[None]:
    of_torch = torch.default_generator.get_state()
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
