"""Schedules: closed-form functions of training progress, of whatever kind.

One kind serves learning rate, momentum, weight decay and batch size. A schedule is a stateless
factor of the setting that it schedules: at progress p the learning rate is
`optimizer.lr * schedules.lr(p)`. So a change of the setting keeps the shape, and resuming needs
no state. Progress is clamped to [0, 1]; which progress belongs to an update, its grid says
(`durations`): t/T unless the schedule names another.

A schedule that holds others stretches each over its piece of the run. A nested schedule's durations
count from the beginning of its piece, a fraction being one of the piece, and its grid is the
outermost one's. This module is the face of all schedules and durations.

Reference: gradual warm-up: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from anybatch.cyclic_schedules import SGDR, Cyclic, OneCycle, inverse_momentum
from anybatch.durations import (
    Clock,
    Duration,
    Grid,
    Interval,
    Position,
    Unit,
    epochs,
    examples,
    fraction,
    updates,
)
from anybatch.errors import InputError
from anybatch.plain_schedules import (
    Constant,
    Cosine,
    DampingWarmup,
    DecayingMomentum,
    Exponential,
    InverseSquareRoot,
    Linear,
    Polynomial,
    WarmupStableDecay,
)
from anybatch.schedule_parts import (
    ROUNDING,
    between,
    clamp,
    ordered,
    reached,
    require_factors,
    require_grid,
    require_increasing,
    resolved,
)
from anybatch.stepped_schedules import Levels, MultiStep, Step

__all__ = [
    "SGDR",
    "Clock",
    "Constant",
    "Cosine",
    "Cyclic",
    "DampingWarmup",
    "DecayingMomentum",
    "Duration",
    "Exponential",
    "Grid",
    "Interval",
    "InverseSquareRoot",
    "Join",
    "Levels",
    "Linear",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "Position",
    "Schedule",
    "Step",
    "Unit",
    "Warmup",
    "WarmupStableDecay",
    "epochs",
    "examples",
    "fraction",
    "grid_of",
    "inverse_momentum",
    "parts_of",
    "resolve_schedule",
    "updates",
    "value_at",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """A linear rise, then another schedule stretched over the rest of the run.

    f(p) = start + (into(0) - start) p / w for p < w, and into((p - w) / (1 - w)) after, with w the
    warm-up's fraction of the run. Continuous at w.

    Attributes:
        duration: length of the rise.
        start: factor at progress 0, >= 0.
        into: the schedule that follows; its durations count from the end of the rise.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> warmup = Warmup(duration=fraction(0.2), into=Linear())
        >>> [round(warmup(p), 12) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "warmup"
    duration: Duration
    start: float = 0.0
    into: Schedule = Constant()
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_factors(start=self.start)
        require_grid(self.grid)
        _require_one_grid(self)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `duration` must be a fraction."""
        progress, turn = clamp(progress), min(1.0, resolved(self.duration))
        if progress < turn:
            return between(self.start, self.into(0.0), progress / turn, "linear")
        return self.into((progress - turn) / (1.0 - turn) if turn < 1.0 else 0.0)

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor."""
        turn = resolved(self.duration)
        rise = ordered(self(0.0), self.into(0.0))
        return rise if turn >= 1.0 else ordered(*rise, *self.into.bounds())


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """One schedule after another, each stretched over its piece of the run.

    At a boundary the next part begins: its value there is its own first one. Nothing makes the
    parts meet. The run's end cuts a part whose boundary lies beyond it.

    Attributes:
        parts: the schedules, at least one; their durations count from their boundary.
        boundaries: increasing lengths from the beginning; one fewer than there are parts.
        grid: "t/T", "(t+1)/T" or "t/(T-1)"; None: t/T, or that of the schedule around it.

    Example:
        >>> join = Join(parts=(Constant(), Linear(start=0.5)), boundaries=(fraction(0.6),))
        >>> [round(join(p), 12) for p in (0.0, 0.59, 0.6, 0.8, 1.0)]
        [1.0, 1.0, 0.5, 0.25, 0.0]
    """

    name: ClassVar[str] = "join"
    parts: tuple[Schedule, ...]
    boundaries: tuple[Duration, ...]
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require_increasing("boundaries", self.boundaries)
        require_grid(self.grid)
        if len(self.parts) != len(self.boundaries) + 1:
            rule = f"must be one more than the {len(self.boundaries)} boundaries"
            raise InputError("parts", rule, len(self.parts))
        _require_one_grid(self)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `boundaries` must be fractions."""
        progress = clamp(progress)
        begin, part, end = self._pieces()[
            sum(reached(progress, resolved(edge)) for edge in self.boundaries)
        ]
        return part((progress - begin) / (end - begin))

    def _pieces(self) -> list[tuple[float, Schedule, float]]:
        """Begin, part, end; the last piece ends with the run, a piece beyond it stays empty."""
        edges = [0.0, *(resolved(edge) for edge in self.boundaries)]
        ends = [*edges[1:], max(1.0, edges[-1] + ROUNDING)]
        return list(zip(edges, self.parts, ends, strict=True))

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest factor of the parts that the run comes to, taken whole."""
        come_to = [part for begin, part, _ in self._pieces() if begin < 1.0 - ROUNDING]
        return ordered(*(bound for part in come_to for bound in part.bounds()))


Schedule: TypeAlias = (
    Constant
    | Linear
    | Cosine
    | OneCycle
    | Warmup
    | Polynomial
    | Exponential
    | InverseSquareRoot
    | Step
    | MultiStep
    | Levels
    | Cyclic
    | SGDR
    | WarmupStableDecay
    | DecayingMomentum
    | DampingWarmup
    | Join
)


def _require_one_grid(outer: Warmup | Join) -> None:
    """Refuse a nested schedule, at any depth, that names another grid than the one around it."""
    for path, grid in _named_grids(outer):
        if grid != grid_of(outer):
            rule = f"must be left out, or {grid_of(outer)} as of the {outer.name} around it"
            raise InputError(path, rule, grid)


def _named_grids(outer: Schedule) -> Iterator[tuple[str, Grid]]:
    """Path and grid of every nested schedule that names one."""
    nested: list[tuple[str, Schedule]] = []
    if isinstance(outer, Warmup):
        nested = [("into", outer.into)]
    elif isinstance(outer, Join):
        nested = [(f"parts.{number}", part) for number, part in enumerate(outer.parts)]
    for name, inner in nested:
        if inner.grid is not None:
            yield f"{name}.grid", inner.grid
        yield from ((f"{name}.{path}", grid) for path, grid in _named_grids(inner))


def parts_of(schedule: Schedule) -> Iterator[Schedule]:
    """The schedule itself and every one inside of it, at any depth."""
    yield schedule
    if isinstance(schedule, Warmup):
        yield from parts_of(schedule.into)
    elif isinstance(schedule, Join):
        for part in schedule.parts:
            yield from parts_of(part)


def grid_of(schedule: Schedule) -> Grid:
    """The grid of an outermost schedule: the one that it names, or t/T."""
    return schedule.grid or "t/T"


def value_at(schedule: Schedule, position: Position) -> float:
    """The factor for the update at this position, on the schedule's own grid.

    Example:
        >>> position = Position(examples=50, size=25, total=100)
        >>> [value_at(Linear(grid=grid), position) for grid in ("t/T", "(t+1)/T")]
        [0.5, 0.25]
    """
    return schedule(position.progress(grid_of(schedule)))


def resolve_schedule(schedule: Schedule, clock: Clock) -> Schedule:
    """The same schedule with every duration as a fraction of its piece of the run: a closed form.

    Args:
        schedule: any schedule, nested ones included.
        clock: the run's lengths; `total_examples` must be known.

    Raises:
        InputError: a duration that the clock cannot tell, boundaries out of order, lengths of
            nothing, the grid t/(T-1) while the batch size is scheduled.

    Example:
        >>> clock = Clock(examples_per_epoch=100, batch_size=10, total_examples=1000)
        >>> resolve_schedule(Warmup(duration=epochs(5), into=Linear()), clock)(0.75)
        0.5
    """
    try:
        length = clock.span(grid_of(schedule))
    except InputError as error:
        raise error.renamed(f"{schedule.name} {error.thing}") from None
    return _resolve(schedule, clock, float(length))


def _resolve(schedule: Schedule, clock: Clock, length: float) -> Schedule:
    """With durations as fractions of a piece of `length` examples, and so what is nested."""
    changes: dict[str, object] = {}
    for field in dataclasses.fields(schedule):
        value: Any = getattr(schedule, field.name)
        name = f"{schedule.name} {field.name}"
        if isinstance(value, Duration):
            changes[field.name] = _as_fraction(value, clock, length, name)
        elif isinstance(value, tuple) and all(isinstance(item, Duration) for item in value):
            changes[field.name] = tuple(_as_fraction(d, clock, length, name) for d in value)
    same = _changed(schedule, changes)
    if isinstance(same, Warmup):
        rest = length * (1.0 - min(1.0, same.duration.count))
        return dataclasses.replace(same, into=_resolve(same.into, clock, max(1.0, rest)))
    if isinstance(same, Join):
        edges = [0.0, *(edge.count for edge in same.boundaries)]
        sizes = [late - early for early, late in zip(edges, [*edges[1:], 1.0], strict=True)]
        pieces = zip(same.parts, sizes, strict=True)
        parts = tuple(_resolve(part, clock, max(1.0, length * size)) for part, size in pieces)
        return dataclasses.replace(same, parts=parts)
    return same


def _as_fraction(duration: Duration, clock: Clock, length: float, name: str) -> Duration:
    if duration.unit == "fraction":
        return duration
    try:
        return Duration(clock.examples(duration) / length, "fraction")
    except InputError as error:
        raise error.renamed(name) from None


def _changed(schedule: Schedule, changes: dict[str, object]) -> Schedule:
    replace: Callable[..., Schedule] = dataclasses.replace
    try:
        return replace(schedule, **changes)
    except InputError as error:
        raise error.renamed(f"{schedule.name} {error.thing}") from None
