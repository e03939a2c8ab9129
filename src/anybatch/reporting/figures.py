"""Pictures: matplotlib figures of panels, as SVG for a page or as files.

A figure is drawn once in the colours of daylight; for a page its colours become CSS variables and
its text takes the page's font, so that dark mode, paper and phones are matters of the stylesheet.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anybatch.drawing import (
    COLOURS,
    GRID,
    MUTED,
    REGIONS,
    TEXT,
    Line,
    draw_lines,
)
from anybatch.reporting.curves import AxisName, Panel, series_caption, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INCH",
    "SIZE",
    "Picture",
    "colour_variables",
    "curve_picture",
    "file_bytes",
    "frame_of",
    "inline_svg",
    "lay_out",
    "own_style",
    "points_of",
]

_X_LABELS = {"updates": "updates", "examples": "examples seen", "seconds": "seconds of training"}
SIZE = (5.6, 3.2)
INCH = 72.0  # points, the unit of matplotlib's SVG


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A figure with its words and the numbers under the pointer.

    Attributes:
        name: for files and ids.
        title: of the picture.
        caption: its numbers in words.
        figure: drawn.
        frames: boxes and scales of its axes, and the points in each, plain values.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    frames: tuple[dict[str, Any], ...] = ()


def colour_variables() -> dict[str, str]:
    """The CSS variable for each colour that figures are drawn in."""
    series = {colour: f"--series-{number}" for number, colour in enumerate(COLOURS)}
    regions = {c: f"--region-{name.replace(' ', '-')}" for name, c in REGIONS.items()}
    return series | regions | {TEXT: "--text", MUTED: "--muted", GRID: "--grid"}


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults with ours, whatever style the user has set; missing glyphs are fine."""
    import matplotlib.style

    own = {
        "svg.fonttype": "none",
        "svg.hashsalt": "anybatch",
        "font.size": 10.0,
        "axes.formatter.useoffset": False,
        "figure.facecolor": "white",
        "text.color": TEXT,  # of legends too: a colour that the page knows
    }
    with warnings.catch_warnings(), matplotlib.style.context(["default", own]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def curve_picture(
    panel: Panel, axis: AxisName, *, end: float, legend: Sequence[tuple[int, str]] = ()
) -> Picture:
    """The picture of a panel against one axis.

    Args:
        panel: what to draw.
        axis: what to draw it against.
        end: of the axis, the same for all pictures of a page.
        legend: (number of the colour, label) of each entry of a legend in the picture.
    """
    from matplotlib.figure import Figure

    with own_style():
        figure = Figure(figsize=SIZE, dpi=INCH)
        ax = figure.add_subplot()
        weight = 1.6 if len(panel.series) <= 4 else 1.0
        lines = [
            Line(label=s.label, x=s.along(axis), y=s.values, colour=s.colour, style=s.style,
                 weight=weight)
            for s in panel.series
        ]  # fmt: skip
        log = None if panel.name.endswith(("loss", "norm", "damping")) else False
        above = draw_lines(ax, lines, x_label=_X_LABELS[axis], y_label=panel.y_label, log=log)
        if end > 0.0:
            ax.set_xlim(-0.02 * end, 1.02 * end)
        for mark in panel.marks:
            dashes = (0, (6, 3)) if mark.is_pilot else (0, (2, 2))
            ax.axvline(mark.along(axis), color=MUTED, linewidth=1.0, linestyle=dashes)
        if legend:
            grows = all(list(s.values) == sorted(s.values) for s in panel.series)
            _legend(ax, legend, place="upper left" if grows else "upper right")
        _make_room(figure, ax)
        frame = frame_of(figure, ax, axis, [
            points_of(s.label, s.colour, s.along(axis), s.values) for s in panel.series
        ])  # fmt: skip
    caption = series_caption(panel)
    if above:
        caption += f" {above} points lie above the frame (triangles)."
    return Picture(name=f"{panel.name}-{axis}", title=panel.title, caption=caption, figure=figure,
                   frames=(frame,))  # fmt: skip


def _make_room(figure: Figure, ax: Axes) -> None:
    """Margins for labels by their number of letters: a layout by measuring takes thrice as long."""
    width, height = (float(side) * INCH for side in figure.get_size_inches())
    low, high = ax.get_ylim()
    places = [place for place in ax.yaxis.get_majorticklocs() if low <= place <= high]
    ticks = ax.yaxis.get_major_formatter().format_ticks(places)
    left = 26.0 + 6.5 * max(map(len, ticks), default=0)
    figure.subplots_adjust(left=left / width, right=1 - 8 / width, top=1 - 8 / height,
                           bottom=36 / height)  # fmt: skip


def lay_out(figure: Figure) -> None:
    """Give labels their room, once: the same for the page's frames and its pictures."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


# --- numbers under the pointer -------------------------------------------------------------------


def frame_of(figure: Figure, ax: Axes, x_name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the axes lie in the picture, in its own units from the upper left, and their scales."""
    box = ax.get_position()
    width, height = (float(side) * INCH for side in figure.get_size_inches())
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    return {
        "box": [
            float(box.x0 * width),
            float((1 - box.y1) * height),
            float(box.x1 * width),
            float((1 - box.y0) * height),
        ],
        "x": {"name": x_name, "low": float(x0), "high": float(x1), "log": ax.get_xscale() == "log"},
        "y": {"low": float(y0), "high": float(y1), "log": ax.get_yscale() == "log"},
        "series": points,
    }


def points_of(label: str, colour: int, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """A curve for the box under the pointer, thinned where it is long, as plain values.

    Args:
        label: of the curve.
        colour: number of the colour; negative for a muted one.
        x: one value a point.
        y: one value a point.
    """
    kept = thinned(y)
    return {
        "label": label,
        "colour": f"--series-{colour % len(COLOURS)}" if colour >= 0 else "--muted",
        "x": [float(x[i]) for i in kept],
        "y": [float(y[i]) for i in kept],
    }


def _legend(
    ax: Axes, entries: Sequence[tuple[int, str]], *, place: Literal["upper left", "upper right"]
) -> None:
    """A line of each colour with its label, which is text and never a formula."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[colour % len(COLOURS)]) for colour, _ in entries]
    legend = ax.legend(handles, [""] * len(entries), frameon=False, fontsize=9, loc=place)
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
        text.set_color(TEXT)


# --- to bytes ------------------------------------------------------------------------------------


def file_bytes(picture: Picture, kind: Literal["png", "svg"]) -> bytes:
    """The picture as a file that stands alone, in daylight colours on white."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Title": picture.title, "Software": None}
    if kind == "svg":
        metadata = {"Title": picture.title, "Date": None, "Creator": None}
    with own_style():
        picture.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def inline_svg(picture: Picture) -> str:
    """The picture as an <svg> element for an HTML page.

    Its ids begin with the picture's name, so that several can stand on one page; nothing in it
    refers to another file; colours are CSS variables and text takes the page's font.
    """
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with own_style():
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    unwanted = r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>"
    text = re.sub(unwanted, "", text, flags=re.DOTALL)
    label = html.escape(f"{picture.title}. {picture.caption}")
    text = re.sub(
        r'<svg[^>]*viewBox="([-\d. ]+)"[^>]*>',
        lambda found: f'<svg viewBox="{found.group(1)}" role="img" aria-label="{label}">',
        text,
        count=1,
    )
    text = re.sub(r'\bid="', f'id="{picture.name}-', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{picture.name}-', text)
    text = re.sub(r"url\(#", f"url(#{picture.name}-", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    for colour, variable in colour_variables().items():
        text = text.replace(colour, f"var({variable})")
    return text
