"""Passes: a micro-batch forward and backward; what every way of forming a gradient is made of.

Plain accumulation stands here; `blocks` forms the gradient block by block, `cached_outputs` that of
a loss which couples a whole batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.task import Task
from anybatch.training.checks import call_model
from anybatch.training.mixing import ExampleMixing
from anybatch.training.normalization import GhostNormalization
from anybatch.training.portion import Portion
from anybatch.training.precision import autocast, cast
from anybatch.training.preconditioning import Preconditioning
from anybatch.world import World

__all__ = ["Passes"]

_KEPT_LOSS_VECTORS = 32  # joined where there are more
_KEPT_WEIGHT_VECTORS = 8  # one for each size of micro-batch that occurs; few do

_T = TypeVar("_T")


@final
class Passes:
    """Forward and backward passes of one model.

    Args:
        task: says whether the loss couples a batch.
        recipe: arithmetic and the reduction of the loss.
        world: ranks whose gradients are summed on the way.
        model: the bare module.
        forward: the same, compiled or wrapped for the ranks.
        normalization: the model's BatchNorm layers.
        mixing: of the examples; has the loss, one value per example.

    Attributes:
        model: the bare module.
        parameters: those that are trained.
        losses: of the gradient in the making: vectors of the counted micro-batches, in order.
        preconditioning: that looks at the model's outputs; None: nothing does.
        local: whether gradients stay on their rank: that of its share's loss, which stands for the
            batch's; their mean over ranks is the batch's gradient.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        world: World,
        model: nn.Module,
        forward: nn.Module,
        normalization: GhostNormalization,
        mixing: ExampleMixing,
    ) -> None:
        self._coupled = task.loss_scope == "batch"
        self._recipe, self._world = recipe, world
        self.model, self._forward = model, forward
        self._normalization, self._mixing = normalization, mixing
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.losses: list[Tensor] = []
        self.local = False
        self.preconditioning: Preconditioning | None = None
        self._weights: dict[tuple[int, float, torch.dtype], Tensor] = {}

    def close(self) -> None:
        """Let go of what belongs to the process group."""
        self._forward = self.model

    def begin(self) -> None:
        """Forget the last gradient, its losses and its ghosts' statistics."""
        self.clear_gradients()
        self.losses = []
        self._normalization.discard()

    def clear_gradients(self) -> None:
        """Let every parameter's `.grad` go."""
        for parameter in self.parameters:
            parameter.grad = None

    def example_weight(self, portion: Portion) -> float:
        """What an example's loss counts for in the update's: 1/B for a mean, 1 for a sum.

        Where gradients stay local, as many times more as there are ranks: R/B, one by the examples
        of the rank's share, where the shares are equal.
        """
        mean = self._recipe.loss.reduction == "mean"
        ranks = self._world.size if self.local else 1
        return ranks * float(portion.counted) / (portion.num_examples if mean else 1)

    def accumulate(self, portion: Portion, micro_batch_size: int | None) -> None:
        """Add the gradient of the portion's loss to `.grad`, summed over ranks with the last part.

        Collectives:
            The gradient's size, overlapped with the last micro-batch's backward.
        """
        weight = self.example_weight(portion)
        for part, is_last in _with_last(portion.parts(micro_batch_size)):
            if is_last and self.preconditioning is not None:
                self.preconditioning.kfac.begin_last_pass()
            self.backward(part, weight, counted=portion.counted, shared=is_last)

    def losses_of(self, part: Batch, *, counted: bool, shared: bool = False) -> Tensor:
        """The losses of a micro-batch with their graph, one for each example.

        Args:
            part: the micro-batch.
            counted: whether BatchNorm's running statistics see it.
            shared: by the wrapped model, whose backward pass sums over the ranks.

        Raises:
            InputError: labels of a streamed set lie outside of the model's outputs.
        """
        part = self._mixing.mixed(part)
        self._normalization.begin(len(part.indices), counted=counted)
        with autocast(self._recipe.compute, self._world.device):
            outputs = self.outputs_of(part, shared=shared)
            if counted and self.preconditioning is not None:
                self.preconditioning.take_outputs(outputs)
            return self.loss_of(outputs, part)

    def outputs_alone(self, part: Batch) -> Any:
        """The model's outputs of a micro-batch, without graph; BatchNorm does not count it."""
        # A compiled model draws its dropout otherwise without a graph: there one is made, and lost.
        keeps_graph = self._recipe.compute.compile
        self._normalization.begin(len(part.indices), counted=False)
        with (
            self._without_communication(False),
            torch.set_grad_enabled(keeps_graph),
            autocast(self._recipe.compute, self._world.device),
        ):
            return tree_map_only(Tensor, _alone, self.outputs_of(part, shared=True))

    def loss_gradients(
        self, outputs: Any, leaves: Sequence[Tensor], part: Batch, weight: float
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The losses of some outputs, and the gradient of weight * (their sum) by each leaf.

        Args:
            outputs: made of the leaves.
            leaves: which require gradients.
            part: whose targets are meant; its inputs are not looked at.
            weight: of each example's loss.
        """
        with autocast(self._recipe.compute, self._world.device):
            losses = self.loss_of(outputs, part)
        start = self._weight_vector(losses, weight)
        return losses.detach(), torch.autograd.grad(losses, leaves, start, allow_unused=True)

    def backward_outputs(
        self, part: Batch, gradients: Sequence[Tensor | None], *, counted: bool, shared: bool
    ) -> None:
        """Add to `.grad` the gradient of the outputs' inner product with `gradients`.

        Args:
            part: the micro-batch.
            gradients: for each tensor of the outputs, in the order of torch's pytrees; None: none.
            counted: whether BatchNorm's running statistics see it.
            shared: sum over ranks what `.grad` then holds.

        Collectives:
            The gradient's size where `shared`; every rank must call.
        """
        self._normalization.begin(len(part.indices), counted=counted)
        with self._without_communication(shared):
            with autocast(self._recipe.compute, self._world.device):
                outputs = self.outputs_of(part, shared=True)
            tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
            pairs = zip(tensors, gradients, strict=True)
            known = [(one, g) for one, g in pairs if g is not None and one.requires_grad]
            torch.autograd.backward([one for one, _ in known], [g for _, g in known])

    def outputs_of(self, part: Batch, *, shared: bool = False) -> Any:
        """The model's outputs of a micro-batch, under the caller's autocast and BatchNorm rule."""
        model = self._forward if shared else self.model
        return call_model(model, cast(part.inputs, self._recipe.compute))

    def loss_of(self, outputs: Any, part: Batch) -> Tensor:
        """The losses of some outputs, one for each example."""
        try:
            losses = self._mixing.loss(outputs, cast(part.targets, self._recipe.compute))
        except IndexError as error:
            raise InputError("targets", "must be classes of the model", str(error)) from error
        if self._coupled:  # one value that stands for every example
            losses = losses.reshape(1).expand(len(part.indices))
        return losses

    def backward(self, part: Batch, weight: float, *, counted: bool, shared: bool = True) -> None:
        """Add weight * (sum of the losses' gradients) to `.grad`.

        Args:
            part: the micro-batch.
            weight: of each example's loss.
            counted: False for a placeholder, and where weights are displaced: neither the losses
                nor BatchNorm's statistics are kept.
            shared: sum over ranks what `.grad` then holds.

        Collectives:
            The gradient's size where `shared`; every rank must call.
        """
        with self._without_communication(shared):
            losses = self.losses_of(part, counted=counted, shared=True)
            losses.backward(self._weight_vector(losses, weight))  # type: ignore[no-untyped-call]
        if counted:
            self._keep(losses.detach())

    def _keep(self, losses: Tensor) -> None:
        # Of many small tensors that stay, each would hold a hole of the heap open between the
        # large ones that go: memory would grow with the number of passes.
        if len(self.losses) >= _KEPT_LOSS_VECTORS:
            self.losses = [torch.cat(self.losses)]
        self.losses.append(losses)

    def _without_communication(self, shared: bool) -> AbstractContextManager[Any]:
        if shared and not self.local:
            return contextlib.nullcontext()
        return self._world.without_communication(self._forward)

    def _weight_vector(self, losses: Tensor, weight: float) -> Tensor:
        """Where backward starts: the weight of each example's loss."""
        key = (len(losses), weight, losses.dtype)
        if key not in self._weights:
            if len(self._weights) >= _KEPT_WEIGHT_VECTORS:
                self._weights.clear()
            self._weights[key] = torch.full_like(losses.detach(), weight)
        return self._weights[key]


def _alone(tensor: Tensor) -> Tensor:
    """A copy without graph, and without the larger tensor that it may be a view of."""
    return tensor.detach().clone()


def _with_last(items: Iterable[_T]) -> Iterator[tuple[_T, bool]]:
    """Each item of at least one, and whether it is the last one."""
    remaining = iter(items)
    present = next(remaining)
    for following in remaining:
        yield present, False
        present = following
    yield present, True
