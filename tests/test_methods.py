"""Every method that the articles name is one or a few recipe lines away, and its lines train."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch

from anybatch.data.augmentation import Normalization
from anybatch.data.resident import ResidentSource
from anybatch.errors import InputError
from anybatch.methods import METHODS, Method
from anybatch.models.table import ModelShape, build_model
from anybatch.recipe import Recipe
from anybatch.recipe_file import load_recipe
from anybatch.records import EvalRecord
from anybatch.task import Task
from anybatch.training.training import Training

DOCS = Path(__file__).parents[1] / "docs"


def small_images(recipe: Recipe) -> Task:
    """192 noisy images of two classes, for a small network with BatchNorm."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(192) % 2
    images = torch.randn(192, 3, 8, 8, generator=random) + labels.view(-1, 1, 1, 1)
    pixels = (100 + 40 * images).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    normalization = Normalization(mean=(0.4,) * 3, std=(0.2,) * 3)
    source = ResidentSource.from_arrays(pixels, labels, normalization=normalization)
    scope: Literal["batch", "example"] = "example"
    if recipe.loss.coupled == "cached-outputs":
        scope = "batch"
    shape = ModelShape(input_shape=(3, 8, 8), num_outputs=2)
    return Task(
        build_model=lambda: build_model("resnet18", shape, width=0.125),
        train=source,
        validation=source,
        loss=None if scope == "example" else in_batch_softmax,
        loss_scope=scope,
        shape=shape,
    )


def in_batch_softmax(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One value for a batch: each example's outputs against all others of its class."""
    similarity = (outputs @ outputs.T).log_softmax(1)
    same = (targets[:, None] == targets).to(outputs.dtype)
    return -(similarity * same).sum() / same.sum()


# What changes nothing in one process, on this task, or in so short a run.
ALIKE = {
    "a loss that couples a batch, in parts": "the same loss as a whole",
    "local SGD": "one rank has nobody to average with",
    "post-local SGD": "one rank has nobody to average with",
    "lower lr on a plateau": "its patience outlasts two epochs",
}


def losses(recipe: Recipe) -> list[float]:
    """Of the evaluations of a training of two epochs."""
    with Training(small_images(recipe), recipe) as training:
        records = list(training)
    assert training.outcome is not None
    assert training.outcome.name == "finished"
    return [record.loss for record in records if isinstance(record, EvalRecord)]


def recipe_of(*lines: str) -> Recipe:
    return load_recipe("default", ["duration=2 epochs", "ghost_batch_size=64", *lines])


@cache
def default_losses() -> tuple[float, ...]:
    return tuple(losses(recipe_of()))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.title)
def test_a_methods_lines_train_on_top_of_the_default_recipe(method: Method) -> None:
    found = losses(recipe_of(*method.lines))
    assert all(map(math.isfinite, found))
    if method.title not in ALIKE:  # a setting that nothing serves would be ignored in silence
        assert tuple(found) != default_losses()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.title)
def test_a_methods_page_exists_and_names_it(method: Method) -> None:
    page = (DOCS / f"{method.page}.md").read_text()
    keys = [line.partition("=")[0].strip().split(".")[-1] for line in method.lines]
    assert any(key in page for key in keys)


def test_a_line_with_a_typing_error_is_refused() -> None:
    with pytest.raises(InputError, match="trust"):
        load_recipe("default", ['optimizer = { name = "lars", lr = 1.0, trst = 1.0 }'])
