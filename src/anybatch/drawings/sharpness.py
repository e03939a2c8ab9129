"""Picture of a sharpness measurement: how the largest eigenvalue was approached, and the edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.drawing import COLOURS, REGIONS, Line, draw_lines
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SHARPNESS"]


def _draw(ax: Axes, measured: Measured) -> None:
    """Lr times curvature after each product with its bound above, and the line of the edge."""
    scale, limit = _scale(measured), measured.settings.get("stability_limit")
    lines: list[Line] = []
    bands: list[tuple[list[float], list[float], list[float], int]] = []
    repeats = sorted(set(measured.samples["repeat"]))
    for number, repeat in enumerate(repeats):
        columns = (measured.samples[n] for n in ("repeat", "iteration", "eigenvalue", "residual"))
        rows = [row[1:] for row in zip(*columns, strict=True) if row[0] == repeat]
        x = [row[0] for row in rows]
        low = [scale * row[1] for row in rows]
        high = [scale * (row[1] + row[2]) for row in rows]
        lines.append(Line(label=f"examples {number + 1}", x=x, y=low, colour=number, style="dots"))
        bands.append((x, low, high, number))
    label = "lr x curvature" if scale != 1.0 else "largest eigenvalue"
    draw_lines(ax, lines, x_label="Hessian-vector products", y_label=label, log=False)
    for x, low, high, number in bands:
        ax.fill_between(x, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.12, linewidth=0)
    top = max((value for line in lines for value in line.y if value < float("inf")), default=1.0)
    if limit is not None and scale != 1.0:
        ax.axhline(limit, color=REGIONS["too large"], linewidth=1.4, linestyle=(0, (4, 2)),
                   label=f"edge {limit:.3g}")  # fmt: skip
        top = max(top, limit)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.15 * top if top > 0.0 else None)
    ax.legend(frameon=False, fontsize="small")


def _scale(measured: Measured) -> float:
    """The lr, where an edge is known, so that the curves can be compared with it."""
    known = measured.spans.get("lr_times_sharpness")
    if known is None or known.value is None:
        return 1.0
    return float(measured.settings["lr"]) * float(measured.settings["loss_weight"]) or 1.0


def _caption(measured: Measured) -> str:
    settings = measured.settings
    edge = measured.spans["edge_lr"]
    what = "preconditioned Hessian" if settings["preconditioned"] else "Hessian"
    told = (
        f"The lr {settings['lr']:.3g} stands against an edge of {edge.value:.3g} "
        f"({edge.low:.3g} to {edge.high:.3g})."
        if edge.value is not None
        else "No edge is known."
    )
    return (
        f"Largest eigenvalue of the {what} of the training loss after each Hessian-vector product, "
        f"with its bound (band), on {settings['examples_per_repeat']:,} examples a line. {told}"
    )


SHARPNESS = Drawing("Sharpness against the edge of stability", (_draw,), _caption)
