"""Precision and memory format of a forward pass: autocast, and inputs as the model wants them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from anybatch.data.items import map_tensors
from anybatch.recipe import ComputeSettings

__all__ = ["autocast", "cast", "model_dtype"]


def model_dtype(compute: ComputeSettings) -> torch.dtype:
    """The floating-point type of weights and inputs."""
    return torch.float64 if compute.precision == "fp64" else torch.float32


def autocast(compute: ComputeSettings, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass; weights stay in fp32 under "bf16"."""
    if compute.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def cast(nest: Any, compute: ComputeSettings) -> Any:
    """Inputs or targets in the model's floating-point type, images in its memory format.

    Args:
        nest: a tensor, or a tuple or dict of tensors; whole numbers stay as they are.
        compute: precision and memory format.
    """
    if isinstance(nest, Tensor):
        return _as_wanted(nest, compute)
    return map_tensors(lambda tensor: _as_wanted(tensor, compute), nest)


def _as_wanted(tensor: Tensor, compute: ComputeSettings) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    dtype = model_dtype(compute)
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.dim() == 4:
        images = torch.channels_last if compute.channels_last else torch.contiguous_format
        return tensor.contiguous(memory_format=images)
    return tensor
