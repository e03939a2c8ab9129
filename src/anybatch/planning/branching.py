"""Branches: short trainings from the pilot's state at several batch sizes and learning rates.

All branches of a seed see the same examples in the same order, so that their difference is theirs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from anybatch.measurement import Finding, Measurement
from anybatch.measuring.subjects import recipe_settings
from anybatch.planning.pilot import opened_pilot
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.records import Record
from anybatch.task import Task
from anybatch.world import World

__all__ = ["Branch", "BranchState", "train_branches"]

_SEEDS_APART = 7919  # between the data orders of two branches of an arm


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """An arm of the comparison.

    Attributes:
        recipe: of `pilot_recipe`, with a batch size and a constant lr.
        num_updates: to train.
    """

    recipe: Recipe
    num_updates: int

    @property
    def batch_size(self) -> int:
        """Global."""
        return int(self.recipe.batch_size)

    @property
    def lr(self) -> float:
        """Constant; of the first group."""
        return float(self.recipe.optimizer.lr)


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchState:
    """Where a branch stands at its end, to be gone on from.

    Attributes:
        branch: which.
        state: the training's `state_dict`.
        records: of its updates, and of the evaluation at its end.
    """

    branch: Branch
    state: dict[str, Any]
    records: tuple[Record, ...]


def train_branches(
    task: Task,
    recipe: Recipe,
    state: dict[str, Any],
    branches: Sequence[Branch],
    *,
    num_seeds: int,
    world: World,
    activity: Activity,
) -> tuple[Measurement, list[BranchState]]:
    """Train every branch once for each seed, interleaved, from the same state.

    Args:
        task: what is to be learned.
        recipe: the present choice, which the measurement names.
        state: of the pilot.
        branches: arms.
        num_seeds: data orders; the first goes on with the pilot's own.
        world: ranks that train together.
        activity: shows what is being done.

    Returns:
        A measurement of kind "branches": one row an update, columns "branch", "batch_size", "lr",
        "seed", "update" (from 1), "loss" (of the training batch), and "validation_loss" and
        "validation_metric", which are nan but in the last row of a branch; and where each branch
        of the first seed ended.

    Collectives:
        Those of the updates; every rank must call.
    """
    started = time.perf_counter()
    rows: list[tuple[float, ...]] = []
    ends: list[BranchState] = []
    num_examples = 0
    for seed in range(num_seeds):
        for number, branch in enumerate(branches):
            own = replace(branch.recipe, seed=branch.recipe.seed + seed * _SEEDS_APART)
            with opened_pilot(task, own, world=world, state=state) as pilot:
                training = pilot.training
                first = training.updates
                activity.show(
                    f"branch {branch.batch_size:,} at lr {branch.lr:.3g}, seed {seed + 1}"
                )
                pilot.train(seconds=math.inf, most_updates=first + branch.num_updates)
                looks = pilot.looks[-1:]
                last = (looks[0].loss, looks[0].metric) if looks else (math.nan, math.nan)
                for update, loss in pilot.losses:
                    at_end = update == pilot.losses[-1][0]
                    seen = last if at_end else (math.nan, math.nan)
                    rows.append((number, branch.batch_size, branch.lr, seed, update - first, loss,
                                 *seen))  # fmt: skip
                num_examples += branch.batch_size * (training.updates - first)
                if seed == 0 and not pilot.diverged:
                    ends.append(
                        BranchState(
                            branch=branch,
                            state=copy.deepcopy(training.state_dict()),
                            records=tuple(pilot.records),
                        )
                    )
    names = ("branch", "batch_size", "lr", "seed", "update", "loss", "validation_loss",
             "validation_metric")  # fmt: skip
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    measured = Measurement(
        kind="branches",
        settings=recipe_settings(task, recipe) | {"num_seeds": num_seeds},
        samples={
            name: tuple(map(float, column)) for name, column in zip(names, columns, strict=True)
        },
        estimates={},
        seconds=time.perf_counter() - started,
        examples=num_examples,
        findings=_diverged(branches, rows),
    )
    return measured, ends


def _diverged(branches: Sequence[Branch], rows: Sequence[tuple[float, ...]]) -> tuple[Finding, ...]:
    lost = sorted({int(row[0]) for row in rows if not math.isfinite(row[5])})
    return tuple(
        Finding(
            name="branch-diverged",
            sentence=f"the branch at batch size {branches[number].batch_size:,} and lr "
            f"{branches[number].lr:.3g} diverged",
            advice="that lr is not used",
        )
        for number in lost
    )
