"""Pictures of a throughput measurement: seconds, examples per second, memory against batch size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, MUTED, Span, finish_axes
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["THROUGHPUT", "draw_memory", "draw_rates", "draw_seconds"]

_PARTS = {"forward": 0, "backward": 1, "optimizer": 3, "loading": 4}
"""Number of the colour of each part of an update."""
_ROOM = 0.2  # of the logarithmic height, above for the legend
_SIZE_LABEL = "examples of a forward and backward pass"


def draw_seconds(ax: Axes, measured: Measured) -> None:
    """Draw the milliseconds of every timed update, the fitted curve, and the median of each part.

    Args:
        ax: to draw on.
        measured: of kind "throughput".
    """
    samples = measured.samples
    update = [1e3 * seconds for seconds in samples["update_seconds"]]
    ax.plot(samples["batch_size"], update, "o", color=MUTED, alpha=0.25,
            markersize=2.6, markeredgewidth=0)  # fmt: skip
    for part, colour in _PARTS.items():
        line = _medians(measured, f"{part}_seconds")
        known = [(b, 1e3 * t) for b, t in line if t > 0.0]
        dashes = (0, (4, 2)) if part == "loading" else "-"
        ax.plot([b for b, _ in known], [t for _, t in known], color=COLOURS[colour], linewidth=1.0,
                linestyle=dashes, marker="o", markersize=2.6, label=part)  # fmt: skip
    fitted = [1e3 * seconds for seconds in measured.fitted["seconds"]]
    ax.plot(measured.fitted["batch_size"], fitted, color=COLOURS[2],
            linewidth=2.0, label="update, fitted")  # fmt: skip
    _log_axes(ax, samples["batch_size"], both=True)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** _ROOM)
    ax.legend(frameon=False, fontsize="small", loc="upper left", ncols=3)
    finish_axes(ax, _SIZE_LABEL, "milliseconds of an update")


def draw_rates(ax: Axes, measured: Measured) -> None:
    """Draw examples per second of one rank, and B_half, where they reach half.

    Args:
        ax: to draw on.
        measured: of kind "throughput".
    """
    line = _medians(measured, "update_seconds")
    ax.plot([b for b, _ in line], [b / t for b, t in line], "o", color=COLOURS[0], markersize=4)
    sizes, seconds = measured.fitted["batch_size"], measured.fitted["seconds"]
    ax.plot(sizes, [b / t for b, t in zip(sizes, seconds, strict=True)], color=COLOURS[2],
            linewidth=2.0)  # fmt: skip
    _log_axes(ax, measured.samples["batch_size"], both=False)
    ax.set_ylim(bottom=0.0)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    half = measured.spans.get("b_half", Span(None))
    low, high = ax.get_xlim()
    if half.value is not None and low < half.value < high:
        ax.axvline(half.value, color=COLOURS[1], linewidth=1.4, linestyle=(0, (4, 2)))
        ax.axvspan(max(low, half.low), min(high, half.high), color=COLOURS[1], alpha=0.15,
                   linewidth=0)  # fmt: skip
        on_right = half.value > math.sqrt(low * high)
        ax.annotate(f"B_half {half.value:.3g}", (half.value, 0.06),
                    xycoords=ax.get_xaxis_transform(), xytext=(-4 if on_right else 4, 0),
                    textcoords="offset points", ha="right" if on_right else "left",
                    color=COLOURS[1])  # fmt: skip
    finish_axes(ax, _SIZE_LABEL, "examples per second")


def draw_memory(ax: Axes, measured: Measured) -> None:
    """Draw the memory that each size takes beyond what rests, and the line through it.

    Args:
        ax: to draw on.
        measured: of kind "throughput".
    """
    known = [(b, m) for b, m in _medians(measured, "memory_bytes") if math.isfinite(m)]
    each = measured.spans.get("bytes_per_example", Span(None))
    ax.plot([b for b, _ in known], [m / 2**20 for _, m in known], "o", color=COLOURS[0],
            markersize=4)  # fmt: skip
    if each.value is not None:
        (b1, m1), sizes = known[-1], measured.fitted["batch_size"]
        line = [(b, m1 + each.value * (b - b1)) for b in sizes]
        shown = [(b, m / 2**20) for b, m in line if m > 0.0]
        ax.plot([b for b, _ in shown], [m for _, m in shown], color=COLOURS[2], linewidth=2.0)
    else:
        ax.text(0.5, 0.5, "no line: too little to measure", ha="center", color=MUTED,
                transform=ax.transAxes)  # fmt: skip
    _log_axes(ax, measured.samples["batch_size"], both=False)
    ax.set_ylim(bottom=0.0)
    finish_axes(ax, _SIZE_LABEL, "MiB beside the model")


def _log_axes(ax: Axes, sizes: Sequence[float], *, both: bool) -> None:
    """Powers of two that were timed as ticks."""
    ax.set_xscale("log", base=2)
    different = sorted(set(sizes))
    every = -(-len(different) // 10)
    ticks = [size for size in different if math.log2(size).is_integer()][::every] or different
    ax.set_xticks(ticks, [f"{size:,.0f}" for size in ticks])
    ax.xaxis.set_minor_formatter("")
    if both:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")


def _medians(measured: Measured, name: str) -> list[tuple[float, float]]:
    """(size, median of a column) in ascending order."""
    found: dict[float, list[float]] = {}
    for size, value in zip(measured.samples["batch_size"], measured.samples[name], strict=True):
        found.setdefault(size, []).append(value)
    return [(size, statistics.median(values)) for size, values in sorted(found.items())]


def _caption(measured: Measured) -> str:
    half = measured.spans.get("b_half", Span(None)).value
    largest = measured.spans.get("largest_micro_batch", Span(None))
    sentences = [
        f"{len(measured.samples['round']):,} timed updates (dots), the median of each part, and "
        f"the fitted curve ({measured.settings['fit']['kind']}).",
        ""
        if half is None
        else f"B_half = {half:.3g} examples: half of the examples per second of a huge pass.",
        "Below, memory beyond weights, gradients and optimizer."
        + (f" About {largest.value:,.0f} examples fit." if largest.value is not None else ""),
    ]
    return " ".join(filter(None, sentences))


THROUGHPUT = Drawing(
    title="Seconds per update, examples per second and memory against the size of a pass",
    panels=(draw_seconds, draw_rates, draw_memory),
    caption=_caption,
)
