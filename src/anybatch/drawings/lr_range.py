"""Pictures of an LR range test on a matplotlib Axes, from the columns of its measurement."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anybatch.drawing import (
    COLOURS,
    MUTED,
    REGIONS,
    Span,
    finish_axes,
    mark_outside,
    robust_limits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_lr_metric", "draw_lr_probes", "draw_lr_range", "probe_levels"]

_PROBE = 1.0  # value of the column "stage" in a probe of a constant lr


def draw_lr_range(
    ax: Axes,
    samples: Mapping[str, Sequence[float]],
    fitted: Mapping[str, Sequence[float]],
    spans: Mapping[str, Span],
) -> int:
    """Draw the ramps of an lr-range measurement: losses, fitted curve, regions, suggested lr.

    Args:
        ax: to draw on.
        samples: the measurement's columns.
        fitted: columns "lr" and "loss" of the curve, or nothing.
        spans: its estimates by name.

    Returns:
        How many losses lie above the frame.
    """
    ramps = _ramp_rows(samples)
    lrs, losses = [lr for lr, _ in ramps], [loss for _, loss in ramps]
    known = [lr for lr in lrs if lr > 0.0]
    _log_lr_axis(ax, known)
    limits = robust_limits(losses, reference=_start(ramps))
    if limits is not None:
        ax.set_ylim(limits)
    ax.plot(lrs, [v if math.isfinite(v) else math.nan for v in losses], "o", color=MUTED,
            alpha=0.5, markersize=2.6, markeredgewidth=0)  # fmt: skip
    clipped = mark_outside(ax, lrs, losses, limits, REGIONS["too large"])
    if fitted.get("lr"):
        ax.plot(fitted["lr"], fitted["loss"], color=COLOURS[0], linewidth=2.0)
    if known:
        _shade_regions(ax, spans, min(known), max(known))
    _mark_suggestions(ax, spans)
    finish_axes(ax, "learning rate", "training loss")
    return clipped


def draw_lr_probes(ax: Axes, samples: Mapping[str, Sequence[float]]) -> int:
    """Draw the mean of the last third of each probe's losses; returns how many probes there are.

    Args:
        ax: to draw on.
        samples: the measurement's columns.
    """
    levels = probe_levels(samples)
    lrs, losses = [lr for lr, _ in levels], [loss for _, loss in levels]
    _log_lr_axis(ax, [lr for lr in lrs if lr > 0.0])
    start = _start(_ramp_rows(samples))
    limits = robust_limits(losses, reference=start)
    if limits is not None and start is not None:  # how far above the start tells nothing
        limits = limits[0], min(limits[1], start + 0.2 * abs(start - limits[0]))
    if limits is not None:
        ax.set_ylim(limits)
    ax.plot(lrs, [v if math.isfinite(v) else math.nan for v in losses], "D", color=COLOURS[0],
            markersize=4)  # fmt: skip
    mark_outside(ax, lrs, losses, limits, REGIONS["too large"])
    finish_axes(ax, "learning rate", "probe loss")
    return len(levels)


def probe_levels(samples: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """(lr, mean of the last third of its losses) of each probe, in the order they were taken.

    Example:
        >>> samples = {"stage": [0, 1, 1, 1], "repeat": [0] * 4, "series": [0] * 4,
        ...     "lr": [0.1, 0.2, 0.2, 0.2], "loss": [9.0, 3.0, 2.0, 1.0]}
        >>> probe_levels(samples)
        [(0.2, 1.0)]
    """
    probes: dict[tuple[float, float], tuple[float, list[float]]] = {}
    names = ("stage", "repeat", "series", "lr", "loss")
    for stage, repeat, series, lr, loss in zip(*(samples[n] for n in names), strict=True):
        if stage == _PROBE and series >= 0:  # weights that stay are no training
            probes.setdefault((repeat, series), (lr, []))[1].append(loss)
    thirds = ((lr, losses[-max(1, len(losses) // 3) :]) for lr, losses in probes.values())
    return [(lr, statistics.fmean(losses)) for lr, losses in thirds]


def draw_lr_metric(ax: Axes, samples: Mapping[str, Sequence[float]], name: str) -> int:
    """Draw the metric along the ramps; returns how many values there are.

    Args:
        ax: to draw on.
        samples: the measurement's columns.
        name: of the metric.
    """
    rows = zip(samples["stage"], samples["lr"], samples["metric"], strict=True)
    known = [(lr, value) for stage, lr, value in rows if stage != _PROBE and math.isfinite(value)]
    _log_lr_axis(ax, [lr for lr, _ in known])
    ax.plot([lr for lr, _ in known], [v for _, v in known], "o", color=COLOURS[1], markersize=3)
    finish_axes(ax, "learning rate", name)
    return len(known)


def _start(ramps: Sequence[tuple[float, float]]) -> float | None:
    """The loss before any learning: the median of those at the lowest learning rates."""
    first = [loss for _, loss in sorted(ramps)[: max(1, len(ramps) // 10)] if math.isfinite(loss)]
    return statistics.median(first) if first else None


def _ramp_rows(samples: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """(lr, loss) of every update that is not a probe's."""
    rows = zip(samples["stage"], samples["lr"], samples["loss"], strict=True)
    return [(lr, loss) for stage, lr, loss in rows if stage != _PROBE]


def _log_lr_axis(ax: Axes, known: Sequence[float]) -> None:
    """A log axis a little wider than the lr; one lr alone stands in the middle of a decade."""
    if not known:
        return
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    wide = (max(known) / min(known)) ** 0.03 if max(known) > min(known) else math.sqrt(10.0)
    ax.set_xlim(min(known) / wide, max(known) * wide)


def _shade_regions(ax: Axes, spans: Mapping[str, Span], first: float, last: float) -> None:
    """What the learning rates do, as far as the estimates tell."""
    nothing = Span(None)
    starts = spans.get("learning_starts", nothing).value
    edge = spans.get("edge", nothing).value
    ends = {
        "too small": (first, starts),
        "learns": (starts, edge or last),
        "too large": (edge, last),
    }
    for name, (low, high) in ends.items():
        if low is None or high is None or not low < high:
            continue
        ax.axvspan(low, high, color=REGIONS[name], alpha=0.10, linewidth=0)
        if math.log(high / low) > 0.12 * math.log(last / first):
            ax.text(math.sqrt(low * high), 1.015, name, ha="center", va="bottom", color=MUTED,
                    transform=ax.get_xaxis_transform())  # fmt: skip


def _mark_suggestions(ax: Axes, spans: Mapping[str, Span]) -> None:
    """Lines with their intervals as bands, each labelled at a height of its own."""
    colours = {"base_lr": COLOURS[3], "max_lr": COLOURS[2], "edge": REGIONS["too large"]}
    low, high = ax.get_xlim()
    for height, (name, colour) in zip((0.94, 0.86, 0.78), colours.items(), strict=True):
        span = spans.get(name, Span(None))
        if span.value is None or not span.value > 0.0:
            continue
        ax.axvline(span.value, color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
        if math.isfinite(span.low) or math.isfinite(span.high):
            ends = max(span.low, low), min(span.high, high)
            ax.axvspan(*ends, color=colour, alpha=0.15, linewidth=0)
        right = ax.get_xscale() == "log" and span.value > math.sqrt(low * high)
        ax.annotate(
            f"{name} {span.value:.2g}",
            (span.value, height),
            xycoords=ax.get_xaxis_transform(),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            color=colour,
        )
