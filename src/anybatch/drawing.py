"""Drawing: curves and estimates on a matplotlib Axes, from plain values.

Nothing is imported for it but matplotlib, and that only to make an Axes where none is given.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "GRID",
    "MUTED",
    "REGIONS",
    "TEXT",
    "Line",
    "Span",
    "axes_or_new",
    "draw_estimates",
    "draw_lines",
    "finish_axes",
    "html_table",
    "is_wide",
    "mark_outside",
    "robust_limits",
]

COLOURS = ("#2368a8", "#c2561a", "#2f7d4f", "#8450a0", "#97700c", "#0f7f86")
TEXT, MUTED, GRID = "#20262e", "#66707c", "#d8dde3"
REGIONS = {"too small": "#9aa5b1", "learns": "#2f9d5b", "too large": "#d1493b"}
"""Colours of the regions of an lr-range picture, by what the region is called."""

_RATIO_FOR_LOG = 20.0
_FLATTENED = 5.0
_ROOM_ABOVE = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve of one quantity.

    Attributes:
        label: in the legend; empty for none.
        x: one value a point.
        y: one value a point; those that are not finite are gaps, marked below the axes.
        colour: number of the colour, which repeat after six.
        style: a plain line, a dashed one, or a line with a dot on each point.
        weight: width in points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    style: Literal["line", "dashed", "dots"] = "line"
    weight: float = 1.4


class Span(NamedTuple):
    """A value with its interval; None where it is not known."""

    value: float | None
    low: float = -math.inf
    high: float = math.inf


def axes_or_new(ax: Axes | None) -> Axes:
    """The Axes given, or that of a new figure, which a notebook shows."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def is_wide(values: Sequence[float]) -> bool:
    """Whether a log axis helps: all positive, and the largest over 20 times the smallest.

    Example:
        >>> is_wide([2.0, 0.05]), is_wide([2.0, 0.5]), is_wide([2.0, 0.0])
        (True, False, False)
    """
    sound = [value for value in values if math.isfinite(value)]
    return bool(sound) and min(sound) > 0.0 and max(sound) / min(sound) > _RATIO_FOR_LOG


def robust_limits(
    values: Sequence[float], *, reference: float | None = None, log: bool = False
) -> tuple[float, float] | None:
    """Limits of an axis that few huge values do not flatten; None where there is nothing to show.

    All finite values are inside unless the highest lies more than 5 times as far above the lowest
    as the reference does; then the axis ends 1.5 times as far above. On a log axis distances are
    those of logarithms.

    Args:
        values: what is drawn.
        reference: a value that must be well inside; None takes the 90 % quantile.
        log: whether the axis is logarithmic; all values are then positive.

    Example:
        >>> low, high = robust_limits([1.0, 2.0] * 9 + [1e9])
        >>> low < 1.0, 2.0 < high < 3.0
        (True, True)
        >>> robust_limits([math.nan]) is None
        True
    """
    sound = sorted(v for v in values if math.isfinite(v) and (v > 0.0 or not log))
    if not sound:
        return None
    if log:
        sound = [math.log(value) for value in sound]
    inner = sound[round(0.9 * (len(sound) - 1))]
    if reference is not None and math.isfinite(reference) and (reference > 0.0 or not log):
        inner = math.log(reference) if log else reference
    low, high = sound[0], sound[-1]
    if high - low > _FLATTENED * (inner - low) > 0.0:
        high = low + _ROOM_ABOVE * (inner - low)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    ends = low - margin, high + margin
    return (math.exp(ends[0]), math.exp(ends[1])) if log else ends


def draw_lines(
    ax: Axes, lines: Sequence[Line], *, x_label: str, y_label: str, log: bool | None = None
) -> int:
    """Draw curves; a point above the frame becomes a triangle on its upper edge.

    Args:
        ax: to draw on.
        lines: what.
        x_label: of the axis.
        y_label: of the axis.
        log: whether the y axis is logarithmic; None decides by `is_wide`.

    Returns:
        How many points lie above the frame.
    """
    values = [value for line in lines for value in line.y]
    log = is_wide(values) if log is None else log
    limits = robust_limits(values, log=log)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    if limits is not None:
        ax.set_ylim(limits)
    clipped = 0
    for line in lines:
        colour = COLOURS[line.colour % len(COLOURS)]
        dots = line.style == "dots" or sum(map(math.isfinite, line.y)) == 1
        ax.plot(
            line.x,
            [value if math.isfinite(value) else math.nan for value in line.y],
            color=colour,
            linewidth=line.weight,
            linestyle=(0, (4, 2)) if line.style == "dashed" else "-",
            marker="o" if dots else "",
            markersize=3.5,
            label=line.label or None,
        )
        clipped += mark_outside(ax, line.x, line.y, limits, colour)
    finish_axes(ax, x_label, y_label)
    return clipped


def mark_outside(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    limits: tuple[float, float] | None,
    colour: str,
) -> int:
    """Crosses where there is no number, triangles where one is above; returns how many above.

    Args:
        ax: to draw on.
        x: one value a point.
        y: one value a point.
        limits: of the y axis.
        colour: of the marks.
    """
    gaps = [a for a, b in zip(x, y, strict=True) if not math.isfinite(b)]
    top = limits[1] if limits else math.inf
    above = [a for a, b in zip(x, y, strict=True) if math.isfinite(b) and b > top]
    for places, height, marker in ((gaps, 0.03, "x"), (above, 0.97, "^")):
        if places:
            ax.plot(
                places,
                [height] * len(places),
                marker,
                color=colour,
                markersize=4,
                transform=ax.get_xaxis_transform(),
            )
    return len(above)


def draw_estimates(ax: Axes, spans: Mapping[str, Span]) -> None:
    """Draw each known estimate as a dot with its interval, one row each, from the top."""
    known = {name: span for name, span in spans.items() if span.value is not None}
    for row, span in enumerate(known.values()):
        ends = [end for end in (span.low, span.high) if math.isfinite(end)]
        if len(ends) == 2:
            ax.plot(ends, [row, row], color=COLOURS[0], linewidth=2.0)
        ax.plot([span.value or 0.0], [row], "o", color=COLOURS[0], markersize=5)
    ax.set_yticks(range(len(known)), list(known))
    ax.set_ylim(len(known) - 0.5, -0.5)
    finish_axes(ax, "", "")


def finish_axes(ax: Axes, x_label: str, y_label: str) -> None:
    """Two quiet spines, a light grid, small labels."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.grid(visible=True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", color=MUTED, labelcolor=TEXT, length=3)
    ax.set_xlabel(x_label, color=TEXT, parse_math=False)  # a metric's name is no formula
    ax.set_ylabel(y_label, color=TEXT, parse_math=False)


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """A small table for a notebook, everything escaped.

    Example:
        >>> html_table("a < b", {"n": "3"})
        '<table><caption>a &lt; b</caption><tr><th>n</th><td>3</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
