"""A whole set of measurements made by hand, and what is asked of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from planning_cases import noise_scale, throughput

from anybatch.measurement import Estimate, Measurement
from anybatch.plan import Plan, PlanRequest
from anybatch.planning.compose import Composer
from anybatch.recipe import Recipe, SGDSettings, Target
from anybatch.schedules import epochs

PRESENT = Recipe(
    optimizer=SGDSettings(lr=0.1, momentum=0.9, weight_decay=5e-4),
    batch_size=128,
    duration=epochs(10),
)
CLASSIFICATION: dict[str, Any] = {
    "kind": "classification",
    "metric_name": "accuracy",
    "metric_direction": "max",
    "target": "accuracy>=0.92",
}
REGRESSION: dict[str, Any] = {
    "kind": "regression",
    "metric_name": "mean_squared_error",
    "metric_direction": "min",
    "target": "mean_squared_error<=0.08",
}
LANGUAGE: dict[str, Any] = {
    "kind": "language-modelling",
    "metric_name": "accuracy",
    "metric_direction": "max",
    "target": "loss<=0.27",
}


def request_of(recipe: Recipe = PRESENT, **changed: Any) -> PlanRequest:
    given: dict[str, Any] = {
        "task": {"name": "by hand"},
        "num_examples": 50_000,
        "num_validation": 5_000,
        "recipe": recipe,
    }
    given |= CLASSIFICATION | changed
    stopping = dataclasses.replace(recipe.stopping, target=Target.parse(given["target"]))
    return PlanRequest(**given | {"recipe": dataclasses.replace(recipe, stopping=stopping)})


def lr_range(
    max_lr: float | None = 0.2, *, edge: float | None = 0.8, batch_size: int = 32
) -> Measurement:
    """An interval of a factor 2 each way about the lr."""

    def around(value: float | None) -> Estimate:
        if value is None:
            return Estimate(value=None, reason="nothing was learned")
        return Estimate(value=value, low=0.5 * value, high=2.0 * value)

    return Measurement(
        kind="lr-range",
        settings={"batch_size": batch_size},
        samples={"lr": (0.1, 0.2), "loss": (1.0, 0.9)},
        estimates={"max_lr": around(max_lr), "edge": around(edge)},
        seconds=1.0,
        examples=1000,
    )


def pilot(
    *,
    batch_size: int = 32,
    lr: float = 0.2,
    distance: float = 0.6,
    slope: float = 0.5,
    direction: str = "max",
    looks: int = 14,
    diverged: bool = False,
    seconds_per_update: float = 0.0132,
) -> Measurement:
    """A power law: distance from the ideal = distance * (updates / 10)^-slope."""
    updates = np.round(np.geomspace(10, 10 * 1.3 ** (looks - 1), looks)) if looks else np.array([])
    away = distance * (updates / 10.0) ** -slope if looks else updates
    metric = 1.0 - away if direction == "max" else away
    columns = {
        "update": updates,
        "examples": updates * batch_size,
        "loss": 3.0 * away,
        "metric": metric,
        "seconds": updates * seconds_per_update,
    }
    return Measurement(
        kind="pilot",
        settings={
            "batch_size": batch_size,
            "lr": lr,
            "diverged": diverged,
            "watched_examples": 1000,
        },
        samples={name: tuple(float(v) for v in values) for name, values in columns.items()},
        estimates={},
        seconds=float(columns["seconds"][-1]) if looks else 0.0,
        examples=int(columns["examples"][-1]) if looks else 0,
    )


def branches(
    arms: Mapping[tuple[int, float], float],
    *,
    updates: int = 60,
    seeds: int = 2,
    lost: tuple[tuple[int, float], ...] = (),
) -> Measurement:
    """Losses that fall by a rate an update, by (batch size, lr); the lost ones end as nan."""
    rows = []
    for number, ((size, lr), rate) in enumerate({**arms, **dict.fromkeys(lost, 0.01)}.items()):
        for seed in range(seeds):
            rng = np.random.default_rng((seed, size))
            for update in range(1, updates + 1):
                loss = np.exp(-rate * update) + 0.005 * rng.standard_normal()
                loss = np.nan if (size, lr) in lost and update > 20 else loss
                rows.append((number, size, lr, seed, update, loss, np.nan, np.nan))
    names = ("branch", "batch_size", "lr", "seed", "update", "loss", "validation_loss",
             "validation_metric")  # fmt: skip
    return Measurement(
        kind="branches",
        settings={},
        samples={
            name: tuple(map(float, column))
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        },
        estimates={},
        seconds=2.0,
        examples=1000,
    )


def measurements(**changed: Measurement | None) -> dict[str, Measurement]:
    """All of the short procedure; None leaves one out."""
    made: dict[str, Measurement | None] = {
        "throughput": throughput(scatter=0.03),
        "lr-range": lr_range(),
        "pilot": pilot(),
        "noise-scale-1": noise_scale(after_updates=100, seed=1),
        "noise-scale-2": noise_scale(after_updates=300, seed=2),
    }
    made |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {name: measured for name, measured in made.items() if measured is not None}


def plan_of(
    request: PlanRequest | None = None,
    given: Mapping[str, Measurement] | None = None,
    **settings: Any,
) -> Plan:
    composer = Composer(request or request_of(), given or measurements())
    return composer.plan(**({"procedure": "short", "cost": {"pilot": 3.0}} | settings))


def through_json(measured: Measurement) -> Measurement:
    return Measurement.from_dict(json.loads(json.dumps(measured.to_dict(), allow_nan=False)))


def recipe_with(**changed: Any) -> Recipe:
    return dataclasses.replace(PRESENT, **changed)
