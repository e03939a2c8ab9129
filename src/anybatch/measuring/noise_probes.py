"""Probes of the gradient's noise: how a batch is divided, and what each probe gives.

A probe is one large batch of the training's own data order, divided into parts as accumulation
divides it: the training's one step does the work, and hooks take the norm of each part's gradient
before it is added to the others'. Weights stand still; running statistics are put back by
`opened_training`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.course import recipe_clock
from anybatch.curvature.gradient_parts import (
    GradientParts,
    adam_scales,
    layer_names,
    squared_norms,
)
from anybatch.curvature.noise_arithmetic import b_simple_estimate, looks, pair_of_parts
from anybatch.data.items import augments
from anybatch.errors import InputError
from anybatch.progress import Activity
from anybatch.recipe import Schedules
from anybatch.recipe_checks import require, require_choices, require_positive
from anybatch.schedules import updates
from anybatch.training.feed import Feed
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.portion import Portion
from anybatch.training.sampling import rank_share, share_unit
from anybatch.training.training import Training

__all__ = ["Layout", "NoiseScaleSettings", "Probes", "num_parts", "probe_layout"]

_WITHOUT_END = 10**9  # updates
_BATCHES, _FEWEST_EXAMPLES = 4, 64  # of a probe
_SHORTEST = 0.5  # of a probe: what is left of an epoch is left out where it is less
_LEFT_OUT = 3  # in a row, before a stream is too short


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScaleSettings:
    """How a noise scale is measured.

    Attributes:
        examples_per_probe: n, >= 2; None: 4 batches, at least 64 examples, at most the set.
        parts_per_probe: m, >= 2; more where a part would be larger than what one rank takes in
            training.
        precision: probes are added until high / low of the interval is at most this, > 1.
        min_probes: before the first look at the interval, >= 4.
        max_probes: at most, >= 4.
        seconds: begin no further probe after this time; None: no limit.
        train_updates: updates taken before the measurement, at constant lr, >= 0.
    """

    examples_per_probe: int | None = None
    parts_per_probe: int = 4
    precision: float = 2.5
    min_probes: int = 12
    max_probes: int = 50
    seconds: float | None = None
    train_updates: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        if self.examples_per_probe is not None:
            count = self.examples_per_probe
            require("examples_per_probe", count, "must be >= 2", count >= 2)
        if self.seconds is not None:
            require_positive("seconds", self.seconds)
        for name, least in (("parts_per_probe", 2), ("min_probes", 4), ("max_probes", 4)):
            value = getattr(self, name)
            require(name, value, f"must be >= {least}", value >= least)
        require("precision", self.precision, "must be > 1", self.precision > 1.0)
        require("train_updates", self.train_updates, "must be >= 0", self.train_updates >= 0)


class Layout(NamedTuple):
    """How a probe is divided.

    Attributes:
        examples: of a probe, over all ranks.
        part: examples of a part, at most.
        unit: examples that share a gradient of their own: 1, or those of a ghost batch.
        unit_name: "examples", or what a unit is.
    """

    examples: int
    part: int
    unit: int
    unit_name: str

    def part_sizes(self, num_examples: int) -> list[int]:
        """Of the parts that one rank's share of a probe is divided into."""
        whole, rest = divmod(num_examples, self.part)
        return [self.part] * whole + [rest] * (rest > 0)


