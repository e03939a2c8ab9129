"""A penalized or a sharpness-aware gradient for a model in anybody's loop.

Each function stands in the place of `loss.backward()`; the formulas are in `gradient_penalty`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from anybatch.curvature.gradient_penalty import (
    central_difference_penalty,
    exact_penalty,
    forward_difference_penalty,
    sharpness_aware,
)
from anybatch.curvature.repeated_draws import Draws
from anybatch.errors import InputError

__all__ = ["penalized_backward", "sharpness_aware_backward"]


def penalized_backward(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    coefficient: float,
    method: Literal["forward", "central", "exact"] = "forward",
    epsilon: float = 0.01,
) -> Tensor:
    """Put the gradient of L + c |g|^2 into `.grad`, in the place of `loss.backward()`.

    The block is whatever batch `loss_of` looks at. It is called again at displaced weights: with
    the same random draws, and buffers (running statistics) keep what the first call made of them.

    Args:
        model: whose trainable parameters the loss depends on; `.grad` is replaced, not added to.
        loss_of: forward pass of one and the same batch: a scalar with its graph.
        coefficient: c, >= 0, of the squared norm; lr / 4 is what SGD's own steps imply.
        method: forward or central differences, or exact (not through a parallel wrapper).
        epsilon: Euclidean length of the displacement over all parameters, > 0.

    Returns:
        L, without the penalty, detached.

    Raises:
        InputError: a setting out of bounds, or a layer has no second derivative.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> inputs = torch.randn(8, 3)
        >>> loss = penalized_backward(model, lambda: model(inputs).square().mean(), coefficient=0.1)
        >>> loss.requires_grad, model.weight.grad.shape
        (False, torch.Size([1, 3]))
    """
    if method not in ("forward", "central", "exact"):
        raise InputError("method", "must be one of: forward, central, exact", method)
    again = _Closure(model, loss_of)
    loss, gradient = again.first()
    settings = {"coefficient": coefficient, "epsilon": epsilon}
    with again.buffers_kept():
        if method == "forward":
            found = forward_difference_penalty(
                gradient, again.gradient, again.parameters, **settings
            )
        elif method == "central":
            found = central_difference_penalty(
                gradient, again.gradient, again.parameters, **settings
            )
        else:
            with again.draws.repeated():
                found = exact_penalty(
                    gradient, [loss_of()], again.parameters, coefficient=coefficient
                )
    again.write(found)
    return loss


def sharpness_aware_backward(
    model: nn.Module, loss_of: Callable[[], Tensor], *, radius: float = 0.05, weight: float = 1.0
) -> Tensor:
    """Put SAM's gradient into `.grad`, in the place of `loss.backward()`; see `sharpness_aware`.

    Args:
        model: as in `penalized_backward`.
        loss_of: likewise.
        radius: Euclidean length of the displacement over all parameters, > 0.
        weight: of the displaced gradient, > 0.

    Returns:
        L at the weights themselves, detached.

    Raises:
        InputError: a setting out of bounds.
    """
    again = _Closure(model, loss_of)
    loss, gradient = again.first()
    with again.buffers_kept():
        found = sharpness_aware(
            gradient, again.gradient, again.parameters, radius=radius, weight=weight
        )
    again.write(found)
    return loss


class _Closure:
    """A model's gradient as often as it is asked for, with the same draws."""

    def __init__(self, model: nn.Module, loss_of: Callable[[], Tensor]) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers, self._loss_of = list(model.buffers()), loss_of
        self.draws = Draws(self.parameters[0].device if self.parameters else torch.device("cpu"))
        self._used: list[bool] = []

    def first(self) -> tuple[Tensor, list[Tensor]]:
        loss, gradient = self._backward()
        self._used = [p.grad is not None for p in self.parameters]
        return loss, gradient

    def gradient(self) -> list[Tensor]:
        with self.draws.repeated():
            return self._backward()[1]

    def _backward(self) -> tuple[Tensor, list[Tensor]]:
        for parameter in self.parameters:
            parameter.grad = None
        loss = self._loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        # Copies: a parallel wrapper may hand out the same memory in the next pass.
        return loss.detach(), [grad.detach().clone() for grad in grads]

    @contextmanager
    def buffers_kept(self) -> Iterator[None]:
        kept = [buffer.clone() for buffer in self._buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(self._buffers, kept, strict=True):
                    buffer.copy_(value)

    def write(self, gradient: list[Tensor]) -> None:
        for parameter, value, used in zip(self.parameters, gradient, self._used, strict=True):
            parameter.grad = value if used else None
