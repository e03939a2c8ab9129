"""Products of an image's shifted copies: what the patches of a convolution have in common.

At stride 1 the product of two taps, summed over the positions of the output,

    A[t, t'] = sum over x of X[x + t] X[x + t']^T,

depends on t' - t alone, up to the positions at the border that one pair of taps meets and another
does not. So each shift is multiplied once: where a pair of taps begins or ends to count, the image
is cut, every cell is multiplied by its shifted self, and A[t, t'] is the sum of the cells that it
counts. A 3 x 3 kernel that keeps the size needs 13 products of the whole image instead of 81, and
16 thin ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from anybatch.kfac.products import is_served
from anybatch.kfac.shifted_cells import Axis, Cell, image_cells, largest_cells

__all__ = [
    "CALL_COST",
    "COPY_COST",
    "add_autocorrelation",
    "autocorrelation_cost",
    "autocorrelation_positions",
    "product_cost",
]

_BUFFER_BYTES, _STAGE_BYTES = 2**24, 2**21  # so that malloc keeps the pages, and the cache them
_CONVOLVED_BYTES = 2**23
_THIN, _FEWEST_CHANNELS, _FEWEST_POSITIONS = 64, 16, 32
CALL_COST, COPY_COST = 3e6, 25.0
"""Of one call and of one moved number, in multiply-adds of a large product (measured on a CPU)."""

_MATRIX_COST = 2e5  # of one more small product in a call


def add_autocorrelation(total: Tensor, images: Tensor, axes: tuple[Axis, Axis]) -> None:
    """A[t, t'] += sum over examples and outputs x of X[x + t] X[x + t']^T at stride 1, in place.

    Args:
        total: (groups, channels / groups, taps, channels / groups, taps), float32 or float64,
            symmetric to the last bit, and so afterwards; taps = all of the kernel, row by row.
        images: (n, channels, height, width), in any layout.
        axes: of height and width, stride 1.

    Cost:
        About channels^2 / groups multiply-adds for each position and each of the
        ((2 k_h - 1) (2 k_w - 1) + 1) / 2 shifts; a buffer of 16 MB or one example.

    Example:
        >>> axis = Axis(length=3, taps=2, stride=1, dilation=1, before=0, after=0)
        >>> one = Axis(length=1, taps=1, stride=1, dilation=1, before=0, after=0)
        >>> signal = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
        >>> total = torch.zeros(1, 1, 2, 1, 2)
        >>> add_autocorrelation(total, signal, (one, axis))
        >>> total.squeeze()
        tensor([[ 5.,  8.],
                [ 8., 13.]])
    """
    groups, channels = total.shape[:2]
    cells = image_cells(*axes)
    large = channels >= _FEWEST_CHANNELS and axes[0].length * axes[1].length >= _FEWEST_POSITIONS
    if large and is_served(total):
        sums = _sums_by_convolution(images, axes, groups, total.dtype)
    else:
        sums = _sums_by_cells(images, axes, groups, total.dtype)
    blocks: dict[tuple[int, int], Tensor] = {}
    for cell, product in zip(cells, sums, strict=True):
        if not cell.is_used:
            continue
        if cell.down == cell.right == 0:
            product = (product + product.mT) / 2
        for row, column in itertools.product(cell.rows.taps, cell.columns.taps):
            tap = row * axes[1].taps + column
            pair = (tap, tap + cell.down * axes[1].taps + cell.right)
            blocks[pair] = blocks[pair] + product if pair in blocks else product
    for tap in range(total.shape[2]):  # a strip at a time: to the total in one piece
        strip = total.new_zeros(groups, channels, channels, total.shape[4])
        for other in range(total.shape[4]):
            if (tap, other) in blocks:
                strip[..., other] = blocks[tap, other]
            elif (other, tap) in blocks:
                strip[..., other] = blocks[other, tap].mT
        total[:, :, tap] += strip


def _sums_by_cells(
    images: Tensor, axes: tuple[Axis, Axis], groups: int, dtype: torch.dtype
) -> list[Tensor]:
    """Of each cell the product of the images with their shifted selves; unused ones are empty."""
    dilations = (axes[0].dilation, axes[1].dilation)
    sums: list[Tensor] = []
    for part in _position_major(images, dtype):
        products = [
            _product(part, cell, dilations, groups) if cell.is_used else part.new_empty(0)
            for cell in image_cells(*axes)
        ]
        sums = [a.add_(b) for a, b in zip(sums, products, strict=True)] if sums else products
    return sums


def _sums_by_convolution(
    images: Tensor, axes: tuple[Axis, Axis], groups: int, dtype: torch.dtype
) -> list[Tensor]:
    """The same, where oneDNN multiplies: all shifts of the whole image in one call.

    That is the gradient of a convolution's weights when the image stands for its input and for
    the gradient of its output. The largest cell of a shift is then what its others leave, so it is
    rounded like the whole.
    """
    dilations, channels = (axes[0].dilation, axes[1].dilation), images.shape[1]
    cells, largest = image_cells(*axes), largest_cells(*axes)
    thin = [number for number in range(len(cells)) if number not in largest.values()]
    down, right = axes[0].taps - 1, axes[1].taps - 1
    size = (channels, channels // groups, down + 1, 2 * right + 1)
    whole = images.new_zeros(size, dtype=dtype)
    sums = [whole.new_empty(0)] * len(cells)
    examples = max(1, _CONVOLVED_BYTES // (4 * max(1, images[:1].numel())))
    for number, part in enumerate(torch.split(images, examples)):
        part = part.to(dtype, memory_format=torch.channels_last)
        below = functional.pad(part, (0, 0, 0, down * dilations[0]))
        whole += conv2d_weight(  # type: ignore[no-untyped-call]
            below, size, part, padding=(0, right * dilations[1]), dilation=dilations, groups=groups
        )
        positions = part.permute(2, 3, 0, 1)
        for index in thin:
            product = _product(positions, cells[index], dilations, groups)
            sums[index] = sums[index].add_(product) if number else product
    by_shift = whole.view(groups, -1, *size[1:])
    for (row, column), index in largest.items():
        rest = by_shift[..., row, column + right].clone()
        for other in thin:
            if (cells[other].down, cells[other].right) == (row, column):
                rest -= sums[other]
        sums[index] = rest
    return sums


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


def _product(images: Tensor, cell: Cell, dilations: tuple[int, int], groups: int) -> Tensor:
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
    """Multiply-adds of a large product that take as long as `add_autocorrelation` of one group.

    Args:
        axes: of height and width.
        channels: of the group.
        examples: in the batch.
    """
    height, width = axes[0].length, axes[1].length
    moved = COPY_COST * examples * channels * height * width
    moved += COPY_COST * (channels * axes[0].taps * axes[1].taps) ** 2
    cells = [cell for cell in image_cells(*axes) if cell.is_used]
    positions = autocorrelation_positions(axes)
    heights = sum(cell.rows.stop - cell.rows.start for cell in cells)
    summed = heights * (4.0 * channels**2 + _MATRIX_COST)
    slices = math.ceil(4 * examples * channels * height * width / _BUFFER_BYTES)
    calls = CALL_COST * len(cells) * slices
    return moved + examples * product_cost(positions, channels) + slices * summed + calls


def autocorrelation_positions(axes: tuple[Axis, Axis]) -> int:
    """Positions of one example that `add_autocorrelation` multiplies, over all shifts.

    Args:
        axes: of height and width.
    """
    return sum(cell.size for cell in image_cells(*axes) if cell.is_used)


def product_cost(rows: int, side: int, *, share: float = 1.0) -> float:
    """Of X^T X for X (rows, side): small sides are read more often than they are multiplied.

    Args:
        rows: that are summed over.
        side: of the product.
        share: of the product that is computed.
    """
    return rows * (share * side**2 + 10.0 * side + 80.0)
