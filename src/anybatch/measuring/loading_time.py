"""Time to load: batches of a training's own feed, one after the other without computing."""

from __future__ import annotations

import time

import torch

from anybatch.data.items import map_tensors
from anybatch.data.source import Batch
from anybatch.data.streamed import StreamedSource
from anybatch.training.portion import Portion
from anybatch.training.training import Training

__all__ = ["is_streamed", "load_seconds", "loaded_portion", "num_loaders", "repeated_portion"]

_EXAMPLES = 4096  # of one pass; data in memory are gathered up to 2,048 ahead
_TRIES = 3


def is_streamed(training: Training) -> bool:
    """Whether the training data are read example by example from a map-style data set."""
    return isinstance(training.task.source("train"), StreamedSource)


def num_loaders(training: Training) -> int:
    """Loader processes that read while the update computes; 0 for data in memory and streams."""
    return training.recipe.compute.num_workers if is_streamed(training) else 0


def loaded_portion(training: Training, size: int) -> tuple[Portion | None, float]:
    """This rank's share of an update in which each rank has this many examples.

    Args:
        training: whose data, order and augmentation.
        size: examples of one rank.

    Returns:
        The portion, None where the data end before; and the seconds that it took.
    """
    num_examples = size * training.world.size
    feed = training.feed.standing_still(batch_size=num_examples)
    started = time.perf_counter()
    try:
        for _ in range(_TRIES):  # the epoch in progress may end with a shorter batch
            portion = feed.next()
            if len(portion.batch.indices) == size and portion.num_examples == num_examples:
                return portion, time.perf_counter() - started
            feed.advance(portion.num_examples)
        return None, time.perf_counter() - started
    finally:
        feed.close()


def repeated_portion(portion: Portion, size: int) -> Portion:
    """A portion of this many examples, those of a smaller one over and over.

    Args:
        portion: whose examples.
        size: how many, on this rank.

    Example:
        >>> batch = Batch(torch.tensor([5.0, 6.0]), torch.tensor([0, 1]), torch.tensor([3, 4]))
        >>> repeated_portion(Portion(batch, 2, counted=True), 5).batch.inputs
        tensor([5., 6., 5., 6., 5.])
    """
    batch, count = portion.batch, len(portion.batch.indices)
    places = torch.arange(size) % count

    def taken(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(0, places.to(tensor.device))

    inputs, targets = map_tensors(taken, batch.inputs), map_tensors(taken, batch.targets)
    repeated = Batch(inputs, targets, taken(batch.indices))
    return Portion(repeated, portion.num_examples // count * size, counted=True)


def load_seconds(training: Training, size: int, *, longest: float) -> float:
    """Seconds to load this rank's share of an update; the training itself stands still.

    Taken over about 4,096 examples, at least one batch. With loader processes the first batch of
    each, which waits for them to start, is left out.

    Args:
        training: whose data, order, augmentation and loader processes.
        size: examples of one rank.
        longest: seconds after which no further batch is asked for.
    """
    feed = training.feed.standing_still(batch_size=size * training.world.size)
    loaders = num_loaders(training)
    examples = 0
    try:
        for _ in range(loaders):
            feed.advance(feed.next().num_examples)
        started, batches = time.perf_counter(), 0
        while not batches or (
            (examples < max(_EXAMPLES, size) or batches < 2 * loaders)
            and time.perf_counter() - started < longest
        ):
            portion = feed.next()
            examples += len(portion.batch.indices)
            batches += 1
            feed.advance(portion.num_examples)
        if training.world.device.type == "cuda":
            torch.cuda.synchronize(training.world.device)
        return (time.perf_counter() - started) / examples * size
    finally:
        feed.close()
