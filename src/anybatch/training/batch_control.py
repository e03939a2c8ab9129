"""Batch control in training: the noise of some updates is observed, now and then it is looked at.

Some updates of those between two looks are observed: the squared norm of each part's gradient is
taken before it is added to the others'. Parts are micro-batches and ranks; an update that has but
one is divided in two, of which the gradient is the same sum. Which updates are observed follows
from their position alone. At a look the pairs since the batch size last moved (the latest 96)
give the noise scale and its interval, the controller answers, and feed and lr follow. The
arithmetic is that of `curvature.noise_arithmetic`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.batch_control import BatchSizeController, NoiseLook, SizeBounds
from anybatch.curvature.gradient_parts import GradientParts, squared_norms
from anybatch.curvature.noise_arithmetic import b_simple_estimate, pair_of_parts
from anybatch.data.items import augments
from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.recipe import AdaptiveBatchSize, Mixup, Recipe
from anybatch.records import EventRecord
from anybatch.schedules import Clock, Duration
from anybatch.task import Task
from anybatch.training.feed import Feed
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.portion import Portion
from anybatch.training.sampling import pass_size, rank_share
from anybatch.training.step import Step
from anybatch.world import World

__all__ = ["BatchControl"]

_OBSERVED = 32  # updates of those between two looks
_FEWEST = 12  # pairs, for an interval: fewer are too few for it to cover what it should
_KEPT = 3 * _OBSERVED  # pairs: a long memory lags behind a noise scale that rises


class _Observed(NamedTuple):
    """What one update has left, on the device: nothing has waited for it."""

    examples: int
    parts: int  # over all ranks
    sums: Tensor  # sum over own parts of (b_j / n) |g_j|^2; |g|^2 of the update


class _Pair(NamedTuple):
    """What one observed update says; see `noise_arithmetic.Pair`."""

    examples: int
    squared_norm: float
    trace: float


@final
class BatchControl:
    """Moves the batch size of one training; the same on every rank.

    Args:
        task: whose loss must not couple a batch.
        recipe: with `batch_control`.
        clock: lengths of the run.
        world: ranks that train together.
        step: whose updates are observed and whose lr follows.
        feed: whose batch size is moved.

    Raises:
        InputError: a batch that has no parts with gradients of their own, bounds that do not fit,
            distances that cannot be told.
    """

    def __init__(
        self, task: Task, recipe: Recipe, clock: Clock, world: World, step: Step, feed: Feed
    ) -> None:
        settings = recipe.batch_control or AdaptiveBatchSize()
        bounds = SizeBounds.of(recipe, clock.examples_per_epoch)
        _check_parts(recipe, step.model, bounds)
        self._recipe, self._world, self._step, self._feed = recipe, world, step, feed
        self._controller = BatchSizeController(settings, bounds)
        try:
            self._every = clock.interval(settings.every)
        except InputError as error:
            raise error.renamed("batch_control.every") from None
        self._begin = _examples("begin_after", settings.begin_after, clock)
        self._ghost = recipe.ghost_batch_size or 1
        self._divisor_is_count = recipe.loss.reduction == "mean"
        self._parameters = [p for p in step.model.parameters() if p.requires_grad]
        self._hooks = GradientParts(self._parameters)
        source = task.source("train")
        changes = augments(recipe.augmentation) or recipe.augmentation.mixing is not None
        fresh = not source.random_access or changes or self._ghost > 1
        self._set_size = math.inf if fresh else float(clock.examples_per_epoch or math.inf)
        self._observed: list[_Observed] = []
        self._pairs: list[_Pair] = []

    # --- observing ---------------------------------------------------------------------------

    def gradient(self, portion: Portion) -> None:
        """As `Step.gradient`, and observed where it is this update's turn.

        Args:
            portion: the feed's next one.
        """
        count = portion.num_examples
        sizes = self._part_sizes(count) if self._is_observed(count) else []
        if sum(map(len, sizes)) < 2:
            self._step.gradient(portion)
            return
        micro = max(size for own in sizes for size in own)
        before = _generator_state(self._world.device)
        with self._hooks:
            self._hooks.forget()
            self._step.gradient(portion, micro_batch_size=micro, transformed=False)
        if not torch.equal(before, _generator_state(self._world.device)):
            self._set_size = math.inf  # dropout, say: the same example has another gradient
        self._observed.append(self._sums(count, sizes))
        self._step.transforms.apply(self._parameters, self._step.updates)

    def _is_observed(self, num_examples: int) -> bool:
        """Whether the next update is one of those, evenly spread, between two looks."""
        every, examples, updates = self._every, self._feed.examples, self._step.updates
        if every.counts == "updates":
            early, late = updates, updates + 1
        else:
            early, late = examples, examples + num_examples
        passed = early * _OBSERVED // every.length, late * _OBSERVED // every.length
        return examples >= self._begin and passed[0] != passed[1]

    def _part_sizes(self, num_examples: int) -> list[list[int]]:
        """Examples of each part of an observed update, rank by rank."""
        world, ghost = self._world.size, self._ghost
        ends = (
            rank_share(num_examples, rank=rank, world_size=world, ghost=ghost)
            for rank in range(world)
        )
        shares = [stop - start for start, stop in ends]
        largest = max(shares)
        size = min(pass_size(self._recipe, divisible=True) or largest, largest)
        if size == largest and sum(share > 0 for share in shares) < 2:
            ghosts = math.ceil(largest / ghost)
            size = math.ceil(ghosts / 2) * ghost
        return [[min(size, share - at) for at in range(0, share, size)] for share in shares]

    def _sums(self, num_examples: int, sizes: list[list[int]]) -> _Observed:
        """Of the update whose gradient stands in `.grad`.

        Part j has added (b_j / divisor) g_j to it, divisor being n or, for a sum, 1.
        """
        divisor = num_examples if self._divisor_is_count else 1
        own = sizes[self._world.rank]
        by_part = self._hooks.squared_norms().sum(dim=1).double()[: len(own)]
        if len(by_part) != len(own):
            rule = f"must be one for each of the {len(own)} parts of an observed update"
            hint = "checkpoint with use_reentrant=False"
            raise InputError("backward passes", rule, len(by_part), hint=hint)
        weights = by_part.new_tensor([divisor**2 / (size * num_examples) for size in own])
        added = squared_norms(self._parameters).sum().double() * (divisor / num_examples) ** 2
        return _Observed(
            num_examples, sum(map(len, sizes)), torch.stack([weights @ by_part, added])
        )

    # --- looking -----------------------------------------------------------------------------

    def look(self) -> EventRecord | None:
        """After an update: what follows from the noise scale, where a look is due.

        Collectives:
            Where one is due, a gather of a few numbers for each observed update and a broadcast.
        """
        feed, step = self._feed, self._step
        before = self._every.times(
            updates=step.updates - 1, examples=feed.examples - feed.last_size
        )
        now = self._every.times(updates=step.updates, examples=feed.examples)
        if now == before or feed.examples <= self._begin:
            return None
        self._collect()
        estimate, norm, trace = self._world.from_first(self._estimated())
        size = self._controller.batch_size
        self._controller.observe(
            NoiseLook(
                update=step.updates,
                examples=feed.examples,
                epoch=feed.epochs,
                noise_scale=estimate,
                squared_gradient_norm=norm,
                covariance_trace=trace,
                pairs=len(self._pairs),
            )
        )
        if self._controller.batch_size != size:
            self._pairs = []  # at another batch size and lr the noise scale is another
            self._apply()
        return self._controller.event

    def _estimated(self) -> tuple[Estimate, float, float]:
        """The noise scale, and the means of Q and S that it is the ratio of."""
        counts = [float(pair.examples) for pair in self._pairs]
        norms = [pair.squared_norm for pair in self._pairs]
        traces = [pair.trace for pair in self._pairs]
        estimate = b_simple_estimate(norms, traces, weights=counts)
        if len(counts) < _FEWEST:
            told = f"{len(counts)} observed updates, of at least {_FEWEST}"
            estimate = Estimate(value=None, unit=estimate.unit, reason=told)
        return estimate, _mean(norms, counts), _mean(traces, counts)

    def _collect(self) -> None:
        """Turn what was observed into pairs, over all ranks."""
        own = [seen.sums.tolist() for seen in self._observed], self._set_size
        ranks = self._world.all_values(own)
        set_size = max(size for _, size in ranks)  # fresh on one rank is fresh
        for number, seen in enumerate(self._observed):
            squares = sum(rows[number][0] for rows, _ in ranks)
            pair = pair_of_parts(
                squares,
                ranks[0][0][number][1],
                num_examples=seen.examples,
                num_parts=seen.parts,
                set_size=set_size,
            )
            self._pairs.append(_Pair(seen.examples, float(pair.squared_norm), float(pair.trace)))
        self._observed, self._pairs = [], self._pairs[-_KEPT:]

    def _apply(self) -> None:
        self._feed.set_batch_size(self._controller.batch_size)
        self._step.hyperparameters.batch_factor = self._controller.lr_factor

    def state_dict(self) -> dict[str, Any]:
        """Batch size and pairs, as plain values.

        Collectives:
            One gather of a few numbers for each observed update; every rank must call.
        """
        self._collect()
        return {
            "controller": self._controller.state_dict(),
            "pairs": [tuple(pair) for pair in self._pairs],
            "set_size": self._set_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned, and move feed and lr to it."""
        self._controller.load_state_dict(state["controller"])
        self._pairs = [_Pair(*pair) for pair in state["pairs"]]
        self._set_size, self._observed = state["set_size"], []
        self._apply()


