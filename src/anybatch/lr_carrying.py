"""Learning rate, weight decay, momentum, Adam's averages, warm-up for another batch size.

Reference: linear and square-root rule: Krizhevsky 2014, "One weird trick for parallelizing
convolutional neural networks", section 5; linear with warm-up: Goyal et al. 2017, "Accurate, large
minibatch SGD"; square root for Adam: Malladi et al. 2022, "On the SDEs and scaling rules for
adaptive gradient algorithms"; noise scale: McCandlish et al. 2018, "An empirical model of
large-batch training", equation 2.6 and appendix; normalized decay: Loshchilov and Hutter 2019,
"Decoupled weight decay regularization", appendix B.1; noise of momentum: Smith and Le 2018, "A
Bayesian perspective on generalization and stochastic gradient descent", section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from anybatch.durations import Clock, Duration
from anybatch.errors import InputError

__all__ = [
    "LR_RULES",
    "AdamAverages",
    "DecayConvention",
    "LRRule",
    "carried_adam_averages",
    "carried_lr",
    "carried_weight_decay",
    "default_alpha",
    "momentum_for_batch_size",
    "paper_of",
    "warmup_in_examples",
]

LRRule: TypeAlias = Literal["linear", "square-root", "noise-scale", "constant"]
DecayConvention: TypeAlias = Literal["coupled", "decoupled", "normalized"]

LR_RULES: tuple[LRRule, ...] = get_args(LRRule)


def paper_of(rule: LRRule) -> str:
    """Where a rule comes from, in a few words.

    Example:
        >>> paper_of("linear")
        'Krizhevsky 2014; Goyal et al. 2017'
    """
    match rule:
        case "linear":
            return "Krizhevsky 2014; Goyal et al. 2017"
        case "square-root":
            return "Krizhevsky 2014; Malladi et al. 2022 for Adam"
        case "noise-scale":
            return "McCandlish et al. 2018"
        case "constant":
            return "no change"


def default_alpha(optimizer: str) -> float:
    """The exponent of the noise-scale rule: 1 for SGD and its kind, 0.5 for Adam and its kind.

    McCandlish et al. 2018 take 1 for SGD and between 0.5 and 1 for Adam. Of these 0.5 is taken,
    also for LARS, LAMB and Muon, whose steps are divided by the gradient's size as Adam's are: far
    below the noise scale it is the square-root rule of Malladi et al. 2022.

    Args:
        optimizer: name of its settings ("sgd", "adam", "adamw", "muon").
    """
    return 1.0 if optimizer in ("sgd", "sgdw", "rmsprop-warmup") else 0.5


def carried_lr(
    rule: LRRule,
    lr: float,
    batch_size: float,
    new_batch_size: float,
    *,
    noise_scale: float | None = None,
    alpha: float = 1.0,
) -> float:
    """The learning rate that a rule gives for another batch size.

    With B the batch size and B_noise the noise scale, lr is proportional to

        linear        B
        square-root   sqrt(B)
        noise-scale   (1 + B_noise / B)^-alpha, from eps_max / (1 + B_noise / B)^alpha
        constant      1

    The last but one is linear far below the noise scale and constant far above it (alpha 1).
    Momentum stays what it is. Where the loss is summed and not averaged, lr is divided by B.

    Args:
        rule: which one.
        lr: at `batch_size`, > 0.
        batch_size: examples per update that `lr` is known for, > 0.
        new_batch_size: examples per update that it is wanted for, > 0.
        noise_scale: in examples, > 0; with the noise-scale rule.
        alpha: exponent of the noise-scale rule, in (0, 1]; see `default_alpha`.

    Raises:
        InputError: a value out of its bounds, the noise-scale rule without a noise scale.

    Example:
        >>> carried_lr("linear", 0.1, 128, 50_000)
        39.0625
        >>> round(carried_lr("square-root", 0.1, 128, 50_000), 2)
        1.98
        >>> round(carried_lr("noise-scale", 0.1, 128, 50_000, noise_scale=872), 3)
        0.768
    """
    _require_positive(lr=lr, batch_size=batch_size, new_batch_size=new_batch_size)
    ratio = new_batch_size / batch_size
    match rule:
        case "linear":
            return lr * ratio
        case "square-root":
            return lr * math.sqrt(ratio)
        case "constant":
            return lr
        case "noise-scale":
            if noise_scale is None:
                raise InputError("noise_scale", "must be given for the noise-scale rule")
            _require_positive(noise_scale=noise_scale)
            if not 0 < alpha <= 1:
                raise InputError("alpha", "must be in (0, 1]", alpha)
            old, new = 1.0 + noise_scale / batch_size, 1.0 + noise_scale / new_batch_size
            return lr * math.pow(old / new, alpha)
    raise InputError("rule", f"must be one of: {', '.join(LR_RULES)}", rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamAverages:
    """Adam's averaging settings.

    Attributes:
        beta1: of the gradient, in [0, 1).
        beta2: of the squared gradient, in [0, 1).
        epsilon: added to the root, > 0.
    """

    beta1: float
    beta2: float
    epsilon: float


def carried_adam_averages(
    averages: AdamAverages, batch_size: float, new_batch_size: float
) -> AdamAverages:
    """Adam's averages for another batch size, such that they reach over as many examples.

    With k = new_batch_size / batch_size: 1 - beta -> k (1 - beta), epsilon -> epsilon / sqrt(k);
    they go with the square-root rule for lr.

    Args:
        averages: at `batch_size`.
        batch_size: examples per update, > 0.
        new_batch_size: examples per update, > 0.

    Raises:
        InputError: k (1 - beta) >= 1, where the rule has no meaning (k = 10 for beta 0.9).

    Reference: Malladi et al. 2022, definition 5.2.

    Example:
        >>> adam = AdamAverages(beta1=0.9, beta2=0.999, epsilon=1e-8)
        >>> carried = carried_adam_averages(adam, 32, 128)
        >>> round(carried.beta1, 12), round(carried.beta2, 12), carried.epsilon
        (0.6, 0.996, 5e-09)
    """
    _require_positive(batch_size=batch_size, new_batch_size=new_batch_size)
    ratio = new_batch_size / batch_size
    for name, beta in (("beta1", averages.beta1), ("beta2", averages.beta2)):
        if ratio * (1.0 - beta) >= 1.0 - 1e-9:
            rule = f"must satisfy {ratio:.4g} (1 - {name}) < 1 to be carried to {new_batch_size:g}"
            raise InputError(name, rule, beta, hint="the square-root rule ends there")
    return AdamAverages(
        beta1=1.0 - ratio * (1.0 - averages.beta1),
        beta2=1.0 - ratio * (1.0 - averages.beta2),
        epsilon=averages.epsilon / math.sqrt(ratio),
    )


def carried_weight_decay(
    convention: DecayConvention,
    weight_decay: float,
    lr: float,
    batch_size: float,
    new_lr: float,
    new_batch_size: float,
    *,
    examples_ratio: float = 1.0,
) -> float:
    """The weight decay, as torch's optimizers take it, for another lr and batch size.

    Torch shrinks the weights by lr weight_decay in an update (SGD's coupled decay as well as
    AdamW's). What is kept of that, n being the updates of the whole run:

        coupled      lr weight_decay / B: the decay of an example, so that of an epoch
        decoupled    the same
        normalized   lr weight_decay sqrt(n) = lambda_norm, that is
                     lambda = lr weight_decay = lambda_norm sqrt(b / (B T)), as b / (B T) = 1 / n:
                     b the batch size, B the training examples, T the epochs

    So under the linear lr rule the coupled decay stays what it is. "normalized" also follows the
    length of the run. Adam's coupled decay passes through Adam's division and obeys neither; leave
    it as it is.

    Args:
        convention: what is kept.
        weight_decay: at `lr` and `batch_size`, >= 0.
        lr: before, > 0.
        batch_size: before, > 0.
        new_lr: after, > 0.
        new_batch_size: after, > 0.
        examples_ratio: examples of the new run / of the old one, > 0; only for "normalized".

    Example:
        >>> carried_weight_decay("coupled", 5e-4, 0.1, 128, 0.4, 512)
        0.0005
        >>> carried_weight_decay("normalized", 0.25, 1e-3, 128, 1e-3, 512)
        0.5
    """
    _require_positive(lr=lr, batch_size=batch_size, new_lr=new_lr, new_batch_size=new_batch_size)
    _require_positive(examples_ratio=examples_ratio)
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError("weight_decay", "must be >= 0", weight_decay)
    ratio = new_batch_size / batch_size
    match convention:
        case "coupled" | "decoupled":
            return weight_decay * (lr / new_lr) * ratio
        case "normalized":
            return weight_decay * (lr / new_lr) * math.sqrt(ratio / examples_ratio)
    raise InputError("convention", "must be coupled, decoupled or normalized", convention)


def momentum_for_batch_size(
    momentum: float, batch_size: float, new_batch_size: float, *, lr_ratio: float = 1.0
) -> float:
    """The momentum with which SGD's steps are as noisy at another batch size.

    The noise is lr N / (B (1 - m)), N the training examples. It stays the same with

        1 - m' = (1 - m) (lr' / lr) B / B'

    so at a constant lr momentum rises with the batch size: twice the batch size is half of 1 - m.

    Args:
        momentum: at `batch_size`, in [0, 1).
        batch_size: examples per update that `momentum` is known for, > 0.
        new_batch_size: examples per update that it is wanted for, > 0.
        lr_ratio: new lr / old lr, > 0.

    Raises:
        InputError: no momentum in [0, 1) does it: a batch of less than 1 - m of the old one at a
            constant lr.

    Example:
        >>> round(momentum_for_batch_size(0.9, 128, 256), 12)
        0.95
        >>> round(momentum_for_batch_size(0.9, 128, 16), 12)
        0.2

    Reference: Smith and Le 2018, section 5.
    """
    _require_positive(batch_size=batch_size, new_batch_size=new_batch_size, lr_ratio=lr_ratio)
    rule = "must be in [0, 1)"
    if not 0.0 <= momentum < 1.0:
        raise InputError("momentum", rule, momentum)
    factor = lr_ratio * batch_size / new_batch_size
    carried = 1.0 - (1.0 - momentum) * factor
    if not 0.0 <= carried < 1.0:
        sizes = f"from batch size {batch_size:g} to {new_batch_size:g}"
        hint = f"1 - {1.0 - momentum:.4g} x {factor:.4g}"
        rule = f"must stay in [0, 1) when carried {sizes}"
        raise InputError("momentum", rule, f"{carried:.4g}", hint=hint)
    return carried


def warmup_in_examples(warmup: Duration, clock: Clock) -> Duration:
    """A warm-up's length in examples, which a change of the batch size leaves as it is.

    Args:
        warmup: in any unit.
        clock: of the run that it is known for.

    Example:
        >>> from anybatch.durations import updates
        >>> clock = Clock(examples_per_epoch=1000, batch_size=32, total_examples=10_000)
        >>> str(warmup_in_examples(updates(50), clock))  # the last update of an epoch holds 8
        '1576 examples'
    """
    return Duration(clock.examples(warmup), "examples")


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(name, "must be > 0", value)
