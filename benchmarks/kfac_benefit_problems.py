"""What K-FAC is compared on: a deep autoencoder, and two small networks at two batch sizes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch import (
    ComputeSettings,
    InputError,
    ModelSettings,
    Recipe,
    SGDSettings,
    Task,
    load_task,
    updates,
)
from anybatch.models.table import ModelShape, build_model
from anybatch.recipe import Schedules
from anybatch.schedules import Warmup
from anybatch.task import SplitName
from benchmarks.harness import TrialSkippedError

__all__ = ["PROBLEMS", "Autoencoder", "Problem", "base_recipe", "load_problem", "problem_of"]

_ENCODER_SIDES = (1000, 500, 250)
_CODE_SIDE = 30
_CIFAR10_JPEG = "image-folder:cifar10-jpeg.tar.xz"  # below ANYBATCH_DATA
_MNIST_EXAMPLES, _CIFAR_EXAMPLES = 53_248, 10_240  # whole updates at every batch size
_VALIDATION_EXAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A task at a batch size, and how long one looks.

    Attributes:
        name: begins its trials' keys.
        title: in tables.
        task: "autoencoder", "mnist" or "cifar".
        batch_size: of an update.
        length: updates of each of SGD's tuning trainings; other trainings take at most as many,
            final ones twice as many.
        first: update of the first evaluation; the lr has risen linearly until then.
        precision: of the forward and backward pass.
        digits: of the watched value, after the point.
        fisher: that K-FAC measures; that of the labels shrinks with a regression's residuals.
    """

    name: str
    title: str
    task: Literal["autoencoder", "mnist", "cifar"]
    batch_size: int
    length: int
    first: int
    precision: Literal["fp32", "bf16"]
    digits: int
    fisher: Literal["empirical", "sampled"] = "empirical"


PROBLEMS = (
    Problem(
        name="autoencoder",
        title="deep autoencoder, MNIST, batch 1,000",
        task="autoencoder",
        batch_size=1000,
        length=480,
        first=20,
        precision="fp32",
        digits=5,
        fisher="sampled",
    ),
    Problem(
        name="cifar-2048",
        title="ResNet-8, CIFAR-10 as JPEG at 16 x 16, batch 2,048",
        task="cifar",
        batch_size=2048,
        length=80,
        first=5,
        precision="bf16",
        digits=4,
    ),
    Problem(
        name="mnist-2048",
        title="LeNet-5, MNIST, batch 2,048",
        task="mnist",
        batch_size=2048,
        length=320,
        first=5,
        precision="bf16",
        digits=4,
    ),
    Problem(
        name="cifar-256",
        title="ResNet-8, CIFAR-10 as JPEG at 16 x 16, batch 256",
        task="cifar",
        batch_size=256,
        length=240,
        first=20,
        precision="bf16",
        digits=4,
    ),
    Problem(
        name="mnist-256",
        title="LeNet-5, MNIST, batch 256",
        task="mnist",
        batch_size=256,
        length=800,
        first=20,
        precision="bf16",
        digits=4,
    ),
)


def problem_of(name: str) -> Problem:
    """The problem of this name.

    Args:
        name: of one of `PROBLEMS`.
    """
    return next(problem for problem in PROBLEMS if problem.name == name)


def base_recipe(problem: Problem) -> Recipe:
    """How a training goes, but for its optimizer, preconditioner, seed and length.

    Args:
        problem: that is trained.
    """
    return Recipe(
        optimizer=SGDSettings(lr=0.1),
        batch_size=problem.batch_size,
        micro_batch_size=min(problem.batch_size, 1000 if problem.task == "autoencoder" else 256),
        duration=updates(1),
        schedules=Schedules(lr=Warmup(duration=updates(problem.first))),
        compute=ComputeSettings(
            device="cpu",
            threads=1,
            precision=problem.precision,
            channels_last=problem.task != "autoencoder",
            evaluation_batch_size=250,
        ),
    )


# --- tasks --------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """784-1000-500-250-30-250-500-1000-784 with tanh, linear at the code and at the output.

    The layers of Hinton and Salakhutdinov (2006) at a share of their width.

    Args:
        width: share of the hidden sides, > 0; the code has 30 numbers at every width.
    """

    def __init__(self, width: float = 0.25) -> None:
        super().__init__()
        hidden = [round(width * side) for side in _ENCODER_SIDES]
        sides = [784, *hidden, _CODE_SIDE, *reversed(hidden), 784]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(sides)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (n, 784) pixels to as many."""
        middle, last = len(_ENCODER_SIDES), len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            pixels = layer(pixels)
            if number not in (middle, last):
                pixels = torch.tanh(pixels)
        return pixels


def load_problem(problem: Problem, cache: Path) -> Task:
    """The task of a problem.

    Args:
        problem: which.
        cache: file that keeps the small copies of the photographs.

    Raises:
        TrialSkippedError: its data are not under ANYBATCH_DATA.
    """
    try:
        if problem.task == "cifar":
            return _cifar_task(cache)
        return _autoencoder_task() if problem.task == "autoencoder" else _mnist_task()
    except InputError as error:
        raise TrialSkippedError(str(error)) from None


def _all_of(task: Task, split: SplitName, count: int) -> tuple[Tensor, Tensor]:
    """Some examples drawn once for all: those of an image folder stand class by class."""
    source = task.source(split)
    drawn = torch.randperm(source.num_examples or count, generator=torch.Generator().manual_seed(0))
    batch = next(iter(source.batches([drawn[:count].sort().values])))
    return batch.inputs, batch.targets


def _autoencoder_task() -> Task:
    """MNIST's pixels in [0, 1] from themselves; the loss is the squared error of a pixel."""
    divided = load_task("mnist")

    def pixels(split: SplitName, count: int) -> tuple[Tensor, Tensor]:
        images = _all_of(divided, split, count)[0].flatten(1)
        images = (images - images.min()) / (images.max() - images.min())
        return images, images

    return Task(
        build_model=Autoencoder,
        train=pixels("train", 54_000),
        validation=pixels("validation", _VALIDATION_EXAMPLES),
        kind="regression",
        name="autoencoder",
    )


def _mnist_task() -> Task:
    divided = load_task("mnist")
    return Task(
        build_model=lambda: divided.new_model(ModelSettings(name="lenet")),
        train=divided.source("train").subset(torch.arange(_MNIST_EXAMPLES)),
        validation=divided.source("validation").subset(torch.arange(_VALIDATION_EXAMPLES)),
        name="mnist",
    )


def _cifar_task(cache: Path) -> Task:
    """10,240 photographs halved to 16 x 16 pixels by the mean of 2 x 2."""
    if not cache.exists():
        divided = load_task(_CIFAR10_JPEG)
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        splits: tuple[tuple[SplitName, int], ...] = (
            ("train", _CIFAR_EXAMPLES),
            ("validation", _VALIDATION_EXAMPLES),
        )
        for split, count in splits:
            images, labels = _all_of(divided, split, count)
            parts[split] = (functional.avg_pool2d(images, 2), labels)
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(parts, cache)
    parts = torch.load(cache)
    shape = ModelShape(input_shape=(3, 16, 16), num_outputs=10)
    return Task(
        build_model=lambda: build_model("resnet8", shape),
        train=parts["train"],
        validation=parts["validation"],
        name="cifar",
    )
