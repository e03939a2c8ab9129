"""Loops that a measurement can drive: a training of ours, or anybody's step function.

A loop takes one update at a given learning rate and says the loss; it can go back to where it
began, as often as wanted, and leaves everything as found at its end.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.measuring.keeping import Kept
from anybatch.recipe import Recipe, Schedules
from anybatch.schedules import Constant, updates
from anybatch.task import Task
from anybatch.training.evaluation import evaluate
from anybatch.training.snapshot import preserved_random_state, preserved_training, seed_everything
from anybatch.training.training import Training
from anybatch.world import World

__all__ = ["Loop", "OwnLoop", "Sample", "TrainingLoop", "new_training"]

_METRIC_EXAMPLES = 500
_LONGEST = 10**9  # updates: a measurement ends by itself


@dataclass(frozen=True, slots=True)
class Sample:
    """What one update says.

    Attributes:
        loss: mean over the global batch, before the update.
        examples: of the global batch; 0 where a loop does not know.
        metric: beside the loss; nan where none was measured.
        counted: False where the update was skipped (a gradient scaler that found an overflow).
    """

    loss: float
    examples: int = 0
    metric: float = math.nan
    counted: bool = True


class Loop(Protocol):
    """What an LR range test needs of a training."""

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group, as found."""
        ...

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One update at this learning rate, the other groups in their ratios to the first."""
        ...

    def restart(self) -> None:
        """Go back to where the loop was when the measurement began."""
        ...

    @property
    def ignores_weights(self) -> bool:
        """Whether the updates so far gave no gradient at all: the loss ignores the weights."""
        ...

    def bad_data(self) -> str:
        """Which example of the last update's batch is not finite, in words; "" if none is."""
        ...


# --- a training of ours ------------------------------------------------------------------------


def new_training(task: Task, recipe: Recipe, *, seed: int, world: World | None) -> Training:
    """A training of a recipe whose lr is to be found: constant lr, without an end, target or stop.

    Args:
        task: what is to be learned.
        recipe: every other choice.
        seed: of weights, order and draws.
        world: ranks that train together.
    """
    stopping = dataclasses.replace(
        recipe.stopping, target=None, patience=None, evaluate_every=updates(_LONGEST)
    )
    schedules = dataclasses.replace(recipe.schedules, lr=Constant(), batch_size=Constant())
    return Training(
        task,
        dataclasses.replace(
            recipe,
            seed=seed,
            duration=updates(_LONGEST),
            schedules=_without_momentum(schedules),
            stopping=stopping,
        ),
        world=world,
    )


def _without_momentum(schedules: Schedules) -> Schedules:
    """Momentum and decay at their settings: what their schedules do depends on a whole run."""
    return dataclasses.replace(schedules, momentum=Constant(), weight_decay=Constant())


@final
class TrainingLoop:
    """Drives a Training; made by `TrainingLoop.around`, which puts it back at the end.

    An update whose loss is not finite is left out: the weights stay, so that a bad batch is told
    from a divergence.

    Args:
        training: to drive; a loop may restart it as often as it likes.
        needed: updates that will be taken between two restarts, at most.
    """

    def __init__(self, training: Training, *, needed: int) -> None:
        self._training, self._needed = training, needed
        hyperparameters = training.one_step.hyperparameters
        hyperparameters.apply(training.feed.position())
        self._lr = hyperparameters.current()["lr"]
        if self._lr <= 0.0:
            raise InputError("optimizer.lr", "must be > 0 to be varied", self._lr)
        self._state = copy.deepcopy(training.state_dict())
        self._batches_ahead = 0
        self._last: tuple[int, int, int] | None = None
        self._largest_gradient = 0.0
        self._gradients_seen = 0
        self._metric_data = self._some_of_validation()

    @classmethod
    @contextmanager
    def around(cls, training: Training, *, needed: int) -> Iterator[TrainingLoop]:
        """A loop over a training that is bitwise as found afterwards, also after an exception.

        Args:
            training: may have come to its end; its position in the schedules is then a little
                before.
            needed: updates that will be taken between two restarts, at most.
        """
        hyperparameters = training.one_step.hyperparameters
        factor = hyperparameters.lr_factor
        with preserved_training(training):
            try:
                yield cls(training, needed=needed)
            finally:
                hyperparameters.lr_factor = factor

    @property
    def lr(self) -> float:
        """Of the first group, as found."""
        return self._lr

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One update at this learning rate.

        Collectives:
            Those of an update, and one all-reduce of a number; every rank must call.
        """
        training = self._training
        portion = training.feed.next()
        self._last = (training.feed.epoch, training.feed.offset, portion.num_examples)
        training.one_step.train_mode()
        training.gradient(portion)
        loss = self._mean_loss(portion.num_examples)
        if math.isfinite(loss):
            self._watch_gradient()
            training.one_step.hyperparameters.lr_factor = lr / self._lr
            training.update(portion.num_examples)
        else:
            training.feed.advance(portion.num_examples)
        metric = self._metric() if with_metric and math.isfinite(loss) else math.nan
        return Sample(loss, portion.num_examples, metric)

    def _mean_loss(self, num_examples: int) -> float:
        """Over the global batch, the same on every rank."""
        step, world = self._training.one_step, self._training.world
        total = torch.zeros(1, dtype=torch.float64, device=world.device)
        for losses in step.losses:
            total += losses.sum(dtype=torch.float64)
        world.sum_in_place(total)
        return float(total) / num_examples

    def _watch_gradient(self) -> None:
        """Look at the first gradients: none at all means that the loss ignores the weights."""
        if self._gradients_seen >= 3:
            return
        self._gradients_seen += 1
        for parameter in self._training.model.parameters():
            if parameter.grad is not None:
                largest = float(parameter.grad.detach().abs().max()) if parameter.numel() else 0.0
                self._largest_gradient = max(self._largest_gradient, largest)

    @property
    def ignores_weights(self) -> bool:
        """Whether every gradient so far was exactly zero."""
        return self._gradients_seen > 0 and self._largest_gradient == 0.0

    def bad_data(self) -> str:
        """Which example of the last update's batch is not finite."""
        if self._last is None:
            return ""
        try:
            self._training.feed.refuse_bad_data(*self._last)
        except InputError as error:
            return str(error)
        return ""

    def restart(self) -> None:
        """Go back to the beginning; the state is copied, as an optimizer would change it."""
        self._training.load_state_dict(copy.deepcopy(self._state))
        feed = self._training.feed
        size = feed.next().num_examples if feed.examples < feed.total_examples else feed.last_size
        left = feed.total_examples - feed.examples
        position = feed.state_dict()
        if self._batches_ahead:
            feed.advance(self._batches_ahead * size)
            position = feed.state_dict() | {"examples": position["examples"]}
        if left < self._needed * size:  # near its end: as if it had just enough left
            position |= {"examples": max(0, feed.total_examples - self._needed * size)}
        feed.load_state_dict(position)

    def begin_at(self, batches_ahead: int) -> None:
        """From the next restart on, begin this many batches further on in the data."""
        self._batches_ahead = batches_ahead

    def _some_of_validation(self) -> Any:
        source = self._training.task.source("validation")
        if source.num_examples is None or not source.random_access:
            return None
        count = min(_METRIC_EXAMPLES, source.num_examples)
        return source.subset(torch.arange(count)).to(self._training.world.device, num_workers=0)

    def _metric(self) -> float:
        """Of the task, on a fixed part of the validation split."""
        if self._metric_data is None:
            return math.nan
        training = self._training
        objectives = (training.one_step.plain_loss, training.task.judge)
        with preserved_random_state():
            _, metric = evaluate(
                training.model,
                self._metric_data,
                objectives,
                training.recipe.compute,
                training.world,
            )
        return metric


