"""Batch control: a batch size that follows the measured noise scale, one look after the other.

The noise scale comes from outside, with its interval; here is only what follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.recipe import AdaptiveBatchSize, Recipe
from anybatch.records import EventRecord
from anybatch.schedules import Constant

__all__ = [
    "BatchSizeController",
    "NoiseLook",
    "SizeBounds",
    "control_sentence",
    "lr_factor_of",
    "next_batch_size",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLook:
    """What is known of the noise scale at one point of a training.

    Attributes:
        update: updates done before it.
        examples: training examples seen before it.
        epoch: passes over the training data before it, as a decimal.
        noise_scale: in examples, with its interval.
        squared_gradient_norm: mean of the pairs, unbiased for |G|^2; nan without pairs.
        covariance_trace: mean of the pairs, unbiased for tr Sigma; nan without pairs.
        pairs: observed updates that it was computed from.
    """

    update: int
    examples: int
    epoch: float
    noise_scale: Estimate
    squared_gradient_norm: float
    covariance_trace: float
    pairs: int


@dataclass(frozen=True, slots=True)
class SizeBounds:
    """Between which a controlled batch size stays.

    Attributes:
        first: batch size that the training begins with.
        smallest: >= 1.
        largest: of the updates, or inf for a stream of unknown length.
    """

    first: int
    smallest: int
    largest: float

    @classmethod
    def of(cls, recipe: Recipe, num_examples: int | None) -> Self:
        """The bounds of a recipe with `batch_control` on data of this size.

        Args:
            recipe: whose batch size is the first.
            num_examples: of the training split; None for a stream of unknown length.

        Raises:
            InputError: a batch size that is scheduled as well, or outside of its bounds; bounds
                that leave nothing to move; a weight decay that counts the updates of the run.
        """
        control = recipe.batch_control or AdaptiveBatchSize()
        if recipe.schedules.batch_size != Constant():
            rule = "must be constant where batch_control moves the batch size"
            raise InputError("schedules.batch_size", rule, recipe.schedules.batch_size.name)
        if recipe.optimizer.decay == "normalized":
            rule = "must not be normalized under batch_control, as the updates are not known before"
            raise InputError("optimizer.decay", rule)
        first = num_examples if recipe.batch_size == "full" else recipe.batch_size
        if first is None:
            rule = "must be a number for a stream of unknown length"
            raise InputError("batch_size", rule, "full")
        smallest = first if control.smallest is None else control.smallest
        available = math.inf if num_examples is None else num_examples
        largest = available if control.largest is None else control.largest
        if largest > available:
            rule = f"must be <= the {num_examples} training examples"
            raise InputError("batch_control.largest", rule, largest)
        for name, bound, holds in (
            ("smallest", smallest, smallest <= first),
            ("largest", largest, first <= largest),
        ):
            if not holds:
                side = "<=" if name == "smallest" else ">="
                rule = f"must be {side} the recipe's batch size {first}"
                raise InputError(f"batch_control.{name}", rule, bound)
        if smallest == largest:
            rule = f"must be above the smallest, {smallest}"
            raise InputError("batch_control.largest", rule, largest)
        return cls(first, smallest, largest)


def next_batch_size(
    settings: AdaptiveBatchSize, bounds: SizeBounds, batch_size: int, noise_scale: Estimate
) -> tuple[int, str]:
    """The batch size after a look, and why.

    With the aim a = per_noise_scale * noise scale, known within its interval, and f the factor:

        all of the interval of a above B sqrt(f):  min(round(B f), largest)
        all of it below B / sqrt(f):               max(round(B / f), smallest)
        else:                                      B

    Args:
        settings: of the recipe.
        bounds: of the batch size.
        batch_size: B, at present.
        noise_scale: in examples, with its interval; unbounded ends say nothing.

    Example:
        >>> bounds = SizeBounds(first=32, smallest=16, largest=128)
        >>> noise = Estimate(value=90.0, low=70.0, high=120.0)
        >>> next_batch_size(AdaptiveBatchSize(), bounds, 32, noise)
        (64, 'the whole interval lies above 32 x 1.41')
        >>> next_batch_size(AdaptiveBatchSize(), bounds, 64, noise)
        (64, 'the interval reaches into 64 / 1.41 to 64 x 1.41')
    """
    low, high = (settings.per_noise_scale * end for end in (noise_scale.low, noise_scale.high))
    root = math.sqrt(settings.factor)
    if low > batch_size * root:
        side = f"the whole interval lies above {batch_size} x {root:.3g}"
        if batch_size >= bounds.largest:
            return batch_size, f"{side}, but {batch_size} is the largest"
        grown = max(round(batch_size * settings.factor), batch_size + 1)
        return int(min(grown, bounds.largest)), side
    if high < batch_size / root:
        side = f"the whole interval lies below {batch_size} / {root:.3g}"
        if batch_size <= bounds.smallest:
            return batch_size, f"{side}, but {batch_size} is the smallest"
        shrunk = min(round(batch_size / settings.factor), batch_size - 1)
        return max(shrunk, bounds.smallest), side
    if math.isinf(high) and low <= 0.0:
        return batch_size, "the interval has no ends"
    reach = f"{batch_size} / {root:.3g} to {batch_size} x {root:.3g}"
    return batch_size, f"the interval reaches into {reach}"


def control_sentence(recipe: Recipe, num_examples: int | None) -> str:
    """What may move the batch size of a recipe's run, in words; "" where nothing does.

    Args:
        recipe: of the run.
        num_examples: of the training split; None for a stream of unknown length.

    Raises:
        InputError: bounds that do not fit; see `SizeBounds.of`.
    """
    settings = recipe.batch_control
    if settings is None:
        return ""
    bounds = SizeBounds.of(recipe, num_examples)
    return (
        f"batch_control: looks at the noise scale every {settings.every}, and may then move the "
        f"batch size by a factor of {settings.factor:g}, within {bounds.smallest} and "
        f"{bounds.largest:g}, and the lr with it ({settings.lr_rule})"
    )


def lr_factor_of(settings: AdaptiveBatchSize, batch_size: int, first: int) -> float:
    """What the lr is multiplied by at a batch size: (B / B0)^p, p = 0, 1/2 or 1 by `lr_rule`.

    Args:
        settings: of the recipe.
        batch_size: B, at present.
        first: B0, that the training began with.

    Example:
        >>> lr_factor_of(AdaptiveBatchSize(lr_rule="square-root"), 128, 32)
        2.0
    """
    match settings.lr_rule:
        case "constant":
            return 1.0
        case "square-root":
            return math.sqrt(batch_size / first)
        case "linear":
            return batch_size / first


@final
class BatchSizeController:
    """Observes looks at the noise scale and answers with the batch size.

    Args:
        settings: of the recipe.
        bounds: of the batch size; see `SizeBounds.of`.

    Attributes:
        batch_size: at present.
        event: what the last look came to, with its numbers and its reason; None before the first.

    Example:
        >>> bounds = SizeBounds(first=32, smallest=32, largest=1000)
        >>> controller = BatchSizeController(AdaptiveBatchSize(lr_rule="linear"), bounds)
        >>> look = NoiseLook(update=100, examples=3200, epoch=1.0, pairs=32, covariance_trace=8.1,
        ...     squared_gradient_norm=0.09, noise_scale=Estimate(value=90.0, low=70.0, high=120.0))
        >>> controller.observe(look), controller.lr_factor, controller.event.name
        (64, 2.0, 'batch-size-changed')
    """

    def __init__(self, settings: AdaptiveBatchSize, bounds: SizeBounds) -> None:
        self._settings, self._bounds = settings, bounds
        self.batch_size = bounds.first
        self.event: EventRecord | None = None

    @property
    def lr_factor(self) -> float:
        """What the lr is multiplied by at present; see `lr_factor_of`."""
        return lr_factor_of(self._settings, self.batch_size, self._bounds.first)

    def observe(self, record: NoiseLook) -> int:
        """The batch size after this look; `event` says how it came to be."""
        before, lr_before = self.batch_size, self.lr_factor
        noise = record.noise_scale
        self.batch_size, reason = next_batch_size(self._settings, self._bounds, before, noise)
        changed = self.batch_size != before
        self.event = EventRecord(
            update=record.update,
            examples=record.examples,
            epoch=record.epoch,
            name="batch-size-changed" if changed else "batch-size-looked-at",
            sentence=self._sentence(before, noise, reason),
            values={
                "batch_size_before": before,
                "batch_size_after": self.batch_size,
                "lr_factor_before": lr_before,
                "lr_factor_after": self.lr_factor,
                "noise_scale": math.nan if noise.value is None else noise.value,
                "noise_scale_low": noise.low,
                "noise_scale_high": noise.high,
                "squared_gradient_norm": record.squared_gradient_norm,
                "covariance_trace": record.covariance_trace,
                "pairs": record.pairs,
            },
        )
        return self.batch_size

    def _sentence(self, before: int, noise: Estimate, reason: str) -> str:
        after, times = self.batch_size, self._settings.per_noise_scale
        moved = f"{before} -> {after}" if after != before else f"stays {before}"
        sentence = f"batch size {moved}: noise scale {noise}"
        if math.isinf(noise.low) and math.isinf(noise.high):
            return sentence  # which says why it is not known
        return f"{sentence}; {'' if times == 1.0 else f'times {times:g}, '}{reason}"

    def state_dict(self) -> dict[str, Any]:
        """The batch size at present."""
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        self.batch_size = state["batch_size"]
