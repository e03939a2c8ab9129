"""Precision of a forward pass: autocast, and inputs in the model's floating-point type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from anybatch.data.items import map_tensors
from anybatch.recipe import ComputeSettings

__all__ = ["autocast", "cast_inputs"]


def autocast(compute: ComputeSettings, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass; weights stay in fp32 under "bf16"."""
    if compute.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def cast_inputs(nest: Any, compute: ComputeSettings) -> Any:
    """Inputs or targets with floating-point tensors in float64 where the model computes in it."""
    if compute.precision != "fp64":
        return nest
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, nest)
