"""Mixing of examples: mixup and running mixup, pure functions of their draws.

What is drawn depends on (seed, update, examples), never on the place in a batch, the rank or the
micro-batch: those of whole ghosts see the same numbers however they are divided.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from anybatch.data.draws import symmetric_beta, uniform
from anybatch.data.items import map_tensors, tensors_of
from anybatch.data.source import Batch

__all__ = ["MixedTargets", "mixup", "partners", "running_mixup"]

# Beside the streams of the data's draws; the update stands where those have the epoch.
_SHARE_STREAM: Final = (1 << 32) + 16
_PARTNER_STREAM: Final = (1 << 32) + 17


class MixedTargets(NamedTuple):
    """Targets of examples that are mixed in pairs.

    Their loss is share * loss(output, own) + (1 - share) * loss(output, partners).

    Attributes:
        own: of each example, a tensor or nest.
        partners: of the one that it is mixed with, likewise.
        share: of its own, (examples,) in [0, 1].
    """

    own: Any
    partners: Any
    share: Tensor


def mixup(batch: Batch, alpha: float, *, ghost: int | None = None, seed: int, update: int) -> Batch:
    """Mix each example with another one of its ghost.

    x~ = l x + (1 - l) x', l ~ Beta(alpha, alpha) for each ghost, x' by a random permutation within
    it (which may be the example itself).

    Args:
        batch: whole ghosts, the last may be smaller; inputs are real numbers.
        alpha: > 0.
        ghost: examples of one; None: the batch is one.
        seed: of the run.
        update: its number, from 0; each draws anew.

    Returns:
        The mixed inputs with `MixedTargets`.

    Example:
        >>> batch = Batch(torch.eye(4), torch.arange(4), torch.arange(4))
        >>> mixed = mixup(batch, 1.0, seed=0, update=0)
        >>> mixed.targets.partners.tolist(), [round(l, 3) for l in mixed.inputs.diag().tolist()]
        ([2, 1, 3, 0], [0.205, 1.0, 0.205, 0.205])

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz (2018), mixup: beyond empirical risk minimization, eq. 1.
    """
    size = ghost or len(batch.indices)
    share = symmetric_beta(
        batch.indices[::size], alpha, seed=seed, epoch=update, stream=_SHARE_STREAM
    )
    share = share.repeat_interleave(size)[: len(batch.indices)]
    other = partners(batch.indices, size, seed=seed, update=update)
    device = tensors_of(batch.inputs)[0].device
    share, other = _moved(share, device), _moved(other, device)
    taken = [tensor.index_select(0, other) for tensor in tensors_of(batch.inputs)]
    swapped = map_tensors(lambda tensor: tensor.index_select(0, other), batch.targets)
    targets = MixedTargets(batch.targets, swapped, share)
    return Batch(_mixed(batch.inputs, taken, share), targets, batch.indices)


def running_mixup(
    batch: Batch, before: list[Tensor], alpha: float, *, seed: int, update: int
) -> Batch:
    """Mix each example with one that is mixed already, of the update before.

    x~_t = l x_t + (1 - l) x~_{t-1}, and so the targets; l ~ Beta(alpha, alpha) for each example,
    the greater of l and 1 - l taken.

    Args:
        batch: inputs are real numbers; targets likewise, class probabilities of shape (n, C).
        before: for each tensor of the inputs and for the targets, of those already mixed.
        alpha: > 0.
        seed: of the run.
        update: its number, from 0; each draws anew.

    Example:
        >>> batch = Batch(torch.ones(2, 1), torch.tensor([[1.0, 0.0]] * 2), torch.arange(2))
        >>> before = [torch.zeros(2, 1), torch.tensor([[0.0, 1.0]] * 2)]
        >>> mixed = running_mixup(batch, before, 1.0, seed=0, update=0)
        >>> torch.equal(mixed.inputs, mixed.targets[:, :1]), bool((mixed.inputs >= 0.5).all())
        (True, True)

    Reference:
        Osawa et al. (2020), Scalable and practical natural gradient for large-scale deep learning,
        section 5.1.
    """
    share = symmetric_beta(batch.indices, alpha, seed=seed, epoch=update, stream=_SHARE_STREAM)
    share = _moved(torch.maximum(share, 1.0 - share), batch.targets.device)
    inputs = _mixed(batch.inputs, before[:-1], share)
    return Batch(inputs, _mixed(batch.targets, before[-1:], share), batch.indices)


def partners(indices: Tensor, ghost: int, *, seed: int, update: int) -> Tensor:
    """Whom each example of a batch is mixed with: a random permutation of each ghost.

    Args:
        indices: int64, shape (n,): the examples' numbers.
        ghost: consecutive examples that are permuted among themselves; the last may be fewer.
        seed: of the run.
        update: its number, from 0.

    Returns:
        int64, shape (n,): places within the batch.

    Example:
        >>> partners(torch.arange(10, 16), 4, seed=0, update=0)
        tensor([1, 3, 2, 0, 5, 4])
    """
    keys = uniform(indices, seed=seed, epoch=update, stream=_PARTNER_STREAM)
    whole = len(indices) // ghost * ghost
    within = keys[:whole].view(-1, ghost).argsort(dim=1, stable=True)
    begins = torch.arange(0, whole, ghost, device=indices.device)[:, None]
    last = keys[whole:].argsort(stable=True) + whole
    return torch.cat([(within + begins).flatten(), last])


def _mixed(nest: Any, others: list[Tensor], share: Tensor) -> Any:
    """Each tensor as share * tensor + (1 - share) * other; a share of 1 changes nothing."""
    remaining = iter(others)

    def mix(tensor: Tensor) -> Tensor:
        weight = (1.0 - share).to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        return torch.lerp(tensor, next(remaining), weight)

    return map_tensors(mix, nest)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, so that the host does not wait for a GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
