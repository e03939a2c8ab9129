"""The K-FAC article's recipes: their numbers, their schedules, both couplings of the momentum."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.course import recipe_clock
from anybatch.data.resident import Normalization, ResidentSource
from anybatch.models.table import ModelShape, build_model
from anybatch.recipe import (
    AdaptiveRefresh,
    FixedRefresh,
    KFACSettings,
    Recipe,
    RunningMixup,
    Schedules,
    SGDSettings,
    SGDWSettings,
)
from anybatch.recipe_file import load_recipe, shipped_recipe_names
from anybatch.records import EvalRecord
from anybatch.schedules import Schedule, resolve_schedule, updates
from anybatch.task import Task
from anybatch.training.build import build_optimizer
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.training import Training

IMAGENET = 1_281_167
DOCS = Path(__file__).parents[1] / "docs"

# batch: epochs, updates of the article, momentum, damping, alpha of mixup, lr at the epochs 0.5, 10
# and at the end, by lr (1 - (e - begin) / (end - begin))^power with the release's numbers.
RELEASED: dict[int, tuple[int, int, float, float, float, tuple[float, float, float]]] = {
    4096: (35, 10_948, 0.997, 2.5e-4, 0.4, (0.00818, 0.00101128, 6.99381e-08)),
    8192: (35, 5_474, 0.993, 2.5e-4, 0.4, (0.0125, 0.00277683, 2.97173e-06)),
    16384: (35, 2_737, 0.985, 2.5e-4, 0.4, (0.025, 0.00555366, 5.94346e-06)),
    32768: (45, 1_760, 0.97, 2.0e-4, 0.6, (0.03, 0.0151659, 7.56869e-06)),
    65536: (60, 1_173, 0.95, 1.5e-4, 0.6, (0.04, 0.026888, 1.94234e-05)),
    131072: (80, 782, 0.93, 1.0e-4, 1.0, (0.07, 0.0517573, 0.000284438)),
}
VARIANTS = ("kfac/imagenet-16384-coupled-momentum", "kfac/imagenet-32768-adaptive")
NAMES = (*(f"kfac/imagenet-{batch}" for batch in RELEASED), *VARIANTS)


def factor(schedule: Schedule, recipe: Recipe, epoch: float) -> float:
    """A schedule at an epoch of a run on ImageNet."""
    clock = recipe_clock(recipe, IMAGENET)
    return resolve_schedule(schedule, clock)(epoch * IMAGENET / (clock.total_examples or 1))


def test_the_recipes_are_shipped() -> None:
    assert {name for name in shipped_recipe_names() if name.startswith("kfac/")} == set(NAMES)
    page = (DOCS / "kfac.md").read_text()
    assert all(name in page for name in VARIANTS)


@pytest.mark.parametrize("batch", RELEASED)
def test_a_recipe_has_the_released_numbers(batch: int) -> None:
    recipe = load_recipe(f"kfac/imagenet-{batch}")
    epochs, count, momentum, damping, alpha, lrs = RELEASED[batch]
    clock = recipe_clock(recipe, IMAGENET)
    assert recipe.batch_size == batch
    assert round(clock.total_examples / IMAGENET) == epochs  # type: ignore[operator]
    assert math.ceil(clock.total_examples / batch) == count  # type: ignore[operator]
    assert isinstance(recipe.optimizer, SGDSettings)
    assert recipe.optimizer.momentum == momentum
    assert recipe.optimizer.weight_decay == 0.0
    assert isinstance(recipe.preconditioner, KFACSettings)
    assert (recipe.preconditioner.damping, recipe.preconditioner.average) == (damping, 0.0)
    assert recipe.preconditioner.refresh == FixedRefresh(statistics_every=1, inverse_every=1)
    assert recipe.augmentation.mixing == RunningMixup(alpha=alpha)
    assert recipe.rescaling is not None
    found = [
        recipe.optimizer.lr * factor(recipe.schedules.lr, recipe, e) for e in (0.5, 10, epochs)
    ]
    assert found == pytest.approx(lrs, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "plain", "paths"),
    [
        (VARIANTS[0], "kfac/imagenet-16384", {"optimizer", "schedules"}),
        (VARIANTS[1], "kfac/imagenet-32768", {"preconditioner"}),
    ],
)
def test_a_variant_differs_in_what_its_name_says_alone(
    name: str, plain: str, paths: set[str]
) -> None:
    one, other = load_recipe(name), load_recipe(plain)
    differing = {
        field
        for field in Recipe.__dataclass_fields__
        if getattr(one, field) != getattr(other, field)
    }
    assert differing - {"description", "origin"} == paths


def test_the_adaptive_variant_refreshes_by_similarity() -> None:
    preconditioner = load_recipe(VARIANTS[1]).preconditioner
    assert preconditioner is not None
    assert preconditioner.refresh == AdaptiveRefresh(similarity=0.1, longest=None)


# --- two couplings of the momentum ------------------------------------------------------------


def trace(recipe: Recipe, count: int = 30) -> list[float]:
    """A weight under changing gradients, at updates spread over the run on ImageNet."""
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    optimizer = build_optimizer(recipe.optimizer, layer)
    clock = recipe_clock(recipe, IMAGENET)
    hyperparameters = Hyperparameters(optimizer, recipe.schedules, clock)
    values = []
    for number in range(count):
        hyperparameters.apply(clock.position(number * 90))
        layer.weight.grad = gradient(number).view(1, 1)
        optimizer.step()
        values.append(layer.weight.item())
    return values


def gradient(number: int) -> Tensor:
    return torch.tensor(math.cos(1.7 * number) + 0.5, dtype=torch.float64)


def by_hand(*, paper: bool, count: int = 30) -> list[float]:
    """Both rules as they are written, at batch 16,384.

    release: v <- m_0 (lr_t / lr_{t-1}) v - lr_t g; paper, as recalled: v <- (m_0 / lr_0) lr_t v -
    lr_t g; w <- w + v.
    """
    clock = recipe_clock(load_recipe("kfac/imagenet-16384"), IMAGENET)
    weight, velocity, last = 1.0, 0.0, 0.025
    values = []
    for number in range(count):
        epoch = clock.position(number * 90).examples / IMAGENET
        lr = 0.025 * (1 - (max(epoch, 1.0) - 1.0) / 52.5) ** 8
        momentum = 0.985 * (lr / 0.025 if paper else lr / last)
        velocity = momentum * velocity - lr * gradient(number).item()
        weight, last = weight + velocity, lr
        values.append(weight)
    return values


def test_the_releases_momentum_is_torchs_with_the_lr_outside() -> None:
    recipe = load_recipe("kfac/imagenet-16384")
    corrected = replace(
        recipe, optimizer=SGDWSettings(lr=0.025, momentum=0.985, momentum_correction=True)
    )
    expected = by_hand(paper=False)
    assert trace(recipe) == pytest.approx(expected, rel=1e-7)
    assert trace(corrected) == pytest.approx(expected, rel=1e-7)


def test_the_papers_momentum_falls_with_the_lr_inside_of_it() -> None:
    recipe = load_recipe(VARIANTS[0])
    expected = by_hand(paper=True)
    assert trace(recipe) == pytest.approx(expected, rel=1e-7)
    assert trace(recipe) != pytest.approx(by_hand(paper=False), rel=1e-2)
    assert recipe.schedules.momentum == recipe.schedules.lr
    constant = replace(recipe, schedules=Schedules(lr=recipe.schedules.lr))
    assert trace(constant) != pytest.approx(expected, rel=1e-2)


# --- small ------------------------------------------------------------------------------------


def small_images() -> Task:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 32, 32, 3), generator=random, dtype=torch.uint8)
    normalization = Normalization(mean=(0.5,) * 3, std=(0.2,) * 3)
    source = ResidentSource.from_arrays(pixels, torch.arange(64) % 4, normalization=normalization)
    shape = ModelShape(input_shape=(3, 32, 32), num_outputs=4)
    return Task(
        build_model=lambda: build_model("resnet50", shape),
        train=source,
        validation=source,
        shape=shape,
    )


SMALLER = (
    "batch_size=16", "micro_batch_size=8", "ghost_batch_size=8", "duration=2 updates",
    "image_size=none", "model.width=0.125", "augmentation.crop_padding=2", "compute.device=cpu",
    "compute.precision=fp32", "compute.num_workers=0",
)  # fmt: skip


@pytest.mark.parametrize("name", ["kfac/imagenet-16384", *VARIANTS])
def test_two_updates_of_a_recipe_made_small(name: str) -> None:
    recipe = load_recipe(name, SMALLER)
    recipe = replace(recipe, schedules=Schedules(), duration=updates(2))
    losses: dict[bool, Any] = {}
    for preconditioned in (True, False):
        tried = recipe if preconditioned else replace(recipe, preconditioner=None)
        with Training(small_images(), tried) as training:
            records = list(training)
        (losses[preconditioned],) = [r.loss for r in records if isinstance(r, EvalRecord)]
        assert math.isfinite(losses[preconditioned])
    assert losses[True] != losses[False]
