"""Five tasks of different kind on which a plan is judged, each with a present recipe and a target.

A present recipe is what a user may well have: a usual batch size and lr of the field, not tuned.
Its duration only bounds it; its lr is constant (after a warm-up, for the GPT). Targets are judged
on validation and were set so that a good setting takes between some seconds and half a minute on
one thread.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from anybatch import (
    AdamSettings,
    AdamWSettings,
    Augmentation,
    ClipGlobalNorm,
    ComputeSettings,
    Constant,
    InputError,
    ModelSettings,
    Recipe,
    Schedules,
    SGDSettings,
    Stopping,
    Target,
    Task,
    Warmup,
    epochs,
    examples,
    load_task,
)
from anybatch.data.catalog import find_data_root
from anybatch.data.digits import load_digits
from anybatch.data.draws import permutation
from anybatch.data.resident import ResidentSource
from anybatch.data.text import load_text
from anybatch.models.table import ModelShape, build_model
from benchmarks.harness import TrialSkippedError

__all__ = ["CASES", "PlanCase", "cifar_jpeg", "digits", "mnist", "regression", "text"]

_SPLIT_SEED = 2026  # of the parts of a data set that are taken here, whatever a run's seed
_FP32 = ComputeSettings(threads=1, evaluation_batch_size=1000)
_BF16 = ComputeSettings(threads=1, precision="bf16", channels_last=True, evaluation_batch_size=500)


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """A task, what its user does at present, and what is searched for something better.

    Attributes:
        name: of the case.
        make_task: raises InputError where the data are not here.
        recipe: the present one, with the target.
        batch_sizes: of the grid, by factors of 4.
        scale_seconds: about what a good setting takes to the target; the grid's rounds and the
            first evaluation are shares of it.
    """

    name: str
    make_task: Callable[[], Task]
    recipe: Recipe
    batch_sizes: tuple[int, ...]
    scale_seconds: float

    def task(self) -> Task:
        """The task; its data are read once in a process.

        Raises:
            TrialSkippedError: its data are not here.
        """
        try:
            return self.make_task()
        except InputError as error:
            raise TrialSkippedError(str(error)) from None

    @property
    def target(self) -> Target:
        """What is to be reached, on validation."""
        target = self.recipe.stopping.target
        assert target is not None
        return target

    @property
    def present_batch_size(self) -> int:
        """Of the present recipe."""
        assert isinstance(self.recipe.batch_size, int)
        return self.recipe.batch_size


# --- tasks --------------------------------------------------------------------------------------


@functools.cache
def digits() -> Task:
    """All 1,797 digits: 797 to train, 1,000 to validate; an MLP with 4,096 hidden units."""
    splits = load_digits()
    order = permutation(1797, seed=_SPLIT_SEED, epoch=0)
    parts = [splits.train, splits.test]
    held = [part for part in parts if isinstance(part, ResidentSource)]
    pixels = torch.cat([torch.as_tensor(part.inputs) for part in held])
    labels = torch.cat([torch.as_tensor(part.targets) for part in held])
    whole = ResidentSource.from_arrays(pixels, labels, normalization=held[0].normalization)
    shape = ModelShape(input_shape=splits.input_shape, num_outputs=splits.num_outputs)
    return Task(
        build_model=lambda: build_model("mlp", shape, width=4.0),
        train=whole.subset(order[:797]),
        validation=whole.subset(order[797:]),
        shape=shape,
        name="digits, 797 to train",
    )


@functools.cache
def mnist() -> Task:
    """MNIST, 54,000 to train, and 3,000 of the 6,000 others to validate."""
    whole = load_task("mnist")
    return Task(
        build_model=lambda: whole.new_model(ModelSettings(name="simple-cnn-lee")),
        train=whole.source("train"),
        validation=whole.source("validation").subset(torch.arange(3000)),
        shape=whole.shape,
        name="mnist",
    )


@functools.cache
def cifar_jpeg() -> Task:
    """12,000 of the JPEG copies of CIFAR-10 to train and 2,000 others to validate; ResNet-8."""
    whole = load_task("image-folder:cifar10-jpeg.tar.xz", image_size=32)
    train, validation = whole.source("train"), whole.source("validation")
    order = permutation(train.num_examples or 0, seed=_SPLIT_SEED, epoch=0)
    return Task(
        build_model=lambda: whole.new_model(ModelSettings(name="resnet8")),
        train=train.subset(order[:12_000]),
        validation=validation.subset(torch.arange(2000)),
        shape=whole.shape,
        name="cifar10-jpeg, 12,000 images",
    )


@functools.cache
def text() -> Task:
    """Windows of 32 characters; 1,000 of the validation part; a GPT of four layers."""
    splits = load_text(find_data_root(None)[0] / "tinyshakespeare.txt", context_length=32)
    shape = ModelShape(
        input_shape=splits.input_shape,
        num_outputs=splits.num_outputs,
        vocabulary_size=splits.vocabulary_size,
    )
    validation = splits.validation
    assert validation is not None
    return Task(
        build_model=lambda: build_model("gpt", shape, width=0.5),
        train=splits.train,
        validation=validation.subset(torch.arange(1000)),
        kind="language-modelling",
        shape=shape,
        name="text, windows of 32 characters",
    )


_INPUTS, _WAVES = 8, 6


@functools.cache
def regression() -> Task:
    """A fixed sum of waves over 8 inputs, with noise; 40,000 to train and 4,000 to validate."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    inputs = torch.rand(44_000, _INPUTS, generator=generator) * 2 - 1
    directions = torch.randn(_INPUTS, _WAVES, generator=generator)
    phases = torch.rand(_WAVES, generator=generator) * 2 * math.pi
    signal = torch.sin(inputs @ directions * 1.5 + phases).sum(1)
    signal = (signal - signal.mean()) / signal.std()
    targets = signal + 0.1 * torch.randn(len(signal), generator=generator)
    return Task(
        build_model=_regression_model,
        train=(inputs[:40_000], targets[:40_000, None]),
        validation=(inputs[40_000:], targets[40_000:, None]),
        kind="regression",
        name="sum of waves",
    )


