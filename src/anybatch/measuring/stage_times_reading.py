"""What the samples of a stage measurement say: pure arithmetic, which needs no torch.

statistics of b examples    what they add to a forward and backward pass: s(b) = f + c b,
                            through the medians of the smallest and the largest pass
other stages                medians over rounds
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anybatch.measurement import Estimate

__all__ = ["COLUMNS", "read_stage_times"]

COLUMNS = (
    "batch_size",
    "round",
    "plain_seconds",
    "statistics_seconds",
    "sgd_seconds",
    "lars_seconds",
    "inversion_seconds",
    "precondition_seconds",
    "step_seconds",
    "collection_seconds",
    "taking_apart_seconds",
)
"""Of the samples, one row for each round and size of a pass; nan where nothing was measured."""

_Array = NDArray[np.float64]
_RESAMPLES = 400
_LEVELS = (0.025, 0.975)


def read_stage_times(
    samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]
) -> dict[str, Estimate]:
    """The estimates of a measurement of kind "stage-times", from what is stored of it.

    Intervals (95 %) are quantiles of the medians of rounds drawn with replacement.

    Args:
        samples: its columns.
        settings: its settings; "not_measured" says why there is nothing of K-FAC.
    """
    unknown = [math.nan] * len(samples["round"])  # of columns that older measurements lack
    columns = {n: np.asarray(samples.get(n, unknown), dtype=np.float64) for n in COLUMNS}
    rounds = np.unique(columns["round"])
    random = np.random.default_rng(int(settings["seed"]) % 2**32)
    drawn = random.integers(len(rounds), size=(_RESAMPLES, len(rounds)))
    reason = str(settings["not_measured"])
    found = {
        name: _estimate(_by_round(columns, name, rounds), drawn, "seconds", reason)
        for name in COLUMNS[COLUMNS.index("sgd_seconds") :]
    }
    fixed, each = _statistics_lines(columns, rounds, drawn)
    found["statistics_fixed_seconds"] = _of_draws(fixed, "seconds", reason)
    found["statistics_seconds_per_example"] = _of_draws(each, "seconds per example", reason)
    return found


def _by_round(columns: Mapping[str, _Array], name: str, rounds: _Array) -> _Array:
    """(rounds,) medians of a column that is the same for all sizes of a round."""
    return np.array([np.median(columns[name][columns["round"] == number]) for number in rounds])


def _estimate(values: _Array, drawn: NDArray[np.int64], unit: str, reason: str) -> Estimate:
    medians = np.median(values[drawn], axis=1)
    return _of_draws(np.concatenate([[np.median(values)], medians]), unit, reason)


def _of_draws(values: _Array, unit: str, reason: str) -> Estimate:
    """The first value, with the middle 95 % of all others."""
    value = float(values[0])
    if not np.isfinite(value):
        return Estimate(value=None, unit=unit, reason=reason or "was not measured")
    low, high = (float(end) for end in np.quantile(values[1:], _LEVELS))
    return Estimate(value=value, low=min(low, value), high=max(high, value), unit=unit)


def _statistics_lines(
    columns: Mapping[str, _Array], rounds: _Array, drawn: NDArray[np.int64]
) -> tuple[_Array, _Array]:
    """What no example adds to and what each does, both >= 0: of all rounds, then of each draw."""
    sizes = np.unique(columns["batch_size"])
    table = np.full((len(sizes), len(rounds)), np.nan)
    for row, size in enumerate(sizes):
        for column, number in enumerate(rounds):
            here = (columns["batch_size"] == size) & (columns["round"] == number)
            table[row, column] = np.median(columns["statistics_seconds"][here])
    picked = np.concatenate([np.arange(len(rounds))[None], drawn])
    medians = np.maximum(np.median(table[:, picked], axis=2), 0.0)
    first, last = medians[0], medians[-1]
    if len(sizes) == 1:  # nothing tells them apart: in proportion to the examples
        return np.where(np.isnan(last), np.nan, 0.0), last / sizes[0]
    slope = np.maximum(last - first, 0.0) / (sizes[-1] - sizes[0])
    # Through the largest pass, which is the one that clusters take.
    slope = np.minimum(slope, last / sizes[-1])
    return last - slope * sizes[-1], slope
