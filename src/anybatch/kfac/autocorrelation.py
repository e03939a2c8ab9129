"""Products of an image's shifted copies: what the patches of a convolution have in common.

At stride 1 the product of two taps, summed over the positions of the output,

    A[t, t'] = sum over x of X[x + t] X[x + t']^T,

depends on t' - t alone, up to the positions at the border that one pair of taps meets and another
does not. So each shift is multiplied once: where a pair of taps begins or ends to count, the image
is cut, every cell is multiplied by its shifted self, and A[t, t'] is the sum of the cells that it
counts. Nothing is subtracted, so nothing is cancelled. A 3 x 3 kernel that keeps the size needs 13
products of the whole image instead of 81, and 16 thin ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CALL_COST",
    "COPY_COST",
    "Axis",
    "autocorrelation",
    "autocorrelation_cost",
    "autocorrelation_positions",
    "product_cost",
]

_BUFFER_BYTES, _STAGE_BYTES = 2**24, 2**21  # so that malloc keeps the pages, and the cache them
_THIN = 64
CALL_COST, COPY_COST = 3e6, 25.0
"""Of one call and of one moved number, in multiply-adds of a large product (measured on a CPU)."""

_MATRIX_COST = 2e5  # of one more small product in a call


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image and how a kernel runs along it.

    Attributes:
        length: stored positions; beyond them are zeros.
        taps: size of the kernel.
        stride: positions from one output to the next.
        dilation: positions from one tap to the next.
        before: zeros before the first position.
        after: zeros behind the last one.
    """

    length: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def outputs(self) -> int:
        """Positions of the output; below 1 where the kernel does not fit."""
        room = self.before + self.length + self.after - self.dilation * (self.taps - 1)
        return (room - 1) // self.stride + 1


class _Segment(NamedTuple):
    """Positions start ... stop that the pairs (tap, tap + shift) count, all of them or none."""

    start: int
    stop: int
    taps: tuple[int, ...]


class _Cell(NamedTuple):
    """A rectangle of positions, and the shift, in taps, to those that it is multiplied by."""

    rows: _Segment
    columns: _Segment
    down: int
    right: int


def autocorrelation(images: Tensor, axes: tuple[Axis, Axis], groups: int) -> Tensor:
    """A[t, t'] = sum over examples and outputs x of X[x + t] X[x + t']^T at stride 1.

    Args:
        images: (n, channels, height, width), in any layout.
        axes: of height and width, stride 1.
        groups: into which the channels are divided.

    Returns:
        (groups, taps, taps, channels / groups, channels / groups); taps = all of the kernel, row
        by row. float64 for float64 images, else float32. Symmetric to the last bit.

    Cost:
        About channels^2 / groups multiply-adds for each position and each of the
        ((2 k_h - 1) (2 k_w - 1) + 1) / 2 shifts; a buffer of 16 MB or one example.

    Example:
        >>> axis = Axis(length=3, taps=2, stride=1, dilation=1, before=0, after=0)
        >>> one = Axis(length=1, taps=1, stride=1, dilation=1, before=0, after=0)
        >>> signal = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
        >>> autocorrelation(signal, (one, axis), groups=1).squeeze()
        tensor([[ 5.,  8.],
                [ 8., 13.]])
    """
    cells, dilations = _cells(*axes), (axes[0].dilation, axes[1].dilation)
    sums: list[Tensor | None] = [None] * len(cells)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    for part in _position_major(images, dtype):
        for number, cell in enumerate(cells):
            product = _product(part, cell, dilations, groups)
            before = sums[number]
            sums[number] = product if before is None else before.add_(product)
    taps, channels = axes[0].taps * axes[1].taps, images.shape[1] // groups
    total = torch.zeros(groups, taps, taps, channels, channels, dtype=dtype, device=images.device)
    for cell, cell_sum in zip(cells, sums, strict=True):
        if cell_sum is not None:
            _add(total, cell, cell_sum, axes[1].taps)
    return total


def _add(total: Tensor, cell: _Cell, product: Tensor, width: int) -> None:
    """Add a cell to every pair of taps that counts it, and to the mirrored pair."""
    if cell.down == cell.right == 0:
        product = (product + product.mT) / 2
    for row, column in itertools.product(cell.rows.taps, cell.columns.taps):
        tap = row * width + column
        other = tap + cell.down * width + cell.right
        total[:, tap, other] += product
        if other != tap:
            total[:, other, tap] += product.mT


