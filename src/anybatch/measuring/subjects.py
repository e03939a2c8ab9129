"""What can be measured: a task, a training under way, a loop of somebody's own.

Each opens loops, one for each repeat, and leaves everything as found at its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

import torch

from anybatch.errors import InputError
from anybatch.measuring.keeping import Kept
from anybatch.measuring.loops import Loop, OwnLoop, TrainingLoop, new_training
from anybatch.recipe import Recipe
from anybatch.task import Task
from anybatch.training.snapshot import preserved_random_state, preserved_training
from anybatch.training.training import Training
from anybatch.world import World

__all__ = ["OpenLoop", "Subject", "opened_training", "recipe_settings", "subject_of"]

_BATCHES_APART = 100  # between the beginnings of two repeats on a training under way

OpenLoop: TypeAlias = Callable[[int], AbstractContextManager[Loop]]
"""Opens the loop of a repeat, which `with` closes again."""


class Subject(Protocol):
    """Something that loops can be opened on."""

    is_first: bool

    def opened(self) -> AbstractContextManager[OpenLoop]:
        """A function that opens the loop of a repeat, which `with` closes again."""
        ...

    def described(self) -> dict[str, Any]:
        """Plain values for the measurement's settings."""
        ...

    def not_covered(self) -> list[str]:
        """What could not be put back, in words."""
        ...


def subject_of(
    task: Task | Training | None,
    recipe: Recipe | None,
    step: Callable[[], Any] | None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    restore: Sequence[Any],
) -> Subject:
    """What the arguments of `measure_lr_range` describe.

    Args:
        task: or a training under way.
        recipe: with a task.
        step: of somebody's own loop.
        optimizer: or several, whose lr `step` uses.
        restore: what else `step` changes.

    Raises:
        InputError: they do not make one loop.
    """
    if step is not None or optimizer is not None:
        if task is not None or recipe is not None:
            raise InputError("step", "must be given without a task or a recipe")
        if step is None or optimizer is None or not callable(step):
            raise InputError("step", "must be a function, given together with its optimizer")
        return _OwnSubject(step, _optimizers(optimizer), _things(restore))
    if restore:
        raise InputError("restore", "must come with step and optimizer")
    if isinstance(task, Training):
        if recipe is not None:
            raise InputError("recipe", "must be left out for a training, which has its own")
        return _TrainingSubject(task)
    _check_task(task, recipe)
    assert isinstance(task, Task)
    assert recipe is not None
    return _TaskSubject(task, recipe)


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers, each with something to update."""
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for optimizer in found:
        if not isinstance(optimizer, torch.optim.Optimizer):
            rule = "must be a torch.optim.Optimizer, or a list of them"
            raise InputError("optimizer", rule, type(optimizer).__name__)
    if not any(group["params"] for optimizer in found for group in optimizer.param_groups):
        raise InputError("optimizer", "must have at least one parameter")
    return found


def _things(given: Any) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        rule = "must be a list of modules and other things that step changes"
        raise InputError("restore", rule, type(given).__name__)
    return list(given)


@contextmanager
def opened_training(
    task: Task | Training, recipe: Recipe | None = None, *, repeat: int = 0
) -> Iterator[Training]:
    """A training that a measurement may step, evaluate or change as it likes.

    Of a task and a recipe it is a new one, without schedules, target or stop; a training under way
    is itself given, and is bitwise as found afterwards, as are the generators, also after an
    exception.

    Args:
        task: what is to be learned; or a Training.
        recipe: with a task.
        repeat: added to the recipe's seed; for a task alone.

    Raises:
        InputError: they do not fit together.

    Collectives:
        Those of building a training, or of its `state_dict`; every rank must call.
    """
    if isinstance(task, Training):
        if recipe is not None:
            raise InputError("recipe", "must be left out for a training, which has its own")
        with preserved_training(task):
            yield task
        return
    _check_task(task, recipe)
    assert recipe is not None
    with (
        preserved_random_state(),
        new_training(task, recipe, seed=recipe.seed + repeat, world=None) as training,
    ):
        yield training


def _check_task(task: Any, recipe: Any) -> None:
    if not isinstance(task, Task):
        raise InputError("task", "must be a Task or a Training", type(task).__name__)
    if not isinstance(recipe, Recipe):
        raise InputError("recipe", "must be a Recipe", type(recipe).__name__)


class _TaskSubject:
    """A new training for each repeat, with the recipe's seed and the ones after it."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._task, self._recipe = task, recipe
        self.world = World.from_environment(recipe.compute.device)
        self.is_first = self.world.is_first

    @contextmanager
    def opened(self) -> Iterator[OpenLoop]:
        @contextmanager
        def open_loop(repeat: int) -> Iterator[Loop]:
            seed = self._recipe.seed + repeat
            with (
                new_training(self._task, self._recipe, seed=seed, world=self.world) as training,
                contextlib.closing(TrainingLoop(training)) as loop,
            ):
                yield loop

        good = False
        try:
            yield open_loop
            good = True
        finally:
            self.world.close(together=good)

    def described(self) -> dict[str, Any]:
        return recipe_settings(self._task, self._recipe)

    def not_covered(self) -> list[str]:
        return []


class _TrainingSubject:
    """A training under way; each repeat begins further on in the data."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.is_first = training.world.is_first

    @contextmanager
    def opened(self) -> Iterator[OpenLoop]:
        with TrainingLoop.around(self._training) as loop:

            @contextmanager
            def open_loop(repeat: int) -> Iterator[Loop]:
                loop.begin_at(repeat * _BATCHES_APART)
                yield loop

            yield open_loop

    def described(self) -> dict[str, Any]:
        values = recipe_settings(self._training.task, self._training.recipe)
        return values | {"after_updates": self._training.updates}

    def not_covered(self) -> list[str]:
        return []


def recipe_settings(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What every measurement on a task says of it: plain values."""
    return {
        "task": task.name,
        "optimizer": recipe.optimizer.name,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "metric_name": task.judge.name,
        "metric_direction": task.judge.direction,
    }


class _OwnSubject:
    """Somebody's own step function; each repeat seeds the generators anew, but the first."""

    def __init__(
        self,
        step: Callable[[], Any],
        optimizers: Sequence[torch.optim.Optimizer],
        restore: Sequence[Any],
    ) -> None:
        self._step, self._optimizers = step, optimizers
        self._kept = Kept(optimizers, restore)
        groups = (group for optimizer in optimizers for group in optimizer.param_groups)
        device = next(group["params"][0].device for group in groups if group["params"])
        self._world = World.of_group(device)
        self.is_first = self._world.is_first

    @contextmanager
    def opened(self) -> Iterator[OpenLoop]:
        loop = OwnLoop(self._step, self._optimizers, self._kept, world=self._world)

        @contextmanager
        def open_loop(repeat: int) -> Iterator[Loop]:
            loop.seed = repeat or None
            yield loop

        try:
            yield open_loop
        finally:
            self._kept.put_back()

    def described(self) -> dict[str, Any]:
        return {"task": "", "optimizer": type(self._optimizers[0]).__name__, "metric_name": None}

    def not_covered(self) -> list[str]:
        return self._kept.not_covered
