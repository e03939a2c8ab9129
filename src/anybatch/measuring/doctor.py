"""Doctor: what is commonly wrong with a model, its data and a recipe, looked for in ten seconds.

    data: scale, labels, copies inside of train and between the splits
    model: loss before training, gradients, dead units, activations, one batch by heart
    machine: threads, loader

Each check is a row; each that is not well is a finding with what to do next. The rules are in
`doctor_checks`, what they are given is found out in `doctor_data`, `doctor_model` and
`doctor_timing`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from anybatch.data.source import Source
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.measuring import doctor_checks as checks
from anybatch.measuring.doctor_checks import Check
from anybatch.measuring.doctor_data import Looked, data_checks, look_at, look_through
from anybatch.measuring.doctor_model import (
    ByHeart,
    Watched,
    learn_by_heart,
    names_of_parameters,
    train_mode_without_dropout,
    watched_forward,
)
from anybatch.measuring.doctor_timing import loader_check, thread_check
from anybatch.measuring.examples import portions_of
from anybatch.measuring.subjects import opened_training, recipe_settings
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.recipe_checks import require_positive
from anybatch.task import Task
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.portion import Portion
from anybatch.training.training import Training

__all__ = ["DoctorSettings", "estimates_of", "examine"]

_EXAMPLES = 500  # shown to the model
_BY_HEART = 8
_OF_TRAIN, _HELD_OUT = 20_000, 5_000  # examples that are compared with each other


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorSettings:
    """How the doctor looks.

    Attributes:
        seconds: for each check that takes time, > 0, about; what was not decided is said.
        timing: whether the machine is timed (threads, loader), which no two runs do alike.
    """

    seconds: float = 2.0
    timing: bool = True

    def __post_init__(self) -> None:
        require_positive("seconds", self.seconds)


def examine(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: DoctorSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Look for what is commonly wrong with a model, its data and a recipe.

    Args:
        task: what is to be learned; or a Training, which is looked at where it stands.
        recipe: with a task.
        settings: of the examination.
        progress: show what is being done.

    Returns:
        A measurement of kind "doctor", a sample for each check: its number, whether it is ok, the
        value that was seen and what it was compared with. `settings["checks"]` has their names and
        what was seen in words. A finding for each that is not ok, under the check's name.
        Estimates: "initial_loss", "expected_loss" and "fall_on_one_batch".

    Raises:
        InputError: task and recipe do not fit together, labels are no classes of the model.

    Cost:
        About ten seconds: 20,000 training examples read, 1,000 forward passes of one example, up
        to 300 updates on 8 examples, some 50 of the recipe's.

    Collectives:
        Those of forward passes and updates; every rank must call.
    """
    settings, started = settings or DoctorSettings(), time.perf_counter()
    found: list[Check] = []
    with (
        opened_training(task, recipe) as training,
        Activity("doctor", shown=progress and training.world.is_first) as activity,
    ):
        described = recipe_settings(training.task, training.recipe)
        visit = _Visit(training, settings)
        for check in visit.checks():
            found.append(check)
            activity.show(check.name, share=len(found) / 20.0)
    rows = [(n, int(c.is_ok), c.value, c.expected) for n, c in enumerate(found)]
    columns = dict(zip(_COLUMNS, (tuple(c) for c in zip(*rows, strict=True)), strict=True))
    described |= dataclasses.asdict(settings) | {"checks": {c.name: c.text for c in found}}
    return Measurement(
        kind="doctor",
        settings=described,
        samples=columns,
        estimates=estimates_of(columns, described),
        seconds=time.perf_counter() - started,
        examples=visit.examples,
        findings=tuple(
            Finding(name=c.name, sentence=c.text, advice=c.advice) for c in found if not c.is_ok
        ),
    )


_COLUMNS = ("check", "ok", "value", "expected")


def estimates_of(
    samples: dict[str, tuple[float, ...]], settings: dict[str, Any]
) -> dict[str, Estimate]:
    """Three numbers of the rows, from a doctor's stored samples and settings."""
    names = list(settings["checks"])
    places = {
        "initial_loss": ("initial-loss", "value"),
        "expected_loss": ("initial-loss", "expected"),
        "fall_on_one_batch": ("one-batch", "value"),
    }
    found = {}
    for estimate, (check, column) in places.items():
        value = float(samples[column][names.index(check)])
        known = math.isfinite(value)
        reason = "" if known else settings["checks"][check]
        ends = (value, value) if known else (-math.inf, math.inf)
        found[estimate] = Estimate(
            value=value if known else None, low=ends[0], high=ends[1], reason=reason
        )
    return found


