"""Options of `anybatch sharpness`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["Sharpness"]


@dataclass(kw_only=True)
class Sharpness(MeasurementOptions):
    """Measure the sharpest curvature of the loss, and the largest lr that it allows.

    Example: anybatch sharpness digits --updates 200
    """

    examples: Annotated[int, tyro.conf.arg(metavar="N")] = 512
    """Training examples of each repeat."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Sets of examples."""
    iterations: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Hessian-vector products of each repeat, at most."""
    updates: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Train so many updates before; by default 0, and 100 for Adam."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.sharpness import sharpness

        return sharpness(self)
