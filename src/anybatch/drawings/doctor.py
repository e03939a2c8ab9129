"""Picture of a doctor's visit: a row for each check, well or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.drawing import MUTED, REGIONS, TEXT, finish_axes
from anybatch.drawings.picture import Drawing, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DOCTOR"]

_LONGEST = 70  # characters of a row


def _draw(ax: Axes, measured: Measured) -> None:
    """The checks from the top, a dot for each: green where it is well."""
    checks = dict(measured.settings["checks"])
    for row, ((name, text), ok) in enumerate(
        zip(checks.items(), measured.samples["ok"], strict=True)
    ):
        colour = REGIONS["learns"] if ok else REGIONS["too large"]
        looked = not str(text).startswith("not looked at")
        ax.plot([0.0], [row], "o" if ok else "X", markersize=6,
                color=colour if looked else MUTED)  # fmt: skip
        shown = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        ax.text(0.03, row, shown, va="center", color=TEXT, fontsize="small", parse_math=False)
        ax.text(-0.03, row, name, va="center", ha="right", color=TEXT, fontsize="small")
    finish_axes(ax, "", "")
    ax.set(xlim=(-0.35, 1.3), ylim=(len(checks) - 0.5, -0.5))
    ax.set_axis_off()


def _caption(measured: Measured) -> str:
    checks = list(measured.settings["checks"])
    ok = measured.samples["ok"]
    wrong = [name for name, well in zip(checks, ok, strict=True) if not well]
    found = f"found: {', '.join(wrong)}" if wrong else "nothing was found"
    return f"{len(checks)} checks, {found}. Grey: not looked at."


DOCTOR = Drawing("What is commonly wrong", (_draw,), _caption)
