"""Durations: lengths of training with their units, the clock that counts them, the grid of updates.

The clock is examples. An update stands at a position of the run, and a grid says which progress in
[0, 1] belongs to it:

    t/T        examples before the update / examples of the run; the last update stays below 1
    (t+1)/T    examples after the update / examples of the run; the first one stands above 0
    t/(T-1)    examples before the update / examples before the last one; from 0 to 1, both met

With equal updates, t = 0 .. T-1, that is what the names say.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from anybatch.errors import InputError

__all__ = [
    "Clock",
    "Duration",
    "Grid",
    "Interval",
    "Position",
    "Unit",
    "epochs",
    "examples",
    "fraction",
    "updates",
]

Grid: TypeAlias = Literal["t/T", "(t+1)/T", "t/(T-1)"]
Unit: TypeAlias = Literal["updates", "epochs", "examples", "fraction"]
_UNITS: tuple[Unit, ...] = ("updates", "epochs", "examples", "fraction")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training with its unit.

    Attributes:
        count: how many, >= 0; whole for updates and examples. A fraction is written as at most 1;
            of a resolved schedule it may be more: a length that the run's end cuts.
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
            count = float(match.group(1))
        except ValueError:
            raise InputError("duration", "must begin with a number", text) from None
        return _written(cls(count, names[unit]))


def _written(duration: Duration) -> Duration:
    if duration.unit == "fraction" and duration.count > 1:
        raise InputError("duration", "must be at most 1 as a fraction", str(duration))
    return duration


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
    return _written(Duration(float(count), "fraction"))


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

    @property
    def last_size(self) -> int | None:
        """Examples of the run's last update; None while the batch size is scheduled."""
        if self.batch_size is None or not self.total_examples:
            return None
        epoch = self.examples_per_epoch or self.total_examples
        rest = self.total_examples % epoch or epoch
        return rest % self.batch_size or self.batch_size

    def span(self, grid: Grid) -> int:
        """Examples from progress 0 to progress 1 of the grid, at least 1.

        Raises:
            InputError: the run's length is not known, or its last update's is not on t/(T-1).
        """
        if not self.total_examples:
            raise InputError("total_examples", "must be known", self.total_examples)
        if grid != "t/(T-1)":
            return self.total_examples
        if self.last_size is None:
            rule = "must not be t/(T-1) while the batch size is scheduled"
            raise InputError("grid", rule, hint="use t/T or (t+1)/T")
        return max(1, self.total_examples - self.last_size)

    def position(self, update: int) -> Position:
        """Where the update with this number, from 0 on, stands; past the end, with size 0.

        Example:
            >>> clock = Clock(examples_per_epoch=100, batch_size=32, total_examples=200)
            >>> clock.position(3)  # 32 + 32 + 32 examples before it, 4 left of the epoch
            Position(examples=96, size=4, total=200, last_size=4)
        """
        total = self.total_examples or 0
        before = min(total, self.examples(updates(update)))
        after = min(total, self.examples(updates(update + 1)))
        return Position(before, after - before, total, self.last_size or 0)


@dataclass(frozen=True, slots=True)
class Position:
    """Where an update stands in a run.

    Attributes:
        examples: before the update.
        size: examples of the update.
        total: examples of the run.
        last_size: examples of the run's last update; only for the grid t/(T-1).

    Example:
        >>> last = Position(examples=75, size=25, total=100, last_size=25)
        >>> [last.progress(grid) for grid in ("t/T", "(t+1)/T", "t/(T-1)")]
        [0.75, 1.0, 1.0]
    """

    examples: int
    size: int
    total: int
    last_size: int = 0

    def progress(self, grid: Grid) -> float:
        """The progress of this update on a grid, at most 1."""
        match grid:
            case "t/T":
                numerator, denominator = self.examples, self.total
            case "(t+1)/T":
                numerator, denominator = self.examples + self.size, self.total
            case "t/(T-1)":
                # A run of one update has no second point: it stands at 0, what follows at 1.
                numerator, denominator = self.examples, max(1, self.total - self.last_size)
        return min(1.0, numerator / denominator)
