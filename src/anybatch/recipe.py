"""Recipe: every choice of one training run, frozen, with units.

Choices that exclude each other are a union of small settings classes, told apart in a file by
their `name`. Bounds are checked where the value is written, so a Recipe that exists is valid in
itself; what depends on the data (a batch larger than the set) is checked when it meets a Task.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.schedules import Constant, Duration, Schedule, epochs

__all__ = [
    "AdamSettings",
    "AdamWSettings",
    "Augmentation",
    "ClipGlobalNorm",
    "ComputeSettings",
    "ExponentialAverage",
    "GradientTransform",
    "LossSettings",
    "ModelSettings",
    "MuonSettings",
    "OptimizerSettings",
    "Recipe",
    "RecordSettings",
    "SGDSettings",
    "Schedules",
    "Stopping",
    "Target",
]


def _require(name: str, value: float, rule: str, holds: bool) -> None:
    if not (math.isfinite(value) and holds):
        raise InputError(name, rule, value)


def _positive(name: str, value: float) -> None:
    _require(name, value, "must be > 0", value > 0)


def _not_negative(name: str, value: float) -> None:
    _require(name, value, "must be >= 0", value >= 0)


def _decay_rate(name: str, value: float) -> None:
    _require(name, value, "must be in [0, 1)", 0 <= value < 1)


# --- optimizers ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SGDSettings:
    """torch's SGD: v <- momentum v + (g + weight_decay w); w <- w - lr v.

    Attributes:
        lr: step size, > 0 (0 is allowed and moves nothing).
        momentum: share of the previous step kept, in [0, 1).
        nesterov: look ahead along the momentum; needs momentum > 0.
        weight_decay: added to the gradient (coupled), >= 0.
    """

    name: ClassVar[str] = "sgd"
    decay_convention: ClassVar[str] = "coupled"
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _not_negative("lr", self.lr)
        _decay_rate("momentum", self.momentum)
        _not_negative("weight_decay", self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise InputError("nesterov", "must come with momentum > 0", self.momentum)


def _check_adam(lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
    _not_negative("lr", lr)
    _decay_rate("beta1", beta1)
    _decay_rate("beta2", beta2)
    _positive("epsilon", epsilon)
    _not_negative("weight_decay", weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamSettings:
    """torch's Adam; decay, if any, is added to the gradient (coupled).

    Attributes:
        lr: step size, >= 0.
        beta1: averaging of the gradient, in [0, 1); what a momentum schedule moves.
        beta2: averaging of the squared gradient, in [0, 1).
        epsilon: added to the root, > 0.
        weight_decay: added to the gradient (coupled), >= 0.
    """

    name: ClassVar[str] = "adam"
    decay_convention: ClassVar[str] = "coupled"
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_adam(self.lr, self.beta1, self.beta2, self.epsilon, self.weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWSettings:
    """torch's AdamW: Adam with w <- (1 - lr weight_decay) w beside the step.

    Attributes:
        lr: step size, >= 0.
        beta1: averaging of the gradient, in [0, 1); what a momentum schedule moves.
        beta2: averaging of the squared gradient, in [0, 1).
        epsilon: added to the root, > 0.
        weight_decay: multiplied by lr (decoupled from the gradient), >= 0.
    """

    name: ClassVar[str] = "adamw"
    decay_convention: ClassVar[str] = "decoupled"
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_adam(self.lr, self.beta1, self.beta2, self.epsilon, self.weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonSettings:
    """torch's Muon for hidden matrices, AdamW for every other parameter.

    Muon takes the 2-D weights except embeddings and the output layer; biases, norms, convolution
    filters, embeddings and the output layer take AdamW, whose lr follows the same schedule.

    Attributes:
        lr: Muon's step size, >= 0.
        momentum: Muon's momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: multiplied by lr (decoupled), >= 0; for both kinds of parameter.
        adjust_lr: "original" scales by sqrt(max(1, rows/columns)), "match_rms_adamw" by
            0.2 sqrt(max(rows, columns)) so that AdamW's lr can be kept.
        adamw_lr: AdamW's step size, >= 0.
    """

    name: ClassVar[str] = "muon"
    decay_convention: ClassVar[str] = "decoupled"
    lr: float
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    adamw_lr: float = 3e-4

    def __post_init__(self) -> None:
        _not_negative("lr", self.lr)
        _decay_rate("momentum", self.momentum)
        _not_negative("weight_decay", self.weight_decay)
        _not_negative("adamw_lr", self.adamw_lr)


OptimizerSettings: TypeAlias = SGDSettings | AdamSettings | AdamWSettings | MuonSettings

# --- gradient transforms ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGlobalNorm:
    """Scale the whole gradient down to a Euclidean norm of at most `max_norm`.

    Attributes:
        max_norm: in units of the (mean or sum) gradient, > 0.
    """

    name: ClassVar[str] = "clip-global-norm"
    max_norm: float

    def __post_init__(self) -> None:
        _positive("max_norm", self.max_norm)


GradientTransform: TypeAlias = ClipGlobalNorm

# --- the other choices -----------------------------------------------------------------------


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
        _positive("width", self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedules:
    """Factors over the run of four settings; 1 throughout by default.

    Attributes:
        lr: of `optimizer.lr`.
        momentum: of `optimizer.momentum`, or of Adam's `beta1`.
        weight_decay: of `optimizer.weight_decay`.
        batch_size: of `batch_size`, rounded to whole examples; durations not in updates.
    """

    lr: Schedule = Constant()
    momentum: Schedule = Constant()
    weight_decay: Schedule = Constant()
    batch_size: Schedule = Constant()


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
        _decay_rate("label_smoothing", self.label_smoothing)


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
        _not_negative("crop_padding", self.crop_padding)
        _not_negative("cutout_size", self.cutout_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialAverage:
    """Evaluate and keep an exponential moving average of the weights.

    average <- decay average + (1 - decay) weights, after every `every` updates; floating-point
    buffers are averaged with them.

    Attributes:
        decay: in [0, 1).
        every: updates between two steps of the average, >= 1.
    """

    decay: float
    every: int = 1

    def __post_init__(self) -> None:
        _decay_rate("decay", self.decay)
        _require("every", self.every, "must be >= 1 update", self.every >= 1)


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
        return f"{self.quantity}{self.relation}{self.value:.12g}"

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
        _positive("evaluate_every", self.evaluate_every.count)
        _not_negative("min_delta", self.min_delta)
        if self.patience is not None:
            _require("patience", self.patience, "must be >= 1 evaluation", self.patience >= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeSettings:
    """Where and in which arithmetic; nothing here is meant to change the result's meaning.

    Attributes:
        device: "auto" takes CUDA if there is one.
        precision: "fp32", "bf16" (autocast, fp32 weights) or "fp64".
        channels_last: memory format of images and filters.
        compile: run the model through torch.compile.
        threads: CPU threads per process, >= 1; None leaves torch's choice.
        num_workers: loader processes per rank for streamed data, >= 0.
        evaluation_batch_size: examples per forward pass in evaluation, >= 1.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    threads: int | None = None
    num_workers: int = 0
    evaluation_batch_size: int = 1000

    def __post_init__(self) -> None:
        if self.threads is not None:
            _require("threads", self.threads, "must be >= 1", self.threads >= 1)
        _not_negative("num_workers", self.num_workers)
        size = self.evaluation_batch_size
        _require("evaluation_batch_size", size, "must be >= 1 example", size >= 1)


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
        _require("log_every", self.log_every, "must be >= 1 update", self.log_every >= 1)
        _positive("checkpoint_every", self.checkpoint_every.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Every choice of one training run.

    Attributes:
        optimizer: the update rule and its settings.
        duration: length of the training.
        batch_size: examples per update over all ranks, >= 1, or "full" for the whole set.
        micro_batch_size: examples per forward and backward pass of one rank, >= 1; None: the
            rank's whole share at once. A multiple of the ghost.
        ghost_batch_size: consecutive examples that share BatchNorm statistics, >= 1; None: the
            whole batch, which then cannot be divided.
        seed: of the initial weights, the order and every draw, >= 0.
        model: one of the package's networks, or None for the task's own.
        schedules: factors over the run.
        gradient: transforms of the gradient before the update, in this order.
        loss: reduction and label smoothing.
        augmentation: of training images.
        averaging: of the weights, for evaluation and keeping.
        stopping: evaluation interval, target, patience.
        compute: device and arithmetic.
        records: what is written.
        image_size: side in pixels that a streamed image folder is brought to, >= 1; None: 224.
        description: a sentence for people.

    Example:
        >>> Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32, duration=epochs(2)).batch_size
        32
    """

    optimizer: OptimizerSettings
    duration: Duration = epochs(10)
    batch_size: int | Literal["full"] = 128
    micro_batch_size: int | None = None
    ghost_batch_size: int | None = None
    seed: int = 0
    model: ModelSettings | None = None
    schedules: Schedules = field(default_factory=Schedules)
    gradient: tuple[GradientTransform, ...] = ()
    loss: LossSettings = field(default_factory=LossSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    averaging: ExponentialAverage | None = None
    stopping: Stopping = field(default_factory=Stopping)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    image_size: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.duration.unit == "fraction":
            raise InputError("duration", "must be in epochs, updates or examples", self.duration)
        _positive("duration", self.duration.count)
        for name in ("batch_size", "micro_batch_size", "ghost_batch_size", "image_size"):
            size = getattr(self, name)
            if isinstance(size, int):
                _require(name, size, "must be >= 1", size >= 1)
        _require("seed", self.seed, "must be in [0, 2**63)", 0 <= self.seed < 2**63)
        if self.micro_batch_size and self.ghost_batch_size:
            rule = f"must be a multiple of ghost_batch_size {self.ghost_batch_size}"
            multiple = self.micro_batch_size % self.ghost_batch_size == 0
            _require("micro_batch_size", self.micro_batch_size, rule, multiple)
