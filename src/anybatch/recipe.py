"""Recipe: every choice of one training run, frozen, with units.

Choices that exclude each other are a union of small settings classes, told apart in a file by
their `name`. Bounds are checked where the value is written, so a Recipe that exists is valid in
itself; what depends on the data (a batch larger than the set) is checked when it meets a Task.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from anybatch.errors import InputError
from anybatch.recipe_batch import AdaptiveBatchSize, BatchNormSettings, LocalUpdates, ScalingRule
from anybatch.recipe_checks import require, require_choices, require_positive
from anybatch.recipe_gradient import (
    AdditiveNoise,
    BlockSettings,
    ClipGlobalNorm,
    GradientPenalty,
    GradientTransform,
    MultiplicativeNoise,
    NormalizeGradient,
    SharpnessAware,
)
from anybatch.recipe_images import Augmentation, Mixup, RandomErasing, RunningMixup
from anybatch.recipe_optimizers import (
    AdamSettings,
    AdamWSettings,
    LAMBSettings,
    LARSSettings,
    MuonSettings,
    OptimizerSettings,
    ParameterKinds,
    RMSpropWarmupSettings,
    SGDSettings,
    SGDWSettings,
)
from anybatch.recipe_parts import (
    Average,
    ComputeSettings,
    ExponentialAverage,
    LossSettings,
    ModelSettings,
    Origin,
    PolynomialAverage,
    RecordSettings,
    ReduceOnPlateauSettings,
    Stopping,
    Target,
)
from anybatch.recipe_preconditioner import (
    AdaptiveRefresh,
    FisherNormBound,
    FixedRefresh,
    KFACSettings,
    KLBound,
    NoBound,
    PreconditionerSettings,
    WeightRescaling,
)
from anybatch.schedules import Constant, Duration, Schedule, epochs, grid_of

__all__ = [
    "AdamSettings",
    "AdamWSettings",
    "AdaptiveBatchSize",
    "AdaptiveRefresh",
    "AdditiveNoise",
    "Augmentation",
    "Average",
    "BatchNormSettings",
    "BlockSettings",
    "ClipGlobalNorm",
    "ComputeSettings",
    "ExponentialAverage",
    "FisherNormBound",
    "FixedRefresh",
    "GradientPenalty",
    "GradientTransform",
    "KFACSettings",
    "KLBound",
    "LAMBSettings",
    "LARSSettings",
    "LocalUpdates",
    "LossSettings",
    "Mixup",
    "ModelSettings",
    "MultiplicativeNoise",
    "MuonSettings",
    "NoBound",
    "NormalizeGradient",
    "OptimizerSettings",
    "Origin",
    "ParameterKinds",
    "PolynomialAverage",
    "PreconditionerSettings",
    "RMSpropWarmupSettings",
    "RandomErasing",
    "Recipe",
    "RecordSettings",
    "ReduceOnPlateauSettings",
    "RunningMixup",
    "SGDSettings",
    "SGDWSettings",
    "ScalingRule",
    "Schedules",
    "SharpnessAware",
    "Stopping",
    "Target",
    "WeightRescaling",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedules:
    """Factors over the run of six settings; 1 throughout by default.

    Each has its own grid (t/T unless it names another); that of the batch size is always t/T.

    Attributes:
        lr: of `optimizer.lr`.
        momentum: of `optimizer.momentum`, or of Adam's `beta1`.
        weight_decay: of `optimizer.weight_decay`.
        batch_size: of `batch_size`, rounded to whole examples; durations not in updates.
        damping: of `preconditioner.damping`.
        refresh: of the intervals of `preconditioner.refresh`, where they are fixed; rounded.
    """

    lr: Schedule = Constant()
    momentum: Schedule = Constant()
    weight_decay: Schedule = Constant()
    batch_size: Schedule = Constant()
    damping: Schedule = Constant()
    refresh: Schedule = Constant()

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
            rank's whole share at once, but of a "full" batch that can be divided
            compute.evaluation_batch_size. A multiple of the ghost.
        ghost_batch_size: consecutive examples that share BatchNorm statistics, >= 1; None: the
            whole batch, or block, which then cannot be divided.
        batch_control: of the batch size by the measured noise scale; None: none.
        batch_norm: which statistics BatchNorm's layers take.
        communication: of ranks that update on their own; None: they share every gradient.
        order: of the examples: "shuffled" anew in each epoch, "shuffled-once" for all of them, or
            "fixed", always that of the data, which must not be sorted by class.
        seed: of the initial weights, the order and every draw, >= 0.
        model: one of the package's networks, or None for the task's own.
        schedules: factors over the run.
        decayed: parameters beside the weights of layers that weight decay applies to.
        scaling: of the optimizer's settings with the batch size; None: they are as written.
        preconditioner: of the gradient, before its transforms; None: none.
        rescaling: of weights that an update has made too long; None: none.
        gradient: transforms of the gradient before the update, in this order.
        blocks: whose gradients are formed one by one, and penalized or clipped; None: none.
        loss: reduction and label smoothing.
        augmentation: of training images.
        averaging: of the weights, for evaluation and keeping.
        stopping: evaluation interval, target, patience.
        plateau: reductions of the lr where evaluations stop to improve; None: none.
        compute: device and arithmetic.
        records: what is written.
        image_size: side in pixels that a streamed image folder is brought to, >= 1; None: 224.
        description: a sentence for people.
        origin: where the method was published; None: nowhere.

    Example:
        >>> Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32, duration=epochs(2)).batch_size
        32
    """

    optimizer: OptimizerSettings
    duration: Duration = epochs(10)
    batch_size: int | Literal["full"] = 128
    micro_batch_size: int | None = None
    ghost_batch_size: int | None = None
    batch_control: AdaptiveBatchSize | None = None
    batch_norm: BatchNormSettings = field(default_factory=BatchNormSettings)
    communication: LocalUpdates | None = None
    order: Literal["shuffled", "shuffled-once", "fixed"] = "shuffled"
    seed: int = 0
    model: ModelSettings | None = None
    schedules: Schedules = field(default_factory=Schedules)
    decayed: ParameterKinds = field(default_factory=ParameterKinds)
    scaling: ScalingRule | None = None
    preconditioner: PreconditionerSettings | None = None
    rescaling: WeightRescaling | None = None
    gradient: tuple[GradientTransform, ...] = ()
    blocks: BlockSettings | None = None
    loss: LossSettings = field(default_factory=LossSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    averaging: Average | None = None
    stopping: Stopping = field(default_factory=Stopping)
    plateau: ReduceOnPlateauSettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    image_size: int | None = None
    description: str = ""
    origin: Origin | None = None

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
        self._check_preconditioner()
        penalty = None if self.blocks is None else self.blocks.penalty
        if isinstance(penalty, GradientPenalty) and self.compute.precision == "bf16":
            rule = 'must be "exact" in bf16, which rounds most of a short displacement away'
            if penalty.method != "exact":
                raise InputError("blocks.penalty.method", rule, penalty.method)
        block = None if self.blocks is None else self.blocks.size
        for name, size in (("micro_batch_size", self.micro_batch_size), ("blocks.size", block)):
            if size and self.ghost_batch_size:
                rule = f"must be a multiple of ghost_batch_size {self.ghost_batch_size}"
                require(name, size, rule, size % self.ghost_batch_size == 0)

    def without_preconditioner(self) -> Recipe:
        """The same without K-FAC and the schedules of its settings."""
        schedules = replace(self.schedules, damping=Constant(), refresh=Constant())
        return replace(self, preconditioner=None, schedules=schedules)

    def _check_preconditioner(self) -> None:
        """Its optimizer and schedules."""
        if self.preconditioner is None:
            for name in ("damping", "refresh"):
                if getattr(self.schedules, name) != Constant():
                    raise InputError(f"schedules.{name}", "must come with a preconditioner")
        elif not isinstance(self.optimizer, SGDSettings | SGDWSettings | LARSSettings):
            rule = "must be sgd, sgdw or lars with a preconditioner"
            hint = "the others scale every coordinate by themselves"
            raise InputError("optimizer.name", rule, self.optimizer.name, hint=hint)
