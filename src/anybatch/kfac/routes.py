"""Routes: which collective takes shares of unequal size to their owners, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from anybatch.kfac.packing import OwnedLayout, PackedEntry
from anybatch.world import ScatterRoute

__all__ = [
    "Traffic",
    "all_reduce_bytes",
    "filled_traffic",
    "predicted_traffic",
    "routed_layout",
]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of exchanges, on one rank.

    Attributes:
        payload_bytes: of what had to travel, each element once: n (n + 1) / 2 of a factor.
        padding_bytes: beside the payload, where shares are filled up to the largest.
        link_bytes: that this rank sends through its link (see `Channel.link_bytes`), small vectors
            of counts and scales included.

    Example:
        >>> Traffic(1, 2, 3) + Traffic(10, 0, 10)
        Traffic(payload_bytes=11, padding_bytes=2, link_bytes=13)
    """

    payload_bytes: int = 0
    padding_bytes: int = 0
    link_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.payload_bytes + other.payload_bytes,
            self.padding_bytes + other.padding_bytes,
            self.link_bytes + other.link_bytes,
        )


def routed_layout(
    entries: Sequence[PackedEntry],
    owner: Mapping[str, int],
    ranks: int,
    *,
    scatter: ScatterRoute,
    forced: ScatterRoute | None = None,
) -> tuple[OwnedLayout, ScatterRoute]:
    """The buffer of a reduce-scatter or an all-gather, and how it travels.

    An all-reduce sends 2 (R - 1) / R of the payload; the others R - 1 times the largest share. The
    all-reduce is taken where that is less: with more ranks than units, or one unit that is larger
    than all others.

    Args:
        entries: what travels.
        owner: rank by the entry's name.
        ranks: R.
        scatter: the backend's way of sending shares; only "reduce-scatter" pads them. An
            all-gather counts as one.
        forced: the route in any case; None: the cheaper.

    Example:
        >>> entries = [PackedEntry("a", (6,), False), PackedEntry("b", (2,), False)]
        >>> layout, route = routed_layout(entries, {"a": 0, "b": 1}, 2, scatter="reduce-scatter")
        >>> route, layout.payload, layout.total  # 6 sent, where an all-reduce would send 8
        ('reduce-scatter', 8, 12)
        >>> routed_layout(entries, {"a": 0, "b": 1}, 3, scatter="reduce-scatter")[1]  # 12 > 10.7
        'all-reduce'
    """
    whole = OwnedLayout(entries, owner, ranks, padded=False)
    cheaper = "all-reduce" if ranks * whole.largest_share > 2 * whole.payload else scatter
    route = forced or cheaper
    if route != "reduce-scatter":
        return whole, route
    return OwnedLayout(entries, owner, ranks, padded=True), route


def predicted_traffic(
    layout: OwnedLayout, route: ScatterRoute, rank: int, bytes_per_element: int
) -> Traffic:
    """What one exchange of a layout sends of one rank; an all-gather counts as a reduce-scatter.

    Args:
        layout: from `routed_layout`.
        route: from `routed_layout`.
        rank: whose bytes; they differ only in an all-to-all.
        bytes_per_element: as it travels.
    """
    others, own = layout.ranks - 1, layout.shares[rank].total
    if route == "all-reduce":
        link = all_reduce_bytes(layout.total * bytes_per_element, layout.ranks)
    elif route == "all-to-all":
        link = max(layout.payload - own, others * own) * bytes_per_element
    else:
        link = others * layout.largest_share * bytes_per_element
    payload, total = layout.payload * bytes_per_element, layout.total * bytes_per_element
    return Traffic(payload, total - payload, link)


def all_reduce_bytes(num_bytes: int, ranks: int) -> int:
    """Bytes that each rank of a ring sends in an all-reduce: 2 (ranks - 1) / ranks of them."""
    return -(-2 * (ranks - 1) * num_bytes // ranks)


def filled_traffic(layout: OwnedLayout, flat: Tensor) -> Traffic:
    """Payload and padding of a buffer that has been filled, counted from the buffer itself."""
    payload = sum(layout.part(flat, rank).nbytes for rank in range(layout.ranks))
    return Traffic(payload_bytes=payload, padding_bytes=flat.nbytes - payload)
