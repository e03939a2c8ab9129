"""Loss oscillation: how much the loss jumps between updates, for several batch sizes.

    for each batch size: from the same beginning, train the first updates
        each update: loss, |difference to the one before|
        each k-th: cosine of this and the next batch's gradients at the same weights
    -> oscillation and cosine of each batch size, and whether the loss exploded

The two gradients of a cosine are taken at the same weights. Gradients of consecutive updates are
not: the second knows of the first step, g' = g(w - lr g), so that their mean product is
|G|^2 - lr (G.H.G + tr(H Sigma) / B), and at rest exactly minus |G|^2's mean whatever B is. That
cosine is kept too, in a column of its own, as a sign that the lr is too large.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.loss_oscillation_reading import findings_of, read_oscillation
from anybatch.measuring.subjects import opened_training, recipe_settings
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.recipe_checks import require, require_positive
from anybatch.task import Task
from anybatch.training.checks import check_division
from anybatch.training.feed import Feed
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.portion import Portion
from anybatch.training.snapshot import preserved_random_state
from anybatch.training.training import Training

__all__ = ["LossOscillationSettings", "measure_loss_oscillation"]

_FACTORS = (1 / 16, 1 / 4, 1, 4, 16)  # of the recipe's batch size


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOscillationSettings:
    """How the oscillation of the loss is measured.

    Attributes:
        batch_sizes: each >= 1; none: the recipe's times 1/16, 1/4, 1, 4 and 16, as far as they
            are whole and fit the set.
        num_updates: trained at each batch size, >= 2.
        lr: constant, > 0; None: the recipe's.
        cosine_every: updates from one cosine to the next, >= 1; each costs another gradient.
        max_examples: of one batch size, >= 1; a large one gets fewer updates, and that is told.
    """

    batch_sizes: tuple[int, ...] = ()
    num_updates: int = 1000
    lr: float | None = None
    cosine_every: int = 10
    max_examples: int = 200_000

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            require("batch_sizes", size, "must be >= 1", size >= 1 and size == int(size))
        twice = len(set(self.batch_sizes)) < len(self.batch_sizes)
        if twice:
            raise InputError("batch_sizes", "must differ from each other", list(self.batch_sizes))
        require("num_updates", self.num_updates, "must be >= 2", self.num_updates >= 2)
        require("cosine_every", self.cosine_every, "must be >= 1", self.cosine_every >= 1)
        require("max_examples", self.max_examples, "must be >= 1", self.max_examples >= 1)
        if self.lr is not None:
            require_positive("lr", self.lr)


def measure_loss_oscillation(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: LossOscillationSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure how much the loss jumps from update to update at several batch sizes.

    Every batch size begins with the same weights; lr, momentum and all else are the recipe's, so
    that only the batch differs. A Training begins where it stands.

    Args:
        task: what is to be learned; or a Training under way.
        recipe: with a task.
        settings: of the measurement.
        progress: show what is being done.

    Returns:
        A measurement of kind "loss-oscillation". Estimates for each batch size B:
        "oscillation/B", the median of |loss_t - loss_(t-1)| relative to the mean loss around it;
        "cosine/B", the mean cosine of neighbouring batches' gradients at the same weights;
        "exploded_at/B", the update at which the loss rose for good, or the reason "did not".
        Findings: "exploded", "not-learning", "shortened", "no-gradient".

    Raises:
        InputError: a batch size is larger than the set, or cannot be had (a stream under way, a
            BatchNorm batch that would be divided); data are not finite.

    Cost:
        `num_updates * (1 + 1 / cosine_every)` gradients for each batch size; a copy of two
        gradients.

    Collectives:
        Those of the updates, and one all-reduce of a number each; every rank must call.
    """
    settings, started = settings or LossOscillationSettings(), time.perf_counter()
    rows: list[tuple[float, ...]] = []
    examples = 0
    with opened_training(task, recipe) as training:
        sizes = settings.batch_sizes or _default_sizes(training)
        _check_sizes(training, sizes)
        found = {
            **dataclasses.asdict(settings),
            **recipe_settings(training.task, training.recipe),
            "batch_sizes": list(sizes),
            "after_updates": training.updates,
            "lr": settings.lr or training.one_step.hyperparameters.current()["lr"],
        }
        first = training.world.is_first
    with Activity("loss-oscillation", shown=progress and first) as activity:
        for number, batch_size in enumerate(sizes):
            with opened_training(task, recipe) as training:
                course = _Course(training, batch_size, settings)
                rows += course.run(activity, number / len(sizes))
                examples += course.examples
    columns = dict(zip(_COLUMNS, (tuple(c) for c in zip(*rows, strict=True)), strict=True))
    return Measurement(
        kind="loss-oscillation",
        settings=found,
        samples=columns,
        estimates=read_oscillation(columns),
        seconds=time.perf_counter() - started,
        examples=examples,
        findings=tuple(findings_of(columns, found)),
    )


