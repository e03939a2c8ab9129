"""Training: the one mutable thing. Stepping, records, evaluations, and how it ends.

while there is no outcome:
steps (see `step`) until a record, an evaluation or a wish to stop is due
the losses since the last record are reduced over ranks; not finite: diverged
evaluation, when due: target reached? patience at its end? duration over? lr to be reduced?
the test split, once
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, final

import torch

from anybatch.batch_control import SizeBounds
from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.scaling import scaled_recipe
from anybatch.task import SplitName, Task
from anybatch.training.batch_control import BatchControl
from anybatch.training.build import Optimizer
from anybatch.training.checks import data_fingerprint, refuse_other_data
from anybatch.training.evaluation import evaluation_record
from anybatch.training.feed import Feed
from anybatch.training.judge import Judge, divergence
from anybatch.training.outcome import Outcome, StopRequest, TargetWatch
from anybatch.training.portion import Portion
from anybatch.training.recalibration import check_recalibration, recalibration_batches
from anybatch.training.snapshot import seed_everything
from anybatch.training.splits import Splits
from anybatch.training.step import Step
from anybatch.training.step_records import StepRecords
from anybatch.training.training_state import (
    begin_from_state,
    load_training_state,
    training_state,
)
from anybatch.world import World

__all__ = ["Training"]


@final
class Training:
    """A model in training.

    A context manager and an iterable of records: stepping happens while it is iterated, and a
    loop around it may evaluate, measure, or leave at any record. Seeds the generators of torch,
    numpy and Python with the recipe's seed; the number of threads is the recipe's until it exits.

    Args:
        task: what is to be learned.
        recipe: every choice of the training.
        world: ranks that train together; None reads torchrun's environment.

    Attributes:
        scaled_recipe: the same, its optimizer's settings carried to its batch size.
        one_step: model, optimizer, and what stands between them.
        clock: lengths of the run.
        feed: the training examples and the position among them.
        seconds: of training so far, evaluation left out.
        since_record: what the next step record will tell.
        judge: what follows from evaluations.
        batch_control: that moves the batch size; None: the schedule alone does.
        outcome: why the training has ended; None while it has not.

    Raises:
        InputError: task, recipe and machine do not fit together.

    Example:
        >>> from torch import nn
        >>> from anybatch.recipe import SGDSettings
        >>> from anybatch.schedules import updates
        >>> data = torch.randn(64, 3), torch.arange(64) % 2
        >>> task = Task(build_model=lambda: nn.Linear(3, 2), train=data)
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=8, duration=updates(4))
        >>> with Training(task, recipe) as training:
        ...     [type(record).__name__ for record in training]
        ['StepRecord', 'EvalRecord']
        >>> training.updates, training.outcome.name
        (4, 'finished')
    """

    def __init__(self, task: Task, recipe: Recipe, *, world: World | None = None) -> None:
        for thing, kind, value in (("task", Task, task), ("recipe", Recipe, recipe)):
            if not isinstance(value, kind):
                raise InputError(thing, f"must be a {kind.__name__}", type(value).__name__)
        self.task, self.recipe = task, recipe
        self._as_found = (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        if recipe.compute.threads is not None:
            torch.set_num_threads(recipe.compute.threads)
        if recipe.compute.deterministic:
            torch.use_deterministic_algorithms(True)
        self._owns_world = world is None
        self.world = world or World.from_environment(recipe.compute.device)
        self._splits = Splits(task, recipe, self.world)
        self.clock = clock = recipe_clock(recipe, task.source("train").num_examples)
        check_recalibration(recipe, task.source("train"))
        self.scaled_recipe = scaled_recipe(recipe, clock.examples_per_epoch)
        if recipe.batch_control is not None:
            SizeBounds.of(recipe, clock.examples_per_epoch)  # refused before anything is built
        self.one_step = Step(task, self.scaled_recipe, clock, self.world, self._splits.sample())
        if self.world.size > 1:
            refuse_other_data(self.world.all_values(self.data_fingerprint))
        self.feed = Feed(self._splits["train"], recipe, clock, self.world)
        self.seconds = 0.0
        self.since_record = StepRecords(self.one_step, self.feed, self.world)
        self.judge = Judge(recipe, task.judge, clock)
        self.batch_control = None if recipe.batch_control is None else self._new_control()
        self._looks: list[Record] = []  # of the batch size's control, not said yet
        if not task.has(recipe.stopping.target_on):
            raise InputError("stopping.target_on", "must be a split of the task", "test")
        self._stop = StopRequest(self.world)
        self.outcome: Outcome | None = None
        self._unsaid: list[Record] = []  # records of a round that a loop has not taken yet
        self._test_read_at: int | None = None  # updates taken when test was read last
        seed_everything(recipe.seed + self.world.rank)  # dropout differs between ranks

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """What tells the training data from other data, as text; see `checks.data_fingerprint`."""
        return str(data_fingerprint(self._splits["train"]))

    def _new_control(self) -> BatchControl:
        parts = (self.clock, self.world, self.one_step, self.feed)
        return BatchControl(self.task, self.scaled_recipe, *parts)

    # --- the one step ------------------------------------------------------------------------

    def gradient(self, portion: Portion) -> None:
        """Put the gradient of an update into every parameter's `.grad`; see `Step.gradient`."""
        self.one_step.prepare(self.feed.position(portion.num_examples))
        self.one_step.gradient(portion)

    def update(self, num_examples: int) -> None:
        """Take the step that `.grad` asks for and move the position; see `Step.update`.

        Args:
            num_examples: of the global batch whose gradient it is.
        """
        self.one_step.update(self.feed.position(num_examples))
        self.since_record.append(num_examples)
        self.feed.advance(num_examples)

    def step(self) -> None:
        """One update: the next portion's gradient, the update, and what follows for the next one.

        Collectives:
            Those of `gradient` and `update`; every rank must call.
        """
        portion = self.feed.next()
        if self.batch_control is None:
            self.gradient(portion)
            self.update(portion.num_examples)
            return
        self.batch_control.gradient(portion)
        self.update(portion.num_examples)
        look = self.batch_control.look()
        self._looks += [] if look is None else [look]

    @property
    def model(self) -> torch.nn.Module:
        """The bare module, on this rank's device."""
        return self.one_step.model

    @property
    def optimizer(self) -> Optimizer:
        """As torch knows it."""
        return self.one_step.optimizer

    @property
    def updates(self) -> int:
        """Updates taken so far."""
        return self.one_step.updates

    @property
    def target(self) -> TargetWatch | None:
        """The watch over the target, or None."""
        return self.judge.target

    @property
    def kept_model(self) -> torch.nn.Module:
        """The model that is evaluated and kept: averaged weights, where averaging is on."""
        return self.one_step.kept_model

    # --- records -----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """Train to the end, yielding records; a new iterator goes on where the last one stopped."""
        while self._unsaid or self._next_round():
            yield self._unsaid.pop(0)

    def rounds(self) -> Iterator[list[Record]]:
        """Train to the end, yielding together the records of the same update.

        Between two rounds the training can be saved: nothing is left unsaid.
        """
        while self.outcome is None or self._test_is_due:
            self._next_round()
            records, self._unsaid = self._unsaid, []
            yield records

    def _next_round(self) -> bool:
        """Train until there is something to say; False at the very end."""
        while self.outcome is None and not self._unsaid:
            self.one_step.train_mode()
            self._unsaid += self._round()
        if not self._unsaid and self._test_is_due:
            self._test_read_at = self.updates
            self._unsaid.append(self.evaluate("test"))
        return bool(self._unsaid)

    @property
    def _test_is_due(self) -> bool:
        """Whether the training has come to its end and the test split has not been read."""
        ended = self.outcome is not None and self.outcome.name in ("finished", "target-missed")
        return ended and self.task.has("test") and self._test_read_at != self.updates

    def _round(self) -> list[Record]:
        """Step until there is something to say, and say it; ends the training where it ends."""
        started, steps = time.perf_counter(), 0
        while True:
            before = self._evaluations_due
            self.step()
            steps += 1
            ended = self.feed.examples >= self.feed.total_examples
            due = ended or self._evaluations_due != before
            asked = self._stop.agreed((time.perf_counter() - started) / steps)
            logged = due or self.updates % self.recipe.records.log_every == 0
            if logged or asked or self._looks:
                break
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        self.since_record.window_seconds += elapsed
        looks, self._looks = self._looks, []
        if not logged:
            self.outcome = asked  # the losses so far stay in the window for the next session
            return looks
        records: list[Record] = [self._step_record(), *looks, *self.since_record.inversion_events()]
        if due and self.outcome is None:
            records += self._judge()
        self.outcome = self.outcome or asked
        return records

    @property
    def _evaluations_due(self) -> int:
        """Evaluations that the position asks for since the beginning."""
        return self.judge.every.times(updates=self.updates, examples=self.feed.examples)

    def _judge(self) -> list[Record]:
        """Evaluate, and look whether that ends the training or changes its lr."""
        record = judged = self.evaluate("validation")
        records: list[Record] = [record]
        if not math.isfinite(record.loss):  # the last update went astray
            lr = self.one_step.hyperparameters.current()["lr"]
            self.outcome = divergence("validation", self.updates, lr)
            return records
        if self.target is not None and self.recipe.stopping.target_on == "test":
            judged = self.evaluate("test")
            records.append(judged)
            self._test_read_at = self.updates
        at_end = self.feed.examples >= self.feed.total_examples
        self.outcome = self.judge.outcome(record, judged, at_end=at_end)
        if self.outcome is None:
            records += self.judge.control(record, self.one_step.hyperparameters)
        return records

    def _step_record(self) -> StepRecord:
        record, ended = self.since_record.next_record(self.seconds)
        self.outcome = ended or self.outcome
        return record

    def evaluate(self, split: SplitName) -> EvalRecord:
        """Loss and metric of a split with the averaged weights, where there are any.

        Args:
            split: "train" (without augmentation), "validation" or "test".

        Raises:
            InputError: the loss is not finite because the data are not.

        Collectives:
            One all-reduce, and those of `refresh_kept_model`; every rank must call.
        """
        return evaluation_record(self, split, self._splits)

    def refresh_kept_model(self) -> None:
        """Bring `kept_model` to the present weights: of all ranks, BatchNorm recalibrated.

        As the recipe has it, and before every evaluation; the trained model stays as it is.

        Collectives:
            The model's size, while ranks update on their own; one all-reduce of BatchNorm's
            statistics, where they are recalibrated; every rank must call.
        """
        batches = None
        if self.recipe.batch_norm.evaluated_with == "whole-set":
            batches = recalibration_batches(self._splits["train"], self.recipe, self.world)
        self.one_step.refresh_kept_model(batches)

    def settle(self) -> None:
        """Bring `kept_model` up to date at an end, if no evaluation did.

        After an interruption, which must not take long, without recalibration.

        Collectives:
            Those of `refresh_kept_model`; every rank must call.
        """
        if not self.one_step.kept_model_is_due:
            return
        if self.outcome is not None and self.outcome.name == "interrupted":
            self.one_step.refresh_kept_model(None)
        else:
            self.refresh_kept_model()

    def request_stop(self, outcome: Outcome) -> None:
        """Ask for an end after an update; rank 0's wish counts. Safe in a signal handler."""
        self._stop.ask(outcome)

    @property
    def stop_wish(self) -> Outcome | None:
        """The end that was asked for last on this rank, also where another came before it."""
        return self._stop.wish

    def extend(self) -> None:
        """Forget the end, as the duration has been lengthened: patience begins anew."""
        self.outcome = None
        self.judge.extend()

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to go on bit for bit; tensors are not copied.

        Collectives:
            One gather of every rank's generators, pending losses and, with running mixup, mixed
            examples; of weights and optimizers too, while ranks update on their own. Every rank
            must call.
        """
        return training_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the training that `state_dict` was taken from."""
        load_training_state(self, state)

    def begin_from(self, state: dict[str, Any]) -> None:
        """Begin where another training of the same model stands, with this recipe's settings.

        Weights, optimizer state, position, seconds and generators are the other's; batch size,
        lr, momentum, decay, schedules and target are this one's.

        Args:
            state: the other's `state_dict`; it is not changed.
        """
        begin_from_state(self, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.feed.close()
        self.one_step.close()
        threads, deterministic, warn_only = self._as_found
        if self.recipe.compute.threads is not None:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if self._owns_world:
            self.world.close(together=kind is None or kind is SystemExit)
