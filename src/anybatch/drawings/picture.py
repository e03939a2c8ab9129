"""What a picture of a measurement is drawn from, and what every kind of picture says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from anybatch.drawing import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Drawing", "Measured"]


class Measured(NamedTuple):
    """A measurement as plain values.

    Attributes:
        samples: columns by name.
        fitted: columns of a curve by name.
        spans: estimates by name.
        settings: what it was taken with.
    """

    samples: Mapping[str, Sequence[float]]
    fitted: Mapping[str, Sequence[float]]
    spans: Mapping[str, Span]
    settings: Mapping[str, Any]


class Drawing(NamedTuple):
    """How a kind of measurement is drawn.

    Attributes:
        title: of the figure.
        panels: each draws one Axes, which stand below each other; the first one alone is drawn by
            `Measurement.plot`.
        caption: what the figure shows, in sentences, with its numbers.
    """

    title: str
    panels: tuple[Callable[[Axes, Measured], object], ...]
    caption: Callable[[Measured], str]
