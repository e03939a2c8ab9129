"""Cached outputs: the exact gradient of a loss that couples a batch, in the memory of its parts."""

from __future__ import annotations

from anybatch.errors import InputError
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.world import World

__all__ = ["cached_gradient"]


def cached_gradient(
    passes: Passes, portion: Portion, world: World, *, micro_batch_size: int | None
) -> None:
    """Put the gradient of the whole batch's loss into `.grad`, in two passes."""
    raise InputError("loss.coupled", 'must be "whole"', "not served yet")
