"""The link between ranks: what collectives take, from its latency and bandwidth.

all-reduce              2 h alpha for each message, and 2 (R - 1) / R of the bytes through one link
reduce-scatter, gather  h alpha, and for shares of unequal size, padded, (R - 1) largest shares;
                        or an all-reduce of everything, where that is less
h                       ceil(log2 R): halving and doubling, about what trees take; ring: R - 1

Reference: Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations in
MPICH".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.time_model import AllReduce

__all__ = ["Link", "measured_link"]

_BUCKET_BYTES = 25 * 2**20  # the most of a gradient that travels in one message


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What a message between two ranks takes: alpha + beta * bytes.

    Attributes:
        latency_seconds: alpha, of one message, >= 0.
        seconds_per_byte: beta, 1 / bandwidth, >= 0.
        hops: messages one after the other in a collective: "tree" ceil(log2 R), "ring" R - 1.
        shares: how unequal shares travel: by the "cheaper" of padded shares and an all-reduce of
            everything, or always by the "all-reduce", as in the authors' release.
        overlap: share of the last backward pass that the gradient's sum may hide behind, in
            [0, 1]; 0 hides nothing: an upper bound.

    Raises:
        InputError: a value out of its bounds.
    """

    latency_seconds: float
    seconds_per_byte: float
    hops: Literal["tree", "ring"] = "tree"
    shares: Literal["cheaper", "all-reduce"] = "cheaper"
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency_seconds", "seconds_per_byte"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise InputError(name, "must be >= 0 and finite", value)
        if not 0.0 <= self.overlap <= 1.0:
            raise InputError("overlap", "must be in [0, 1]", self.overlap)

    def num_hops(self, ranks: int) -> int:
        """Messages one after the other, for one half of an all-reduce.

        Example:
            >>> [Link(latency_seconds=0, seconds_per_byte=0).num_hops(r) for r in (1, 2, 5, 1024)]
            [0, 1, 3, 10]
        """
        return math.ceil(math.log2(ranks)) if self.hops == "tree" else ranks - 1

    def all_reduce_seconds(self, num_bytes: float, ranks: int) -> float:
        """Seconds of a sum that every rank gets: of a gradient, in messages of at most 25 MiB.

        Args:
            num_bytes: of it.
            ranks: R, >= 1.

        Example:
            >>> link = Link(latency_seconds=1e-3, seconds_per_byte=1e-9)
            >>> [round(1000 * link.all_reduce_seconds(4e6, ranks), 3) for ranks in (1, 2, 4, 1024)]
            [0.0, 6.0, 10.0, 27.992]
        """
        messages = max(math.ceil(num_bytes / _BUCKET_BYTES), 1)
        latency = 2.0 * self.num_hops(ranks) * messages * self.latency_seconds
        model = AllReduce(
            latency_seconds=latency, seconds_per_byte=self.seconds_per_byte, num_bytes=num_bytes
        )
        return model.seconds(ranks)

    def scatter_seconds(self, shares: Sequence[float], ranks: int) -> float:
        """Seconds to bring each rank its own share of a sum, or all shares to every rank.

        ReduceScatterV and AllGatherV cost the same. Padded to the largest share, each rank sends
        (R - 1) of these; an all-reduce of all sends 2 (R - 1) / R of the total, with twice the
        latency. The cheaper of the two counts: with more ranks than blocks it is the all-reduce.

        Args:
            shares: bytes of each rank that has some; at most R.
            ranks: R, >= 1.

        Example:
            >>> link = Link(latency_seconds=0.0, seconds_per_byte=1.0)
            >>> link.scatter_seconds([6.0, 6.0], 2), link.scatter_seconds([10.0, 2.0], 2)
            (6.0, 10.0)
            >>> link.scatter_seconds([10.0, 2.0], 4)  # padded: 30
            18.0
        """
        if ranks == 1 or not sum(shares):
            return 0.0
        latency = self.num_hops(ranks) * self.latency_seconds
        padded = latency + (ranks - 1) * max(shares) * self.seconds_per_byte
        whole = AllReduce(
            latency_seconds=2.0 * latency,
            seconds_per_byte=self.seconds_per_byte,
            num_bytes=sum(shares),
        )
        seconds = whole.seconds(ranks)
        return seconds if self.shares == "all-reduce" else min(padded, seconds)


def measured_link(throughput: Measurement, *, overlap: float = 0.0) -> Link | None:
    """The link that a throughput measurement on several ranks holds; None on one rank.

    Its latency of a sum on R ranks is divided by 2 ceil(log2 R), and its seconds per byte by
    2 (R - 1) / R.

    Args:
        throughput: of kind "throughput".
        overlap: see `Link`.
    """
    values, ranks = throughput.settings.get("all_reduce"), throughput.settings["world_size"]
    if values is None:
        return None
    hops = 2.0 * math.ceil(math.log2(ranks))
    return Link(
        latency_seconds=max(float(values["latency_seconds"] / hops), 0.0),
        seconds_per_byte=max(float(values["seconds_per_byte"]) * ranks / (2.0 * (ranks - 1)), 0.0),
        overlap=overlap,
    )
