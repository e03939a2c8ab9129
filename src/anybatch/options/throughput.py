"""Options of `anybatch throughput`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["Throughput"]


@dataclass(kw_only=True)
class Throughput(MeasurementOptions):
    """Measure seconds per update at each micro-batch size, memory and loading; nothing is trained.

    Example: anybatch throughput mnist
    """

    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 10.0
    """How long to measure."""
    max_micro_batch_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Largest pass to time; by default as far as data, time and half of the memory go."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.throughput import throughput

        return throughput(self)
