"""The picture of a preview: lr, momentum, weight decay and batch size over updates and epochs."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anybatch.drawing import COLOURS, GRID, MUTED, TEXT
from anybatch.errors import InputError
from anybatch.preview import PreviewRow, outline
from anybatch.run import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "preview_figure", "write_preview_figure"]

FORMATS = ("png", "svg")
_PANELS = ("lr", "momentum", "weight_decay", "batch_size")
_MOST_POINTS = 4000  # more than a picture has pixels; corners are always among them


def write_preview_figure(rows: Sequence[PreviewRow], title: str, path: Path) -> None:
    """Draw a preview into a .png or .svg file.

    Raises:
        InputError: another ending, or a place that cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError("--out", "must end in .png or .svg", str(path))
    import matplotlib

    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}  # the same bytes every time
    with matplotlib.rc_context({"svg.hashsalt": "anybatch", "svg.fonttype": "none"}):
        figure = preview_figure(rows, title)
        write_atomically(
            path, lambda file: figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        )


def preview_figure(rows: Sequence[PreviewRow], title: str) -> Figure:
    """Four panels that share an axis of updates, with the epochs on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, color=TEXT)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    shown = _thinned(rows)
    for axes, name, colour in zip(panels, _PANELS, COLOURS, strict=False):
        values = [float(getattr(row, name)) for row in shown]
        axes.step([row.update for row in shown], values, where="mid", color=colour, linewidth=1.4)
        axes.set_ylabel(name.replace("_", " "), color=TEXT)
        if min(values) == max(values):
            axes.set_ylim(*_around(values[0]))
        else:
            axes.set_ylim(min(0.0, *values), max(values) * 1.06)
        _quiet(axes)
    panels[-1].set_xlabel("updates", color=TEXT)
    panels[0].set_xlim(0.5, len(rows) + 0.5)
    _put_epochs_on_top(panels[0], rows)
    return figure


def _thinned(rows: Sequence[PreviewRow]) -> list[PreviewRow]:
    """At most about 4,000 rows, those that show the shape included."""
    every = max(1, math.ceil(len(rows) / _MOST_POINTS))
    if every == 1:
        return list(rows)
    return sorted({*rows[::every], *outline(rows)})


def _around(value: float) -> tuple[float, float]:
    """Limits for a panel of one value."""
    return (0.0, 1.3 * value) if value > 0 else (-1.0, 1.0)


def _quiet(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _put_epochs_on_top(axes: Axes, rows: Sequence[PreviewRow]) -> None:
    """Ticks at the updates that reach round numbers of epochs; these need not be evenly spaced."""
    from matplotlib.ticker import MaxNLocator

    last = rows[-1].epoch
    numbers = [n for n in MaxNLocator(8).tick_values(0.0, last) if 0.0 <= n <= last]
    reached = [row.epoch for row in rows]
    places = [bisect.bisect_left(reached, number) + 1 if number else 0.5 for number in numbers]
    top = axes.secondary_xaxis("top")
    top.set_xticks(places, [f"{number:g}" for number in numbers])
    top.set_xlabel("epochs", color=TEXT)
    top.tick_params(colors=MUTED, labelsize=8)
    top.spines["top"].set_color(MUTED)
