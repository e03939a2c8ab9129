"""Items: what a data set gives for one example, and nests of tensors.

A nest is a tensor, or a tuple, list or dict of nests. Other leaves (strings, say) pass unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.recipe import Augmentation

__all__ = [
    "augments",
    "map_tensors",
    "refuse_augmentation",
    "split_item",
    "tensors_of",
    "to_device",
]


def split_item(item: Any, *, target_key: str, thing: str) -> tuple[Any, Any]:
    """Part an item, or a collated batch of items, into inputs and targets.

    Args:
        item: a tuple or list whose last element is the target (two elements: the first is the
            input; more: the others are a tuple of inputs), or a dict that holds `target_key`
            (the other entries are the inputs).
        target_key: where a dict holds the target.
        thing: what the item is called in an error.

    Returns:
        The inputs and the targets.

    Raises:
        InputError: if the item is of neither form.

    Example:
        >>> split_item(("image", 3), target_key="target", thing="example 0")
        ('image', 3)
        >>> split_item(("left", "right", 3), target_key="target", thing="example 0")
        (('left', 'right'), 3)
    """
    if isinstance(item, Mapping):
        if target_key not in item or len(item) < 2:
            raise InputError(
                thing,
                f"must hold inputs and {target_key!r}",
                f"the keys {', '.join(map(str, item))}",
                hint="name the target with target_key",
            )
        return {key: value for key, value in item.items() if key != target_key}, item[target_key]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise InputError(thing, "must be an (inputs, target) tuple or a dict", type(item).__name__)
    return (item[0] if len(item) == 2 else tuple(item[:-1])), item[-1]


def map_tensors(function: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """The same nest with `function` applied to each tensor.

    Args:
        function: what to do with a tensor.
        nest: a tensor, or a tuple, list or dict of nests.
    """
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        return {key: map_tensors(function, value) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_tensors(function, value) for value in nest))
    if isinstance(nest, tuple | list):
        return tuple(map_tensors(function, value) for value in nest)
    return nest


def tensors_of(nest: Any) -> list[Tensor]:
    """The tensors of a nest, in order.

    Args:
        nest: a tensor, or a tuple, list or dict of nests.
    """
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, Mapping):
        nest = tuple(nest.values())
    if isinstance(nest, tuple | list):
        return [tensor for value in nest for tensor in tensors_of(value)]
    return []


def to_device(nest: Any, device: torch.device) -> Any:
    """The same nest with each tensor on `device`; copies from pinned memory do not wait.

    Args:
        nest: a tensor, or a tuple, list or dict of nests.
        device: where to.
    """
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), nest)


def augments(augmentation: Augmentation | None) -> bool:
    """Whether anything is asked for that is done to one example by itself.

    Args:
        augmentation: the settings; None for evaluation.
    """
    # The padding mode alone asks for nothing.
    return augmentation is not None and bool(
        augmentation.crop_padding
        or augmentation.flip != "none"
        or augmentation.cutout_size
        or augmentation.random_resized_crop
        or augmentation.erasing is not None
    )


def refuse_augmentation(augmentation: Augmentation | None, *, thing: str, hint: str) -> None:
    """Raise if augmentation is asked for where it cannot be had.

    Args:
        augmentation: the settings; None for evaluation.
        thing: what it is asked of.
        hint: what to do instead.

    Raises:
        InputError: if anything is asked for.
    """
    if augments(augmentation):
        raise InputError(
            "augmentation", f"must be none: {thing} cannot be augmented here", hint=hint
        )