def probe_layout(training: Training, settings: NoiseScaleSettings) -> Layout:
    """How the probes of a training are divided.

    Raises:
        InputError: the set is smaller than the probe asked for, or than two parts; blocks, whose
            gradients are no parts; ranks that update on their own.
    """
    recipe, size = training.recipe, training.task.source("train").num_examples
    _check_plain(training)
    batch_size = _present_batch_size(training)
    unit, name = _unit(training, batch_size)
    most = recipe.micro_batch_size or -(-batch_size // training.world.size)
    examples = settings.examples_per_probe or max(_BATCHES * batch_size, _FEWEST_EXAMPLES)
    if size is not None and settings.examples_per_probe and examples > size:
        rule = f"must be <= the {size} training examples"
        raise InputError("examples_per_probe", rule, examples)
    examples = min(examples, size or examples)
    whole = unit if unit > 1 else recipe.ghost_batch_size or 1  # what must not be divided
    part = max(min(-(-examples // settings.parts_per_probe), most) // whole, 1) * whole
    layout = Layout(examples // unit * unit, part, unit, name)
    if num_parts(training, layout, layout.examples) < 2:
        rule = f"must hold two parts of {part} examples for a probe"
        raise InputError("the training data", rule, size or examples, hint=_smaller(training, unit))
    return layout


def _check_plain(training: Training) -> None:
    """Refuse gradients that are not the sum of their parts' over all ranks."""
    if training.recipe.blocks is not None:
        rule = "must be left out for a noise scale, which is that of plain gradients"
        raise InputError("blocks", rule, f"blocks of {training.recipe.blocks.size}")
    if training.one_step.is_local:
        rule = "must be left out for a noise scale, which needs the gradients of all ranks"
        raise InputError("communication", rule)


def num_parts(training: Training, layout: Layout, num_examples: int) -> int:
    """Parts of a probe over all ranks.

    Args:
        training: whose ranks.
        layout: of a probe.
        num_examples: of the probe.
    """
    return sum(len(layout.part_sizes(count)) for count in _shares(training, num_examples))


def _shares(training: Training, num_examples: int) -> list[int]:
    """Examples of a global batch that each rank takes."""
    size, unit = training.world.size, share_unit(training.recipe)
    ends = [rank_share(num_examples, rank=r, world_size=size, ghost=unit) for r in range(size)]
    return [stop - start for start, stop in ends]


def _smaller(training: Training, unit: int) -> str:
    if unit > 1 and training.task.loss_scope == "example":
        return "set ghost_batch_size, 32, say, as BatchNorm couples the examples of a batch"
    return "set a smaller batch_size"


def _present_batch_size(training: Training) -> int:
    """The global batch size at this point of its schedule."""
    feed = training.feed.standing_still()
    feed.load_state_dict(feed.state_dict() | {"offset": 0})
    return feed.position().size


def _unit(training: Training, batch_size: int) -> tuple[int, str]:
    """Examples that share one gradient, and what such a unit is called."""
    training.one_step.train_mode()
    if training.task.loss_scope == "batch":
        return batch_size, f"batches of {batch_size} examples, which the loss couples"
    coupled = (
        module.training and isinstance(module, (GhostBatchNorm, _BatchNorm))
        for module in training.model.modules()
    )
    if any(coupled):
        ghost = training.recipe.ghost_batch_size or batch_size
        return ghost, f"ghost batches of {ghost} examples"
    return 1, "examples"


@final
class Probes:
    """The samples of one measurement, as they come.

    Args:
        training: stays where it is but for `.grad`, the modes and BatchNorm's sums.
        settings: of the measurement.
        activity: shows what is being done.

    Attributes:
        layout: of a probe.
        columns: samples so far, by name.
        update_examples: the training's present batch size.
        examples: used so far.
        set_size: examples that the probes of a pass share out; inf where they are fresh draws.
        stopped_by: "precision", "max_probes" or "seconds".
    """

    def __init__(
        self, training: Training, settings: NoiseScaleSettings, activity: Activity
    ) -> None:
        self._training, self._settings, self._activity = training, settings, activity
        self.layout = probe_layout(training, settings)
        self.set_size = self._shared_out()
        named = [(n, p) for n, p in training.model.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        owners = layer_names([name for name, _ in named])
        self._layers = list(dict.fromkeys(owners))
        self._layer_of = torch.tensor([self._layers.index(owner) for owner in owners])
        self._scales = adam_scales(training.optimizer, self._parameters)
        self._rows: list[dict[str, float]] = []
        self.update_examples = _present_batch_size(training)
        self.examples = 0
        self.stopped_by = "max_probes"

    def _shared_out(self) -> float:
        source, recipe = self._training.task.source("train"), self._training.recipe
        changes = augments(recipe.augmentation) or recipe.augmentation.mixing is not None
        fresh = not source.random_access or changes or self.layout.unit > 1
        return math.inf if fresh else float(source.num_examples or math.inf)

    @property
    def columns(self) -> dict[str, tuple[float, ...]]:
        """Samples so far, by name; one row a probe."""
        names = self._rows[0] if self._rows else {}
        return {name: tuple(row[name] for row in self._rows) for name in names}

    def take(self) -> None:
        """Probes until the interval is narrow enough, or their number or the time is spent.

        Collectives:
            Those of a gradient, one all-reduce of a few numbers and one broadcast, for each probe.
        """
        settings, started = self._settings, time.perf_counter()
        looking = looks(settings.min_probes, settings.max_probes)
        feed = _feed_of(self._training, self.layout.examples)
        parts = GradientParts(self._parameters, self._scales)
        with contextlib.closing(feed), parts:
            for number in range(1, settings.max_probes + 1):
                self._rows.append(self._probe(feed, parts, number))
                reason = "precision" if number in looking and self._is_precise() else ""
                spent = settings.seconds and time.perf_counter() - started >= settings.seconds
                reason = self._training.world.from_first(reason or ("seconds" if spent else ""))
                most = settings.max_probes
                self._activity.show(f"probe {number} of at most {most}", share=number / most)
                if reason:
                    self.stopped_by = reason
                    return

    def _is_precise(self) -> bool:
        columns = self.columns
        found = b_simple_estimate(
            columns["squared_gradient_norm"],
            columns["covariance_trace"],
            weights=columns["examples"],
        )
        return found.value is not None and found.high <= self._settings.precision * found.low

    def _probe(self, feed: Feed, parts: GradientParts, number: int) -> dict[str, float]:
        """The next probe's row."""
        training = self._training
        portion = _long_enough(feed, self.layout)
        training.one_step.train_mode()
        parts.forget()
        drawn = _generator_state(training.world.device)
        training.one_step.gradient(portion, micro_batch_size=self.layout.part, transformed=False)
        if not torch.equal(drawn, _generator_state(training.world.device)):
            self.set_size = math.inf  # dropout, say: the same example has another gradient
        feed.advance(portion.num_examples)
        self.examples += portion.num_examples
        return self._row(portion, parts, number)

    def _row(self, portion: Portion, parts: GradientParts, number: int) -> dict[str, float]:
        """What one probe says: of the whole, of each layer, and preconditioned.

        Part j has added (b_j / divisor) g_j to the gradient, divisor being n or, for a sum, 1.
        """
        training, count = self._training, portion.num_examples
        divisor = count if training.recipe.loss.reduction == "mean" else 1
        sizes = self._own_sizes(portion, parts)
        weights = torch.tensor([divisor**2 / (b * count) for b in sizes], dtype=torch.float64)
        scaled = None if self._scales is None else parts.scaled_squared_norms()
        by_part = self._grouped(parts.squared_norms(), scaled)[: len(sizes)]
        squares = (weights @ by_part).to(training.world.device)
        training.world.sum_in_place(squares)
        if self._scales is not None:
            scaled = squared_norms(self._parameters, self._scales)[None]
        added = self._grouped(squared_norms(self._parameters)[None], scaled)[0]
        parts_of_all = num_parts(training, self.layout, count)
        pair = pair_of_parts(
            squares.cpu().numpy(),
            ((divisor / count) ** 2 * added).numpy(),
            num_examples=count,
            num_parts=parts_of_all,
            set_size=self.set_size,
        )
        row = {"probe": float(number), "examples": float(count), "parts": float(parts_of_all)}
        names = ["", *(f"/{layer}" for layer in self._layers), "_preconditioned"]
        for place, name in enumerate(names if self._scales is not None else names[:-1]):
            row[f"squared_gradient_norm{name}"] = float(pair.squared_norm[place])
            row[f"covariance_trace{name}"] = float(pair.trace[place])
        return row

    def _own_sizes(self, portion: Portion, parts: GradientParts) -> list[int]:
        """Examples of each part of this rank; none where no gradient reached a parameter."""
        share = _shares(self._training, portion.num_examples)[self._training.world.rank]
        sizes = self.layout.part_sizes(share)
        if not sizes or not parts.num_parts:
            return []
        if parts.num_parts != len(sizes):
            rule = f"must be one for each of the {len(sizes)} parts"
            hint = "checkpoint with use_reentrant=False"
            raise InputError("backward passes", rule, parts.num_parts, hint=hint)
        return sizes

    def _grouped(self, norms: Tensor, scaled: Tensor | None) -> Tensor:
        """Squared norms of each row: of the whole, of each layer, preconditioned."""
        norms = norms.double().cpu()
        layers = torch.zeros(len(norms), len(self._layers), dtype=torch.float64)
        columns = [norms.sum(1, keepdim=True), layers.index_add_(1, self._layer_of, norms)]
        if scaled is not None:
            columns.append(scaled.double().cpu().sum(1, keepdim=True))
        return torch.cat(columns, dim=1)


def _long_enough(feed: Feed, layout: Layout) -> Portion:
    """The next portion that a probe can be made of; what is left of an epoch may be too little.

    Raises:
        InputError: a stream that holds no whole probe.
    """
    least = layout.examples if layout.unit > 1 else _SHORTEST * layout.examples
    for _ in range(_LEFT_OUT):
        portion = feed.next()
        if portion.num_examples >= least:
            return portion
        feed.advance(portion.num_examples)
    rule = f"must hold a probe of {layout.examples} examples"
    raise InputError("a pass of the stream", rule, portion.num_examples)


def _feed_of(training: Training, num_examples: int) -> Feed:
    """A feed of batches of this size, from where the training stands on."""
    recipe = dataclasses.replace(
        training.recipe,
        batch_size=num_examples,
        duration=updates(_WITHOUT_END),
        schedules=Schedules(),
        batch_control=None,
    )
    source = training.feed.source
    feed = Feed(source, recipe, recipe_clock(recipe, source.num_examples), training.world)
    feed.load_state_dict(training.feed.state_dict() | {"examples": 0})
    return feed


def _generator_state(device: torch.device) -> Tensor:
    """Of the generator that dropout draws from."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()
