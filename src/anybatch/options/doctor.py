"""Options of `anybatch doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions
from anybatch.options.parts import Flag

__all__ = ["Doctor"]


@dataclass(kw_only=True)
class Doctor(MeasurementOptions):
    """Look for what is commonly wrong with a model, its data and a recipe, in ten seconds.

    Example: anybatch doctor digits
    """

    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 2.0
    """For each check that takes time, at most about."""
    no_timing: Flag = False
    """Leave out what must time the machine (threads, loader)."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.doctor import doctor

        return doctor(self)
