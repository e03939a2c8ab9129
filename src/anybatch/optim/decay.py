"""Weight decay in its four conventions, what each is in torch's, and how many updates it counts.

    coupled       g <- g + weight_decay w                torch's SGD and Adam
    lr-decoupled  w <- w - lr_t weight_decay w           torch's AdamW
    decoupled     w <- w - eta_t weight_decay w          eta_t = lr_t / lr: the schedule's factor
    normalized    decoupled with weight_decay / sqrt(n)  n updates of the run or present restart

The paper writes the last one weight_decay sqrt(b / (B T)), with b the batch size, B the training
examples and T the epochs: b / (B T) = 1 / n. It is the root of b, and no lr stands in it. Nothing
here needs torch.

Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", section 3 and
appendix B.1; SGDR: Loshchilov and Hutter 2017.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from typing import Any, Self

from anybatch.course import Course, recipe_clock
from anybatch.cyclic_schedules import present_cycle
from anybatch.errors import InputError
from anybatch.recipe import AdamWSettings, OptimizerSettings, Recipe, SGDWSettings
from anybatch.recipe_optimizers import DecayConvention
from anybatch.schedule_parts import clamp, resolved
from anybatch.schedules import SGDR, Position, Schedule, Warmup, grid_of, resolve_schedule

__all__ = [
    "PeriodUpdates",
    "count_updates",
    "decay_norm_of",
    "decoupled_in_own_run",
    "long_run_sgd_decay",
    "normalized_decay",
    "read_decay",
    "restarts",
    "state_convention",
    "stated_decay",
    "torch_decay",
    "write_decay",
]


def normalized_decay(decay_norm: float, num_updates: float) -> float:
    """The decoupled weight decay that a normalized one stands for: decay_norm / sqrt(num_updates).

    Args:
        decay_norm: the normalized weight decay, >= 0; 0.025 to 0.05 in the paper.
        num_updates: of the run, or of the present restart, >= 1; need not be whole.

    Raises:
        InputError: a value out of its bounds.

    Example:
        100 epochs of 50,000 examples at batch size 128:

        >>> round(normalized_decay(0.05, 100 * 50_000 / 128), 6)
        0.000253

    Reference:
        Loshchilov and Hutter 2019, appendix B.1.
    """
    _require_not_negative("decay_norm", decay_norm)
    return decay_norm / math.sqrt(_checked_updates(num_updates))


def decay_norm_of(weight_decay: float, num_updates: float) -> float:
    """The normalized weight decay that stands for a decoupled one; undoes `normalized_decay`.

    Args:
        weight_decay: decoupled, >= 0.
        num_updates: of the run, or of the present restart, >= 1.

    Example:
        >>> decay_norm_of(2.5e-4, 40_000)
        0.05
    """
    _require_not_negative("weight_decay", weight_decay)
    return weight_decay * math.sqrt(_checked_updates(num_updates))


def torch_decay(
    convention: DecayConvention,
    weight_decay: float,
    lr: float,
    num_updates: float | None = None,
) -> float:
    """The `weight_decay` with which a torch optimizer does the same.

        coupled       weight_decay, in torch.optim.SGD or Adam
        lr-decoupled  weight_decay, in torch.optim.AdamW
        decoupled     weight_decay / lr, in AdamW: it shrinks by lr_t weight_decay / lr = eta_t
                      weight_decay, under any schedule of lr
        normalized    weight_decay / (lr sqrt(num_updates)), in AdamW

    Args:
        convention: of `weight_decay`.
        weight_decay: as the recipe states it, >= 0.
        lr: the setting that the schedule multiplies, > 0 where it is divided by.
        num_updates: of the run, or of the present restart; only for "normalized".

    Raises:
        InputError: a value out of its bounds, "normalized" without a number of updates.

    Example:
        >>> torch_decay("decoupled", 2.5e-4, lr=1e-3)
        0.25
        >>> torch_decay("normalized", 0.05, lr=1e-3, num_updates=40_000)
        0.25
    """
    _require_not_negative("weight_decay", weight_decay)
    return weight_decay / _torch_divisor(convention, weight_decay, lr, num_updates)


def stated_decay(
    convention: DecayConvention,
    torch_weight_decay: float,
    lr: float,
    num_updates: float | None = None,
) -> float:
    """The weight decay of a convention that does what torch's does; undoes `torch_decay`.

    Args:
        convention: wanted.
        torch_weight_decay: of the torch optimizer, >= 0.
        lr: the setting that the schedule multiplies, > 0 where it is divided by.
        num_updates: of the run, or of the present restart; only for "normalized".

    Example:
        >>> stated_decay("normalized", 0.25, lr=1e-3, num_updates=40_000)
        0.05
    """
    _require_not_negative("weight_decay", torch_weight_decay)
    return torch_weight_decay * _torch_divisor(convention, torch_weight_decay, lr, num_updates)


def _torch_divisor(
    convention: DecayConvention, weight_decay: float, lr: float, num_updates: float | None
) -> float:
    if convention in ("coupled", "lr-decoupled") or weight_decay == 0:
        return 1.0
    if not (math.isfinite(lr) and lr > 0):
        raise InputError("lr", f"must be > 0 under {convention} weight decay", lr)
    return lr if convention == "decoupled" else lr * math.sqrt(_checked_updates(num_updates))


def long_run_sgd_decay(weight_decay: float, lr: float, momentum: float) -> float:
    """The coupled `weight_decay` with which torch's SGD shrinks as much in the long run.

    weight_decay (1 - momentum) / lr: what decay adds to the gradient acts 1 / (1 - momentum) times
    through the buffer, spread over as many updates. Without momentum both are the same step.

    Args:
        weight_decay: decoupled, as of SGDW, >= 0.
        lr: the setting that the schedule multiplies, > 0.
        momentum: in [0, 1).

    Example:
        >>> round(long_run_sgd_decay(5e-4, lr=0.1, momentum=0.9), 12)
        0.0005
    """
    return torch_decay("decoupled", weight_decay, lr) * (1.0 - momentum)


# --- parameter groups ------------------------------------------------------------------------


def state_convention(group: dict[str, Any], convention: DecayConvention) -> None:
    """Let a group of torch's AdamW have its weight decay by another convention from here on.

    Its `weight_decay` so far is taken as stated by the convention, its lr as the reference. What
    it needs stands in the group, under `decay`, `reference_lr` and `stated_weight_decay`. A
    normalized decay is not a number until `write_decay` has told it the updates.

    Args:
        group: of parameters; changed.
        convention: "decoupled" or "normalized"; "lr-decoupled" changes nothing.
    """
    if convention != "lr-decoupled":
        group["decay"], group["reference_lr"] = convention, float(group["lr"])
        group["stated_weight_decay"] = stated = float(group["weight_decay"])
        write_decay(group, stated, None)


def read_decay(group: dict[str, Any]) -> float:
    """The weight decay of a group as its convention states it; 0 where it has none."""
    return float(group.get("stated_weight_decay", group.get("weight_decay", 0.0)))


def write_decay(group: dict[str, Any], stated: float, num_updates: float | None) -> None:
    """Set what `read_decay` reads, and with it what the optimizer goes by.

    Args:
        group: of parameters; changed.
        stated: weight decay, by the group's convention.
        num_updates: of the run, or of the present restart; None where it is not known yet, which
            a normalized decay does not survive: SGDW refuses it, AdamW's weights become NaN.
    """
    if group.get("decay") == "normalized":
        group["num_updates"] = num_updates
    if "stated_weight_decay" not in group:
        group["weight_decay"] = stated
        return
    convention: DecayConvention = group["decay"]
    is_known = convention != "normalized" or stated == 0.0 or num_updates is not None
    group["stated_weight_decay"], group["weight_decay"] = stated, math.nan
    if is_known:
        group["weight_decay"] = torch_decay(convention, stated, group["reference_lr"], num_updates)


# --- the updates that a normalized decay counts ----------------------------------------------


def decoupled_in_own_run(recipe: Recipe, num_examples: int | None) -> OptimizerSettings:
    """The optimizer with a normalized decay as what it is at the beginning of the recipe's own run.

    For a measurement or a pilot, whose updates are not those of the run.

    Args:
        recipe: with its own duration; another decay stays as it is.
        num_examples: of the training split; None for a stream of unknown length.

    Raises:
        InputError: a duration or a batch size that does not fit the data.

    Example:
        >>> from anybatch.durations import updates
        >>> settings = AdamWSettings(lr=1e-3, weight_decay=0.05, decay="normalized")
        >>> own = Recipe(optimizer=settings, duration=updates(40_000))
        >>> decoupled_in_own_run(own, None).weight_decay
        0.00025
    """
    settings = recipe.optimizer
    if not (isinstance(settings, (SGDWSettings, AdamWSettings)) and settings.decay == "normalized"):
        return settings
    clock = recipe_clock(recipe, num_examples)
    lr = resolve_schedule(recipe.schedules.lr, clock)
    period = PeriodUpdates.of(lr, Course.of(recipe, clock))
    updates = period.at(Position(0, 0, clock.total_examples or 1))
    decay = normalized_decay(settings.weight_decay, updates)
    return replace(settings, decay="decoupled", weight_decay=decay)


def count_updates(course: Course) -> int:
    """Updates of a run.

    Args:
        course: of the run; where its batch size is scheduled, it is walked through.

    Example:
        >>> from anybatch.schedules import Clock, Constant
        >>> clock = Clock(examples_per_epoch=100, batch_size=32, total_examples=250)
        >>> count_updates(Course(clock, 32.0, Constant()))  # 4 + 4 + 2
        10
    """
    size, total = course.clock.batch_size, course.total_examples
    if size is None:
        return len(_starts(course))
    epoch = course.clock.examples_per_epoch or total
    whole, rest = divmod(total, epoch)
    return whole * -(-epoch // size) + -(-rest // size)


def _starts(course: Course) -> tuple[int, ...]:
    """Examples before each update of the run."""
    starts, seen = [], 0
    epoch = course.clock.examples_per_epoch or course.total_examples
    while seen < course.total_examples:
        starts.append(seen)
        seen += course.size(seen, seen % epoch)
    return tuple(starts)


@dataclass(frozen=True, slots=True)
class PeriodUpdates:
    """How many updates the run has or, where its lr restarts, the present period.

    A period of SGDR counts as long as it would be if the run's end did not cut it, as T_i in the
    paper; its length is real-valued. A warm-up into SGDR belongs to its first period. A join
    counts as one run. What a controller will do to the batch size is not foreseen.

    Attributes:
        lr: schedule of the learning rate, resolved.
        total: updates of the run.
        starts: examples before each update where the batch size is scheduled; else empty.
        total_examples: of the run.
    """

    lr: Schedule
    total: int
    starts: tuple[int, ...]
    total_examples: int

    @classmethod
    def of(cls, lr: Schedule, course: Course) -> Self:
        """Those of a run.

        Args:
            lr: schedule of the learning rate, resolved.
            course: of the run.
        """
        if course.clock.batch_size is not None:
            return cls(lr, count_updates(course), (), course.total_examples)
        starts = _starts(course)
        return cls(lr, len(starts), starts, course.total_examples)

    def at(self, position: Position) -> float:
        """The number for the update at this position, at least 1."""
        grid = grid_of(self.lr)
        cycle = _present_cycle(self.lr, position.progress(grid))
        if cycle is None:
            return float(max(1, self.total))
        begin, end = cycle
        if not self.starts:
            return max(1.0, (end - begin) * (self.total - (grid == "t/(T-1)")))
        inside = min(end, 1.0)
        first, last = (
            bisect.bisect_left(self.starts, progress * self.total_examples - 1e-6)
            for progress in (begin, inside)
        )
        return max(1.0, (last - first) * (end - begin) / (inside - begin))


def restarts(lr: Schedule) -> bool:
    """Whether a schedule of the learning rate has periods that a normalized decay counts."""
    return isinstance(lr, SGDR) or (isinstance(lr, Warmup) and restarts(lr.into))


def _present_cycle(schedule: Schedule, progress: float) -> tuple[float, float] | None:
    """Begin and end of the present period, in progress; None where nothing restarts."""
    if isinstance(schedule, SGDR):
        return present_cycle(schedule, progress)
    if isinstance(schedule, Warmup):
        turn = min(1.0, resolved(schedule.duration))
        rest = 1.0 - turn
        inner = clamp((progress - turn) / rest) if rest > 0.0 else 0.0
        cycle = _present_cycle(schedule.into, inner)
        return cycle and (turn + cycle[0] * rest, turn + cycle[1] * rest)
    return None


def _checked_updates(num_updates: float | None) -> float:
    if num_updates is None:
        raise InputError("num_updates", "must be given for normalized weight decay")
    if not (math.isfinite(num_updates) and num_updates >= 1):
        raise InputError("num_updates", "must be >= 1", num_updates)
    return num_updates


def _require_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(name, "must be >= 0", value)
