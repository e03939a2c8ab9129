"""Tasks of reproductions: fixed parts of a data set at a fixed size, and small networks."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from anybatch.data.catalog import load_splits
from anybatch.data.draws import permutation
from anybatch.data.source import Source
from anybatch.data.splits import Splits
from anybatch.errors import InputError
from anybatch.models.geometry import scaled_channels
from anybatch.models.table import ModelShape, build_model
from anybatch.studies.reproductions.parts import Problem
from anybatch.task import Task

__all__ = ["Stage", "half_squared_distance", "new_network", "problem_task"]

Stage: TypeAlias = Literal["range", "tuning", "final"]

_ORDER_SEED = 2021  # of the parts alone: the same examples whatever the run's seed
_NAMES = {"mnist": "mnist", "digits": "digits", "cifar10-jpeg": "image-folder:cifar10-jpeg.tar.xz"}
_CHANNELS = (16, 32, 64)
_UNITS = 64
_NORM_GROUPS = 8
_Pair: TypeAlias = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=8)
def problem_task(problem: Problem, stage: Stage, data: str | None) -> Task:
    """The task of a trial; kept, so that the next trial need not read it again.

    Args:
        problem: what is learned.
        stage: "final" has the second validation set and the test split, the others the first.
        data: folder of data sets; None takes ANYBATCH_DATA, then ./data.

    Raises:
        InputError: the data are not there, or too few for the problem.
    """
    splits = _splits(problem.data, data)
    wanted = problem.train + 2 * problem.validation
    available = splits.train.num_examples or 0
    if wanted > available:
        raise InputError("problem", f"must take at most {available} training examples", wanted)
    order = permutation(available, seed=_ORDER_SEED, epoch=0)
    is_final = stage == "final"
    first = problem.train + is_final * problem.validation
    held_out = order[first : first + problem.validation]
    return Task(
        build_model=functools.partial(new_network, problem, splits),
        train=_images(splits.train, order[: problem.train], problem.side),
        validation=_images(splits.train, held_out, problem.side),
        test=_test_images(splits.test, problem) if is_final else None,
        loss=half_squared_distance if problem.loss == "squared" else None,
        name=f"{problem.data}-{problem.train}",
        reference={"reproduction": asdict(problem) | {"stage": stage}},
    )


@functools.lru_cache(maxsize=2)
def _splits(name: str, data: str | None) -> Splits:
    return load_splits(_NAMES[name], data=None if data is None else Path(data))


def _test_images(source: Source, problem: Problem) -> _Pair:
    count = min(problem.test or source.num_examples or 0, source.num_examples or 0)
    return _images(source, torch.arange(count), problem.side)


def _images(source: Source, indices: Tensor, side: int) -> _Pair:
    """Normalized images at the given size, and their classes."""
    batches = list(source.batches(iter(torch.split(indices, 1000))))
    images = torch.cat([_resized(batch.inputs, side) for batch in batches])
    return images, torch.cat([batch.targets for batch in batches])


def _resized(images: Tensor, side: int) -> Tensor:
    """Means of whole blocks of pixels, or every pixel repeated."""
    given = images.shape[-1]
    if given % side == 0:
        return F.avg_pool2d(images, given // side) if given > side else images
    if side % given:
        raise InputError("side", f"must be a whole multiple or part of {given}", side)
    return images.repeat_interleave(side // given, 2).repeat_interleave(side // given, 3)


def half_squared_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """|output - one-hot target|^2 / 2, per example: (n, C) and (n,) give (n,).

    Example:
        >>> half_squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
        tensor([2.])
    """
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return (outputs - wanted).square().sum(1) / 2


def new_network(problem: Problem, splits: Splits) -> nn.Module:
    """The network of a problem, with initial weights from torch's global generator."""
    shape = (splits.input_shape[0], problem.side, problem.side)
    outputs, width = splits.num_outputs, problem.width
    match problem.network:
        case "lenet" | "resnet8":
            model = ModelShape(input_shape=shape, num_outputs=outputs)
            return build_model(problem.network, model, width=width)
        case "tanh":
            units = scaled_channels(_UNITS, width)
            pixels = shape[0] * problem.side**2
            return nn.Sequential(
                nn.Flatten(), nn.Linear(pixels, units), nn.Tanh(), nn.Linear(units, units),
                nn.Tanh(), nn.Linear(units, outputs),
            )  # fmt: skip
        case "conv" | "conv-batch-norm" | "conv-group-norm":
            return _convolutions(problem.network, shape[0], outputs, width)


def _convolutions(kind: str, in_channels: int, outputs: int, width: float) -> nn.Sequential:
    """Three 3x3 convolutions, each with its norm, ReLU and maximum pooling; mean; linear."""
    layers: list[nn.Module] = []
    for published in _CHANNELS:
        channels = scaled_channels(published, width)
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1)]
        if kind == "conv-batch-norm":
            layers += [nn.BatchNorm2d(channels)]
        elif kind == "conv-group-norm":
            layers += [nn.GroupNorm(channels // _NORM_GROUPS or 1, channels)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, outputs)
    )
