"""Written: gradients as the last step left them, known again without looking at their values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from torch import nn
from torch.utils.weak import TensorWeakRef

__all__ = ["WrittenGradients"]


@final
class WrittenGradients:
    """Gradients that were preconditioned in place, by identity and version of their memory.

    A backward pass, `zero_grad` and whatever else writes to a gradient changes one of the two.
    Nothing is kept alive and nothing waits for a device.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.ones(2)
        >>> written = WrittenGradients()
        >>> written.remember([weight])
        >>> written.are_untouched()
        True
        >>> (3 * weight).sum().backward()
        >>> written.are_untouched()
        False
    """

    def __init__(self) -> None:
        self._last: list[tuple[TensorWeakRef, TensorWeakRef, int]] = []

    def remember(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the gradients of these parameters as they are now, in the place of earlier ones."""
        self._last = [
            (TensorWeakRef(each), TensorWeakRef(each.grad), each.grad._version)
            for each in parameters
            if each.grad is not None
        ]

    def are_untouched(self) -> bool:
        """Whether there are any, and each is as it was."""
        return bool(self._last) and all(
            parameter is not None
            and parameter.grad is not None
            and parameter.grad is gradient()
            and parameter.grad._version == version
            for parameter, gradient, version in ((ref(), g, v) for ref, g, v in self._last)
        )

    def forget(self) -> None:
        """As if nothing had been written."""
        self._last = []
