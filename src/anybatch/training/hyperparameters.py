"""Scheduled settings of an optimizer: setting * schedule(progress), written before each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from anybatch.errors import InputError
from anybatch.recipe import Schedules
from anybatch.schedules import Clock, Constant, OneCycle, Schedule, Warmup, resolve_schedule
from anybatch.training.build import Optimizer

__all__ = ["Hyperparameters"]


def _read_momentum(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def _write_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, group["betas"][1])
    else:
        group["momentum"] = value


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
        lr_factor: on every group's scheduled lr, beside the schedule: what a controller or a
            measurement moves; 1 unless one does.

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
        self._momenta = [_read_momentum(group) for group in groups]
        self._decays = [float(group.get("weight_decay", 0.0)) for group in groups]
        self.lr_factor = 1.0
        self._written_factor = 1.0  # spares a constant lr the writing
        if _varies(self._momentum) and max(self._momenta) == 0.0:
            rule = "must be constant while the optimizer's momentum is 0"
            raise InputError("schedules.momentum", rule, schedules.momentum.name)
        highest = max(self._momenta, default=0.0) * _highest(self._momentum)
        if highest >= 1.0:
            raise InputError("schedules.momentum", "must keep momentum below 1", f"{highest:.6g}")

    def apply(self, progress: float) -> None:
        """Write the values of `progress` (examples seen before the update / of the run)."""
        groups = self._optimizer.param_groups
        if self._lr != Constant() or self.lr_factor != self._written_factor:
            factor = self._lr(progress) * self.lr_factor
            for group, lr in zip(groups, self._lrs, strict=True):
                group["lr"] = lr * factor
            self._written_factor = self.lr_factor
        if self._momentum != Constant():
            self._apply(self._momentum(progress), self._momenta, _write_momentum)
        if self._weight_decay != Constant():
            factor = self._weight_decay(progress)
            for group, decay in zip(groups, self._decays, strict=True):
                group["weight_decay"] = decay * factor

    def _apply(
        self, factor: float, settings: list[float], write: Callable[[dict[str, Any], float], None]
    ) -> None:
        for group, setting in zip(self._optimizer.param_groups, settings, strict=True):
            write(group, setting * factor)

    def current(self) -> dict[str, float]:
        """lr, momentum and weight decay of the first group, as they stand."""
        group = self._optimizer.param_groups[0]
        return {
            "lr": float(group["lr"]),
            "momentum": _read_momentum(group),
            "weight_decay": float(group.get("weight_decay", 0.0)),
        }


def _varies(schedule: Schedule) -> bool:
    return not isinstance(schedule, Constant)


def _highest(schedule: Schedule) -> float:
    """The largest factor; between the levels that it is written with, a schedule is monotone."""
    match schedule:
        case Constant():
            return schedule.value
        case Warmup():
            return max(schedule.start, _highest(schedule.into))
        case OneCycle():
            return max(schedule.start, schedule.peak, schedule.end)
        case _:
            return max(schedule.start, schedule.end)
