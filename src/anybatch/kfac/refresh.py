"""Refresh: in which update a factor is measured, and in which it is inverted.

    due = refresh.due(update)            # asks, and changes nothing
    ... measure due.statistics, invert due.inverses ...
    refresh.observe(update, due, changes)

Intervals are counted from the last refresh that was observed, so an update that fell through (as
when a loss scaler skips it) leaves its factors due. What is decided depends on nothing but the
arguments: ranks that are told the same decide the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, final

from anybatch.kfac.adaptive_refresh import AdaptiveRefreshController, History, relative_change
from anybatch.kfac.refresh_counts import Due, RefreshCounts
from anybatch.recipe_preconditioner import AdaptiveRefresh, FixedRefresh

__all__ = [
    "AdaptiveRefreshController",
    "Due",
    "FixedRefreshPlan",
    "History",
    "RefreshCounts",
    "RefreshPlan",
    "refresh_plan",
    "relative_change",
]


class RefreshPlan(Protocol):
    """What fixed and adaptive refreshes have in common."""

    @property
    def counts(self) -> RefreshCounts:
        """What was done, and what was saved."""
        ...

    def due(self, update: int, factor: float = 1.0) -> Due:
        """What this update has to do; `factor` multiplies fixed intervals."""
        ...

    def observe(
        self, update: int, done: Due, changes: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        """Take in what the update did, once in every update; see the two kinds."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        ...


@final
class FixedRefreshPlan:
    """All factors at fixed intervals, counted from the last refresh; both kinds at first.

    With early inverses every measurement of the first interval between two inversions is inverted
    as well; they do not count for it, so later ones come when they would without.

    Args:
        settings: the intervals, in updates.
        factors: names of all factors.

    Attributes:
        counts: what was done, and what was saved.

    Example:
        >>> plan = FixedRefreshPlan(FixedRefresh(statistics_every=2, inverse_every=4), ["0.A"])
        >>> for update in range(6):
        ...     due = plan.due(update)
        ...     print(update, len(due.statistics), len(due.inverses))
        ...     plan.observe(update, due)
        0 1 1
        1 0 0
        2 1 1
        3 0 0
        4 1 1
        5 0 0
        >>> plan.counts.saved_inverses()
        {'0.A': 3}
    """

    def __init__(self, settings: FixedRefresh, factors: Iterable[str]) -> None:
        self._settings = settings
        self.counts = RefreshCounts(factors)
        self._all = frozenset(self.counts.statistics)
        self._measured: int | None = None
        self._inverted: int | None = None  # last update in which the interval was over
        self._is_early = settings.early_inverses  # the first interval has not ended

    def due(self, update: int, factor: float = 1.0) -> Due:
        """What this update has to do; asking changes nothing.

        The statistics are due `statistics_every * factor` updates after the last, rounded, at least
        1. The inverses take as many times that as the settings say, and wait for new statistics;
        early ones are due with them.

        Args:
            update: number of the update, from 0.
            factor: of the intervals, as `schedules.refresh` has it at present.
        """
        every = max(1, round(self._settings.statistics_every * factor))
        if self._measured is not None and update - self._measured < every:
            return Due()
        ratio = self._settings.inverse_every // self._settings.statistics_every
        if self._inverted is None or update - self._inverted >= every * ratio:
            return Due(self._all, self._all)
        return Due(self._all, self._all, early=True) if self._is_early else Due(self._all)

    def observe(
        self, update: int, done: Due, changes: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        """Count the intervals from here on; to be called once in every update.

        Args:
            update: as given to `due`.
            done: what was measured and inverted.
            changes: of no effect here.
        """
        self.counts.add(done)
        if done.statistics:
            self._measured = update
        if done.inverses and not done.early:
            self._is_early = self._is_early and self._inverted is None
            self._inverted = update

    def state_dict(self) -> dict[str, Any]:
        """Last refreshes and counts, as plain values."""
        counts = self.counts.state_dict()
        last = {"measured": self._measured, "inverted": self._inverted, "is_early": self._is_early}
        return last | {"counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` returned, also in the middle of an interval.

        Raises:
            InputError: it is of other factors.
        """
        self.counts.load_state_dict(state["counts"])
        self._measured, self._inverted = state["measured"], state["inverted"]
        self._is_early = state.get("is_early", False)  # states of older versions know none


def refresh_plan(settings: FixedRefresh | AdaptiveRefresh, factors: Iterable[str]) -> RefreshPlan:
    """The kind of refresh that the settings say.

    Args:
        settings: fixed or adaptive.
        factors: names of all factors.
    """
    if isinstance(settings, AdaptiveRefresh):
        return AdaptiveRefreshController(settings, factors)
    return FixedRefreshPlan(settings, factors)