def _check_parts(recipe: Recipe, model: nn.Module, bounds: SizeBounds) -> None:
    """Refuse updates whose parts have no gradients of their own; see also `check_rules`."""
    if recipe.blocks is not None:
        raise InputError("batch_control", "must be left out beside blocks", "both")
    ghost = recipe.ghost_batch_size
    if isinstance(recipe.augmentation.mixing, Mixup) and ghost is None:
        rule = "must be set for mixup under batch_control, as its partners couple the parts"
        raise InputError("ghost_batch_size", rule, None, hint="32, say")
    norms = (GhostBatchNorm, _BatchNorm)
    if ghost is None and any(isinstance(m, norms) and m.training for m in model.modules()):
        rule = "must be set for BatchNorm under batch_control, which divides observed updates"
        raise InputError("ghost_batch_size", rule, None, hint="32, say")
    if ghost is not None and 2 * ghost > bounds.smallest:
        rule = f"must be at most half of the smallest batch size, {bounds.smallest}"
        raise InputError("ghost_batch_size", rule, ghost, hint="an update needs two of them")
    if bounds.smallest < 2:
        rule = "must be >= 2 examples, as an observed update needs two parts"
        raise InputError("batch_control.smallest", rule, bounds.smallest)


def _examples(name: str, duration: Duration, clock: Clock) -> int:
    try:
        return clock.examples(duration)
    except InputError as error:
        raise error.renamed(f"batch_control.{name}") from None


def _mean(values: list[float], weights: list[float]) -> float:
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / sum(weights) if weights else math.nan


def _generator_state(device: torch.device) -> Tensor:
    """Of the generator that dropout draws from."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()
