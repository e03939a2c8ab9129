"""Options of `anybatch calibration`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anybatch.options.parts import Flag

__all__ = ["Calibration"]


@dataclass(kw_only=True)
class Calibration:
    """Say how often what plans foretold came true on this machine.

    Example: anybatch calibration
    """

    ledger: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Of predictions and outcomes; by default ANYBATCH_LEDGER, then the one in your home."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.calibration import calibration

        return calibration(self)
