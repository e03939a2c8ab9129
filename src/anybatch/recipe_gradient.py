"""Transforms of the gradient, and what is done to each block of examples before they are averaged.

Four sizes are kept apart: the batch of an update, the micro-batch of a forward pass, the block
whose gradient is clipped or regularized, and the ghost over which BatchNorm takes its statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.recipe_checks import require, require_choices, require_not_negative, require_positive

__all__ = [
    "AdditiveNoise",
    "BlockPenalty",
    "BlockSettings",
    "ClipGlobalNorm",
    "GradientPenalty",
    "GradientTransform",
    "MultiplicativeNoise",
    "NormalizeGradient",
    "SharpnessAware",
]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizeGradient:
    """Scale the whole gradient to a given Euclidean norm, up or down; a zero gradient stays 0.

    Attributes:
        norm: that it has afterwards, in units of the (mean or sum) gradient, > 0.
    """

    name: ClassVar[str] = "normalize"
    norm: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("norm", self.norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdditiveNoise:
    """g <- g + std n, n standard normal, drawn from the recipe's seed and the update's number.

    Attributes:
        std: in units of the (mean or sum) gradient, > 0.
    """

    name: ClassVar[str] = "additive-noise"
    std: float

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("std", self.std)


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiplicativeNoise:
    """g <- (1 + std n) g element by element, n standard normal, drawn like AdditiveNoise.

    Attributes:
        std: of the factor, > 0.

    Reference:
        Hoffer, Hubara, Soudry (2017), Train longer, generalize better, section 4.
    """

    name: ClassVar[str] = "multiplicative-noise"
    std: float

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("std", self.std)


GradientTransform: TypeAlias = (
    ClipGlobalNorm | NormalizeGradient | AdditiveNoise | MultiplicativeNoise
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientPenalty:
    """Add c |g_k|^2 to the loss L_k of every block: its gradient grows by 2 c H_k g_k.

    forward: 2 c (g_k(w + e u) - g_k(w)) / e * |g_k|, u = g_k / |g_k|, e = epsilon; error O(e)
    central: with (g_k(w + e u) - g_k(w - e u)) / (2 e); error O(e^2)
    exact:   H_k g_k by double backward

    Attributes:
        coefficient: c, >= 0, by its unit.
        unit: "absolute", or "lr": c = coefficient * lr_t of the first group. Article 4's published
            runs have 1/16 in the latter (block_strength 0.5), theory has 1/4.
        method: forward differences, central differences, or exact.
        epsilon: Euclidean length of the displacement over all weights, > 0; a setting with an
            effect of its own, not only an error.

    Reference:
        Geiping et al. (2022), Stochastic training is not necessary for generalization, section 3.3;
        Smith, Dherin, Barrett, De (2021), On the origin of implicit regularization in SGD, eq. 22.
    """

    name: ClassVar[str] = "gradient-penalty"
    coefficient: float = 0.0625
    unit: Literal["absolute", "lr"] = "lr"
    method: Literal["forward", "central", "exact"] = "forward"
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("coefficient", self.coefficient)
        require_positive("epsilon", self.epsilon)


@dataclass(frozen=True, kw_only=True, slots=True)
class SharpnessAware:
    """g_k <- (1 - weight) g_k(w) + weight g_k(w + radius g_k / |g_k|) in every block.

    weight 1 is SAM; less is the penalty weight radius |g_k| (not squared) by forward differences.

    Attributes:
        radius: Euclidean length of the displacement over all weights, > 0.
        weight: of the displaced gradient, > 0.

    Reference:
        Foret et al. (2021), Sharpness-aware minimization, eq. 2-3; Zhao, Zhang, Hu (2022),
        Penalizing gradient norm for efficiently improving generalization, eq. 13.
    """

    name: ClassVar[str] = "sharpness-aware"
    radius: float = 0.05
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("radius", self.radius)
        require_positive("weight", self.weight)


BlockPenalty: TypeAlias = GradientPenalty | SharpnessAware


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSettings:
    """Blocks of consecutive examples of an update whose gradients are formed one by one.

    The update's gradient is the mean of the blocks' gradients, weighted by their examples, each
    changed first by the penalty and then by the clipping.

    Attributes:
        size: examples of a block, >= 1; a multiple of the ghost; the last may be smaller.
        penalty: of each block's gradient; None: none.
        clip_norm: greatest Euclidean norm of a block's mean gradient, > 0; None: no clipping.
        accumulate: precision in which the blocks are averaged.
    """

    size: int
    penalty: BlockPenalty | None = None
    clip_norm: float | None = None
    accumulate: Literal["fp32", "fp64"] = "fp32"

    def __post_init__(self) -> None:
        require_choices(self)
        require("size", self.size, "must be >= 1 example", self.size >= 1)
        if self.clip_norm is not None:
            require_positive("clip_norm", self.clip_norm)
