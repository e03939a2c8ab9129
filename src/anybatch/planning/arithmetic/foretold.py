"""What was foretold beside what came: coverage, and by how much intervals are to widen.

Reference: interval of a share: Wilson 1927, "Probable inference, the law of succession, and
statistical inference".
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anybatch.errors import InputError

__all__ = [
    "Coverage",
    "Foretold",
    "LedgerRow",
    "coverage",
    "interval_factor",
    "kappas",
    "median_ratio",
]

_PRIOR_ROWS = 10.0  # the factor counts as 1 with the weight of so many rows
_LEAST_FACTOR, _GREATEST_FACTOR = 0.5, 4.0
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """A foretold number with its interval.

    Attributes:
        value: > 0.
        low: > 0, at most the value.
        high: at least the value; inf where it has no end.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high:
            rule = "must satisfy 0 < low <= value <= high"
            raise InputError("foretold", rule, (self.low, self.value, self.high))


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One planned run.

    Attributes:
        time: when it ended, as ISO 8601.
        task: its name.
        optimizer: its name.
        batch_size: examples per update.
        seconds: foretold, from the run's beginning to its target.
        updates: foretold.
        actual_seconds: to the target, or to the end where it was not reached, >= 0.
        actual_updates: likewise.
        reached: whether the target was reached.
        level: probability of the foretold intervals, in (0, 1).
        b_simple: measured noise scale in examples; None: not measured.
        b_crit: measured critical batch size in examples, as by branches; None: not measured.
        version: of anybatch.
    """

    time: str
    task: str
    optimizer: str
    batch_size: int
    seconds: Foretold
    updates: Foretold
    actual_seconds: float
    actual_updates: int
    reached: bool
    level: float = 0.8
    b_simple: float | None = None
    b_crit: float | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError("level", "must be in (0, 1)", self.level)
        if not (math.isfinite(self.actual_seconds) and self.actual_seconds >= 0):
            raise InputError("actual_seconds", "must be >= 0 and finite", self.actual_seconds)

    def to_json(self) -> str:
        """One line of strict JSON; an end at infinity is null."""
        values = dataclasses.asdict(self)
        for name in ("seconds", "updates"):
            values[name] = {k: v if math.isfinite(v) else None for k, v in values[name].items()}
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> LedgerRow:
        """The row that `to_json` wrote.

        Raises:
            ValueError: the line is damaged.
        """
        values: Any = json.loads(line)
        try:
            values |= {name: _foretold(values[name]) for name in ("seconds", "updates")}
            row = cls(**values)
            names = {"batch_size": int, "reached": bool, "task": str, "optimizer": str}
            wrong = [n for n, kind in names.items() if not isinstance(getattr(row, n), kind)]
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a row of the ledger: {error}") from None
        if wrong:
            raise ValueError(f"not a row of the ledger: {', '.join(wrong)}")
        return row


def _foretold(values: Mapping[str, float | None]) -> Foretold:
    return Foretold(**{k: math.inf if v is None else float(v) for k, v in values.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How often the truth lay inside of what was foretold.

    Attributes:
        inside: rows.
        count: rows that could be judged.
        share: inside / count; nan without rows.
        low: lower end of the 95 % interval of the share (Wilson).
        high: upper end.
    """

    inside: int
    count: int
    share: float
    low: float
    high: float


def coverage(rows: Sequence[LedgerRow]) -> Coverage:
    """How often the actual seconds lay inside the foretold interval.

    A run that stopped before its target is outside once it has taken longer than the upper end;
    before that it cannot be judged, nor can one for which no number was foretold.

    Args:
        rows: of the ledger.
    """
    judged = [inside for inside in map(_is_inside, rows) if inside is not None]
    count, inside = len(judged), sum(judged)
    if count == 0:
        return Coverage(inside=0, count=0, share=math.nan, low=0.0, high=1.0)
    low, high = _wilson(inside, count)
    return Coverage(inside=inside, count=count, share=inside / count, low=low, high=high)


def _wilson(inside: int, count: int) -> tuple[float, float]:
    """Ends of Wilson's 95 % interval.

    Example:
        >>> [round(end, 3) for end in _wilson(8, 10)]
        [0.49, 0.943]
    """
    share, z = inside / count, _NORMAL_95
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low = 0.0 if inside == 0 else centre - half
    return low, 1.0 if inside == count else centre + half


def _is_inside(row: LedgerRow) -> bool | None:
    if not math.isfinite(row.seconds.value):
        return None  # nothing was foretold
    if not row.reached:
        return False if row.actual_seconds > row.seconds.high else None
    return row.seconds.low <= row.actual_seconds <= row.seconds.high


def median_ratio(rows: Sequence[LedgerRow]) -> float | None:
    """The median of foretold / actual seconds over the runs that reached their target.

    Args:
        rows: of the ledger.
    """
    ratios = [
        row.seconds.value / row.actual_seconds
        for row in rows
        if row.reached and row.actual_seconds > 0 and math.isfinite(row.seconds.value)
    ]
    return statistics.median(ratios) if ratios else None


def interval_factor(rows: Sequence[LedgerRow]) -> float:
    """By how much intervals must widen (above 1) or narrow, on logarithms, to hold as they say.

    Each run has a distance: log(actual / foretold) in units of the log distance from the foretold
    value to that end of its interval. Were the intervals right, the share `level` of the distances
    would be below 1; f is the distance that this share is below. With n runs the factor is
    f^(n / (n + 10)), kept in [0.5, 4]: 1 without any, and slow to believe a few.

    A run that stopped before its target counts if it is outside already, by what it took; one
    without an upper end, or without any width, cannot be judged.

    Args:
        rows: of the ledger.

    Example:
        >>> interval_factor([])
        1.0
    """
    judged = [(d, row.level) for row in rows if (d := _distance(row)) is not None]
    if not judged:
        return 1.0
    level = statistics.fmean(level for _, level in judged)
    far = _quantile(sorted(distance for distance, _ in judged), level)
    exponent = len(judged) / (len(judged) + _PRIOR_ROWS)
    return min(_GREATEST_FACTOR, max(_LEAST_FACTOR, math.pow(max(far, 1e-3), exponent)))


def _distance(row: LedgerRow) -> float | None:
    """From the foretold seconds to the actual ones, 1 at the end of the interval."""
    if not math.isfinite(row.seconds.value):
        return None
    if row.actual_seconds <= 0 or (not row.reached and row.actual_seconds <= row.seconds.high):
        return None
    late = row.actual_seconds > row.seconds.value
    end = row.seconds.high if late else row.seconds.low
    width = abs(math.log(end / row.seconds.value)) if math.isfinite(end) else math.inf
    if not 0 < width < math.inf:
        return None
    return abs(math.log(row.actual_seconds / row.seconds.value)) / width


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the ordered values, which stand at (i + 0.5) / n.

    Example:
        >>> _quantile([1.0, 2.0, 3.0, 4.0], 0.5)
        2.5
    """
    place = min(max(share * len(ordered) - 0.5, 0.0), len(ordered) - 1.0)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def kappas(rows: Sequence[LedgerRow], optimizer: str | None = None) -> list[float]:
    """B_simple / B_crit of the runs where both were measured, for the planner's calibration.

    Args:
        rows: of the ledger.
        optimizer: of these runs alone; None: of all.
    """
    return [
        row.b_simple / row.b_crit
        for row in rows
        if row.b_simple and row.b_crit and optimizer in (None, row.optimizer)
    ]
