"""Blocks: the gradient of an update formed block by block, each penalized and clipped by itself.

    for each block k of n_k consecutive examples, on the rank whose share it is:
        g_k: mean gradient over the block's micro-batches
        the penalty, and then the clipping, of g_k
    gradient = sum_k n_k / N g_k over all blocks and ranks; sum_k n_k g_k under reduction "sum"

A pass holds at most one block, so that the block, where no ghost is set, is BatchNorm's ghost;
running statistics see only the passes at the weights themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anybatch.curvature.gradient_penalty import (
    central_difference_penalty,
    exact_penalty,
    forward_difference_penalty,
    global_norm,
    sharpness_aware,
)
from anybatch.curvature.repeated_draws import Draws
from anybatch.data.source import Batch
from anybatch.recipe import BlockSettings, GradientPenalty, SharpnessAware
from anybatch.recipe_gradient import BlockPenalty
from anybatch.training.passes import Passes
from anybatch.training.portion import Portion
from anybatch.training.sampling import cuts
from anybatch.world import World

__all__ = ["BlockNorms", "block_gradient"]


class BlockNorms(NamedTuple):
    """Over the blocks of an update, weighted by their examples; scalars on the device.

    Attributes:
        mean: of |g_k| before penalty and clipping.
        mean_squared: of |g_k|^2, which a penalty multiplies by its coefficient.
    """

    mean: Tensor
    mean_squared: Tensor


def block_gradient(
    passes: Passes,
    portion: Portion,
    settings: BlockSettings,
    world: World,
    *,
    lr: float,
    micro_batch_size: int | None,
) -> BlockNorms:
    """Put the mean of the blocks' gradients into `.grad`, over all ranks.

    A parameter that no block of any rank has a gradient of keeps none.

    Args:
        passes: of the model, begun anew.
        portion: this rank's share, whole blocks; a placeholder share weighs nothing.
        settings: block size, penalty, clipping, precision of the sum.
        world: ranks whose gradients are summed.
        lr: of the first group in this update, for a penalty in its unit.
        micro_batch_size: examples of a forward and backward pass, within a block; None: a block.

    Raises:
        InputError: an exact penalty of a layer without a second derivative.

    Cost:
        Passes over the examples: 1, with forward differences or SAM 2, with central ones 3, exact
        about 3. Memory of a pass, or of a block where it is one pass; the host waits for nothing.

    Collectives:
        The gradient's size, once, after the last block; every rank must call.
    """
    weight = passes.example_weight(portion)
    penalty = _in_absolute_units(settings.penalty, lr)
    total = _Total(passes.parameters, settings, world.device)
    count = len(portion.indices) if portion.counted else 0
    for num_examples, parts in _blocks(portion, count, settings.size, micro_batch_size, penalty):
        draws = None if penalty is None else Draws(world.device)
        block = _Block(passes, parts, num_examples, draws)
        found = block.gradient(counted=True)
        gradient = _filled(found, passes.parameters)
        norm = global_norm(gradient)
        if penalty is not None:
            gradient = _penalized(gradient, penalty, block)
        if settings.clip_norm is not None:
            factor = settings.clip_norm / (global_norm(gradient) + 1e-6)  # torch's formula
            torch._foreach_mul_(gradient, factor.clamp(max=1.0))
        total.add(gradient, num_examples * weight, of=found)
        total.note(norm, num_examples)
    return total.shared(world, portion.num_examples)


def _in_absolute_units(penalty: BlockPenalty | None, lr: float) -> BlockPenalty | None:
    """The penalty with its coefficient c itself; None where it is 0, as at lr 0 of a warm-up."""
    if isinstance(penalty, GradientPenalty):
        c = penalty.coefficient * (lr if penalty.unit == "lr" else 1.0)
        return replace(penalty, coefficient=c, unit="absolute") if c > 0 else None
    return penalty


def _passes_of(penalty: BlockPenalty | None) -> int:
    """How often the examples of a block are looked at."""
    if penalty is None:
        return 1
    return 3 if isinstance(penalty, GradientPenalty) and penalty.method == "central" else 2


def _blocks(
    portion: Portion,
    count: int,
    size: int,
    micro_batch_size: int | None,
    penalty: BlockPenalty | None,
) -> Iterator[tuple[int, Callable[[], Iterable[Batch]]]]:
    """Examples of each block, and a function that gives its micro-batches, once for each look.

    A block of one pass is held while it is needed. Of a longer one the micro-batches are read again
    for each look: their order is known before, so that all is one reading of the source.
    """
    blocks = [cuts(start, stop, micro_batch_size) for start, stop in cuts(0, count, size)]
    looks = _passes_of(penalty)
    order = (part for block in blocks for part in block * (1 if len(block) == 1 else looks))
    reader = portion.read(order)
    for block in blocks:
        num_examples = block[-1][1] - block[0][0]
        if len(block) == 1:
            yield num_examples, partial(iter, [next(reader)])
        else:
            yield num_examples, partial(itertools.islice, reader, len(block))


@dataclass(frozen=True, slots=True)
class _Block:
    """One block's gradient as often as it is asked for, with the same draws (dropout).

    Attributes:
        passes: of the model.
        parts: its micro-batches, anew at each call.
        num_examples: of the block.
        draws: before its first pass; None where there is no other.
    """

    passes: Passes
    parts: Callable[[], Iterable[Batch]]
    num_examples: int
    draws: Draws | None

    def gradient(self, *, counted: bool) -> list[Tensor | None]:
        """Mean over the block, new tensors; None where a parameter takes no part."""
        self.passes.clear_gradients()
        for part in self.parts():
            self.passes.backward(part, 1 / self.num_examples, counted=counted, shared=False)
        return [parameter.grad for parameter in self.passes.parameters]

    def gradient_again(self) -> list[Tensor]:
        """The same, of the weights as they stand now; it leaves no trace in losses and buffers."""
        with self.same_draws():
            return _filled(self.gradient(counted=False), self.passes.parameters)

    def losses_again(self) -> Iterator[Tensor]:
        """The share of each micro-batch in the block's mean loss, with its graph."""
        for part in self.parts():
            yield self.passes.losses_of(part, counted=False).sum() / self.num_examples

    def same_draws(self) -> AbstractContextManager[None]:
        """A context in which the draws of the first pass come again."""
        return nullcontext() if self.draws is None else self.draws.repeated()


