"""Blocks: the gradient of an update formed block by block, each penalized and clipped by itself."""

from __future__ import annotations

from torch import Tensor

from anybatch.errors import InputError
from anybatch.recipe import BlockSettings
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.world import World

__all__ = ["block_gradient"]


def block_gradient(
    passes: Passes,
    portion: Portion,
    settings: BlockSettings,
    world: World,
    *,
    lr: float,
    micro_batch_size: int | None,
) -> Tensor:
    """Put the mean of the blocks' gradients into `.grad`."""
    raise InputError("blocks", "must be left out", "not served yet")
