"""Work and links of which everything is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybatch.measurement import Estimate, Measurement
from anybatch.planning.arithmetic.cluster_link import Link
from anybatch.planning.arithmetic.cluster_model import KFACWork, Owned, Work
from anybatch.planning.arithmetic.time_model import TimeDraws

ALPHA, BETA = 1e-4, 1e-9
LINK = Link(latency_seconds=ALPHA, seconds_per_byte=BETA)
GRADIENT = 4e6


def work(*, kfac: KFACWork | None = None, **time: Any) -> Work:
    """10 ms and 1 ms an example, of which 2 ms are the optimizer's; a quarter is forward."""
    values: dict[str, Any] = {
        "knots": np.array([1.0, 101.0]),
        "seconds": np.array([[0.011, 0.111]]),
        "optimizer_seconds": 0.002,
        "loading_seconds_per_example": np.zeros(1),
    }
    return Work(
        time=TimeDraws(**(values | time)),
        forward_share=0.25,
        gradient_bytes=GRADIENT,
        averaged_bytes=1.5 * GRADIENT,
        apply_seconds={"sgd": 0.001, "lars": 0.003},
        kfac=kfac,
    )


def block(name: str, inversion: float = 1.0, **changes: float) -> Owned:
    values = {
        "inversion_seconds": inversion,
        "precondition_seconds": 0.1 * inversion,
        "statistic_bytes": 1000.0,
        "gathered_bytes": 100.0,
    }
    return Owned(name=name, **(values | changes))


def kfac_work(*blocks: Owned, **changes: Any) -> KFACWork:
    values: dict[str, Any] = {
        "statistics_fixed_seconds": 0.001,
        "statistics_seconds_per_example": 1e-4,
    }
    return KFACWork(owned=blocks, **(values | changes))


def stage_times(**preconditioner: Any) -> Measurement:
    """Two layers: "a" with a dense and a diagonal factor, "b" with one of two groups."""
    chosen = {"statistics_every": 10, "inverse_every": 100, "batch_share": 0.5,
              "distribution": "gradients", "wire": "bf16"}  # fmt: skip

    def factor(name: str, elements: int, *seconds: float) -> dict[str, Any]:
        return {"name": name, "elements": elements, "inversion_seconds": list(seconds)}

    blocks = [
        {"name": "a", "gradient_bytes": 400, "precondition_seconds": [0.3, 0.1, 0.2],
         "factors": [factor("a.A", 55, 3.0, 1.0, 2.0), factor("a.G", 7, 0.5)]},
        {"name": "b", "gradient_bytes": 80, "precondition_seconds": [0.05],
         "factors": [factor("b.F", 6, 0.25)]},
    ]  # fmt: skip
    estimates = {"sgd_seconds": 0.001, "lars_seconds": 0.003, "statistics_fixed_seconds": 0.002,
                 "statistics_seconds_per_example": 4e-4, "step_seconds": 0.4,
                 "collection_seconds": 0.003, "taking_apart_seconds": 0.02}  # fmt: skip
    return Measurement(
        kind="stage-times",
        settings={"gradient_bytes": 480, "averaged_bytes": 500, "blocks": blocks,
                  "preconditioner": chosen | preconditioner},
        samples={},
        estimates={n: Estimate(value=v, low=v, high=v) for n, v in estimates.items()},
        seconds=1.0,
        examples=64,
    )  # fmt: skip
