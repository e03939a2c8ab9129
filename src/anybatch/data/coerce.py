"""Whatever a user holds data in, as a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from anybatch.data.iterable import IterableSource
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Source
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError

__all__ = ["as_source"]

_ARRAYS = (Tensor, np.ndarray)


def as_source(
    data: Any, split: str, *, target_key: str = "target", num_examples: int | None = None
) -> Source:
    """The examples of `data` as a `Source`.

    Args:
        data: a Source; a pair (inputs, targets) of tensors or arrays (inputs may also be a tuple
            or dict of them); a TensorDataset; a map-style data set; a DataLoader in plain or
            shuffled order, of which data set and collation are taken; or an iterable of examples.
        split: its name, for messages.
        target_key: where an example that is a dict holds its target.
        num_examples: length of a stream, where it is known.

    Raises:
        InputError: none of these, empty, or a DataLoader that chooses its examples.
    """
    source = _as_source(data, split, target_key, num_examples)
    if source.num_examples == 0:
        raise InputError(split, "must hold at least one example")
    return source


def _as_source(data: Any, split: str, target_key: str, num_examples: int | None) -> Source:
    if isinstance(data, (ResidentSource, StreamedSource, IterableSource)):
        return data
    collate: Callable[[list[Any]], Any] | None = None
    if isinstance(data, DataLoader):
        _check_loader(data, split)
        collate = None if data.collate_fn is default_collate else data.collate_fn
        data = data.dataset
    if isinstance(data, TensorDataset) and collate is None:
        *inputs, targets = data.tensors
        return _resident(inputs[0] if len(inputs) == 1 else tuple(inputs), targets, split)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], _ARRAYS):
        return _resident(data[0], data[1], split)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], (list, tuple)):
        rule = "must hold tensors or arrays where it is a pair (inputs, targets)"
        raise InputError(split, rule, f"a {type(data[1]).__name__}", hint="use numpy.array")
    is_stream = isinstance(data, IterableDataset)
    is_map = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if is_map and not is_stream and not isinstance(data, Mapping):
        return StreamedSource(dataset=data, collate_fn=collate, target_key=target_key, split=split)
    if is_stream or isinstance(data, Iterable) or callable(data):
        return IterableSource(
            data,
            collate_fn=collate,
            target_key=target_key,
            num_examples=num_examples,
            split=split,
        )
    rule = "must be (inputs, targets), a Dataset, a DataLoader or an iterable of examples"
    raise InputError(split, rule, type(data).__name__)


def _check_loader(loader: DataLoader[Any], split: str) -> None:
    """Refuse a DataLoader that does more than to visit each example once."""
    if isinstance(loader.dataset, IterableDataset):
        return
    sampler = loader.sampler
    plain = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not plain or type(loader.batch_sampler) is not BatchSampler:
        rule = "must be a DataLoader with torch's sequential or shuffled order"
        hint = "give torch.utils.data.Subset(...) or the Dataset itself"
        got = type(sampler if not plain else loader.batch_sampler).__name__
        raise InputError(split, rule, got, hint=hint)


def _resident(inputs: Any, targets: Any, split: str) -> Source:
    return ResidentSource.from_arrays(inputs, targets, split=split)
