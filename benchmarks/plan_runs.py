"""Planned runs: `anybatch plan`, then `anybatch train --plan`, as a user does it, in one process.

What is kept of each tells everything that the two benchmarks of the planner ask: what was
predicted, what happened, and how many updates were taken at which batch size.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

from anybatch import Run, Training, make_plan
from anybatch.planning.continuing import begin_planned
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.records import plain
from anybatch.training.loop import create_run, train_to_end
from benchmarks.plan_tasks import PlanCase

__all__ = ["planned_run"]


def planned_run(case: PlanCase, seed: int, folder: Path) -> dict[str, Any]:
    """Plan, train as planned from the pilot on, and say what was foretold and what happened.

    Args:
        case: with the present recipe and the target.
        seed: of measurements and training.
        folder: of the trial; what an ended session left is removed.

    Returns:
        "recipe", "batch_size" and "lr" of the plan; "predicted_seconds" and "predicted_updates" as
        [low, median, high] of 80 %; "asking_seconds" of measuring, the pilot's training left out;
        "cost" by stage; "parts", updates taken with which recipe; "curve" as other trials have it.
    """
    for name in ("plan", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    task, recipe = case.task(), dataclasses.replace(case.recipe, seed=seed)
    started = time.perf_counter()
    plan = make_plan(task, recipe, out=folder / "plan", progress=False)
    asked = time.perf_counter() - started
    pilot = Run(folder / "plan")
    with Training(task, plan.recipe) as training:
        run = create_run(training, folder / "run")
        begin_planned(training, run, pilot, plan)
        begun = training.updates
        train_to_end(training, run, progress=False)
    status = run.status
    reached = status.target_update
    seconds = status.target_seconds if reached is not None else status.seconds
    assert seconds is not None
    own, of_plan = recipe_to_mapping(pilot.recipe), recipe_to_mapping(plan.recipe)
    return {
        "recipe": of_plan,
        "batch_size": plan.batch_size,
        "lr": plan.recipe.optimizer.lr,
        "asking_seconds": asked - float(plan.pilot.get("seconds", 0.0)),
        "cost": dict(plan.cost),
        "procedure": plan.procedure,
        "predicted_seconds": _ends(plan.predictions["seconds"]),
        "predicted_updates": _ends(plan.predictions["updates"]),
        "near_optimal": list(plan.near_optimal),
        "parts": [
            {"recipe": own, "updates": begun},
            {"recipe": of_plan, "updates": (reached or status.update) - begun},
        ],
        "curve": {
            "reached": reached,
            "trained": status.update,
            "diverged": status.update if status.name == "diverged" else None,
            "wall_seconds": seconds,
        },
    }


def _ends(estimate: Any) -> Any:
    """Low, median and high; what is without end as text."""
    middle = math.inf if estimate.value is None else estimate.value
    return plain([max(estimate.low, 0.0), middle, estimate.high])
