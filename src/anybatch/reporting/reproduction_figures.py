"""Pictures of reproductions: dots of arms, grids, and paths along the updates, as SVG files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, MUTED, TEXT, Line, draw_lines, finish_axes, is_wide
from anybatch.reporting.figures import INCH, Picture, file_bytes, own_style
from anybatch.studies.reproductions.grids import grid_values
from anybatch.studies.reproductions.parts import Experiment
from anybatch.studies.reproductions.results import ArmResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["reproduction_svg"]

_ROW, _PANEL = 0.3, 3.6  # inches


def reproduction_svg(results: Results, experiment: Experiment, title: str) -> bytes:
    """The picture of a reproduction as an SVG file.

    Args:
        results: found so far.
        experiment: says what is drawn.
        title: of the picture.
    """
    with own_style():
        if experiment.picture == "paths":
            figure = _paths(results, experiment.shown[0])
        elif experiment.picture == "grid":
            figure = _grids(results, experiment)
        else:
            figure = _dots(results, experiment.shown)
        figure.set_layout_engine("constrained")
    return file_bytes(Picture(name=results.name, title=title, caption="", figure=figure), "svg")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=INCH)


def _label(quantity: str) -> str:
    return quantity.replace("_", " ")


# --- dots ----------------------------------------------------------------------------------------


def _dots(results: Results, quantities: Sequence[str]) -> Figure:
    """A panel for each quantity, a row for each arm: a dot for each seed, a bar at the mean."""
    arms = list(results.arms.values())
    figure = _figure(1.6 + _PANEL * len(quantities), 0.9 + _ROW * len(arms))
    panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    for ax, quantity in zip(panels, quantities, strict=True):
        for row, arm in enumerate(arms):
            values = list(arm.values(quantity).values())
            ax.plot(values, [row] * len(values), "o", color=COLOURS[0], markersize=4, alpha=0.7)
            if values:
                mean = statistics.fmean(values)
                ax.plot([mean, mean], [row - 0.3, row + 0.3], color=COLOURS[1], linewidth=1.6)
        everything = [v for arm in arms for v in arm.values(quantity).values()]
        if is_wide(everything):
            ax.set_xscale("log")
        finish_axes(ax, _label(quantity), "")
        ax.set_ylim(len(arms) - 0.5, -0.5)
    panels[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    return figure


# --- grids ---------------------------------------------------------------------------------------


def _grids(results: Results, experiment: Experiment) -> Figure:
    """Maps of two settings, or where each grid has one row, a curve for each."""
    groups = list(dict.fromkeys(arm.group for arm in results.arms.values()))
    quantity = experiment.shown[0]
    if all(len({arm.place[0] for arm in results.group(group)}) == 1 for group in groups):
        return _curves(results, groups, quantity, experiment.axes[1])
    figure = _figure(0.8 + _PANEL * len(groups), 3.6)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for ax, group in zip(panels, groups, strict=True):
        _map(ax, results.group(group), quantity, experiment.axes)
        ax.set_title(f"{group}: {_label(quantity)}", color=TEXT, fontsize=10)
    return figure


def _map(ax: Axes, arms: Sequence[ArmResult], quantity: str, axes: tuple[str, str]) -> None:
    values = grid_values(arms, quantity)
    rows, columns = (sorted({place[axis] for place in values}) for axis in (0, 1))
    table = [[values[row, column] for column in columns] for row in rows]
    known = [value for value in values.values() if value > 0.0]
    low = sorted(known)[len(known) // 4] if known else 0.0  # colours are for the better part
    ax.imshow(table, cmap="Blues", vmin=low, origin="lower", aspect="auto")
    best = max(values, key=lambda place: values[place])
    for (row, column), value in values.items():
        x, y = columns.index(column), rows.index(row)
        ax.text(x, y, f"{100 * value:.1f}", ha="center", va="center", fontsize=8,
                fontweight="bold" if (row, column) == best else "normal",
                color="white" if known and value > (low + max(known)) / 2 else TEXT)  # fmt: skip
    ax.set_xticks(range(len(columns)), [f"{2.0**c:.3g}" for c in columns])
    ax.set_yticks(range(len(rows)), [f"{2.0**r:.3g}" for r in rows])
    ax.set_xlabel(axes[1], color=TEXT)
    ax.set_ylabel(axes[0], color=TEXT)


def _curves(results: Results, groups: Sequence[str], quantity: str, x_label: str) -> Figure:
    figure = _figure(6.4, 3.6)
    ax = figure.add_subplot()
    lines = []
    for number, group in enumerate(groups):
        values = grid_values(results.group(group), quantity)
        points = sorted((place[1], value) for place, value in values.items() if value > 0.0)
        x, y = [2.0**place for place, _ in points], [value for _, value in points]
        lines.append(Line(label=group, x=x, y=y, colour=number, style="dots"))
    _draw(ax, lines, x_label, _label(quantity))
    ax.set_xscale("log", base=2)
    return figure


# --- paths ---------------------------------------------------------------------------------------


def _paths(results: Results, quantity: str) -> Figure:
    """The mean over seeds against updates, a line for each arm."""
    figure = _figure(6.4, 3.6)
    ax = figure.add_subplot()
    lines = []
    for number, arm in enumerate(results.arms.values()):
        tracks = [t.series for t in arm.trials if quantity in t.series]
        if tracks:
            length = min(len(track[quantity]) for track in tracks)
            y = [statistics.fmean(track[quantity][i] for track in tracks) for i in range(length)]
            x = list(tracks[0]["update"][:length])
            lines.append(Line(label=arm.name, x=x, y=y, colour=number))
    _draw(ax, lines, "updates", _label(quantity))
    if quantity == "share_of_edge":
        ax.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    return figure


def _draw(ax: Axes, lines: Sequence[Line], x_label: str, y_label: str) -> None:
    draw_lines(ax, lines, x_label=x_label, y_label=y_label, log=False)
    if lines:
        ax.legend(frameon=False, fontsize=8)
