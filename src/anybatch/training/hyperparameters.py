"""Scheduled settings of an optimizer: setting * schedule(progress), written before each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from anybatch.course import check_momentum
from anybatch.optim.momentum import read_momentum, write_momentum
from anybatch.recipe import Schedules
from anybatch.schedules import Clock, Constant, Position, resolve_schedule, value_at
from anybatch.training.build import Optimizer

__all__ = ["Hyperparameters"]


@final
class Hyperparameters:
    """Learning rate, momentum and weight decay of every parameter group over the run.

    The values at the time of construction are the settings that the schedules multiply; they are
    kept here and nowhere in the groups, so loading an optimizer's state changes nothing.

    Args:
        optimizer: just built.
        schedules: of the recipe.
        clock: lengths of the run.

    Attributes:
        lr_factor: on every group's scheduled lr, beside the schedule: what a controller moves; 1
            unless one does.
        fixed_lr: of the first group whose setting is not 0, in the place of its schedule; the
            others keep their ratios to it. What a measurement sets; None else.

    Raises:
        InputError: scheduled momentum reaches 1 or more, or momentum that is 0 is scheduled.
    """

    def __init__(self, optimizer: Optimizer, schedules: Schedules, clock: Clock) -> None:
        self._optimizer = optimizer
        groups = optimizer.param_groups
        self._lr = resolve_schedule(schedules.lr, clock)
        self._momentum = resolve_schedule(schedules.momentum, clock)
        self._weight_decay = resolve_schedule(schedules.weight_decay, clock)
        self._lrs = [float(group["lr"]) for group in groups]
        self._momenta = [read_momentum(group) for group in groups]
        self._decays = [float(group.get("weight_decay", 0.0)) for group in groups]
        self.lr_factor = 1.0
        self._written_factor = 1.0  # spares a constant lr the writing
        self.fixed_lr: float | None = None
        check_momentum(max(self._momenta, default=0.0), self._momentum)

    def apply(self, position: Position) -> None:
        """Write the values of the update at this position, each on its schedule's grid."""
        groups = self._optimizer.param_groups
        if self.fixed_lr is not None:
            reference = next(lr for lr in self._lrs if lr > 0.0)
            for group, lr in zip(groups, self._lrs, strict=True):
                group["lr"] = self.fixed_lr * (lr / reference)
        elif self._lr != Constant() or self.lr_factor != self._written_factor:
            factor = value_at(self._lr, position) * self.lr_factor
            for group, lr in zip(groups, self._lrs, strict=True):
                group["lr"] = lr * factor
            self._written_factor = self.lr_factor
        if self._momentum != Constant():
            self._apply(value_at(self._momentum, position), self._momenta, write_momentum)
        if self._weight_decay != Constant():
            factor = value_at(self._weight_decay, position)
            for group, decay in zip(groups, self._decays, strict=True):
                group["weight_decay"] = decay * factor

    def restore_settings(self) -> None:
        """Write the settings into the groups, after another optimizer's state was loaded."""
        groups = zip(self._optimizer.param_groups, self._lrs, self._momenta, self._decays,
                     strict=True)  # fmt: skip
        for group, lr, momentum, decay in groups:
            group["lr"] = lr * self.lr_factor
            if momentum:
                write_momentum(group, momentum)
            if "weight_decay" in group:
                group["weight_decay"] = decay

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
        """lr, momentum and weight decay of the first group, as they stand."""
        group = self._optimizer.param_groups[0]
        return {
            "lr": float(group["lr"]),
            "momentum": read_momentum(group),
            "weight_decay": float(group.get("weight_decay", 0.0)),
        }
