"""Gradients scaled to a length."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["normalize_global_norm"]


@torch.no_grad()
def normalize_global_norm(parameters: Iterable[nn.Parameter], norm: float = 1.0) -> Tensor:
    """Scale all gradients together to a Euclidean norm of `norm`, up or down, in place.

    g <- g norm / |g|, |g| over every element of every gradient; a gradient of 0 stays 0. One that
    is not finite stays so. As lr g / |g| it is the step of normalized gradient descent.

    Args:
        parameters: those with a gradient count.
        norm: afterwards, in the gradient's unit, > 0.

    Returns:
        |g| before, a scalar on the first gradient's device.

    Cost:
        One pass over the gradients to measure and one to scale; no host synchronization.

    Collectives:
        None; gradients are already summed over ranks.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> normalize_global_norm([weight], norm=0.5).item()
        5.0
        >>> weight.grad
        tensor([0.3000, 0.4000])

    Reference:
        Nesterov 1984, "Minimization methods for nonsmooth convex and quasiconvex functions"; for
        networks Hazan, Levy, Shalev-Shwartz 2015, "Beyond convexity", algorithm 1.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    found = torch.nn.utils.get_total_norm(gradients)
    factor = torch.where(found == 0, 1.0, norm / found)
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, together in by_device.items():
        torch._foreach_mul_(together, factor.to(device))
    return found
