"""Recipe: every choice of one training run, frozen, with units.

Choices that exclude each other are a union of small settings classes, told apart in a file by
their `name`. Bounds are checked where the value is written, so a Recipe that exists is valid in
itself; what depends on the data (a batch larger than the set) is checked when it meets a Task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.recipe_parts import (
    Augmentation,
    Average,
    ComputeSettings,
    ExponentialAverage,
    LossSettings,
    ModelSettings,
    PolynomialAverage,
    RecordSettings,
    ReduceOnPlateauSettings,
    Stopping,
    Target,
    require,
    require_choices,
    require_decay_rate,
    require_not_negative,
    require_positive,
)
from anybatch.schedules import Constant, Duration, Schedule, epochs, grid_of

__all__ = [
    "AdamSettings",
    "AdamWSettings",
    "Augmentation",
    "Average",
    "ClipGlobalNorm",
    "ComputeSettings",
    "ExponentialAverage",
    "GradientTransform",
    "LossSettings",
    "ModelSettings",
    "MuonSettings",
    "OptimizerSettings",
    "PolynomialAverage",
    "Recipe",
    "RecordSettings",
    "ReduceOnPlateauSettings",
    "SGDSettings",
    "Schedules",
    "Stopping",
    "Target",
]


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
        require_choices(self)
        require_not_negative("lr", self.lr)
        require_decay_rate("momentum", self.momentum)
        require_not_negative("weight_decay", self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise InputError("nesterov", "must come with momentum > 0", self.momentum)


def _check_adam(lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
    require_not_negative("lr", lr)
    require_decay_rate("beta1", beta1)
    require_decay_rate("beta2", beta2)
    require_positive("epsilon", epsilon)
    require_not_negative("weight_decay", weight_decay)


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
        require_choices(self)
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
        require_choices(self)
        _check_adam(self.lr, self.beta1, self.beta2, self.epsilon, self.weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonSettings:
    """torch's Muon for hidden matrices, AdamW for every other parameter.

    Muon takes the weights of Linear layers except the last one, which makes the outputs; every
    other parameter takes AdamW, whose lr follows the same schedule.

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
        require_choices(self)
        require_not_negative("lr", self.lr)
        require_decay_rate("momentum", self.momentum)
        require_not_negative("weight_decay", self.weight_decay)
        require_not_negative("adamw_lr", self.adamw_lr)


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
        require_choices(self)
        require_positive("max_norm", self.max_norm)


GradientTransform: TypeAlias = ClipGlobalNorm

# --- the recipe --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedules:
    """Factors over the run of four settings; 1 throughout by default.

    Each has its own grid (t/T unless it names another); that of the batch size is always t/T.

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

    def __post_init__(self) -> None:
        if grid_of(self.batch_size) != "t/T":
            rule = "must be t/T: the size of an update cannot depend on itself"
            raise InputError("batch_size.grid", rule, self.batch_size.grid)


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
        plateau: reductions of the lr where evaluations stop to improve; None: none.
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
    averaging: Average | None = None
    stopping: Stopping = field(default_factory=Stopping)
    plateau: ReduceOnPlateauSettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    image_size: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        require_choices(self)
        if self.duration.unit == "fraction":
            raise InputError("duration", "must be in epochs, updates or examples", self.duration)
        require_positive("duration", self.duration.count)
        for name in ("batch_size", "micro_batch_size", "ghost_batch_size", "image_size"):
            size = getattr(self, name)
            if isinstance(size, int):
                require(name, size, "must be >= 1", size >= 1)
        require("seed", self.seed, "must be in [0, 2**63)", 0 <= self.seed < 2**63)
        if self.micro_batch_size and self.ghost_batch_size:
            rule = f"must be a multiple of ghost_batch_size {self.ghost_batch_size}"
            multiple = self.micro_batch_size % self.ghost_batch_size == 0
            require("micro_batch_size", self.micro_batch_size, rule, multiple)
