"""Schedules that rise at most once and fall at most once: linear, cosine, warm-up and decay, ...

Reference: cosine: Loshchilov and Hutter 2017, "SGDR", equation 5; polynomial decay: Osawa et al.
2019, "Large-scale distributed second-order optimization", section 6.3; inverse square root:
Vaswani et al. 2017, "Attention is all you need", equation 3; warm-up, stable, decay: Hu et al.
2024, "MiniCPM", section 4; its 1 - sqrt: Hägele et al. 2024, "Scaling laws and compute-optimal
training beyond fixed training durations", section 3; decaying momentum: Chen, Wolfe, Li, Kyrillidis
2022, "Demon: improved neural network training with momentum decay", equation 2; warm-up of the
damping: Osawa et al. 2019, as released in LBANN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.durations import Duration, Grid, fraction
from anybatch.errors import InputError
from anybatch.schedule_parts import (
    ROUNDING,
    between,
    clamp,
    ordered,
    require_choice,
    require_factors,
    require_grid,
    require_length,
    resolved,
)

__all__ = [
    "Constant",
    "Cosine",
    "DampingWarmup",
    "DecayingMomentum",
    "Exponential",
    "InverseSquareRoot",
    "Linear",
    "Polynomial",
    "WarmupStableDecay",
]

DecayShape: TypeAlias = Literal["linear", "cosine", "1-sqrt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """f(p) = value.

    Attributes:
        value: the factor, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; makes no difference here.
    """

    name: ClassVar[str] = "constant"
    value: float = 1.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_factors(value=self.value)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress` in [0, 1]."""
        return self.value

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return self.value, self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """f(p) = start + (end - start) p.

    Attributes:
        start: factor at progress 0, >= 0.
        end: factor at progress 1, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> Linear(start=1.0, end=0.0)(0.25)
        0.75
    """

    name: ClassVar[str] = "linear"
    start: float = 1.0
    end: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_factors(start=self.start, end=self.end)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]."""
        return between(self.start, self.end, progress, "linear")

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self.start, self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """f(p) = end + (start - end) (1 + cos(pi p)) / 2, half a cosine wave.

    Attributes:
        start: factor at progress 0, >= 0.
        end: factor at progress 1, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> round(Cosine()(0.5), 12)
        0.5
    """

    name: ClassVar[str] = "cosine"
    start: float = 1.0
    end: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_factors(start=self.start, end=self.end)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]."""
        return between(self.start, self.end, progress, "cosine")

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self.start, self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Polynomial:
    """f(p) = end + (start - end) (1 - p / length)^power up to the length, and `end` after it.

    Attributes:
        power: > 0; 1 is linear.
        start: factor at progress 0, >= 0.
        end: factor after the length, >= 0.
        length: to `end`, > 0; of one beyond the run only the beginning is seen, so that `end` is
            not reached.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> Polynomial(power=2.0)(0.5), Polynomial(power=2.0, length=fraction(0.5))(0.25)
        (0.25, 0.25)
    """

    name: ClassVar[str] = "polynomial"
    power: float = 2.0
    start: float = 1.0
    end: float = 0.0
    length: Duration = fraction(1)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_factors(start=self.start, end=self.end)
        require_length(length=self.length)
        require_grid(self.grid)
        if not (math.isfinite(self.power) and self.power > 0):
            raise InputError("power", "must be > 0 and finite", self.power)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `length` must be a fraction."""
        left = 1.0 - clamp(clamp(progress) / resolved(self.length))
        return between(self.end, self.start, left**self.power, "linear")

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self.start, self(1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class DecayingMomentum:
    """f(p) = (1 - p) / (1 - m + m (1 - p)), by which m / (1 - m) falls linearly to 0 (Demon).

    With momentum m_t = m f(p): m_t / (1 - m_t) = (1 - p) m / (1 - m), so what a gradient adds to
    all later updates falls as the run's rest does. Of SGD's momentum, or of Adam's beta1.

    Attributes:
        momentum: m, that of the optimizer, in [0, 1).
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> decay = DecayingMomentum(momentum=0.9)
        >>> [round(0.9 * decay(p), 12) for p in (0.0, 0.5, 1.0)]
        [0.9, 0.818181818182, 0.0]
    """

    name: ClassVar[str] = "decaying-momentum"
    momentum: float
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", "must be in [0, 1)", self.momentum)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]."""
        left = 1.0 - clamp(progress)
        return left / (1.0 - self.momentum + self.momentum * left)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return 0.0, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DampingWarmup:
    """f(p) = 1 + (start - 1) exp(-2 log10(start) p / w): from `start` down towards 1.

    The published rule moves the damping towards its target by a share of alpha in every update,
    alpha = 2 log10(start) / T_w with T_w updates of warm-up. This is the limit of many updates: a
    closed form that does not depend on the batch size, above the rule by less than
    0.19 alpha (start - 1). At w, (start - 1) start^-0.87 is still left, and the fall goes on.

    Attributes:
        duration: w, > 0; the fall goes on after it.
        start: factor at progress 0, >= 1.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> warmup = DampingWarmup(duration=fraction(0.1), start=100.0)
        >>> [round(warmup(p), 3) for p in (0.0, 0.05, 0.1, 0.2, 1.0)]
        [100.0, 14.398, 2.813, 1.033, 1.0]
    """

    name: ClassVar[str] = "damping-warmup"
    duration: Duration
    start: float
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(duration=self.duration)
        require_grid(self.grid)
        if not (math.isfinite(self.start) and self.start >= 1):
            raise InputError("start", "must be >= 1 and finite", self.start)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `duration` must be a fraction."""
        passed = clamp(progress) / resolved(self.duration)
        return 1.0 + (self.start - 1.0) * math.exp(-2.0 * math.log10(self.start) * passed)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return self(1.0), self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponential:
    """f(p) = factor^(p / per): the setting is multiplied by `factor` in every `per`, smoothly.

    With the default `per` the factor is the decay of the whole run. `Step` decays in steps.

    Attributes:
        factor: in (0, 1].
        per: length in which it is taken once, > 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> [round(Exponential(factor=0.01)(p), 12) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.1, 0.01]
    """

    name: ClassVar[str] = "exponential"
    factor: float
    per: Duration = fraction(1)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise InputError("factor", "must be in (0, 1]", self.factor)
        require_length(per=self.per)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `per` must be a fraction."""
        value: float = self.factor ** (clamp(progress) / resolved(self.per))
        return value

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return self(1.0), 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSquareRoot:
    """A linear rise to 1 during `warmup`, then f(p) = sqrt(w / p), w being the warm-up's fraction.

    With start 1 there is no rise: f(p) = sqrt(w / max(p, w)).

    Attributes:
        warmup: length of the rise and scale of the decay, > 0.
        start: factor at progress 0, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> decay = InverseSquareRoot(warmup=fraction(0.25))
        >>> [decay(p) for p in (0.0, 0.125, 0.25, 1.0)]
        [0.0, 0.5, 1.0, 0.5]
    """

    name: ClassVar[str] = "inverse-square-root"
    warmup: Duration
    start: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(warmup=self.warmup)
        require_factors(start=self.start)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `warmup` must be a fraction."""
        progress, turn = clamp(progress), resolved(self.warmup)
        if progress < turn:
            return between(self.start, 1.0, progress / turn, "linear")
        return math.sqrt(turn / progress)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self(0.0), self(resolved(self.warmup)), self(1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay:
    """A linear rise to 1, a plateau of 1, and a decay to `end` over the last part of the run.

    Attributes:
        warmup: length of the rise.
        decay: length of the decay, > 0; with the rise at most the whole run.
        start: factor at progress 0, >= 0.
        end: factor at progress 1, >= 0.
        shape: of the decay: "linear", "cosine" or "1-sqrt" (1 - sqrt of its share passed).
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> stable = WarmupStableDecay(warmup=fraction(0.25), decay=fraction(0.5), shape="1-sqrt")
        >>> [stable(p) for p in (0.0, 0.125, 0.25, 0.5, 0.625, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "warmup-stable-decay"
    warmup: Duration
    decay: Duration
    start: float = 0.0
    end: float = 0.0
    shape: DecayShape = "linear"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(decay=self.decay)
        require_factors(start=self.start, end=self.end)
        require_choice("shape", self.shape, DecayShape)
        require_grid(self.grid)
        both = (self.warmup, self.decay)
        if all(duration.unit == "fraction" for duration in both):
            whole = self.warmup.count + self.decay.count
            if whole > 1.0 + ROUNDING:
                raise InputError("warmup + decay", "must be at most the whole run", f"{whole:.6g}")

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; its durations must be fractions."""
        progress, turn, decay = clamp(progress), resolved(self.warmup), resolved(self.decay)
        if progress < turn:
            return between(self.start, 1.0, progress / turn, "linear")
        return between(1.0, self.end, 1.0 - (1.0 - progress) / decay, self.shape)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self(0.0), self(resolved(self.warmup)), self.end)
