"""Arrays of a user: brought into torch, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from anybatch.data.items import tensors_of
from anybatch.errors import InputError

__all__ = ["as_tensors", "check_finite", "check_lengths"]

_NUMBERS_CHECKED_AT_ONCE: Final = 2**24


_SMALL_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32)


def as_tensors(nest: Any, thing: str, *, is_target: bool) -> Any:
    """The same nest with numpy arrays made torch tensors.

    Torch tensors are taken as they are. Numpy arrays share their memory where they can, but
    float64 becomes torch's default dtype. Whole-number targets of both become int64.

    Args:
        nest: a torch tensor or numpy array, or a tuple or dict of them; first dimension =
            examples.
        thing: what it is called in an error.
        is_target: whether whole numbers become int64.

    Raises:
        InputError: if anything else is in it, or no example.
    """
    if isinstance(nest, Mapping) and nest:
        return {
            key: as_tensors(value, f"{thing}[{key!r}]", is_target=is_target)
            for key, value in nest.items()
        }
    if isinstance(nest, tuple) and nest:
        return tuple(
            as_tensors(value, f"{thing}[{position}]", is_target=is_target)
            for position, value in enumerate(nest)
        )
    if isinstance(nest, np.ndarray):
        nest = _from_numpy(nest, thing, is_target=is_target)
    elif is_target and isinstance(nest, Tensor) and nest.dtype in _SMALL_INTEGERS:
        nest = nest.to(torch.int64)
    if not isinstance(nest, Tensor):
        raise InputError(
            thing,
            "must be a torch tensor or numpy array, or a tuple or dict of them",
            type(nest).__name__,
        )
    if nest.ndim == 0 or not len(nest):
        raise InputError(thing, "must hold at least one example", f"shape {tuple(nest.shape)}")
    return nest


def _from_numpy(array: np.ndarray, thing: str, *, is_target: bool) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise InputError(thing, "must be an array of numbers", array.dtype)
    # torch has no read-only tensors, no byte-swapped ones and no negative strides.
    native = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    tensor = torch.from_numpy(native)
    if tensor.dtype == torch.float64:
        return tensor.to(torch.get_default_dtype())
    if is_target and array.dtype.kind in "iu":
        return tensor.to(torch.int64)
    return tensor


def check_lengths(inputs: Any, targets: Any, split: str) -> None:
    """Raise if not all tensors have equally many examples.

    Args:
        inputs: a tensor, or a tuple or dict of tensors.
        targets: likewise.
        split: what the split is called in an error.

    Raises:
        InputError: if the lengths differ.
    """
    lengths = [len(tensor) for tensor in tensors_of((inputs, targets))]
    if len(set(lengths)) > 1:
        raise InputError(
            f"{split} inputs and targets",
            "must have equally many examples",
            " and ".join(map(str, lengths)),
        )


def check_finite(nest: Any, thing: str) -> None:
    """Raise if a float is infinite or not a number.

    Args:
        nest: a tensor, or a tuple or dict of tensors.
        thing: what it is called in an error.

    Raises:
        InputError: with the number of the first such example.
    """
    if isinstance(nest, Mapping):
        for key, value in nest.items():
            check_finite(value, f"{thing}[{key!r}]")
    elif isinstance(nest, tuple):
        for position, value in enumerate(nest):
            check_finite(value, f"{thing}[{position}]")
    elif nest.is_floating_point() and nest.numel():
        rows_at_once = max(1, _NUMBERS_CHECKED_AT_ONCE // max(1, nest[0].numel()))
        for first in range(0, len(nest), rows_at_once):
            rows = nest[first : first + rows_at_once]
            rows = rows.reshape(len(rows), -1)
            broken = ~rows.isfinite()
            if broken.any():
                row, column = broken.nonzero()[0].tolist()
                value = rows[row, column].item()
                raise InputError(thing, f"must be finite, example {first + row} holds {value}")
