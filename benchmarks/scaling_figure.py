"""The figure of docs/predict-scaling.md: the published curve and the model, by stage.

python -m benchmarks.scaling_figure
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from anybatch.drawing import COLOURS, TEXT, finish_axes
from anybatch.reporting.figures import Picture, file_bytes, own_style
from benchmarks.scaling_paper import FITTED_UP_TO, PUBLISHED, VARIANTS, fitted_curve

__all__ = ["draw"]

_PICTURE = Path(__file__).parents[1] / "docs" / "predict-scaling.svg"
_STAGES = {"passes": 0, "busiest rank": 3, "latency": 1, "bytes": 4}


def draw() -> bytes:
    """The figure as SVG."""
    with own_style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        ax = figure.add_subplot()
        counts = sorted(PUBLISHED)
        places = list(range(len(counts)))
        fit = fitted_curve(VARIANTS["by-name-tree"])
        below = [0.0] * len(counts)
        for number, (label, colour) in enumerate(_STAGES.items()):
            parts = [stages[number] for stages in fit["stages"]]
            if any(parts):
                ax.bar(places, parts, bottom=below, color=COLOURS[colour], alpha=0.45,
                       label=f"model: {label}")  # fmt: skip
            below = [low + part for low, part in zip(below, parts, strict=True)]
        other = fitted_curve(VARIANTS["longest-first-tree"])
        ax.plot(places, [row[2] for row in other["rows"]], color=COLOURS[2], linewidth=1.4,
                linestyle=(0, (4, 2)), label="model, blocks longest first")  # fmt: skip
        for chosen, fill, label in (
            (True, TEXT, f"published, fitted (up to {FITTED_UP_TO})"),
            (False, "white", "published, foretold"),
        ):
            own = [(place, PUBLISHED[count]) for place, count in zip(places, counts, strict=True)
                   if (count <= FITTED_UP_TO) == chosen]  # fmt: skip
            ax.plot([p for p, _ in own], [s for _, s in own], "o", color=TEXT, label=label,
                    markerfacecolor=fill, markersize=5)  # fmt: skip
        ax.set_xticks(places, [f"{count:,}" for count in counts])
        ax.set_ylim(0.0, 1.25)
        ax.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
        finish_axes(ax, "GPUs, 32 images each", "seconds per iteration")
        ax.grid(visible=False, axis="x")
    title = "K-FAC on ResNet-50: published seconds per iteration, and the model"
    return file_bytes(Picture(name="scaling", title=title, caption="", figure=figure), "svg")


if __name__ == "__main__":
    _PICTURE.write_bytes(draw())