class _Visit:
    """One examination: what is found out, check by check."""

    def __init__(self, training: Training, settings: DoctorSettings) -> None:
        self._training, self._settings = training, settings
        self.examples = 0
        train_mode_without_dropout(training)
        self._shown = portions_of(training, _EXAMPLES)
        self._num_shown = sum(portion.num_examples for portion in self._shown)

    def checks(self) -> Iterator[Check]:
        """Every check, in the order of the table."""
        watched = watched_forward(self._training, self._shown)
        self.examples += self._num_shown
        outputs = self._outputs(watched)
        train, held_out = self._looked()
        kind, source = self._training.task.kind, self._source("train")
        assert source is not None
        yield from data_checks(
            train, held_out, kind=kind, outputs=outputs, num_examples=source.num_examples
        )
        yield self._batch_size(source)
        yield self._initial_loss(watched.loss, train, outputs)
        yield checks.frozen_and_tied(*names_of_parameters(self._training.model))
        yield self._normalization()
        yield checks.dead_units(watched.dead, self._num_shown)
        yield checks.activation_scale(watched.deviations)
        yield from self._by_heart()
        yield from self._timing()

    def _source(self, split: Any) -> Source | None:
        task = self._training.task
        return task.source(split) if task.has(split) else None

    def _looked(self) -> tuple[Looked, dict[str, Looked | None]]:
        """Train, and validation and test, as far as the time goes."""
        seconds, source = self._settings.seconds, self._source("train")
        assert source is not None
        train = look_through(source, limit=_OF_TRAIN, seconds=seconds)
        if train is None:  # a stream: what was read of it already
            train = look_at([portion.batch for portion in self._shown])
        held_out = {
            split: None
            if (other := self._source(split)) is None
            else look_through(other, limit=_HELD_OUT, seconds=seconds / 2.0)
            for split in ("validation", "test")
        }
        looked = [train, *(other for other in held_out.values() if other is not None)]
        self.examples += sum(len(other.inputs) for other in looked)
        return train, held_out

    def _batch_size(self, source: Source) -> Check:
        size = self._training.feed.standing_still().next().num_examples
        copies = max(1, self._training.recipe.augmentation.copies)
        return checks.batch_size(size, source.num_examples and copies * source.num_examples)

    def _outputs(self, watched: Watched) -> int:
        """Classes of the model: the logits' second dimension, of tokens the last; 0 without."""
        if len(watched.logits) < 2 or self._training.task.kind == "regression":
            return 0
        return watched.logits[-1 if self._training.task.kind == "language-modelling" else 1]

    def _initial_loss(self, loss: float, train: Looked, outputs: int) -> Check:
        task = self._training.task
        expected, meaning = math.nan, ""
        is_default = task.loss is None or isinstance(task.loss, nn.CrossEntropyLoss | nn.MSELoss)
        if is_default and task.kind == "regression" and train.labels:
            values = [labels.double() for labels in train.labels]
            count = sum(len(labels) for labels in values)
            mean = float(sum(labels.sum() for labels in values)) / count
            squares = float(sum((labels - mean).square().sum() for labels in values))
            expected, meaning = squares / count, "variance of the targets"
        elif is_default and task.kind != "regression" and outputs > 1:
            what = "tokens" if task.kind == "language-modelling" else "classes"
            expected, meaning = math.log(outputs), f"ln of {outputs:,} {what}"
        trained = self._training.updates > 0
        return checks.initial_loss(loss, expected, meaning=meaning, is_trained=trained)

    def _normalization(self) -> Check:
        layers = (m for m in self._training.model.modules() if isinstance(m, GhostBatchNorm))
        if next(layers, None) is None:
            return checks.normalization_batch(None)
        size = self._training.feed.standing_still().next().num_examples
        return checks.normalization_batch(self._training.recipe.ghost_batch_size or size)

    def _by_heart(self) -> Iterator[Check]:
        """One batch by heart, and what it says about gradients and the metric."""
        training = self._training
        batch: list[Portion] = portions_of(training, _BY_HEART)
        found: ByHeart = learn_by_heart(training, batch, seconds=2.0 * self._settings.seconds)
        self.examples += found.examples
        total = sum(p.requires_grad for p in training.model.parameters())
        yield checks.gradients(found.unmoved, total)
        yield checks.one_batch(
            found.start, found.end, found.updates, found.lr, in_time=found.in_time
        )
        judge = training.task.judge
        if found.end > 0.5 * found.start:
            yield checks.skipped("metric", "the batch was not learned")
        else:
            yield checks.metric_direction(judge.name, judge.direction, *found.metrics)

    def _timing(self) -> Iterator[Check]:
        if not self._settings.timing or self._training.world.size > 1:
            reason = "left out" if not self._settings.timing else "several ranks"
            yield checks.skipped("threads", reason)
            yield checks.skipped("loader", reason)
            return
        seconds = self._settings.seconds
        check, update_seconds = thread_check(self._training, seconds=seconds)
        yield check
        yield loader_check(self._training, update_seconds, seconds=seconds)
