"""Mixing in a training: which micro-batch is mixed with what, and what is remembered of an update.

A micro-batch is mixed just before its forward pass, the same whenever it is asked for. Mixup needs
no memory. Running mixup keeps the mixed examples of the last full-size update, each at its place in
the global batch: a batch of inputs, which checkpoints hold too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from anybatch.data.items import tensors_of
from anybatch.data.mixing import MixedTargets, mixup, running_mixup
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.objectives import LossFunction, logits_of
from anybatch.recipe import Mixup, Recipe, RunningMixup
from anybatch.schedules import Constant
from anybatch.task import Task
from anybatch.training.checks import call_model
from anybatch.training.portion import Portion
from anybatch.training.precision import cast
from anybatch.training.sampling import rank_share, share_unit
from anybatch.training.snapshot import preserved_random_state
from anybatch.world import World

__all__ = ["ExampleMixing"]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """Mixed examples of an update, on one rank.

    Attributes:
        num_examples: of the global batch.
        tensors: the inputs', in the order of `tensors_of`, and the class probabilities.
    """

    num_examples: int
    tensors: list[Tensor]


@final
class ExampleMixing:
    """Mixes the micro-batches of an update as the recipe has it; does nothing where it has none.

    Between `begin` and `take` lies an update; only what was taken is remembered.

    Args:
        task: what is learned; its loss must be one value per example.
        recipe: the mixing, the ghosts, the seed.
        world: ranks that share an update.
        loss: (outputs, targets) -> one value per example, label smoothing included.
        model: to count the classes that running mixup spreads a target over.
        sample: a few examples, as the model wants them.

    Attributes:
        unmixed_loss: as given; a measurement may put a clock around it.

    Raises:
        InputError: inputs that are no real numbers, a loss that couples a batch; for running mixup
            another loss than that of a classification, or a batch size that changes.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        world: World,
        loss: LossFunction,
        model: nn.Module,
        sample: Batch,
    ) -> None:
        self._settings = recipe.augmentation.mixing
        self._recipe, self._world, self.unmixed_loss = recipe, world, loss
        self._classes = 0
        if self._settings is not None:
            _check(task, recipe, sample)
        if isinstance(self._settings, RunningMixup):
            self._classes = _count_classes(model, sample)
        self._update = self._num_examples = 0
        self._indices: Tensor | None = None  # of the rank's share; None: nothing is to be mixed
        self._before: _Remembered | None = None
        self._parts: dict[int, list[Tensor]] = {}  # of the gradient in the making, by their place

    def begin(self, portion: Portion, update: int) -> None:
        """Prepare for the parts of another gradient; those of the last are forgotten.

        Args:
            portion: this rank's share of the update.
            update: its number, from 0.
        """
        self._parts = {}
        mixes = self._settings is not None and portion.counted
        self._indices = portion.indices if mixes else None
        self._update, self._num_examples = update, portion.num_examples

    def mixed(self, part: Batch) -> Batch:
        """A micro-batch of the portion, mixed; the same again whenever it is asked for."""
        if self._indices is None:
            return part
        part = part._replace(inputs=cast(part.inputs, self._recipe.compute))
        match self._settings:
            case Mixup(alpha=alpha):
                return mixup(
                    part, alpha, ghost=self._recipe.ghost_batch_size, seed=self._recipe.seed,
                    update=self._update,
                )  # fmt: skip
            case RunningMixup(alpha=alpha):
                place = int((self._indices == part.indices[0]).nonzero()[0, 0])
                return self._with_the_last(part, alpha, place)
            case None:
                return part

    def _with_the_last(self, part: Batch, alpha: float, place: int) -> Batch:
        """Running mixup of the examples from this place of the rank's share on."""
        part = part._replace(targets=self._probabilities(part))
        before = self._before
        if before is not None and before.num_examples == self._num_examples:
            others = [tensor[place : place + len(part.indices)] for tensor in before.tensors]
            part = running_mixup(part, others, alpha, seed=self._recipe.seed, update=self._update)
        self._parts[place] = [*tensors_of(part.inputs), part.targets]
        return part

    def _probabilities(self, part: Batch) -> Tensor:
        """The targets as probabilities of the classes, in the type of the inputs."""
        classes: Tensor = part.targets
        dtype = tensors_of(part.inputs)[0].dtype
        empty = torch.zeros(len(classes), self._classes, dtype=dtype, device=classes.device)
        try:
            return empty.scatter_(1, classes[:, None], 1.0)
        except RuntimeError as error:  # of a streamed set only the loader has seen the labels
            raise InputError("targets", "must be classes of the model", str(error)) from error

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """One value per example, of mixed or plain targets; see `MixedTargets`."""
        if not isinstance(targets, MixedTargets):
            return self.unmixed_loss(outputs, targets)
        own = self.unmixed_loss(outputs, targets.own)
        other = self.unmixed_loss(outputs, targets.partners)
        return torch.lerp(own, other, (1.0 - targets.share).to(own.dtype))

    def take(self) -> None:
        """Remember the last gradient's mixed examples, if its update was of full size."""
        parts, self._parts = self._parts, {}
        if parts and self._recipe.batch_size in ("full", self._num_examples):
            columns = zip(*(parts[place] for place in sorted(parts)), strict=True)
            tensors = [torch.cat(column) for column in columns]
            self._before = _Remembered(self._num_examples, tensors)

    def state_dict(self) -> dict[str, Any] | None:
        """What running mixup remembers on this rank; None: nothing. Tensors are not copied."""
        if self._before is None and not self._parts:
            return None
        before = self._before or _Remembered(0, [])
        return {
            "num_examples": before.num_examples,
            "tensors": before.tensors,
            "begun": self._num_examples,
            "parts": self._parts,
        }

    def load_state_dict(self, states: list[dict[str, Any] | None]) -> None:
        """Put back what `state_dict` returned, each example on one rank, however many there are.

        Args:
            states: of every rank that there was, in order.
        """
        self._before, self._parts = None, {}
        if not isinstance(self._settings, RunningMixup):
            return
        kept = [state for state in states if state is not None and state["num_examples"]]
        if kept:
            self._before = self._shared(kept)
        own = states[self._world.rank] if len(states) == self._world.size else None
        if own is not None:  # of a gradient that has not been taken yet
            self._num_examples, self._parts = own["begun"], dict(own["parts"])

    def _shared(self, states: list[dict[str, Any]]) -> _Remembered:
        """This rank's share of what all ranks together remembered."""
        size: int = states[0]["num_examples"]
        unit, world = share_unit(self._recipe), self._world
        share = rank_share(size, rank=world.rank, world_size=world.size, ghost=unit)
        columns = zip(*(state["tensors"] for state in states), strict=True)
        whole = (torch.cat([tensor.to(world.device) for tensor in column]) for column in columns)
        return _Remembered(size, [tensor[slice(*share)] for tensor in whole])


