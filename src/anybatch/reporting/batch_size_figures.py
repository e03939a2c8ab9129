"""The picture of a study of batch sizes: updates, examples and seconds to the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from anybatch.drawing import COLOURS, MUTED, finish_axes
from anybatch.reporting.figures import (
    INCH,
    Picture,
    frame_of,
    lay_out,
    own_style,
    points_of,
)
from anybatch.reporting.summary import Table, number_text
from anybatch.studies.batch_size_table import BatchSizeRow, BatchSizeStudy, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Hyperbola", "batch_size_picture", "batch_size_rows"]

_SIZE = (7.0, 7.6)
_POINTS = 60


class Hyperbola(NamedTuple):
    """Updates S to the target against the batch size B: S = S_min (1 + (B_crit / B)^p)^(1/p).

    Attributes:
        minimum_updates: S_min, of an endless batch.
        critical_batch_size: B_crit; the fewest examples are S_min B_crit.
        elbow: p, 1 for the published curve and more for a sharper turn.

    Reference:
        McCandlish et al., An empirical model of large-batch training, 2018.

    Example:
        >>> Hyperbola(100.0, 200.0).updates(200.0)
        200.0
    """

    minimum_updates: float
    critical_batch_size: float
    elbow: float = 1.0

    def updates(self, batch_size: float) -> float:
        """Updates to the target with this batch size."""
        ratio = self.critical_batch_size / batch_size
        share: float = (1.0 + ratio**self.elbow) ** (1.0 / self.elbow)
        return self.minimum_updates * share


def batch_size_picture(
    study: BatchSizeStudy, name: str, *, fitted: Hyperbola | None = None
) -> Picture | None:
    """The picture of a study: three panels on a common log axis of batch sizes.

    Medians with ranges; a triangle at the upper edge where a run missed the target, grey where
    half of them did and there is no median. The dashed line is perfect scaling from the smallest
    batch size that has a median: half the updates at twice the batch size, as many examples.

    Args:
        study: to draw.
        name: of the picture, for files and ids.
        fitted: a curve to draw with it.

    Returns:
        None where no run has ended.
    """
    rows = [row for row in study.table() if row.updates is not None]
    if not rows:
        return None
    from matplotlib.figure import Figure

    with own_style():
        figure = Figure(figsize=_SIZE, dpi=INCH, layout="constrained")
        axes = figure.subplots(3, 1, sharex=True)
        _batch_axis(axes[-1], [row.batch_size for row in rows])
        found = _draw(axes[0], rows, "updates", COLOURS[0], "updates")
        _draw(axes[1], rows, "examples", COLOURS[0], "examples")
        _draw(axes[2], rows, "seconds", COLOURS[0], "seconds of training")
        if any(row.computing_seconds for row in rows):
            _draw(axes[2], rows, "computing_seconds", COLOURS[1], "seconds of training", open_=True)
            axes[2].legend(frameon=False, fontsize=9)
        _draw_perfect_scaling(axes, rows)
        if fitted is not None:
            _draw_fitted(axes, rows, fitted)
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(frameon=False, fontsize=9)
        for ax in axes[:-1]:
            ax.set_xlabel("")
        lay_out(figure)
        frame = frame_of(figure, axes[0], "batch size", found)
    title = f"Batch size against what {study.target} takes"
    return Picture(name=name, title=title, caption=_caption(rows), figure=figure, frames=(frame,))


def _batch_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """A log axis with a tick at each batch size."""
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)


def _draw(
    ax: Axes,
    rows: Sequence[BatchSizeRow],
    quantity: str,
    colour: str,
    label: str,
    *,
    open_: bool = False,
) -> list[dict[str, Any]]:
    """Medians, ranges and what is missing, of one quantity; its points for the pointer."""
    spreads: list[tuple[int, Spread]] = [
        (row.batch_size, spread) for row in rows if (spread := getattr(row, quantity)) is not None
    ]
    known = [(size, spread) for size, spread in spreads if math.isfinite(spread.median)]
    name = "without loading" if open_ else "with loading" if quantity == "seconds" else ""
    ax.plot([size for size, _ in known], [spread.median for _, spread in known], "o-",
            color=colour, markersize=5, linewidth=1.4, label=name or None,
            markerfacecolor="none" if open_ else colour)  # fmt: skip
    if not open_:
        _draw_ranges(ax, spreads, colour)
    finish_axes(ax, "batch size", label)
    return [points_of(quantity, 0, [s for s, _ in known], [v.median for _, v in known])]


def _draw_ranges(ax: Axes, spreads: Sequence[tuple[int, Spread]], colour: str) -> None:
    """From the lowest to the highest; through the frame, to a triangle, where a run missed."""
    for size, spread in spreads:
        ends = [end for end in (spread.lowest, spread.highest) if math.isfinite(end)]
        if ends and ends[0] < spread.highest:
            ax.plot([size] * len(ends), ends, "_-", color=colour, linewidth=1.2, markersize=7)
    _scale(ax)
    top = ax.get_ylim()[1]
    for size, spread in spreads:
        if math.isinf(spread.highest):
            if math.isfinite(spread.lowest):
                ax.plot([size] * 2, [spread.lowest, top], color=colour, linewidth=1.2)
            ax.plot([size], [0.96], "^", color=colour if math.isfinite(spread.median) else MUTED,
                    markersize=6, transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set_ylim(top=top)


def _scale(ax: Axes) -> None:
    """Logarithmic, over at least half a decade, so that a flat curve looks flat."""
    from matplotlib.ticker import LogLocator

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_minor_formatter("")
    ax.autoscale(axis="y")
    ax.margins(y=0.12)
    low, high = ax.get_ylim()
    wide = math.log10(high / low) if low > 0 else 0.0
    if 0.0 < wide < 0.5:
        factor = 10.0 ** ((0.5 - wide) / 2)
        ax.set_ylim(low / factor, high * factor)


def _draw_perfect_scaling(axes: Sequence[Axes], rows: Sequence[BatchSizeRow]) -> None:
    """From the smallest batch size with a median on; the frames stay as they are."""
    known = [(r.batch_size, r.updates.median, r.examples.median) for r in rows
             if r.updates and r.examples and math.isfinite(r.updates.median)]  # fmt: skip
    if len(known) < 2:
        return
    first, updates, examples = known[0]
    sizes = [first, max(size for size, _, _ in known)]
    lines = [[updates * first / size for size in sizes], [examples] * 2]
    for ax, line, label in zip(axes, lines, ("perfect scaling", None), strict=False):
        limits = ax.get_ylim()
        ax.plot(sizes, line, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label=label)
        ax.set_ylim(min(limits[0], 0.8 * min(line)), limits[1])


def _draw_fitted(axes: Sequence[Axes], rows: Sequence[BatchSizeRow], fitted: Hyperbola) -> None:
    low, high = (math.log(pick(row.batch_size for row in rows)) for pick in (min, max))
    sizes = [math.exp(low + (high - low) * i / (_POINTS - 1)) for i in range(_POINTS)]
    updates = [fitted.updates(size) for size in sizes]
    examples = [size * count for size, count in zip(sizes, updates, strict=True)]
    for ax, line, label in zip(axes, (updates, examples), ("fitted", None), strict=False):
        limits = ax.get_ylim()
        ax.plot(sizes, line, color=COLOURS[2], linewidth=1.2, label=label)
        ax.set_ylim(min(limits[0], 0.8 * min(line)), max(limits[1], 1.25 * max(line)))


def _caption(rows: Sequence[BatchSizeRow]) -> str:
    """The medians in words."""
    told = [
        f"batch {row.batch_size:,}: {number_text(row.updates.median)} updates, "
        f"{number_text(row.examples.median)} examples, {number_text(row.seconds.median)} s"
        for row in rows
        if row.updates and row.examples and row.seconds and math.isfinite(row.updates.median)
    ]
    missed = [
        f"{row.batch_size:,}" for row in rows if row.updates and math.isinf(row.updates.highest)
    ]
    sentences = [f"Medians over runs, with their ranges; {'; '.join(told)}." if told else ""]
    if missed:
        sentences.append(
            f"Runs that missed the target within the cap, at batch size {', '.join(missed)}, are "
            "triangles at the upper edge: grey without a median, as half of the runs missed it."
        )
    if len(told) > 1:
        sentences.append("The dashed lines are perfect scaling from the smallest batch size.")
    return " ".join(filter(None, sentences))


def batch_size_rows(study: BatchSizeStudy) -> Table:
    """The table of a study as a report shows it."""
    head = ("batch size", "lr", "reached", "diverged at", "updates", "examples", "seconds")
    rows = tuple(
        (
            f"{row.batch_size:,}",
            number_text(row.lr),
            f"{row.reached} of {row.ended}",
            ", ".join(map(str, row.diverged_at)) or "-",
            *map(_spread_text, (row.updates, row.examples, row.seconds, row.computing_seconds)),
        )
        for row in study.table()
    )
    caption = (
        f"Median and range over runs, to {study.target} on {study.recipe.stopping.target_on} "
        f"within {study.recipe.duration}; a run that missed it counts as never."
    )
    notes = " ".join(f"{note[:1].upper()}{note[1:]}." for note in study.notes())
    return Table(head=(*head, "without loading"), rows=rows, caption=f"{caption} {notes}".strip())


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    median, low, high = (
        number_text(float(f"{value:.4g}")) if math.isfinite(value) else "never" for value in spread
    )
    return median if low == high else f"{median} ({low} to {high})"
