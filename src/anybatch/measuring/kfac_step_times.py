"""Seconds of whole steps of K-FAC on one rank, where what the blocks cost by themselves is known.

step          with nothing due: gradients as matrices, preconditioned, bounded, written back,
              and the hooks of the passes before it, which see that nothing is due
collection    what a step takes longer that has new statistics: scaled, averaged, their means
taking apart  what came from other ranks: a copy of every gradient
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import nn

from anybatch.kfac.applying import gradient_matrix
from anybatch.kfac.preconditioner import KFAC
from anybatch.measuring.block_times import seconds_of, wait_for
from anybatch.recipe import FisherNormBound, FixedRefresh, KFACSettings
from anybatch.world import World

__all__ = ["StepSeconds", "StepTimes"]

_VISITS = 3  # of each kind of step in a round
_NEVER = 10**9  # updates
_HOOKS = 200  # calls of a hook that are timed together


class StepSeconds(NamedTuple):
    """One round's seconds; see the module.

    Attributes:
        step: between refreshes, every block on this rank.
        collection: that new statistics add to it.
        taking_apart: of what all blocks' owners send.
    """

    step: float
    collection: float
    taking_apart: float


@final
class StepTimes:
    """A K-FAC of its own on a model, whose steps are timed; its statistics are refreshed on demand.

    Args:
        model: bare; its gradients are preconditioned after each pass.
        kfac: as it will be used, but for its refresh and its bound.
        device: of the model.
        update: forward and backward pass of an update; called before each step.

    Cost:
        Memory of all factors and inverses; inverting each of them once.
    """

    def __init__(
        self,
        model: nn.Module,
        kfac: KFACSettings,
        device: torch.device,
        update: Callable[[], object],
    ) -> None:
        rare = FixedRefresh(statistics_every=_NEVER, inverse_every=_NEVER**2, early_inverses=False)
        settings = dataclasses.replace(
            kfac, fisher="empirical", refresh=rare, bound=FisherNormBound()
        )
        self._device, self._update = device, update
        self._kfac = KFAC(model, settings=settings, world=World(device))  # of this rank alone
        self._hooks = _hook_seconds() * sum(len(b.modules) for b in self._kfac.coverage.blocks)
        self._take()  # the first one inverts

    def close(self) -> None:
        """Take the hooks away."""
        self._kfac.close()

    def take(self) -> StepSeconds:
        """One round."""
        quiet = statistics.median(self._take() for _ in range(_VISITS))
        self._kfac.refresh_factor = 1.0 / _NEVER  # statistics are due in every update
        self._kfac.begin_update()
        measuring = statistics.median(self._take() for _ in range(_VISITS))
        self._kfac.refresh_factor = 1.0
        self._kfac.begin_update()
        blocks = [
            block for block in self._kfac.coverage.blocks if block.parameters[0].grad is not None
        ]
        matrices = [gradient_matrix(block).flatten() for block in blocks]
        copied = seconds_of(lambda: torch.cat(matrices), self._device)
        return StepSeconds(quiet + self._hooks, max(measuring - quiet, 0.0), copied)

    def _take(self) -> float:
        """Seconds of one step, after passes of its own."""
        self._update()
        wait_for(self._device)
        started = time.perf_counter()
        self._kfac.step()
        wait_for(self._device)
        return time.perf_counter() - started


def _hook_seconds() -> float:
    """What a hook adds to the call of a module when it has nothing to do."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        return None

    module, value = nn.Identity(), torch.zeros(1)
    host = torch.device("cpu")

    def calls() -> None:
        for _ in range(_HOOKS):
            module(value)

    bare = seconds_of(calls, host)
    module.register_forward_hook(hook, with_kwargs=True)
    return max(seconds_of(calls, host) - bare, 0.0) / _HOOKS
