"""The order in which an epoch visits the examples: a pure function of (seed, epoch)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from anybatch.data.draws import permutation
from anybatch.data.source import Source
from anybatch.errors import InputError

__all__ = ["Order", "epoch_order"]

Order: TypeAlias = Literal["shuffled", "shuffled-once", "fixed"]


def epoch_order(source: Source, *, seed: int, epoch: int, order: Order = "shuffled") -> Tensor:
    """Example indices in the order of an epoch.

    A fresh permutation each epoch where any example can be fetched, or that of epoch 0 in all of
    them; the stream's own order where it cannot, and that of the data where it is to be fixed.

    Args:
        source: training data of known length.
        seed: the run's seed.
        epoch: number of the pass, from 0.
        order: as the recipe has it.

    Returns:
        int64 on the CPU, shape (examples,).

    Raises:
        InputError: the source's length is unknown.
    """
    if source.num_examples is None:
        raise InputError("train", "must have a known length", hint="give num_examples")
    if not source.random_access or order == "fixed":
        return torch.arange(source.num_examples)
    once = order == "shuffled-once"
    return permutation(source.num_examples, seed=seed, epoch=0 if once else epoch)
