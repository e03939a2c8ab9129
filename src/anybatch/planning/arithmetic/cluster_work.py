"""What one rank takes, from two stored measurements: the curve of its passes, and the stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.cluster_model import KFACWork, Owned, Work
from anybatch.planning.arithmetic.time_model import TimeModel

__all__ = ["work_of"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a value on the wire


def work_of(throughput: Measurement, stages: Measurement) -> Work:
    """What one rank takes, from two measurements of the same task and recipe.

    Args:
        throughput: of kind "throughput": the curve, and the share of the forward pass.
        stages: of kind "stage-times": optimizers, and K-FAC's blocks where it has any.

    Raises:
        InputError: of other kinds.
    """
    if stages.kind != "stage-times":
        raise InputError("measurement", "must be of kind stage-times", stages.kind)
    time = TimeModel.from_measurement(throughput).best
    samples, settings = throughput.samples, stages.settings
    forward, backward = (sum(samples[f"{part}_seconds"]) for part in ("forward", "backward"))
    apply = {
        name: value
        for name in ("sgd", "lars")
        if (value := stages.estimates[f"{name}_seconds"].value) is not None
    }
    return Work(
        time=time,
        forward_share=forward / max(forward + backward, 1e-12),
        gradient_bytes=float(settings["gradient_bytes"]),
        averaged_bytes=float(settings["averaged_bytes"]),
        apply_seconds=apply,
        kfac=_kfac_work(stages),
    )


def _kfac_work(stages: Measurement) -> KFACWork | None:
    settings, estimates = stages.settings, stages.estimates
    fixed = estimates["statistics_fixed_seconds"].value
    each = estimates["statistics_seconds_per_example"].value
    blocks: Sequence[Mapping[str, Any]] = settings["blocks"]
    if fixed is None or each is None or not blocks:
        return None
    chosen = settings["preconditioner"]
    is_shared = chosen["distribution"] == "inverses"
    wire = _BYTES[chosen["wire"]]
    share = float(chosen["batch_share"])
    owned = [part for block in blocks for part in _owned(block, wire, by_factor=is_shared)]
    of_blocks = sum(map(_precondition_seconds, blocks))
    step = _known(stages, "step_seconds", of_blocks)
    beside = max(step - of_blocks, 0.0)
    return KFACWork(
        owned=tuple(owned),
        statistics_fixed_seconds=share * fixed,
        statistics_seconds_per_example=share * each,
        statistics_every=chosen["statistics_every"],
        inverse_every=chosen["inverse_every"],
        distribution=chosen["distribution"],
        everywhere_seconds=beside + (of_blocks if is_shared else 0.0),
        taking_apart_seconds=0.0 if is_shared else _known(stages, "taking_apart_seconds"),
        collection_seconds=_known(stages, "collection_seconds"),
    )


def _known(stages: Measurement, name: str, otherwise: float = 0.0) -> float:
    """An estimate that measurements of older versions lack."""
    estimate = stages.estimates.get(name)
    return otherwise if estimate is None or estimate.value is None else estimate.value


def _owned(block: Mapping[str, Any], wire: int, *, by_factor: bool) -> list[Owned]:
    """A layer as one, or its factors by themselves where inverses travel."""
    factors: Sequence[Mapping[str, Any]] = block["factors"]
    if not by_factor:
        return [
            Owned(
                name=block["name"],
                inversion_seconds=sum(map(_inversion_seconds, factors)),
                precondition_seconds=_precondition_seconds(block),
                statistic_bytes=wire * sum(factor["elements"] for factor in factors),
                gathered_bytes=block["gradient_bytes"],
            )
        ]
    return [
        Owned(
            name=factor["name"],
            inversion_seconds=_inversion_seconds(factor),
            precondition_seconds=0.0,
            statistic_bytes=wire * factor["elements"],
            gathered_bytes=wire * factor["elements"],
        )
        for factor in factors
    ]


def _inversion_seconds(factor: Mapping[str, Any]) -> float:
    return float(statistics.median(factor["inversion_seconds"]))


def _precondition_seconds(block: Mapping[str, Any]) -> float:
    return float(statistics.median(block["precondition_seconds"]))
