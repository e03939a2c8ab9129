"""Recalibration: BatchNorm's running statistics computed anew over a set of examples.

The examples pass in ghosts, normalized by their own statistics as in training; every other layer
is in evaluation mode, so nothing is drawn. A layer's statistics then become the mean and the
unbiased variance of all values it saw,

    mean = (sum over ghosts of n_g mean_g) / n
    variance = (sum over ghosts of n_g (variance_g + mean_g^2) - n mean^2) / (n - 1)

with n_g values per channel in a ghost, its biased variance_g, and n their sum. So the spread
between ghosts counts, which the mean of their variances (what running averages tend to) leaves out.

Reference: Wu, Johnson 2021, "Rethinking batch in BatchNorm", section 3 (PreciseBN, there with the
biased variance); Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.data.order import epoch_order
from anybatch.data.source import Batch, Source
from anybatch.errors import InputError
from anybatch.recipe import ComputeSettings, Recipe
from anybatch.training.checks import call_model
from anybatch.training.normalization import GhostBatchNorm
from anybatch.training.precision import autocast, cast
from anybatch.training.sampling import rank_share
from anybatch.world import World

__all__ = ["check_recalibration", "recalibrate", "recalibration_batches"]

_Layer: TypeAlias = _BatchNorm | GhostBatchNorm


def check_recalibration(recipe: Recipe, source: Source) -> None:
    """Refuse training data that cannot be passed through once more, or too many of them.

    Args:
        recipe: its `batch_norm`.
        source: the training split.

    Raises:
        InputError: a stream, or fewer examples than asked for.
    """
    if recipe.batch_norm.evaluated_with != "whole-set":
        return
    total, count = source.num_examples, recipe.batch_norm.recalibration_examples
    if total is None or not source.random_access:
        rule = 'must be "running" or "last-update" for a stream'
        raise InputError("batch_norm.evaluated_with", rule, "whole-set")
    if count is not None and count > total:
        rule = f"must be <= the {total} training examples"
        raise InputError("batch_norm.recalibration_examples", rule, count)


def recalibration_batches(source: Source, recipe: Recipe, world: World) -> Iterator[Batch]:
    """This rank's batches of the examples to recalibrate with: whole ghosts, without augmentation.

    Always the same ones, in the order of the recipe's first epoch. Where it has no ghosts, a ghost
    is what passes at once in training: a block, or the batch of an update.

    Args:
        source: the training split, on the rank's device.
        recipe: ghost, order, seed, and how many examples.
        world: ranks that share the ghosts.
    """
    total = source.num_examples or 0
    batch_size = total if recipe.batch_size == "full" else recipe.batch_size
    undivided = batch_size if recipe.blocks is None else recipe.blocks.size
    ghost = recipe.ghost_batch_size or min(undivided, total)
    order = epoch_order(source, seed=recipe.seed, epoch=0, order=recipe.order)
    count = recipe.batch_norm.recalibration_examples or total
    start, stop = rank_share(count, rank=world.rank, world_size=world.size, ghost=ghost)
    size = ghost
    if recipe.ghost_batch_size is not None:  # several ghosts in a pass
        size *= max(1, recipe.compute.evaluation_batch_size // ghost)
    if stop > start:
        yield from source.batches(iter(torch.split(order[start:stop], size)))


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Batch], compute: ComputeSettings, world: World
) -> None:
    """Replace the running statistics of every BatchNorm by those over some examples.

    Layers without running statistics, those that came frozen, and those that no example passes
    stay as they are; the count of batches stays too.

    Args:
        model: left in the mode it was in.
        batches: this rank's, each of whole ghosts; the rank may have none.
        compute: precision of the forward passes.
        world: ranks that share the examples.

    Cost:
        A forward pass for each batch.

    Collectives:
        One all-reduce of 2 * channels + 1 values per layer, packed together; every rank must call.
    """
    layers: list[Any] = [layer for layer in model.modules() if _is_recalibrated(layer)]
    if not layers:
        return
    device = next(model.parameters()).device
    sums = [torch.zeros(2 * x.num_features + 1, dtype=torch.float64, device=device) for x in layers]
    tracked = [_tracked(layer) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_pre_hook(_adding_to(one))
        for layer, one in zip(layers, sums, strict=True)
    ]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        for batch in batches:
            _announce(model, len(batch.indices))
            with autocast(compute, world.device):
                call_model(model, cast(batch.inputs, compute))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    packed = torch.cat(sums)
    world.sum_in_place(packed)
    parts = torch.split(packed, [len(one) for one in sums])
    for layer, part, count in zip(layers, parts, tracked, strict=True):
        _write(layer, part, count)


def _is_recalibrated(module: nn.Module) -> bool:
    if isinstance(module, GhostBatchNorm):
        return module.running_mean is not None and not module.frozen
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.training


def _tracked(layer: _Layer) -> Tensor | None:
    return None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()


def _announce(model: nn.Module, num_examples: int) -> None:
    """Tell the layers what passes next; the training's own update does not count it."""
    for module in model.modules():
        if isinstance(module, GhostBatchNorm):
            module.layout.num_examples, module.layout.counted = num_examples, False


def _adding_to(sums: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that adds n mean, n (biased variance + mean^2), n of a layer's inputs, per channel."""

    def add(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs: Tensor = arguments[0]
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        other_dimensions = [n for n in range(values.dim()) if n != 1]
        variance, mean = torch.var_mean(values, other_dimensions, correction=0)
        count = inputs.numel() // inputs.shape[1]
        mean = mean.double()
        sums[:-1] += count * torch.cat([mean, variance.double() + mean.square()])
        sums[-1] += count

    return add


def _write(layer: _Layer, sums: Tensor, tracked: Tensor | None) -> None:
    if layer.running_mean is None or layer.running_var is None:
        return
    count = float(sums[-1])
    if count > 0:
        mean, square = (sums[:-1] / count).view(2, -1)
        variance = (square - mean.square()).clamp(min=0.0) * (count / max(1.0, count - 1.0))
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    if layer.num_batches_tracked is not None and tracked is not None:
        layer.num_batches_tracked.copy_(tracked)
