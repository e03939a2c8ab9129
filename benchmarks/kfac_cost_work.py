"""Work of K-FAC in multiply-adds, from the blocks and the sizes of the images that they see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anybatch.kfac.blocks import FisherBlock
from anybatch.kfac.patches import convolution_input_multiply_adds

__all__ = ["REFRESHES", "Work", "image_sizes", "predicted_ratio", "predicted_work"]

REFRESHES = {"1/1": (1.0, 1.0), "10/10": (0.1, 0.1), "10/100": (0.1, 0.01)}
"""Shares of the updates with new statistics, and with new inverses."""


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-adds of one update, by phase.

    Attributes:
        forward_backward: of the layers with weights.
        statistics: where they are due.
        inversion: of all factors, where it is due.
        precondition: of every update.
    """

    forward_backward: int
    statistics: int
    inversion: int
    precondition: int


def image_sizes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Sizes of the images that each convolution gets, by qualified name.

    Args:
        model: run once, without a graph and in evaluation mode.
        example: one input, (1, ...).
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            sizes[name] = tuple(inputs[0].shape[2:])

        return module.register_forward_pre_hook(note)

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [watch(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    was_training = model.training
    with torch.no_grad():
        model.eval()(example)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return sizes


def predicted_work(
    blocks: Sequence[FisherBlock], sizes: Mapping[str, tuple[int, ...]], *, batch_size: int
) -> Work:
    """Multiply-adds of one update; linear layers without further positions, norms left out.

    Forward and backward: 3 |W| an output position. A: the cheaper way of
    `add_convolution_input_sum`; G: outputs^2 a position. Inversion: n^3 / 2 + n^3 / 2 for the
    Cholesky factor and the inverse. Preconditioning of m x n: m n (m + n).

    Args:
        blocks: of the model.
        sizes: of images, by block name.
        batch_size: examples of one update.
    """
    total = [0, 0, 0, 0]
    for block in blocks:
        if block.kind not in ("linear", "convolution") or block.weight is None:
            continue
        first, last = block.factors
        module, positions, statistics = block.modules[0], 1, batch_size * first.side**2
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            positions = math.prod(_outputs(module, sizes[block.name]))
            statistics = convolution_input_multiply_adds(
                module, sizes[block.name], examples=batch_size
            )
        statistics += batch_size * positions * last.groups * last.side**2
        inversion = sum(f.groups * f.side**3 for f in block.factors if not f.diagonal)
        preconditioning = first.groups * first.side * last.side * (first.side + last.side)
        passes = 3 * batch_size * positions * block.weight.numel()
        for index, work in enumerate((passes, statistics, inversion, preconditioning)):
            total[index] += work
    return Work(*total)


def _outputs(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, size: Sequence[int]) -> tuple[int, ...]:
    with torch.device("meta"):
        image = torch.empty(1, module.in_channels, *size)
        weight = torch.empty_like(module.weight)
    return tuple(module._conv_forward(image, weight, None).shape[2:])


def predicted_ratio(work: Work, refresh: str) -> float:
    """Time of an update beside SGD's, if every multiply-add took the same time.

    Args:
        work: of one update.
        refresh: of `REFRESHES`.

    Example:
        >>> predicted_ratio(Work(100, 50, 200, 10), "10/100")
        1.17
    """
    statistics, inversion = REFRESHES[refresh]
    more = statistics * work.statistics + inversion * work.inversion + work.precondition
    return 1 + more / work.forward_backward
