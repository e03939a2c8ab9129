"""Seconds of an update and of loading its examples, at each batch size, taken in turn.

Loading as the article had it is torch's DataLoader over pictures that are turned into tensors one
by one, in the training's process or in two others; ours is the resident set.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anybatch import Recipe, Task, Training, updates
from anybatch.data.resident import ResidentSource

__all__ = ["LOADERS", "step_times"]

LOADERS = {"DataLoader": 0, "DataLoader, 2 workers": 2}
"""Ways of loading as the article had it -> loader processes."""

_ROUNDS = 5
_SECONDS_A_ROUND = 1.5
_MEAN, _DEVIATION = 0.1307, 0.3081


class PictureDigits(Dataset[tuple[Tensor, int]]):
    """MNIST as pictures, each made a normalized tensor when it is asked for, as torchvision does.

    Args:
        source: of uint8 pixels in memory.
    """

    def __init__(self, source: ResidentSource) -> None:
        self._pixels = source.inputs[..., 0].numpy()
        self._targets = source.targets.tolist()

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self._pixels[index])
        pixels = torch.from_numpy(np.array(picture, copy=True)).view(1, 28, 28)
        return pixels.float().div(255).sub_(_MEAN).div_(_DEVIATION), self._targets[index]


def step_times(task: Task, recipes: Mapping[int, Recipe]) -> dict[str, Any]:
    """Median seconds of an update, by batch size and way of loading.

    Each round goes through all batch sizes, so that a slow moment of the machine hits them alike.

    Args:
        task: MNIST in memory.
        recipes: batch size -> how it is trained.

    Returns:
        batch size -> `compute`, `resident` (loading alone), and each of `LOADERS` (loading
        alone): medians over rounds, in seconds an update; and all rounds.
    """
    source = task.source("train")
    assert isinstance(source, ResidentSource)
    pictures = PictureDigits(source)
    rounds: dict[int, dict[str, list[float]]] = {size: {} for size in recipes}
    for _ in range(_ROUNDS):
        for size, recipe in recipes.items():
            for name, seconds in _one_round(task, recipe, pictures).items():
                rounds[size].setdefault(name, []).append(seconds)
    medians = {
        str(size): {name: statistics.median(values) for name, values in columns.items()}
        for size, columns in rounds.items()
    }
    return {"seconds": medians, "rounds": {str(s): columns for s, columns in rounds.items()}}


def _one_round(task: Task, recipe: Recipe, pictures: PictureDigits) -> dict[str, float]:
    size = recipe.batch_size
    assert isinstance(size, int)
    limit = max(8, len(pictures) // size)  # updates of an epoch at least
    one = _replaced(recipe, 10_000_000)
    with Training(task, one) as training:
        training.one_step.train_mode()
        portion = training.feed.next()
        position = training.feed.position(portion.num_examples)

        def compute() -> None:
            training.gradient(portion)
            training.one_step.update(position)

        def load() -> None:
            training.feed.next()
            training.feed.advance(portion.num_examples)

        told = {"compute": _seconds(compute, limit), "resident": _seconds(load, 8 * limit)}
    for name, workers in LOADERS.items():
        batches = _batches(pictures, size, workers)
        told[name] = _seconds(functools.partial(next, batches), limit)
        batches.close()
    return told


def _replaced(recipe: Recipe, count: int) -> Recipe:
    return dataclasses.replace(recipe, duration=updates(count))


def _batches(pictures: PictureDigits, size: int, workers: int) -> Generator[Any]:
    """Batches without an end, epoch after epoch, as a loop over a DataLoader sees them."""
    while True:
        yield from DataLoader(pictures, batch_size=size, shuffle=True, num_workers=workers)


def _seconds(action: Callable[[], object], limit: int) -> float:
    """Seconds of one call: a warm-up, then as many as fit, at least two."""
    action()
    started, count = time.perf_counter(), 0
    while count < 2 or (count < limit and time.perf_counter() - started < _SECONDS_A_ROUND / 4):
        action()
        count += 1
    return (time.perf_counter() - started) / count
