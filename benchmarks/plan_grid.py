"""The grid that a plan is judged by: batch size by factors of 4, lr by factors of 2, halving.

1. seconds of an update at each batch size, in turns;
2. all arms for a tenth of the case's scale in seconds; where the best lr of a batch size lies at
   the edge of its learning rates, these go on by a factor of 2 until it does not;
3. the best third of all arms, and the best of each batch size, for a third of the scale;
4. of those again the best third, and the best of each batch size, to the target;
5. the neighbours in lr of every arm that came within 1.3 x of the best, for as long as the best
   took; again where one of them was better.

One seed. An arm goes on from where its last round left it. Ranked by seconds to the target; without
it, by the median of the last three evaluations. Seconds are updates x CPU seconds of an update (one
thread), so the grid may run on a busy machine; all is timed again, together, at the end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anybatch import Task
from anybatch.run import read_json, write_json
from benchmarks.plan_tasks import PlanCase
from benchmarks.plan_training import at, step_seconds, train_to_target

__all__ = ["GRID_SEED", "Arm", "known_seconds", "search"]

GRID_SEED = 0
_FIRST, _SECOND = 0.1, 0.33  # of the scale: how long arms train in the first two rounds
_LONGEST = 5.0  # of the scale: how long an arm may train to the target
_MARGIN = 1.3  # of the best so far: how long the next arm of the last round may train
_FEWEST = 4  # arms that go on
_BELOW, _ABOVE = 3, 3  # learning rates on each side of the expected one, by factors of 2
_MOST_EXTENSIONS = 5
_WORST = math.inf
_EVER = 1e9  # seconds


@dataclass(frozen=True, kw_only=True, order=True)
class Arm:
    """One place of the grid.

    Attributes:
        batch_size: of an update.
        exponent: the lr is 2 to this power.
    """

    batch_size: int
    exponent: int

    @property
    def lr(self) -> float:
        """Of the optimizer."""
        return 2.0**self.exponent

    @property
    def name(self) -> str:
        """A plain file name."""
        return f"batch{self.batch_size}_lr2^{self.exponent}"


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What all rounds need.

    Attributes:
        case: that is searched.
        task: of the case.
        folder: keeps each arm's curve and its training.
        seconds: batch size -> seconds of an update.
    """

    case: PlanCase
    task: Task
    folder: Path
    seconds: dict[int, float]

    def train(self, arm: Arm, seconds: float) -> dict[str, Any]:
        """Train an arm until it has had so many seconds, or go on from its last round."""
        recipe = at(self.case.recipe, batch_size=arm.batch_size, lr=arm.lr, seed=GRID_SEED)
        most = self.updates(arm, seconds)
        known = self.curve(arm)
        if known is not None and (known["trained"] >= most or is_ended(known)):
            return known
        curve = train_to_target(
            self.task,
            recipe,
            most_updates=most,
            scale_updates=self.case.scale_seconds / self.seconds[arm.batch_size],
            state=self.folder / f"{arm.name}.pt",
        )
        write_json(self.folder / f"{arm.name}.json", curve)
        ended = curve["reached"] or curve["diverged"]
        state = f"ended at {ended}" if ended else f"{curve['evaluations'][-1]}"
        print(f"  {self.case.name} {arm.name}: {state}", flush=True)
        return curve

    def curve(self, arm: Arm) -> dict[str, Any] | None:
        """What an arm has done so far."""
        path = self.folder / f"{arm.name}.json"
        return read_json(path) if path.exists() else None

    def updates(self, arm: Arm, seconds: float) -> int:
        """How many updates an arm can take in so many seconds, at least 1."""
        return max(1, math.ceil(seconds / self.seconds[arm.batch_size]))

    def score(self, arm: Arm, seconds: float) -> tuple[float, float]:
        """After so many seconds: those to the target, then its quantity; less is better."""
        curve = self.curve(arm)
        if curve is None or curve["diverged"]:
            return _WORST, _WORST
        most = self.updates(arm, seconds)
        if curve["reached"] and curve["reached"] <= most:
            return curve["reached"] * self.seconds[arm.batch_size], 0.0
        return _WORST, last_value(curve, self.case, most)

    def ranked(self, arms: Sequence[Arm], seconds: float) -> list[Arm]:
        """Best first, by what they had done after so many seconds."""
        return sorted(arms, key=lambda arm: (*self.score(arm, seconds), arm))

    def reached_seconds(self, arm: Arm) -> float:
        """Seconds to the target; inf without it."""
        return self.score(arm, _EVER)[0]


def is_ended(curve: dict[str, Any]) -> bool:
    """Whether an arm reached the target or diverged.

    Args:
        curve: as `train_to_target` returns it.
    """
    return curve["reached"] is not None or curve["diverged"] is not None


def last_value(curve: dict[str, Any], case: PlanCase, most_updates: int) -> float:
    """Median of the target's quantity over the last three evaluations; less is better.

    Args:
        curve: as `train_to_target` returns it.
        case: whose target.
        most_updates: later evaluations are not looked at.
    """
    place = 1 if case.target.quantity == "loss" else 2
    seen = [entry[place] for entry in curve["evaluations"] if entry[0] <= most_updates]
    values = seen[-3:]
    if None in values or not values:
        return _WORST
    sign = -1.0 if case.target.relation == ">=" else 1.0
    return sign * float(statistics.median(values))


