"""Options of `anybatch lr-range`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["LRRange"]


@dataclass(kw_only=True)
class LRRange(MeasurementOptions):
    """Measure the range of learning rates that a task can be trained with; nothing is trained.

    Example: anybatch lr-range mnist
    """

    start_lr: Annotated[float, tyro.conf.arg(metavar="LR")] = 1e-7
    """Where the ramp begins."""
    end_lr: Annotated[float, tyro.conf.arg(metavar="LR")] = 10.0
    """Where it ends, if the loss does not blow up before."""
    updates: Annotated[int, tyro.conf.arg(metavar="N")] = 100
    """Updates of a whole ramp."""
    spacing: Annotated[Literal["log", "linear"], tyro.conf.arg(metavar="{log,linear}")] = "log"
    """Whether the ramp multiplies or adds."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Measure from this many beginnings: other weights, order and draws."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.lr_range import lr_range

        return lr_range(self)
