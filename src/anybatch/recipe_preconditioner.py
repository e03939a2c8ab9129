"""Preconditioners of the gradient: what K-FAC measures, how often, and how ranks share the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.recipe_checks import require, require_choices, require_decay_rate, require_positive

__all__ = [
    "AdaptiveRefresh",
    "FisherNormBound",
    "FixedRefresh",
    "KFACSettings",
    "KLBound",
    "NoBound",
    "PreconditionerSettings",
    "Refresh",
    "StepBound",
    "WeightRescaling",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedRefresh:
    """Statistics and inverses anew at fixed intervals, both at the first update.

    `schedules.refresh` multiplies both intervals over the run.

    Attributes:
        statistics_every: updates from one measurement of the statistics to the next, >= 1.
        inverse_every: updates from one inversion to the next, a multiple of statistics_every.
        early_inverses: whether inverses are made anew at every measurement until the second
            inversion of that interval: the first one is of a single batch's statistics, while
            weights move fast. False: it serves for the whole interval.
    """

    name: ClassVar[str] = "fixed"
    statistics_every: int = 10
    inverse_every: int = 100
    early_inverses: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        statistics, inverse = self.statistics_every, self.inverse_every
        require("statistics_every", statistics, "must be >= 1 update", statistics >= 1)
        rule = f"must be a multiple of statistics_every {statistics}"
        require("inverse_every", inverse, rule, inverse >= 1 and inverse % statistics == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveRefresh:
    """Each statistic anew when it is worth it: its interval grows while it stays like its last two.

    At a refresh of X, with its last two values X1, X2 and intervals D1, D2 (updates):
    X unlike X1: D1 / 2, at least 1; like X1 but not X2: D1; like both: D1 + D2 (Fibonacci).
    P is like Q where |P - Q|_F < similarity |Q|_F.

    Attributes:
        similarity: alpha, >= 0; 0 refreshes everything in every update.
        longest: interval in updates, >= 1; None: no bound.

    Reference:
        Osawa et al. (2020), Scalable and practical natural gradient for large-scale deep learning,
        algorithm 2.
    """

    name: ClassVar[str] = "adaptive"
    similarity: float = 0.1
    longest: int | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require("similarity", self.similarity, "must be >= 0", self.similarity >= 0)
        if self.longest is not None:
            require("longest", self.longest, "must be >= 1 update", self.longest >= 1)


Refresh: TypeAlias = FixedRefresh | AdaptiveRefresh


@dataclass(frozen=True, kw_only=True, slots=True)
class FisherNormBound:
    """No step p is longer than `largest` in the Fisher's metric: sqrt(p^T g), before lr.

    The lr keeps its meaning: the change of the outputs is at most lr times this bound.

    Attributes:
        largest: length, > 0.
    """

    name: ClassVar[str] = "fisher-norm"
    largest: float = 0.1

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("largest", self.largest)


@dataclass(frozen=True, kw_only=True, slots=True)
class KLBound:
    """lr^2 p^T g, about twice the Kullback-Leibler divergence of a step, is at most `largest`.

    Where it bounds, the step does not depend on lr.

    Attributes:
        largest: > 0.

    Reference:
        Ba, Grosse, Martens (2017), Distributed second-order optimization using Kronecker-factored
        approximations, section 5.
    """

    name: ClassVar[str] = "kl"
    largest: float = 1e-3

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("largest", self.largest)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoBound:
    """Steps are as long as they come out."""

    name: ClassVar[str] = "none"


StepBound: TypeAlias = FisherNormBound | KLBound | NoBound


@dataclass(frozen=True, kw_only=True, slots=True)
class KFACSettings:
    """Kronecker-factored natural gradient: each layer's gradient V becomes G^-1 V A^-1.

    A is the mean of a a^T over examples (a: what the layer gets, with 1 for its bias), G that of
    g g^T (g: gradient of an example's loss by what the layer gives), both damped by factored
    Tikhonov: A + pi sqrt(damping) I, G + sqrt(damping) / pi I, pi^2 = mean eigenvalue of A / G.

    Attributes:
        damping: in units of the Fisher of one example's loss, > 0.
        fisher: "empirical" takes g from the labels, in the ordinary backward pass; "sampled" from
            one label drawn of the model's own distribution, at a further backward pass to the
            layers' outputs; "exact" from all of them, as many passes as outputs.
        average: share of the running statistics kept at each new one, in [0, 1); 0: the newest
            alone, as in the paper.
        refresh: when statistics and inverses are made anew.
        batch_share: of every pass's examples, the first ones, that statistics are taken of, in
            (0, 1]; at least one.
        sharing: of a weight over positions: "expand" takes positions as independent, "reduce" sums
            over them first.
        norms: Fisher of a norm's scale and shift: one 2 x 2 block a channel, or its diagonal.
        solver: of the damped inverses.
        left_out: layers that keep first-order steps, by name; * stands for anything.
        largest_factor: side; of a larger factor only the diagonal is kept, >= 1.
        bound: of the whole step; a longer one is scaled down.
        distribution: "gradients": the rank that owns a layer preconditions its gradient for all;
            "inverses": every rank does with the inverses that their owners send at a refresh.
        wire: of the statistics that travel between ranks.
        overlap: whether they leave while the update's last backward pass goes on.

    Reference:
        Martens, Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature; Grosse, Martens (2016) for convolutions; Osawa et al. (2019), Large-scale
        distributed second-order optimization using K-FAC.
    """

    name: ClassVar[str] = "kfac"
    damping: float = 1e-3
    fisher: Literal["empirical", "sampled", "exact"] = "empirical"
    average: float = 0.95
    refresh: Refresh = FixedRefresh()
    batch_share: float = 1.0
    sharing: Literal["expand", "reduce"] = "expand"
    norms: Literal["unit-wise", "diagonal"] = "unit-wise"
    solver: Literal["cholesky", "eigen"] = "cholesky"
    left_out: tuple[str, ...] = ()
    largest_factor: int = 8192
    bound: StepBound = FisherNormBound()
    distribution: Literal["gradients", "inverses"] = "gradients"
    wire: Literal["fp32", "bf16", "fp16"] = "fp32"
    overlap: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("damping", self.damping)
        require_decay_rate("average", self.average)
        share, side = self.batch_share, self.largest_factor
        require("batch_share", share, "must be in (0, 1]", 0 < share <= 1)
        require("largest_factor", side, "must be >= 1", side >= 1)


PreconditionerSettings: TypeAlias = KFACSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRescaling:
    """After each update w <- w sqrt(2 d) / (|w| + 1e-9), where that makes w shorter.

    Of the weight w of each linear layer and convolution, d its outputs or output channels; biases,
    norms and embeddings are left alone. It takes the place of weight decay where norms follow.

    Attributes:
        margin: a weight below margin sqrt(2 d) need not be looked at in every update, in (0, 1].
        longest_skip: most updates without a look at such a weight, >= 0; they double from 1 while
            it stays below. Meanwhile it may grow beyond its bound. 0: all are looked at in every
            update, without a host synchronization.

    Reference:
        Osawa et al. (2019), Large-scale distributed second-order optimization using K-FAC; the
        skipping in the manner of its authors' release (margin 0.98, 10 updates at most).
    """

    margin: float = 0.98
    longest_skip: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        require("margin", self.margin, "must be in (0, 1]", 0 < self.margin <= 1)
        skip = self.longest_skip
        require("longest_skip", skip, "must be >= 0 updates", skip >= 0)
