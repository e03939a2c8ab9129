"""Measure one rank and foretell many: the measurement of stages with its prediction beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.cluster_link import Link, measured_link
from anybatch.planning.arithmetic.cluster_work import work_of
from anybatch.planning.arithmetic.scaling_curve import (
    METHODS,
    KnownUpdates,
    Prediction,
    ScalingRequest,
    predict_scaling,
)

__all__ = ["LinkChoice", "chosen_link", "prediction_columns", "with_prediction"]

_PRESET_LATENCY = 10e-6  # seconds of a message between hosts
_PRESET_BANDWIDTH = 12.5e9  # bytes per second of one port of 100 Gbit/s


class LinkChoice(NamedTuple):
    """A link, and where its numbers come from, in words."""

    link: Link
    source: str


def chosen_link(
    throughput: Measurement,
    *,
    latency_seconds: float | None = None,
    bytes_per_second: float | None = None,
) -> LinkChoice:
    """The link as given; what is not given as it was measured, or assumed on one rank.

    Args:
        throughput: of kind "throughput"; on several ranks it holds their link.
        latency_seconds: of one message, >= 0.
        bytes_per_second: of one link, > 0.

    Raises:
        InputError: a value out of its bounds.
    """
    base, source = measured_link(throughput), "measured between these ranks"
    if base is None:
        base = Link(latency_seconds=_PRESET_LATENCY, seconds_per_byte=1.0 / _PRESET_BANDWIDTH)
        source = "assumed: 100 Gbit/s and 10 us"
    given = []
    if latency_seconds is not None:
        base = dataclasses.replace(base, latency_seconds=latency_seconds)
        given.append("latency")
    if bytes_per_second is not None:
        base = dataclasses.replace(base, seconds_per_byte=1.0 / bytes_per_second)
        given.append("bandwidth")
    if len(given) == 2:
        return LinkChoice(base, "as given")
    return LinkChoice(base, f"{given[0]} as given, the rest {source}" if given else source)


def with_prediction(
    throughput: Measurement,
    stages: Measurement,
    choice: LinkChoice,
    request: ScalingRequest,
    *,
    updates: Mapping[str, KnownUpdates] | None = None,
) -> tuple[Measurement, list[Prediction]]:
    """The measurement of stages with what it foretells as its fitted columns.

    Args:
        throughput: of kind "throughput", of the same task and recipe.
        stages: of kind "stage-times".
        choice: of the link.
        request: what is asked.
        updates: by method, where they were measured.

    Raises:
        InputError: what is asked cannot be foretold.
    """
    predictions = predict_scaling(
        work_of(throughput, stages), choice.link, request, updates=updates
    )
    settings = dict(stages.settings) | {
        "methods": list(METHODS),
        "request": dataclasses.asdict(request) | {"ranks": list(request.ranks)},
        "batch_size_per_rank": request.batch_size_per_rank,
        "link": dataclasses.asdict(choice.link) | {"source": choice.source},
        "targets": {name: known.target for name, known in (updates or {}).items()},
    }
    fitted = prediction_columns(predictions)
    return dataclasses.replace(stages, settings=settings, fitted=fitted), predictions


def prediction_columns(predictions: Sequence[Prediction]) -> dict[str, tuple[float, ...]]:
    """Predictions as columns of numbers; nan where no updates are known.

    Args:
        predictions: one a row; "method" is its number in `METHODS`.
    """
    rows = []
    for prediction in predictions:
        values = prediction.to_dict()
        row = {
            "method": float(METHODS.index(prediction.method)),
            "ranks": float(prediction.ranks),
            "batch_size": float(prediction.batch_size),
            **values["stages"],
            "seconds_per_update": values["seconds_per_update"],
        }
        for name in ("updates", "seconds_to_target"):
            row[name] = math.nan if values[name] is None else values[name]
        rows.append(row | {"extrapolated": float(prediction.extrapolated)})
    return {name: tuple(float(row[name]) for row in rows) for name in rows[0]}
