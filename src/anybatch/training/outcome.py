"""How a training ends: outcomes, the target, and requests to stop that all ranks agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.recipe import Target
from anybatch.records import EvalRecord
from anybatch.run import StatusName
from anybatch.world import World

__all__ = ["Outcome", "StopRequest", "TargetWatch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Why a training has ended.

    Attributes:
        name: as in a Run's status.
        reason: one sentence, with advice where there is any.
        signal: number of the signal that asked for it.
    """

    name: StatusName
    reason: str
    signal: int | None = None


@final
class TargetWatch:
    """Watches evaluations for the target.

    Args:
        target: of the recipe.
        metric: the task's; a target without quantity or relation takes its name and direction.

    Raises:
        InputError: the target names neither "loss" nor the metric.
    """

    def __init__(self, target: Target, metric: Metric) -> None:
        self.quantity = target.quantity or metric.name
        if self.quantity not in ("loss", metric.name):
            rule = f"must be about loss or {metric.name}"
            raise InputError("stopping.target", rule, str(target))
        direction: Literal["max", "min"] = "min" if self.quantity == "loss" else metric.direction
        self.relation = target.relation or (">=" if direction == "max" else "<=")
        self.value = target.value
        if self.quantity == "accuracy" and not 0.0 <= self.value <= 1.0:
            rule = "must be in [0, 1] for an accuracy"
            raise InputError("stopping.target", rule, str(target), hint="0.99 is 99 %")
        self.reached_update: int | None = None
        self.reached_seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.quantity} {self.relation} {self.value:.6g}"

    def measured(self, record: EvalRecord) -> float:
        """The record's value of the target's quantity."""
        return record.loss if self.quantity == "loss" else record.metric

    def is_reached(self, record: EvalRecord) -> bool:
        """Whether this evaluation reaches the target; the first time is remembered."""
        value = self.measured(record)
        reached = value >= self.value if self.relation == ">=" else value <= self.value
        if reached and self.reached_update is None:
            self.reached_update, self.reached_seconds = record.update, record.seconds
        return reached

    def state_dict(self) -> dict[str, Any]:
        """When the target was reached, if it was."""
        return {"update": self.reached_update, "seconds": self.reached_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        self.reached_update, self.reached_seconds = state["update"], state["seconds"]


@final
class StopRequest:
    """A wish to stop, from a signal or a clock, that becomes a decision of rank 0.

    Ranks agree only now and then, since agreeing costs a broadcast: about twice a second, the
    number of updates between being decided by rank 0 as well.

    Args:
        world: whose ranks agree.
    """

    _SECONDS_BETWEEN = 0.5
    _MOST_UPDATES_BETWEEN = 64

    def __init__(self, world: World) -> None:
        self._world = world
        self._wish: Outcome | None = None
        self._countdown = 1

    def ask(self, outcome: Outcome) -> None:
        """Ask for an end; safe to call from a signal handler."""
        self._wish = outcome

    @property
    def wish(self) -> Outcome | None:
        """What this rank was asked for last, also where the training ended before it was agreed."""
        return self._wish

    def agreed(self, seconds_per_update: float) -> Outcome | None:
        """The end that all ranks have agreed on, or None; call once after each update.

        Args:
            seconds_per_update: of this training lately; rank 0's counts.

        Collectives:
            Now and then one broadcast; every rank must call equally often.
        """
        self._countdown -= 1
        if self._countdown > 0:
            return None
        between = self._SECONDS_BETWEEN / max(seconds_per_update, 1e-6)
        updates = max(1, min(self._MOST_UPDATES_BETWEEN, int(between)))
        outcome, self._countdown = self._world.from_first((self._wish, updates))
        return outcome
