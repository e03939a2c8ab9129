"""Step: model, optimizer and what stands between them; the one step that everything is made of.

    gradient(portion): for each micro-batch: forward, per-example losses, backward with the weights
        1/B (mean) or 1 (sum) of the global batch B; summed over ranks on the way;
        then the recipe's transforms of the gradient, in order
    update(position): lr, momentum and decay of this position; optimizer; one step of BatchNorm's
        running statistics; averaged weights

Weighting every example by the global count makes accumulation, ranks and a short last batch exact:
nothing is averaged twice. Starting backward from the vector of weights saves the kernels that
would reduce the losses; they are summed when a record is due.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from anybatch.data.source import Batch
from anybatch.objectives import LossFunction
from anybatch.recipe import Average, ExponentialAverage, PolynomialAverage, Recipe
from anybatch.schedules import Clock, Position
from anybatch.task import Task
from anybatch.training.blocks import block_gradient
from anybatch.training.build import build_gradient_transform, build_model, build_optimizer
from anybatch.training.cached_outputs import cached_gradient
from anybatch.training.checks import call_model, check_division, check_model
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.normalization import GhostNormalization
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.training.precision import autocast, model_dtype
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
        loss: (outputs, targets) -> one value per example, label smoothing included.
        plain_loss: without label smoothing, for evaluation.
        gradient_norm: before clipping, of the last gradient; None where nothing computes it.
        block_gradient_norm: mean over the blocks of the last gradient; None without blocks.
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
        self._normalization = GhostNormalization(self.model, recipe.ghost_batch_size)
        self._frozen = [module for module in self.model.modules() if not module.training]
        check_division(task, recipe, world, self._normalization.found)
        self.loss = self._placed(task.loss_function(recipe.loss.label_smoothing))
        self.plain_loss = self._placed(task.loss_function())
        check_model(self.model, task, self.loss, sample)
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self.hyperparameters = Hyperparameters(self.optimizer, recipe.schedules, clock)
        self._transforms = [build_gradient_transform(settings) for settings in recipe.gradient]
        compiled: Any = torch.compile(self.model) if recipe.compute.compile else self.model
        forward = world.parallel(compiled, some_unused=self._leaves_some_unused(sample))
        self._passes = Passes(
            task, recipe, world, self.model, forward, self._normalization, self.loss
        )
        self._average = self._new_average()
        self.gradient_norm: Tensor | None = None
        self.block_gradient_norm: Tensor | None = None
        self.updates = 0

    def _new_average(self) -> AveragedModel | None:
        if self._recipe.averaging is None:
            return None
        average: AveragedModel
        rate_of = _rate_of(self._recipe.averaging)
        # Torch's count lies on the CPU; its first copy of the weights is step 1.
        moving = _moving(lambda: rate_of(int(average.n_averaged) + 1))
        average = AveragedModel(self.model, multi_avg_fn=moving, use_buffers=True)
        average.update_parameters(self.model)  # begins at the initial weights
        return average

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

    @property
    def kept_model(self) -> torch.nn.Module:
        """The model that is evaluated and kept: averaged weights, where averaging is on."""
        return self.model if self._average is None else self._average.module

    def gradient(
        self, portion: Portion, *, micro_batch_size: int | None = None, transformed: bool = True
    ) -> None:
        """Put the gradient of the global batch's loss into every parameter's `.grad`.

        sum over examples of dloss_i/dw, divided by the global count for a mean; then the recipe's
        transforms, in order. The model must be in training mode.

        Args:
            portion: this rank's share, from `Feed.next` or made by hand.
            micro_batch_size: examples of a forward and backward pass; None: as the recipe has it.
            transformed: False leaves the recipe's transforms out.

        Raises:
            InputError: labels of a streamed set lie outside of the model's outputs.

        Collectives:
            The gradient's size, overlapped with the last micro-batch's backward; every rank must
            call, with a placeholder batch where its share is empty.
        """
        self._passes.begin()
        size = micro_batch_size or self._recipe.micro_batch_size
        if self._recipe.blocks is not None:
            lr = self.hyperparameters.current()["lr"]
            self.block_gradient_norm = block_gradient(
                self._passes, portion, self._recipe.blocks, self._world, lr=lr,
                micro_batch_size=size,
            )  # fmt: skip
        elif self._recipe.loss.coupled == "cached-outputs":
            cached_gradient(self._passes, portion, self._world, micro_batch_size=size)
        else:
            self._passes.accumulate(portion, size)
        for transform in self._transforms if transformed else ():
            self.gradient_norm = transform(self._passes.parameters)

    @property
    def losses(self) -> list[Tensor]:
        """Of the last gradient: one vector for each of this rank's micro-batches."""
        return self._passes.losses

    @losses.setter
    def losses(self, losses: list[Tensor]) -> None:
        self._passes.losses = losses

    def update(self, position: Position) -> None:
        """Take the step that `.grad` asks for.

        Args:
            position: of the update in the run; sets scheduled values.

        Collectives:
            BatchNorm's statistics, where there are any; every rank must call.
        """
        self.hyperparameters.apply(position)
        self.optimizer.step()
        self._normalization.take_step(self._world)
        self.updates += 1
        averaging = self._recipe.averaging
        if self._average is not None and averaging and self.updates % averaging.every == 0:
            self._average.update_parameters(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers, optimizer, averages, count; tensors are not copied."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "unsaved_buffers": self._unsaved_buffers(),
            "updates": self.updates,
            "gradient_norm": self.gradient_norm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None and state["average"] is not None:
            self._average.load_state_dict(state["average"])
        elif self._average is not None:
            self._average = self._new_average()  # of a training that kept none: from these weights
        for name, buffer in self._unsaved_buffers().items():
            buffer.copy_(state["unsaved_buffers"][name])
        self.updates, self.gradient_norm = state["updates"], state["gradient_norm"]

    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """Buffers that the model keeps out of its own state (registered as not persistent)."""
        saved = self.model.state_dict()
        return {name: b for name, b in self.model.named_buffers() if name not in saved}


def _rate_of(averaging: Average) -> Callable[[int], float]:
    """Weight of the newest weights in the t-th step of an average, t from 1."""
    match averaging:
        case ExponentialAverage(decay=decay):
            return lambda step: 1.0 - decay
        case PolynomialAverage(power=power):
            return lambda step: (power + 1.0) / (step + power)


def _moving(
    rate: Callable[[], float],
) -> Callable[[Sequence[Tensor], Sequence[Tensor], object], None]:
    """Average <- (1 - rate) average + rate value; whole numbers are copied, not averaged."""

    @torch.no_grad()
    def average(averages: Sequence[Tensor], values: Sequence[Tensor], count: object) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), rate())
        else:
            for kept, value in zip(averages, values, strict=True):
                kept.copy_(value)

    return average
