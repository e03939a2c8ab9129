"""Tiny tasks that a whole procedure plans within seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.plan import Plan
from anybatch.planning import procedure, stages
from anybatch.planning.continuing import begin_planned
from anybatch.planning.procedure import make_plan
from anybatch.recipe import Recipe, SGDSettings
from anybatch.run import Run
from anybatch.schedules import epochs
from anybatch.task import Task
from anybatch.training.loop import create_run, train_to_end
from anybatch.training.training import Training

SHORT = stages.Budget(
    procedure="short", throughput=0.1, lr_range=0.1, pilot=0.06, noise=0.05, branches=0.0
)
FULL = replace(SHORT, procedure="full", branches=0.4)

RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.05, momentum=0.9, weight_decay=1e-4),
    batch_size=16,
    duration=epochs(4),
)


def examples(num_examples: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes that a plane divides, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 6, generator=generator)
    noise = 0.7 * torch.randn(num_examples, generator=generator)
    return inputs, (inputs.sum(1) + noise > 0).long()


def perceptron(*between: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), *(make() for make in between), nn.ReLU(), nn.Linear(12, 2)
    )


def task_of(**changed: Any) -> Task:
    """A sound task, with changes."""
    given: dict[str, Any] = {
        "build_model": perceptron,
        "train": examples(),
        "validation": examples(120, seed=1),
    }
    return Task(**(given | changed))


@contextmanager
def budget(wanted: stages.Budget = SHORT) -> Iterator[None]:
    """Every plan made in here takes as long; ranges are tested by a few updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedure, "budget_of", lambda *given: wanted)
        patch.setattr(procedure, "ramp_and_probe_updates", lambda *given: (24, 12))
        yield


def planned(
    out: Path,
    task: Task | None = None,
    recipe: Recipe = RECIPE,
    *,
    target: str = "accuracy>=0.9",
    wanted: stages.Budget = SHORT,
) -> Plan:
    with budget(wanted):
        return make_plan(task or task_of(), recipe, target=target, out=out, progress=False)


def trained(plan: Plan, out: Path, task: Task | None = None) -> Run:
    """As `anybatch train --plan` does."""
    with Training(task or task_of(), plan.recipe) as training:
        run = create_run(training, out)
        begin_planned(training, run, Run(plan.folder), plan)
        train_to_end(training, run, progress=False)
    return run
