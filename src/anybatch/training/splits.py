"""Splits: a task's examples on this rank's device, fetched when they are first asked for."""

from __future__ import annotations

from typing import final

import torch

from anybatch.data.source import Batch, Source
from anybatch.recipe import Recipe
from anybatch.task import SplitName, Task
from anybatch.training.precision import cast
from anybatch.world import World

__all__ = ["Splits"]


@final
class Splits:
    """The splits of one task.

    Args:
        task: whose.
        recipe: loader processes and arithmetic.
        world: has the device.
    """

    def __init__(self, task: Task, recipe: Recipe, world: World) -> None:
        self._task, self._compute, self._world = task, recipe.compute, world
        self._sources: dict[SplitName, Source] = {}

    def __getitem__(self, split: SplitName) -> Source:
        """A split on this rank's device."""
        if split not in self._sources:
            workers = self._compute.num_workers
            source = self._task.source(split).to(self._world.device, num_workers=workers)
            self._sources[split] = source
        return self._sources[split]

    def sample(self) -> Batch:
        """Two examples to try the model on; of validation where training data is a stream."""
        random_access = self._task.source("train").random_access
        source = self["train" if random_access else "validation"]
        indices = torch.arange(min(2, source.num_examples or 2))
        batch = next(iter(source.batches([indices])))
        inputs, targets = cast(batch.inputs, self._compute), cast(batch.targets, self._compute)
        return Batch(inputs, targets, batch.indices)
