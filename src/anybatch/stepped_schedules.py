"""Schedules that stay on a level and then jump: every so often, at milestones, from a list.

A boundary in whole epochs falls on the first update of the epoch, whatever the rounding: see
`schedule_parts`.

Reference: milestones: Goyal et al. 2017, "Accurate, large minibatch SGD", section 5.1; a slow start
in levels: Akiba et al. 2017, "Extremely large minibatch SGD", section 3.2; growing the batch size
at milestones: Smith et al. 2018, "Don't decay the learning rate, increase the batch size".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from anybatch.durations import Duration, Grid
from anybatch.errors import InputError
from anybatch.schedule_parts import (
    clamp,
    ordered,
    periods,
    reached,
    require_factors,
    require_grid,
    require_increasing,
    require_length,
    resolved,
)

__all__ = ["Levels", "MultiStep", "Step"]


def _require_power(factor: float, count: int) -> None:
    """Refuse a factor that is not positive, or whose last power is too large for a number."""
    if not (math.isfinite(factor) and factor > 0):
        raise InputError("factor", "must be > 0 and finite", factor)
    if factor > 1 and count * math.log(factor) > 700:
        raise InputError("factor", f"must stay finite after {count} steps", factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """f(p) = factor^floor(p / every): the setting is multiplied by `factor` after each `every`.

    Attributes:
        every: length of a level, > 0.
        factor: > 0.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> from anybatch.durations import fraction
        >>> [Step(every=fraction(0.25), factor=0.5)(p) for p in (0.0, 0.24, 0.25, 0.5, 1.0)]
        [1.0, 1.0, 0.5, 0.25, 0.125]
    """

    name: ClassVar[str] = "step"
    every: Duration
    factor: float = 0.1
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_length(every=self.every)
        require_grid(self.grid)
        known = self.every.unit == "fraction"
        _require_power(self.factor, periods(1.0, self.every.count) if known else 0)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `every` must be a fraction."""
        value: float = self.factor ** periods(clamp(progress), resolved(self.every))
        return value

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self(0.0), self(1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiStep:
    """f(p) = factor^(number of milestones reached).

    Attributes:
        milestones: increasing lengths from the beginning.
        factor: > 0; above 1 it grows, as a batch size may.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> from anybatch.durations import fraction
        >>> steps = MultiStep(milestones=(fraction(0.5), fraction(0.75)))
        >>> [round(steps(p), 12) for p in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 0.1, 0.01, 0.01]
    """

    name: ClassVar[str] = "multistep"
    milestones: tuple[Duration, ...]
    factor: float = 0.1
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_increasing("milestones", self.milestones)
        require_grid(self.grid)
        _require_power(self.factor, len(self.milestones))

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `milestones` must be fractions."""
        progress = clamp(progress)
        count = sum(reached(progress, resolved(milestone)) for milestone in self.milestones)
        value: float = self.factor**count
        return value

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        return ordered(self(0.0), self(1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """The first of `values`, after the first boundary the second, and so on.

    Attributes:
        values: factors, >= 0; one more than there are boundaries.
        boundaries: increasing lengths from the beginning.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> from anybatch.durations import fraction
        >>> levels = Levels(values=(0.5, 0.075), boundaries=(fraction(0.4),))
        >>> [levels(p) for p in (0.0, 0.39, 0.4, 1.0)]
        [0.5, 0.5, 0.075, 0.075]
    """

    name: ClassVar[str] = "levels"
    values: tuple[float, ...]
    boundaries: tuple[Duration, ...] = ()
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_increasing("boundaries", self.boundaries)
        require_grid(self.grid)
        if len(self.values) != len(self.boundaries) + 1:
            rule = f"must be one more than the {len(self.boundaries)} boundaries"
            raise InputError("values", rule, len(self.values))
        for value in self.values:
            require_factors(values=value)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `boundaries` must be fractions."""
        progress = clamp(progress)
        return self.values[sum(reached(progress, resolved(edge)) for edge in self.boundaries)]

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor of the levels that the run comes to."""
        return ordered(self(0.0), *(self(resolved(edge)) for edge in self.boundaries))
