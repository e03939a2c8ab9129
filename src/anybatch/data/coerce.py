"""Whatever a user holds data in, as a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from anybatch.data.iterable import IterableSource
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Source
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError

__all__ = ["as_source"]

_ARRAYS = (Tensor, np.ndarray)


def as_source(data: Any, split: str) -> Source:
    """The examples of `data` as a `Source`.

    Args:
        data: a Source; a pair (inputs, targets) of tensors or arrays (inputs may also be a tuple
            or dict of them); a TensorDataset; a map-style data set; a DataLoader, of which data
            set, collation and workers are taken; or an iterable of examples.
        split: its name, for messages.

    Raises:
        InputError: none of these, or empty.
    """
    source = _as_source(data, split)
    if source.num_examples == 0:
        raise InputError(split, "must hold at least one example")
    return source


def _as_source(data: Any, split: str) -> Source:
    if isinstance(data, (ResidentSource, StreamedSource, IterableSource)):
        return data
    if isinstance(data, TensorDataset):
        *inputs, targets = data.tensors
        return _resident(inputs[0] if len(inputs) == 1 else tuple(inputs), targets, split)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], _ARRAYS):
        return _resident(data[0], data[1], split)
    collate: Callable[[list[Any]], Any] | None = None
    if isinstance(data, DataLoader):
        collate, data = data.collate_fn, data.dataset
    if isinstance(data, IterableDataset):
        return IterableSource(data, split=split)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping):
        return StreamedSource(dataset=data, collate_fn=collate, split=split)
    if isinstance(data, Iterable) or callable(data):
        return IterableSource(data, split=split)
    rule = "must be (inputs, targets), a Dataset, a DataLoader or an iterable of examples"
    raise InputError(split, rule, type(data).__name__)


def _resident(inputs: Any, targets: Any, split: str) -> Source:
    return ResidentSource.from_arrays(inputs, targets, split=split)
