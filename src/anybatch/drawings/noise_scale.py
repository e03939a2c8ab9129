"""Pictures of a noise-scale measurement on a matplotlib Axes, from the columns of its samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, MUTED, Span, finish_axes
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["NOISE_SCALE", "draw_layers", "draw_running"]

_LAYERS = "b_simple/"
_MOST_NAMED = 24  # characters of a layer's name
_ROOM = 1.25  # of the axis around what is shown


def draw_running(ax: Axes, measured: Measured) -> int:
    """Draw the estimate over the probes, its interval, and the batch in use.

    Where the interval is unbounded the band reaches the upper edge.

    Args:
        ax: to draw on.
        measured: of kind "noise-scale".

    Returns:
        How many probes have an estimate.
    """
    fitted = measured.fitted
    batch = float(measured.settings.get("update_examples") or 0.0)
    probes = list(fitted.get("probe", ()))
    if probes:
        low, high = _limits(measured, batch)
        tops = [min(value, high) for value in fitted["high"]]
        bottoms = [max(value, low) for value in fitted["low"]]
        ax.fill_between(probes, bottoms, tops, color=COLOURS[0], alpha=0.15, linewidth=0)
        values = [value if value > 0.0 else math.nan for value in fitted["b_simple"]]
        ax.plot(probes, values, color=COLOURS[0], linewidth=1.6)
        ax.set_yscale("log")
        _tick_readably(ax.yaxis)
        ax.locator_params(axis="x", integer=True)
        ax.set_ylim(low, high)
        _mark_total(ax, measured.spans.get("b_simple", Span(None)), probes[-1])
    if batch > 0.0:
        _mark_batch(ax, batch)
    finish_axes(ax, "probes", "noise scale in examples")
    return len(probes)


def _limits(measured: Measured, batch: float) -> tuple[float, float]:
    """Of the y axis: the last interval, the estimates and the batch, with room around them."""
    fitted, total = measured.fitted, measured.spans.get("b_simple", Span(None))
    later = fitted["b_simple"][len(fitted["b_simple"]) // 3 :]
    shown = [*later, total.low, total.high, fitted["low"][-1], batch]
    shown = [value for value in shown if 0.0 < value < math.inf] or [1.0]
    return min(shown) / _ROOM, max(shown) * _ROOM**2


def _mark_total(ax: Axes, total: Span, last: float) -> None:
    """The result in words, at the end of the curve."""
    if total.value is not None:
        text, height = f"{total.value:.3g}", total.value
    elif 0.0 < total.low < math.inf:
        text, height = f"at least {total.low:.3g}", total.low
    else:
        return
    ax.plot([last], [height], "o", color=COLOURS[0], markersize=4)
    ax.annotate(text, (last, height), xytext=(-4, 6), textcoords="offset points", ha="right",
                va="bottom", color=COLOURS[0])  # fmt: skip


def _mark_batch(ax: Axes, batch: float) -> None:
    ax.axhline(batch, color=COLOURS[1], linewidth=1.2, linestyle=(0, (4, 2)))
    ax.annotate(f"batch size {batch:g}", (0.0, batch), xycoords=("axes fraction", "data"),
                xytext=(3, 3), textcoords="offset points", ha="left", va="bottom",
                color=COLOURS[1])  # fmt: skip


def draw_layers(ax: Axes, measured: Measured) -> int:
    """Draw the noise scale of each layer as a dot with its interval, input first.

    An interval that is unbounded is an arrow from its lower end.

    Args:
        ax: to draw on.
        measured: of kind "noise-scale".

    Returns:
        How many layers there are.
    """
    spans = measured.spans.items()
    layers = {n.removeprefix(_LAYERS): s for n, s in spans if n.startswith(_LAYERS)}
    for row, span in enumerate(layers.values()):
        if span.value is not None and span.value > 0.0:
            ax.plot([span.low, span.high], [row, row], color=COLOURS[0], linewidth=2.0)
            ax.plot([span.value], [row], "o", color=COLOURS[0], markersize=5)
        elif 0.0 < span.low < math.inf:
            ax.plot([span.low], [row], ">", color=MUTED, markersize=6)
            text = f"at least {span.low:.3g}"
            ax.annotate(text, (span.low, row), xytext=(8, 0), textcoords="offset points",
                        ha="left", va="center", color=MUTED)  # fmt: skip
    total = measured.spans.get("b_simple", Span(None))
    if total.value is not None and total.value > 0.0:
        ax.axvline(total.value, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
    ax.set_xscale("log")
    _tick_readably(ax.xaxis)
    ends = [end for span in layers.values() for end in (span.low, span.high)]
    shown = [end for end in ends if 0.0 < end < math.inf]
    if shown:
        ax.set_xlim(min(shown) / _ROOM, max(shown) * _ROOM**3)
    ax.set_yticks(range(len(layers)), [_short(name) for name in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)
    finish_axes(ax, "noise scale in examples; dashed: of the whole model", "")
    return len(layers)


def _tick_readably(axis: Axis) -> None:
    """Ticks with plain numbers at 1, 2 and 5 of each decade: a noise scale spans one or two."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _short(name: str) -> str:
    return name if len(name) <= _MOST_NAMED else f"...{name[3 - _MOST_NAMED :]}"


def _caption(measured: Measured) -> str:
    settings, total = measured.settings, measured.spans.get("b_simple", Span(None))
    probes = measured.samples.get("probe", ())
    if total.value is not None:
        found = f"{total.value:.3g} examples (95 %: {total.low:.3g} to {total.high:.3g})"
    else:
        found = f"at least {max(total.low, 0.0):.3g} examples, as the signal is not resolved"
    after = f" after {settings['after_updates']} updates" if "after_updates" in settings else ""
    text = f"Gradient noise scale over {len(probes)} probes{after}: {found}."
    if settings.get("unit_examples", 1) != 1:
        text += f" Unit of noise: {settings['unit']}."
    return text + " Band: 95 % interval of the probes so far. Below: of each layer alone."


NOISE_SCALE = Drawing("Gradient noise scale", (draw_running, draw_layers), _caption)
"""Running estimate, and the layers."""
