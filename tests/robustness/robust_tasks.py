"""Tasks and recipes for "package.module:function": small sound ones, and ones that go wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anybatch.errors import InputError
from anybatch.recipe import Recipe, RecordSettings, SGDSettings, Stopping
from anybatch.schedules import epochs, updates
from anybatch.task import Task

NUM_EXAMPLES = 64
NOT_CALLABLE = 3.5


def examples() -> tuple[Tensor, Tensor]:
    """64 examples of 3 numbers in 2 classes, always the same."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_EXAMPLES, 3, generator=generator)
    return inputs, (inputs.sum(1) > 0).long()


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def task_of(**changes: Any) -> Task:
    """A sound task, with changes."""
    return Task(**({"build_model": linear, "train": examples()} | changes))


def recipe_of(**changes: Any) -> Recipe:
    """A sound recipe of 16 updates, with changes."""
    settings: dict[str, Any] = {
        "optimizer": SGDSettings(lr=0.1, momentum=0.9),
        "batch_size": 8,
        "duration": epochs(2),
        "stopping": Stopping(evaluate_every=updates(4)),
        "records": RecordSettings(log_every=2, checkpoint_every=updates(4)),
    }
    return Recipe(**(settings | changes))


def sound() -> Task:
    return task_of(validation=examples())


def sound_recipe() -> Recipe:
    return recipe_of()


def raising() -> Task:
    raise ValueError("no data\nto be had")


def raising_input_error() -> Task:
    raise InputError("colour", "must be green", "red")


def exiting() -> Task:
    sys.exit("good bye")


def returning_text() -> Any:
    return "a task"


class TiredModel(nn.Module):
    """Raises in its third forward pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(3, 2), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += self.training
        if self.passes == 3:
            raise RuntimeError("tired\nof it")
        return self.layer(inputs)


def tired() -> Task:
    return task_of(build_model=TiredModel, validation=examples())


class BrokenDataset(Dataset[Any]):
    """The examples, of which number 17 is spoilt."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Any]) -> None:
        self.examples, self.spoil = examples(), spoil

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> Any:
        inputs, targets = (values[index] for values in self.examples)
        return self.spoil(inputs, targets) if index == 17 else (inputs, targets)


def not_a_number(inputs: Tensor, target: Tensor) -> Any:
    return inputs * float("nan"), target


def out_of_range(inputs: Tensor, target: Tensor) -> Any:
    return inputs, target + 7


def unreadable(inputs: Tensor, target: Tensor) -> Any:
    raise OSError("the tape is torn")


def with_streamed_nan() -> Task:
    return task_of(train=BrokenDataset(not_a_number), validation=examples())
