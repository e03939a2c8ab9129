"""Pictures of a plan's pilot: what its evaluations and its losses were, and how it may go on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from anybatch.drawing import COLOURS, MUTED, Line, Span, draw_lines
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PILOT", "Forecast", "draw_evaluations", "draw_forecast", "draw_losses"]

_TARGET = COLOURS[2]
_BEYOND = 3.0  # times what is known, that the axis shows of an interval without end
_LOG_ROOM = 1.15  # between the target and the end of a logarithmic axis, as a factor


class Forecast(NamedTuple):
    """How far it is to the target at the pilot's batch size.

    Attributes:
        target: as text.
        value: of the metric or loss that is asked for.
        updates: to it, from the first one.
    """

    target: str
    value: float
    updates: Span


def draw_evaluations(ax: Axes, measured: Measured) -> None:
    """Draw the metric of each look at the pilot against updates.

    Args:
        ax: to draw on.
        measured: of kind "pilot".
    """
    name = str(measured.settings.get("metric_name") or "metric")
    samples = measured.samples
    line = Line(label="", x=samples["update"], y=samples["metric"], style="dots")
    draw_lines(ax, [line], x_label="updates", y_label=f"validation {name}", log=False)


def draw_losses(ax: Axes, measured: Measured) -> None:
    """Draw the training loss and, with dots, the validation loss against updates.

    Args:
        ax: to draw on.
        measured: of kind "pilot".
    """
    fitted, samples = measured.fitted, measured.samples
    lines = [
        Line(label="training", x=fitted.get("update", ()), y=fitted.get("loss", ()), weight=1.0),
        Line(label="validation", x=samples["update"], y=samples["loss"], colour=1, style="dots"),
    ]
    draw_lines(ax, [line for line in lines if line.y], x_label="updates", y_label="loss")
    ax.legend(frameon=False, fontsize="small")


def draw_forecast(ax: Axes, curve: tuple[float, float], forecast: Forecast) -> None:
    """Draw the target's line, and on it when it is expected with its interval.

    Args:
        ax: that the learning curve is on.
        curve: update and value of its last point.
        forecast: what to draw.
    """
    last, value = curve
    needed = forecast.updates
    known = [end for end in (last, needed.value, needed.low, needed.high)
             if end is not None and 0.0 < end < math.inf]  # fmt: skip
    farthest = max(known) * (1.15 if math.isfinite(needed.high) else _BEYOND)
    if farthest > 3.0 * last:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.xaxis.set_minor_formatter("")
    else:
        ax.set_xlim(left=0.0)
    ax.set_xlim(right=farthest)
    ax.axhline(forecast.value, color=_TARGET, linewidth=1.2, linestyle=(0, (4, 2)))
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        ax.set_ylim(min(low, forecast.value / _LOG_ROOM), max(high, forecast.value * _LOG_ROOM))
    else:
        room = 0.08 * (max(high, forecast.value) - min(low, forecast.value))
        ax.set_ylim(min(low, forecast.value - room), max(high, forecast.value + room))
    if math.isfinite(needed.low) and needed.low > 0.0:
        end = min(needed.high, farthest)
        ax.plot([needed.low, end], [forecast.value] * 2, color=_TARGET, linewidth=3.0, marker="|",
                markersize=9)  # fmt: skip
    if needed.value is not None:
        if math.isfinite(value):
            ax.plot([last, needed.value], [value, forecast.value], color=MUTED, linewidth=1.2,
                    linestyle=(0, (2, 2)))  # fmt: skip
        ax.plot([needed.value], [forecast.value], "o", color=_TARGET, markersize=6)
    ax.text(1.0, 1.015, _words(forecast), ha="right", va="bottom", color=_TARGET,
            transform=ax.transAxes, parse_math=False)  # fmt: skip


def _words(forecast: Forecast) -> str:
    needed = forecast.updates
    if needed.value is None:
        return f"{forecast.target}: not foreseen"
    high = f"{needed.high:,.0f}" if math.isfinite(needed.high) else "without end"
    return f"{forecast.target} after {needed.value:,.0f} updates ({needed.low:,.0f} to {high})"


def _caption(measured: Measured) -> str:
    samples, settings = measured.samples, measured.settings
    looks = list(zip(samples["update"], samples["metric"], samples["loss"], strict=True))
    update, metric, loss = looks[-1]
    name = settings.get("metric_name") or "metric"
    diverged = " It diverged." if settings.get("diverged") else ""
    return (
        f"The pilot at batch size {settings['batch_size']:,} and lr {settings['lr']:.3g}, looked "
        f"at {len(looks)} times on {settings['watched_examples']:,} validation examples; after "
        f"{update:,.0f} updates {name} {metric:.4g}, loss {loss:.4g}.{diverged}"
    )


PILOT = Drawing("Learning curve of the pilot", (draw_evaluations, draw_losses), _caption)
"""What was looked at, and the losses."""
