"""A small task for studies, which another process can make again by its name."""

from __future__ import annotations

import torch
from torch import nn

from anybatch.recipe import ComputeSettings, Recipe, RecordSettings, SGDSettings, Stopping, Target
from anybatch.schedules import epochs
from anybatch.task import Task

NAME = "study_tasks:task"
NUM_EXAMPLES = 96


def task() -> Task:
    """96 noisy points on a line through 4 dimensions; the loss cannot fall below about 0.09."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(NUM_EXAMPLES, 4, generator=generator)
    noise = 0.3 * torch.randn(NUM_EXAMPLES, 1, generator=generator)
    targets = inputs.sum(1, keepdim=True) + noise
    return Task(
        build_model=lambda: nn.Linear(4, 1),
        train=(inputs, targets),
        validation=(inputs, targets),
        test=(inputs[:8], targets[:8]),
        kind="regression",
    )


def recipe(**changes: object) -> Recipe:
    """Batch 8, plain SGD, at most 20 epochs."""
    settings: dict[str, object] = {
        "optimizer": SGDSettings(lr=0.02),
        "batch_size": 8,
        "duration": epochs(20),
        "stopping": Stopping(target=Target("loss", "<=", 0.15)),
        "records": RecordSettings(log_every=5),
        "compute": ComputeSettings(threads=1),
    }
    return Recipe(**(settings | changes))  # type: ignore[arg-type]
