"""Constraint: how long a preconditioned step may be, and what parameters without curvature take.

Everything stays on the device: no number is read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anybatch.recipe_preconditioner import KLBound, NoBound, StepBound

__all__ = ["first_order_factor", "fisher_products", "step_factor"]


def fisher_products(steps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """p^T g of each pair, (pairs,) in float32 or better: p^T F p, as F p = g.

    Args:
        steps: preconditioned gradients.
        gradients: before preconditioning, of the same shapes.
    """
    dtype = torch.promote_types(steps[0].dtype, torch.float32)
    products = [(p.to(dtype) * g.to(dtype)).sum() for p, g in zip(steps, gradients, strict=True)]
    return torch.stack(products)


def step_factor(products: Tensor, bound: StepBound, lrs: Tensor | None = None) -> Tensor:
    """What preconditioned gradients are multiplied by, 0-dim, in [0, 1].

    min(1, largest / sqrt(sum p^T g)) under a bound of the Fisher norm; under one of the divergence
    min(1, sqrt(largest / sum lr^2 p^T g)); 1 without a bound. 0, and no step, where that sum is not
    finite: products of gradients above 1e19 are not in float32.

    Args:
        products: p^T g of each layer, in units of the mean loss.
        bound: of the recipe.
        lrs: of each layer, for a bound of the divergence.

    Reference:
        Ba, Grosse, Martens (2017), section 5, for the divergence.
    """
    longest, total = math.inf, products.sum()
    if isinstance(bound, KLBound) and lrs is not None:
        longest, total = bound.largest**0.5, (lrs.square() * products).sum()
    elif not isinstance(bound, NoBound):
        longest = bound.largest
    # A total below 0 is rounding; the smallest number keeps 0 / 0 away.
    total = torch.where(torch.isfinite(total), total, torch.inf)
    length = total.clamp(min=0).sqrt().clamp(min=torch.finfo(total.dtype).tiny)
    return (longest / length).clamp(max=1.0).nan_to_num(nan=0.0)  # without a bound inf / inf


def first_order_factor(steps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """|p| / |g| over all preconditioned layers, 0-dim; 1 where g is 0 or squares are not finite.

    A parameter without curvature takes this multiple of its gradient, so that its step is as long
    for its gradient as those of the others are on the whole.
    """
    dtype = torch.promote_types(steps[0].dtype, torch.float32)
    lengths = [
        torch.stack([t.to(dtype).square().sum() for t in tensors]).sum().sqrt()
        for tensors in (steps, gradients)
    ]
    ratio = lengths[0] / lengths[1]  # finite squares have a finite ratio unless g is 0
    return torch.where(torch.isfinite(ratio), ratio, torch.ones_like(ratio))
