"""Pilot: the first part of the run, trained at a constant lr and looked at again and again."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from anybatch.data.draws import permutation
from anybatch.data.source import Source
from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.subjects import recipe_settings
from anybatch.optim.decay import decoupled_in_own_run
from anybatch.plan import PlanRequest
from anybatch.planning.curve import foretold_width
from anybatch.planning.recipe import AVERAGING, divided
from anybatch.progress import Activity
from anybatch.recipe import Recipe, Schedules, Target
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.run import Run
from anybatch.scaling import with_lr
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.evaluation import evaluate
from anybatch.training.snapshot import preserved_random_state
from anybatch.training.training import Training
from anybatch.world import World

__all__ = [
    "LOSSES_KEPT_EVERY",
    "WATCHED_EXAMPLES",
    "Look",
    "Pilot",
    "PilotGoal",
    "opened_pilot",
    "pilot_recipe",
    "watched_part",
]

WATCHED_EXAMPLES = 1000
"""Validation examples that a pilot and its branches are looked at with; the run reads them all."""

_FEWEST_LOOKS = 8  # before they foretell anything
_LONGEST = 10**9  # updates: the procedure ends it
_GROWTH = 1.25  # of the updates between two looks
_FIRST_LOOK = 8  # updates
_WATCHED_SEED = 0x7A7C4  # the same examples whatever the run's seed
LOSSES_KEPT_EVERY = 5
"""Updates between two step records of a pilot whose updates are quick."""

_MOST_LOOKING = 0.25  # of a pilot's seconds of training, but for the look at its end


def pilot_recipe(
    recipe: Recipe,
    batch_size: int,
    lr: float,
    *,
    log_every: int = LOSSES_KEPT_EVERY,
    largest_micro_batch: int | None = None,
    ranks: int = 1,
    num_examples: int | None = None,
) -> Recipe:
    """The recipe at another batch size and a constant lr, without end, target or evaluations.

    A normalized weight decay is what it is at the beginning of the recipe's own run.

    Args:
        recipe: every other choice.
        batch_size: of the pilot.
        lr: of the pilot.
        log_every: updates between two step records.
        largest_micro_batch: examples that one pass of a rank may hold; None: no limit was met.
        ranks: that train together.
        num_examples: of the training split, for a normalized weight decay.
    """
    stopping = dataclasses.replace(
        recipe.stopping, target=None, patience=None, evaluate_every=updates(_LONGEST)
    )
    return dataclasses.replace(
        divided(recipe, batch_size, largest_micro_batch, ranks=ranks),
        optimizer=with_lr(decoupled_in_own_run(recipe, num_examples), lr),
        duration=updates(_LONGEST),
        schedules=Schedules(),
        averaging=recipe.averaging or AVERAGING,
        plateau=None,
        stopping=stopping,
        records=dataclasses.replace(
            recipe.records, log_every=log_every, checkpoint_every=updates(_LONGEST)
        ),
    )


def watched_part(task: Task, world: World) -> Source:
    """The validation examples that a pilot is looked at with, on this rank's device.

    Drawn, always the same ones: a validation split may be sorted by class.

    Args:
        task: whose validation split.
        world: of the training.

    Raises:
        InputError: validation is a stream of unknown length.
    """
    source = task.source("validation")
    if source.num_examples is None or not source.random_access:
        rule = "must have random access for a pilot to be looked at"
        raise InputError("validation", rule, "a stream")
    count = min(WATCHED_EXAMPLES, source.num_examples)
    chosen = permutation(source.num_examples, seed=_WATCHED_SEED, epoch=0)[:count].sort().values
    return source.subset(chosen).to(world.device, num_workers=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one evaluation of a training under way says.

    Attributes:
        update: updates done before it.
        examples: training examples seen before it.
        loss: mean over the watched examples.
        metric: of them.
        seconds: of training before it.
    """

    update: int
    examples: int
    loss: float
    metric: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotGoal:
    """What ends a pilot before its seconds are over: the target, or enough to foretell it.

    Attributes:
        request: with the target.
        width: high over low of the 80 % interval of the updates to the target that is enough.
        least_seconds: of training before anything but the target ends it.
    """

    request: PlanRequest
    width: float
    least_seconds: float


