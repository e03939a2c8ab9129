"""What can only be checked once a task, a recipe and a model have met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.data.coerce import as_source
from anybatch.data.copies import example_number
from anybatch.data.items import tensors_of
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Batch, Source
from anybatch.errors import InputError
from anybatch.objectives import LossFunction, logits_of
from anybatch.recipe import Recipe
from anybatch.schedules import Constant
from anybatch.task import Task
from anybatch.training.snapshot import preserved_random_state
from anybatch.world import World

__all__ = [
    "call_model",
    "check_division",
    "check_model",
    "check_rules",
    "data_fingerprint",
    "first_not_finite",
    "refuse_not_finite",
    "refuse_other_data",
]


def call_model(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: a tuple is passed as arguments, a dict by name."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def check_division(task: Task, recipe: Recipe, world: World, has_batch_norm: bool) -> None:
    """Refuse to divide what must stay whole.

    Raises:
        InputError: a batch under BatchNorm without ghosts, or with a batch-coupled loss, is to be
            divided over ranks, blocks or micro-batches. A block that is one pass is a ghost.
    """
    blocks = recipe.blocks
    if blocks is not None and task.loss_scope == "batch":
        rule = "must be left out where the loss couples the examples of a batch"
        raise InputError("blocks", rule, f"blocks of {blocks.size}")
    micro, batch_size = recipe.micro_batch_size, recipe.batch_size
    constant = recipe.schedules.batch_size == Constant()
    whole = micro is None or (constant and isinstance(batch_size, int) and micro >= batch_size)
    by = "over ranks" if world.size > 1 else "" if whole else "into micro-batches"
    if not by:
        return
    if task.loss_scope == "batch" and recipe.loss.coupled == "whole":
        thing = f"a batch with loss_scope batch, divided {by},"
        hint = 'its loss couples all of its examples; loss.coupled = "cached-outputs" divides it'
        raise InputError(thing, "must stay whole", hint=hint)
    if blocks is not None and (micro is None or micro >= blocks.size):
        return
    if has_batch_norm and recipe.ghost_batch_size is None:
        by = by if blocks is None else "in blocks and these into micro-batches"
        rule = f"must be set where a batch under BatchNorm is divided {by}"
        raise InputError("ghost_batch_size", rule, None, hint=f"{micro or 32}, say")


def check_rules(task: Task, recipe: Recipe) -> None:
    """Refuse rules of a recipe that cannot work together, or not on this task.

    Raises:
        InputError: cached outputs of a loss for each example; local updates, or control of the
            batch size, with a loss that couples a batch; local updates with that control or with
            blocks; averaged weights with the last update's BatchNorm statistics.
    """
    coupled = task.loss_scope == "batch"
    if recipe.loss.coupled != "whole" and not coupled:
        rule = 'must be "whole" for a task whose loss_scope is example'
        raise InputError("loss.coupled", rule, recipe.loss.coupled)
    for name in ("batch_control", "communication"):
        if getattr(recipe, name) is not None and coupled:
            rule = "must be left out where the loss couples the examples of a batch"
            raise InputError(name, rule)
    for name in ("batch_control", "blocks"):
        if recipe.communication is not None and getattr(recipe, name) is not None:
            rule = f"must be left out with {name}, which needs the gradients of all ranks"
            raise InputError("communication", rule)
    if recipe.averaging is not None and recipe.batch_norm.evaluated_with == "last-update":
        rule = 'must be "running" or "whole-set" where weights are averaged'
        hint = "the last update's statistics are those of other weights"
        raise InputError("batch_norm.evaluated_with", rule, "last-update", hint=hint)


def check_model(model: nn.Module, task: Task, loss: LossFunction, sample: Batch) -> None:
    """Run two examples through model, loss and metric and look at the shapes.

    In evaluation mode, without gradients, with every random state put back.

    Raises:
        InputError: the model refuses the inputs, outputs or losses have the wrong shape, labels
            lie outside of the outputs.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), preserved_random_state():
            outputs = _call(model, sample.inputs)
            if task.kind == "classification" and task.loss is None:
                _check_classes(task, outputs, sample)
            losses = _apply("loss", loss, outputs, sample.targets)
            _check_loss(losses, len(sample.indices), task.loss_scope)
            values = _apply("metric", task.judge.per_example, outputs, sample.targets)
            if task.loss_scope == "example" or task.metric is not None:
                _check_values("metric", values, len(sample.indices))
    finally:
        model.train(was_training)


def _call(model: nn.Module, inputs: Any) -> Any:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(inputs))
    try:
        return call_model(model, inputs)
    except InputError:
        raise
    except Exception as error:
        rule = f"must accept inputs of shape {shapes}"
        raise InputError("model", rule, f"{type(error).__name__}: {error}") from error


