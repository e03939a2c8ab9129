"""Cases with which an LR range test is judged: a task, a recipe, a budget, a grid of constant lrs.

The truth of a case is what constant learning rates do within its budget; see `lr_range`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anybatch import (
    AdamSettings,
    AdamWSettings,
    ClipGlobalNorm,
    ComputeSettings,
    InputError,
    ModelSettings,
    Recipe,
    SGDSettings,
    Task,
    load_task,
    updates,
)
from benchmarks.harness import TrialSkippedError

__all__ = ["CASES", "QUADRATIC_EDGE", "Case"]

_BF16 = ComputeSettings(threads=1, precision="bf16", channels_last=True, evaluation_batch_size=500)
_FP32 = ComputeSettings(threads=1, evaluation_batch_size=1000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task and a recipe whose lr is to be found.

    Attributes:
        name: of the case.
        make_task: raises InputError where the data are not here.
        recipe: constant lr; its duration is the budget of a constant-lr training.
        exponents: the grid of learning rates is 2 to these powers.
        edge: where mathematics knows the edge of stability.
    """

    name: str
    make_task: Callable[[], Task]
    recipe: Recipe
    exponents: range
    edge: float | None = None

    def task(self) -> Task:
        """The task.

        Raises:
            TrialSkippedError: its data are not here.
        """
        try:
            return self.make_task()
        except InputError as error:
            raise TrialSkippedError(str(error)) from None


# --- a noisy quadratic --------------------------------------------------------------------------

_DIMENSIONS, _LARGEST = 20, 10.0
QUADRATIC_EDGE = 2.0 / _LARGEST
"""Of gradient descent on it: 2 / largest eigenvalue."""


class _Quadratic(nn.Module):
    """Loss of example x at weights w: sum of h w^2 / 2 + x w, with mean x = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(_DIMENSIONS))
        self.register_buffer("h", torch.logspace(-1, 0, _DIMENSIONS) * _LARGEST)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.get_buffer("h") * self.w**2).sum() + x @ self.w


def _quadratic() -> Task:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(2000, _DIMENSIONS, generator=generator)
    noise = torch.cat([half, -half])  # the noise of the whole set is exactly zero
    target = torch.zeros(len(noise))
    held_out = torch.cat([half[:500], -half[:500]])
    return Task(
        build_model=_Quadratic,
        train=(noise, target),
        validation=(held_out, torch.zeros(len(held_out))),
        kind="regression",
        loss=lambda outputs, targets: outputs,
        name="noisy quadratic",
    )


# --- the cases ----------------------------------------------------------------------------------


def _sgd(momentum: float = 0.9) -> SGDSettings:
    return SGDSettings(lr=0.1, momentum=momentum)


def _mnist(batch_size: int, budget: int, *, width: float = 0.5) -> Recipe:
    return Recipe(
        optimizer=_sgd(),
        model=ModelSettings(name="simple-cnn-shallue", width=width),
        batch_size=batch_size,
        duration=updates(budget),
        compute=_BF16,
    )


_DIGITS = Recipe(
    optimizer=_sgd(),
    model=ModelSettings(name="mlp", width=0.25),
    batch_size=32,
    duration=updates(400),
    compute=_FP32,
)

CASES: tuple[Case, ...] = (
    Case(
        name="noisy-quadratic-sgd",
        make_task=_quadratic,
        recipe=Recipe(optimizer=_sgd(0.0), batch_size=16, duration=updates(200), compute=_FP32),
        exponents=range(-11, 0),
        edge=QUADRATIC_EDGE,
    ),
    Case(
        name="digits-mlp-sgd",
        make_task=lambda: load_task("digits"),
        recipe=_DIGITS,
        exponents=range(-10, 2),
    ),
    Case(
        name="digits-mlp-adam",
        make_task=lambda: load_task("digits"),
        recipe=Recipe(
            optimizer=AdamSettings(lr=1e-3),
            model=_DIGITS.model,
            batch_size=32,
            duration=updates(400),
            compute=_FP32,
        ),
        exponents=range(-14, -1),
    ),
    Case(
        name="mnist-cnn-16",
        make_task=lambda: load_task("mnist"),
        recipe=_mnist(16, 600),
        exponents=range(-12, 0),
    ),
    Case(
        name="mnist-cnn-128",
        make_task=lambda: load_task("mnist"),
        recipe=_mnist(128, 400),
        exponents=range(-10, 2),
    ),
    Case(
        name="cifar-jpeg-resnet8",
        make_task=lambda: load_task("image-folder:cifar10-jpeg.tar.xz", image_size=32),
        recipe=Recipe(
            optimizer=_sgd(),
            model=ModelSettings(name="resnet8"),
            batch_size=128,
            duration=updates(300),
            compute=_BF16,
        ),
        exponents=range(-9, 3),
    ),
    Case(
        name="mnist-cnn-128-adam",
        make_task=lambda: load_task("mnist"),
        recipe=Recipe(
            optimizer=AdamSettings(lr=1e-3),
            model=ModelSettings(name="simple-cnn-shallue", width=0.5),
            batch_size=128,
            duration=updates(400),
            compute=_BF16,
        ),
        exponents=range(-15, -3),
    ),
    Case(
        name="mnist-cnn-2048",
        make_task=lambda: load_task("mnist"),
        recipe=_mnist(2048, 100, width=0.25),
        exponents=range(-7, 2),
    ),
    Case(
        name="text-gpt-adamw",
        make_task=lambda: load_task("text:tinyshakespeare.txt"),
        recipe=Recipe(
            optimizer=AdamWSettings(lr=1e-3, beta2=0.95, weight_decay=0.1),
            model=ModelSettings(name="gpt", width=0.25),
            batch_size=16,
            duration=updates(250),
            gradient=(ClipGlobalNorm(max_norm=1.0),),
            compute=_FP32,
        ),
        exponents=range(-12, -3),
    ),
)
"""Every case, quick ones first."""
