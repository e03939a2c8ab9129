"""Options of `anybatch loss-oscillation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["LossOscillation"]


@dataclass(kw_only=True)
class LossOscillation(MeasurementOptions):
    """Measure how much the loss jumps between the first updates, for several batch sizes.

    Example: anybatch loss-oscillation digits --batch-sizes 1 8 64 --lr 0.02
    """

    batch_sizes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="B ...")] = ()
    """As in 1 8 64, or 1,8,64; by default the recipe's times 1/16, 1/4, 1, 4 and 16."""
    updates: Annotated[int, tyro.conf.arg(metavar="N")] = 1000
    """Trained at each batch size."""
    lr: Annotated[float | None, tyro.conf.arg(metavar="LR")] = None
    """Constant learning rate; by default the recipe's."""
    max_examples: Annotated[int, tyro.conf.arg(metavar="N")] = 200_000
    """Of each batch size: large ones get fewer updates."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.loss_oscillation import loss_oscillation

        return loss_oscillation(self)
