"""Successive halving over learning rates, as arithmetic: from what was seen to what to train next.

Every learning rate is trained to the end of a round; the better half, and never fewer than two, go
on to the next one, twice as long. A round in which the target is reached decides: whoever has
reached it first, in updates, has won, since all others in the round have trained longer. A winner
at the edge of the grid is tried against two more beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Choice", "History", "choose_lr", "standing"]

_MOST_EXTENSIONS = 4
_LEAST_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What is known of the training with one learning rate.

    Attributes:
        updates: trained so far; of a run under way 0, as it is not to be looked at.
        seen: (quantity of the target, lower is better; loss) by update of the evaluation.
        reached: updates to the target; None where it was not reached.
        diverged: update at which the loss was no number; None where it stayed one.
    """

    updates: int = 0
    seen: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    reached: int | None = None
    diverged: int | None = None

    def is_known_at(self, updates: int) -> bool:
        """Whether the round of so many updates has an answer."""
        return self.reached is not None or self.diverged is not None or self.updates >= updates


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What to do next.

    Attributes:
        trials: (lr, updates to train to) that must be known first; empty once it is decided.
        lr: the winner; None while it is not decided, and where every lr diverged.
        tried: all learning rates, ascending.
        at_edge: "lowest" or "highest" where the winner still stands at an end of what was tried.
    """

    trials: tuple[tuple[float, int], ...] = ()
    lr: float | None = None
    tried: tuple[float, ...] = ()
    at_edge: str = ""


def standing(history: History, updates: int, lr: float) -> tuple[float, ...]:
    """A key to sort by, better first, from what was known after so many updates.

    First whoever has reached the target, by updates, then by the value it was reached with; then
    the others by their last value, then by loss; last the diverged. Equals: the smaller lr.
    """
    before = [update for update in history.seen if update <= updates]
    value, loss = history.seen[max(before)] if before else (math.inf, math.inf)
    if history.reached is not None and history.reached <= updates:
        return (0.0, float(history.reached), *history.seen.get(history.reached, (0.0, 0.0)), lr)
    if history.diverged is not None and history.diverged <= updates:
        return (2.0, -float(history.diverged), 0.0, 0.0, lr)
    return (1.0, 0.0, value, loss, lr)


def choose_lr(
    grid: Sequence[float], histories: Mapping[float, History], lengths: Sequence[int]
) -> Choice:
    """The trainings that are missing for a decision, or the decision.

    A function of what was seen alone: asked again after an interruption, it goes on where it was,
    and it decides the same however many trainings run at once.

    Args:
        grid: learning rates to begin with.
        histories: by lr; of those not begun nothing is needed.
        lengths: of the rounds in updates, ascending; the last one is the cap.

    Example:
        >>> slow = History(updates=10, seen={10: (0.5, 0.5)})
        >>> fast = History(updates=10, seen={10: (0.1, 0.1)}, reached=10)
        >>> choose_lr([1.0, 2.0, 4.0], {1.0: slow, 2.0: fast}, [10, 20]).trials
        ((4.0, 10),)
        >>> choose_lr([1.0, 2.0, 4.0], {1.0: slow, 2.0: fast, 4.0: slow}, [10, 20]).lr
        2.0
    """
    tried, group = sorted(grid), sorted(grid)
    for extension in range(_MOST_EXTENSIONS + 1):
        trials, lr = _halved(group, histories, lengths)
        if trials:
            return Choice(trials=trials, tried=tuple(tried))
        edge = "lowest" if lr in (None, tried[0]) else "highest" if lr == tried[-1] else ""
        if not edge or extension == _MOST_EXTENSIONS:
            break
        more = [tried[0] / 2, tried[0] / 4] if edge == "lowest" else [tried[-1] * 2, tried[-1] * 4]
        group = sorted([*([] if lr is None else [lr]), *more])
        tried = sorted([*tried, *more])
    return Choice(lr=lr, tried=tuple(tried), at_edge=edge if lr is not None else "")


def _halved(
    group: Sequence[float], histories: Mapping[float, History], lengths: Sequence[int]
) -> tuple[tuple[tuple[float, int], ...], float | None]:
    """Trials that are missing, and the winner once none is; None where all have diverged."""
    alive = list(group)
    for length in lengths:
        unknown = [lr for lr in alive if not histories.get(lr, History()).is_known_at(length)]
        if unknown:
            return tuple((lr, length) for lr in unknown), None
        ranked = sorted((standing(histories[lr], length, lr), lr) for lr in alive)
        sound = [lr for key, lr in ranked if key[0] < 2.0]
        if not sound:
            return (), None
        if ranked[0][0][0] == 0.0 or len(sound) == 1:
            break
        alive = sound[: max(_LEAST_KEPT, math.ceil(len(sound) / 2))]
    return (), sound[0]
