"""Adaptive refresh: a factor that stays like its last two values is refreshed more rarely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.refresh_counts import Due, RefreshCounts
from anybatch.recipe_preconditioner import AdaptiveRefresh

__all__ = ["AdaptiveRefreshController", "History", "relative_change"]


@dataclass(slots=True)
class _Interval:
    """Of one factor, in updates; the next refresh is at `due`."""

    last: int = 0  # 0: never refreshed
    last_but_one: int = 0
    due: int = 0


@final
class AdaptiveRefreshController:
    """Each factor when it is worth it; its interval grows while it stays like its last two.

    At a refresh of X, with its last two values X1, X2 and intervals D1, D2 (updates), the next is
    after D: X unlike X1: D = max(1, floor(D1 / 2)); like X1 but not X2: D = D1; like both:
    D = D1 + D2; never above `longest`. P is like Q where |P - Q|_F < similarity |Q|_F. A value that
    does not exist yet is like nothing; the first interval is 1. So a constant statistic is
    refreshed after 1, 1, 2, 3, 5, 8, ... updates. A factor is inverted whenever it is measured.

    Args:
        settings: similarity and longest interval.
        factors: names of all factors.

    Attributes:
        counts: what was done, and what was saved.

    Example:
        >>> refresh = AdaptiveRefreshController(AdaptiveRefresh(), ["0.A"])
        >>> alike, refreshed, inf = (0.0, 0.0), [], float("inf")
        >>> for update in range(21):
        ...     due = refresh.due(update)
        ...     refreshed += [update] if due else []
        ...     new = (inf, inf) if update == 0 else (0.0, inf) if update == 1 else alike
        ...     refresh.observe(update, due, {name: new for name in due.statistics})
        >>> refreshed
        [0, 1, 2, 4, 7, 12, 20]

    Reference:
        Osawa et al. (2020), Scalable and practical natural gradient for large-scale deep learning,
        algorithm 2.
    """

    def __init__(self, settings: AdaptiveRefresh, factors: Iterable[str]) -> None:
        self._settings = settings
        self.counts = RefreshCounts(factors)
        self._intervals = {name: _Interval() for name in self.counts.statistics}

    def due(self, update: int, factor: float = 1.0) -> Due:
        """What this update has to do; asking changes nothing.

        Args:
            update: number of the update, from 0.
            factor: must be 1: adaptive intervals follow the statistics alone.

        Raises:
            InputError: another factor.
        """
        if factor != 1.0:
            hint = "schedules.refresh belongs to a fixed refresh"
            raise InputError("factor of an adaptive refresh", "must be 1", factor, hint=hint)
        names = frozenset(n for n, each in self._intervals.items() if update >= each.due)
        return Due(names, names)

    def observe(
        self, update: int, done: Due, changes: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        """Set the next interval of what was measured; to be called once in every update.

        Args:
            update: as given to `due`.
            done: what was measured and inverted.
            changes: by name of what was measured, `relative_change` against its last value and
                the one before, as `History.take` has them; the same numbers on every rank (only a
                factor's owner knows them: sums over ranks to which the others add 0).

        Raises:
            InputError: a measured factor without its changes.
        """
        known = changes or {}
        missing = sorted(done.statistics - set(known))
        if missing:
            raise InputError(f"factor {missing[0]}", "must come with its relative changes")
        self.counts.add(done)
        for name in done.statistics:
            each = self._intervals[name]
            new = self._next(each, known[name])
            self._intervals[name] = _Interval(new, each.last, update + new)

    def _next(self, interval: _Interval, changes: tuple[float, float]) -> int:
        like_last, like_last_but_one = (change < self._settings.similarity for change in changes)
        if not like_last:  # nor is a NaN
            new = max(1, interval.last // 2)
        elif not like_last_but_one:
            new = max(1, interval.last)
        else:
            new = max(1, interval.last + interval.last_but_one)
        return new if self._settings.longest is None else min(new, self._settings.longest)

    def state_dict(self) -> dict[str, Any]:
        """Intervals by factor as [last, last but one, next refresh], and counts: plain values."""
        rows = {n: [i.last, i.last_but_one, i.due] for n, i in self._intervals.items()}
        return {"intervals": rows, "counts": self.counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` returned, also in the middle of an interval.

        Raises:
            InputError: it is of other factors.
        """
        self.counts.load_state_dict(state["counts"])
        self._intervals = {name: _Interval(*row) for name, row in state["intervals"].items()}


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """|new - old|_F / |old|_F over all matrices of a factor, 0-dim in float64, on its device.

    0 where both are equal, also where both are zero: a dead layer stays like itself. Infinite where
    only the old one is zero; NaN where one of the two is not finite.

    Args:
        new: statistic, (groups, side, side) or (groups, side).
        old: an earlier one.

    Example:
        >>> float(relative_change(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]])))
        0.1
    """
    # In float64: squares of float32's largest and smallest numbers.
    change = torch.linalg.vector_norm(new - old, dtype=torch.float64)
    size = torch.linalg.vector_norm(old, dtype=torch.float64)
    return torch.where(change == 0, change, change / size)


@final
class History:
    """The last two measurements of one factor, on the rank that owns it.

    They are kept by reference: hand in tensors that nobody writes to afterwards, and the newly
    measured statistics instead of their running average, which is like itself by construction.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._last_but_one: Tensor | None = None

    def take(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """Relative change against the last and the one before, 0-dim; then remember the new one.

        Infinite against what does not exist yet. Nothing waits for the device.
        """
        absent = torch.full((), torch.inf, dtype=torch.float64, device=new.device)
        first, second = (
            absent if old is None else relative_change(new, old)
            for old in (self._last, self._last_but_one)
        )
        self._last, self._last_but_one = new, self._last
        return first, second

    def state_dict(self) -> dict[str, Tensor | None]:
        """Both measurements, not copied."""
        return {"last": self._last, "last_but_one": self._last_but_one}

    def load_state_dict(
        self, state: Mapping[str, Tensor | None], *, device: torch.device | None = None
    ) -> None:
        """Remember copies of what `state_dict` returned, on `device` (None: where they are)."""
        last, last_but_one = state["last"], state["last_but_one"]
        self._last = None if last is None else last.to(device, copy=True)
        self._last_but_one = None if last_but_one is None else last_but_one.to(device, copy=True)
