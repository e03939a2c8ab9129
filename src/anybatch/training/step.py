"""Step: model, optimizer and what stands between them; the one step that everything is made of.

    gradient(portion): for each micro-batch: forward, per-example losses, backward with the weights
        1/B (mean) or 1 (sum) of the global batch B; summed over ranks on the way;
        then the preconditioner and the recipe's transforms of the gradient, in order
    update(position): lr, momentum and decay of this position; optimizer; rescaling; one step of
        BatchNorm's running statistics; averaged weights

Weighting every example by the global count makes accumulation, ranks and a short last batch exact:
nothing is averaged twice. Starting backward from the vector of weights saves the kernels that
would reduce the losses; they are summed when a record is due.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from anybatch.course import Course
from anybatch.data.source import Batch
from anybatch.objectives import LossFunction
from anybatch.recipe import Recipe
from anybatch.schedules import Clock, Position
from anybatch.task import Task
from anybatch.training.averaging import averaged_model
from anybatch.training.blocks import BlockNorms, block_gradient
from anybatch.training.build import build_model, build_optimizer
from anybatch.training.cached_outputs import cached_gradient
from anybatch.training.checks import call_model, check_division, check_model, check_rules
from anybatch.training.gradient_transforms import GradientTransforms
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.kept_model import KeptModel
from anybatch.training.local_updates import LocalPhase
from anybatch.training.mixing import ExampleMixing
from anybatch.training.normalization import GhostNormalization
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.training.precision import autocast, model_dtype
from anybatch.training.preconditioning import Preconditioning, check_preconditioner
from anybatch.training.rescaling import Rescaling
from anybatch.training.sampling import pass_size
from anybatch.training.snapshot import preserved_random_state, seed_everything
from anybatch.world import World

__all__ = ["Step"]


@final
class Step:
    """One update of a model, in two halves.

    Args:
        task: builds the model and has the loss.
        recipe: every choice.
        clock: lengths of the run, for the schedules.
        world: ranks that step together.
        sample: a few examples, as the model wants them, to try it on.

    Attributes:
        model: the bare module, on this rank's device; weights drawn from the recipe's seed.
        optimizer: as torch knows it.
        hyperparameters: scheduled settings of the optimizer.
        mixing: of the examples of an update.
        plain_loss: without label smoothing, for evaluation.
        preconditioning: of the gradient, before its transforms; None: none.
        transforms: of the gradient, in the recipe's order, with its norm before them.
        block_norms: of the last gradient's blocks; None without blocks.
        updates: taken so far.

    Raises:
        InputError: task, recipe and world do not fit together.
    """

    def __init__(
        self, task: Task, recipe: Recipe, clock: Clock, world: World, sample: Batch
    ) -> None:
        self._task, self._recipe, self._world = task, recipe, world
        seed_everything(recipe.seed)
        self.model = build_model(task, recipe.model, recipe.compute, world)
        self._normalization = GhostNormalization(
            self.model, recipe.ghost_batch_size, recipe.batch_norm
        )
        self._frozen = [module for module in self.model.modules() if not module.training]
        check_division(task, recipe, world, self._normalization.couples)
        check_rules(task, recipe)
        check_preconditioner(task, recipe)
        loss = self._placed(task.loss_function(recipe.loss.label_smoothing))
        self.plain_loss = self._placed(task.loss_function())
        check_model(self.model, task, loss, sample)
        self.mixing = ExampleMixing(task, recipe, world, loss, self.model, sample)
        self.optimizer = build_optimizer(recipe.optimizer, self.model, decayed=recipe.decayed)
        self.hyperparameters = Hyperparameters(
            self.optimizer, recipe.schedules, clock, course=Course.of(recipe, clock)
        )
        self.preconditioning = self._new_preconditioning(clock)
        self.transforms = GradientTransforms(recipe.gradient, seed=recipe.seed)
        compiled: Any = torch.compile(self.model) if recipe.compute.compile else self.model
        forward = world.parallel(compiled, some_unused=self._leaves_some_unused(sample))
        self._passes = Passes(
            task, recipe, world, self.model, forward, self._normalization, self.mixing
        )
        self._passes.preconditioning = self.preconditioning
        self._average = averaged_model(self.model, recipe.averaging)
        rescaling = recipe.rescaling
        self._rescaling = None if rescaling is None else Rescaling(rescaling, self.model)
        self._local = _local_phase(recipe, clock, world)
        self._kept = self._new_kept_model()
        one_by_one = task.loss_scope == "example" or recipe.loss.coupled == "cached-outputs"
        self._divisible = one_by_one and (
            recipe.ghost_batch_size is not None or not self._normalization.couples
        )
        self.block_norms: BlockNorms | None = None
        self.updates = 0

    def _new_preconditioning(self, clock: Clock) -> Preconditioning | None:
        if self._recipe.preconditioner is None:
            return None
        return Preconditioning(
            self._task, self._recipe, self.model, self.optimizer, clock=clock, world=self._world
        )

    def _new_kept_model(self) -> KeptModel | None:
        recalibrated = self._recipe.batch_norm.evaluated_with == "whole-set"
        if self._local is None and not recalibrated:
            return None
        compute, shares_weights = self._recipe.compute, self._local is None
        return KeptModel(compute, self._world, shares_weights=shares_weights)

    def _placed(self, loss: LossFunction) -> LossFunction:
        """A loss with buffers of its own (weights of positive examples, say) on this device."""
        if isinstance(loss, torch.nn.Module):
            loss.to(self._world.device, model_dtype(self._recipe.compute))
        return loss

    def _leaves_some_unused(self, sample: Batch) -> bool:
        """Whether trainable parameters take no part in the loss of a few examples."""
        if self._world.size == 1:
            return False
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.train_mode()
        self._normalization.begin(len(sample.indices), counted=False)
        with preserved_random_state(), autocast(self._recipe.compute, self._world.device):
            self.loss(call_model(self.model, sample.inputs), sample.targets).sum().backward()  # type: ignore[no-untyped-call]
        for buffer, value in buffers:
            buffer.copy_(value)
        trained = (p for p in self.model.parameters() if p.requires_grad)
        unused = any(parameter.grad is None for parameter in trained)
        self.model.zero_grad(set_to_none=True)
        return unused

    def train_mode(self) -> None:
        """Put the model into training mode, but for parts that `build_model` froze by eval()."""
        self.model.train()
        for module in self._frozen:
            module.training = False

    def close(self) -> None:
        """Let go of what belongs to the process group; the model stays usable."""
        self._passes.close()
        if self.preconditioning is not None:
            self.preconditioning.kfac.close()

    @property
    def is_local(self) -> bool:
        """Whether ranks update on their own at present, each with its own weights."""
        return self._local is not None and self._local.has_begun

    @property
    def kept_model(self) -> torch.nn.Module:
        """The model that is evaluated and kept: averaged weights, where averaging is on.

        Once it was brought up to date after the last update, of all ranks and recalibrated, where
        the recipe says so.
        """
        kept = None if self.kept_model_is_due or self._kept is None else self._kept.module
        return self._base if kept is None else kept

    @property
    def kept_model_is_due(self) -> bool:
        """Whether `kept_model` would be another one, were it brought up to date."""
        return self._kept is not None and self._kept.updates != self.updates

    @property
    def _base(self) -> torch.nn.Module:
        """What the kept model is made of, on this rank."""
        return self.model if self._average is None else self._average.module

    def refresh_kept_model(self, batches: Iterable[Batch] | None) -> None:
        """Bring `kept_model` up to date; the trained model stays as it is.

        Args:
            batches: of this rank, to recalibrate BatchNorm with; None: it keeps its averages.

        Collectives:
            The model's size, where ranks have weights of their own; those of `recalibrate`.
        """
        if self._kept is not None:
            self._kept.refresh(self._base, batches, updates=self.updates, mean=self.is_local)

    def gradient(
        self, portion: Portion, *, micro_batch_size: int | None = None, transformed: bool = True
    ) -> None:
        """Put the gradient of the global batch's loss into every parameter's `.grad`.

        sum over examples of dloss_i/dw, divided by the global count for a mean; then the recipe's
        preconditioner and transforms, in order. The model must be in training mode.

        Args:
            portion: this rank's share, from `Feed.next` or made by hand.
            micro_batch_size: examples of a forward and backward pass; None: as the recipe has it.
            transformed: False leaves preconditioner and transforms out.

        Raises:
            InputError: labels of a streamed set lie outside of the model's outputs.

        Collectives:
            The gradient's size, overlapped with the last micro-batch's backward; every rank must
            call, with a placeholder batch where its share is empty.
        """
        self._passes.begin()
        self._passes.local = self.is_local
        self.mixing.begin(portion, self.updates)
        if self.preconditioning is not None:
            self.preconditioning.begin(portion, observed=transformed)
        size = micro_batch_size or pass_size(self._recipe, divisible=self._divisible)
        if self._recipe.blocks is not None:
            lr = self.hyperparameters.current()["lr"]
            self.block_norms = block_gradient(
                self._passes, portion, self._recipe.blocks, self._world, lr=lr,
                micro_batch_size=size,
            )  # fmt: skip
        elif self._recipe.loss.coupled == "cached-outputs":
            cached_gradient(self._passes, portion, self._world, micro_batch_size=size)
        else:
            self._passes.accumulate(portion, size)
        if transformed and self.preconditioning is not None:
            self.preconditioning.kfac.step()
        if transformed:
            self.transforms.apply(self._passes.parameters, self.updates)

    @property
    def loss(self) -> LossFunction:
        """(outputs, targets) -> one value per example, label smoothing included, before mixing."""
        return self.mixing.unmixed_loss

    @loss.setter
    def loss(self, loss: LossFunction) -> None:
        self.mixing.unmixed_loss = loss

    @property
    def losses(self) -> list[Tensor]:
        """Of the last gradient: one vector for each of this rank's micro-batches."""
        return self._passes.losses

    @losses.setter
    def losses(self, losses: list[Tensor]) -> None:
        self._passes.losses = losses

    def prepare(self, position: Position) -> None:
        """Set the scheduled values that the gradient of the update at this position depends on.

        A penalty may follow the lr of its very update; a preconditioner its damping.
        """
        if self._recipe.blocks is not None or self.preconditioning is not None:
            self.hyperparameters.apply(position)
        if self.preconditioning is not None:
            self.preconditioning.apply(position)

    def update(self, position: Position) -> None:
        """Take the step that `.grad` asks for.

        Args:
            position: of the update in the run; sets scheduled values.

        Collectives:
            BatchNorm's statistics, where there are any; in a phase of local updates, now and then
            the model's size instead. Every rank must call.
        """
        self.hyperparameters.apply(position)
        self.optimizer.step()
        if self._rescaling is not None:
            self._rescaling.take()
        self.transforms.take()
        self.mixing.take()
        self._normalization.take_step(self._world, together=not self.is_local)
        self.updates += 1
        if self._local is not None:
            self._local.take_step(self.model, self.optimizer, position)
        averaging = self._recipe.averaging
        if self._average is not None and averaging and self.updates % averaging.every == 0:
            self._average.update_parameters(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers, optimizer, averages, count; tensors are not copied.

        Collectives:
            With a preconditioner on many ranks, one gather of its factors; every rank must call.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "unsaved_buffers": self._unsaved_buffers(),
            "updates": self.updates,
            "local": None if self._local is None else self._local.state_dict(),
            "kept": None if self._kept is None else self._kept.state_dict(),
            "transforms": self.transforms.state_dict(),
            "preconditioner": self._preconditioner_state(),
            "rescaling": None if self._rescaling is None else self._rescaling.state_dict(),
            "block_norms": None if self.block_norms is None else list(self.block_norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None and state["average"] is not None:
            self._average.load_state_dict(state["average"])
        elif self._average is not None:
            # Of a training that kept none: from these weights.
            self._average = averaged_model(self.model, self._recipe.averaging)
        for name, buffer in self._unsaved_buffers().items():
            buffer.copy_(state["unsaved_buffers"][name])
        self.updates = state["updates"]
        if self._local is not None and state.get("local") is not None:
            self._local.load_state_dict(state["local"])
        if self._kept is not None:
            self._kept.load_state_dict(state.get("kept"), self._base)
        kfac = state.get("preconditioner")
        if self.preconditioning is not None and kfac is not None:
            self.preconditioning.load_state_dict(kfac)
        if "transforms" in state:  # not in checkpoints of older versions
            self.transforms.load_state_dict(state["transforms"])
        if self._rescaling is not None and state.get("rescaling") is not None:
            self._rescaling.load_state_dict(state["rescaling"])
        norms = state.get("block_norms")
        self.block_norms = None if norms is None else BlockNorms(*norms)

    def _preconditioner_state(self) -> dict[str, Any] | None:
        return None if self.preconditioning is None else self.preconditioning.kfac.state_dict()

    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """Buffers that the model keeps out of its own state (registered as not persistent)."""
        saved = self.model.state_dict()
        return {name: b for name, b in self.model.named_buffers() if name not in saved}


def _local_phase(recipe: Recipe, clock: Clock, world: World) -> LocalPhase | None:
    """The phase in which ranks update on their own; None: one rank, or none is asked for."""
    if recipe.communication is None:
        return None
    phase = LocalPhase(recipe.communication, clock, world)
    return phase if world.size > 1 else None
