"""Parts of a recipe that do not concern the update rule: model, loss, images, stopping, records."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.schedules import Duration, epochs, examples

__all__ = [
    "Augmentation",
    "Average",
    "ComputeSettings",
    "ExponentialAverage",
    "LossSettings",
    "ModelSettings",
    "PolynomialAverage",
    "RecordSettings",
    "ReduceOnPlateauSettings",
    "Stopping",
    "Target",
    "require",
    "require_choices",
    "require_decay_rate",
    "require_not_negative",
    "require_positive",
]


def require(name: str, value: float, rule: str, holds: bool) -> None:
    """Refuse a value that is not finite or breaks its rule.

    Args:
        name: of the field.
        value: as given.
        rule: "must be > 0", say.
        holds: whether the rule is kept.

    Raises:
        InputError: it is not.
    """
    if not (math.isfinite(value) and holds):
        raise InputError(name, rule, value)


def require_choices(settings: Any) -> None:
    """Refuse a field whose value is of another type than stated, or none of its choices.

    Args:
        settings: of a dataclass; without this, a mistyped choice would act as another one, and
            "5 epochs" for a Duration would fail much later.

    Raises:
        InputError: the first such field.
    """
    cls: Any = type(settings)
    for name, members in _members(cls).items():
        value = getattr(settings, name)
        if not any(_fits(value, member) for member in members):
            raise InputError(name, f"must be {' or '.join(map(_described, members))}", repr(value))


@functools.cache
def _members(cls: type) -> dict[str, tuple[Any, ...]]:
    """The types that each field may have."""
    names = {field.name for field in dataclasses.fields(cls)}
    hints = {n: hint for n, hint in typing.get_type_hints(cls).items() if n in names}
    unions = (typing.Union, types.UnionType)
    return {
        n: typing.get_args(h) if typing.get_origin(h) in unions else (h,) for n, h in hints.items()
    }


def _fits(value: Any, member: Any) -> bool:
    if typing.get_origin(member) is Literal:
        return value in typing.get_args(member)
    if member is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if member is int and isinstance(value, bool):
        return False
    return isinstance(value, typing.get_origin(member) or member)


def _described(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        return f"one of: {', '.join(map(str, typing.get_args(member)))}"
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    known |= {type(None): "None", Duration: "a Duration, like anybatch.epochs(5)"}
    return (
        known.get(member) or f"a {getattr(typing.get_origin(member) or member, '__name__', member)}"
    )


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a finite number > 0."""
    require(name, value, "must be > 0", value > 0)


def require_not_negative(name: str, value: float) -> None:
    """Refuse anything but a finite number >= 0."""
    require(name, value, "must be >= 0", value >= 0)


