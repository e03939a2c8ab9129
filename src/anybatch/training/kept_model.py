"""Kept model: the copy that is evaluated and kept where the trained model is not so itself.

That is the case while ranks update on their own (the mean of their weights is what counts) and
where BatchNorm is recalibrated before evaluations. The trained model stays as it is, so how often
one looks changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.data.source import Batch
from anybatch.recipe import ComputeSettings
from anybatch.training.local_updates import agree_on_counts
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.recalibration import recalibrate
from anybatch.world import World

__all__ = ["KeptModel"]


@final
class KeptModel:
    """A copy of a model, brought up to date before each evaluation.

    Args:
        compute: precision of recalibrating passes.
        world: ranks whose mean is kept.
        shares_weights: whether the copy has only BatchNorm's buffers of its own, as the weights to
            evaluate are the trained ones.

    Attributes:
        module: the copy; None before the first evaluation.
        updates: that the model had taken when it was copied; -1: never.
    """

    def __init__(self, compute: ComputeSettings, world: World, *, shares_weights: bool) -> None:
        self._compute, self._world, self._shares_weights = compute, world, shares_weights
        self.module: nn.Module | None = None
        self.updates = -1

    @torch.no_grad()
    def refresh(
        self, base: nn.Module, batches: Iterable[Batch] | None, *, updates: int, mean: bool
    ) -> None:
        """Copy a model, take the mean over ranks, and recalibrate BatchNorm.

        Args:
            base: the trained model or its averaged weights; always of the same form.
            batches: to recalibrate with; None: the running statistics are taken.
            updates: that it has taken.
            mean: whether the ranks' weights and buffers differ.

        Collectives:
            The model's size, where `mean`; those of `recalibrate`, where there are batches.
        """
        if self.module is None:
            self.module = self._copy_of(base)
        own, others = _tensors_of(self.module), _tensors_of(base)
        for tensor, other in zip(own, others, strict=True):
            if tensor is not other:
                tensor.copy_(other)
        if mean:
            self._world.average_in_place([x for x in own if x.is_floating_point()])
            agree_on_counts(self.module, self._world)
        if batches is not None:
            recalibrate(self.module, batches, self._compute, self._world)
        self.updates = updates

    def _copy_of(self, base: nn.Module) -> nn.Module:
        if not self._shares_weights:
            return copy.deepcopy(base)
        norms = (m for m in base.modules() if isinstance(m, (_BatchNorm, GhostBatchNorm)))
        own = {id(buffer) for norm in norms for buffer in norm.buffers()}
        shared = {id(tensor): tensor for tensor in _tensors_of(base) if id(tensor) not in own}
        return copy.deepcopy(base, shared)  # what is in the memo is taken as it is

    def state_dict(self) -> dict[str, Any] | None:
        """The copy and its time; None where there is none. Tensors are not copied."""
        if self.module is None or self.updates < 0:
            return None
        return {"updates": self.updates, "model": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None, base: nn.Module) -> None:
        """Put back what `state_dict` returned.

        Args:
            state: None makes it older than anything.
            base: the model as it stood then.
        """
        self.updates = -1
        if state is not None:
            if self.module is None:
                self.module = self._copy_of(base)
            self.module.load_state_dict(state["model"])
            self.updates = state["updates"]


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
