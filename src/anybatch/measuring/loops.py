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

import numpy as np
import torch
from torch import Tensor

from anybatch.data.source import Source
from anybatch.errors import InputError
from anybatch.measuring.blow_up import final_rise
from anybatch.measuring.keeping import Kept
from anybatch.optim.decay import decoupled_in_own_run
from anybatch.recipe import Recipe, Schedules
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.evaluation import evaluate
from anybatch.training.snapshot import preserved_random_state, preserved_training
from anybatch.training.training import Training
from anybatch.world import World

__all__ = ["Loop", "OwnLoop", "Sample", "TrainingLoop", "new_training"]

_METRIC_EXAMPLES = 500
_LONGEST = 10**9  # updates: a measurement ends by itself
_SEEDS_APART = 1_000_003  # between ranks


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

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One update at this learning rate, the other groups in their ratios to the first."""
        ...

    def restart(self) -> None:
        """Go back to where the loop was when the measurement began."""
        ...

    def ignores_weights(self) -> bool:
        """Whether the updates so far gave no gradient at all; every rank must call."""
        ...

    def bad_data(self) -> str:
        """Which example of the last update's batch is not finite, in words; "" if none is."""
        ...


def _follows_divergence(error: Exception, losses: Sequence[float]) -> bool:
    """Whether an error is what a diverged model raises (a distribution of nan, exp of the loss)."""
    if isinstance(error, InputError) or not losses:
        return False
    return not math.isfinite(losses[-1]) or final_rise(np.asarray(losses), 1) is not None


# --- a training of ours ------------------------------------------------------------------------


def new_training(task: Task, recipe: Recipe, *, seed: int, world: World | None) -> Training:
    """A training of a recipe whose lr is to be found: no schedule, target or stop.

    A normalized weight decay is what it is at the beginning of the recipe's own run.

    Args:
        task: what is to be learned.
        recipe: every other choice.
        seed: of weights, order and draws.
        world: ranks that train together.
    """
    stopping = dataclasses.replace(
        recipe.stopping, target=None, patience=None, evaluate_every=updates(_LONGEST)
    )
    changed = dataclasses.replace(
        recipe,
        optimizer=decoupled_in_own_run(recipe, task.source("train").num_examples),
        seed=seed,
        duration=updates(_LONGEST),
        schedules=Schedules(),
        batch_control=None,
        stopping=stopping,
        plateau=None,
    )
    return Training(task, changed, world=world)


@final
class TrainingLoop:
    """Drives a Training; made by `TrainingLoop.around`, which puts it back at the end.

    Schedules and batch size stand still where they are; the data go on. An update whose loss is
    not finite is left out: the weights stay, so that a bad batch is told from a divergence.

    Args:
        training: to drive; a loop may restart it as often as it likes.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        if not training.one_step.hyperparameters.can_move_lr:
            raise InputError("optimizer.lr", "must be > 0 to be varied", 0.0)
        self._state = copy.deepcopy(training.state_dict())
        self._position = training.feed.position()
        self._feed = training.feed.standing_still()
        self._beginning = self._feed.state_dict()
        self._batches_ahead = 0
        self._last = (0, 0, 0)  # epoch, offset and examples of the last update
        self._losses: list[float] = []  # since the last restart
        self._has_gradient = False
        self._metric_data = self._some_of_validation()

    @classmethod
    @contextmanager
    def around(cls, training: Training) -> Iterator[TrainingLoop]:
        """A loop over a training that is bitwise as found afterwards, also after an exception."""
        with preserved_training(training):
            loop = cls(training)
            try:
                yield loop
            finally:
                loop.close()

    def close(self) -> None:
        """Let go of batches read ahead, and of the lr."""
        self._feed.close()
        self._training.one_step.hyperparameters.fixed_lr = None

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One update at this learning rate.

        Collectives:
            Those of an update, and one all-reduce of a number; every rank must call.
        """
        step, feed = self._training.one_step, self._feed
        portion = feed.next()
        self._last = (feed.epoch, feed.offset, portion.num_examples)
        step.train_mode()
        step.hyperparameters.fixed_lr = lr
        if self._training.recipe.blocks is not None:  # a penalty may follow this very lr
            step.hyperparameters.apply(self._position)
        try:
            step.gradient(portion)
        except (ArithmeticError, ValueError) as error:
            if self._training.world.size > 1 or not _follows_divergence(error, self._losses):
                raise
            feed.advance(portion.num_examples)
            return Sample(math.nan, portion.num_examples)
        loss = self._mean_loss(portion.num_examples)
        self._losses.append(loss)
        if math.isfinite(loss):
            self._has_gradient = self._has_gradient or self._finds_gradient()
            step.update(self._position)
        feed.advance(portion.num_examples)
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

    def _finds_gradient(self) -> bool:
        """Whether any gradient is other than 0, nan included."""
        gradients = (parameter.grad for parameter in self._training.model.parameters())
        return any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)

    def ignores_weights(self) -> bool:
        """Whether every gradient so far was exactly zero; the same on every rank."""
        return not self._has_gradient

    def bad_data(self) -> str:
        """Which example of the last update's batch is not finite."""
        try:
            self._feed.refuse_bad_data(*self._last)
        except InputError as error:
            return str(error)
        return ""

    def restart(self) -> None:
        """Go back to the beginning; the state is copied, as an optimizer would change it."""
        self._training.load_state_dict(copy.deepcopy(self._state))
        self._feed.load_state_dict(self._beginning)
        self._losses = []
        if self._batches_ahead:
            self._feed.advance(self._batches_ahead * self._feed.next().num_examples)

    def begin_at(self, batches_ahead: int) -> None:
        """From the next restart on, begin this many batches further on in the data."""
        self._batches_ahead = batches_ahead

    def _some_of_validation(self) -> Source | None:
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
        compute, world = training.recipe.compute, training.world
        with preserved_random_state():
            return evaluate(training.model, self._metric_data, objectives, compute, world)[1]


