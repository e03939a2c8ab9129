"""Norms: their per-example gradients, with what they normalize to held fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from anybatch.kfac.owners import NormalizingLayer

__all__ = ["norm_gradients", "normalized_inputs"]


def normalized_inputs(norm: nn.Module, inputs: Tensor) -> Tensor:
    """What a norm gives at scale 1 and shift 0, without moving its running statistics.

    Args:
        norm: BatchNorm (by the batch's statistics in training, by the running ones otherwise),
            LayerNorm, GroupNorm, RMSNorm, or a norm that says so itself.
        inputs: as it got them.
    """
    if isinstance(norm, NormalizingLayer):
        return norm.normalized(inputs)
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(inputs, list(norm.normalized_shape), eps=norm.eps)
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(inputs, norm.num_groups, eps=norm.eps)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    by_batch = norm.training or norm.running_mean is None
    mean, variance = (None, None) if by_batch else (norm.running_mean, norm.running_var)
    if mean is not None and variance is not None:
        mean, variance = mean.to(inputs.dtype), variance.to(inputs.dtype)
    cudnn = torch.backends.cudnn.enabled
    return torch.batch_norm(inputs, None, None, mean, variance, by_batch, 0.0, norm.eps, cudnn)


def norm_gradients(
    norm: nn.Module, inputs: Tensor, gradient: Tensor, *, with_scale: bool, with_shift: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Per-example gradients of scale and shift: sums over positions of ghat xhat and of ghat.

    Args:
        norm: the layer.
        inputs: as it got them, (n, channels, ...), of LayerNorm and RMSNorm (n, ..., *normalized).
        gradient: by its outputs, of the same shape.
        with_scale: whether the first is wanted.
        with_shift: whether the second is wanted.

    Returns:
        (n, channels) each; None where not wanted.

    Cost:
        One pass over the inputs to normalize them again.
    """
    scale = None
    if with_scale:
        xhat = normalized_inputs(norm, inputs.to(gradient.dtype))
        scale = _over_positions(norm, gradient * xhat)
    return scale, _over_positions(norm, gradient) if with_shift else None


def _over_positions(norm: nn.Module, values: Tensor) -> Tensor:
    """(n, channels): the sum over all but examples and channels."""
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        trailing = len(norm.normalized_shape)
        if values.dim() == trailing:
            return values.reshape(1, -1)
        return values.flatten(-trailing).reshape(len(values), -1, norm.weight.numel()).sum(1)
    return values.flatten(2).sum(2) if values.dim() > 2 else values
