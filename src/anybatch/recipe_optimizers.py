"""Update rules of a recipe: each a small settings class, told apart in a file by its `name`.

Weight decay follows one of four conventions, which differ by the whole learning rate:

    coupled       g <- g + weight_decay w, before momentum or scaling (L2 regularization)
    lr-decoupled  w <- w - lr_t weight_decay w, beside the step (torch's AdamW)
    decoupled     w <- w - eta_t weight_decay w, eta_t = lr_t / lr the schedule's factor alone
    normalized    decoupled with weight_decay / sqrt(updates of the run, or of the present restart)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.durations import Duration, epochs
from anybatch.errors import InputError
from anybatch.recipe_checks import (
    require_choices,
    require_decay_rate,
    require_not_negative,
    require_positive,
)

__all__ = [
    "AdamSettings",
    "AdamWSettings",
    "DecayConvention",
    "LAMBSettings",
    "LARSSettings",
    "MuonSettings",
    "OptimizerSettings",
    "ParameterKinds",
    "RMSpropWarmupSettings",
    "SGDSettings",
    "SGDWSettings",
]

DecayConvention: TypeAlias = Literal["coupled", "lr-decoupled", "decoupled", "normalized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterKinds:
    """Which parameters beside the weights of layers something applies to.

    Attributes:
        biases: those of linear layers and convolutions.
        norms: scales and shifts of normalization layers.
    """

    biases: bool = True
    norms: bool = True

    def __post_init__(self) -> None:
        require_choices(self)


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
    decay: ClassVar[DecayConvention] = "coupled"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SGDWSettings:
    """SGD with its lr inside of the momentum and weight decay beside the step.

    m <- momentum m + lr_t g; w <- w - m - eta_t weight_decay w ("decoupled", see the module).

    Attributes:
        lr: step size, >= 0.
        momentum: share of the previous step kept, in [0, 1).
        nesterov: look ahead along the momentum; needs momentum > 0.
        momentum_correction: m times lr_t / lr_{t-1} first, so that it follows a moving lr at once;
            then the step is that of torch's SGD, whose lr stands outside of the momentum.
        weight_decay: >= 0, by the convention.
        decay: convention; "normalized" survives a change of batch size, epochs and restarts.

    Reference:
        Loshchilov, Hutter (2019), Decoupled weight decay regularization, algorithm 1, appendix B;
        momentum correction: Goyal et al. (2017), Accurate, large minibatch SGD, eq. 10.
    """

    name: ClassVar[str] = "sgdw"
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    momentum_correction: bool = False
    weight_decay: float = 0.0
    decay: Literal["coupled", "decoupled", "normalized"] = "decoupled"

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("lr", self.lr)
        require_decay_rate("momentum", self.momentum)
        require_not_negative("weight_decay", self.weight_decay)
        _check_reference_lr(self.decay, self.lr, self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise InputError("nesterov", "must come with momentum > 0", self.momentum)


def _check_reference_lr(decay: DecayConvention, lr: float, weight_decay: float) -> None:
    """The schedule's factor is lr_t / lr, which a setting of 0 does not have."""
    if decay in ("decoupled", "normalized") and weight_decay > 0 and lr == 0:
        raise InputError("lr", f"must be > 0 under {decay} weight decay", lr)


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
    decay: ClassVar[DecayConvention] = "coupled"
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
    """torch's AdamW: Adam with w <- (1 - lr_t weight_decay) w beside the step, or as `decay` says.

    Attributes:
        lr: step size, >= 0.
        beta1: averaging of the gradient, in [0, 1); what a momentum schedule moves.
        beta2: averaging of the squared gradient, in [0, 1).
        epsilon: added to the root, > 0.
        weight_decay: >= 0, by the convention.
        decay: "lr-decoupled" is torch's; "decoupled" follows the lr's schedule but not lr itself;
            "normalized" also survives a change of batch size, epochs and restarts.

    Reference:
        Loshchilov, Hutter (2019), Decoupled weight decay regularization, algorithm 2, appendix B.
    """

    name: ClassVar[str] = "adamw"
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["lr-decoupled", "decoupled", "normalized"] = "lr-decoupled"

    def __post_init__(self) -> None:
        require_choices(self)
        _check_adam(self.lr, self.beta1, self.beta2, self.epsilon, self.weight_decay)
        _check_reference_lr(self.decay, self.lr, self.weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonSettings:
    """torch's Muon for hidden matrices, AdamW for every other parameter.

    Muon takes the weights of Linear layers except the last one, which makes the outputs; every
    other parameter takes AdamW, whose lr follows the same schedule.

    Attributes:
        lr: Muon's step size, >= 0.
        momentum: Muon's momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: multiplied by lr (lr-decoupled), >= 0; for both kinds of parameter.
        adjust_lr: "original" scales by sqrt(max(1, rows/columns)), "match_rms_adamw" by
            0.2 sqrt(max(rows, columns)) so that AdamW's lr can be kept.
        adamw_lr: AdamW's step size, >= 0.
    """

    name: ClassVar[str] = "muon"
    decay: ClassVar[DecayConvention] = "lr-decoupled"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LARSSettings:
    """Layer-wise adaptive rates: every weight's step is a share of the weight's own norm.

    r = trust |w| / (|g| + weight_decay |w| + epsilon), 1 where a norm is 0 or the parameter is not
    adapted; d = r (g + weight_decay w). "scaled": v <- momentum v + lr_t d; w <- w - v.
    "unscaled": v <- momentum v + d; w <- w - lr_t v.

    Attributes:
        lr: global step size, >= 0.
        momentum: share of the previous step kept, in [0, 1).
        nesterov: look ahead along the momentum; needs momentum > 0.
        weight_decay: >= 0; part of the ratio and of the step.
        trust: the coefficient eta of the paper, > 0.
        epsilon: added to the ratio's denominator, >= 0.
        buffer: whether lr stands inside of the momentum ("scaled", the paper's) or outside
            ("unscaled", as torch's SGD has it).
        max_ratio: the ratio is never greater, > 0; None: no bound.
        adapted: parameters beside the weights of layers that take a ratio of their own.

    Reference:
        You, Gitman, Ginsburg (2017), Large batch training of convolutional networks, algorithm 1.
    """

    name: ClassVar[str] = "lars"
    decay: ClassVar[DecayConvention] = "coupled"
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    trust: float = 0.001
    epsilon: float = 0.0
    buffer: Literal["scaled", "unscaled"] = "scaled"
    max_ratio: float | None = None
    adapted: ParameterKinds = ParameterKinds(biases=False, norms=False)

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("lr", self.lr)
        require_decay_rate("momentum", self.momentum)
        require_not_negative("weight_decay", self.weight_decay)
        require_positive("trust", self.trust)
        require_not_negative("epsilon", self.epsilon)
        if self.max_ratio is not None:
            require_positive("max_ratio", self.max_ratio)
        if self.nesterov and self.momentum == 0:
            raise InputError("nesterov", "must come with momentum > 0", self.momentum)


@dataclass(frozen=True, kw_only=True, slots=True)
class LAMBSettings:
    """Adam's step scaled layer by layer to a share of the weight's norm.

    u = m^ / (sqrt(v^) + epsilon) + weight_decay w; w <- w - lr_t phi(|w|) / |u| u, the ratio 1
    where a norm is 0 or the parameter is not adapted.

    Attributes:
        lr: step size, >= 0.
        beta1: averaging of the gradient, in [0, 1); what a momentum schedule moves.
        beta2: averaging of the squared gradient, in [0, 1).
        epsilon: added to the root, > 0.
        weight_decay: >= 0; part of u.
        bias_correction: divide the averages by 1 - beta^t.
        max_weight_norm: phi(x) = min(x, max_weight_norm), > 0; None: phi(x) = x.
        adapted: parameters beside the weights of layers that take a ratio of their own.

    Reference:
        You et al. (2020), Large batch optimization for deep learning, algorithm 2.
    """

    name: ClassVar[str] = "lamb"
    decay: ClassVar[DecayConvention] = "lr-decoupled"
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    bias_correction: bool = True
    max_weight_norm: float | None = None
    adapted: ParameterKinds = ParameterKinds(biases=False, norms=False)

    def __post_init__(self) -> None:
        require_choices(self)
        _check_adam(self.lr, self.beta1, self.beta2, self.epsilon, self.weight_decay)
        if self.max_weight_norm is not None:
            require_positive("max_weight_norm", self.max_weight_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSpropWarmupSettings:
    """RMSprop at first, SGD later, with a continuous passage between them.

    s <- rms_decay s + (1 - rms_decay) g^2; D <- momentum D - (a + (1 - a) (rms_lr / lr) /
    (sqrt(s) + epsilon)) g; w <- w + lr_t D, where the share of SGD a of epoch e is
    exp(2 (e - center) / width) / 2 before the center, 1/2 + (e - center) / width up to
    center + width / 2, and 1 after it. (The paper prints the slope of the middle branch twice as
    large, which would jump from 3/2 to 1.)

    Attributes:
        lr: of SGD, > 0.
        momentum: share of the previous step kept, in [0, 1).
        rms_decay: averaging of the squared gradient, in [0, 1).
        rms_lr: of RMSprop, > 0.
        epsilon: added to the root, > 0.
        weight_decay: added to the gradient (coupled), >= 0.
        center: where both have the same share.
        width: of the passage, > 0.

    Reference:
        Akiba, Suzuki, Fukuda (2017), Extremely large minibatch SGD, section 3.
    """

    name: ClassVar[str] = "rmsprop-warmup"
    decay: ClassVar[DecayConvention] = "coupled"
    lr: float
    momentum: float = 0.9
    rms_decay: float = 0.99
    rms_lr: float = 3e-4
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    center: Duration = epochs(10)
    width: Duration = epochs(5)

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("lr", self.lr)
        require_decay_rate("momentum", self.momentum)
        require_decay_rate("rms_decay", self.rms_decay)
        require_positive("rms_lr", self.rms_lr)
        require_positive("epsilon", self.epsilon)
        require_not_negative("weight_decay", self.weight_decay)
        require_positive("width", self.width.count)


OptimizerSettings: TypeAlias = (
    SGDSettings
    | SGDWSettings
    | AdamSettings
    | AdamWSettings
    | MuonSettings
    | LARSSettings
    | LAMBSettings
    | RMSpropWarmupSettings
)
