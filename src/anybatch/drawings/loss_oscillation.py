"""Pictures of the loss's oscillation: loss against update, and oscillation against batch size."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, MUTED, Line, draw_lines, finish_axes, robust_limits
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LOSS_OSCILLATION"]

_MEAN = 12  # updates on each side


def _draw_losses(ax: Axes, measured: Measured) -> None:
    """The loss of every update, thin, and its moving mean; a colour for each batch size."""
    columns = (measured.samples[name] for name in ("batch_size", "update", "loss"))
    rows = list(zip(*columns, strict=True))
    lines = []
    for number, size in enumerate(sorted({row[0] for row in rows})):
        x = [row[1] for row in rows if row[0] == size]
        y = [row[2] for row in rows if row[0] == size]
        ax.plot(x, [v if math.isfinite(v) else math.nan for v in y], linewidth=0.5, alpha=0.35,
                color=COLOURS[number % len(COLOURS)])  # fmt: skip
        means = [statistics.fmean(y[max(0, k - _MEAN) : k + _MEAN + 1]) for k in range(len(y))]
        lines.append(Line(label=f"batch size {size:,.0f}", x=x, y=means, colour=number))
    draw_lines(ax, lines, x_label="update", y_label="training loss", log=False)
    start = [line.y[0] for line in lines]
    limits = robust_limits([v for line in lines for v in line.y], reference=max(start))
    if limits is not None:  # single losses of small batches may lie above
        ax.set_ylim(min(0.0, limits[0]), 1.5 * limits[1])
    ax.legend(frameon=False, fontsize="small", ncols=2, loc="upper right")


def _draw_oscillation(ax: Axes, measured: Measured) -> None:
    """The oscillation of each batch size with its interval, and a guide that falls as a root."""
    known = _known(measured)
    for number, size in enumerate(sorted(set(measured.samples["batch_size"]))):
        if size not in known:
            continue
        value, low, high = known[size]
        colour = COLOURS[number % len(COLOURS)]
        ax.plot([size, size], [low, high], color=colour, linewidth=2.0)
        ax.plot([size], [value], "o", color=colour, markersize=5)
    if known:
        sizes = sorted(known)
        # Through the middle of the points, in logarithms.
        height = statistics.median(math.log(known[size][0] * math.sqrt(size)) for size in sizes)
        guide = [math.exp(height) / math.sqrt(size) for size in sizes]
        ax.plot(sizes, guide, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)),
                label=r"$\propto 1/\sqrt{B}$")  # fmt: skip
        for set_scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
            set_scale("log")
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.legend(frameon=False, fontsize="small")
    finish_axes(ax, "batch size", "median jump / local mean loss")


def _known(measured: Measured) -> dict[float, tuple[float, float, float]]:
    """Oscillation and interval by batch size, where it is known and not 0."""
    found = {}
    for name, span in measured.spans.items():
        kind, _, size = name.partition("/")
        if kind == "oscillation" and span.value:
            found[float(size)] = (span.value, span.low, span.high)
    return found


def _caption(measured: Measured) -> str:
    exploded = {
        name.partition("/")[2]: span.value
        for name, span in measured.spans.items()
        if name.startswith("exploded_at/") and span.value is not None
    }
    told = "; ".join(f"batch size {size} at update {at:.0f}" for size, at in exploded.items())
    lr = measured.settings["lr"]
    return (
        f"Training loss of the first updates at lr {lr:.3g} (thin; mean of 25 updates thick), "
        "every batch size from the same weights; below, the median of |loss - loss before| over "
        "the mean loss around it, with "
        f"95 % intervals. Exploded: {told or 'none'}."
    )


LOSS_OSCILLATION = Drawing(
    "Oscillation of the loss by batch size", (_draw_losses, _draw_oscillation), _caption
)
