"""Preconditioning: a recipe's K-FAC between a model's passes and its transforms of the gradient."""

from __future__ import annotations

from typing import Any, Literal, final

from torch import nn

from anybatch.errors import InputError
from anybatch.kfac.preconditioner import KFAC
from anybatch.objectives import logits_of
from anybatch.recipe import Recipe
from anybatch.schedules import Clock, Position, resolve_schedule, value_at
from anybatch.task import Task
from anybatch.training.build import Optimizer
from anybatch.training.portion import Portion
from anybatch.world import World

__all__ = ["Preconditioning", "check_preconditioner"]


def check_preconditioner(task: Task, recipe: Recipe) -> None:
    """Refuse what cannot stand beside a preconditioner.

    Raises:
        InputError: blocks, control of the batch size, local updates; model statistics of a loss
            that is the task's own.
    """
    settings = recipe.preconditioner
    if settings is None:
        return
    for name in ("blocks", "batch_control", "communication"):
        if getattr(recipe, name) is not None:
            raise InputError(name, "must be left out with a preconditioner: not served together")
    if settings.fisher != "empirical" and (task.loss is not None or task.loss_scope == "batch"):
        rule = 'must be "empirical" for a loss of the task\'s own'
        raise InputError("preconditioner.fisher", rule, settings.fisher)
    if settings.fisher != "empirical" and recipe.loss.coupled == "cached-outputs":
        raise InputError("preconditioner.fisher", 'must be "empirical" with cached outputs')


@final
class Preconditioning:
    """K-FAC as one of a step's parts.

    Args:
        task: says which distribution its loss belongs to.
        recipe: has a preconditioner.
        model: the bare module, before it is compiled or wrapped.
        optimizer: whose lr a bound of the divergence reads.
        clock: lengths of the run, for the schedules.
        world: ranks that share the work.

    Attributes:
        kfac: of the model.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clock: Clock,
        world: World,
    ) -> None:
        assert recipe.preconditioner is not None
        self._settings = recipe.preconditioner
        self._damping = resolve_schedule(recipe.schedules.damping, clock)
        self._refresh = resolve_schedule(recipe.schedules.refresh, clock)
        self._told: dict[tuple[str, str], int] = {}  # failures of inversions that records tell
        self._world = world
        self._family: Literal["softmax", "gaussian"] = (
            "gaussian" if task.kind == "regression" else "softmax"
        )
        self.kfac = KFAC(
            model,
            optimizer,
            settings=recipe.preconditioner,
            world=world,
            loss_reduction=recipe.loss.reduction,
        )

    def apply(self, position: Position) -> None:
        """Set the damping and the intervals of the update at this position.

        Raises:
            InputError: the damping's schedule has come to 0.
        """
        factor = value_at(self._damping, position)
        if not factor > 0:
            raise InputError("schedules.damping", "must stay > 0", factor)
        self.kfac.damping = self._settings.damping * factor
        self.kfac.refresh_factor = value_at(self._refresh, position)

    def begin(self, portion: Portion, *, observed: bool) -> None:
        """Have the passes over a portion observed, where statistics are due.

        Args:
            portion: this rank's share; a placeholder is not observed.
            observed: False for a gradient that is not to be preconditioned.
        """
        self.kfac.begin_update(portion.num_examples)
        self.kfac.observing = observed and portion.counted

    def take_outputs(self, outputs: Any) -> None:
        """Statistics of the model's own distribution, where the recipe asks for them."""
        if self._settings.fisher != "empirical":
            self.kfac.observe_outputs(logits_of(outputs), self._family)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `kfac.state_dict` was taken; what it counts has been told."""
        self.kfac.load_state_dict(state)
        self._told = self._counted()

    def _counted(self) -> dict[tuple[str, str], int]:
        return {
            (name, rung): count
            for name, rungs in self.kfac.counts()["events"].items()
            for rung, count in rungs.items()
        }

    def recorded(self) -> dict[str, Any]:
        """What a step record tells of it: the damping, and refreshes and inversions so far."""
        told = ("refreshes", "refreshes_saved", "inversions", "inversions_saved")
        counts = self.kfac.counts()
        return {"damping": self.kfac.damping} | {name: counts[name] for name in told}

    def new_events(self) -> dict[str, int]:
        """What did not go the ordinary way since this was asked last, over all ranks.

        Returns:
            How often, by "factor: rung of the ladder", and what else `EventCounts` names.

        Collectives:
            One gather of small objects; every rank must call.
        """
        counts = self._counted()
        new = {key: count - self._told.get(key, 0) for key, count in counts.items()}
        self._told = counts
        found: dict[str, int] = {}
        for own in self._world.all_values({key: n for key, n in new.items() if n}):
            for (name, rung), count in own.items():
                found[f"{name}: {rung}"] = found.get(f"{name}: {rung}", 0) + count
        return found