def _position_major(images: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Slices of the examples as (height, width, examples, channels), in one buffer after another.

    So any shift is a view: (width, examples) are the rows of one matrix for each image row.
    """
    size = dtype.itemsize * max(1, images[:1].numel())
    stage = max(1, _STAGE_BYTES // size)
    for part in torch.split(images, max(1, _BUFFER_BYTES // size)):
        count, channels, height, width = part.shape
        buffer = part.new_empty((height, width, count, channels), dtype=dtype)
        for first in range(0, count, stage):
            some = part[first : first + stage].contiguous(memory_format=torch.channels_last)
            buffer[:, :, first : first + stage].copy_(some.permute(2, 3, 0, 1))
        yield buffer


def _product(images: Tensor, cell: _Cell, dilations: tuple[int, int], groups: int) -> Tensor:
    """X[cell]^T X[cell + shift], (groups, channels / groups, channels / groups)."""
    rows, columns = cell.rows, cell.columns
    left = images[rows.start : rows.stop, columns.start : columns.stop]
    down, right = cell.down * dilations[0], cell.right * dilations[1]
    other = images[rows.start + down : rows.stop + down]
    other = other[:, columns.start + right : columns.stop + right]
    if left.shape[1] * left.shape[2] < _THIN:
        left, other = left.flatten(0, 2)[None], other.flatten(0, 2)[None]
    else:
        left, other = left.flatten(1, 2), other.flatten(1, 2)
    pairs = zip(left.chunk(groups, dim=2), other.chunk(groups, dim=2), strict=True)
    return torch.stack([_summed_products(a, b) for a, b in pairs])


def _summed_products(left: Tensor, other: Tensor) -> Tensor:
    """Sum over matrices of left^T other, from (matrices, rows, channels) each."""
    channels = left.shape[2]
    many = max(1, _BUFFER_BYTES // (left.element_size() * channels**2))
    total = left.new_zeros(channels, channels)
    for a, b in zip(torch.split(left, many), torch.split(other, many), strict=True):
        total += torch.bmm(a.mT, b).sum(0)
    return total


def autocorrelation_cost(axes: tuple[Axis, Axis], *, channels: int, examples: int) -> float:
    """Multiply-adds of a large product that take as long as `autocorrelation` of one group.

    Args:
        axes: of height and width.
        channels: of the group.
        examples: in the batch.
    """
    height, width = axes[0].length, axes[1].length
    moved = COPY_COST * examples * channels * height * width
    moved += COPY_COST * (channels * axes[0].taps * axes[1].taps) ** 2
    cells, positions = _cells(*axes), autocorrelation_positions(axes)
    summed = sum(_size(cell.rows) for cell in cells) * (4.0 * channels**2 + _MATRIX_COST)
    slices = math.ceil(4 * examples * channels * height * width / _BUFFER_BYTES)
    calls = CALL_COST * len(cells) * slices
    return moved + examples * product_cost(positions, channels) + slices * summed + calls


def autocorrelation_positions(axes: tuple[Axis, Axis]) -> int:
    """Positions of one example that `autocorrelation` multiplies, over all shifts.

    Args:
        axes: of height and width.
    """
    return sum(_size(cell.rows) * _size(cell.columns) for cell in _cells(*axes))


def product_cost(rows: int, side: int, *, share: float = 1.0) -> float:
    """Of X^T X for X (rows, side): small sides are read more often than they are multiplied.

    Args:
        rows: that are summed over.
        side: of the product.
        share: of the product that is computed.
    """
    return rows * (share * side**2 + 10.0 * side + 80.0)


def _size(segment: _Segment) -> int:
    return segment.stop - segment.start


@lru_cache(maxsize=256)
def _cells(rows: Axis, columns: Axis) -> tuple[_Cell, ...]:
    """Every cell of every shift that is not the mirror image of another."""
    found = []
    for down, right in itertools.product(range(rows.taps), range(1 - columns.taps, columns.taps)):
        if (down, right) < (0, 0):
            continue
        pairs = itertools.product(_segments(rows, down), _segments(columns, right))
        found += [_Cell(row, column, down, right) for row, column in pairs]
    return tuple(found)


def _segments(axis: Axis, shift: int) -> list[_Segment]:
    """The axis cut wherever a pair (tap, tap + shift) begins or ends to count."""
    counted: dict[int, tuple[int, int]] = {}
    distance = shift * axis.dilation
    for tap in range(max(0, -shift), min(axis.taps, axis.taps - shift)):
        window = tap * axis.dilation - axis.before
        start = max(window, 0, -distance)
        stop = min(window + axis.outputs, axis.length, axis.length - distance)
        if start < stop:
            counted[tap] = (start, stop)
    cuts = sorted({position for interval in counted.values() for position in interval})
    segments = []
    for start, stop in itertools.pairwise(cuts):
        taps = [tap for tap, (low, high) in counted.items() if low <= start and stop <= high]
        if taps:
            segments.append(_Segment(start, stop, tuple(taps)))
    return segments
