"""Schedules: closed-form functions of training progress, and the durations they are written in.

One kind serves learning rate, momentum, weight decay and batch size. A schedule is a stateless
factor of the setting that it schedules: at progress p the learning rate is
`optimizer.lr * schedules.lr(p)`. So a change of the setting keeps the shape, and resuming needs
no state. The clock is examples: p = examples seen before the update / examples in the whole run
(the grid t/T, counted in examples), clamped to [0, 1].

Reference: the one-cycle policy: Smith and Topin 2018, "Super-convergence", section 3; cosine:
Loshchilov and Hutter 2017, "SGDR", equation 5; gradual warm-up: Goyal et al. 2017, section 2.2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from anybatch.errors import InputError

__all__ = [
    "Clock",
    "Constant",
    "Cosine",
    "Duration",
    "Interval",
    "Linear",
    "OneCycle",
    "Schedule",
    "Unit",
    "Warmup",
    "epochs",
    "examples",
    "fraction",
    "resolve_schedule",
    "updates",
]

Unit: TypeAlias = Literal["updates", "epochs", "examples", "fraction"]
_UNITS: tuple[Unit, ...] = ("updates", "epochs", "examples", "fraction")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training with its unit.

    Attributes:
        count: how many, >= 0; whole for updates and examples, at most 1 for a fraction.
        unit: "updates", "epochs", "examples" or "fraction" (of the whole run).

    Example:
        >>> Duration.parse("5 epochs")
        Duration(count=5.0, unit='epochs')
        >>> str(Duration.parse("1 epoch"))
        '1 epochs'
    """

    count: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in _UNITS:
            raise InputError("duration", f"must have a unit of {', '.join(_UNITS)}", self.unit)
        if not (math.isfinite(self.count) and self.count >= 0):
            raise InputError("duration", "must be >= 0 and finite", str(self))
        if self.unit in ("updates", "examples") and self.count != int(self.count):
            raise InputError("duration", f"must be a whole number of {self.unit}", str(self))
        if self.unit == "fraction" and self.count > 1:
            raise InputError("duration", "must be at most 1 as a fraction", str(self))

    def __str__(self) -> str:
        count = repr(float(self.count)).removesuffix(".0")  # exact: a run is resumed from its text
        return f"{count} {self.unit}"

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "5 epochs", "200 updates", "4096 examples" or "0.3 fraction"."""
        match = re.fullmatch(r"\s*([0-9.eE+_-]+?)\s*([a-z]+)\s*", text)
        unit = match.group(2) if match else ""
        names: dict[str, Unit] = {name: name for name in _UNITS}
        names |= {name.removesuffix("s"): name for name in _UNITS}
        if match is None or unit not in names:
            rule = 'must be a number and a unit, like "5 epochs", "200 updates", "0.3 fraction"'
            raise InputError("duration", rule, text)
        try:
            return cls(float(match.group(1)), names[unit])
        except InputError:
            raise
        except ValueError:
            raise InputError("duration", "must begin with a number", text) from None


def epochs(count: float) -> Duration:
    """`count` passes over the training data."""
    return Duration(float(count), "epochs")


def updates(count: int) -> Duration:
    """`count` updates of the weights."""
    return Duration(float(count), "updates")


def examples(count: int) -> Duration:
    """`count` training examples."""
    return Duration(float(count), "examples")


def fraction(count: float) -> Duration:
    """A fraction of the whole run, in [0, 1]."""
    return Duration(float(count), "fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A distance after which something happens again and again.

    Attributes:
        length: >= 1.
        counts: what it is a number of.

    Example:
        >>> every = Interval(length=10, counts="examples")
        >>> [every.times(updates=n, examples=4 * n) for n in (0, 2, 3, 5)]
        [0, 0, 1, 2]
    """

    length: int
    counts: Literal["updates", "examples"]

    def times(self, *, updates: int, examples: int) -> int:
        """How often it has passed; it is due where an update raises this number."""
        return (updates if self.counts == "updates" else examples) // self.length


