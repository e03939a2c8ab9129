"""Options of `anybatch predict-scaling`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions

__all__ = ["PredictScaling"]


@dataclass(kw_only=True)
class PredictScaling(MeasurementOptions):
    """Foretell seconds per update on a cluster, by stage: SGD, LARS, local SGD and K-FAC.

    Stages are measured here; the network is what the options say.

    Example: anybatch predict-scaling mnist --ranks 1,8,64 --bandwidth-gigabytes-per-second 12.5
    """

    ranks: Annotated[str, tyro.conf.arg(metavar="R,R,...")] = "1,2,4,8,16,32,64"
    """Numbers of processes, as in 1,8,64,1024."""
    bandwidth_gigabytes_per_second: Annotated[float | None, tyro.conf.arg(metavar="GB/S")] = None
    """Of one rank's link; by default as measured between these ranks, or 12.5 (100 Gbit/s)."""
    latency_microseconds: Annotated[float | None, tyro.conf.arg(metavar="US")] = None
    """Of one message; by default as measured between these ranks, or 10."""
    batch_size_per_rank: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Grow the batch with the ranks; by default the recipe's batch is divided among them."""
    updates_from: Annotated[
        tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")
    ] = ()
    """Study of batch sizes, or a plan: updates to its target; may be repeated, once a method."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.predict_scaling import predict_scaling

        return predict_scaling(self)
