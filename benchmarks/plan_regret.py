"""Regret of a plan: how much longer than the best of a grid does the planned training take?

Beside it what else people do: keep what they have, Lightning's finders, "fill the memory and scale
the lr", "Adam at 3e-4", random search for as long as the plan measured.

Seconds of a training are updates to the target x seconds of an update; the latter are timed for
everything together in the trials `times-*`, on a quiet machine (remove these results and run again
to time again). Until then those that the grid took stand in.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from anybatch import Recipe, Task
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.run import read_json, write_json
from benchmarks import plan_tables
from benchmarks.harness import TrialSkippedError
from benchmarks.plan_grid import known_seconds, search
from benchmarks.plan_peers import PEERS, Choice, lightning_is_installed
from benchmarks.plan_runs import planned_run
from benchmarks.plan_tables import BEST_ARMS, SEEDS, table, verdict
from benchmarks.plan_tasks import CASES, PlanCase
from benchmarks.plan_training import at, seconds_between, step_seconds, train_to_target

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "plan_regret"
TITLE = "Regret of a plan beside a grid and other ways to choose"
QUESTION = (
    "How much longer does a planned training take to its target than the best of a grid over batch "
    "size and lr, on five tasks, and what do other ways to choose give?"
)
PREDICTION = plan_tables.PREDICTION

_CAP = 5.0  # no training is longer than this, in seconds of the grid's best
_CASES = {case.name: case for case in CASES}
_RESULTS = Path(__file__).parent / "results" / NAME


def trials() -> list[str]:
    """Grids, their best arms again, other ways, the plan, the times; what cannot run here last."""
    keys = [f"grid-{name}" for name in _CASES]
    keys += [f"best-{name}-{seed}" for seed in SEEDS for name in _CASES]
    late: list[str] = []
    for seed in SEEDS:  # every way once before any twice
        for peer in PEERS:
            there = peer.name != "lightning" or lightning_is_installed()
            into = keys if there else late
            into += [f"{peer.name}-{name}-{seed}" for name in _CASES]
    keys += [f"plan-{name}-{seed}" for name in _CASES for seed in SEEDS]
    return [*keys, *(f"times-{name}" for name in _CASES), *late]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Search a grid, train with one choice, or time.

    Args:
        key: one of `trials`.
        folder: keeps what is done of a grid.

    Raises:
        TrialSkippedError: data or packages are not here, or an earlier trial has no result yet.
    """
    kind, rest = next(
        (kind, key.removeprefix(f"{kind}-"))
        for kind in ("grid", "best", "plan", "times", *(peer.name for peer in PEERS))
        if key.startswith(f"{kind}-")
    )
    if kind == "grid":
        return search(_CASES[rest], folder)
    if kind == "times":
        return _times(_CASES[rest])
    name, _, seed = rest.rpartition("-")
    case, grid = _CASES[name], _stored(f"grid-{name}")
    if kind == "best":
        return _best_arms(case, grid, int(seed), folder)
    if kind == "plan":
        return _planned(name, int(seed), folder)
    choice = _chosen(kind, case, int(seed), folder)
    return dataclasses.asdict(choice) | _trained(case, choice.recipe, grid)


def _stored(key: str) -> dict[str, Any]:
    path = _RESULTS / f"{key}.json"
    if not path.exists():
        raise TrialSkippedError(f"{key} has no result yet")
    values: dict[str, Any] = read_json(path)["values"]
    return values


def _planned(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """A planned run; that of `plan_predictions` with the same seed, where there is one."""
    path = _RESULTS.parent / "plan_predictions" / f"{name}-{seed}.json"
    if path.exists():
        values: dict[str, Any] = read_json(path)["values"]
        return values
    return planned_run(_CASES[name], seed, folder)


# --- choices and their trainings ----------------------------------------------------------------


def _chosen(kind: str, case: PlanCase, seed: int, folder: Path) -> Choice:
    """What a way to choose says; it is asked once, also where its training was interrupted."""
    path = folder / "choice.json"
    if not path.exists():
        grid = _stored(f"grid-{case.name}")
        if kind == "lightning" and seed != SEEDS[0]:
            said = _said_before(case, seed)
        else:
            peer = next(peer for peer in PEERS if peer.name == kind)
            said = peer.choose(case, seed, known_seconds(grid))
        write_json(path, dataclasses.asdict(said))
    return Choice(**read_json(path))


def _said_before(case: PlanCase, seed: int) -> Choice:
    """What Lightning said with the first seed: its finders are dear, and asked once in a case."""
    stored = _stored(f"lightning-{case.name}-{SEEDS[0]}")
    fields = {field.name: stored[field.name] for field in dataclasses.fields(Choice)}
    return Choice(**fields | {"recipe": stored["recipe"] | {"seed": seed}})


def _best_arms(case: PlanCase, grid: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    arms = []
    for rank, arm in enumerate(grid["arms"][:BEST_ARMS]):
        path = folder / f"{rank}.json"
        if not path.exists():
            recipe = at(
                case.recipe,
                batch_size=arm["batch_size"],
                lr=2.0 ** arm["exponent"],
                seed=seed,
            )
            mapping = recipe_to_mapping(recipe)
            write_json(path, {"recipe": mapping} | _trained(case, mapping, grid))
        arms.append(read_json(path))
    return {"arms": arms}


def _trained(case: PlanCase, mapping: dict[str, Any], grid: dict[str, Any]) -> dict[str, Any]:
    """Train a choice to the target, at most 5 times as long as the grid's best took."""
    task, recipe = case.task(), recipe_from_mapping(mapping)
    size = _size(recipe, task)
    seconds = seconds_between(known_seconds(grid), size)
    best = plan_tables.best_of_grid(grid)
    if not math.isfinite(best):
        raise RuntimeError(f"no arm of the grid of {case.name} has reached the target")
    stopping = dataclasses.replace(recipe.stopping, target=case.target, patience=None)
    curve = train_to_target(
        task,
        dataclasses.replace(recipe, stopping=stopping),
        most_updates=max(1, math.ceil(_CAP * best / seconds)),
        scale_updates=case.scale_seconds / seconds,
        state=None,
    )
    return {"batch_size": size, "lr": recipe.optimizer.lr, "curve": curve}


def _size(recipe: Recipe, task: Task) -> int:
    if isinstance(recipe.batch_size, int):
        return recipe.batch_size
    count = task.source("train").num_examples
    assert count is not None
    return count


# --- times --------------------------------------------------------------------------------------


def _times(case: PlanCase) -> dict[str, Any]:
    """Seconds of an update with all that was trained, in turns."""
    recipes: dict[str, Recipe] = {}
    for key in trials():
        path = _RESULTS / f"{key}.json"
        if f"-{case.name}-" not in key or not path.exists():
            continue
        values = read_json(path)["values"]
        parts = values.get("arms", values.get("parts", [values]))
        for mapping in [part["recipe"] for part in parts]:
            recipe = recipe_from_mapping(mapping)
            recipes.setdefault(plan_tables.time_key(mapping), _standing(recipe))
    if not recipes:
        raise TrialSkippedError(f"nothing of {case.name} has been trained yet")
    return {"step_seconds": step_seconds(case.task(), recipes, rounds=9)}


def _standing(recipe: Recipe) -> Recipe:
    """The recipe with an lr that hardly moves: what it costs, without diverging."""
    optimizer = dataclasses.replace(recipe.optimizer, lr=recipe.optimizer.lr * 1e-6)
    return dataclasses.replace(recipe, optimizer=optimizer)
