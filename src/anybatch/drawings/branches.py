"""Pictures of a plan's branches: losses over the same time, and where each branch ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from anybatch.drawing import COLOURS, Line, draw_lines, finish_axes
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BRANCHES", "draw_branch_ends", "draw_branch_losses"]

_LEGEND = 0.35  # of the height, above the curves
_PART = 10  # of a branch, that its losses are averaged over


class _Branch(NamedTuple):
    """An arm: its name, the losses of each data order, and their validation losses at the end."""

    label: str
    losses: tuple[tuple[float, ...], ...]
    ends: tuple[float, ...]


def _branches(measured: Measured) -> list[_Branch]:
    samples = measured.samples
    names = ("branch", "seed", "loss", "validation_loss", "batch_size", "lr")
    found: dict[float, dict[float, list[tuple[float, float]]]] = {}
    labels: dict[float, str] = {}
    flags = samples.get("preconditioned", (0.0,) * len(samples["lr"]))
    columns = (samples[name] for name in names)
    for flag, number, seed, loss, end, size, lr in zip(flags, *columns, strict=True):
        found.setdefault(number, {}).setdefault(seed, []).append((loss, end))
        labels[number] = f"{size:,.0f}{' with K-FAC' if flag else ''} at lr {lr:.3g}"
    return [
        _Branch(
            labels[number],
            tuple(tuple(loss for loss, _ in rows) for rows in by_seed.values()),
            tuple(rows[-1][1] for rows in by_seed.values()),
        )
        for number, by_seed in sorted(found.items())
    ]


def draw_branch_losses(ax: Axes, measured: Measured) -> None:
    """Draw each branch's training loss against its share of the time that all of them took.

    A moving mean over a tenth of the branch, and over the data orders.

    Args:
        ax: to draw on.
        measured: of kind "branches".
    """
    lines = []
    for number, branch in enumerate(_branches(measured)):
        length = min(map(len, branch.losses))
        means = [statistics.fmean(series[k] for series in branch.losses) for k in range(length)]
        smooth, width = _moving_mean(means), max(1, length // _PART)
        lost = next((k for k, value in enumerate(smooth) if not math.isfinite(value)), length)
        smooth = smooth[: lost + 1]  # one cross where it diverged
        x = [(k + width / 2) / length for k in range(len(smooth))]
        lines.append(Line(label=branch.label, x=x, y=smooth, colour=number,
                          style="line" if number < len(COLOURS) else "dashed"))  # fmt: skip
    draw_lines(ax, lines, x_label="share of a branch's time, the same for all",
               y_label="training loss")  # fmt: skip
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + _LEGEND * (high - low))
    ax.legend(frameon=False, fontsize="small", ncols=2, title="batch size", title_fontsize="small")


def _moving_mean(values: Sequence[float]) -> list[float]:
    width = max(1, len(values) // _PART)
    return [statistics.fmean(values[k - width + 1 : k + 1]) for k in range(width - 1, len(values))]


def draw_branch_ends(ax: Axes, measured: Measured) -> None:
    """Draw the validation loss at the end of each branch, a dot for each data order.

    Args:
        ax: to draw on.
        measured: of kind "branches".
    """
    branches = _branches(measured)
    for row, branch in enumerate(branches):
        known = [end for end in branch.ends if math.isfinite(end)]
        colour = COLOURS[row % len(COLOURS)]
        ax.plot([min(known), max(known)] if known else [], [row, row] if known else [],
                color=colour, linewidth=2.0)  # fmt: skip
        ax.plot(known, [row] * len(known), "o", color=colour, markersize=5)
        if len(known) < len(branch.ends):
            ax.text(1.0, row, "diverged", ha="right", va="center", color=colour,
                    transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_yticks(range(len(branches)), [branch.label for branch in branches])
    ax.set_ylim(len(branches) - 0.5, -0.5)
    finish_axes(ax, "validation loss at the end", "")


def _caption(measured: Measured) -> str:
    told = []
    for branch in _branches(measured):
        last = [statistics.fmean(series[-max(1, len(series) // _PART) :])
                for series in branch.losses]  # fmt: skip
        low, high = min(last), max(last)
        ends = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        sound = all(map(math.isfinite, last))
        text = f"training loss {ends}" if sound else "diverged"
        told.append(f"{branch.label}: {len(branch.losses[0]):,} updates, {text}")
    seeds = max((len(branch.losses) for branch in _branches(measured)), default=0)
    return (
        f"Short trainings from the pilot's state at several batch sizes and learning rates, each "
        f"in {seeds} data orders; losses are means over a tenth of a branch. At the end, from the "
        f"lowest to the highest order: {'; '.join(told)}."
    )


BRANCHES = Drawing("Branches from the pilot", (draw_branch_losses, draw_branch_ends), _caption)
"""Losses over the same time, and validation losses at the end."""
