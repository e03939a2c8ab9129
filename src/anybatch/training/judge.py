"""Judge: what follows from an evaluation. Target, patience, plateau, and how a training ends."""

from __future__ import annotations

from typing import Any, final

from anybatch.controllers import Patience, ReduceOnPlateau
from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.recipe import Recipe
from anybatch.records import EvalRecord, EventRecord
from anybatch.schedules import Clock
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.outcome import Outcome, TargetWatch

__all__ = ["Judge", "divergence"]


@final
class Judge:
    """Takes in the evaluations of one training; the same on every rank, as the records are.

    Args:
        recipe: its `stopping` and `plateau`.
        metric: of the task.
        clock: lengths of the run.

    Attributes:
        every: distance between two evaluations.
        target: the watch over the target, or None.

    Raises:
        InputError: a target about something else than loss or metric, or a distance that cannot
            be told.
    """

    def __init__(self, recipe: Recipe, metric: Metric, clock: Clock) -> None:
        self._stopping, self._metric = recipe.stopping, metric
        try:
            self.every = clock.interval(recipe.stopping.evaluate_every)
        except InputError as error:
            raise error.renamed("stopping.evaluate_every") from None
        target = recipe.stopping.target
        self.target = TargetWatch(target, metric) if target else None
        self._patience = self._new_patience()
        self._plateau = _new_plateau(recipe, metric, clock)

    def _new_patience(self) -> Patience | None:
        if self._stopping.patience is None:
            return None
        return Patience(
            evaluations=self._stopping.patience,
            direction=self._metric.direction,
            min_delta=self._stopping.min_delta,
        )

    def outcome(self, record: EvalRecord, judged: EvalRecord, *, at_end: bool) -> Outcome | None:
        """How this evaluation ends the training, or None.

        Args:
            record: of the validation split.
            judged: of the split that the target is judged on.
            at_end: whether the whole duration was trained.
        """
        if self.target is not None and self.target.is_reached(judged):
            reason = f"target {self.target} reached on {judged.split} at update {record.update}"
            return Outcome(name="finished", reason=reason)
        if self._patience is not None and self._patience.observe(record):
            reason = f"no improvement in {self._stopping.patience} evaluations"
            return self._outcome_at_end(reason, judged)
        if at_end:
            return self._outcome_at_end("the whole duration was trained", judged)
        return None

    def _outcome_at_end(self, reason: str, judged: EvalRecord) -> Outcome:
        if self.target is None:
            return Outcome(name="finished", reason=reason)
        value = self.target.measured(judged)
        by = f"by {abs(value - self.target.value):.4g} ({judged.split} {value:.6g})"
        return Outcome(name="target-missed", reason=f"{self.target} missed {by}; {reason}")

    def control(
        self, record: EvalRecord, hyperparameters: Hyperparameters
    ) -> tuple[EventRecord, ...]:
        """Let the plateau controller act on a training that goes on; what it did, if anything.

        Args:
            record: of the validation split.
            hyperparameters: whose `lr_factor` it multiplies into.
        """
        if self._plateau is None:
            return ()
        before = self._plateau.factor
        after = self._plateau.observe(record, hyperparameters.current()["lr"])
        if self._plateau.event is None:
            return ()
        hyperparameters.lr_factor *= after / before
        return (self._plateau.event,)

    def extend(self) -> None:
        """The duration has been lengthened: patience begins anew, reductions of the lr stay."""
        self._patience = self._new_patience()

    def state_dict(self) -> dict[str, Any]:
        """What target, patience and plateau remember."""
        return {
            "target": None if self.target is None else self.target.state_dict(),
            "patience": None if self._patience is None else self._patience.state_dict(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        memories = (("target", self.target), ("patience", self._patience))
        for name, memory in (*memories, ("plateau", self._plateau)):
            if memory is not None and state.get(name) is not None:
                memory.load_state_dict(state[name])


def _new_plateau(recipe: Recipe, metric: Metric, clock: Clock) -> ReduceOnPlateau | None:
    if recipe.plateau is None:
        return None
    try:
        begin = clock.examples(recipe.plateau.begin_after)
    except InputError as error:
        raise error.renamed("plateau.begin_after") from None
    return ReduceOnPlateau(
        recipe.plateau, metric_direction=metric.direction, begin_after_examples=begin
    )


def divergence(kind: str, update: int, lr: float) -> Outcome:
    """The end of a training whose loss is not finite, with advice.

    Args:
        kind: "training" or "validation".
        update: at which.
        lr: at present.
    """
    reason = (
        f"the {kind} loss is not finite at update {update}; try a third of the lr "
        f"(--set optimizer.lr={lr / 3:.2g}), a warm-up, or clip-global-norm"
    )
    return Outcome(name="diverged", reason=reason)
