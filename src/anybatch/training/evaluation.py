"""Evaluation of a split: mean loss and metric, over all ranks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anybatch.data.source import Source
from anybatch.errors import InputError
from anybatch.objectives import LossFunction, Metric
from anybatch.recipe import ComputeSettings
from anybatch.records import EvalRecord
from anybatch.task import SplitName
from anybatch.training.checks import call_model, refuse_not_finite
from anybatch.training.precision import autocast, cast
from anybatch.training.snapshot import preserved_random_state
from anybatch.training.splits import Splits
from anybatch.world import World

if TYPE_CHECKING:
    from anybatch.training.training import Training

__all__ = ["evaluate", "evaluation_record"]


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


def evaluation_record(training: Training, split: SplitName, splits: Splits) -> EvalRecord:
    """The record of an evaluation of a training's kept model; see `Training.evaluate`.

    Args:
        training: left as it was, but for its kept model.
        split: its name.
        splits: of its task, on the rank's device.
    """
    started, task = time.perf_counter(), training.task
    objectives, compute = (training.one_step.plain_loss, task.judge), training.recipe.compute
    source = splits[split]
    with preserved_random_state():  # how often one looks must not change what is trained
        training.refresh_kept_model()
        loss, metric = evaluate(training.kept_model, source, objectives, compute, training.world)
    if not math.isfinite(loss) and source.num_examples is not None:
        everything = torch.split(torch.arange(source.num_examples), 1000)
        refuse_not_finite(source.batches(everything), source, split)
    return EvalRecord(
        update=training.updates,
        examples=training.feed.examples,
        epoch=training.feed.epochs,
        split=split,
        loss=loss,
        metric=metric,
        metric_name=task.judge.name,
        seconds=training.seconds,
        evaluation_seconds=time.perf_counter() - started,
    )


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
