"""Evaluation of a split: mean loss and metric, over all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anybatch.data.source import Source
from anybatch.errors import InputError
from anybatch.objectives import LossFunction, Metric
from anybatch.recipe import ComputeSettings
from anybatch.training.checks import call_model
from anybatch.training.precision import autocast, cast
from anybatch.world import World

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    source: Source,
    objectives: tuple[LossFunction, Metric],
    compute: ComputeSettings,
    world: World,
) -> tuple[float, float]:
    """Mean loss and mean metric over a split, model in evaluation mode, sums in float64.

    Args:
        model: left in the mode it was in.
        source: the split, on the rank's device.
        objectives: loss without label smoothing (one value per example, or per batch, which is
            then weighted by its examples), and metric.
        compute: precision and evaluation batch size.
        world: ranks share the batches in turn.

    Raises:
        InputError: the split holds no example.

    Collectives:
        One all-reduce of 3 numbers; every rank must call.
    """
    loss, metric = objectives
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), autocast(compute, world.device):
            for batch in source.batches(_index_batches(source, compute, world)):
                count = len(batch.indices)
                outputs = call_model(model, cast(batch.inputs, compute))
                targets = cast(batch.targets, compute)
                try:
                    values = (loss(outputs, targets), metric.per_example(outputs, targets))
                except IndexError as error:
                    rule = "must be classes of the model"
                    raise InputError("targets", rule, str(error)) from error
                sums += torch.stack(
                    [*(_sum(value, count) for value in values), sums.new_tensor(count)]
                )
    finally:
        for module, mode in modes:
            module.training = mode
    world.sum_in_place(sums)
    total_loss, total_metric, examples = sums.tolist()
    if examples == 0:
        raise InputError("split", "must hold at least one example to be evaluated")
    return total_loss / examples, total_metric / examples


def _sum(values: Tensor, count: int) -> Tensor:
    """Sum over examples; one value for the whole batch counts for each of them."""
    values = values.double()
    return values.sum() if values.numel() == count else values.sum() * count


def _index_batches(source: Source, compute: ComputeSettings, world: World) -> Iterator[Tensor]:
    """Every `world.size`-th batch of consecutive examples, beginning with the rank's own."""
    size, total = compute.evaluation_batch_size, source.num_examples
    for start in itertools.count(world.rank * size, world.size * size):
        if total is not None and start >= total:
            return
        yield torch.arange(start, start + size if total is None else min(start + size, total))