@final
class Pilot:
    """A training under way with the looks that were taken at it.

    Args:
        training: with a recipe of `pilot_recipe`.
        watched: validation examples to look with.
        run: where its records go at once; None: nowhere (a branch).

    Attributes:
        looks: evaluations so far.
        losses: update and mean training loss since the last one.
        clocks: what `clock` said when each of them was known.
        records: all that went, or may go, into a run.
        diverged: whether a loss was not finite.
        reached: whether the last look met the target.
        looking_seconds: of all looks, and of foretelling from them.
    """

    def __init__(self, training: Training, watched: Source, run: Run | None = None) -> None:
        self.training, self.looks = training, list[Look]()
        self.losses: list[tuple[int, float]] = []
        self.clocks: list[float] = []
        self.diverged = False
        self._watched, self._run = watched, run
        self._records = iter(training)
        self._next_look = training.updates
        self.looking_seconds = 0.0
        self.reached = False
        self.records: list[Record] = []

    def clock(self) -> float:
        """Seconds since some moment without those of looks, waiting for the device included."""
        return time.perf_counter() - self.looking_seconds

    def look(self) -> Look:
        """Evaluate on the watched examples; the training goes on as if nothing had happened.

        Collectives:
            One all-reduce; every rank must call.
        """
        training = self.training
        objectives = (training.one_step.plain_loss, training.task.judge)
        started = time.perf_counter()
        with preserved_random_state():
            training.refresh_kept_model()
            loss, metric = evaluate(
                training.kept_model, self._watched, objectives, training.recipe.compute,
                training.world,
            )  # fmt: skip
        found = Look(
            update=training.updates,
            examples=training.feed.examples,
            loss=loss,
            metric=metric,
            seconds=training.seconds,
        )
        self.looks.append(found)
        spent = time.perf_counter() - started
        self.looking_seconds += spent
        self._keep(_as_record(found, training, spent))
        return found

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._run is not None and self.training.world.is_first:
            self._run.append(record)

    def train(
        self,
        *,
        seconds: float,
        most_updates: int | None = None,
        looks_between: bool = True,
        goal: PilotGoal | None = None,
        activity: Activity | None = None,
    ) -> bool:
        """Train on for so many seconds of training, with looks ever further apart.

        Between begin and end, looking takes no more than a quarter of the time of training.

        Args:
            seconds: of training; evaluations are not counted.
            most_updates: where to stop at the latest.
            looks_between: False looks only at the end.
            goal: what ends it before.
            activity: shows what is being done.

        Returns:
            Whether all losses were finite.

        Collectives:
            Those of the updates and looks; every rank must call.
        """
        training = self.training
        begun = training.seconds
        while not self.diverged:
            record = next(self._records, None)
            if isinstance(record, StepRecord):
                self.losses.append((record.update, record.loss))
                self.clocks.append(self.clock())
                self._keep(record)
            self.diverged = training.outcome is not None or self._lost(record)
            done = training.seconds - begun
            is_affordable = self.looking_seconds <= _MOST_LOOKING * training.seconds
            ended, may_look = training.world.from_first((done >= seconds, is_affordable))
            if most_updates is not None and training.updates >= most_updates:
                ended = True
            if self.diverged:
                break
            is_due = looks_between and may_look and training.updates >= self._next_look
            if ended or is_due:
                found = self.look()
                self.diverged = not math.isfinite(found.loss)
                ended = ended or (goal is not None and self._meets(goal))
                step = max(_FIRST_LOOK, math.ceil(training.updates * (_GROWTH - 1.0)))
                self._next_look = training.updates + step
                if activity is not None:
                    text = f"update {found.update:,}  loss {found.loss:.4g}"
                    activity.show(f"{text}  {training.task.judge.name} {found.metric:.4g}")
            if ended:
                break
        return not self.diverged

    def _meets(self, goal: PilotGoal) -> bool:
        """Whether the last look met the target, or all looks foretell it well enough."""
        target = Target.parse(goal.request.target)
        self.reached = _meets(self.looks[-1], target)
        is_early = self.training.seconds < goal.least_seconds or len(self.looks) < _FEWEST_LOOKS
        if self.reached or self.training.world.from_first(is_early):
            return self.reached
        started = time.perf_counter()
        width = foretold_width(self.measurement(), goal.request)
        self.looking_seconds += time.perf_counter() - started
        return width <= goal.width

    def _lost(self, record: Any) -> bool:
        return isinstance(record, StepRecord) and not math.isfinite(record.loss)

    def measurement(self, kind: str = "pilot") -> Measurement:
        """The looks as a measurement: columns "update", "examples", "loss", "metric", "seconds".

        Args:
            kind: of the measurement.
        """
        training = self.training
        names = ("update", "examples", "loss", "metric", "seconds")
        columns = {name: tuple(float(getattr(look, name)) for look in self.looks) for name in names}
        return Measurement(
            kind=kind,
            settings=recipe_settings(training.task, training.recipe)
            | {"lr": float(training.recipe.optimizer.lr), "diverged": self.diverged}
            | {"watched_examples": min(WATCHED_EXAMPLES, self._watched.num_examples or 0)},
            samples=columns,
            estimates={},
            seconds=training.seconds,
            examples=training.feed.examples,
            fitted={
                "update": tuple(float(update) for update, _ in self.losses),
                "loss": tuple(loss for _, loss in self.losses),
            },
        )


def _meets(look: Look, target: Target) -> bool:
    value = look.loss if target.quantity == "loss" else look.metric
    return value >= target.value if target.relation == ">=" else value <= target.value


def _as_record(look: Look, training: Training, seconds: float) -> EvalRecord:
    return EvalRecord(
        update=look.update,
        examples=look.examples,
        epoch=training.feed.epochs,
        split="validation",
        loss=look.loss,
        metric=look.metric,
        metric_name=training.task.judge.name,
        seconds=look.seconds,
        evaluation_seconds=seconds,
    )


@contextmanager
def opened_pilot(
    task: Task,
    recipe: Recipe,
    *,
    world: World,
    run: Run | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Pilot]:
    """A pilot from the recipe's beginning, or a branch from another's state.

    Args:
        task: what is to be learned.
        recipe: of `pilot_recipe`.
        world: ranks that train together.
        run: where records go.
        state: of another training of the same model, to begin from.
    """
    with Training(task, recipe, world=world) as training:
        if state is not None:
            training.begin_from(state)
        yield Pilot(training, watched_part(task, world), run)