def search(case: PlanCase, folder: Path) -> dict[str, Any]:
    """Carry the grid out, going on with what an ended session has left.

    Args:
        case: that is searched.
        folder: keeps what is done.

    Returns:
        "step_seconds" by batch size, "arms" with their curves, "ranked" arms that reached the
        target with their seconds, the seconds the grid "cost", and whether the best lies "inside".
    """
    task = case.task()
    path = folder / "step-seconds.json"
    if not path.exists():
        write_json(path, _timed(case, task))
    timed = read_json(path)
    seconds = {int(size): entry["cpu_seconds"] for size, entry in timed.items()}
    found = _Search(case=case, task=task, folder=folder, seconds=seconds)
    arms = _first_round(found)
    for before, share in ((_FIRST, _SECOND), (_SECOND, _LONGEST)):
        arms = _going_on(found.ranked(arms, before * case.scale_seconds))
        for arm in arms:
            found.train(arm, min(share * case.scale_seconds, _allowed(found, arms)))
    _around_the_best(found)
    return _described(found, timed)


def _timed(case: PlanCase, task: Task) -> dict[str, dict[str, float]]:
    lr = case.recipe.optimizer.lr
    recipes = {
        str(size): at(case.recipe, batch_size=size, lr=lr / 100, seed=GRID_SEED)
        for size in case.batch_sizes
    }
    return step_seconds(task, recipes)


def _first_round(found: _Search) -> list[Arm]:
    """All arms a little; learning rates go on beyond an edge that was best."""
    seconds = _FIRST * found.case.scale_seconds
    everything: list[Arm] = []
    for size in found.case.batch_sizes:
        middle = _expected(found.case, size)
        arms = [
            Arm(batch_size=size, exponent=exponent)
            for exponent in range(middle - _BELOW, middle + _ABOVE + 1)
        ]
        for arm in arms:
            found.train(arm, seconds)
        for _ in range(_MOST_EXTENSIONS):
            further = _beyond(found.ranked(arms, seconds)[0], arms)
            if further is None:
                break
            found.train(further, seconds)
            arms.append(further)
        everything += arms
    return everything


def _expected(case: PlanCase, batch_size: int) -> int:
    """log2 of the present lr, carried by (B / B0)^0.75: between the root and the linear rule."""
    ratio = batch_size / case.present_batch_size
    return round(math.log2(case.recipe.optimizer.lr * ratio**0.75))


def _beyond(best: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm outside of the edge that `best` lies at, if it lies at one."""
    exponents = [arm.exponent for arm in arms]
    if best.exponent == max(exponents):
        return replace(best, exponent=best.exponent + 1)
    if best.exponent == min(exponents):
        return replace(best, exponent=best.exponent - 1)
    return None


def _allowed(found: _Search, arms: Sequence[Arm]) -> float:
    """How long the next arm may train: somewhat longer than the best that reached the target."""
    return _MARGIN * min(found.reached_seconds(arm) for arm in arms)


def _going_on(ranked: Sequence[Arm]) -> list[Arm]:
    """The best third, and the best of each batch size: what looks bad early may end well."""
    count = max(_FEWEST, math.ceil(len(ranked) / 3))
    best = {arm.batch_size: arm for arm in reversed(ranked)}
    return [arm for place, arm in enumerate(ranked) if place < count or arm in best.values()]


def _around_the_best(found: _Search) -> None:
    for _ in range(_MOST_EXTENSIONS):
        arms = _known_arms(found)
        limit = found.reached_seconds(arms[0])
        if limit == _WORST:
            return
        near = [arm for arm in arms if found.reached_seconds(arm) <= _MARGIN * limit]
        for arm in near:
            for change in (-1, 1):
                found.train(replace(arm, exponent=arm.exponent + change), limit)
        if _known_arms(found)[0] == arms[0]:
            return


def _known_arms(found: _Search) -> list[Arm]:
    """Every arm that was trained, best first."""
    arms = []
    for path in found.folder.glob("batch*.json"):
        size, _, exponent = path.stem.removeprefix("batch").partition("_lr2^")
        arms.append(Arm(batch_size=int(size), exponent=int(exponent)))
    return found.ranked(arms, _EVER)


def _described(found: _Search, timed: dict[str, Any]) -> dict[str, Any]:
    ranked = _known_arms(found)
    curves = {arm: curve for arm in ranked if (curve := found.curve(arm)) is not None}
    rows = [
        {"batch_size": arm.batch_size, "exponent": arm.exponent} | curves[arm] for arm in ranked
    ]
    best = ranked[0]
    sizes = found.case.batch_sizes
    return {
        "seed": GRID_SEED,
        "step_seconds": timed,
        "arms": rows,
        "cost_seconds": sum(
            curve["trained"] * found.seconds[arm.batch_size] for arm, curve in curves.items()
        ),
        "inside": all(
            replace(best, exponent=best.exponent + change) in curves for change in (-1, 1)
        )
        and best.batch_size not in (sizes[0], sizes[-1]),
    }


def known_seconds(grid: dict[str, Any]) -> dict[int, float]:
    """Batch size -> CPU seconds of an update, as the grid timed it.

    Args:
        grid: what `search` returned.
    """
    return {int(size): entry["cpu_seconds"] for size, entry in grid["step_seconds"].items()}
