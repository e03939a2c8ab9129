"""Parts of a recipe that concern neither update rule nor batch: model, loss, stopping, records."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.recipe_checks import (
    require,
    require_choices,
    require_decay_rate,
    require_not_negative,
    require_positive,
)
from anybatch.schedules import Duration, epochs, examples

__all__ = [
    "Average",
    "ComputeSettings",
    "ExponentialAverage",
    "LossSettings",
    "ModelSettings",
    "Origin",
    "PolynomialAverage",
    "RecordSettings",
    "ReduceOnPlateauSettings",
    "Stopping",
    "Target",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a recipe's method was published.

    Attributes:
        paper: authors and title.
        year: of publication; 0: not published.
        article: number of the article of this package's documentation that describes it; 0: none.
    """

    paper: str = ""
    year: int = 0
    article: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("year", self.year)
        require("article", self.article, "must be in 0 ... 5", 0 <= self.article <= 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which of the package's networks; without it the task's own model is built.

    Attributes:
        name: a name of `anybatch.models` ("resnet9").
        width: factor on the published channel counts, > 0.
        zero_gamma: begin with the scale of the norm that ends each residual branch at 0, so that
            each block is its shortcut; refused where no branch ends in a norm (before a ReLU, the
            scale 0 would never learn). None: as the network was published.
    """

    name: str
    width: float = 1.0
    zero_gamma: bool | None = None

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
        coupled: how a loss that couples a batch is divided: "whole" never, "cached-outputs" in two
            passes: outputs of all micro-batches without graph, then each again with its gradient.
    """

    reduction: Literal["mean", "sum"] = "mean"
    label_smoothing: float = 0.0
    coupled: Literal["whole", "cached-outputs"] = "whole"

    def __post_init__(self) -> None:
        require_choices(self)
        require_decay_rate("label_smoothing", self.label_smoothing)


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
