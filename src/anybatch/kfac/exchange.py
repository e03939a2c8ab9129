"""Exchange: statistics to the ranks that own them, and what owners made of them to all ranks.

ReduceScatterV: this rank's sums of the factors that are due, packed into one flat buffer by owner;
each owner gets its share, added over all ranks. AllGatherV: the owners' shares to every rank. Which
collectives these are is decided in `routes`.

Reference: Osawa et al. (2019), Large-scale distributed second-order optimization using K-FAC,
section 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.packing import OwnedLayout, PackedEntry
from anybatch.kfac.routes import (
    Traffic,
    all_reduce_bytes,
    filled_traffic,
    predicted_traffic,
    routed_layout,
)
from anybatch.kfac.wire import Wire, largest_magnitudes, wire_dtype, wire_error, wire_scales
from anybatch.world import Arrival, ScatterRoute, World

__all__ = ["Pending", "StatisticsExchange"]

_MOST_LAYOUTS = 256  # that are kept; adaptive refresh asks for many subsets


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """Flat buffers under way: by which route, how laid out, and at which scales (None: none)."""

    route: ScatterRoute
    layout: OwnedLayout
    sent: Tensor
    received: Tensor
    scales: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """An exchange of statistics on its way, to be given to `StatisticsExchange.finish` once.

    Attributes:
        names: of the factors in it, in the order of the exchange.
        arrivals: to wait for.
        buffers: that travel; None in a world of one.
        local: the sums themselves, in a world of one.
    """

    names: tuple[str, ...]
    arrivals: tuple[Arrival, ...]
    buffers: _Buffers | None
    local: Mapping[str, Tensor]


@final
class StatisticsExchange:
    """Sums of statistics to their owners, and owners' results to all, over the ranks of a World.

    Exchanges travel in a process group of their own, so that one may be under way while a backward
    pass goes on. Every rank must begin the same ones in the same order, also one that had no
    examples. In a world of one everything stays as it is, whatever the wire.

    Args:
        world: the ranks.
        factors: all of a model, in the same order on every rank.
        owner: rank by factor name.
        wire: of the statistics; "fp32" leaves them in `dtype`. Nothing else is ever rounded.
        dtype: of the sums, on every rank; a rank without examples could not tell.
        timeout_seconds: after which ranks that wait for another fail; None: torch's.
        route: of sums to their owners; None: by the backend and the fewest bytes.

    Attributes:
        sent: bytes so far, counted where buffers are filled and collectives are launched.

    Raises:
        InputError: a factor without an owner, or an owner who is not there.

    Example:
        >>> from anybatch.kfac.blocks import FactorShape
        >>> fc = FactorShape("fc.A", "A", groups=1, side=2, diagonal=False)
        >>> exchange = StatisticsExchange(World(torch.device("cpu")), [fc], {"fc.A": 0})
        >>> extra = torch.ones(1, dtype=torch.float64)
        >>> exchange.reduce_to_owners({"fc.A": torch.eye(2).unsqueeze(0)}, extra)["fc.A"].shape
        torch.Size([1, 2, 2])

    Collectives: a meeting of all ranks at construction.
    """

    def __init__(
        self,
        world: World,
        factors: Iterable[FactorShape],
        owner: Mapping[str, int],
        wire: Wire = "fp32",
        *,
        dtype: torch.dtype = torch.float32,
        timeout_seconds: float | None = None,
        route: ScatterRoute | None = None,
    ) -> None:
        self._entries = {factor.name: PackedEntry.of(factor) for factor in factors}
        self._owner = dict(owner)
        for name in self._entries:
            rank = self._owner.get(name, -1)
            if not 0 <= rank < world.size:
                raise InputError(f"the owner of {name}", "must be a rank", rank)
        self._world, self._wire, self._dtype, self._route = world, wire, dtype, route
        self._travel = wire_dtype(wire, dtype)
        self._channel = world.channel(timeout_seconds)
        self._layouts: dict[tuple[str, ...], tuple[OwnedLayout, ScatterRoute]] = {}
        self._spare = torch.empty(0, dtype=self._travel, device=world.device)
        self._filled = Traffic()

    @property
    def sent(self) -> Traffic:
        """Bytes so far."""
        return self._filled + Traffic(link_bytes=self._channel.link_bytes)

    def close(self) -> None:
        """Leave the process group of the exchanges."""
        self._channel.close()

    # --- statistics to their owners ----------------------------------------------------------

    def reduce_to_owners(
        self,
        sums: Mapping[str, Tensor],
        extra: Tensor | None = None,
        names: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Add statistics over all ranks, each at the rank that owns it.

        Args:
            sums: raw sums of this rank by factor name, (groups, side, side) symmetric, or
                (groups, side); missing ones count as zero.
            extra: small vector of counts that every rank gets the sum of, in place.
            names: of the factors that travel, the same on every rank; None: those of `sums`.

        Returns:
            The sums over all ranks of the factors that this rank owns. In a half-precision wire
            within `error_bound`; a factor in which any rank has a NaN or an inf is NaN throughout,
            in the sums' own precision only where it was.

        Raises:
            LostRankError: another rank has ended, or is not here in time.

        Collectives:
            One reduce-scatter (on gloo an all-to-all) of the packed factors, or an all-reduce where
            that is less; an all-reduce of `extra`, and in half precision one of a number for each
            factor. Every rank must call.
        """
        return self.finish(self.begin(sums, extra, names))

    @torch.no_grad()
    def begin(
        self,
        sums: Mapping[str, Tensor],
        extra: Tensor | None = None,
        names: Iterable[str] | None = None,
    ) -> Pending:
        """Launch what `reduce_to_owners` does; the sums may change after this, `extra` may not.

        In half precision the ranks agree on scales first, which waits for all of them.

        Args:
            sums: see `reduce_to_owners`.
            extra: see `reduce_to_owners`; ready after `finish`.
            names: see `reduce_to_owners`.
        """
        ordered = self._ordered(sums if names is None else names)
        for name in ordered:
            if name in sums and sums[name].dtype != self._dtype:
                rule = f"must be {self._dtype}, as the exchange"
                raise InputError(f"the sum of {name}", rule, sums[name].dtype)
        arrivals = [] if extra is None else [self._channel.sum_in_place(extra)]
        if self._world.size == 1:
            local = {n: sums[n] if n in sums else self._zeros(n) for n in ordered}
            return Pending(ordered, tuple(arrivals), None, local)
        if not ordered:
            return Pending((), tuple(arrivals), None, {})
        layout, route = self._layout(ordered)
        scales = self._agreed_scales(ordered, sums)
        flat = self._buffer(layout.total)
        layout.pack(sums, flat, None if scales is None else dict(zip(ordered, scales, strict=True)))
        self._filled += filled_traffic(layout, flat)
        received, arrival = self._launch(layout, route, flat)
        buffers = _Buffers(route, layout, flat, received, scales)
        return Pending(ordered, (*arrivals, arrival), buffers, {})

    @torch.no_grad()
    def finish(self, pending: Pending) -> dict[str, Tensor]:
        """What `reduce_to_owners` returns, when it has come.

        Raises:
            LostRankError: another rank has ended, or is not here in time.
        """
        for arrival in pending.arrivals:
            arrival.wait()
        buffers = pending.buffers
        if buffers is None:
            return dict(pending.local)
        share = buffers.layout.shares[self._world.rank]
        own = self._own_sum(buffers, share.total)
        self._spare = max(self._spare, buffers.sent, key=len)
        if buffers.scales is not None:
            scales = dict(zip(pending.names, buffers.scales, strict=True))
            for entry in share.entries:
                own.narrow(0, share.offsets[entry.name], entry.count).div_(scales[entry.name])
        return share.unpack(own)

    def _own_sum(self, buffers: _Buffers, count: int) -> Tensor:
        """This rank's share, added over all ranks, in memory of its own and the sums' type."""
        if buffers.route == "all-to-all":  # in rank order, in full precision
            parts = buffers.received.view(self._world.size, count)
            return parts.sum(0, dtype=self._dtype)
        received = buffers.received
        if buffers.route == "all-reduce":
            received = buffers.layout.part(received, self._world.rank)
        return received.narrow(0, 0, count).to(self._dtype, copy=True)

    def _launch(
        self, layout: OwnedLayout, route: ScatterRoute, flat: Tensor
    ) -> tuple[Tensor, Arrival]:
        if route == "all-reduce":
            return flat, self._channel.sum_in_place(flat)
        counts = [share.total for share in layout.shares]
        if route == "all-to-all":
            received = flat.new_empty(self._world.size * counts[self._world.rank])
            return received, self._channel.all_to_all(flat, received, counts)
        own = flat.new_empty(layout.largest_share)
        return own, self._channel.reduce_scatter(flat, own)

    def _agreed_scales(self, names: Sequence[str], sums: Mapping[str, Tensor]) -> Tensor | None:
        if self._travel == self._dtype:
            return None
        like = torch.empty((), dtype=self._dtype, device=self._world.device)
        largest = largest_magnitudes(sums, names, like)
        self._channel.largest_in_place(largest).wait()
        return wire_scales(largest, self._world.size)

    def _buffer(self, count: int) -> Tensor:
        """Flat memory in the wire's type: that of a finished exchange, where it is enough."""
        spare = self._spare
        if count <= len(spare) <= 4 * count:
            self._spare = spare[:0]
            return spare[:count]
        return torch.empty(count, dtype=self._travel, device=self._world.device)

    def _zeros(self, name: str) -> Tensor:
        shape = self._entries[name].shape
        return torch.zeros(shape, dtype=self._dtype, device=self._world.device)

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        """Factors in the order of the exchange, however a rank came upon them."""
        wanted = set(names)
        ordered = tuple(name for name in self._entries if name in wanted)
        if len(ordered) < len(wanted):
            unknown = sorted(wanted - set(ordered))
            raise InputError("factors", "must be known to the exchange", unknown)
        return ordered

    def _layout(self, names: tuple[str, ...]) -> tuple[OwnedLayout, ScatterRoute]:
        """Of a subset of the factors, and the route that it takes."""
        if names not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[names] = routed_layout(
                [self._entries[name] for name in names],
                self._owner,
                self._world.size,
                scatter=self._channel.scatter_route,
                forced=self._route,
            )
        return self._layouts[names]

    # --- what owners made of them, to all ----------------------------------------------------

    @torch.no_grad()
    def gather_from_owners(
        self,
        own: Mapping[str, Tensor],
        entries: Sequence[PackedEntry],
        owner: Mapping[str, int],
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        """Tensors that each exist on one rank, to every rank; the same bits everywhere.

        Args:
            own: by name, those that this rank owns.
            entries: names and shapes of all, the same on every rank; symmetric ones travel as
                triangles.
            owner: rank by name.
            dtype: in which all travel: nothing is rounded.

        Returns:
            All by name. In a world of one `own` itself.

        Raises:
            LostRankError: another rank has ended, or is not here in time.

        Collectives:
            One all-gather of size * (largest share), or an all-reduce of all where that is less;
            every rank must call.
        """
        if self._world.size == 1:
            return dict(own)
        for name, tensor in own.items():
            if tensor.dtype != dtype:
                raise InputError(name, f"must be {dtype} to be gathered", tensor.dtype)
        layout, route = self._gathered_layout(entries, owner)
        if not layout.total:
            return {}
        flat = torch.empty(layout.total, dtype=dtype, device=self._world.device)
        if route == "all-reduce":  # one summand is the value, the others are zero
            layout.pack(own, flat)
            arrival = self._channel.sum_in_place(flat)
        else:
            part = flat.new_zeros(layout.largest_share)
            share = layout.shares[self._world.rank]
            share.pack(own, part.narrow(0, 0, share.total))
            arrival = self._channel.all_gather(part, flat)
        self._filled += filled_traffic(layout, flat)
        arrival.wait()
        return {
            name: tensor
            for rank, share in enumerate(layout.shares)
            for name, tensor in share.unpack(layout.part(flat, rank)).items()
        }

    def gather_factors(self, own: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors with the factors' shapes, such as their inverses, from owners to all ranks.

        Args:
            own: by factor name, those that this rank owns among `names`; symmetric.
            names: of the factors, the same on every rank.

        Collectives: see `gather_from_owners`; every rank must call.
        """
        entries = [self._entries[name] for name in self._ordered(names)]
        return self.gather_from_owners(own, entries, self._owner, self._dtype)

    # --- bytes beforehand --------------------------------------------------------------------

    def predicted_bytes(self, names: Iterable[str], num_extra: int = 0) -> Traffic:
        """What `reduce_to_owners` will send of this rank.

        Args:
            names: of the factors that travel.
            num_extra: entries of `extra`, 8 bytes each.
        """
        size = self._world.size
        ordered = self._ordered(names)
        if size == 1:
            return Traffic()
        link = all_reduce_bytes(num_extra * 8, size)
        if self._travel != self._dtype:
            link += all_reduce_bytes(len(ordered) * self._dtype.itemsize, size)
        layout, route = self._layout(ordered)
        main = predicted_traffic(layout, route, self._world.rank, self._travel.itemsize)
        return main + Traffic(link_bytes=link)

    def predicted_gather_bytes(
        self, entries: Sequence[PackedEntry], owner: Mapping[str, int], dtype: torch.dtype
    ) -> Traffic:
        """What `gather_from_owners` will send of this rank, for the same arguments."""
        if self._world.size == 1:
            return Traffic()
        layout, route = self._gathered_layout(entries, owner)
        return predicted_traffic(layout, route, self._world.rank, dtype.itemsize)

    def _gathered_layout(
        self, entries: Sequence[PackedEntry], owner: Mapping[str, int]
    ) -> tuple[OwnedLayout, ScatterRoute]:
        return routed_layout(entries, owner, self._world.size, scatter="reduce-scatter")

    def error_bound(self, names: Iterable[str]) -> tuple[float, float]:
        """The wire's relative and absolute error for a subset of factors, see `wire_error`."""
        if self._world.size == 1:
            return 0.0, 0.0
        _, route = self._layout(self._ordered(names))
        return wire_error(self._wire, self._world.size, added_in_full=route == "all-to-all")
