"""Packing: the n (n + 1) / 2 different elements of a symmetric matrix, and many in one flat buffer.

The lower triangle is folded into a rectangle, so that packing and unpacking are copies of strided
blocks: no table of indices, no loop over rows. With k = n // 2 the rectangle has n - k rows of
2 k + 1 elements; row j holds row k + j of the triangle and, behind it, the part of row j of the
upper triangle from the diagonal to column k - 1, which is column j of the lower one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anybatch.kfac.blocks import FactorShape

__all__ = [
    "OwnedLayout",
    "PackedEntry",
    "PackedLayout",
    "pack_symmetric",
    "packed_count",
    "packed_offset",
    "unpack_symmetric",
]


def packed_count(side: int) -> int:
    """Elements of a symmetric matrix's triangle with its diagonal: side (side + 1) / 2.

    Example:
        >>> packed_count(3), packed_count(100_000)
        (6, 5000050000)
    """
    return side * (side + 1) // 2


def packed_offset(side: int, row: int, column: int) -> int:
    """Where an element of a symmetric matrix is in its packed form; exact for any size.

    Args:
        side: of the matrix.
        row: of the element, in [0, side).
        column: of the element, in [0, side); (row, column) is (column, row).

    Example:
        >>> [[packed_offset(3, row, column) for column in range(3)] for row in range(3)]
        [[2, 0, 3], [0, 1, 4], [3, 4, 5]]
    """
    row, column = max(row, column), min(row, column)
    k = side // 2
    if row >= k:
        return (row - k) * (2 * k + 1) + column
    return column * (2 * k + 1) + k + 1 + row


def pack_symmetric(matrices: Tensor, out: Tensor) -> None:
    """Copy the different elements of symmetric matrices into a flat tensor.

    An element's bits stay as they are; of a matrix that is not symmetric, each element comes from
    one of the two triangles.

    Args:
        matrices: (groups, side, side), any strides.
        out: (groups * side (side + 1) / 2,), contiguous, of the same type.

    Example:
        >>> packed = torch.empty(6)
        >>> pack_symmetric(torch.tensor([[[1.0, 2, 4], [2, 3, 5], [4, 5, 6]]]), packed)
        >>> packed
        tensor([2., 3., 1., 4., 5., 6.])

    Cost:
        side^2 / 2 elements read and written for each group, and side^2 / 4 bytes of memory.
    """
    rectangle, k = _rectangle(out, matrices)
    rectangle[:, :, : k + 1] = matrices[:, k:, : k + 1]
    right = rectangle[:, :, k + 1 :]
    right[:, :k] = matrices[:, :k, :k]
    rest = matrices.shape[1] - k - 1
    if rest > 0:
        lower = right[:, 1:, :rest]
        mask = _lower_mask(rest, out.device)
        torch.where(mask, matrices[:, k + 1 :, k + 1 :], lower, out=lower)


def unpack_symmetric(packed: Tensor, out: Tensor) -> None:
    """Put packed matrices back, both triangles.

    Args:
        packed: (groups * side (side + 1) / 2,), contiguous.
        out: (groups, side, side), of the same type.

    Cost:
        side^2 elements written for each group, half of them transposed.
    """
    rectangle, k = _rectangle(packed, out)
    whole = rectangle[:, :, : k + 1]
    out[:, k:, : k + 1] = whole
    out[:, : k + 1, k:] = whole.mT
    right = rectangle[:, :, k + 1 :]
    if k:
        upper = right[:, :k]
        torch.where(_lower_mask(k, out.device), upper.mT, upper, out=out[:, :k, :k])
    rest = out.shape[1] - k - 1
    if rest > 0:
        lower = right[:, 1:, :rest]
        mask = _lower_mask(rest, out.device)
        torch.where(mask, lower, lower.mT, out=out[:, k + 1 :, k + 1 :])


def _rectangle(packed: Tensor, matrices: Tensor) -> tuple[Tensor, int]:
    groups, side = matrices.shape[0], matrices.shape[1]
    k = side // 2
    return packed.view(groups, side - k, 2 * k + 1), k


def _lower_mask(side: int, device: torch.device) -> Tensor:
    numbers = torch.arange(side, device=device)
    return numbers.unsqueeze(1) >= numbers


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """One tensor of a flat buffer.

    Attributes:
        name: of it.
        shape: of it.
        symmetric: whether it is (groups, side, side) and travels as its triangles.
    """

    name: str
    shape: tuple[int, ...]
    symmetric: bool

    @classmethod
    def of(cls, factor: FactorShape) -> PackedEntry:
        """The entry of a factor: symmetric, or as it is where only its diagonal is kept."""
        if factor.diagonal:
            return cls(factor.name, (factor.groups, factor.side), symmetric=False)
        return cls(factor.name, (factor.groups, factor.side, factor.side), symmetric=True)

    @property
    def count(self) -> int:
        """Elements that travel."""
        if self.symmetric:
            return self.shape[0] * packed_count(self.shape[1])
        return math.prod(self.shape)


@dataclass(frozen=True)
class PackedLayout:
    """Where each of several tensors is in one flat buffer, one behind the other.

    Offsets are Python's integers and torch's int64: nothing overflows at 2^31 elements.

    Args:
        entries: in their order.

    Attributes:
        offsets: of each entry, in elements.
        total: elements of all.

    Example:
        >>> entries = PackedEntry("a", (2, 2, 2), True), PackedEntry("b", (1, 4), False)
        >>> layout = PackedLayout(entries)
        >>> layout.total, layout.offsets
        (10, {'a': 0, 'b': 6})
        >>> flat = torch.empty(10)
        >>> layout.pack({"a": torch.ones(2, 2, 2), "b": torch.zeros(1, 4)}, flat)
        >>> layout.unpack(flat)["a"].shape
        torch.Size([2, 2, 2])
    """

    entries: Sequence[PackedEntry]
    offsets: Mapping[str, int] = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        offsets, total = {}, 0
        for entry in self.entries:
            offsets[entry.name] = total
            total += entry.count
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "total", total)

    @classmethod
    def of_factors(cls, factors: Iterable[FactorShape]) -> PackedLayout:
        """The layout of factors, in their order."""
        return cls(tuple(PackedEntry.of(factor) for factor in factors))

    def pack(
        self,
        tensors: Mapping[str, Tensor],
        out: Tensor,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Fill a flat buffer; a tensor that is missing counts as zero.

        Args:
            tensors: by name, of the entries' shapes; any strides; cast to the buffer's type.
            out: (total,), contiguous.
            scales: 0-dim, by name: that each tensor is multiplied by before it is cast.
        """
        for entry in self.entries:
            part = out.narrow(0, self.offsets[entry.name], entry.count)
            tensor = tensors.get(entry.name)
            if tensor is None:
                part.zero_()
            elif scales is None and tensor.dtype == out.dtype:
                _pack_entry(entry, tensor, part)
            else:
                whole = tensor.new_empty(entry.count)
                _pack_entry(entry, tensor, whole)
                part.copy_(whole if scales is None else whole.mul_(scales[entry.name]))

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors of a flat buffer: symmetric ones are new, others views of it.

        Args:
            flat: (total,), contiguous.
        """
        tensors = {}
        for entry in self.entries:
            part = flat.narrow(0, self.offsets[entry.name], entry.count)
            if entry.symmetric:
                tensors[entry.name] = flat.new_empty(entry.shape)
                unpack_symmetric(part, tensors[entry.name])
            else:
                tensors[entry.name] = part.view(entry.shape)
        return tensors


def _pack_entry(entry: PackedEntry, tensor: Tensor, out: Tensor) -> None:
    if entry.symmetric:
        pack_symmetric(tensor, out)
    else:
        out.view(tensor.shape).copy_(tensor)


@dataclass(frozen=True)
class OwnedLayout:
    """Tensors in one flat buffer by the rank that owns them, each rank's share in one piece.

    Args:
        entries: in any order, the same on every rank.
        owner: rank by the entry's name.
        ranks: how many there are; some may own nothing.
        padded: whether every share takes the place of the largest, as collectives with equal
            shares want.

    Attributes:
        shares: the layout of each rank's part.
        starts: where each begins, in elements.
        total: elements of the buffer, padding included.
    """

    entries: Sequence[PackedEntry]
    owner: Mapping[str, int]
    ranks: int
    padded: bool
    shares: tuple[PackedLayout, ...] = field(init=False)
    starts: tuple[int, ...] = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        of_rank: list[list[PackedEntry]] = [[] for _ in range(self.ranks)]
        for entry in self.entries:
            of_rank[self.owner[entry.name]].append(entry)
        shares = tuple(PackedLayout(tuple(entries)) for entries in of_rank)
        places = [share.total for share in shares]
        if self.padded:
            places = [max(places)] * self.ranks
        starts = (0, *itertools.accumulate(places))
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "starts", starts[:-1])
        object.__setattr__(self, "total", starts[-1])

    @property
    def payload(self) -> int:
        """Elements that are not padding."""
        return sum(share.total for share in self.shares)

    @property
    def largest_share(self) -> int:
        """Elements of the largest share."""
        return max(share.total for share in self.shares)

    def part(self, flat: Tensor, rank: int) -> Tensor:
        """The share of one rank in a buffer, without its padding."""
        return flat.narrow(0, self.starts[rank], self.shares[rank].total)

    def pack(
        self,
        tensors: Mapping[str, Tensor],
        out: Tensor,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Fill every share of a buffer, and its padding with zeros; see `PackedLayout.pack`."""
        ends = (*self.starts[1:], self.total)
        for rank, (share, end) in enumerate(zip(self.shares, ends, strict=True)):
            share.pack(tensors, self.part(out, rank), scales)
            filled = self.starts[rank] + share.total
            out.narrow(0, filled, end - filled).zero_()
