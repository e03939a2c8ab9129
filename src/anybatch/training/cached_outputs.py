"""Cached outputs: the exact gradient of a loss that couples a batch, in the memory of its parts.

pass 1: the outputs z_i of every micro-batch, without graph; gathered over the ranks, in order
        the loss of all of them, L(z_1 ... z_B), and dL/dz_i
pass 2: every micro-batch again, with its graph, backward from its dL/dz_i

By the chain rule dL/dw = sum_i dL/dz_i dz_i/dw: what one pass over the whole batch gives. Pass 2
begins every micro-batch with the random numbers and the buffers that pass 1 began it with, so
dropout repeats itself, and BatchNorm's statistics are taken in pass 2 alone.

Reference: Gao, Zhang, Han, Callan 2021, "Scaling deep contrastive learning batch size under memory
limited setup", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.training.snapshot import load_random_state, random_state
from anybatch.world import World

__all__ = ["cached_gradient"]


def cached_gradient(
    passes: Passes, portion: Portion, world: World, *, micro_batch_size: int | None
) -> None:
    """Put the gradient of the whole batch's loss into `.grad`, in two passes.

    The whole loss is computed on every rank, which must come to the same: it may draw no random
    numbers. A batch that one micro-batch holds takes one pass.

    Args:
        passes: of the model.
        portion: this rank's share.
        world: ranks that share the batch.
        micro_batch_size: examples of a forward and backward pass; None: the rank's whole share.

    Raises:
        InputError: the outputs or targets are not tensors (or tuples, lists, dicts of them) with
            one row for each example; an output without rows (a temperature, say) is not the same
            for every micro-batch.

    Cost:
        A second forward pass; the outputs, their gradient and the loss's graph for the whole batch
        on every rank.

    Collectives:
        One all-gather for each tensor of outputs and targets; then the gradient's size, overlapped
        with the last micro-batch's backward. Every rank must call.
    """
    if world.size == 1 and len(portion.indices) <= (micro_batch_size or len(portion.indices)):
        passes.accumulate(portion, None)
        return
    first = _first_pass(passes, portion, micro_batch_size)
    own = len(portion.indices) if portion.counted else 0
    counts = world.all_values(own)
    start = sum(counts[: world.rank])
    outputs = _gathered("model output", first.outputs, first.sizes, counts, world)
    targets = _gathered("targets", first.targets, first.sizes, counts, world)
    leaves = [one.requires_grad_() for one in outputs.tensors if _is_number(one)]
    whole = Batch(None, targets.nest, torch.arange(sum(counts)))
    weight = passes.example_weight(replace(portion, counted=True))
    losses, found = passes.loss_gradients(outputs.nest, leaves, whole, weight)
    gradients = iter(found)
    by_output = [next(gradients) if one.requires_grad else None for one in outputs.tensors]
    if portion.counted:
        passes.losses.append(losses[start : start + own])
    after = random_state()
    for number, part in enumerate(portion.parts(micro_batch_size)):
        load_random_state(first.random_states[number])
        rows = slice(start, start + len(part.indices)) if portion.counted else slice(0)
        once = world.is_first and number == 0
        passes.backward_outputs(
            part,
            [_of_part(gradient, rows, len(part.indices), once=once) for gradient in by_output],
            counted=portion.counted,
            shared=number == len(first.sizes) - 1,
        )
        start += len(part.indices)
    load_random_state(after)


class _FirstPass(NamedTuple):
    """What pass 1 keeps of each micro-batch, in order."""

    outputs: list[Any]
    targets: list[Any]
    sizes: list[int]
    random_states: list[dict[str, Any]]  # before it


def _first_pass(passes: Passes, portion: Portion, micro_batch_size: int | None) -> _FirstPass:
    first = _FirstPass([], [], [], [])
    buffers = [(buffer, buffer.clone()) for buffer in passes.model.buffers()]
    state: dict[str, Any] = {}
    for part in portion.parts(micro_batch_size):
        state = _sharing(random_state(), state)
        first.random_states.append(state)
        first.outputs.append(passes.outputs_alone(part))
        first.targets.append(part.targets)
        first.sizes.append(len(part.indices))
    with torch.no_grad():  # pass 2 moves them again (of spectral norms, say), by the same values
        for buffer, value in buffers:
            buffer.copy_(value)
    return first


def _sharing(state: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The same state, which keeps of the one before whatever has not changed."""
    return {
        name: before[name] if before and _is_same(before[name], value) else value
        for name, value in state.items()
    }


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and one and isinstance(one[0], Tensor):
        return all(map(torch.equal, one, other))
    return bool(one == other)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class _Gathered(NamedTuple):
    """A nest whose tensors hold every example of the global batch."""

    nest: Any
    tensors: list[Tensor]


def _gathered(
    thing: str, nests: list[Any], sizes: list[int], counts: Sequence[int], world: World
) -> _Gathered:
    """The nests of the micro-batches of all ranks as one.

    Args:
        thing: what they are, for messages.
        nests: one for each micro-batch of this rank.
        sizes: examples of each.
        counts: examples of each rank that count.
        world: ranks to gather from.
    """
    flat: list[list[Any]] = []
    spec: TreeSpec | None = None
    for nest in nests:
        leaves, spec = tree_flatten(nest)
        flat.append(leaves)
    joined = [
        _joined(thing, list(parts), sizes, counts, world) for parts in zip(*flat, strict=True)
    ]
    assert spec is not None  # of one micro-batch at least
    return _Gathered(
        tree_unflatten(joined, spec), [one for one in joined if isinstance(one, Tensor)]
    )


def _joined(
    thing: str, parts: list[Any], sizes: list[int], counts: Sequence[int], world: World
) -> Any:
    """One leaf of the nests: rows one after the other; a number or None as it is."""
    if all(part is None for part in parts):
        return None
    rule = "must be tensors, alone or in tuples, lists and dicts, for cached outputs"
    for part, size in zip(parts, sizes, strict=True):
        if not isinstance(part, Tensor):
            raise InputError(thing, rule, type(part).__name__)
        if part.dim() and (len(part) != size or part.shape[1:] != parts[0].shape[1:]):
            rule = f"must have one row for each of {size} examples, all of one shape"
            raise InputError(thing, rule, f"shape {tuple(part.shape)}")
    if parts[0].dim() == 0:
        return _one_value(thing, parts, world)
    own = torch.cat(parts).detach()[: counts[world.rank]]
    return world.all_rows(own, counts)


def _one_value(thing: str, parts: list[Tensor], world: World) -> Tensor:
    """A number that every micro-batch must have alike, as the weights alone make it."""
    own = torch.stack(parts).detach()
    every = world.all_rows(own, world.all_values(len(own)))
    if not bool((every == every[0]).all()):
        rule = "must have one row for each example, or one number that no example enters"
        raise InputError(thing, rule, "a number that differs between micro-batches")
    return every[0].clone()


def _of_part(gradient: Tensor | None, rows: slice, count: int, *, once: bool) -> Tensor | None:
    """The part of dL/dz that belongs to a micro-batch; zeros for a placeholder.

    Args:
        gradient: of one tensor of the whole batch's outputs; None: the loss does not see it.
        rows: of the micro-batch; empty for a placeholder.
        count: examples of the micro-batch.
        once: whether this is the one micro-batch that a number's gradient is counted with.
    """
    if gradient is None:
        return None
    if gradient.dim() == 0:
        return gradient if once else torch.zeros_like(gradient)
    own = gradient[rows]
    return own if len(own) == count else gradient.new_zeros(count, *gradient.shape[1:])
