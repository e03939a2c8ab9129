"""Picture of a plan: seconds to the target against batch size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from anybatch.drawing import COLOURS, MUTED, REGIONS, finish_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PlannedTimes", "draw_plan"]


class PlannedTimes(NamedTuple):
    """Seconds to the target by batch size, and the choices among them.

    Attributes:
        batch_sizes: ascending.
        seconds: median prediction for each.
        low: lower ends of the intervals.
        high: upper ends.
        near_optimal: the least and the greatest size within 5 % of the best; empty for none.
        chosen: the plan's batch size.
        present: the user's batch size.
    """

    batch_sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    near_optimal: tuple[int, int] | tuple[()]
    chosen: int
    present: int


def draw_plan(ax: Axes, times: PlannedTimes) -> None:
    """Draw the predicted seconds with their interval, the flat region, the two choices.

    Args:
        ax: to draw on.
        times: what.
    """
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    if times.near_optimal:
        low, high = times.near_optimal
        ax.axvspan(low / 1.05, high * 1.05, color=REGIONS["learns"], alpha=0.13, linewidth=0)
        ax.text(math.sqrt(low * high), 1.015, "within 5 %", ha="center", va="bottom", color=MUTED,
                transform=ax.get_xaxis_transform())  # fmt: skip
    sizes = times.batch_sizes
    if sizes:
        top = 50.0 * max(times.seconds)  # an end that is not known is drawn far above
        ax.fill_between(sizes, times.low, [min(high, top) for high in times.high],
                        color=COLOURS[0], alpha=0.15, linewidth=0)  # fmt: skip
        ax.plot(sizes, times.seconds, color=COLOURS[0], linewidth=2.0)
    _mark(ax, times, times.chosen, "plan", COLOURS[2])
    if times.present != times.chosen:
        _mark(ax, times, times.present, "present", COLOURS[1])
    finish_axes(ax, "batch size", "seconds to the target")


def _mark(ax: Axes, times: PlannedTimes, batch_size: int, label: str, colour: str) -> None:
    ax.axvline(batch_size, color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
    ax.annotate(f"{label} {batch_size:,}", (batch_size, 0.94 if label == "plan" else 0.86),
                xycoords=ax.get_xaxis_transform(), xytext=(4, 0), textcoords="offset points",
                color=colour, va="center")  # fmt: skip
    if batch_size in times.batch_sizes:
        place = times.batch_sizes.index(batch_size)
        ax.plot([batch_size], [times.seconds[place]], "o", color=colour, markersize=6)
