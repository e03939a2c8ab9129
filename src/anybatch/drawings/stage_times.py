"""Pictures of stages: measured ones with intervals; of a prediction, bars stacked over ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, MUTED, TEXT, draw_estimates, finish_axes
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STAGE_TIMES", "draw_reach", "draw_stages", "log_ticks", "short_number"]

_STACKED = {
    "forward and backward": (0, ("forward", "backward")),
    "statistics": (2, ("statistics",)),
    "inversion, preconditioning": (3, ("inversion", "precondition")),
    "traffic": (1, ("gradient_traffic", "statistics_traffic", "gathering")),
    "loading": (4, ("loading",)),
    "optimizer": (5, ("apply",)),
}
"""What is stacked from below: number of the colour, stages."""
_GAP = 0.8  # between the bars of one number of ranks and the next, in bars


def draw_stages(ax: Axes, measured: Measured) -> None:
    """Draw predicted milliseconds of an update, stacked by stage: a bar a method, by ranks.

    Without a prediction, the measured milliseconds of each stage on one rank, with intervals.

    Args:
        ax: to draw on.
        measured: of kind "stage-times".
    """
    if not measured.fitted:
        known = {n: s for n, s in measured.spans.items() if n.endswith("_seconds")}
        draw_estimates(ax, known)
        finish_axes(ax, "seconds of an update on one rank", "")
        return
    methods = measured.settings["methods"]
    ranks = sorted(set(measured.fitted["ranks"]))
    present = sorted(set(measured.fitted["method"]))
    width = len(present) + _GAP
    places = [
        ranks.index(count) * width + present.index(method)
        for method, count in zip(*_columns(measured, "method", "ranks"), strict=True)
    ]
    heights = [0.0] * len(places)
    for label, (colour, stages) in _STACKED.items():
        columns = _columns(measured, *stages)
        parts = [1e3 * sum(values) for values in zip(*columns, strict=True)]
        if any(parts):
            ax.bar(places, parts, width=0.86, bottom=heights, color=COLOURS[colour], label=label)
        heights = [below + part for below, part in zip(heights, parts, strict=True)]
    for place, method, height in zip(places, measured.fitted["method"], heights, strict=True):
        ax.annotate(methods[int(method)], (place, height), xytext=(0, 3),
                    textcoords="offset points", rotation=90, ha="center", va="bottom",
                    fontsize="x-small", color=TEXT)  # fmt: skip
    centres = [number * width + 0.5 * (len(present) - 1) for number in range(len(ranks))]
    ax.set_xticks(centres, [f"{count:,.0f}" for count in ranks])
    ax.set_ylim(0.0, 1.45 * max(heights))
    ax.legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    finish_axes(ax, "ranks", "milliseconds of an update, predicted")
    ax.grid(visible=False, axis="x")


def draw_reach(ax: Axes, measured: Measured) -> None:
    """Draw predicted seconds to the target by ranks; examples per second where none is known.

    Args:
        ax: to draw on.
        measured: of kind "stage-times".
    """
    fitted = measured.fitted
    if not fitted:
        ax.text(0.5, 0.5, "nothing was predicted", ha="center", color=MUTED,
                transform=ax.transAxes)  # fmt: skip
        return
    to_target = any(map(math.isfinite, fitted["seconds_to_target"]))
    for number, name in enumerate(measured.settings["methods"]):
        rows = [row for row, method in enumerate(fitted["method"]) if method == number]
        rows.sort(key=lambda row: fitted["ranks"][row])
        values = [
            fitted["seconds_to_target"][row]
            if to_target
            else fitted["batch_size"][row] / fitted["seconds_per_update"][row]
            for row in rows
        ]
        if any(map(math.isfinite, values)):
            ranks = [fitted["ranks"][row] for row in rows]
            ax.plot(ranks, values, "o-", color=COLOURS[number], markersize=3.5, linewidth=1.4,
                    label=name)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = sorted(set(fitted["ranks"]))
    ax.set_xticks(ticks, [f"{count:,.0f}" for count in ticks])
    ax.xaxis.set_minor_formatter("")
    low, high = ax.get_ylim()
    places = log_ticks(low, high)
    ax.set_yticks(places, [short_number(place) for place in places])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize="small")
    label = "seconds to the target, predicted" if to_target else "examples per second, predicted"
    finish_axes(ax, "ranks", label)


def log_ticks(low: float, high: float) -> list[float]:
    """Places for the labels of a log axis: 1, 2 and 5 times powers of ten, or those powers alone.

    Between two and eight of them lie inside, but where there are hundreds of decades.

    Args:
        low: end of the axis, > 0.
        high: the other end.

    Example:
        >>> log_ticks(30.0, 900.0), log_ticks(0.5, 2e4)
        ([50.0, 100.0, 200.0, 500.0], [1.0, 10.0, 100.0, 1000.0, 10000.0])
        >>> log_ticks(210.0, 240.0)
        [210.0, 220.0, 230.0, 240.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 2.0, 5.0)):
        found = [
            f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high
        ]
        if len(found) >= (4 if len(factors) == 1 else 2):
            return found[:: 1 + len(found) // 9]
    step = 10.0 ** math.floor(math.log10(high - low))
    while (high - low) / step < 2.0:
        step /= 2.0
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short_number(value: float) -> str:
    """A number of an axis, from ten thousand on in k, M or G.

    Example:
        >>> [short_number(value) for value in (0.05, 2000.0, 50000.0, 2e8)]
        ['0.05', '2,000', '50 k', '200 M']
    """
    if value < 1e4:
        return f"{value:,.10g}"
    power = min(int(math.log10(value) + 1e-9) // 3, 3)
    return f"{value / 1000**power:,.10g} {'kMG'[power - 1]}"


def _columns(measured: Measured, *names: str) -> list[list[float]]:
    return [list(measured.fitted[name]) for name in names]


def _caption(measured: Measured) -> str:
    if not measured.fitted:
        return "Seconds that optimizers and the stages of K-FAC take on one rank, with intervals."
    link, settings = measured.settings["link"], measured.settings
    size = settings["batch_size_per_rank"]
    sizes = f"{size} examples a rank" if size else f"{settings['batch_size']} examples in all"
    latency, bandwidth = 1e6 * link["latency_seconds"], 1e-9 / max(link["seconds_per_byte"], 1e-30)
    return (
        f"Predicted seconds of one update with {sizes}, from stages measured on one rank and a "
        f"link of {latency:.3g} us and {bandwidth:.3g} GB/s ({link['source']}). Congestion and "
        "slow ranks are not in it."
    )


STAGE_TIMES = Drawing(
    title="An update on many ranks, by stage",
    panels=(draw_stages, draw_reach),
    caption=_caption,
)
