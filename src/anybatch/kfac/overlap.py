"""Overlap: statistics that travel while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.exchange import Pending, StatisticsExchange
from anybatch.kfac.packing import PackedEntry

__all__ = ["Departures", "OrderedBuckets", "buckets_of", "scaled_sum"]

_ELEMENTS_OF_A_BUCKET = 4_000_000  # 16 MB of float32, as torch's DDP has 25


@final
class OrderedBuckets:
    """Sums that travel while the backward pass goes on, bucket by bucket in a fixed order.

    A bucket leaves when all of its sums are ready and every bucket before it has left, so that
    every rank launches the same; `finish` launches what is left, also on a rank that had nothing.

    Args:
        exchange: by which they travel.
        buckets: names of factors, in the order in which they should become ready.

    Example:
        >>> from anybatch.kfac.blocks import FactorShape
        >>> from anybatch.world import World
        >>> shapes = [FactorShape(n, "A", groups=1, side=2, diagonal=True) for n in ("a.A", "b.A")]
        >>> import torch
        >>> exchange = StatisticsExchange(World(torch.device("cpu")), shapes, {"a.A": 0, "b.A": 0})
        >>> buckets = OrderedBuckets(exchange, [["b.A"], ["a.A"]])
        >>> buckets.ready("a.A", torch.ones(1, 2))  # waits for the one before
        0
        >>> buckets.ready("b.A", torch.ones(1, 2))
        2
        >>> sorted(buckets.finish())
        ['a.A', 'b.A']
    """

    def __init__(self, exchange: StatisticsExchange, buckets: Sequence[Sequence[str]]) -> None:
        self._exchange = exchange
        self._waiting = [tuple(bucket) for bucket in buckets]
        self._sums: dict[str, Tensor] = {}
        self._pending: list[Pending] = []

    def ready(self, name: str, total: Tensor) -> int:
        """Hand in a sum that will not change any more; how many buckets have left by now."""
        self._sums[name] = total
        while self._waiting and all(each in self._sums for each in self._waiting[0]):
            self._launch(None)
        return len(self._pending)

    def _launch(self, extra: Tensor | None) -> None:
        names = self._waiting.pop(0)
        sums = {name: self._sums.pop(name) for name in names if name in self._sums}
        self._pending.append(self._exchange.begin(sums, extra, names))

    def finish(self, extra: Tensor | None = None) -> dict[str, Tensor]:
        """Launch the rest, wait for all: the sums of the factors that this rank owns.

        Args:
            extra: small vector of counts that every rank gets the sum of, in place.

        Collectives: see `StatisticsExchange.reduce_to_owners`; every rank must call.
        """
        while self._waiting:
            self._launch(None)
        if extra is not None:
            self._pending.append(self._exchange.begin({}, extra, ()))
        pending, self._pending = self._pending, []
        return {n: t for each in pending for n, t in self._exchange.finish(each).items()}


@final
class Departures:
    """The last backward pass's sums, leaving layer by layer.

    Args:
        buckets: by which they travel, of the factors that are due.
        divisor: D of the losses, whose square makes sums of this rank's G and F fit the others'.

    Attributes:
        left: names of the factors that have been handed in.
    """

    def __init__(self, buckets: OrderedBuckets, divisor: float) -> None:
        self._buckets, self._divisor = buckets, divisor
        self.left: set[str] = set()

    def check(self, name: str) -> None:
        """Refuse a further contribution to what has left.

        Raises:
            InputError: a layer that is called again while the backward pass goes on, as inside of a
                checkpoint that re-enters.
        """
        if name in self.left:
            rule = "must be complete when its layer's last gradient has come"
            raise InputError(f"statistic {name}", rule, "a later one", hint="overlap = false")

    def ready(self, name: str, total: Tensor) -> None:
        """Hand in a sum to which nothing will be added any more."""
        self.left.add(name)
        self._buckets.ready(name, scaled_sum(name, total, self._divisor))

    def finish(self, counts: Tensor) -> dict[str, Tensor]:
        """The sums of the factors that this rank owns, over all ranks.

        Args:
            counts: small vector that every rank gets the sum of, in place.
        """
        return self._buckets.finish(counts)


def scaled_sum(name: str, total: Tensor, divisor: float) -> Tensor:
    """D^2 S of G and F, S of A."""
    return total if name.endswith(".A") or divisor == 1.0 else total * divisor**2


def buckets_of(shapes: Sequence[FactorShape]) -> list[list[str]]:
    """Names of factors in their order, so many together that a bucket is worth its latency."""
    buckets: list[list[str]] = [[]]
    elements = 0
    for shape in shapes:
        if elements >= _ELEMENTS_OF_A_BUCKET:
            buckets.append([])
            elements = 0
        buckets[-1].append(shape.name)
        elements += PackedEntry.of(shape).count
    return [bucket for bucket in buckets if bucket]
