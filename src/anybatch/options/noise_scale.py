"""Options of `anybatch noise-scale`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["NoiseScale"]


@dataclass(kw_only=True)
class NoiseScale(MeasurementOptions):
    """Measure at which batch size the gradient's noise equals its size; nothing is kept trained.

    Example: anybatch noise-scale mnist
    """

    after: Annotated[int, tyro.conf.arg(metavar="UPDATES")] = 100
    """Updates to train before, at the recipe's lr: the noise scale rises during a training."""
    examples_per_probe: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Examples whose gradient is looked at together; by default 4 batches, at least 64."""
    precision: Annotated[float, tyro.conf.arg(metavar="FACTOR")] = 2.5
    """Stop where the ends of the interval are at most this factor apart."""
    max_probes: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Stop after this many probes."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.noise_scale import noise_scale

        return noise_scale(self)
