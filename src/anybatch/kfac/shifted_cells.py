"""Cells: an image cut wherever a pair of a kernel's taps begins or ends to count a position.

A pair of taps (t, t + shift) meets the image at a position and at its shifted one, both within the
image, for every position of the output. So at stride 1 all pairs of one shift count the same
positions, but for those near the border. Each shift's positions are cut into cells that a pair
counts as a whole or not at all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Axis", "Cell", "image_cells", "largest_cells"]


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


class Segment(NamedTuple):
    """Positions start ... stop that the pairs (tap, tap + shift) count, all of them or none."""

    start: int
    stop: int
    taps: tuple[int, ...]


class Cell(NamedTuple):
    """A rectangle of positions, and the shift, in taps, to those that it is multiplied by."""

    rows: Segment
    columns: Segment
    down: int
    right: int

    @property
    def is_used(self) -> bool:
        """Whether any pair of taps counts it."""
        return bool(self.rows.taps and self.columns.taps)

    @property
    def size(self) -> int:
        """Positions."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


@lru_cache(maxsize=256)
def image_cells(rows: Axis, columns: Axis) -> tuple[Cell, ...]:
    """Every cell of every shift that is not the mirror image of another.

    Those of a shift cover all positions at which the image meets its shifted self.
    """
    found = []
    for down, right in itertools.product(range(rows.taps), range(1 - columns.taps, columns.taps)):
        if (down, right) < (0, 0):
            continue
        pairs = itertools.product(_segments(rows, down), _segments(columns, right))
        found += [Cell(row, column, down, right) for row, column in pairs]
    return tuple(found)


@lru_cache(maxsize=256)
def largest_cells(rows: Axis, columns: Axis) -> dict[tuple[int, int], int]:
    """Of each shift the index of its largest cell."""
    cells = image_cells(rows, columns)
    largest: dict[tuple[int, int], int] = {}
    for index, cell in enumerate(cells):
        shift = (cell.down, cell.right)
        if shift not in largest or cell.size > cells[largest[shift]].size:
            largest[shift] = index
    return largest


def _segments(axis: Axis, shift: int) -> list[Segment]:
    """The axis cut wherever a pair (tap, tap + shift) begins or ends to count."""
    counted: dict[int, tuple[int, int]] = {}
    distance = shift * axis.dilation
    first, last = max(0, -distance), min(axis.length, axis.length - distance)
    if first >= last:
        return []
    for tap in range(max(0, -shift), min(axis.taps, axis.taps - shift)):
        window = tap * axis.dilation - axis.before
        start, stop = max(window, first), min(window + axis.outputs, last)
        if start < stop:
            counted[tap] = (start, stop)
    cuts = sorted({first, last, *itertools.chain.from_iterable(counted.values())})
    return [
        Segment(start, stop, tuple(t for t, (a, b) in counted.items() if a <= start and stop <= b))
        for start, stop in itertools.pairwise(cuts)
    ]
