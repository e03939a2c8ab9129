"""The mean patch of each example: what a convolution gets under "reduce"."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from anybatch.kfac.patches import Convolution
from anybatch.kfac.statistics import accumulation_dtype

__all__ = ["mean_patches"]


def mean_patches(inputs: Tensor, module: Convolution) -> Tensor:
    """Mean over output positions of each example's patches.

    Args:
        inputs: (n, channels, *positions).
        module: with any stride, dilation, padding, padding mode and groups.

    Returns:
        (groups, n, channels / groups * taps), a patch ordered as a row of `weight.flatten(1)`;
        float64 for float64 inputs, else float32.

    Cost:
        taps passes over the inputs (over one of stride^2 of them).

    Example:
        >>> import torch
        >>> mean_patches(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.nn.Conv1d(1, 4, 2))
        tensor([[[1.5000, 2.5000]]])
    """
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    axes = list(
        zip(padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
    )
    spans = [(size - dilation * (taps - 1) - 1) // stride * stride + 1
             for size, taps, stride, dilation in axes]  # fmt: skip
    means = []
    for taps in itertools.product(*(range(taps) for _, taps, _, _ in axes)):
        window = padded
        for dim, (tap, span, (_, _, stride, dilation)) in enumerate(
            zip(taps, spans, axes, strict=True), start=2
        ):
            window = window.narrow(dim, tap * dilation, span)
            window = window[(slice(None),) * dim + (slice(None, None, stride),)]
        means.append(window.flatten(2).mean(2, dtype=accumulation_dtype(inputs.dtype)))
    patches = torch.stack(means, dim=2)
    return patches.view(len(inputs), module.groups, -1).transpose(0, 1)
