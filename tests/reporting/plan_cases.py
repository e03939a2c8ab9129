"""Plans composed from measurements made by hand, in folders as planning and training leave them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "planning"))
from planning_cases import noise_scale, throughput
from report_cases import RECIPE, lr_range, make_run, step

from anybatch.measurement import Finding, Measurement
from anybatch.plan import PLAN_FILE, Plan, PlanRequest
from anybatch.planning.compose import Composer
from anybatch.recipe import Recipe, Stopping, Target
from anybatch.run import SCHEMA, Run, Status, write_json

TASK = {"name": "digits", "metric": {"name": "accuracy", "direction": "max"}}
COST = {"throughput": 1.5, "lr-range": 2.25, "pilot": 4.0, "noise-scale": 0.5}


def request(target: str = "accuracy>=0.95", batch_size: int = 16, ranks: int = 1) -> PlanRequest:
    stopping = Stopping(target=Target.parse(target))
    return PlanRequest(
        task=TASK,
        num_examples=1293,
        num_validation=144,
        target=target,
        kind="classification",
        metric_name="accuracy",
        metric_direction="max",
        recipe=replace(RECIPE, batch_size=batch_size, stopping=stopping),
        ranks=ranks,
    )


def pilot(*, looks: int = 12, batch_size: int = 64, **changes: Any) -> Measurement:
    """A power law in the updates; half of the errors at 200 updates are gone at 800."""
    updates = [round(8 * 1.4**number) for number in range(looks)]
    columns = {
        "update": updates,
        "examples": [batch_size * update for update in updates],
        "loss": [2.0 * update**-0.5 for update in updates],
        "metric": [1.0 - 1.4 * update**-0.5 for update in updates],
        "seconds": [0.02 * update for update in updates],
    }
    losses = range(5, updates[-1] + 1, 5) if updates else ()
    settings = {"task": "digits", "optimizer": "sgd", "batch_size": batch_size, "seed": 0,
                "metric_name": "accuracy", "metric_direction": "max", "lr": 0.25,
                "diverged": False, "watched_examples": 144}  # fmt: skip
    measured = Measurement(
        kind="pilot",
        settings=settings,
        samples={name: tuple(map(float, column)) for name, column in columns.items()},
        estimates={},
        seconds=4.0,
        examples=batch_size * (updates[-1] if updates else 0),
        fitted={"update": tuple(map(float, losses)), "loss": tuple(3.0 * u**-0.5 for u in losses)},
    )
    return replace(measured, **changes)


def branches(arms: tuple[tuple[int, float], ...], *, updates: int = 40, seeds: int = 2) -> Any:
    """Losses that fall from 1 / (1 + arm) in a straight line to half; the last arm diverges."""
    rows = []
    for seed in range(seeds):
        for number, (size, lr) in enumerate(arms):
            for update in range(1, updates + 1):
                loss = (1.0 - 0.5 * update / updates) / (1 + number) + 0.01 * seed
                lost = number == len(arms) - 1 and update > updates // 2
                end = loss + 0.1 if update == updates and not lost else math.nan
                rows.append((number, size, lr, seed, update, math.nan if lost else loss, end, end))
    names = ("branch", "batch_size", "lr", "seed", "update", "loss", "validation_loss",
             "validation_metric")  # fmt: skip
    return Measurement(
        kind="branches",
        settings={"task": "digits", "num_seeds": seeds},
        samples={name: tuple(map(float, column))
                 for name, column in zip(names, zip(*rows, strict=True), strict=True)},
        estimates={},
        seconds=9.0,
        examples=1000,
    )  # fmt: skip


def noises(**settings: Any) -> Measurement:
    """With the estimate of a layer, as measured ones have."""
    measured = noise_scale(**settings)
    layers = {"b_simple/weight": measured.estimates["b_simple"]}
    return replace(measured, estimates={**measured.estimates, **layers})


def measurements(**changes: Measurement | None) -> dict[str, Measurement]:
    timed = throughput(sizes=(1, 4, 16, 64, 256), scatter=0.05)
    sizes = (1.0, 16.0, 256.0)
    fitted = {"batch_size": sizes, "seconds": tuple(0.01 + 1e-4 * size for size in sizes)}
    finding = Finding(name="noisy-clock", sentence="the clock is noisy", advice="end the others")
    found: dict[str, Measurement | None] = {
        "throughput": replace(timed, fitted=fitted, findings=(finding,)),
        "lr-range": lr_range(),
        "pilot": pilot(),
        "noise-scale-1": noises(after_updates=100, seed=1),
        "noise-scale-2": noises(after_updates=200, trace=900.0, seed=2),
    }
    found |= {name.replace("_", "-"): measured for name, measured in changes.items()}
    return {name: measured for name, measured in found.items() if measured is not None}


def plan_run(
    path: Path,
    *,
    asked: PlanRequest | None = None,
    measured: dict[str, Measurement] | None = None,
    partial: str = "",
    plan: Plan | None = None,
) -> Run:
    """The folder that planning leaves: the pilot's records, the measurements, the plan."""
    asked = asked or request()
    measured = measurements() if measured is None else measured
    plan = plan or Composer(asked, measured).plan(procedure="short", cost=COST, partial=partial)
    own = replace(RECIPE, batch_size=64) if "pilot" in measured else asked.recipe
    run = Run.create(path, own, TASK)
    for update in range(1, int(plan.pilot.get("updates", 0)) + 1, 20):
        run.append(step(update, batch_size=64))
    for name, measurement in measured.items():
        run.add_measurement(measurement, name=name)
    write_json(path / PLAN_FILE, {"schema": SCHEMA} | plan.to_dict())
    status = Status(name="interrupted" if partial else "finished", reason=partial or "planned")
    run.write_status(status)
    return run


def following_run(path: Path, plan: Plan, *, reached: bool = True, seconds: float = 20.0) -> Run:
    """A run that began with the pilot's records and went on by the plan."""
    target = plan.recipe.stopping.target
    status = Status(
        name="finished" if reached else "target-missed",
        update=900,
        examples=50000,
        seconds=seconds + 1.0,
        target=str(target),
        target_seconds=seconds if reached else None,
        target_update=880 if reached else None,
    )
    recipe: Recipe = plan.recipe
    run = make_run(path, recipe=recipe, status=status, task=TASK, updates=40)
    write_json(path / PLAN_FILE, {"schema": SCHEMA} | plan.to_dict())
    return run
