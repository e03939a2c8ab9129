"""Local updates: each rank takes its own steps, and the ranks average their weights now and then.

    gradient of rank r:  (R/B) sum of its share's examples' gradients (mean loss; R sum for a sum)
    weights of rank r:   w_r <- update rule (w_r, g_r), with r's own momentum
    after the 1st, (k+1)-th, (2k+1)-th ... update of the phase:  w_r <- (1/R) sum_s w_s

with R ranks and B examples per update. Where all shares are equal, R/B is one by a share: the mean
of the share. Where they are not, each example still weighs the same, so that with k = 1 plain SGD
is synchronous SGD. Floating-point buffers (BatchNorm's statistics, moved by the rank's own ghosts)
are averaged with the weights; of whole numbers (its counts) the largest is taken.

Reference: Stich 2019, "Local SGD converges fast and communicates little", algorithm 1; Lin, Stich,
Patel, Jaggi 2020, "Don't use large mini-batches, use local SGD", section 3 (post-local).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anybatch.errors import InputError
from anybatch.recipe import LocalUpdates
from anybatch.schedules import Clock, Position
from anybatch.training.build import Optimizer
from anybatch.world import World

__all__ = ["LocalPhase", "agree_on_counts", "averaged_tensors", "bytes_per_update"]


def bytes_per_update(
    gradient_bytes: int, averaged_bytes: int, *, every: int, local_share: float = 1.0
) -> float:
    """Bytes that a rank hands to all-reduces per update, mean over a run.

    (1 - s) gradient + s averaged / every, s being the share of local updates.

    Args:
        gradient_bytes: that an update exchanges else, BatchNorm's statistics included.
        averaged_bytes: of weights and buffers, and of the optimizer's state where it is averaged.
        every: updates between two averagings, >= 1.
        local_share: of the updates, in [0, 1].

    Example:
        >>> bytes_per_update(400, 440, every=16)
        27.5
        >>> bytes_per_update(400, 440, every=4, local_share=0.5)
        255.0
    """
    return (1.0 - local_share) * gradient_bytes + local_share * averaged_bytes / every


@final
class LocalPhase:
    """When ranks update on their own, and the averaging of what they have come to.

    Args:
        settings: of the recipe.
        clock: lengths of the run.
        world: ranks that average.

    Attributes:
        has_begun: whether the next update is a rank's own.

    Raises:
        InputError: its beginning cannot be told.
    """

    def __init__(self, settings: LocalUpdates, clock: Clock, world: World) -> None:
        try:
            self._begin = clock.examples(settings.begin_after)
        except InputError as error:
            raise error.renamed("communication.begin_after") from None
        self._settings, self._world = settings, world
        self._averager = world.averager(settings.every) if world.size > 1 else None
        self.has_begun = self._begin == 0

    def take_step(self, model: nn.Module, optimizer: Optimizer, position: Position) -> None:
        """Average after an update, where the phase has begun and it is time.

        Args:
            model: this rank's.
            optimizer: its state is averaged too, where the settings say so.
            position: of the update.

        Collectives:
            One all-reduce of all that is averaged and a small one of counts, where it is time.
        """
        if self.has_begun and self._averager is not None:
            tensors = averaged_tensors(model, optimizer, state=self._settings.state == "averaged")
            with torch.no_grad():
                if self._world.average_in_place(tensors, self._averager):
                    agree_on_counts(model, self._world)
        self.has_begun = self.has_begun or position.examples + position.size >= self._begin

    def state_dict(self) -> dict[str, Any]:
        """Whether the phase has begun, and its updates so far."""
        step = 0 if self._averager is None else self._averager.step
        return {"has_begun": self.has_begun, "updates": step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.has_begun = state["has_begun"]
        if self._averager is not None:
            self._averager.step = state["updates"]


def averaged_tensors(model: nn.Module, optimizer: Optimizer, *, state: bool) -> list[Tensor]:
    """What ranks average, in an order that all of them have.

    Args:
        model: trained parameters and saved floating-point buffers.
        optimizer: tensors of its state, but for counts.
        state: whether these are averaged.
    """
    tensors: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    tensors += [buffer for buffer in _saved_buffers(model) if buffer.is_floating_point()]
    if state:
        leaves = tree_leaves(optimizer.state_dict())
        tensors += [x for x in leaves if isinstance(x, Tensor) and x.dim() > 0]
    return tensors


def agree_on_counts(model: nn.Module, world: World) -> None:
    """Give buffers of whole numbers the largest value over ranks, as one has counted more batches.

    Collectives: one all-reduce of 8 bytes for each number; every rank must call.
    """
    counts = [x for x in _saved_buffers(model) if not x.is_floating_point()]
    if not counts:
        return
    packed = torch.cat([count.flatten().long() for count in counts])
    world.largest_in_place(packed)
    parts = torch.split(packed, [count.numel() for count in counts])
    for count, part in zip(counts, parts, strict=True):
        count.copy_(part.view_as(count))


def _saved_buffers(model: nn.Module) -> list[Tensor]:
    saved = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in saved]
