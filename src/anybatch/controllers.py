"""Controllers: whatever reacts to a measured value.

A controller observes records and answers with a value; its memory is its `state_dict`, so that a
resumed training decides the same.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, TypeVar, final

from anybatch.records import EvalRecord

__all__ = ["Controller", "Patience"]

_RecordT = TypeVar("_RecordT", contravariant=True)
_ValueT = TypeVar("_ValueT", covariant=True)


class Controller(Protocol[_RecordT, _ValueT]):
    """Observes records, answers with a value, and can be saved."""

    def observe(self, record: _RecordT) -> _ValueT:
        """Take in a record and say what follows from it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        ...


@final
class Patience:
    """Early stopping: True once the metric has not improved for `evaluations` evaluations.

    A value that is not finite is no improvement.

    Args:
        evaluations: how many in a row may bring nothing new, >= 1.
        direction: of the metric.
        min_delta: by how much the best must be beaten, in the metric's unit, >= 0.

    Example:
        >>> patience = Patience(evaluations=2, direction="max")
        >>> [patience.judge(value) for value in (0.5, 0.6, 0.6, 0.55)]
        [False, False, False, True]
    """

    def __init__(
        self, *, evaluations: int, direction: Literal["max", "min"], min_delta: float = 0.0
    ) -> None:
        self._evaluations = evaluations
        self._sign = 1.0 if direction == "max" else -1.0
        self._min_delta = min_delta
        self.best = -math.inf
        self.evaluations_without_improvement = 0

    def observe(self, record: EvalRecord) -> bool:
        """Whether to stop after this evaluation."""
        return self.judge(record.metric)

    def judge(self, value: float) -> bool:
        """Whether to stop after this value of the metric."""
        score = self._sign * value
        if math.isfinite(score) and score > self.best + self._min_delta:
            self.best, self.evaluations_without_improvement = score, 0
        else:
            self.evaluations_without_improvement += 1
        return self.evaluations_without_improvement >= self._evaluations

    def state_dict(self) -> dict[str, Any]:
        """The best so far and the evaluations since."""
        return {"best": self.best, "without_improvement": self.evaluations_without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        self.best = state["best"]
        self.evaluations_without_improvement = state["without_improvement"]
