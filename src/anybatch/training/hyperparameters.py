"""Scheduled settings of an optimizer: setting * schedule(progress), written before each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from anybatch.course import Course, check_momentum
from anybatch.errors import InputError
from anybatch.optim.decay import PeriodUpdates, read_decay, write_decay
from anybatch.optim.momentum import read_momentum, write_momentum
from anybatch.optim.rmsprop_warmup import sgd_share
from anybatch.recipe import Schedules
from anybatch.schedules import Clock, Constant, Duration, Position, resolve_schedule, value_at
from anybatch.training.build import Optimizer

__all__ = ["Hyperparameters"]


@final
class Hyperparameters:
    """Learning rate, momentum and weight decay of every parameter group over the run.

    The values at the time of construction are the settings that the schedules multiply; they are
    kept here and nowhere in the groups, so loading an optimizer's state changes nothing. A
    normalized weight decay counts the updates of the run or, where lr follows SGDR, of the present
    restart (`decay.PeriodUpdates`). An RMSprop warm-up's share of SGD is that of the examples
    before the update.

    Args:
        optimizer: just built.
        schedules: of the recipe.
        clock: lengths of the run.
        course: of the run; needed where a normalized weight decay meets a scheduled batch size.

    Attributes:
        lr_factor: on every group's scheduled lr, beside the schedule: what a controller moves; 1
            unless one does.
        batch_factor: the same of a controlled batch size, whose own state keeps it.
        fixed_lr: of the first group whose setting is not 0, in the place of its schedule; the
            others keep their ratios to it. What a measurement sets; None else.

    Raises:
        InputError: scheduled momentum reaches 1 or more, or momentum that is 0 is scheduled; the
            updates of a normalized decay cannot be counted.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedules: Schedules,
        clock: Clock,
        *,
        course: Course | None = None,
    ) -> None:
        self._optimizer = optimizer
        groups = optimizer.param_groups
        self._lr = resolve_schedule(schedules.lr, clock)
        self._momentum = resolve_schedule(schedules.momentum, clock)
        self._weight_decay = resolve_schedule(schedules.weight_decay, clock)
        self._lrs = [float(group["lr"]) for group in groups]
        self._momenta = [read_momentum(group) for group in groups]
        self._decays = [read_decay(group) for group in groups]
        self._conventions = [_convention_of(group) for group in groups]
        self._passages = [_passage_of(group, clock) for group in groups]
        self._updates = self._counted(clock, course)
        self.lr_factor = 1.0
        self.batch_factor = 1.0
        self._written_factor = 1.0  # spares a constant lr the writing
        self.fixed_lr: float | None = None
        check_momentum(max(self._momenta, default=0.0), self._momentum)
        if self._updates is not None:
            self._write_decay(_beginning(clock))
        self._clock = clock

    def _counted(self, clock: Clock, course: Course | None) -> PeriodUpdates | None:
        """What counts the updates of normalized weight decays; None where there are none."""
        if not any(group.get("decay") == "normalized" for group in self._optimizer.param_groups):
            return None
        if course is None:
            if clock.batch_size is None:
                rule = "must be told by a course where a normalized decay counts updates"
                raise InputError("batch size schedule", rule)
            course = Course(clock, float(clock.batch_size), Constant())
        return PeriodUpdates.of(self._lr, course)

    def apply(self, position: Position) -> None:
        """Write the values of the update at this position, each on its schedule's grid."""
        groups = self._optimizer.param_groups
        if self.fixed_lr is not None:
            reference = next(lr for lr in self._lrs if lr > 0.0)
            for group, lr in zip(groups, self._lrs, strict=True):
                group["lr"] = self.fixed_lr * (lr / reference)
        elif self._lr != Constant() or self._controlled != self._written_factor:
            factor = value_at(self._lr, position) * self._controlled
            for group, lr in zip(groups, self._lrs, strict=True):
                group["lr"] = lr * factor
            self._written_factor = self._controlled
        if self._momentum != Constant():
            self._apply(value_at(self._momentum, position), self._momenta, write_momentum)
        if self._weight_decay != Constant() or self._updates is not None:
            self._write_decay(position)
        for group, passage in zip(groups, self._passages, strict=True):
            if passage is not None:
                center, width = passage
                group["sgd_share"] = sgd_share(position.examples, center=center, width=width)

    @property
    def _controlled(self) -> float:
        """What controllers multiply the scheduled lr by."""
        return self.lr_factor * self.batch_factor

    def _write_decay(self, position: Position) -> None:
        factor = value_at(self._weight_decay, position)
        updates = None if self._updates is None else self._updates.at(position)
        for group, decay in zip(self._optimizer.param_groups, self._decays, strict=True):
            write_decay(group, decay * factor, updates)

    def restore_settings(self) -> None:
        """Write the settings into the groups, after another optimizer's state was loaded."""
        groups = zip(self._optimizer.param_groups, self._lrs, self._momenta, self._decays,
                     self._conventions, strict=True)  # fmt: skip
        updates = None if self._updates is None else self._updates.at(_beginning(self._clock))
        for group, lr, momentum, decay, convention in groups:
            group["lr"] = lr * self._controlled
            if momentum:
                write_momentum(group, momentum)
            for key in _CONVENTION_KEYS:
                group.pop(key, None)
            group.update(convention)
            if "weight_decay" in group:
                write_decay(group, decay, updates)

    @property
    def can_move_lr(self) -> bool:
        """Whether any group has a setting that `fixed_lr` can be set in proportion to."""
        return max(self._lrs, default=0.0) > 0.0

    def _apply(
        self, factor: float, settings: list[float], write: Callable[[dict[str, Any], float], None]
    ) -> None:
        for group, setting in zip(self._optimizer.param_groups, settings, strict=True):
            write(group, setting * factor)

    def state_dict(self) -> dict[str, float]:
        """`lr_factor`, and the one that the optimizer's groups show so far."""
        return {"lr_factor": self.lr_factor, "written_factor": self._written_factor}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put back what `state_dict` returned; the optimizer's own state is loaded elsewhere."""
        self.lr_factor, self._written_factor = state["lr_factor"], state["written_factor"]

    def current(self) -> dict[str, float]:
        """lr, momentum and weight decay (by its convention) of the first group, as they stand."""
        group = self._optimizer.param_groups[0]
        return {
            "lr": float(group["lr"]),
            "momentum": read_momentum(group),
            "weight_decay": read_decay(group),
        }


_CONVENTION_KEYS = ("decay", "reference_lr", "stated_weight_decay", "num_updates")


def _convention_of(group: dict[str, Any]) -> dict[str, Any]:
    """What a group says of its weight decay beside the number."""
    return {key: group[key] for key in _CONVENTION_KEYS if key in group}


def _passage_of(group: dict[str, Any], clock: Clock) -> tuple[int, int] | None:
    """Center and width of the passage from RMSprop to SGD in examples; None of other rules."""
    if "center" not in group:
        return None
    center, width = (clock.examples(Duration.parse(group[key])) for key in ("center", "width"))
    return center, max(1, width)


def _beginning(clock: Clock) -> Position:
    return Position(0, 0, clock.total_examples or 1)
