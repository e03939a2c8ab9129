"""Gradient penalties: by differences of gradients, by the exact second derivative; SAM beside them.

The gradient of L + c |g|^2, g = dL/dw, is g + 2 c H g. With u = g / |g| and a displacement e:

    forward  g + 2 c |g| / e       (g(w + e u) - g(w))          error O(e)
    central  g + 2 c |g| / (2 e)   (g(w + e u) - g(w - e u))    error O(e^2)
    exact    g + 2 c H g           by double backward
    SAM      (1 - a) g + a g(w + r u), the forward difference of the penalty a r |g| (not squared)

so the forward difference is SAM with a share a = 2 c |g| / e that grows with the gradient.
Papers and codes differ by factors of the coefficient: here it is c in c |g|^2, with no 1/2.

All is pure maths on lists of tensors and a function that gives the gradient at the weights as they
stand; `penalized_backward` does it for a model in anybody's loop. Weights are displaced in place
and put back bit for bit from a copy, also after an exception; nothing is read by the host.

Reference: Geiping et al. (2022), Stochastic training is not necessary for generalization, section
3.3; Karakida et al. (2023), Understanding gradient regularization in deep learning; Foret et al.
(2021), Sharpness-aware minimization; Zhao, Zhang, Hu (2022), Penalizing gradient norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from anybatch.curvature.hvp import flat, hessian_vector_product
from anybatch.errors import InputError

__all__ = [
    "central_difference_penalty",
    "exact_penalty",
    "forward_difference_penalty",
    "global_norm",
    "sharpness_aware",
]

GradientAt: TypeAlias = Callable[[], list[Tensor]]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over every element of every tensor, a scalar on their device.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


@torch.no_grad()
def forward_difference_penalty(
    gradient: Sequence[Tensor],
    gradient_at: GradientAt,
    parameters: Sequence[Tensor],
    *,
    coefficient: float,
    epsilon: float,
) -> list[Tensor]:
    """The gradient of L + c |g|^2 by a forward difference: g + 2 c |g| / e (g(w + e u) - g).

    Exact up to e / 2 times the third derivative along u; on a quadratic exact. Where the loss has
    kinks the result depends on e, which is then a setting with an effect of its own.

    Args:
        gradient: g at the present weights, one tensor for each parameter; kept as it is.
        gradient_at: the gradient at the weights as they stand when it is called, new tensors, with
            the same draws (dropout) as `gradient` had.
        parameters: of the loss; displaced and put back.
        coefficient: c, >= 0, of the squared norm.
        epsilon: e, Euclidean length of the displacement over all parameters, > 0.

    Returns:
        New tensors, in the gradient's form.

    Raises:
        InputError: epsilon or coefficient out of bounds.

    Cost:
        One gradient more; a copy of the weights.

    Example:
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> slope = lambda: [torch.tensor([2.0, 6.0], dtype=torch.float64) * w]  # L = w0^2 + 3 w1^2
        >>> [g] = forward_difference_penalty(slope(), slope, [w], coefficient=0.5, epsilon=0.01)
        >>> [round(float(x), 9) for x in g]  # 2 + 2 * 2, 12 + 6 * 12
        [6.0, 84.0]
    """
    _check(coefficient=coefficient, epsilon=epsilon)
    norm = global_norm(gradient)
    with _displaced(parameters, gradient, epsilon / _not_zero(norm)):
        displaced = _called(gradient_at)
    return _towards(gradient, displaced, (2 * coefficient / epsilon) * norm)


@torch.no_grad()
def central_difference_penalty(
    gradient: Sequence[Tensor],
    gradient_at: GradientAt,
    parameters: Sequence[Tensor],
    *,
    coefficient: float,
    epsilon: float,
) -> list[Tensor]:
    """The gradient of L + c |g|^2 by a central difference, error O(e^2).

    g + 2 c |g| / (2 e) (g(w + e u) - g(w - e u)).

    Args:
        gradient: as in `forward_difference_penalty`.
        gradient_at: likewise.
        parameters: likewise.
        coefficient: likewise.
        epsilon: likewise.

    Returns:
        New tensors, in the gradient's form.

    Raises:
        InputError: epsilon or coefficient out of bounds.

    Cost:
        Two gradients more; a copy of the weights.
    """
    _check(coefficient=coefficient, epsilon=epsilon)
    norm = global_norm(gradient)
    length = epsilon / _not_zero(norm)
    with _displaced(parameters, gradient, length):
        ahead = _called(gradient_at)
    with _displaced(parameters, gradient, -length):
        behind = _called(gradient_at)
    difference = torch._foreach_sub(ahead, behind)
    torch._foreach_mul_(difference, (coefficient / epsilon) * norm)
    torch._foreach_add_(difference, list(gradient))
    return list(difference)


def exact_penalty(
    gradient: Sequence[Tensor],
    losses: Iterable[Tensor],
    parameters: Sequence[Tensor],
    *,
    coefficient: float,
) -> list[Tensor]:
    """The gradient of L + c |g|^2 by double backward: g + 2 c H g.

    Args:
        gradient: g at the present weights, one tensor for each parameter; kept as it is.
        losses: scalars with their graphs, together L, with the same draws as `gradient` had; one
            graph is alive at a time.
        parameters: that require gradients, each one once.
        coefficient: c, >= 0, of the squared norm.

    Returns:
        New tensors, in the gradient's form.

    Raises:
        InputError: coefficient out of bounds, or a layer has no second derivative.

    Cost:
        About twice a forward and backward pass, and twice its memory.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = lambda: w[0] ** 2 + 3 * w[1] ** 2
        >>> exact_penalty(torch.autograd.grad(loss(), [w]), [loss()], [w], coefficient=0.5)
        [tensor([ 6., 84.])]
    """
    _check(coefficient=coefficient)
    product = hessian_vector_product(losses, parameters, flat(gradient))
    pieces = torch.split(product, [tensor.numel() for tensor in gradient])
    shaped = [p.view_as(g) for p, g in zip(pieces, gradient, strict=True)]
    with torch.no_grad():
        return list(torch._foreach_add(list(gradient), shaped, alpha=2 * coefficient))


@torch.no_grad()
def sharpness_aware(
    gradient: Sequence[Tensor],
    gradient_at: GradientAt,
    parameters: Sequence[Tensor],
    *,
    radius: float,
    weight: float = 1.0,
) -> list[Tensor]:
    """(1 - a) g + a g(w + r g / |g|): SAM at a = 1, else the penalty a r |g| of the norm.

    Args:
        gradient: as in `forward_difference_penalty`.
        gradient_at: likewise.
        parameters: likewise.
        radius: r, Euclidean length of the displacement over all parameters, > 0.
        weight: a, of the displaced gradient, > 0.

    Returns:
        New tensors, in the gradient's form.

    Raises:
        InputError: radius or weight out of bounds.

    Cost:
        One gradient more; a copy of the weights.
    """
    _check(epsilon=radius, weight=weight)
    with _displaced(parameters, gradient, radius / _not_zero(global_norm(gradient))):
        displaced = _called(gradient_at)
    return displaced if weight == 1.0 else _towards(gradient, displaced, weight)


# --- parts -------------------------------------------------------------------------------------


def _check(*, coefficient: float = 0.0, epsilon: float = 1.0, weight: float = 1.0) -> None:
    if not coefficient >= 0:
        raise InputError("coefficient", "must be >= 0", coefficient)
    for name, value in (("epsilon", epsilon), ("weight", weight)):
        if not value > 0:
            raise InputError(name, "must be > 0", value)


def _not_zero(norm: Tensor) -> Tensor:
    """The norm, or a tiny number: a gradient of 0 displaces nothing."""
    return norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _called(gradient_at: GradientAt) -> list[Tensor]:
    with torch.enable_grad():
        return gradient_at()


@contextmanager
def _displaced(
    parameters: Sequence[Tensor], gradient: Sequence[Tensor], factor: Tensor
) -> Iterator[None]:
    """The parameters at w + factor g; afterwards put back bit for bit, not by subtraction."""
    copies = [parameter.detach().clone() for parameter in parameters]
    step = torch._foreach_mul(list(gradient), factor)
    try:
        torch._foreach_add_([p.detach() for p in parameters], step)
        del step
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in parameters], copies)


def _towards(
    gradient: Sequence[Tensor], displaced: Sequence[Tensor], weight: Tensor | float
) -> list[Tensor]:
    """G + weight (displaced - g), new tensors."""
    difference = torch._foreach_sub(list(displaced), list(gradient))
    torch._foreach_mul_(difference, weight)
    torch._foreach_add_(difference, list(gradient))
    return list(difference)