def require_decay_rate(name: str, value: float) -> None:
    """Refuse anything outside of [0, 1)."""
    require(name, value, "must be in [0, 1)", 0 <= value < 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which of the package's networks; without it the task's own model is built.

    Attributes:
        name: a name of `anybatch.models` ("resnet9").
        width: factor on the published channel counts, > 0.
    """

    name: str
    width: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("width", self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """How per-example losses become the gradient.

    Attributes:
        reduction: "mean" divides the summed gradient by the batch size; "sum" does not, so lr acts
            per example: lr_sum = lr_mean / B, and coupled decay_sum = decay_mean * B.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
    """

    reduction: Literal["mean", "sum"] = "mean"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_decay_rate("label_smoothing", self.label_smoothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of the training images; none by default.

    Attributes:
        crop_padding: pixels of padding on each side before a random crop back to size, >= 0.
        padding_mode: what the padding holds: the mirrored image or black (raw value 0).
        flip: horizontal mirror: "random" draws per epoch, "alternating" draws once per example
            and then mirrors on every second epoch, so both views are seen in each pair of epochs.
        cutout_size: side in pixels of a square set to the mean colour, >= 0; may reach over the
            edge.
        random_resized_crop: crop 8 % to 100 % of the area at an aspect of 3/4 to 4/3 and resize
            (streamed image folders only).
    """

    crop_padding: int = 0
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout_size: int = 0
    random_resized_crop: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("crop_padding", self.crop_padding)
        require_not_negative("cutout_size", self.cutout_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialAverage:
    """Evaluate and keep an exponential moving average of the weights.

    average <- decay average + (1 - decay) weights, after every `every` updates; floating-point
    buffers are averaged with them.

    Attributes:
        decay: in [0, 1).
        every: updates between two steps of the average, >= 1.
    """

    name: ClassVar[str] = "exponential"
    decay: float
    every: int = 1

    def __post_init__(self) -> None:
        require_choices(self)
        require_decay_rate("decay", self.decay)
        require("every", self.every, "must be >= 1 update", self.every >= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolynomialAverage:
    """Evaluate and keep an average of the weights over the last part of the run, however long.

    average <- (1 - r) average + r weights with r = (power + 1) / (t + power) in the t-th step of
    the average: its mean age stays at 1 / (power + 2) of the run so far, about the last ninth by
    default. So it needs no knowledge of the run's length; floating-point buffers are averaged too.

    Attributes:
        power: >= 0; 0 is the plain mean of all weights.
        every: updates between two steps of the average, >= 1.

    Reference:
        Shamir, Zhang (2013), Stochastic gradient descent for non-smooth optimization, section 4.
    """

    name: ClassVar[str] = "polynomial"
    power: float = 8.0
    every: int = 1

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("power", self.power)
        require("every", self.every, "must be >= 1 update", self.every >= 1)


Average: TypeAlias = ExponentialAverage | PolynomialAverage


@dataclass(frozen=True, slots=True)
class Target:
    """What a run is to reach: a quantity, a relation and a value.

    Attributes:
        quantity: "loss", the metric's name, or "" for the task's metric.
        relation: ">=", "<=", or "" for the metric's own direction.
        value: finite.

    Example:
        >>> Target.parse("loss<=1.6")
        Target(quantity='loss', relation='<=', value=1.6)
        >>> Target.parse("0.99")
        Target(quantity='', relation='', value=0.99)
    """

    quantity: str
    relation: Literal["", ">=", "<="]
    value: float

    def __str__(self) -> str:
        value = repr(float(self.value)).removesuffix(".0")  # exact: a run is resumed from its text
        return f"{self.quantity}{self.relation}{value}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "0.99", "loss<=1.6" or "accuracy>=0.99"."""
        match = re.fullmatch(r"\s*(?:([A-Za-z_][\w-]*)\s*(>=|<=)\s*)?([-+0-9.eE]+)\s*", text)
        rule = 'must be a number or like "loss<=1.6" or "accuracy>=0.99"'
        if match is None:
            raise InputError("target", rule, text)
        try:
            value = float(match.group(3))
        except ValueError:
            raise InputError("target", rule, text) from None
        require("target", value, rule, math.isfinite(value))
        relation: Literal["", ">=", "<="] = ""
        if match.group(2):
            relation = ">=" if match.group(2) == ">=" else "<="
        return cls(match.group(1) or "", relation, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """When a run is evaluated and when it ends before its duration.

    Attributes:
        evaluate_every: distance between evaluations; the last update is always evaluated.
        target: stop when reached; None trains for the whole duration.
        target_on: the split that the target is judged on; "test" only for published protocols.
        patience: stop after this many evaluations without improvement of the metric, >= 1.
        min_delta: what counts as improvement, in the metric's unit, >= 0.
    """

    evaluate_every: Duration = epochs(1)
    target: Target | None = None
    target_on: Literal["validation", "test"] = "validation"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("evaluate_every", self.evaluate_every.count)
        require_not_negative("min_delta", self.min_delta)
        if self.patience is not None:
            require("patience", self.patience, "must be >= 1 evaluation", self.patience >= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReduceOnPlateauSettings:
    """Multiply the lr by `factor` each time evaluations have stopped to improve.

    On top of the lr schedule, whatever it is. The options and defaults are those of torch's
    ReduceLROnPlateau, counted in evaluations of the validation split.

    Attributes:
        watch: "loss" or "metric" of the validation split.
        mode: "min" or "max", what an improvement is; None: "min" for the loss, and the metric's
            own direction for the metric.
        factor: of each reduction, in (0, 1).
        patience: evaluations without improvement that are tolerated, >= 0; the next one reduces.
        threshold: by how much the best must be beaten, >= 0; below 1 where it is relative.
        threshold_mode: "rel" (a share of the best's size) or "abs" (in its own unit).
        cooldown: evaluations after a reduction that are not counted, >= 0.
        min_lr: no reduction goes below it, >= 0; of the first parameter group, to which the others
            keep their ratios. The schedule itself may go below.
        eps: a reduction of the lr by no more than this is left out, >= 0.
        begin_after: evaluations before it (a warm-up, say) are not looked at.
    """

    watch: Literal["loss", "metric"] = "loss"
    mode: Literal["min", "max"] | None = None
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    begin_after: Duration = examples(0)

    def __post_init__(self) -> None:
        require_choices(self)
        require("factor", self.factor, "must be in (0, 1)", 0 < self.factor < 1)
        for name in ("patience", "threshold", "cooldown", "min_lr", "eps"):
            require_not_negative(name, getattr(self, name))
        if self.threshold_mode == "rel":
            require("threshold", self.threshold, "must be < 1 where relative", self.threshold < 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeSettings:
    """Where and in which arithmetic; nothing here is meant to change the result's meaning.

    Attributes:
        device: "auto" takes CUDA if there is one.
        precision: "fp32", "bf16" (autocast, fp32 weights) or "fp64".
        channels_last: memory format of images and filters.
        compile: run the model through torch.compile.
        deterministic: only algorithms that repeat bit for bit; on CUDA needed for a resume to the
            same numbers, on the CPU without effect.
        threads: CPU threads per process, >= 1; None leaves torch's choice.
        num_workers: loader processes per rank for streamed data, >= 0.
        evaluation_batch_size: examples per forward pass in evaluation, >= 1.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    threads: int | None = None
    num_workers: int = 0
    evaluation_batch_size: int = 1000

    def __post_init__(self) -> None:
        require_choices(self)
        if self.threads is not None:
            require("threads", self.threads, "must be >= 1", self.threads >= 1)
        require_not_negative("num_workers", self.num_workers)
        size = self.evaluation_batch_size
        require("evaluation_batch_size", size, "must be >= 1 example", size >= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSettings:
    """What a run writes and how often.

    Attributes:
        log_every: updates between two step records, >= 1.
        checkpoint_every: distance between checkpoints; one is also written at every end.
    """

    log_every: int = 20
    checkpoint_every: Duration = epochs(1)

    def __post_init__(self) -> None:
        require_choices(self)
        require("log_every", self.log_every, "must be >= 1 update", self.log_every >= 1)
        require_positive("checkpoint_every", self.checkpoint_every.count)