# --- anybody's loop ----------------------------------------------------------------------------


@final
class OwnLoop:
    """Drives a function that takes one update and returns its loss.

    Args:
        step: takes one update at the optimizers' present lr; returns the loss, or (loss, metric),
            or a mapping with "loss" and perhaps "metric": numbers or tensors of one element.
        optimizers: whose learning rates are moved together, each group in its ratio to the first.
        kept: what is put back on a restart.
        seed: of the generators after a restart; None puts them back as found.
    """

    def __init__(
        self,
        step: Callable[[], Any],
        optimizers: Sequence[torch.optim.Optimizer],
        kept: Kept,
        *,
        world: World,
    ) -> None:
        self._step, self._optimizers, self._kept = step, optimizers, kept
        self._world = world
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        lrs = [float(group["lr"]) for group in self._groups]
        if lrs[0] <= 0.0:
            raise InputError("optimizer lr of the first group", "must be > 0", lrs[0])
        self._lr, self._ratios = lrs[0], [lr / lrs[0] for lr in lrs]
        self.seed: int | None = None
        self._updates = 0

    @property
    def lr(self) -> float:
        """Of the first group of the first optimizer, as found."""
        return self._lr

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One call of the step function.

        Raises:
            InputError: it returned no number, or changed the learning rate itself.

        Collectives:
            One all-reduce of two numbers where ranks train together; every rank must call.
        """
        for group, ratio in zip(self._groups, self._ratios, strict=True):
            _write_lr(group, lr * ratio)
        scales = self._kept.scales()
        loss, metric = _read(self._step())
        self._updates += 1
        found = float(self._groups[0]["lr"])
        if not math.isclose(found, lr * self._ratios[0], rel_tol=1e-6):
            rule = "must not change the learning rate during a range test"
            hint = "leave scheduler.step() out of it"
            raise InputError("step", rule, f"{lr:.4g} became {found:.4g}", hint=hint)
        skipped = any(now < before for before, now in zip(scales, self._kept.scales(), strict=True))
        loss, metric = self._agreed(loss, metric)
        return Sample(loss, metric=metric, counted=not skipped)

    def _agreed(self, loss: float, metric: float) -> tuple[float, float]:
        """Mean over ranks, so that all of them decide the same."""
        if self._world.size == 1:
            return loss, metric
        values = torch.tensor([loss, metric], dtype=torch.float64, device=self._world.device)
        self._world.sum_in_place(values)
        loss, metric = (values / self._world.size).tolist()
        return loss, metric

    @property
    def ignores_weights(self) -> bool:
        """Whether no parameter has changed since the last restart."""
        return self._updates > 0 and not self._kept.has_changed()

    def bad_data(self) -> str:
        """Nothing is known of somebody else's data."""
        return ""

    def restart(self) -> None:
        """Put everything back; with a seed, the generators are then seeded."""
        self._kept.put_back()
        self._updates = 0
        if self.seed is not None:
            seed_everything(self.seed)


def _write_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):  # of a capturable or compiled optimizer: never rebound
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _read(answer: Any) -> tuple[float, float]:
    """Loss and metric of what a step function returned."""
    loss, metric = answer, math.nan
    if isinstance(answer, Mapping):
        if "loss" not in answer:
            raise InputError("step", 'must return a mapping with "loss"', sorted(map(str, answer)))
        loss, metric = answer["loss"], answer.get("metric", math.nan)
    elif isinstance(answer, (tuple, list)) and len(answer) == 2:
        loss, metric = answer
    try:
        return _number(loss), _number(metric)
    except (TypeError, ValueError, RuntimeError):
        rule = 'must return a loss, (loss, metric) or {"loss": ...}, one number each'
        raise InputError("step", rule, type(loss).__name__) from None
