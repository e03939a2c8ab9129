"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["clip_global_norm", "was_clipped"]


def clip_global_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together down to a Euclidean norm of at most `max_norm`, in place.

    g <- g min(1, max_norm / (|g| + 1e-6)), |g| over every element of every gradient (torch's
    formula).

    Args:
        parameters: those with a gradient count.
        max_norm: in the gradient's unit, > 0.

    Returns:
        |g| before clipping, a scalar on the gradients' device.

    Cost:
        One pass over the gradients to measure and one to scale; no host synchronization.

    Collectives:
        None; gradients are already summed over ranks.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_global_norm([weight], max_norm=1.0).item()
        5.0
        >>> weight.grad
        tensor([0.6000, 0.8000])

    Reference:
        Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks",
        algorithm 1.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def was_clipped(norm: Tensor, max_norm: float) -> Tensor:
    """Whether `clip_global_norm` scaled gradients down that had this norm, on the norm's device.

    True where max_norm / (|g| + 1e-6) < 1; a norm that is not a number was not clipped.

    Args:
        norm: before clipping, as `clip_global_norm` returns it.
        max_norm: in the gradient's unit, > 0.

    Example:
        >>> was_clipped(torch.tensor([0.5, 1.0, 2.0]), max_norm=1.0).tolist()
        [False, True, True]
    """
    return max_norm / (norm + 1e-6) < 1.0
