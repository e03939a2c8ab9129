"""Kinds of parameters: weights of layers, biases, and what belongs to normalization."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["DividedParameters", "divide_by_kind"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: batch and instance norms


class DividedParameters(NamedTuple):
    """Trainable parameters by kind, each in the order of `model.parameters()`.

    Attributes:
        weights: matrices, filters, embeddings.
        biases: shifts of layers that are no normalization.
        norms: scales and shifts of normalization.
    """

    weights: list[nn.Parameter]
    biases: list[nn.Parameter]
    norms: list[nn.Parameter]


def divide_by_kind(model: nn.Module) -> DividedParameters:
    """Divide a model's trainable parameters into weights, biases and norms.

    1. All parameters of normalization layers are norms: batch, instance, layer, group and RMS norms
       of torch and what derives from them, and any layer with `num_features` and `running_mean`.
    2. In other layers, those called `bias`, `bias_...` or `..._bias` are biases.
    3. Others of at most one dimension are norms: the scale of a norm of your own, whatever its
       name, but also a PReLU's slope or a learned temperature. (The shift of a norm of your own is
       a bias if it is called so.)
    4. The rest are weights.

    A parameter that several layers share is counted once, as the first of them has it.

    Args:
        model: any module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
        >>> [len(kind) for kind in divide_by_kind(model)]
        [2, 2, 2]
    """
    divided = DividedParameters([], [], [])
    seen: set[int] = set()
    for module in model.modules():
        is_norm = _is_norm(module)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if is_norm:
                divided.norms.append(parameter)
            elif name == "bias" or name.startswith("bias_") or name.endswith("_bias"):
                divided.biases.append(parameter)
            elif parameter.dim() <= 1:
                divided.norms.append(parameter)
            else:
                divided.weights.append(parameter)
    return divided


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or (
        hasattr(module, "num_features") and hasattr(module, "running_mean")
    )
