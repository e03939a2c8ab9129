"""The one step of a training, timed: forward, backward and optimizer apart; the weights stay.

The seam between forward and backward is the loss, which stands in the step as a plain function:
while a training is timed, one that looks at the clock stands in its place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from anybatch.training.portion import Portion
from anybatch.training.training import Training

__all__ = ["Marks", "TimedStep", "timed_step"]


@final
class Marks:
    """Points in time on the device that computes.

    On CUDA they are events of the present stream, so that marking does not make the host wait.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] | None = [] if device.type == "cuda" else None
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """Note the time."""
        if self._events is None:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def seconds(self) -> list[float]:
        """Between one mark and the next. Waits for the device."""
        if self._events is None:
            return [after - before for before, after in zip(self._times, self._times[1:])]  # noqa: B905
        self._events[-1].synchronize()
        pairs = zip(self._events, self._events[1:])  # noqa: B905
        return [1e-3 * before.elapsed_time(after) for before, after in pairs]


@final
class TimedStep:
    """Updates of a training at lr 0, so that the weights stay; made by `timed_step`."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._position = training.feed.position()
        self._lrs = [group["lr"] for group in training.optimizer.param_groups]
        self._marks: Marks | None = None
        self._forward_marked = False

    def take(self, portion: Portion) -> Marks:
        """One update whose pass is the whole portion, whatever the recipe's micro-batch size.

        Args:
            portion: this rank's share.

        Returns:
            Four marks: before, after the forward pass and its loss, after the backward pass and
            the gradient's transforms, after the update. Of an update in several passes (blocks, a
            penalty, cached outputs) all but the first forward pass counts as backward.

        Collectives:
            Those of an update; every rank must call.
        """
        training = self._training
        self.put_lrs_back()  # for a penalty in units of lr, which costs nothing at 0
        marks = self._marks = Marks(training.world.device)
        self._forward_marked = False
        training.one_step.gradient(portion, micro_batch_size=len(portion.indices))
        marks.mark()
        training.one_step.update(self._position)
        marks.mark()
        self._marks = None
        return marks

    def put_lrs_back(self) -> None:
        """Every group's lr, as found."""
        for group, lr in zip(self._training.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr

    def has_gradient(self) -> bool:
        """Whether the last update had any gradient that is not 0, nan included."""
        gradients = (parameter.grad for parameter in self._training.model.parameters())
        return any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)

    def gradient_bytes(self) -> int:
        """Size of the gradient, which ranks exchange in every update."""
        trainable = (p for p in self._training.model.parameters() if p.requires_grad)
        return sum(parameter.numel() * parameter.element_size() for parameter in trainable)

    def after_loss(self) -> None:
        """The forward pass has ended: the first of an update, where it has several."""
        if self._marks is not None and not self._forward_marked:
            self._forward_marked = True
            self._marks.mark()


@contextmanager
def timed_step(training: Training) -> Iterator[TimedStep]:
    """The step of a training with a clock in it; loss and lr are as found afterwards.

    Args:
        training: in training mode from here on; its optimizer's state and BatchNorm's statistics
            move, so open it by `subjects.opened_training`.
    """
    step, timed = training.one_step, TimedStep(training)
    loss, fixed_lr = step.loss, step.hyperparameters.fixed_lr

    def loss_and_time(outputs: Any, targets: Any) -> Tensor:
        losses = loss(outputs, targets)
        timed.after_loss()
        return losses

    step.train_mode()
    if step.hyperparameters.can_move_lr:
        step.hyperparameters.fixed_lr = 0.0
    step.loss = loss_and_time
    try:
        yield timed
    finally:
        step.loss, step.hyperparameters.fixed_lr = loss, fixed_lr
        timed.put_lrs_back()
