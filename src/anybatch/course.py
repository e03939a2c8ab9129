"""Course: how the examples of a run are divided into updates, by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.schedules import (
    Clock,
    Constant,
    DecayingMomentum,
    Position,
    Schedule,
    parts_of,
    resolve_schedule,
)

__all__ = ["Course", "check_momentum", "recipe_clock", "update_size"]


def recipe_clock(recipe: Recipe, num_examples: int | None) -> Clock:
    """Lengths of a recipe's run on data of this size.

    Args:
        recipe: of the run.
        num_examples: of the training split; None for a stream of unknown length. Of fixed copies
            an epoch holds each.

    Raises:
        InputError: a batch larger than the set, a "full" batch or a duration in epochs of a
            stream, a duration in updates while the batch size is scheduled or controlled.
    """
    batch_size = recipe.batch_size
    if num_examples is not None:
        num_examples *= max(1, recipe.augmentation.copies)
    if batch_size == "full":
        if num_examples is None:
            rule = "must be a number for a stream of unknown length"
            raise InputError("batch_size", rule, "full", hint="or give num_examples")
        batch_size = num_examples
    if num_examples is not None and batch_size > num_examples:
        rule = f"must be <= the {num_examples} training examples"
        raise InputError("batch_size", rule, batch_size, hint='"full" takes them all')
    moves = recipe.schedules.batch_size != Constant() or recipe.batch_control is not None
    clock = Clock(num_examples, None if moves else batch_size)
    total_examples = clock.examples(recipe.duration)
    if total_examples == 0:
        raise InputError("duration", "must hold at least one example", str(recipe.duration))
    return Clock(num_examples, clock.batch_size, total_examples)


def update_size(
    batch_size: float, position: int, examples_per_epoch: int | None, examples_left: int
) -> int:
    """Examples of the update that begins at `position`: the batch size, or what is left.

    Args:
        batch_size: scheduled global batch size; rounded, at least 1.
        position: examples of the epoch seen before.
        examples_per_epoch: None for a stream of unknown length.
        examples_left: of the whole run.

    Example:
        >>> [update_size(32, position, 100, 1000) for position in (0, 64, 96)]
        [32, 32, 4]
    """
    size = min(max(1, round(batch_size)), examples_left)
    return size if examples_per_epoch is None else min(size, examples_per_epoch - position)


def check_momentum(setting: float, schedule: Schedule) -> None:
    """Refuse a schedule that momentum cannot follow.

    Args:
        setting: the optimizer's momentum, or Adam's beta1; the greatest of several groups.
        schedule: of it, resolved.

    Raises:
        InputError: it reaches 1 or more, or it is 0 and yet to change, or the schedule is made for
            another one.
    """
    for part in parts_of(schedule):
        if isinstance(part, DecayingMomentum) and part.momentum != setting:
            rule = f"must be that of the optimizer, {setting:g}"
            raise InputError(f"schedules.momentum {part.name} momentum", rule, part.momentum)
    low, high = schedule.bounds()
    if low < high and setting == 0.0:
        rule = "must be constant while the optimizer's momentum is 0"
        raise InputError("schedules.momentum", rule, schedule.name)
    highest = setting * high
    if highest >= 1.0:
        raise InputError("schedules.momentum", "must keep momentum below 1", f"{highest:.6g}")


@dataclass(frozen=True, slots=True)
class Course:
    """The sizes of a run's updates, and where each stands in the run.

    Attributes:
        clock: lengths of the run.
        batch_size: setting that the schedule multiplies.
        factor: resolved schedule of the batch size.
    """

    clock: Clock
    batch_size: float
    factor: Schedule

    @classmethod
    def of(cls, recipe: Recipe, clock: Clock) -> Self:
        """The course of a recipe's run; see `recipe_clock`."""
        full = clock.examples_per_epoch if recipe.batch_size == "full" else recipe.batch_size
        return cls(clock, float(full or 1), resolve_schedule(recipe.schedules.batch_size, clock))

    @property
    def total_examples(self) -> int:
        """Examples in the whole run."""
        return self.clock.total_examples or 0

    def size(self, examples: int, offset: int) -> int:
        """Examples of the update that begins after these.

        Args:
            examples: of the run before it.
            offset: examples of the epoch before it.
        """
        batch_size = self.batch_size * self.factor(examples / self.total_examples)
        left = self.total_examples - examples
        return update_size(batch_size, offset, self.clock.examples_per_epoch, left)

    def position(self, examples: int, size: int) -> Position:
        """Where the update of this size after so many examples stands in the run."""
        return Position(examples, size, self.total_examples, self.clock.last_size or 0)
