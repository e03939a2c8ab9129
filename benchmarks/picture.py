"""The picture of the README, drawn from the stored results: `python -m benchmarks.picture`.

Left: microseconds per step beside a bare loop and other trainers. Right: validation accuracy on
MNIST against seconds of training, one line a seed. Plain SVG, readable in light and dark pages.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

__all__ = ["draw"]

_RESULTS = Path(__file__).parent / "results"
_PICTURE = Path(__file__).parents[1] / "docs" / "spine.svg"
_ARMS = {
    "anybatch Training": "anybatch",
    "bare loop": "bare PyTorch loop",
    "bare loop, DataLoader": "with a DataLoader",
    "ignite": "ignite",
    "accelerate": "accelerate",
    "lightning": "Lightning",
}
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.bar { fill: #9aa7b4 } .ours { fill: #0b6bcb } .grid { stroke: #d0d7de } .line { stroke: #0b6bcb }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 } .bar { fill: #6e7b88 } .grid { stroke: #30363d }
  .ours { fill: #58a6ff } .line { stroke: #58a6ff }
}
"""


def _stored(name: str) -> list[dict[str, Any]]:
    paths = sorted((_RESULTS / name).glob("*.json"))
    return [json.loads(path.read_text())["values"] for path in paths]


def _bars(x: int, y: int, width: int) -> list[str]:
    """Ratios of step time to the bare loop, medians over rounds."""
    rounds = [one for values in _stored("overhead") for one in values["rounds"]]
    ratios = {
        label: statistics.median(one[arm] / one["bare loop"] for one in rounds if arm in one)
        for arm, label in _ARMS.items()
    }
    scale = (width - 190) / max(ratios.values())
    parts = [f'<text class="title" x="{x}" y="{y}">time per step, bare PyTorch loop = 1</text>']
    for row, (label, ratio) in enumerate(ratios.items()):
        top = y + 18 + 30 * row
        kind = "ours" if label == "anybatch" else "bar"
        length = ratio * scale
        parts += [
            f'<text x="{x + 128}" y="{top + 15}" text-anchor="end">{label}</text>',
            f'<rect class="{kind}" x="{x + 136}" y="{top}" width="{length:.1f}" height="20"/>',
            f'<text x="{x + 142 + length:.1f}" y="{top + 15}">{ratio:.2f}</text>',
        ]
    note = "2-layer network, batch 32, one CPU thread; medians of interleaved rounds"
    return [*parts, f'<text class="small" x="{x}" y="{y + 222}">{note}</text>']


def _curves(x: int, y: int, width: int) -> list[str]:
    """Validation accuracy on MNIST against seconds of training."""
    trials = _stored("mnist")
    longest = max(values["validation"][-1][0] for values in trials)
    low, left, bottom, height = 0.97, x + 50, y + 180, 150

    def place(seconds: float, accuracy: float) -> tuple[float, float]:
        across = left + seconds / longest * (width - 60)
        return across, bottom - (max(accuracy, low) - low) / (1.0 - low) * height

    parts = [f'<text class="title" x="{x}" y="{y}">MNIST: validation accuracy</text>']
    for accuracy in (0.97, 0.98, 0.99, 1.0):
        _, level = place(0.0, accuracy)
        parts += [
            f'<line class="grid" x1="{left}" x2="{x + width - 10}" y1="{level}" y2="{level}"/>',
            f'<text class="small" x="{left - 6}" y="{level + 4}" text-anchor="end">'
            f"{accuracy:.0%}</text>",
        ]
    for values in trials:
        points = [place(*pair) for pair in values["validation"]]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
        parts.append(f'<polyline class="line" fill="none" stroke-width="2" points="{path}"/>')
        parts += [f'<circle class="ours" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    tests = [values["test_accuracy"] for values in trials]
    note = f"test accuracy {statistics.fmean(tests):.2%} (mean of {len(tests)} seeds)"
    return [
        *parts,
        f'<text class="small" x="{left}" y="{bottom + 16}">0 s</text>',
        f'<text class="small" x="{x + width - 10}" y="{bottom + 16}" text-anchor="end">'
        f"{longest:.0f} s of training on 2 CPU cores</text>",
        f'<text class="small" x="{x}" y="{y + 222}">{note}</text>',
    ]


def draw() -> str:
    """The picture as SVG text."""
    parts = [*_bars(20, 30, 440), *_curves(490, 30, 370)]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 270" role="img">',
            "<title>Step time beside other trainers, and accuracy on MNIST over time</title>",
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    _PICTURE.write_text(draw())
    sys.exit(0)
