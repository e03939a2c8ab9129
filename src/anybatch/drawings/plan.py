"""Picture of a plan: seconds to the target against batch size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from anybatch.drawing import COLOURS, MUTED, REGIONS, Span, finish_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ActualTime", "PlannedTimes", "draw_plan"]

_PLAN, _PRESENT, _ACTUAL = COLOURS[2], COLOURS[1], COLOURS[3]
_HEIGHTS = (0.95, 0.88, 0.81)  # of the labels; the curve ends below them
_HEADROOM = (0.24, 0.34)  # of the logarithmic height of what is drawn: for two labels, and three
_MOST_TIMES = 10.0  # the least seconds: sizes that take longer flatten all others
_HIGHEST = 30.0  # times the greatest median; an interval's end beyond it is not looked for
_NARROWEST = 3.0  # highest over lowest: a flat curve looks flat
_MOST_TICKS = 9
_AT_EDGE = 0.28  # of the width, where a label stands on the inner side
_DASHES = (0, (4, 2))


class ActualTime(NamedTuple):
    """What a run that follows the plan took.

    Attributes:
        batch_size: of the run.
        seconds: to the target, or to its end.
        reached: whether it reached the target.
    """

    batch_size: int
    seconds: float
    reached: bool


class PlannedTimes(NamedTuple):
    """Seconds to the target by batch size, and the choices among them.

    Attributes:
        batch_sizes: ascending.
        seconds: median prediction for each, from the first update on; nan: only `low` is known.
        low: lower ends of the intervals.
        high: upper ends; inf where there is none.
        near_optimal: the least and the greatest size within 5 % of the best; empty for none.
        chosen: the plan's batch size.
        present: the user's batch size.
        predicted: seconds of the planned run, its pilot included; None: as the curve says.
        actual: what runs that follow the plan took.
    """

    batch_sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    near_optimal: tuple[int, int] | tuple[()]
    chosen: int
    present: int
    predicted: Span | None = None
    actual: tuple[ActualTime, ...] = ()

    def shown(self) -> PlannedTimes:
        """Without the sizes that take over 10 times the least, but for those of the choices.

        Example:
            >>> times = PlannedTimes((1, 8, 64), (90.0, 5.0, 4.0), (80.0, 4.0, 3.0),
            ...     (99.0, 6.0, 5.0), (8, 64), chosen=64, present=8)
            >>> times.shown().batch_sizes
            (8, 64)
        """
        least = [low if math.isnan(middle) else middle
                 for middle, low in zip(self.seconds, self.low, strict=True)]  # fmt: skip
        most = _MOST_TIMES * min(least, default=0.0)
        choices = (self.chosen, self.present)
        columns = zip(self.batch_sizes, self.seconds, self.low, self.high, least, strict=True)
        kept = [row for row in columns if row[-1] <= most or row[0] in choices]
        sizes, seconds, low, high, _ = zip(*kept, strict=True) if kept else ((),) * 5
        return self._replace(batch_sizes=sizes, seconds=seconds, low=low, high=high)


def draw_plan(ax: Axes, times: PlannedTimes) -> None:
    """Draw the predicted seconds with their interval, the flat region, the choices, what it took.

    An interval without end reaches the upper edge. Sizes that take over 10 times the least seconds
    are left out, unless they are a choice.

    Args:
        ax: to draw on.
        times: what.
    """
    times = times.shown()
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    marked = {times.chosen, times.present, *(actual.batch_size for actual in times.actual)}
    _batch_axis(ax, sorted({*times.batch_sizes, *marked}))
    bottom, top = _seconds_axis(ax, times)
    if times.near_optimal:
        _shade(ax, times.near_optimal, times.batch_sizes)
    sizes = times.batch_sizes
    if sizes:
        lows = [min(max(low, bottom), top) for low in times.low]
        highs = [min(max(high, bottom), top) for high in times.high]
        ax.fill_between(sizes, lows, highs, color=COLOURS[0], alpha=0.15, linewidth=0)
        dot = "o" if len(sizes) == 1 else ""
        ax.plot(sizes, times.seconds, color=COLOURS[0], linewidth=2.0, marker=dot)
    else:
        ax.text(0.5, 0.4, "no size has a prediction", ha="center", color=MUTED,
                transform=ax.transAxes)  # fmt: skip
    _mark_choices(ax, times, top)
    _mark_actual(ax, times)
    finish_axes(ax, "batch size", "seconds to the target")


def _batch_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """Powers of two as ticks; where there are few sizes that stand apart, these."""
    from matplotlib.ticker import NullLocator

    first, last = math.log2(sizes[0]), math.log2(sizes[-1])
    room = max(0.06 * (last - first), 0.4)
    ax.set_xlim(2.0 ** (first - room), 2.0 ** (last + room))
    gaps = [math.log2(b / a) for a, b in itertools.pairwise(sizes)]
    powers: list[float] = [2.0**k for k in range(math.ceil(first), math.floor(last) + 1)]
    every = -(-len(powers) // _MOST_TICKS) or 1
    apart = len(sizes) <= 5 and all(gap >= 0.12 * (last - first) for gap in gaps)
    ticks = list(sizes) if apart or not powers else powers[::every]
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _seconds_axis(ax: Axes, times: PlannedTimes) -> tuple[float, float]:
    """Limits around everything that is known, with room above for the labels."""
    from matplotlib.ticker import LogLocator, NullLocator

    predicted = times.predicted or Span(None)
    medians = [*times.seconds, predicted.value or 0.0, *(actual.seconds for actual in times.actual)]
    farthest = _HIGHEST * max(_sound([*medians, *times.low, predicted.low]), default=1.0)
    ends = [*times.low, *times.high, predicted.low, predicted.high]
    shown = _sound([*medians, *(min(end, farthest) for end in ends if end < math.inf)]) or [1.0]
    low, high = min(shown) / 1.2, max(shown) * 1.2
    wider = math.sqrt(max(1.0, _NARROWEST * low / high))
    low, high = low / wider, high * wider
    high *= (high / low) ** _HEADROOM[bool(times.actual)]
    ax.set_ylim(low, high)
    subs = (1.0, 2.0, 5.0) if high / low < 500.0 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:,g}")
    return low, high


def _sound(values: Iterable[float]) -> list[float]:
    return [value for value in values if 0.0 < value < math.inf]


def _shade(ax: Axes, region: tuple[int, int], sizes: Sequence[int]) -> None:
    """The sizes within 5 % of the best, half-way to their neighbours, labelled above the frame."""
    low, high = region
    below = max((size for size in sizes if size < low), default=low / 1.3)
    above = min((size for size in sizes if size > high), default=high * 1.3)
    left, right = math.sqrt(low * max(below, low / 1.3)), math.sqrt(high * min(above, high * 1.3))
    ax.axvspan(left, right, color=REGIONS["learns"], alpha=0.16, linewidth=0)
    words = f"within 5 % of the best: {low:,}" + (f" to {high:,}" if high > low else " alone")
    at = _share(ax, math.sqrt(low * high))
    x, ha = (0.0, "left") if at < _AT_EDGE else (1.0, "right") if at > 1 - _AT_EDGE else (at, "")
    ax.text(x, 1.015, words, ha=ha or "center", va="bottom", color=MUTED, transform=ax.transAxes)


def _share(ax: Axes, size: float) -> float:
    """Where a batch size lies between the left and the right edge, in [0, 1]."""
    low, high = ax.get_xlim()
    return math.log(size / low) / math.log(high / low)


def _mark_choices(ax: Axes, times: PlannedTimes, top: float) -> None:
    """Lines for plan and present, labelled on the sides that are turned away from each other."""
    same = times.chosen == times.present
    words = "plan and present" if same else "plan"
    side = _side(ax, times.chosen, times.present)
    other = _side(ax, times.present, times.chosen)
    # On the same side a label crosses the other line, which then ends below it.
    plan_on_top = side != other or (times.chosen <= times.present) == (side == "right")
    height, lower = _HEIGHTS[:2] if plan_on_top else _HEIGHTS[1::-1]
    _label(ax, times.chosen, f"{words} {times.chosen:,}", (height, side), _PLAN)
    predicted = times.predicted or Span(None)
    if predicted.low > 0.0 and math.isfinite(predicted.low):
        ends = [predicted.low, min(predicted.high, top)]
        ax.plot([times.chosen] * 2, ends, color=_PLAN, linewidth=2.6, marker="_", markersize=9)
    on_curve = dict(zip(times.batch_sizes, times.seconds, strict=True))
    planned = on_curve.get(times.chosen) if times.predicted is None else predicted.value
    _dot(ax, times.chosen, planned, _PLAN)
    if not same:
        _label(ax, times.present, f"present {times.present:,}", (lower, other), _PRESENT)
        _dot(ax, times.present, on_curve.get(times.present), _PRESENT)


def _mark_actual(ax: Axes, times: PlannedTimes) -> None:
    """A diamond for each run that followed the plan, a triangle where it missed the target."""
    for actual in times.actual:
        ax.plot([actual.batch_size], [actual.seconds], "D" if actual.reached else "^",
                color=_ACTUAL, fillstyle="none", markeredgewidth=1.7, markersize=8)  # fmt: skip
    if times.actual:
        last = times.actual[-1]
        took = f"{last.seconds:,.0f}" if last.seconds >= 100.0 else f"{last.seconds:.3g}"
        words = f"took {took} s" if last.reached else f"not reached in {took} s"
        if len(times.actual) > 1:
            words = f"{len(times.actual)} runs"
        side = _side(ax, last.batch_size, times.present)
        _label(ax, last.batch_size, words, (_HEIGHTS[2], side), _ACTUAL, line=False)


def _side(ax: Axes, size: int, other: int) -> Literal["left", "right"]:
    """Of a line that its label stands on: away from the other line, but inside of the frame."""
    at = _share(ax, size)
    if at < _AT_EDGE or at > 1.0 - _AT_EDGE:
        return "right" if at < _AT_EDGE else "left"
    return "left" if size < other else "right"


def _label(
    ax: Axes, size: int, words: str, place: tuple[float, str], colour: str, *, line: bool = True
) -> None:
    height, side = place
    if line:
        ax.axvline(size, ymax=height + 0.025, color=colour, linewidth=1.2, linestyle=_DASHES)
    ax.annotate(
        words, (size, height), xycoords=ax.get_xaxis_transform(),
        xytext=(4 if side == "right" else -4, 0), textcoords="offset points",
        ha="left" if side == "right" else "right", va="center", color=colour,
    )  # fmt: skip


def _dot(ax: Axes, size: int, seconds: float | None, colour: str) -> None:
    if seconds is not None:
        ax.plot([size], [seconds], "o", color=colour, markersize=6)
