"""The order in which an epoch visits the examples: a pure function of (seed, epoch)."""

from __future__ import annotations

import torch
from torch import Tensor

from anybatch.data.draws import permutation
from anybatch.data.source import Source
from anybatch.errors import InputError

__all__ = ["epoch_order"]


def epoch_order(source: Source, *, seed: int, epoch: int) -> Tensor:
    """Example indices in the order of an epoch.

    A fresh permutation each epoch where any example can be fetched; the stream's own order where
    it cannot.

    Args:
        source: training data of known length.
        seed: the run's seed.
        epoch: number of the pass, from 0.

    Returns:
        int64 on the CPU, shape (examples,).

    Raises:
        InputError: the source's length is unknown.
    """
    if source.num_examples is None:
        raise InputError("train", "must have a known length", hint="give num_examples")
    if not source.random_access:
        return torch.arange(source.num_examples)
    return permutation(source.num_examples, seed=seed, epoch=epoch)
