"""What every kind of schedule is made of: checks of its fields, curves between two levels, counts.

Progress is a quotient of whole numbers of examples, and inside of a warm-up or a join it is
stretched once more, so it may miss a boundary by rounding. Therefore a boundary counts as reached
from `ROUNDING` (of the run) before it: more than rounding makes, and less than one update of any
run of fewer than 10**10 updates. A boundary at the very end of a run is never reached: what holds
at progress 1, and past it, belongs to what came before.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Sequence

from anybatch.durations import Duration, Grid
from anybatch.errors import InputError

__all__ = [
    "ROUNDING",
    "between",
    "clamp",
    "ordered",
    "periods",
    "reached",
    "require_choice",
    "require_factors",
    "require_grid",
    "require_increasing",
    "require_length",
    "resolved",
]

ROUNDING = 1e-10  # a share of the run, or of the piece of it that a nested schedule covers


def clamp(progress: float) -> float:
    """Progress held in [0, 1]."""
    return 0.0 if progress <= 0.0 else 1.0 if progress >= 1.0 else progress


def between(start: float, end: float, progress: float, shape: str) -> float:
    """From start (progress 0) to end (progress 1), both met exactly.

    Args:
        start: value at progress 0.
        end: value at progress 1.
        progress: outside of [0, 1], the nearer end holds.
        shape: "linear", "cosine" (half a wave) or "1-sqrt" (end + (start - end) (1 - sqrt(p))).
    """
    if progress <= 0.0:
        return start
    if progress >= 1.0:
        return end
    if shape == "linear":
        return start + (end - start) * progress
    if shape == "1-sqrt":
        return end + (start - end) * (1.0 - math.sqrt(progress))
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def resolved(duration: Duration) -> float:
    """A duration that is a fraction already; any other must first be resolved."""
    if duration.unit != "fraction":
        rule = "must be a fraction of the run before a schedule can be evaluated"
        raise InputError("schedule duration", rule, str(duration), hint="use resolve_schedule")
    return duration.count


def reached(progress: float, boundary: float) -> bool:
    """Whether a boundary inside of the run was reached, safe to rounding."""
    return boundary < 1.0 - ROUNDING and progress >= boundary - ROUNDING


def periods(progress: float, length: float) -> int:
    """How many whole lengths have passed; one that ends with the run is not over.

    Example:
        >>> [periods(p, 0.1) for p in (0.0, 0.29, 0.1 + 0.2, 0.3 - 2**-54, 1.0)]
        [0, 2, 3, 3, 9]
    """
    last = math.ceil((1.0 - ROUNDING) / length) - 1
    return max(0, min(math.floor((progress + ROUNDING) / length), last))


def ordered(*values: float) -> tuple[float, float]:
    """The least and the greatest of some values."""
    return min(values), max(values)


def require_factors(**values: float) -> None:
    """Refuse a factor that is negative or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(name, "must be >= 0 and finite", value)


def require_choice(name: str, value: str, choices: object) -> None:
    """Refuse what is none of a Literal's choices."""
    names = typing.get_args(choices)
    if value not in names:
        raise InputError(name, f"must be one of: {', '.join(names)}", value)


def require_grid(grid: str | None) -> None:
    """Refuse a grid that does not exist."""
    if grid is not None:
        require_choice("grid", grid, Grid)


def require_length(**durations: Duration | None) -> None:
    """Refuse a length of nothing."""
    for name, duration in durations.items():
        if duration is not None and duration.count == 0:
            raise InputError(name, "must be > 0", str(duration))


def require_increasing(name: str, durations: Sequence[Duration]) -> None:
    """Refuse boundaries out of order; those of different units are looked at when resolved."""
    if len({duration.unit for duration in durations}) > 1:
        return
    counts = [duration.count for duration in durations]
    if any(late <= early for early, late in itertools.pairwise(counts)):
        raise InputError(name, "must increase", ", ".join(map(str, durations)))