_COLUMNS = ("batch_size", "update", "loss", "difference", "cosine", "cosine_across_updates")


def _default_sizes(training: Training) -> tuple[int, ...]:
    """The recipe's batch size times powers of 4, where whole and not larger than the set."""
    own = training.feed.standing_still().next().num_examples
    available = training.task.source("train").num_examples or math.inf
    sizes = (own * factor for factor in _FACTORS)
    return tuple(int(size) for size in sizes if size == int(size) and 1 <= size <= available)


def _check_sizes(training: Training, sizes: tuple[int, ...]) -> None:
    """Refuse what cannot be trained before anything is."""
    available = training.task.source("train").num_examples
    training.one_step.train_mode()
    has_batch_norm = any(
        isinstance(module, (GhostBatchNorm, _BatchNorm)) and module.training
        for module in training.model.modules()
    )
    for size in sizes:
        if available is not None and size > available:
            rule = f"must be <= the {available} training examples"
            raise InputError("batch_sizes", rule, size)
        changed = dataclasses.replace(training.recipe, batch_size=size)
        check_division(training.task, changed, training.world, has_batch_norm)


class _Course:
    """The first updates at one batch size."""

    def __init__(
        self, training: Training, batch_size: int, settings: LossOscillationSettings
    ) -> None:
        hyperparameters = training.one_step.hyperparameters
        if settings.lr is not None and not hyperparameters.can_move_lr:
            raise InputError("optimizer.lr", "must be > 0 to be varied", 0.0)
        hyperparameters.fixed_lr = settings.lr
        self._training, self._settings = training, settings
        self._batch_size = batch_size
        self._position = training.feed.position()
        self._feed: Feed = training.feed.standing_still(batch_size=batch_size)
        self._before: Tensor | None = None  # gradient of the update before, at other weights
        self.examples = 0

    def run(self, activity: Activity, share: float) -> list[tuple[float, ...]]:
        """Train; one row for each update, the last one where the loss is not finite."""
        settings = self._settings
        count = min(settings.num_updates, max(2, settings.max_examples // self._batch_size))
        rows: list[tuple[float, ...]] = []
        last = math.nan
        try:
            for update in range(count):
                loss, cosine, across = self._update(update)
                difference = abs(loss - last)
                rows.append((self._batch_size, update, loss, difference, cosine, across))
                last = loss
                text = f"batch size {self._batch_size}  update {update + 1} of {count}"
                activity.show(f"{text}  loss {loss:.4g}", share=share)
                if not math.isfinite(loss):
                    break
        finally:
            self._feed.close()
            self._training.one_step.hyperparameters.fixed_lr = None
        return rows

    def _update(self, update: int) -> tuple[float, float, float]:
        """Loss before the update, and the two cosines, nan where they are not due."""
        step, feed, every = self._training.one_step, self._feed, self._settings.cosine_every
        portion = feed.next()
        place = (feed.epoch, feed.offset, portion.num_examples)
        feed.advance(portion.num_examples)
        step.train_mode()
        due = update % every == 0
        neighbour = self._gradient_of(feed.next()) if due else None
        step.gradient(portion)
        loss = self._mean_loss(portion)
        self.examples += portion.num_examples
        if not math.isfinite(loss):
            feed.refuse_bad_data(*place)
            return loss, math.nan, math.nan
        cosine = across = math.nan
        if due or (update + 1) % every == 0:
            own = self._own_gradient()
            cosine = math.nan if neighbour is None else _cosine(own, neighbour)
            across = math.nan if not due or self._before is None else _cosine(own, self._before)
            self._before = own
        step.update(self._position)
        return loss, cosine, across

    def _gradient_of(self, portion: Portion) -> Tensor:
        """Of the next batch at the present weights; the training goes on as if without it."""
        with preserved_random_state():
            self._training.one_step.gradient(portion)
        self.examples += portion.num_examples
        return self._own_gradient()

    def _own_gradient(self) -> Tensor:
        parameters = self._training.model.parameters()
        gradients = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
        return torch.cat(gradients) if gradients else torch.zeros(1)

    def _mean_loss(self, portion: Portion) -> float:
        """Over the global batch, the same on every rank."""
        step, world = self._training.one_step, self._training.world
        total = torch.zeros(1, dtype=torch.float64, device=world.device)
        for losses in step.losses:
            total += losses.sum(dtype=torch.float64)
        world.sum_in_place(total)
        return float(total) / portion.num_examples


def _cosine(left: Tensor, right: Tensor) -> float:
    """Of the angle between two gradients; nan where one is 0 or not finite."""
    if left.is_complex():
        left, right = torch.view_as_real(left).flatten(), torch.view_as_real(right).flatten()
    if left.shape != right.shape:
        return math.nan
    left, right = left.double(), right.double()
    length = float(torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right))
    value = float(left @ right) / length if length > 0.0 else math.nan
    return value if math.isfinite(value) else math.nan