# --- anybody's loop ----------------------------------------------------------------------------


@final
class OwnLoop:
    """Drives a function that takes one update and returns its loss.

    Args:
        step: takes one update at the optimizers' present lr; returns the loss, or (loss, metric),
            or a mapping with "loss" and perhaps "metric": numbers or tensors of one element.
        optimizers: whose learning rates are moved together, each group in its ratio to the first
            whose lr is not 0.
        kept: what is put back on a restart.
        world: ranks among which decisions must agree.

    Attributes:
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
        self._step, self._kept, self._world = step, kept, world
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._ratios = _ratios(self._groups)
        self.seed: int | None = None
        self._losses: list[float] = []  # since the last restart

    def update(self, lr: float, *, with_metric: bool = False) -> Sample:
        """One call of the step function.

        Raises:
            InputError: it returned no number, ran out of data, or changed the learning rate.

        Collectives:
            One all-reduce of three numbers where ranks train together; every rank must call.
        """
        for group, ratio in zip(self._groups, self._ratios, strict=False):
            _write_lr(group, lr * ratio)
        written = [float(group["lr"]) for group in self._groups]
        scales = self._kept.scales()
        loss, metric = self._one_step()
        self._losses.append(loss)
        found = [float(group["lr"]) for group in self._groups]
        if found != written:
            rule = "must not change the learning rate during a range test"
            hint = "leave scheduler.step() out of it"
            raise InputError("step", rule, f"{written[0]:.4g} became {found[0]:.4g}", hint=hint)
        skipped = any(now < before for before, now in zip(scales, self._kept.scales(), strict=True))
        return self._agreed(loss, metric, skipped)

    def _one_step(self) -> tuple[float, float]:
        try:
            return _read(self._step())
        except StopIteration:
            hint = "begin its data anew where they end"
            raise InputError("step", "must not run out of data", hint=hint) from None
        except (ArithmeticError, ValueError) as error:
            if not _follows_divergence(error, self._losses):
                raise
            return math.nan, math.nan

    def _agreed(self, loss: float, metric: float, skipped: bool) -> Sample:
        """Means over ranks, so that all of them decide the same."""
        if self._world.size > 1:
            values = torch.tensor([loss, metric, float(skipped)], dtype=torch.float64)
            values = values.to(self._world.device)
            self._world.sum_in_place(values)
            loss, metric, share = (values / self._world.size).tolist()
            skipped = share > 0.0
        return Sample(loss, metric=metric, counted=not skipped)

    def ignores_weights(self) -> bool:
        """Whether no parameter of any rank has changed since the last restart.

        Collectives:
            One gather of a flag; every rank must call.
        """
        return not any(self._world.all_values(self._kept.has_changed()))

    def bad_data(self) -> str:
        """Nothing is known of somebody else's data."""
        return ""

    def restart(self) -> None:
        """Put everything back; with a seed, every generator is then seeded, each rank's apart."""
        self._kept.put_back()
        self._losses = []
        if self.seed is not None:
            self._kept.reseed(self.seed + _SEEDS_APART * self._world.rank)


def _ratios(groups: Sequence[dict[str, Any]]) -> list[float]:
    """Lr of each group over that of the first that is not 0 (as a warm-up may have made all)."""
    lrs = [float(group["lr"]) for group in groups]
    if not any(lr > 0.0 for lr in lrs):
        lrs = [float(group.get("initial_lr", 0.0)) for group in groups]
    reference = next((lr for lr in lrs if lr > 0.0), None)
    if reference is None:
        raise InputError("lr of the optimizer", "must be > 0 in some group", lrs)
    return [lr / reference for lr in lrs]


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
