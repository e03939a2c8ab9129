"""Runs and measurements made by hand, with known numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.recipe import Recipe, SGDSettings
from anybatch.records import EvalRecord, StepRecord
from anybatch.run import Run, Status

RECIPE = Recipe(optimizer=SGDSettings(lr=0.1))
METRIC = {"name": "accuracy", "direction": "max"}


def step(update: int, **changes: Any) -> StepRecord:
    record = StepRecord(
        update=update,
        examples=32 * update,
        epoch=update / 10,
        loss=2.0 / update,
        batch_size=32,
        lr=0.1 / update,
        momentum=0.9,
        weight_decay=0.0,
        gradient_norm=None,
        seconds=0.25 * update,
        examples_per_second=128.0,
    )
    return replace(record, **changes)


def evaluation(update: int, split: Any = "validation", **changes: Any) -> EvalRecord:
    record = EvalRecord(
        update=update,
        examples=32 * update,
        epoch=update / 10,
        split=split,
        loss=0.5,
        metric=0.9,
        metric_name="accuracy",
        seconds=0.25 * update,
        evaluation_seconds=0.1,
    )
    return replace(record, **changes)


def make_run(
    path: Path,
    *,
    seed: int = 0,
    metric: float = 0.9,
    updates: int = 20,
    recipe: Recipe = RECIPE,
    task: dict[str, Any] | None = None,
    status: Status | None = None,
) -> Run:
    """A finished run of `updates` updates with evaluations every ten, and one of test."""
    reference = {"name": "digits", "metric": METRIC} if task is None else task
    run = Run.create(path, replace(recipe, seed=seed), reference)
    for update in range(1, updates + 1):
        run.append(step(update))
        if update % 10 == 0:
            run.append(evaluation(update, metric=metric - 1.0 / update))
    run.append(evaluation(updates, "test", metric=metric))
    run.add_environment(
        {"python": "3.12.1", "torch": "2.9", "threads": 1, "command": ["/bin/anybatch", "train"]}
    )
    ended = Status(name="finished", update=updates, examples=32 * updates, seconds=updates / 4)
    run.write_status(status or ended)
    return run


def lr_range(num_updates: int = 40, **changes: Any) -> Measurement:
    """A ramp from 1e-4 to 10 whose loss falls, then rises, then is no number; three probes."""
    rows = []
    for number in range(num_updates):
        lr = 1e-4 * 1e5 ** (number / max(1, num_updates - 1))
        loss = 2.0 - 1.5 / (1 + 0.02 / lr) if lr < 1.0 else (50.0 * lr if lr < 4.0 else math.nan)
        rows.append((0.0, 0.0, 0.0, number + 1.0, lr, loss, math.nan))
    for number, lr in enumerate((0.01, 0.1, 1.0)):
        rows += [(1.0, 0.0, float(number), u, lr, 1.0 / u, math.nan) for u in (1.0, 2.0)]
    names = ("stage", "repeat", "series", "update", "lr", "loss", "metric")
    columns = dict(zip(names, map(tuple, zip(*rows, strict=True)), strict=True))
    lrs = tuple(row[4] for row in rows[: num_updates // 2])
    measurement = Measurement(
        kind="lr-range",
        settings={"start_lr": 1e-4, "end_lr": 10.0, "num_updates": num_updates, "ramp": "log"},
        samples=columns,
        estimates={
            "learning_starts": Estimate(value=0.002, low=0.001, high=0.004, unit="lr"),
            "edge": Estimate(value=None, unit="lr", reason="never diverged"),
            "base_lr": Estimate(value=0.01, low=0.005, high=0.02, unit="lr"),
            "max_lr": Estimate(value=0.25, low=0.125, high=0.5, unit="lr"),
        },
        seconds=1.5,
        examples=1280,
        findings=(Finding(name="noisy", sentence="the loss jumps", advice="use --repeats 5"),),
        fitted={"lr": lrs, "loss": tuple(1.0 for _ in lrs), "slope": tuple(0.0 for _ in lrs)},
    )
    return replace(measurement, **changes)