@dataclass(frozen=True, slots=True)
class Clock:
    """What turns a duration into examples.

    An epoch is cut into updates of the batch size; its last update takes what is left, so
    u updates are floor(u / per_epoch) epochs and a remainder.

    Attributes:
        examples_per_epoch: size of the training data; None when unknown (a stream).
        batch_size: examples per update; None when it is itself scheduled.
        total_examples: length of the run; None while the run's own duration is being resolved.
    """

    examples_per_epoch: int | None
    batch_size: int | None
    total_examples: int | None = None

    def examples(self, duration: Duration) -> int:
        """The duration in examples, rounded to the nearest whole one.

        Raises:
            InputError: epochs of a stream of unknown length; updates under a scheduled batch
                size; a fraction of a run whose length is not yet known.
        """
        count = duration.count
        if duration.unit == "examples":
            return int(count)
        if duration.unit == "fraction":
            if self.total_examples is None:
                raise InputError("duration", "must not be a fraction of itself", str(duration))
            return round(count * self.total_examples)
        if duration.unit == "epochs":
            if self.examples_per_epoch is None:
                rule = "must be in examples or updates, since the data's length is unknown"
                raise InputError("duration", rule, str(duration), hint="or give num_examples")
            return round(count * self.examples_per_epoch)
        if self.batch_size is None:
            rule = "must not be in updates while the batch size is scheduled"
            raise InputError("duration", rule, str(duration), hint="use epochs or examples")
        if self.examples_per_epoch is None:
            return int(count) * self.batch_size
        per_epoch = -(-self.examples_per_epoch // self.batch_size)
        whole, rest = divmod(int(count), per_epoch)
        return whole * self.examples_per_epoch + rest * self.batch_size

    def interval(self, duration: Duration) -> Interval:
        """What happens again and again after this duration.

        Raises:
            InputError: as `examples`; updates are counted, so they are told in any case.
        """
        if duration.unit == "updates":
            return Interval(length=max(1, int(duration.count)), counts="updates")
        return Interval(length=max(1, self.examples(duration)), counts="examples")

    def fraction(self, duration: Duration) -> float:
        """The duration as a fraction of the run, at most 1."""
        if duration.unit == "fraction":
            return duration.count
        if not self.total_examples:
            return 0.0
        return min(1.0, self.examples(duration) / self.total_examples)


def _clamp(progress: float) -> float:
    return 0.0 if progress <= 0.0 else 1.0 if progress >= 1.0 else progress


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(name, "must be >= 0 and finite", value)


def _between(start: float, end: float, progress: float, shape: str) -> float:
    """From start (progress 0) to end (progress 1), both met exactly."""
    if progress <= 0.0:
        return start
    if progress >= 1.0:
        return end
    if shape == "linear":
        return start + (end - start) * progress
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """f(p) = value.

    Attributes:
        value: the factor, >= 0.
    """

    name: ClassVar[str] = "constant"
    value: float = 1.0

    def __post_init__(self) -> None:
        _finite(value=self.value)

    def __call__(self, progress: float) -> float:
        """The factor at `progress` in [0, 1]."""
        return self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """f(p) = start + (end - start) p.

    Attributes:
        start: factor at progress 0, >= 0.
        end: factor at progress 1, >= 0.

    Example:
        >>> Linear(start=1.0, end=0.0)(0.25)
        0.75
    """

    name: ClassVar[str] = "linear"
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _finite(start=self.start, end=self.end)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]."""
        return _between(self.start, self.end, progress, "linear")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """f(p) = end + (start - end) (1 + cos(pi p)) / 2, half a cosine wave.

    Attributes:
        start: factor at progress 0, >= 0.
        end: factor at progress 1, >= 0.

    Example:
        >>> round(Cosine()(0.5), 12)
        0.5
    """

    name: ClassVar[str] = "cosine"
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _finite(start=self.start, end=self.end)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]."""
        return _between(self.start, self.end, progress, "cosine")


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle:
    """From start to peak during `warmup`, then from peak to end.

    The defaults are the values in common use (start = peak/25, end = start/10,000). For momentum,
    which runs the other way, give start 1, peak 0.85/0.95 and end 1.

    Attributes:
        warmup: length of the first phase.
        start: factor at progress 0, >= 0.
        peak: factor at the end of the first phase, >= 0.
        end: factor at progress 1, >= 0.
        shape: "cosine" or "linear", of both phases.

    Example:
        >>> cycle = OneCycle(warmup=fraction(0.25), start=0.0, end=0.0, shape="linear")
        >>> [cycle(p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "one-cycle"
    warmup: Duration = fraction(0.3)
    start: float = 0.04
    peak: float = 1.0
    end: float = 4e-6
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        _finite(start=self.start, peak=self.peak, end=self.end)
        if self.shape not in ("cosine", "linear"):
            raise InputError("shape", "must be one of: cosine, linear", self.shape)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `warmup` must be a fraction."""
        progress, turn = _clamp(progress), _resolved(self.warmup)
        if progress < turn:
            return _between(self.start, self.peak, progress / turn, self.shape)
        rest = (progress - turn) / (1.0 - turn) if turn < 1.0 else 0.0
        return _between(self.peak, self.end, rest, self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """A linear rise, then another schedule stretched over the rest of the run.

    f(p) = start + (into(0) - start) p / w for p < w, and into((p - w) / (1 - w)) after, with w the
    warm-up's fraction of the run. Continuous at w.

    Attributes:
        duration: length of the rise.
        start: factor at progress 0, >= 0.
        into: the schedule that follows.

    Example:
        >>> warmup = Warmup(duration=fraction(0.2), into=Linear())
        >>> [round(warmup(p), 12) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    name: ClassVar[str] = "warmup"
    duration: Duration
    start: float = 0.0
    into: Schedule = Constant()

    def __post_init__(self) -> None:
        _finite(start=self.start)

    def __call__(self, progress: float) -> float:
        """The factor at `progress`, clamped to [0, 1]; `duration` must be a fraction."""
        progress, turn = _clamp(progress), _resolved(self.duration)
        if progress < turn:
            return _between(self.start, self.into(0.0), progress / turn, "linear")
        return self.into((progress - turn) / (1.0 - turn) if turn < 1.0 else 0.0)


Schedule: TypeAlias = Constant | Linear | Cosine | OneCycle | Warmup


def _resolved(duration: Duration) -> float:
    if duration.unit != "fraction":
        rule = "must be a fraction of the run before a schedule can be evaluated"
        raise InputError("schedule duration", rule, str(duration), hint="use resolve_schedule")
    return duration.count


def resolve_schedule(schedule: Schedule, clock: Clock) -> Schedule:
    """The same schedule with every duration as a fraction of the run: a closed form.

    Args:
        schedule: any schedule, nested ones included.
        clock: the run's lengths; `total_examples` must be known.

    Example:
        >>> clock = Clock(examples_per_epoch=100, batch_size=10, total_examples=1000)
        >>> resolve_schedule(Warmup(duration=epochs(5), into=Linear()), clock)(0.75)
        0.5
    """
    changes: dict[str, object] = {}
    for field in dataclasses.fields(schedule):
        value: Any = getattr(schedule, field.name)
        if isinstance(value, Duration):
            try:
                changes[field.name] = fraction(clock.fraction(value))
            except InputError as error:
                raise error.renamed(f"{schedule.name} {field.name}") from None
        elif isinstance(value, Schedule):
            changes[field.name] = resolve_schedule(value, clock)
    replace: Callable[..., Schedule] = dataclasses.replace
    return replace(schedule, **changes)
