"""Schedules that rise and fall: one cycle, triangular cycles, cosine with warm restarts.

Reference: cycles: Smith 2017, "Cyclical learning rates for training neural networks", section 3;
one cycle: Smith and Topin 2018, "Super-convergence", section 3; warm restarts: Loshchilov and
Hutter 2017, "SGDR", equation 5 and section 3.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, TypeVar

from anybatch.durations import Duration, Grid, fraction
from anybatch.errors import InputError
from anybatch.schedule_parts import (
    ROUNDING,
    between,
    clamp,
    ordered,
    periods,
    reached,
    require_choice,
    require_factors,
    require_grid,
    require_length,
    resolved,
)

__all__ = ["SGDR", "Cyclic", "OneCycle", "inverse_momentum", "present_cycle"]

Shape: TypeAlias = Literal["cosine", "linear"]
Mode: TypeAlias = Literal["triangular", "triangular2", "exp_range"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle:
    """From start to peak during `warmup`, then from peak to end.

    The defaults are the values in common use (start = peak/25, end = start/10,000). With `down`
    there are three phases: up to the peak, back down to the start, and from there to the end,
    which is the final annihilation of the paper. The paper's own has straight lines and
    up = down, a little less than half of the run each:
    `OneCycle(warmup=fraction(0.45), down=fraction(0.45), start=0.1, end=0.001, shape="linear")`.

    Momentum keeps its setting unless `schedules.momentum` is given; see `inverse_momentum`.

    Attributes:
        warmup: length of the first phase.
        down: length of the second of three phases, > 0; None: two phases.
        start: factor at progress 0, >= 0.
        peak: factor at the end of the first phase, >= 0.
        end: factor at progress 1, >= 0.
        shape: "cosine" or "linear", of every phase.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> cycle = OneCycle(warmup=fraction(0.25), start=0.0, end=0.0, shape="linear")
        >>> [cycle(p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "one-cycle"
    warmup: Duration = fraction(0.3)
    down: Duration | None = None
    start: float = 0.04
    peak: float = 1.0
    end: float = 4e-6
    shape: Shape = "cosine"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(down=self.down)
        require_factors(start=self.start, peak=self.peak, end=self.end)
        require_choice("shape", self.shape, Shape)
        require_grid(self.grid)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; its durations must be fractions."""
        progress, turn = clamp(progress), min(1.0, resolved(self.warmup))
        if progress < turn:
            return between(self.start, self.peak, progress / turn, self.shape)
        if self.down is None:
            rest = (progress - turn) / (1.0 - turn) if turn < 1.0 else 0.0
            return between(self.peak, self.end, rest, self.shape)
        length = resolved(self.down)
        bottom = turn + length
        if progress < bottom or bottom >= 1.0 - ROUNDING:  # or the run ends before the third phase
            return between(self.peak, self.start, (progress - turn) / length, self.shape)
        return between(self.start, self.end, (progress - bottom) / (1.0 - bottom), self.shape)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        turn = min(1.0, resolved(self.warmup))
        bottom = turn if self.down is None else min(1.0, turn + resolved(self.down))
        return ordered(*(self(progress) for progress in (0.0, turn, bottom, 1.0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cyclic:
    """Triangles between start and peak: f = start + (peak - start) height triangle(p).

    A triangle rises from 0 to 1 during `up` and falls back to 0 during `down`. The height is 1
    ("triangular"), halves with each cycle ("triangular2") or shrinks smoothly by `decay` in the
    time of each cycle ("exp_range"; torch's gamma is decay^(1 / updates of a cycle)). The run's
    end cuts the last cycle.

    Attributes:
        up: length of the rise, > 0.
        down: length of the fall, > 0; None: as the rise.
        mode: "triangular", "triangular2" or "exp_range".
        decay: of the height in one cycle, in (0, 1]; with exp_range, and only there.
        start: factor at both ends of a cycle, >= 0.
        peak: factor at the turn of the first cycle, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> cyclic = Cyclic(up=fraction(0.25), mode="triangular2", start=0.0)
        >>> [cyclic(p) for p in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "cyclic"
    up: Duration
    down: Duration | None = None
    mode: Mode = "triangular"
    decay: float | None = None
    start: float = 0.1
    peak: float = 1.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(up=self.up, down=self.down)
        require_choice("mode", self.mode, Mode)
        require_factors(start=self.start, peak=self.peak)
        require_grid(self.grid)
        if (self.mode == "exp_range") != (self.decay is not None):
            raise InputError("decay", "must come with exp_range, and only there", self.decay)
        if self.decay is not None and not 0 < self.decay <= 1:
            raise InputError("decay", "must be in (0, 1]", self.decay)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; its durations must be fractions."""
        progress = clamp(progress)
        up, down = self._sides()
        cycle = up + down
        number = periods(progress, cycle)
        within = max(0.0, min(cycle, progress - number * cycle))
        triangle = within / up if within < up else (cycle - within) / down
        height = 1.0
        if self.mode == "triangular2":
            height = 0.5**number
        elif self.decay is not None:
            height = self.decay ** (progress / cycle)
        return self.start + (self.peak - self.start) * (triangle * height)

    def _sides(self) -> tuple[float, float]:
        up = resolved(self.up)
        return up, up if self.down is None else resolved(self.down)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        up, down = self._sides()
        highest = min(1.0, up)
        if self.decay is not None and self.decay < 1:
            # d/dp (p decay^(p / cycle)) = 0: a height that shrinks fast turns before the triangle.
            highest = min(highest, -(up + down) / math.log(self.decay))
        return ordered(self.start, self(highest))


@dataclass(frozen=True, kw_only=True, slots=True)
class SGDR:
    """Cosine with warm restarts.

    In cycle k, with q the share of it that has passed,
    f = end + (start - end) peak_decay^k (1 + cos(pi q)) / 2. Cycle k is cycle_growth^k times as
    long as the first. At a restart the value is the new cycle's peak. The run's end cuts the last
    cycle; where a cycle ends just with the run, there is no restart: f(1) = end. n cycles of growth
    g fill the run when first_cycle (g^n - 1) / (g - 1) is its length.

    Attributes:
        first_cycle: length of the first cycle, > 0.
        cycle_growth: of the length at each restart, a real number in [1, 1000].
        peak_decay: of the height start - end at each restart, in (0, 1].
        start: factor at progress 0, >= 0.
        end: factor at the end of each cycle, >= 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> sgdr = SGDR(first_cycle=fraction(0.2), cycle_growth=4.0, peak_decay=0.5)
        >>> [round(sgdr(p), 12) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [1.0, 0.5, 0.5, 0.25, 0.0]
    """

    name: ClassVar[str] = "sgdr"
    first_cycle: Duration
    cycle_growth: float = 1.0
    peak_decay: float = 1.0
    start: float = 1.0
    end: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(first_cycle=self.first_cycle)
        require_factors(start=self.start, end=self.end)
        require_grid(self.grid)
        if not 1 <= self.cycle_growth <= 1000:
            raise InputError("cycle_growth", "must be in [1, 1000]", self.cycle_growth)
        if not 0 < self.peak_decay <= 1:
            raise InputError("peak_decay", "must be in (0, 1]", self.peak_decay)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `first_cycle` must be a fraction."""
        progress = clamp(progress)
        number = self._restarts(progress)
        begin = self._begin(number)
        within = (progress - begin) / (self._begin(number + 1) - begin)
        if within >= 1.0 - ROUNDING:  # only at the very end of the run
            return self.end
        peak = self.end + (self.start - self.end) * self.peak_decay**number
        return between(peak, self.end, within, "cosine")

    def _begin(self, number: int) -> float:
        """Progress at which a cycle begins: first (g^n - 1) / (g - 1), or first n for g = 1."""
        first, growth = resolved(self.first_cycle), self.cycle_growth - 1.0
        if growth == 0.0:
            return first * number
        return first * math.expm1(number * math.log1p(growth)) / growth

    def _restarts(self, progress: float) -> int:
        first, growth = resolved(self.first_cycle), self.cycle_growth - 1.0
        if growth == 0.0:
            return periods(progress, first)
        number = int(math.log1p(progress / first * growth) / math.log1p(growth))
        number = max(0, number - 1)  # the logarithm may be one too high by rounding
        while reached(progress, self._begin(number + 1)):
            number += 1
        return number

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor; the end of a cycle is approached, and not met."""
        whole = resolved(self.first_cycle) <= 1.0
        return ordered(self.start, self.end if whole else self(1.0))


def present_cycle(schedule: SGDR, progress: float) -> tuple[float, float]:
    """Begin and end of the cycle that a progress lies in, as fractions of the run.

    The end of the last cycle may lie beyond 1, where the run's end cuts it.

    Args:
        schedule: resolved.
        progress: clamped to [0, 1].

    Example:
        >>> present_cycle(SGDR(first_cycle=fraction(0.25)), 0.8)
        (0.75, 1.0)
    """
    number = schedule._restarts(clamp(progress))
    return schedule._begin(number), schedule._begin(number + 1)


Cycle = TypeVar("Cycle", OneCycle, Cyclic)


def inverse_momentum(schedule: Cycle, *, lowest: float) -> Cycle:
    """The momentum schedule that runs against a learning rate's cycle.

    It falls from 1 to `lowest` while the learning rate rises, and back. Nothing cycles momentum
    unless this, or another schedule, is given as `schedules.momentum`.

    Args:
        schedule: of the learning rate.
        lowest: factor of the momentum at the learning rate's peak, in (0, 1]; 0.85 / 0.95 takes
            a momentum of 0.95 down to 0.85.

    Example:
        >>> momentum = inverse_momentum(OneCycle(warmup=fraction(0.25)), lowest=0.85 / 0.95)
        >>> [round(0.95 * momentum(p), 12) for p in (0.0, 0.25, 1.0)]
        [0.95, 0.85, 0.95]
    """
    if not 0 < lowest <= 1:
        raise InputError("lowest", "must be in (0, 1]", lowest)
    if isinstance(schedule, OneCycle):
        return dataclasses.replace(schedule, start=1.0, peak=lowest, end=1.0)
    return dataclasses.replace(schedule, start=1.0, peak=lowest)
