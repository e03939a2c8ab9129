"""Training examples for a measurement that looks at the same ones more than once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.training.checks import call_model
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.portion import Portion
from anybatch.training.precision import cast
from anybatch.training.training import Training

__all__ = ["couples_examples", "losses_of", "parts_of", "portions_of"]

_EXAMPLES_AT_ONCE = 256  # of a forward pass, where nothing couples them


def couples_examples(training: Training) -> bool:
    """Whether the loss of an example depends on its batch: BatchNorm, or the loss itself."""
    layers = (GhostBatchNorm, _BatchNorm)
    return training.task.loss_scope == "batch" or any(
        isinstance(module, layers) for module in training.model.modules()
    )


def portions_of(training: Training, num_examples: int, *, skip: int = 0) -> list[Portion]:
    """This rank's share of the next training examples, in batches, as an update would see them.

    Where examples are coupled the batches are the recipe's, whole ones, so that there may be up
    to one batch more than asked for; elsewhere 256 examples at most. All of the set, where that
    many or more are asked for; then from the epoch's beginning.

    Args:
        training: whose place in the data stays where it is.
        num_examples: over all ranks, >= 1.
        skip: examples to leave out first.

    Raises:
        InputError: the data end before.
    """
    available = training.task.source("train").num_examples
    whole = available is not None and num_examples >= available
    count = min(num_examples, available or num_examples)
    size = None if couples_examples(training) else min(count, _EXAMPLES_AT_ONCE)
    feed = training.feed.standing_still(batch_size=size)
    try:
        if whole and training.task.source("train").random_access:
            feed.load_state_dict(feed.state_dict() | {"offset": 0})
        portions: list[Portion] = []
        seen = 0
        while seen < count + (0 if whole else skip):
            portion = feed.next()
            feed.advance(portion.num_examples)
            seen += portion.num_examples
            if whole or seen > skip:
                portions.append(portion)
        return portions
    finally:
        feed.close()


def parts_of(training: Training, portions: list[Portion]) -> Iterator[Batch]:
    """The micro-batches of these portions that count; whole batches, where the loss couples them.

    Raises:
        InputError: a loss that couples a batch, which several ranks share.
    """
    size = training.recipe.micro_batch_size
    if training.task.loss_scope == "batch":
        size = None
        if training.world.size > 1:
            rule = "must be one, as the loss couples the examples of a batch"
            raise InputError("ranks of this measurement", rule, training.world.size)
    for portion in portions:
        if portion.counted:
            yield from portion.parts(size)


def losses_of(training: Training, part: Batch, *, plain: bool = False) -> Tensor:
    """One loss for each example, with its graph, in the mode that the model is in.

    Without autocast and without parallel wrapper; running statistics stay where they are.

    Args:
        training: whose model and loss.
        part: a micro-batch.
        plain: without label smoothing.
    """
    for module in training.model.modules():
        if isinstance(module, GhostBatchNorm):
            module.layout.num_examples, module.layout.counted = len(part.indices), False
    compute, step = training.recipe.compute, training.one_step
    outputs = call_model(training.model, cast(part.inputs, compute))
    losses = (step.plain_loss if plain else step.loss)(outputs, cast(part.targets, compute))
    if training.task.loss_scope == "batch":  # one value that stands for every example
        losses = losses.reshape(1).expand(len(part.indices))
    return losses