def _check(task: Task, recipe: Recipe, sample: Batch) -> None:
    """Refuse a mixing that the task or the recipe does not allow."""
    settings = recipe.augmentation.mixing
    thing = f"augmentation.mixing {getattr(settings, 'name', '')}"
    if task.loss_scope == "batch" or recipe.loss.coupled != "whole":
        rule = "must be left out where the loss couples the examples of a batch"
        raise InputError(thing, rule)
    for tensor in tensors_of(sample.inputs):
        if not tensor.is_floating_point():
            raise InputError(thing, "must meet inputs of real numbers", tensor.dtype)
    if not isinstance(settings, RunningMixup):
        return
    if task.kind != "classification" or task.loss is not None:
        rule = "must meet a classification with the default loss, whose targets can be mixed"
        own = task.kind if task.loss is None else "a loss of the task's own"
        raise InputError(thing, rule, own, hint="mixup mixes the losses instead")
    if recipe.schedules.batch_size != Constant() or recipe.batch_control is not None:
        rule = "must meet a constant batch size, as it mixes by the place in the batch"
        raise InputError(thing, rule, "one that changes", hint="mixup mixes within the batch")


def _count_classes(model: nn.Module, sample: Batch) -> int:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), preserved_random_state():
            return int(logits_of(call_model(model, sample.inputs)).shape[1])
    finally:
        model.train(was_training)
