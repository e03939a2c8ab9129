"""Training: the one mutable thing, and the one step that everything is made of.

    for each update:
        portion <- the feed: this rank's share of the next examples
        gradient(portion): for each micro-batch: forward, per-example losses, backward with the
            weights 1/B (mean) or 1 (sum) of the global batch B; summed over ranks on the way
            transforms of the gradient, in order
        update(): lr, momentum and decay of this progress; optimizer; BatchNorm's running
            statistics; averaged weights; the position moves
        records every `log_every` updates, evaluations when due

Weighting every example by the global count makes accumulation, ranks and a short last batch exact:
nothing is averaged twice.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anybatch.controllers import Patience
from anybatch.data.source import Batch, Source
from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.schedules import Clock
from anybatch.task import SplitName, Task
from anybatch.training.build import build_gradient_transform, build_model, build_optimizer
from anybatch.training.checks import (
    call_model,
    check_division,
    check_model,
)
from anybatch.training.evaluation import evaluate
from anybatch.training.feed import Feed, Portion, recipe_clock
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.normalization import GhostNormalization
from anybatch.training.outcome import Outcome, StopRequest, TargetWatch
from anybatch.training.precision import autocast, cast_inputs
from anybatch.training.sampling import micro_batches
from anybatch.training.snapshot import load_random_state, random_state, seed_everything
from anybatch.training.window import LossWindow
from anybatch.world import World

__all__ = ["Training"]


@final
class Training:
    """A model in training.

    A context manager and an iterable of records: stepping happens while it is iterated, and a
    loop around it may evaluate, measure, or leave at any record. Seeds the generators of torch,
    numpy and Python with the recipe's seed.

    Args:
        task: what is to be learned.
        recipe: every choice of the training.
        world: ranks that train together; None reads torchrun's environment.

    Attributes:
        model: the bare module, on this rank's device.
        optimizer: as torch knows it.
        clock: lengths of the run.
        feed: the training examples and the position among them.
        updates: taken so far.
        seconds: of training so far, evaluation left out.
        target: the watch over the target, or None.
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
        self.task, self.recipe = task, recipe
        if recipe.compute.threads is not None:
            torch.set_num_threads(recipe.compute.threads)
        self._owns_world = world is None
        self.world = world or World.from_environment(recipe.compute.device)
        self._sources: dict[SplitName, Source] = {}
        clock = recipe_clock(recipe, task.source("train").num_examples)
        self.clock = clock
        self._build(clock)
        self.feed = Feed(self._source("train"), recipe, clock, self.world)
        self.updates, self.seconds = 0, 0.0
        self._window = LossWindow(self.world.device)
        self._window_seconds = 0.0
        self._losses: list[Tensor] = []  # of the gradient in progress
        self._gradient_norm: Tensor | None = None
        self._weights: dict[tuple[int, float, torch.dtype], Tensor] = {}
        self._watch(clock)
        self._stop = StopRequest(self.world)
        self.outcome: Outcome | None = None
        seed_everything(recipe.seed + self.world.rank)  # dropout differs between ranks

    # --- construction ------------------------------------------------------------------------

    def _build(self, clock: Clock) -> None:
        """Model, optimizer and what stands between them."""
        task, recipe = self.task, self.recipe
        seed_everything(recipe.seed)
        self.model = build_model(task, recipe.model, recipe.compute, self.world)
        self._normalization = GhostNormalization(self.model, recipe.ghost_batch_size)
        check_division(task, recipe, self.world, bool(self._normalization.layers))
        self._loss = task.loss_function(recipe.loss.label_smoothing)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self._hyperparameters = Hyperparameters(self.optimizer, recipe.schedules, clock)
        self._transforms = [build_gradient_transform(settings) for settings in recipe.gradient]
        check_model(self.model, task, self._loss, self._sample())
        compiled: Any = torch.compile(self.model) if recipe.compute.compile else self.model
        self._forward = self.world.parallel(compiled)
        self._average: AveragedModel | None = None
        if recipe.averaging is not None:
            average = get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                recipe.averaging.decay
            )
            self._average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
            self._average.update_parameters(self.model)  # begins at the initial weights

    def _watch(self, clock: Clock) -> None:
        """Target and patience, and how often they are looked at."""
        stopping, judge = self.recipe.stopping, self.task.judge
        self._evaluate_every = max(1, clock.examples(stopping.evaluate_every))
        self.target = TargetWatch(stopping.target, judge) if stopping.target else None
        if not self.task.has(stopping.target_on):
            raise InputError("stopping.target_on", "must be a split of the task", "test")
        self._patience = None
        if stopping.patience is not None:
            self._patience = Patience(
                evaluations=stopping.patience,
                direction=judge.direction,
                min_delta=stopping.min_delta,
            )

    def _source(self, split: SplitName) -> Source:
        """A split on this rank's device."""
        if split not in self._sources:
            workers = self.recipe.compute.num_workers
            source = self.task.source(split).to(self.world.device, num_workers=workers)
            self._sources[split] = source
        return self._sources[split]

    def _sample(self) -> Batch:
        """Two examples to try the model on; of validation where training data is a stream."""
        random_access = self.task.source("train").random_access
        source = self._source("train" if random_access else "validation")
        indices = torch.arange(min(2, source.num_examples or 2))
        batch = next(iter(source.batches([indices])))
        return Batch(self._cast(batch.inputs), self._cast(batch.targets), batch.indices)

    def _cast(self, nest: Any) -> Any:
        return cast_inputs(nest, self.recipe.compute)

    # --- the one step ------------------------------------------------------------------------

    def gradient(self, portion: Portion) -> None:
        """Put the gradient of the global batch's loss into every parameter's `.grad`.

        sum over examples of dloss_i/dw, divided by the global count for a mean; then the recipe's
        transforms, in order.

        Args:
            portion: this rank's share, from `feed.next()` or made by hand.

        Raises:
            InputError: labels of a streamed set lie outside of the model's outputs.

        Collectives:
            The gradient's size, overlapped with the last micro-batch's backward; every rank must
            call, with a placeholder batch where its share is empty.
        """
        for parameter in self._parameters:
            parameter.grad = None
        self._losses = []
        mean = self.recipe.loss.reduction == "mean"
        weight = float(portion.counted) / (portion.num_examples if mean else 1)
        parts = list(micro_batches(portion.batch, self.recipe.micro_batch_size))
        for part in parts[:-1]:
            with self.world.without_communication(self._forward):
                self._backward(part, weight, portion.counted)
        self._backward(parts[-1], weight, portion.counted)
        for transform in self._transforms:
            self._gradient_norm = transform(self._parameters)

    def _backward(self, part: Batch, weight: float, counted: bool) -> None:
        self._normalization.begin(len(part.indices), counted=counted)
        with autocast(self.recipe.compute, self.world.device):
            outputs = call_model(self._forward, self._cast(part.inputs))
            try:
                losses = self._loss(outputs, self._cast(part.targets))
            except IndexError as error:
                raise InputError("targets", "must be classes of the model", str(error)) from error
        if self.task.loss_scope == "batch":  # one value that stands for every example
            losses = losses.reshape(1).expand(len(part.indices))
        losses.backward(self._weight_vector(losses, weight))  # type: ignore[no-untyped-call]
        if counted:
            self._losses.append(losses.detach())

    def _weight_vector(self, losses: Tensor, weight: float) -> Tensor:
        """The gradient of the weighted sum of per-example losses; kept, as few kinds occur."""
        key = (len(losses), weight, losses.dtype)
        if key not in self._weights:
            if len(self._weights) > 8:
                self._weights.clear()
            self._weights[key] = torch.full_like(losses.detach(), weight)
        return self._weights[key]

    def update(self, num_examples: int) -> None:
        """Take the step that `.grad` asks for and move the position.

        Args:
            num_examples: of the global batch whose gradient it is.

        Collectives:
            BatchNorm's statistics, where there are any; every rank must call.
        """
        self._hyperparameters.apply(self.feed.progress)
        self.optimizer.step()
        self._normalization.take_step(self.world)
        self.updates += 1
        self._window.append(self._losses, num_examples, (self.feed.epoch, self.feed.offset))
        self.feed.advance(num_examples)
        averaging = self.recipe.averaging
        if self._average is not None and averaging and self.updates % averaging.every == 0:
            self._average.update_parameters(self.model)

    def step(self) -> None:
        """One update: the next portion's gradient, and the update."""
        portion = self.feed.next()
        self.gradient(portion)
        self.update(portion.num_examples)

    # --- records -----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """Train to the end, yielding records; a new iterator goes on where the last one stopped."""
        for records in self.rounds():
            yield from records

    def rounds(self) -> Iterator[list[Record]]:
        """Train to the end, yielding together the records of the same update.

        Between two rounds the training can be saved: nothing is left unsaid.
        """
        self.model.train()
        while self.outcome is None:
            yield self._round()
        if self.outcome.name in ("finished", "target-missed") and self.task.has("test"):
            yield [self.evaluate("test")]

    def _round(self) -> list[Record]:
        """Step until there is something to say, and say it; ends the training where it ends."""
        started, steps = time.perf_counter(), 0
        while True:
            before = self.feed.examples
            self.step()
            steps += 1
            ended = self.feed.examples >= self.feed.total_examples
            every = self._evaluate_every
            due = ended or before // every != self.feed.examples // every
            asked = self._stop.agreed((time.perf_counter() - started) / steps)
            if due or asked or self.updates % self.recipe.records.log_every == 0:
                break
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        self._window_seconds += elapsed
        if asked and not due and self.updates % self.recipe.records.log_every:
            self.outcome = asked  # the losses so far stay in the window for the next session
            return []
        records: list[Record] = [self._step_record()]
        if due and self.outcome is None:
            records += self._judge()
        self.outcome = self.outcome or asked
        return records

    def _judge(self) -> list[EvalRecord]:
        """Evaluate and look whether that ends the training."""
        stopping = self.recipe.stopping
        record = judged = self.evaluate("validation")
        records = [record]
        if self.target is not None and stopping.target_on == "test":
            judged = self.evaluate("test")
            records.append(judged)
        if self.target is not None and self.target.is_reached(judged):
            reason = f"target {self.target} reached on {judged.split} at update {self.updates}"
            self.outcome = Outcome(name="finished", reason=reason)
        elif self._patience is not None and self._patience.observe(record):
            reason = f"no improvement in {stopping.patience} evaluations"
            self.outcome = self._outcome_at_end(reason, judged)
        elif self.feed.examples >= self.feed.total_examples:
            self.outcome = self._outcome_at_end("the whole duration was trained", judged)
        return records

    def _outcome_at_end(self, reason: str, judged: EvalRecord) -> Outcome:
        if self.target is None:
            return Outcome(name="finished", reason=reason)
        value = self.target.measured(judged)
        by = f"by {abs(value - self.target.value):.4g} ({judged.split} {value:.6g})"
        return Outcome(name="target-missed", reason=f"{self.target} missed {by}; {reason}")

    def _step_record(self) -> StepRecord:
        seconds, self._window_seconds = self._window_seconds, 0.0
        count, updates = self._window.num_examples, len(self._window)
        loss, bad = self._window.reduce(self.world)
        if bad is not None:
            self.feed.refuse_bad_data(*bad.position, bad.num_examples)
            self.outcome = self._outcome_of_divergence(self.updates - updates + bad.number)
        norm = self._gradient_norm
        return StepRecord(
            update=self.updates,
            examples=self.feed.examples,
            epoch=self.feed.epochs,
            loss=loss,
            batch_size=self.feed.last_size,
            **self._hyperparameters.current(),
            gradient_norm=None if norm is None else float(norm),
            seconds=self.seconds,
            examples_per_second=count / max(seconds, 1e-9),
        )

    def _outcome_of_divergence(self, update: int) -> Outcome:
        lr = self._hyperparameters.current()["lr"]
        reason = (
            f"the training loss is not finite at update {update}; try a third of the lr "
            f"(--set optimizer.lr={lr / 3:.2g}), a warm-up, or clip-global-norm"
        )
        return Outcome(name="diverged", reason=reason)

    def evaluate(self, split: SplitName) -> EvalRecord:
        """Loss and metric of a split with the averaged weights, where there are any.

        Args:
            split: "train" (without augmentation), "validation" or "test".

        Collectives:
            One all-reduce; every rank must call.
        """
        started = time.perf_counter()
        objectives = (self.task.loss_function(), self.task.judge)
        loss, metric = evaluate(
            self.kept_model, self._source(split), objectives, self.recipe.compute, self.world
        )
        return EvalRecord(
            update=self.updates,
            examples=self.feed.examples,
            epoch=self.feed.epochs,
            split=split,
            loss=loss,
            metric=metric,
            metric_name=self.task.judge.name,
            seconds=self.seconds,
            evaluation_seconds=time.perf_counter() - started,
        )

    @property
    def kept_model(self) -> torch.nn.Module:
        """The model that is evaluated and kept: averaged weights, where averaging is on."""
        return self.model if self._average is None else self._average.module

    def request_stop(self, outcome: Outcome) -> None:
        """Ask for an end after an update; rank 0's wish counts. Safe in a signal handler."""
        self._stop.ask(outcome)

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to go on bit for bit; tensors are not copied.

        Collectives:
            One gather of every rank's generators and pending losses; every rank must call.
        """
        own = {"random": random_state(), "window": self._window.state_dict()}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "feed": self.feed.state_dict(),
            "updates": self.updates,
            "seconds": self.seconds,
            "window_seconds": self._window_seconds,
            "gradient_norm": self._gradient_norm,
            "target": None if self.target is None else self.target.state_dict(),
            "patience": None if self._patience is None else self._patience.state_dict(),
            "outcome": None if self.outcome is None else dataclasses.asdict(self.outcome),
            "ranks": self.world.all_values(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the training that `state_dict` was taken from."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.feed.load_state_dict(state["feed"])
        self.updates, self.seconds = state["updates"], state["seconds"]
        self._window_seconds = state["window_seconds"]
        self._gradient_norm = state["gradient_norm"]
        if self.target is not None and state["target"] is not None:
            self.target.load_state_dict(state["target"])
        if self._patience is not None and state["patience"] is not None:
            self._patience.load_state_dict(state["patience"])
        self._normalization.discard()
        outcome = state["outcome"]
        resumable = outcome is None or outcome["name"] == "interrupted"
        self.outcome = None if resumable else Outcome(**outcome)
        self._load_rank_state(state["ranks"])

    def _load_rank_state(self, ranks: list[dict[str, Any]]) -> None:
        """Generators and pending losses; of another number of ranks, what can be kept."""
        own = ranks[self.world.rank % len(ranks)]
        load_random_state(own["random"])
        self._window.load_state_dict(own["window"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_world:
            self.world.close()
