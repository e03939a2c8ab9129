"""The published curve of seconds per iteration against GPUs, and the model of it.

Osawa et al. 2019, figure of ResNet-50 with 32 images a GPU, on V100s, four in a node; the values
were read off the printed figure by eye, to about 0.01 s. The model of
`planning.arithmetic.cluster_model` has four constants that no one measured for us:

    t(R) = seconds of the passes + c * multiply-adds of the busiest rank + alpha * hops
           + beta * bytes

It is linear in them, so they follow from least squares with each >= 0, on at most 64 GPUs.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from anybatch.kfac.packing import packed_count
from anybatch.measuring.step_time import not_negative_least_squares
from anybatch.models.resnet import resnet50
from anybatch.planning.arithmetic.cluster_link import Link
from anybatch.planning.arithmetic.cluster_model import (
    KFACWork,
    Owned,
    StageSeconds,
    Work,
    kfac_stages,
)
from anybatch.planning.arithmetic.time_model import TimeDraws

__all__ = ["FITTED_UP_TO", "PUBLISHED", "VARIANTS", "Variant", "fitted_curve", "resnet50_blocks"]

PUBLISHED = {
    4: 0.724, 8: 0.746, 16: 0.660, 32: 0.598, 64: 0.552,
    128: 0.567, 256: 0.569, 512: 0.659, 1024: 0.690, 2048: 0.744,
}  # fmt: skip
"""GPUs -> seconds per iteration, read by eye."""

FITTED_UP_TO = 64
_IMAGES = 32
_BYTES = 4  # of a value on the wire: the release's default


class Variant(NamedTuple):
    """A choice that the paper leaves open, or that the release made otherwise than we do."""

    placement: Literal["by-name", "longest-first"]
    hops: Literal["tree", "ring"]


VARIANTS = {
    f"{placement}-{hops}": Variant(placement, hops)
    for placement in ("by-name", "longest-first")
    for hops in ("tree", "ring")
}
"""The release places blocks by name; which collectives its NCCL took is not known."""


@functools.cache
def resnet50_blocks() -> tuple[Owned, ...]:
    """The 107 blocks of ResNet-50, their costs in multiply-adds, sizes in bytes.

    Norms are taken channel by channel, whose inversion costs nothing.
    """
    with torch.device("meta"):
        model = resnet50()
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs, inputs = module.weight.shape[0], module.weight[0].numel()
            inputs += module.bias is not None
            found.append(
                Owned(
                    name=name,
                    inversion_seconds=float(inputs**3 + outputs**3),
                    precondition_seconds=float(inputs * outputs * (inputs + outputs)),
                    statistic_bytes=_BYTES * (packed_count(inputs) + packed_count(outputs)),
                    gathered_bytes=_BYTES * inputs * outputs,
                )
            )
        elif isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            found.append(
                Owned(
                    name=name,
                    inversion_seconds=0.0,
                    precondition_seconds=0.0,
                    statistic_bytes=_BYTES * 3 * channels,
                    gathered_bytes=_BYTES * 2 * channels,
                )
            )
    return tuple(found)


def fitted_curve(variant: Variant) -> dict[str, Any]:
    """Constants fitted to at most 64 GPUs, and what they foretell beyond.

    Args:
        variant: of the model.

    Returns:
        Plain values: "constants", "rows" [GPUs, published, model, relative error, was fitted],
        "busiest" multiply-adds of the busiest rank by GPUs.
    """
    ranks = sorted(PUBLISHED)
    design = np.array([_row(variant, count) for count in ranks])
    scale = design.max(axis=0)
    published = np.array([PUBLISHED[count] for count in ranks])
    used = np.array(ranks) <= FITTED_UP_TO
    # Relative errors count, as on a log axis.
    weights = 1.0 / published[used]
    columns = design[used] / scale * weights[:, None]
    constants = not_negative_least_squares(columns, np.ones((int(used.sum()), 1)))[:, 0] / scale
    model = design @ constants
    names = ("passes_seconds", "seconds_per_multiply_add", "latency_seconds", "seconds_per_byte")
    return {
        "constants": dict(zip(names, map(float, constants), strict=True)),
        "rows": [
            [count, float(seen), float(told), float(told / seen - 1.0), bool(count <= FITTED_UP_TO)]
            for count, seen, told in zip(ranks, published, model, strict=True)
        ],
        "stages": [_stages_of(variant, count, constants) for count in ranks],
        "mean_error_of_flat_line": _flat_error(),
    }


def _flat_error() -> float:
    """Mean relative error beyond 64 GPUs of saying "as on 64"."""
    beyond = [value for count, value in PUBLISHED.items() if count > FITTED_UP_TO]
    return float(np.mean([abs(PUBLISHED[FITTED_UP_TO] / value - 1.0) for value in beyond]))


def _row(variant: Variant, ranks: int) -> list[float]:
    """What each constant is multiplied by."""
    latency, bytes_ = (
        _stages(variant, ranks, Link(latency_seconds=a, seconds_per_byte=b, hops=variant.hops,
                                     shares="all-reduce"))
        for a, b in ((1.0, 0.0), (0.0, 1.0))
    )  # fmt: skip
    work = latency.inversion + latency.precondition
    return [1.0, work, _traffic(latency), _traffic(bytes_)]


def _stages_of(variant: Variant, ranks: int, constants: NDArray[np.float64]) -> list[float]:
    """Seconds of passes, busiest rank, latency and bytes."""
    return [float(v) for v in np.array(_row(variant, ranks)) * constants]


def _traffic(stages: StageSeconds) -> float:
    return stages.gradient_traffic + stages.statistics_traffic + stages.gathering


def _stages(variant: Variant, ranks: int, link: Link) -> StageSeconds:
    blocks = resnet50_blocks()
    time = TimeDraws(
        knots=np.array([1.0, float(_IMAGES)]),
        seconds=np.ones((1, 2)),
        optimizer_seconds=0.0,
        loading_seconds_per_example=np.zeros(1),
    )
    gradient = sum(block.gathered_bytes for block in blocks)
    work = Work(
        time=time,
        forward_share=0.5,
        gradient_bytes=gradient,
        averaged_bytes=gradient,
        apply_seconds={"sgd": 0.0},
        kfac=KFACWork(
            owned=blocks,
            statistics_fixed_seconds=0.0,
            statistics_seconds_per_example=0.0,
            placement=variant.placement,
        ),
    )
    return kfac_stages(work, link, batch_size=_IMAGES * ranks, ranks=ranks)
