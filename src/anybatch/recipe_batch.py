"""Rules of the batch: lr by its size, BatchNorm statistics, control of the size, local updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anybatch.durations import Duration, examples
from anybatch.recipe_checks import require, require_choices, require_not_negative, require_positive

__all__ = ["AdaptiveBatchSize", "BatchNormSettings", "LocalUpdates", "ScalingRule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRule:
    """What lr (and Adam's averages, and momentum) mean at another batch size than the recipe's.

    The recipe's optimizer settings are those of `base_batch_size`; the training takes them carried
    to its own batch size.

    Attributes:
        base_batch_size: for which the optimizer's settings were found, >= 1.
        lr: "linear" lr B / B0; "square-root" lr sqrt(B / B0), for Adam with 1 - beta times B / B0;
            "noise-scale" eps_max / (1 + noise_scale / B), its root for Adam, LARS, LAMB and Muon;
            "constant".
        noise_scale: in examples, > 0; only for the rule of that name.
        momentum: "kept", or "constant-noise": the noise lr / (B (1 - momentum)) of SGD's steps
            stays what it was, so that under a constant lr momentum rises with B.

    Reference:
        Krizhevsky (2014); Goyal et al. (2017); McCandlish et al. (2018), eq. 2.6; Malladi et al.
        (2022) for Adam; Smith, Le (2018) for the noise of momentum.
    """

    base_batch_size: int
    lr: Literal["linear", "square-root", "noise-scale", "constant"] = "linear"
    noise_scale: float | None = None
    momentum: Literal["kept", "constant-noise"] = "kept"

    def __post_init__(self) -> None:
        require_choices(self)
        size = self.base_batch_size
        require("base_batch_size", size, "must be >= 1 example", size >= 1)
        by_noise = self.lr == "noise-scale"
        if self.noise_scale is not None:
            rule = 'must be > 0, and only with lr = "noise-scale"'
            require("noise_scale", self.noise_scale, rule, self.noise_scale > 0 and by_noise)
        elif by_noise:
            require("noise_scale", float("nan"), 'must be given with lr = "noise-scale"', False)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchNormSettings:
    """Which statistics BatchNorm's layers are evaluated with.

    Attributes:
        evaluated_with: "running" averages; "last-update", those of the last update's batch over all
            ranks; "whole-set", computed over the training set before every evaluation
            (recalibration).
        recalibration_examples: of the training set, for "whole-set", >= 2; None: all.
        frozen: train, too, with the running statistics that the model came with.
    """

    evaluated_with: Literal["running", "last-update", "whole-set"] = "running"
    recalibration_examples: int | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        count = self.recalibration_examples
        if count is not None:
            whole = self.evaluated_with == "whole-set"
            rule = 'must be >= 2, and only with evaluated_with = "whole-set"'
            require("recalibration_examples", count, rule, count >= 2 and whole)
        if self.frozen:
            rule = 'must be "running" where BatchNorm is frozen'
            running = self.evaluated_with == "running"
            require("evaluated_with", 0.0 if running else float("nan"), rule, running)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveBatchSize:
    """A batch size that follows the measured noise scale.

    At every look the interval of the noise scale says between which sizes the aim lies: all of it
    above the batch size times sqrt(factor), the size is multiplied by the factor; all of it below
    the size divided by sqrt(factor), it is divided; else nothing moves. Every look is an event of
    the run, with its numbers and its reason.

    Attributes:
        per_noise_scale: batch size aimed at, in noise scales, > 0.
        factor: of one move, > 1.
        smallest: batch size, >= 1; None: that of the recipe.
        largest: batch size, >= 1; None: the training set.
        every: between two looks.
        begin_after: before which nothing is looked at.
        lr_rule: how the lr follows the batch size.
    """

    per_noise_scale: float = 1.0
    factor: float = 2.0
    smallest: int | None = None
    largest: int | None = None
    every: Duration = examples(10_000)
    begin_after: Duration = examples(0)
    lr_rule: Literal["constant", "square-root", "linear"] = "square-root"

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("per_noise_scale", self.per_noise_scale)
        require("factor", self.factor, "must be > 1", self.factor > 1)
        for name in ("smallest", "largest"):
            size = getattr(self, name)
            if size is not None:
                require(name, size, "must be >= 1 example", size >= 1)
        require_positive("every", self.every.count)
        require_not_negative("begin_after", self.begin_after.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalUpdates:
    """Ranks update on their own and average their weights now and then (local SGD).

    Attributes:
        every: updates between two averagings, >= 1; 1 averages after each. The first update of the
            phase is averaged, as torch's averagers have it.
        begin_after: before which gradients are averaged in every update, as else (post-local SGD).
        state: the optimizer's (momentum, Adam's averages): each rank's own, or averaged with the
            weights, which costs its size.

    Reference:
        Stich (2019), Local SGD converges fast and communicates little, algorithm 1; Lin, Stich,
        Patel, Jaggi (2020), Don't use large mini-batches, use local SGD, section 3.
    """

    every: int
    begin_after: Duration = examples(0)
    state: Literal["own", "averaged"] = "own"

    def __post_init__(self) -> None:
        require_choices(self)
        require("every", self.every, "must be >= 1 update", self.every >= 1)
        require_not_negative("begin_after", self.begin_after.count)
