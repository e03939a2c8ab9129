"""Refresh counts: what an update does, and how often each factor was refreshed so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from anybatch.errors import InputError

__all__ = ["Due", "RefreshCounts"]


@dataclass(frozen=True, slots=True)
class Due:
    """What an update does.

    A set of names has another order in every process: collectives go through the factors in their
    own order and ask the set.

    Attributes:
        statistics: names of the factors to measure.
        inverses: of those to invert, after that.
        early: whether these inverses come before their interval is over, and do not count for it.
    """

    statistics: frozenset[str] = frozenset()
    inverses: frozenset[str] = frozenset()
    early: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.statistics or self.inverses)


@final
class RefreshCounts:
    """How often each factor was measured and inverted.

    Args:
        factors: their names.

    Attributes:
        updates: observed so far.
        statistics: measurements by factor.
        inverses: inversions by factor.
    """

    def __init__(self, factors: Iterable[str]) -> None:
        self.updates = 0
        self.statistics = dict.fromkeys(factors, 0)
        self.inverses = dict.fromkeys(self.statistics, 0)

    def add(self, done: Due) -> None:
        """Count one more update."""
        self.updates += 1
        for count, names in ((self.statistics, done.statistics), (self.inverses, done.inverses)):
            for name in names:
                count[name] += 1

    def saved_statistics(self) -> dict[str, int]:
        """Measurements fewer than one in every update, by factor."""
        return {name: self.updates - count for name, count in self.statistics.items()}

    def saved_inverses(self) -> dict[str, int]:
        """Inversions fewer than one in every update, by factor."""
        return {name: self.updates - count for name, count in self.inverses.items()}

    def state_dict(self) -> dict[str, Any]:
        """All counts, as plain values."""
        counts = {"statistics": dict(self.statistics), "inverses": dict(self.inverses)}
        return {"updates": self.updates, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` returned.

        Raises:
            InputError: it is of other factors.
        """
        strange = sorted(set(state["statistics"]) ^ set(self.statistics))
        if strange:
            rule = "must be a factor of the model and of the state"
            raise InputError(f"factor {strange[0]}", rule, hint="is the state another model's?")
        self.updates = state["updates"]
        self.statistics.update(state["statistics"])
        self.inverses.update(state["inverses"])
