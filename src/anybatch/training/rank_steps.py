"""Weights and optimizers of all ranks in a checkpoint, while ranks update on their own."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from anybatch.errors import InputError
from anybatch.training.step import Step
from anybatch.world import World

__all__ = ["own_step", "steps_of_ranks"]


def steps_of_ranks(step: Step, world: World) -> list[dict[str, Any] | None] | None:
    """On rank 0, the states of the other ranks' steps while they differ; None else.

    Args:
        step: this rank's.
        world: all ranks.

    Collectives:
        One gather of weights and optimizers, while ranks update on their own; every rank must call.
    """
    if not step.is_local:
        return None
    own = None  # rank 0's stands in the checkpoint beside these
    if not world.is_first:
        own = tree_map_only(torch.Tensor, torch.Tensor.cpu, step.state_dict())
    return world.values_at_first(own) or None


def own_step(state: dict[str, Any], world: World) -> dict[str, Any]:
    """The state of this rank's step; the same for all until ranks update on their own.

    Args:
        state: of a training.
        world: all ranks.

    Raises:
        InputError: each rank had weights of its own, and there were more or fewer ranks.
    """
    step: dict[str, Any] = state["step"]
    local, steps = step.get("local"), state.get("steps_of_ranks")
    if local is None or not local["has_begun"]:
        return step
    if len(state["ranks"]) != world.size:
        rule = f"must be {len(state['ranks'])}, as each has weights of its own by now"
        raise InputError("ranks", rule, world.size)
    return step if steps is None or world.is_first else steps[world.rank]