def _filled(gradient: list[Tensor | None], parameters: list[nn.Parameter]) -> list[Tensor]:
    return [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradient, parameters, strict=True)
    ]


def _penalized(gradient: list[Tensor], penalty: BlockPenalty, block: _Block) -> list[Tensor]:
    """The block's gradient with its penalty, in absolute units; see `curvature`."""
    parameters, again = block.passes.parameters, block.gradient_again
    if isinstance(penalty, SharpnessAware):
        return sharpness_aware(
            gradient, again, parameters, radius=penalty.radius, weight=penalty.weight
        )
    if penalty.method == "exact":
        with block.same_draws():
            return exact_penalty(
                gradient, block.losses_again(), parameters, coefficient=penalty.coefficient
            )
    central = penalty.method == "central"
    difference = central_difference_penalty if central else forward_difference_penalty
    return difference(
        gradient, again, parameters, coefficient=penalty.coefficient, epsilon=penalty.epsilon
    )


class _Total:
    """The sum over blocks, and then over ranks.

    Args:
        parameters: of the model.
        settings: say in which precision.
        device: of the model.
    """

    def __init__(
        self, parameters: list[nn.Parameter], settings: BlockSettings, device: torch.device
    ) -> None:
        dtype = torch.float64 if settings.accumulate == "fp64" else torch.float32
        self._parameters = parameters
        self._sums = [
            torch.zeros_like(p, dtype=torch.promote_types(p.dtype, dtype)) for p in parameters
        ]
        self._used = [False] * len(parameters)
        dtype = torch.promote_types(dtype, parameters[0].dtype).to_real()
        self._norms = torch.zeros(2, dtype=dtype, device=device)

    def add(self, gradient: list[Tensor], factor: float, *, of: list[Tensor | None]) -> None:
        """Add a block's gradient, and note which parameters took part in it."""
        torch._foreach_add_(self._sums, gradient, alpha=factor)
        self._used = [used or g is not None for used, g in zip(self._used, of, strict=True)]

    def note(self, norm: Tensor, num_examples: int) -> None:
        """Add the norm of a block's gradient, weighted by its examples."""
        self._norms += torch.stack([norm, norm.square()]) * num_examples

    def shared(self, world: World, num_examples: int) -> BlockNorms:
        """Put the sum over ranks into `.grad`; the norms over a global batch of this size."""
        if world.size > 1:
            self._sum_over(world)
        for parameter, total, used in zip(self._parameters, self._sums, self._used, strict=True):
            parameter.grad = total.to(parameter.dtype) if used else None
        mean, mean_squared = self._norms / num_examples
        return BlockNorms(mean, mean_squared)

    def _sum_over(self, world: World) -> None:
        """All in one flat buffer: the gradient, how many ranks used a parameter, the norms."""
        used = torch.tensor(self._used, dtype=self._norms.dtype).to(world.device)
        sums = [torch.view_as_real(t) if t.is_complex() else t for t in self._sums]
        tensors = [*sums, used, self._norms]
        packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
        world.sum_in_place(packed)
        pieces = torch.split(packed, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))
        if not all(self._used):  # a synchronization, where this rank alone cannot tell
            self._used = [count > 0 for count in used.tolist()]
