"""Branches: short trainings from the pilot's state at several batch sizes and learning rates.

All branches of a seed see the same examples in the same order, so that their difference is theirs.
One that tries a preconditioner begins without momentum: that of plain gradients is in another unit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from anybatch.errors import InputError
from anybatch.measurement import Finding, Measurement
from anybatch.measuring.subjects import recipe_settings
from anybatch.planning.pilot import Pilot, opened_pilot
from anybatch.planning.preconditioning import REFUSED
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.records import Record
from anybatch.task import Task
from anybatch.world import World

__all__ = ["Branch", "BranchState", "train_branches"]

_SEEDS_APART = 7919  # between the data orders of two branches of an arm
_FEWEST_UPDATES = 12  # of a branch that tells anything


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """An arm of the comparison.

    Attributes:
        recipe: of `pilot_recipe`, with a batch size and a constant lr.
        num_updates: to train.
        is_trial: of a preconditioner, which the present recipe does not have.
        most_seconds: of training, after which it ends all the same.
    """

    recipe: Recipe
    num_updates: int
    is_trial: bool = False
    most_seconds: float = math.inf

    @property
    def batch_size(self) -> int:
        """Global."""
        return int(self.recipe.batch_size)

    @property
    def lr(self) -> float:
        """Constant; of the first group."""
        return float(self.recipe.optimizer.lr)

    def __str__(self) -> str:
        with_it = " with K-FAC" if self.is_trial else ""
        return f"{self.batch_size:,}{with_it} at lr {self.lr:.3g}"


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
        "seed", "update" (from 1), "loss" (of the training batch), "validation_loss" and
        "validation_metric", which are nan but in the last row of a branch, "preconditioned" (1: by
        one that is only tried) and "seconds" (since the branch began, evaluation left out); and
        where each branch of the first seed ended. A preconditioner that this model or machine does
        not bear, or that takes far longer than the others, is not tried on: the settings say why.

    Collectives:
        Those of the updates; every rank must call.
    """
    started = time.perf_counter()
    rows: list[tuple[float, ...]] = []
    ends: list[BranchState] = []
    refused = ""
    for seed in range(num_seeds):
        for number, branch in enumerate(branches):
            if refused and branch.is_trial:
                continue
            activity.show(f"branch {branch}, seed {seed + 1}")
            own = replace(branch.recipe, seed=branch.recipe.seed + seed * _SEEDS_APART)
            try:
                found = _trained(task, replace(branch, recipe=own), state, world, kept=seed == 0)
            except (InputError, torch.OutOfMemoryError) as error:
                if not branch.is_trial:
                    raise
                refused = " ".join(str(error).split())
                continue
            flag = float(branch.is_trial)
            rows += [(number, branch.batch_size, branch.lr, seed, *row[:4], flag, row.seconds)
                     for row in found.rows]  # fmt: skip
            if found.end is not None:
                ends.append(replace(found.end, branch=branch))
            if branch.is_trial and found.is_slow:
                refused = f"{len(found.rows)} updates took {found.rows[-1].seconds:.3g} seconds"
    names = ("branch", "batch_size", "lr", "seed", "update", "loss", "validation_loss",
             "validation_metric", "preconditioned", "seconds")  # fmt: skip
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    measured = Measurement(
        kind="branches",
        settings=recipe_settings(task, recipe)
        | {"num_seeds": num_seeds}
        | ({REFUSED: refused} if refused else {}),
        samples={
            name: tuple(map(float, column)) for name, column in zip(names, columns, strict=True)
        },
        estimates={},
        seconds=time.perf_counter() - started,
        examples=sum(int(row[1]) for row in rows),
        findings=_diverged(branches, rows),
    )
    return measured, ends


class _Row(NamedTuple):
    """An update of a branch; evaluations are nan but at its end."""

    update: int
    loss: float
    validation_loss: float
    validation_metric: float
    seconds: float


class _Found(NamedTuple):
    """A branch trained: its updates, where it stands if that was asked, whether time ended it."""

    rows: list[_Row]
    end: BranchState | None
    is_slow: bool


def _trained(
    task: Task, branch: Branch, state: dict[str, Any], world: World, *, kept: bool
) -> _Found:
    if branch.is_trial:
        step = state["step"]
        state = state | {"step": step | {"optimizer": step["optimizer"] | {"state": {}}}}
    with opened_pilot(task, branch.recipe, world=world, state=state) as pilot:
        first, began = pilot.training.updates, pilot.clock()
        pilot.train(seconds=branch.most_seconds, most_updates=first + branch.num_updates)
        rows = _rows(pilot, first, began)
        is_short = len(rows) < min(_FEWEST_UPDATES, branch.num_updates)
        end = None
        if kept and not pilot.diverged:
            there = copy.deepcopy(pilot.training.state_dict())
            end = BranchState(branch=branch, state=there, records=tuple(pilot.records))
        return _Found(rows, end, is_short and not pilot.diverged)


def _rows(pilot: Pilot, first: int, began: float) -> list[_Row]:
    looks = pilot.looks[-1:]
    last = (looks[0].loss, looks[0].metric) if looks else (math.nan, math.nan)
    rows = [
        _Row(update - first, loss, math.nan, math.nan, clock - began)
        for (update, loss), clock in zip(pilot.losses, pilot.clocks, strict=True)
    ]
    return [*rows[:-1], *(row._replace(validation_loss=last[0], validation_metric=last[1])
                          for row in rows[-1:])]  # fmt: skip


def _diverged(branches: Sequence[Branch], rows: Sequence[tuple[float, ...]]) -> tuple[Finding, ...]:
    lost = sorted({int(row[0]) for row in rows if not math.isfinite(row[5])})
    return tuple(
        Finding(
            name="branch-diverged",
            sentence=f"the branch at batch size {branches[number].batch_size:,} and lr "
            f"{branches[number].lr:.3g}{' with K-FAC' * branches[number].is_trial} "
            "diverged",
            advice="that lr is not used",
        )
        for number in lost
    )