def _regression_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(_INPUTS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )


# --- cases --------------------------------------------------------------------------------------


def _stopping(target: str, every: int) -> Stopping:
    return Stopping(target=Target.parse(target), evaluate_every=examples(every))


CASES: tuple[PlanCase, ...] = (
    PlanCase(
        name="digits-mlp",
        make_task=digits,
        recipe=Recipe(
            optimizer=SGDSettings(lr=0.01, momentum=0.9),
            batch_size=32,
            duration=epochs(400),
            augmentation=Augmentation(crop_padding=1, padding_mode="zero"),
            stopping=_stopping("loss<=0.05", 1600),
            compute=_FP32,
        ),
        batch_sizes=(2, 8, 32, 128, 512),
        scale_seconds=4.0,
    ),
    PlanCase(
        name="regression-adam",
        make_task=regression,
        recipe=Recipe(
            optimizer=AdamSettings(lr=1e-3),
            batch_size=256,
            duration=epochs(200),
            stopping=_stopping("loss<=0.0135", 20_000),
            compute=_FP32,
        ),
        batch_sizes=(8, 32, 128, 512, 2048),
        scale_seconds=8.0,
    ),
    PlanCase(
        name="mnist-cnn",
        make_task=mnist,
        recipe=Recipe(
            optimizer=SGDSettings(lr=0.01, momentum=0.9),
            batch_size=128,
            duration=epochs(30),
            stopping=_stopping("accuracy>=0.985", 4000),
            compute=_BF16,
        ),
        batch_sizes=(8, 32, 128, 512, 2048),
        scale_seconds=10.0,
    ),
    PlanCase(
        name="text-gpt",
        make_task=text,
        recipe=Recipe(
            optimizer=AdamWSettings(lr=1e-3, beta2=0.99, weight_decay=0.1),
            batch_size=64,
            duration=epochs(20),
            schedules=Schedules(lr=Warmup(duration=examples(6400), into=Constant())),
            gradient=(ClipGlobalNorm(max_norm=1.0),),
            stopping=_stopping("loss<=2.2", 1600),
            compute=_FP32,
        ),
        batch_sizes=(2, 8, 32, 128, 512),
        scale_seconds=13.0,
    ),
    PlanCase(
        name="cifar-resnet8",
        make_task=cifar_jpeg,
        recipe=Recipe(
            optimizer=SGDSettings(lr=0.1, momentum=0.9, weight_decay=5e-4),
            batch_size=128,
            duration=epochs(60),
            stopping=_stopping("loss<=1.5", 3000),
            compute=_BF16,
        ),
        batch_sizes=(8, 32, 128, 512, 2048),
        scale_seconds=15.0,
    ),
)
"""Every case, quick ones first."""
