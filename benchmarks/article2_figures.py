"""The two figures of article 2 as plain SVG, from stored results; for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.article2_tables import BATCH_SIZES, seconds_of

__all__ = ["draw_epoch_times", "draw_losses"]

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.computing { fill: #0b6bcb } .loading { fill: #c2561a } .resident { fill: #2f7d4f }
.grid { stroke: #d0d7de } .line { stroke: #0b6bcb; stroke-width: 1; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 } .grid { stroke: #30363d }
  .computing { fill: #58a6ff } .loading { fill: #f0883e } .resident { fill: #56d364 }
  .line { stroke: #58a6ff }
}
"""
_EPOCH_EXAMPLES = 60_000
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 700, 60, 300
_HIGHEST_LOSS, _UPDATES = 3.0, 1000


class _Bar(NamedTuple):
    """A bar of every batch size: what it shows, which time it is, how it is drawn."""

    label: str
    part: str
    kind: str


_BARS = (
    _Bar("computing", "compute", "computing"),
    _Bar("loading, DataLoader", "DataLoader", "loading"),
    _Bar("loading, resident set", "resident", "resident"),
)


def _page(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def draw_epoch_times(steps: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds of an epoch against batch size: computing, and loading in two ways.

    Args:
        steps: batch size -> part of an update -> seconds; empty where it was not measured yet.
    """
    title = "Seconds of an epoch against batch size"
    parts = ['<text class="title" x="20" y="24">seconds of an epoch of 60,000 examples</text>']
    if not steps:
        return _page(720, 60, title, [*parts, '<text x="20" y="48">not measured yet</text>'])
    seconds = {
        size: [steps[str(size)][bar.part] * _EPOCH_EXAMPLES / size for bar in _BARS]
        for size in BATCH_SIZES
    }
    everything = [value for values in seconds.values() for value in values]
    low = math.floor(math.log10(min(everything)))
    high = math.ceil(math.log10(max(everything)))
    for place, bar in enumerate(_BARS):
        parts += [
            f'<rect class="{bar.kind}" x="{60 + 190 * place}" y="36" width="12" height="12"/>',
            f'<text class="small" x="{77 + 190 * place}" y="46">{bar.label}</text>',
        ]
    for power in range(low, high + 1):
        up = _level(10.0**power, low, high)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>',
            f'<text class="small" x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">'
            f"{10.0**power:g} s</text>",
        ]
    each = (_RIGHT - _LEFT) / len(BATCH_SIZES)
    for number, (size, values) in enumerate(seconds.items()):
        start = _LEFT + each * number + 10
        levels = [_level(value, low, high) for value in values]
        parts += _bars_of(start, size, values, levels)
    total = seconds_of(steps["60"], "DataLoader") * _EPOCH_EXAMPLES / 60
    note = f"batch size; at 60 with the DataLoader {total:.2g} s in all. One CPU thread, medians."
    parts.append(f'<text class="small" x="{_LEFT}" y="{_BOTTOM + 38}">{note}</text>')
    return _page(720, 350, title, parts)


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _level(seconds: float, low: int, high: int) -> float:
    """Where so many seconds are drawn, between two powers of ten."""
    return _BOTTOM - (math.log10(seconds) - low) / (high - low) * (_BOTTOM - _TOP)


def _bars_of(
    start: float, size: int, values: Sequence[float], levels: Sequence[float]
) -> list[str]:
    """The bars of one batch size, with their values and its name."""
    parts = []
    for place, (bar, value, up) in enumerate(zip(_BARS, values, levels, strict=True)):
        x = start + 29 * place
        parts += [
            f'<rect class="{bar.kind}" x="{x:.1f}" y="{up:.1f}" width="25" '
            f'height="{_BOTTOM - up:.1f}"/>',
            f'<text class="small" x="{x + 12.5:.1f}" y="{up - 4:.1f}" text-anchor="middle">'
            f"{_two_digits(value)}</text>",
        ]
    name = f'<text x="{start + 41:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{size:,}</text>'
    return [*parts, name]


def draw_losses(losses: Mapping[int, Sequence[float | None]]) -> str:
    """Loss of each of the first 1,000 updates, a panel for each batch size.

    Args:
        losses: batch size -> losses, fewer where fewer updates were taken; above 3 they are drawn
            at 3.
    """
    parts = []
    for number, size in enumerate(BATCH_SIZES):
        x, y = 40 + 285 * (number % 3), 44 + 190 * (number // 3)
        parts += _panel(x, y, size, losses.get(size, ()))
    note = "training loss against the number of the update; drawn at 3 where it is larger"
    parts.append(f'<text class="small" x="40" y="412">{note}</text>')
    return _page(890, 425, "Training loss of the first 1,000 updates by batch size", parts)


def _panel(x: int, y: int, size: int, losses: Sequence[float | None]) -> list[str]:
    width, height = 250, 130
    counted = f"{len(losses):,} updates" if losses else "not measured yet"
    parts = [
        f'<text class="title" x="{x}" y="{y - 8}">batch size {size:,}</text>',
        f'<text class="small" x="{x + width}" y="{y - 8}" text-anchor="end">{counted}</text>',
    ]
    for loss in range(4):
        up = y + height * (1 - loss / _HIGHEST_LOSS)
        parts += [
            f'<line class="grid" x1="{x}" x2="{x + width}" y1="{up:.1f}" y2="{up:.1f}"/>',
            f'<text class="small" x="{x - 5}" y="{up + 4:.1f}" text-anchor="end">{loss}</text>',
        ]
    points = [
        f"{x + width * place / _UPDATES:.1f},"
        f"{y + height * (1 - min(loss, _HIGHEST_LOSS) / _HIGHEST_LOSS):.1f}"
        for place, loss in enumerate(losses)
        if loss is not None
    ]
    return [*parts, f'<polyline class="line" points="{" ".join(points)}"/>']
