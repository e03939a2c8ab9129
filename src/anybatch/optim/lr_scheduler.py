"""Any schedule as a plain torch `LRScheduler`, for loops that are not ours.

It counts updates and recomputes every value from that count. So it can be saved and resumed in any
order with the optimizer, and past the end it holds the last value. Call `step()` once after each
update that was really taken, as for every scheduler of torch.

Lightning: return it as {"scheduler": ..., "interval": "step"}; the default interval is an epoch.
Hugging Face: `Trainer(optimizers=(optimizer, scheduler))`, which steps it once per update.
Accelerate: a scheduler given to `prepare` is stepped `num_processes` times per update unless
`split_batches=True`, so it would run that many times too fast. Leave the scheduler out of
`prepare` and step it yourself when `accelerator.sync_gradients` and not
`accelerator.optimizer_step_was_skipped`; that is right on any number of processes.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anybatch.errors import InputError
from anybatch.optim.momentum import read_momentum, write_momentum
from anybatch.schedules import Clock, Position, Schedule, resolve_schedule, value_at

__all__ = ["ScheduleLR", "schedule_as_lr_scheduler"]


def schedule_as_lr_scheduler(
    schedule: Schedule,
    optimizer: Optimizer,
    *,
    total_updates: int | None = None,
    updates_per_epoch: int | None = None,
    clock: Clock | None = None,
    momentum: Schedule | None = None,
    weight_decay: Schedule | None = None,
) -> ScheduleLR:
    """A torch `LRScheduler` that multiplies each group's learning rate by the schedule.

    Args:
        schedule: of the learning rate; the groups keep their ratios.
        optimizer: its present learning rates, momenta and decays are the settings.
        total_updates: of the whole run, >= 1. This, or a clock.
        updates_per_epoch: gives durations in epochs their meaning; only with total_updates.
        clock: instead, the lengths of the run in examples: exact also where the last batch of an
            epoch is short.
        momentum: of momentum, or of Adam's beta1; None leaves it alone.
        weight_decay: of weight decay; None leaves it alone.

    Raises:
        InputError: neither or both of total_updates and clock, a schedule that the clock cannot
            resolve, momentum where the optimizer has none or where it would reach 1.

    Example:
        >>> import torch
        >>> from anybatch.schedules import Linear, Warmup, updates
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        >>> warmup = Warmup(duration=updates(2), into=Linear())
        >>> scheduler = schedule_as_lr_scheduler(warmup, optimizer, total_updates=6)
        >>> lrs = []
        >>> for _ in range(7):
        ...     lrs += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> [round(lr, 12) for lr in lrs]
        [0.0, 0.25, 0.5, 0.375, 0.25, 0.125, 0.0]
    """
    if (clock is None) == (total_updates is None):
        rule = "must be given, or a clock, and not both"
        raise InputError("total_updates", rule, total_updates)
    for name, count in (("total_updates", total_updates), ("updates_per_epoch", updates_per_epoch)):
        if count is not None and count < 1:
            raise InputError(name, "must be >= 1", count)
    if clock is None:
        clock = Clock(updates_per_epoch, 1, total_updates)  # an update counts as one example
    elif updates_per_epoch is not None:
        raise InputError("updates_per_epoch", "must be left out with a clock", updates_per_epoch)
    return ScheduleLR(optimizer, schedule, clock, momentum=momentum, weight_decay=weight_decay)


@final
class ScheduleLR(LRScheduler):
    """The scheduler that `schedule_as_lr_scheduler` makes.

    Its state is plain numbers and tensors (`torch.load(weights_only=True)`); loading it writes the
    recomputed values into the optimizer, so either may be loaded first.

    Args:
        optimizer: at its settings, or loaded from a checkpoint with `initial_lr` in its groups.
        schedule: of the learning rate.
        clock: lengths of the run; the batch size must be known.
        momentum: of momentum or beta1, or None.
        weight_decay: of weight decay, or None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        clock: Clock,
        *,
        momentum: Schedule | None = None,
        weight_decay: Schedule | None = None,
    ) -> None:
        if clock.batch_size is None:
            raise InputError("clock", "must have a batch size to count updates", None)
        self._clock = clock
        self._lr = resolve_schedule(schedule, clock)
        self._momentum = None if momentum is None else resolve_schedule(momentum, clock)
        self._decay = None if weight_decay is None else resolve_schedule(weight_decay, clock)
        self._momenta = [read_momentum(group) for group in optimizer.param_groups]
        self._decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        if self._momentum is not None:
            _check_momentum(self._momentum, self._momenta)
        super().__init__(optimizer)

    def _position(self) -> Position:
        return self._clock.position(max(0, self.last_epoch))

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at the present count: settings times the schedule."""
        self._notice_new_groups()
        factor = value_at(self._lr, self._position())
        return [base * factor for base in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """What torch asks for in `step(epoch)`: the same, since nothing here is recursive."""
        return self.get_lr()

    def _notice_new_groups(self) -> None:
        """A group added later, as after unfreezing, has as its setting the lr it came with."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            lr = group["lr"]
            group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
            base = group["initial_lr"]
            self.base_lrs.append(base.clone() if isinstance(base, Tensor) else base)
            self._momenta.append(read_momentum(group))
            self._decays.append(float(group.get("weight_decay", 0.0)))

    def step(self, epoch: int | None = None) -> None:
        """Count one update and write the values of the next; see torch's `LRScheduler.step`."""
        super().step(epoch)
        self._write_others()

    def _write_others(self) -> None:
        position, groups = self._position(), self.optimizer.param_groups
        if self._momentum is not None:
            factor = value_at(self._momentum, position)
            for group, momentum in zip(groups, self._momenta, strict=True):
                write_momentum(group, momentum * factor)
        if self._decay is not None:
            factor = value_at(self._decay, position)
            for group, decay in zip(groups, self._decays, strict=True):
                group["weight_decay"] = decay * factor

    def state_dict(self) -> dict[str, Any]:
        """The count and the settings; the schedules are given anew when it is made again."""
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "base_lrs": [*map(_copied, self.base_lrs)],
            "momenta": [*self._momenta],
            "weight_decays": [*self._decays],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a saved count, and write its values into the optimizer.

        Raises:
            InputError: the state is of another number of groups.
        """
        groups, saved = self.optimizer.param_groups, state_dict["base_lrs"]
        if len(saved) != len(groups):
            rule = f"must be of the optimizer's {len(groups)} groups"
            raise InputError("scheduler state", rule, len(saved))
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["step_count"]
        self.base_lrs = [*map(_copied, saved)]
        self._momenta, self._decays = [*state_dict["momenta"]], [*state_dict["weight_decays"]]
        for group, lr in zip(groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(lr))
            else:
                group["lr"] = float(lr)
        self._last_lr = [_copied(group["lr"]) for group in groups]
        self._write_others()


def _copied(value: float | Tensor) -> float | Tensor:
    return value.clone() if isinstance(value, Tensor) else value


def _check_momentum(schedule: Schedule, momenta: list[float]) -> None:
    low, high = schedule.bounds()
    if low < high and max(momenta) == 0.0:
        rule = "must be left out while the optimizer's momentum is 0"
        raise InputError("momentum", rule, schedule.name)
    if max(momenta) * high >= 1.0:
        raise InputError("momentum", "must keep momentum below 1", f"{max(momenta) * high:.6g}")
