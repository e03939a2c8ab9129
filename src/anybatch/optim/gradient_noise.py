"""Noise on gradients, as a pure function of (seed, update, place of the parameter).

No generator of the process is touched, so every rank draws the same noise, and a resumed or
repeated update draws its own again. The numbers are those of the gradient's kind of device: a CPU
and a GPU draw different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["add_gradient_noise", "multiply_gradient_noise"]


@torch.no_grad()
def add_gradient_noise(
    parameters: Iterable[nn.Parameter], std: float, *, seed: int, update: int
) -> None:
    """Add normal noise to every element of every gradient, in place.

    g <- g + std n, n independent N(0, 1). Its length is about std sqrt(number of weights).

    Args:
        parameters: in their order; those with a gradient are changed.
        std: in the gradient's unit, >= 0.
        seed: any whole number.
        update: number of the update, from 0; each draws anew.

    Cost:
        One draw for each element, as many as the gradients in memory; no host synchronization.

    Collectives:
        None: every rank adds the same noise to the summed gradient.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.zeros(2)
        >>> add_gradient_noise([weight], std=0.1, seed=0, update=0)
        >>> first = weight.grad.clone()
        >>> weight.grad.zero_()
        tensor([0., 0.])
        >>> add_gradient_noise([weight], std=0.1, seed=0, update=0)
        >>> bool(first.abs().min() > 0), torch.equal(weight.grad, first)
        (True, True)

    Reference:
        Neelakantan et al. 2015, "Adding gradient noise improves learning for very deep networks",
        equation 1 (there std falls with the updates).
    """
    gradients, noise = _with_noise(parameters, seed, update)
    if gradients:
        torch._foreach_add_(gradients, noise, alpha=std)


@torch.no_grad()
def multiply_gradient_noise(
    parameters: Iterable[nn.Parameter], std: float, *, seed: int, update: int
) -> None:
    """Multiply every element of every gradient by a normal factor of mean 1, in place.

    g <- (1 + std n) g element by element, n independent N(0, 1).

    Args:
        parameters: in their order; those with a gradient are changed.
        std: of the factor, >= 0; Hoffer et al. take std^2 proportional to the batch size.
        seed: any whole number.
        update: number of the update, from 0; each draws anew.

    Cost:
        One draw for each element, as many as the gradients in memory; no host synchronization.

    Collectives:
        None: every rank multiplies the summed gradient by the same factors.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([0.0, 1.0])
        >>> multiply_gradient_noise([weight], std=0.5, seed=0, update=0)
        >>> weight.grad[0].item(), weight.grad[1].item() != 1.0
        (0.0, True)

    Reference:
        Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", section 4 (there the
        gradients of the examples are multiplied, each by a factor of its own).
    """
    gradients, noise = _with_noise(parameters, seed, update)
    if gradients:
        torch._foreach_addcmul_(gradients, gradients, noise, value=std)


def _with_noise(
    parameters: Iterable[nn.Parameter], seed: int, update: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients that there are, and as much standard normal noise."""
    gradients, noise = [], []
    generators: dict[torch.device, torch.Generator] = {}
    for place, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            continue
        device = gradient.device
        if device not in generators:
            generators[device] = torch.Generator(device)
        generator = generators[device].manual_seed(_key(seed, update, place))
        gradients.append(gradient)
        noise.append(
            torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype, device=device)
        )
    return gradients, noise


def _key(*parts: int) -> int:
    """Whole numbers mixed into one of 0 ... 2^64 - 1 of which every bit depends on all."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())
