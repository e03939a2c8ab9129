"""Records: what a training says while it runs, one frozen value per line of a Run's logs."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "TIME_FIELDS",
    "EvalRecord",
    "EventRecord",
    "Record",
    "StepRecord",
    "from_json",
    "to_json",
]

TIME_FIELDS = frozenset({"seconds", "examples_per_second", "evaluation_seconds"})
"""Fields that differ between two otherwise identical runs."""

_TEXT_FIELDS = ("split", "metric_name", "name", "sentence")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """Some consecutive updates of the training.

    Attributes:
        update: updates done, counted from 1.
        examples: examples seen.
        epoch: passes over the training data, as a decimal.
        loss: mean training loss per example over the updates since the last record.
        batch_size: of the last update.
        lr: of the last update, first parameter group.
        momentum: of the last update, first group (Adam: beta1).
        weight_decay: of the last update, first group.
        gradient_norm: Euclidean norm of the last update's gradient, as the first transform found it
            that measures it (clipping, normalization).
        seconds: of training since the beginning, evaluation left out.
        examples_per_second: over the updates since the last record.
        clipped_share: share of the updates since the last record whose gradient clipping scaled
            down, in [0, 1]; None without clipping.
        block_gradient_norm: mean over the last update's blocks of the Euclidean norm of their mean
            gradients, before penalty and clipping, each weighted by its examples; None without
            blocks.
        squared_block_gradient_norm: the same of the squared norm, which a penalty makes smaller.
        damping: of the last update; like what follows, None without a preconditioner.
        refreshes: measurements of statistics so far, over all factors.
        refreshes_saved: by how many they are fewer than one in every update.
        inversions: so far, over all factors.
        inversions_saved: by how many they are fewer than one in every update.
    """

    update: int
    examples: int
    epoch: float
    loss: float
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    gradient_norm: float | None
    seconds: float
    examples_per_second: float
    clipped_share: float | None = None
    block_gradient_norm: float | None = None
    squared_block_gradient_norm: float | None = None
    damping: float | None = None
    refreshes: int | None = None
    refreshes_saved: int | None = None
    inversions: int | None = None
    inversions_saved: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRecord:
    """One evaluation of a split.

    Attributes:
        update: updates done before it.
        examples: training examples seen before it.
        epoch: passes over the training data before it, as a decimal.
        split: what was evaluated.
        loss: mean per example, without label smoothing.
        metric: mean of the task's metric.
        metric_name: its name.
        seconds: of training before it, as in StepRecord.
        evaluation_seconds: that this evaluation took.
    """

    update: int
    examples: int
    epoch: float
    split: Literal["train", "validation", "test"]
    loss: float
    metric: float
    metric_name: str
    seconds: float
    evaluation_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRecord:
    """Something that a controller did to the training.

    Attributes:
        update: updates done before it.
        examples: training examples seen before it.
        epoch: passes over the training data before it, as a decimal.
        name: what happened, "lr-reduced".
        sentence: the same for people, with its reason.
        values: the numbers in it, by name.
    """

    update: int
    examples: int
    epoch: float
    name: str
    sentence: str
    values: dict[str, float]


Record: TypeAlias = StepRecord | EvalRecord | EventRecord


def to_json(record: Record) -> str:
    """One line of JSON; numbers that are not finite become the texts "nan", "inf", "-inf".

    Example:
        >>> from anybatch.records import from_json, to_json
        >>> evaluation = EvalRecord(update=1, examples=8, epoch=0.5, split="test", loss=math.inf,
        ...     metric=0.1, metric_name="accuracy", seconds=1.0, evaluation_seconds=0.5)
        >>> from_json(to_json(evaluation), EvalRecord) == evaluation
        True
    """
    return json.dumps(plain(dataclasses.asdict(record)), allow_nan=False)


def plain(value: Any) -> Any:
    """`value` with every float that is not finite as text, for strict JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(line: str, kind: type[Record]) -> Any:
    """The record of `kind` that a line of JSON holds."""
    return kind(**_with_floats(json.loads(line)))


def _with_floats(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values with the texts "nan", "inf" and "-inf" as the numbers that they stand for."""
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = _with_floats(value)
        elif value in ("nan", "inf", "-inf") and name not in _TEXT_FIELDS:
            values[name] = float(value)
    return values
