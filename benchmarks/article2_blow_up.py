"""What became of the loss of a training: nothing, a blow-up, or a fall back to chance.

Pure arithmetic on the means of each hundred updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from anybatch.measuring.blow_up import blow_up

__all__ = ["Event", "name_event"]

_CHANCE = math.log(10.0)
_NEAR_CHANCE, _FAR_FROM_CHANCE = 0.1, 0.5
_END = 5  # hundreds
_LEARNT = 1.8  # loss of a hundred: clearly better than guessing, log(10) = 2.3


class Event(NamedTuple):
    """What became of a loss.

    Attributes:
        name: "none", "spikes", "collapse" or "blow-up".
        update: before which it began; None where nothing did.
        worst: largest mean loss of a hundred after the first below 1.8; None where there is none.
    """

    name: str
    update: int | None
    worst: float | None


def name_event(hundreds: Sequence[float | None]) -> Event:
    """The named event of a training of ten classes, where it happened, and the worst hundred.

    "collapse": it had been below 1.8 and the last five hundreds lie within log(10) - 0.1 and
    log(10) + 0.5, the loss of a network that knows nothing; at the first hundred of that end.
    "blow-up": `anybatch.measuring.blow_up` finds that the loss has risen for good, or it was not
    finite. "spikes": a hundred, after the first one below 1.8, lay at or above log(10) - 0.1, and
    the loss came back; at the first one. "none": none of them.

    Args:
        hundreds: mean loss of each hundred updates; None where it was not finite.

    Example:
        >>> name_event([2.3, 0.4, 0.2, 2.5, 0.2, 0.1, 0.1, 0.1])
        Event(name='spikes', update=300, worst=2.5)
        >>> name_event([2.3, 0.4, 0.2, 2.4, 2.3, 2.4, 2.3, 2.3])
        Event(name='collapse', update=300, worst=2.4)
    """
    values = [math.nan if loss is None else loss for loss in hundreds]
    learnt = next((i for i, loss in enumerate(values) if loss < _LEARNT), len(values))
    later = [loss for loss in values[learnt:] if math.isfinite(loss)]
    worst = max(later, default=None)
    high = [i for i in range(learnt, len(values)) if not values[i] < _CHANCE - _NEAR_CHANCE]
    end = values[-_END:]
    stands = len(end) == _END and high[-_END:] == list(range(len(values) - _END, len(values)))
    if stands and all(loss <= _CHANCE + _FAR_FROM_CHANCE for loss in end):
        high_ones = set(high)
        below = max(i for i in range(len(values)) if i not in high_ones)
        return Event("collapse", 100 * (below + 1), worst)
    at = blow_up(values)
    if at is None and any(math.isnan(loss) for loss in values):
        at = next(i for i, loss in enumerate(values) if math.isnan(loss))
    if at is not None:
        return Event("blow-up", 100 * at, worst)
    if high:
        return Event("spikes", 100 * high[0], worst)
    return Event("none", None, worst)
