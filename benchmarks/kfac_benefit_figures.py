"""The autoencoder's loss against updates and against seconds, as plain SVG for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["draw_autoencoder"]

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.grid { stroke: #d0d7de } polyline { stroke-width: 1.6; fill: none }
.target { stroke: #57606a; stroke-dasharray: 4 3 }
.sgd { stroke: #0b6bcb } .kfac { stroke: #c2561a } .adamw { stroke: #2f7d4f }
.lars { stroke: #8250df } .muon { stroke: #9a6700 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 } .grid { stroke: #30363d }
  .target { stroke: #9da7b1 } .sgd { stroke: #58a6ff } .kfac { stroke: #f0883e }
  .adamw { stroke: #56d364 } .lars { stroke: #bc8cff } .muon { stroke: #e3b341 }
}
"""
_SHOWN = {"sgd": "SGD", "kfac": "K-FAC", "adamw": "AdamW", "lars": "LARS", "muon": "Muon"}
_WIDTH, _HEIGHT = 330, 230
_PROBLEM = "autoencoder"


class _Curve(NamedTuple):
    name: str
    points: list[tuple[float, float]]  # updates, loss
    seconds: float  # of an update


class _Frame(NamedTuple):
    """Where a panel stands, and the ranges of its axes."""

    x: float
    y: float
    right: float
    low: float
    high: float

    def place(self, across: float, loss: float) -> str:
        up = (math.log(loss) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return f"{self.x + _WIDTH * across / self.right:.1f},{self.y + _HEIGHT * (1 - up):.1f}"


def draw_autoencoder(results: dict[str, dict[str, Any]]) -> str:
    """Validation loss of every run of every optimizer until the target, in two panels.

    Args:
        results: key -> values of finished trials.
    """
    times = results.get(f"{_PROBLEM}-seconds", {}).get("medians", {})
    curves = [
        _Curve(name, [(u, v) for u, v in run["evaluations"]], times.get(name, math.nan))
        for name in _SHOWN
        if (told := results.get(f"{_PROBLEM}-{name}"))
        for run in told["runs"]
    ]
    title = "Loss of the autoencoder against updates and against seconds"
    parts = ['<text class="title" x="20" y="24">squared error of a pixel, validation</text>']
    if not curves or not times:
        return _page(720, 60, title, [*parts, '<text x="20" y="48">not measured yet</text>'])
    target = results[f"{_PROBLEM}-sgd"]["target"] if f"{_PROBLEM}-sgd" in results else None
    losses = [loss for curve in curves for _, loss in curve.points]
    low, high = 0.95 * min(losses), 1.05 * min(max(losses), 0.12)
    for number, axis in enumerate(("updates", "processor seconds")):
        scaled = [
            curve._replace(points=[(u * curve.seconds, v) for u, v in curve.points])
            if number
            else curve
            for curve in curves
        ]
        right = 1.02 * max(across for curve in scaled for across, _ in curve.points)
        frame = _Frame(60 + 400 * number, 60, right, low, high)
        parts += _panel(frame, axis, scaled, target)
    drawn = [name for name in _SHOWN if any(curve.name == name for curve in curves)]
    for place, name in enumerate(drawn):
        x = 60 + 100 * place
        parts += [
            f'<polyline class="{name}" points="{x},44 {x + 22},44"/>',
            f'<text class="small" x="{x + 28}" y="48">{_SHOWN[name]}</text>',
        ]
    return _page(820, 340, title, parts)


def _panel(frame: _Frame, axis: str, curves: Sequence[_Curve], target: float | None) -> list[str]:
    bottom, end = frame.y + _HEIGHT, frame.x + _WIDTH
    parts = []
    for loss in _ticks(frame.low, frame.high):
        up = frame.place(0.0, loss).split(",")[1]
        parts += [
            f'<line class="grid" x1="{frame.x}" x2="{end}" y1="{up}" y2="{up}"/>',
            f'<text class="small" x="{frame.x - 6}" y="{float(up) + 4:.1f}" '
            f'text-anchor="end">{loss:g}</text>',
        ]
    for share in (0.0, 0.5, 1.0):
        across = share * frame.right / 1.02
        x = frame.place(across, frame.low).split(",")[0]
        parts.append(
            f'<text class="small" x="{x}" y="{bottom + 16}" text-anchor="middle">'
            f"{across:.0f}</text>"
        )
    parts.append(
        f'<text class="small" x="{frame.x + _WIDTH / 2}" y="{bottom + 34}" '
        f'text-anchor="middle">{axis}</text>'
    )
    if target is not None:
        up = frame.place(0.0, target).split(",")[1]
        parts.append(f'<line class="target" x1="{frame.x}" x2="{end}" y1="{up}" y2="{up}"/>')
    for curve in curves:
        points = " ".join(
            frame.place(across, min(loss, frame.high)) for across, loss in curve.points
        )
        parts.append(f'<polyline class="{curve.name}" points="{points}"/>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


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