def _apply(thing: str, function: Any, outputs: Any, targets: Any) -> Tensor:
    try:
        values = function(outputs, targets)
    except InputError:
        raise
    except Exception as error:
        rule = f"must accept the model's outputs and the targets{_shapes(outputs, targets)}"
        raise InputError(thing, rule, f"{type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor):
        raise InputError(thing, "must return a tensor", type(values).__name__)
    return values


def _shapes(outputs: Any, targets: Any) -> str:
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        return f" of shapes {tuple(outputs.shape)} and {tuple(targets.shape)}"
    return ""


def _check_loss(losses: Tensor, count: int, scope: str) -> None:
    if scope == "batch":
        if losses.numel() != 1:
            rule = "must return one value where loss_scope is batch"
            raise InputError("loss", rule, f"shape {tuple(losses.shape)}")
        return
    _check_values("loss", losses, count)


def _check_values(thing: str, values: Tensor, count: int) -> None:
    if values.shape != (count,):
        rule = f"must return one value per example, shape ({count},)"
        hint = 'reduction="none" keeps them apart' if thing == "loss" else ""
        raise InputError(thing, rule, f"shape {tuple(values.shape)}", hint=hint)


def _check_classes(task: Task, outputs: Any, sample: Batch) -> None:
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError("model output", "must be logits of shape (examples, classes)", shape)
    targets: Any = sample.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() != 1:
        kind = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else targets
        rule = "must be whole class numbers of shape (examples,)"
        raise InputError("targets", rule, kind, hint='kind="regression" for real values')
    if outputs.shape[0] != len(targets):
        rule = f"must have {len(targets)} rows for {len(targets)} examples"
        raise InputError("model output", rule, tuple(outputs.shape))
    num_classes = outputs.shape[1]
    for split in ("train", "validation", "test"):
        if task.has(split) and _wrong_label(task.source(split), num_classes) is not None:
            is_part = task.validation is None and split != "test"  # named by the user's numbers
            whole: Any = as_source(task.train, "train") if is_part else task.source(split)
            example = _wrong_label(whole, num_classes)
            thing = f"{'train' if is_part else split} label of example {example}"
            rule = f"must be in [0, {num_classes}), the model's outputs"
            raise InputError(thing, rule, int(whole.targets[example]))


def _wrong_label(source: Any, num_classes: int) -> int | None:
    """The first example whose label is no class, or None."""
    if not isinstance(source, ResidentSource):
        return None  # of a streamed set only the loader sees the labels; see `Step.gradient`
    wrong = ((source.targets < 0) | (source.targets >= num_classes)).nonzero()
    return int(wrong[0, 0]) if len(wrong) else None


def data_fingerprint(source: Source) -> list[float]:
    """A few numbers that other data would hardly have: size, and sums over up to 256 examples.

    Of a source without random access only the size, as looking would move it.
    """
    count = source.num_examples
    if count is None or not source.random_access:
        return [float(count or 0)]
    indices = torch.arange(0, count, max(1, count // 256))
    batch = next(iter(source.batches([indices])))
    tensors = (*tensors_of(batch.inputs), *tensors_of(batch.targets))
    return [float(count), *(float(tensor.double().sum()) for tensor in tensors)]


def refuse_not_finite(batches: Iterable[Batch], source: Source, split: str) -> None:
    """Look through batches for a number that is not finite.

    Args:
        batches: of the source.
        source: whose own numbers name the examples, where a part was set aside of it.
        split: its name.

    Raises:
        InputError: there is one; the example is named.
    """
    for batch in batches:
        index = first_not_finite(batch)
        if index is not None:
            thing = f"{split} example {example_number(source, index)}"
            raise InputError(thing, "must hold finite numbers only")


def first_not_finite(batch: Batch) -> int | None:
    """The index of the first example with a number that is not finite, or None."""
    for tensor in (*tensors_of(batch.inputs), *tensors_of(batch.targets)):
        if tensor.is_floating_point():
            finite = tensor.flatten(1).isfinite().all(1) if tensor.dim() > 1 else tensor.isfinite()
            if not bool(finite.all()):
                return int(batch.indices[int((~finite).nonzero()[0, 0])])
    return None


def refuse_other_data(fingerprints: Sequence[str]) -> None:
    """Refuse ranks that hold different data, as an unseeded draw would make them.

    Args:
        fingerprints: of the training data of each rank.

    Raises:
        InputError: two differ.
    """
    for rank, other in enumerate(fingerprints):
        if other != fingerprints[0]:
            rule = "must be the same on every rank"
            hint = "seed what is drawn when the task is made"
            raise InputError("train", rule, f"others on rank {rank}", hint=hint)
