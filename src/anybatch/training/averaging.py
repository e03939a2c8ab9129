"""Averages of the weights that move with a training, for evaluation and keeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anybatch.recipe import Average, ExponentialAverage, PolynomialAverage

__all__ = ["averaged_model"]


def averaged_model(model: nn.Module, averaging: Average | None) -> AveragedModel | None:
    """An average that begins at the model's present weights, buffers included; None: none.

    Args:
        model: whose weights are averaged.
        averaging: by which rule.
    """
    if averaging is None:
        return None
    average: AveragedModel
    rate_of = _rate_of(averaging)
    # Torch's count lies on the CPU; its first copy of the weights is step 1.
    moving = _moving(lambda: rate_of(int(average.n_averaged) + 1))
    average = AveragedModel(model, multi_avg_fn=moving, use_buffers=True)
    average.update_parameters(model)
    return average


def _rate_of(averaging: Average) -> Callable[[int], float]:
    """Weight of the newest weights in the t-th step of an average, t from 1."""
    match averaging:
        case ExponentialAverage(decay=decay):
            return lambda step: 1.0 - decay
        case PolynomialAverage(power=power):
            return lambda step: (power + 1.0) / (step + power)


def _moving(
    rate: Callable[[], float],
) -> Callable[[Sequence[Tensor], Sequence[Tensor], object], None]:
    """Average <- (1 - rate) average + rate value; whole numbers are copied, not averaged."""

    @torch.no_grad()
    def average(averages: Sequence[Tensor], values: Sequence[Tensor], count: object) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), rate())
        else:
            for kept, value in zip(averages, values, strict=True):
                kept.copy_(value)

    return average
