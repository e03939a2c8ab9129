"""Controllers: whatever reacts to a measured value.

A controller observes records and answers with a value; its memory is its `state_dict`, so that a
resumed training decides the same.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, TypeVar, final

from anybatch.errors import InputError
from anybatch.recipe_parts import ReduceOnPlateauSettings
from anybatch.records import EvalRecord, EventRecord

__all__ = ["Controller", "Patience", "ReduceOnPlateau"]

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


@final
class ReduceOnPlateau:
    """Reduces the lr each time a watched value has stopped to improve.

    After each value v with best b so far (mode "min"; "max" mirrors it):

        improved:  v < b - threshold |b|  ("rel")  or  v < b - threshold  ("abs")
        not improved more than `patience` times in a row:  lr <- max(factor lr, min_lr),
            unless that changes lr by no more than eps; the count begins anew, after `cooldown`
            further values that do not count

    This is torch's ReduceLROnPlateau, value by value, but for two cases. torch writes "rel" as
    b (1 - threshold), which for b < 0 lies on the wrong side of b, so that equal values count as
    improvements; and it takes an infinite value as a best that nothing can beat. Here a value that
    is not finite is no improvement.

    The answer is one factor for every parameter group, to be multiplied into whatever lr a schedule
    says; so it works during and after a warm-up. `min_lr` and `eps` bound the lr that results.

    Args:
        settings: of the recipe.
        metric_direction: of the task's metric; needed where that is watched without a `mode`.
        begin_after_examples: evaluations before so many training examples are left out.

    Attributes:
        factor: product of all reductions so far.
        event: what the last observation did, or None.

    Raises:
        InputError: whether the metric is to rise or to fall cannot be told.

    Example:
        >>> plateau = ReduceOnPlateau(ReduceOnPlateauSettings(patience=1, factor=0.5))
        >>> [plateau.judge(loss) for loss in (0.9, 0.8, 0.8, 0.8, 0.7)]
        [1.0, 1.0, 1.0, 0.5, 0.5]

    Reference: torch.optim.lr_scheduler.ReduceLROnPlateau (torch 2.9).
    """

    def __init__(
        self,
        settings: ReduceOnPlateauSettings,
        *,
        metric_direction: Literal["max", "min"] | None = None,
        begin_after_examples: int = 0,
    ) -> None:
        mode = settings.mode or ("min" if settings.watch == "loss" else metric_direction)
        if mode is None:
            raise InputError("mode", 'must be "min" or "max" where a metric is watched', "None")
        self._settings, self._begin = settings, begin_after_examples
        self._sign = 1.0 if mode == "max" else -1.0
        self._best_score = -math.inf  # sign * value: more is better
        self._without_improvement = 0
        self._cooldown_left = 0
        self.factor = 1.0
        self.event: EventRecord | None = None

    def observe(self, record: EvalRecord, lr: float = 1.0) -> float:
        """The factor on the lr after this evaluation; `event` says what was done.

        Args:
            record: of the validation split.
            lr: at present, the factor so far included.
        """
        self.event = None
        if record.examples < self._begin:
            return self.factor
        watched = self._settings.watch
        value = record.loss if watched == "loss" else record.metric
        before, count = self.factor, self._without_improvement + 1
        after = self.judge(value, lr)
        if after != before:
            name = "loss" if watched == "loss" else record.metric_name
            self.event = self._event(record, name, count, (lr, lr * (after / before)))
        return after

    def judge(self, value: float, lr: float = 1.0) -> float:
        """The factor on the lr after this value of what is watched.

        Args:
            value: any number; one that is not finite is no improvement.
            lr: at present, the factor so far included, which `min_lr` and `eps` refer to.
        """
        score = self._sign * value
        if math.isfinite(score) and score > self._to_beat():
            self._best_score, self._without_improvement = score, 0
        else:
            self._without_improvement += 1
        if self._cooldown_left > 0:
            self._cooldown_left -= 1
            self._without_improvement = 0
        if self._without_improvement > self._settings.patience:
            self._cooldown_left, self._without_improvement = self._settings.cooldown, 0
            self.factor *= self._reduction(lr)
        return self.factor

    def _to_beat(self) -> float:
        best, threshold = self._best_score, self._settings.threshold
        if self._settings.threshold_mode == "abs" or math.isinf(best):
            return best + threshold
        # Written as torch writes it, for the same rounding.
        return best * (1.0 + threshold) if best >= 0 else best * (1.0 - threshold)

    def _reduction(self, lr: float) -> float:
        """What the lr is to be multiplied by."""
        reduced = lr * self._settings.factor
        bounded = max(reduced, self._settings.min_lr)
        # A share of the lr as well as eps: at min_lr, rounding must not pass for a reduction.
        if lr - bounded <= max(self._settings.eps, 1e-12 * lr):
            return 1.0
        return self._settings.factor if bounded == reduced else bounded / lr

    def _event(
        self, record: EvalRecord, name: str, count: int, lrs: tuple[float, float]
    ) -> EventRecord:
        best = self._sign * self._best_score
        since = f"improved on {best:.6g}" if math.isfinite(best) else "been finite"
        evaluations = f"{count} evaluation{'s' if count > 1 else ''}"
        return EventRecord(
            update=record.update,
            examples=record.examples,
            epoch=record.epoch,
            name="lr-reduced",
            sentence=f"lr {lrs[0]:.6g} -> {lrs[1]:.6g}: {record.split} {name} has not {since} "
            f"in {evaluations}",
            values={
                "lr_before": lrs[0],
                "lr_after": lrs[1],
                "factor": self.factor,
                "best": best,
                "evaluations": count,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """The best so far, the counts, and the factor."""
        return {
            "best": self._sign * self._best_score,
            "without_improvement": self._without_improvement,
            "cooldown_left": self._cooldown_left,
            "factor": self.factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        self._best_score = self._sign * state["best"]
        self._without_improvement = state["without_improvement"]
        self._cooldown_left = state["cooldown_left"]
        self.factor = state["factor"]
