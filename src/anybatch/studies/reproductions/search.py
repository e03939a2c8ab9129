"""The search for an lr with a fixed number of trials, as arithmetic: what to try next.

The first trials are the centre, twice and half of it. Then the search goes on beyond the edge at
which the best one stands, or, where the best is inside, tries the untried lr nearest to it. Every
arm has the same number of trials, wherever its search began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Score", "best_power", "lr_at", "next_power"]

_FIRST = (0, 1, -1)


class Score(NamedTuple):
    """What a trial came to; the smaller is the better one.

    Attributes:
        diverged: whether it did.
        error: 1 - accuracy on validation; 1 where it diverged.
        loss: on validation; 0 where it diverged.
    """

    diverged: bool
    error: float = 1.0
    loss: float = 0.0


def lr_at(centre: float, power: int) -> float:
    """The lr centre 2^power, rounded to six digits as in the names of folders.

    Example:
        >>> lr_at(0.1, -2)
        0.025
    """
    return float(f"{centre * 2.0**power:.6g}")


def next_power(tried: Mapping[int, Score], trials: int) -> int | None:
    """The power of two to try next; None once all trials have been taken.

    Args:
        tried: power -> score.
        trials: in all.

    Example:
        >>> seen = {0: Score(False, 0.2), 1: Score(False, 0.1), -1: Score(False, 0.4)}
        >>> next_power(seen, 5), next_power(seen | {2: Score(True)}, 5), next_power(seen, 3)
        (2, -2, None)
    """
    if len(tried) >= trials:
        return None
    for power in _FIRST:
        if power not in tried:
            return power
    best, low, high = best_power(tried), min(tried), max(tried)
    return high + 1 if high - best <= best - low and not _is_lost(tried, high) else low - 1


def _is_lost(tried: Mapping[int, Score], high: int) -> bool:
    """Whether the largest lr diverged, so that a larger one would too."""
    return tried[high].diverged


def best_power(tried: Mapping[int, Score]) -> int:
    """The power with the best score, the smaller lr among equals.

    Args:
        tried: at least one.
    """
    return min(tried, key=lambda power: (tried[power], power))
