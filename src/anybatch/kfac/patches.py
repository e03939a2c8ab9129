"""The input statistic of convolutions: sums of outer products of patches, by the cheaper way.

A patch is what one output position sees of one group of channels, ordered as a row of
`weight.flatten(1)`: (channel, ky, kx), with a last 1 where there is a bias. Two ways lead to the
same sum:

    patches: written out slice by slice, one symmetric product a slice; any convolution
    autocorrelation: stride 1, up to two axes; each shift between taps is multiplied once

A count of multiply-adds, moved numbers and calls chooses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.errors import InputError
from anybatch.kfac.autocorrelation import (
    CALL_COST,
    COPY_COST,
    add_autocorrelation,
    autocorrelation_cost,
    autocorrelation_positions,
    product_cost,
)
from anybatch.kfac.products import add_product, mirror
from anybatch.kfac.shifted_cells import Axis

__all__ = [
    "Convolution",
    "add_convolution_input_sum",
    "convolution_input_diagonal",
    "convolution_input_multiply_adds",
]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

_BUFFER_BYTES = 2**24
_BLOCK, _MOST_BLOCKS = 128, 8


@torch.no_grad()
def add_convolution_input_sum(
    total: Tensor, inputs: Tensor, module: Convolution, *, with_bias: bool
) -> None:
    """S_A += sum over examples and output positions of p p^T, p the patch of one group, in place.

    The sum is that of Grosse and Martens' KFC, not yet divided by the number of examples.

    Args:
        total: (groups, side, side), symmetric to the last bit, and so afterwards; side =
            channels / groups * taps, + 1 with the bias. float64 or float32: inputs are cast to
            it, 16-bit ones widened first, whatever autocast says.
        inputs: of the layer: (n, channels, *positions), or without n; any layout.
        module: with any stride, dilation, padding, padding mode and groups.
        with_bias: whether a patch ends with 1.

    Raises:
        InputError: the kernel is larger than the padded image.

    Cost:
        outputs * side^2 / 2 multiply-adds at most, a few times fewer at stride 1; a buffer of
        16 MB, or of one row of outputs.

    Example:
        >>> layer, total = nn.Conv1d(1, 4, 2), torch.zeros(1, 3, 3)
        >>> images = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> add_convolution_input_sum(total, images, layer, with_bias=True)
        >>> total
        tensor([[[ 5.,  8.,  3.],
                 [ 8., 13.,  5.],
                 [ 3.,  5.,  2.]]])

    Reference:
        Grosse, Martens (2016), A Kronecker-factored approximate Fisher matrix for convolution
        layers, equation 12.
    """
    images, axes = _images_and_axes(inputs, module)
    groups, channels = module.groups, images.shape[1] // module.groups
    weights = channels * math.prod(axis.taps for axis in axes)
    if not len(images):
        return
    with torch.autocast(images.device.type, enabled=False):
        plane = _autocorrelation_axes(axes, channels=channels, groups=groups, examples=len(images))
        by_weights = total[:, :weights, :weights]
        if plane is None:
            _add_products_of_patches(by_weights, images, axes)
        else:
            planes = images if len(axes) == 2 else images.unsqueeze(2)
            by_taps = (channels, weights // channels)
            ordered = by_weights.view(groups, *by_taps, *by_taps)
            add_autocorrelation(ordered, planes, plane)
        if with_bias:
            sums = _sum_of_patches(images.sum(0, keepdim=True, dtype=total.dtype), axes, groups)
            total[:, :-1, -1] += sums
            total[:, -1, :-1] += sums
            total[:, -1, -1] += len(images) * _outputs(axes)


@torch.no_grad()
def convolution_input_diagonal(inputs: Tensor, module: Convolution, *, with_bias: bool) -> Tensor:
    """The diagonal of that sum, without the matrix.

    Args:
        inputs: of the layer: (n, channels, *positions), or without n; any layout.
        module: with any stride, dilation, padding, padding mode and groups.
        with_bias: whether a patch ends with 1.

    Returns:
        (groups, side); float64 for float64 inputs, else float32.

    Raises:
        InputError: the kernel is larger than the padded image.

    Cost:
        One pass over the inputs.

    Example:
        >>> layer = nn.Conv1d(1, 4, 2)
        >>> convolution_input_diagonal(torch.tensor([[[1.0, 2.0, 3.0]]]), layer, with_bias=True)
        tensor([[ 5., 13.,  2.]])
    """
    images, axes = _images_and_axes(inputs, module)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    squares = images.new_zeros((1, *images.shape[1:]), dtype=dtype)
    size = squares.element_size() * max(1, images[:1].numel())
    for part in torch.split(images, max(1, _BUFFER_BYTES // size)):
        squares += part.to(squares.dtype).square().sum(0)
    diagonal = _sum_of_patches(squares, axes, module.groups)
    if not with_bias:
        return diagonal
    return functional.pad(diagonal, (0, 1), value=len(images) * _outputs(axes))


def convolution_input_multiply_adds(
    module: Convolution, size: Sequence[int], *, examples: int
) -> int:
    """Multiply-adds of `add_convolution_input_sum` by the way that it takes.

    Args:
        module: the layer.
        size: of its images, without examples and channels.
        examples: in the batch.

    Raises:
        InputError: the kernel is larger than the padded image.

    Example:
        >>> layer = nn.Conv2d(64, 64, 3, padding=1)
        >>> dense = 128 * 1024 * (64 * 9) ** 2
        >>> dense / convolution_input_multiply_adds(layer, (32, 32), examples=128)
        6.7...
    """
    pads = [(0, 0)] * len(size) if module.padding_mode == "zeros" else _paddings(module)
    padded = [length + sum(pad) for length, pad in zip(size, pads, strict=True)]
    axes = _axes(module, padded)
    channels, groups = module.in_channels // module.groups, module.groups
    plane = _autocorrelation_axes(axes, channels=channels, groups=groups, examples=examples)
    if plane is not None:
        return examples * groups * channels**2 * autocorrelation_positions(plane)
    side = channels * math.prod(axis.taps for axis in axes)
    blocks = _num_blocks(side)
    return examples * groups * _outputs(axes) * side**2 * (blocks + 1) // (2 * blocks)


def _outputs(axes: tuple[Axis, ...]) -> int:
    return math.prod(axis.outputs for axis in axes)


def _images_and_axes(inputs: Tensor, module: Convolution) -> tuple[Tensor, tuple[Axis, ...]]:
    """The inputs with a batch and with the padding that is not of zeros; how the kernel runs."""
    images = inputs if inputs.dim() == len(module.kernel_size) + 2 else inputs.unsqueeze(0)
    if module.padding_mode != "zeros":
        widths = [width for pad in reversed(_paddings(module)) for width in pad]
        images = functional.pad(images, widths, mode=module.padding_mode)
    return images, _axes(module, images.shape[2:])


def _axes(module: Convolution, size: Sequence[int]) -> tuple[Axis, ...]:
    """How the kernel runs over an image that has the padding that is not of zeros."""
    pads = _paddings(module) if module.padding_mode == "zeros" else [(0, 0)] * len(size)
    kernel = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    axes = tuple(
        Axis(length, taps, stride, dilation, *pad)
        for length, (taps, stride, dilation), pad in zip(size, kernel, pads, strict=True)
    )
    if min(axis.outputs for axis in axes) < 1:
        rule = f"must not be smaller than the kernel of {module}"
        raise InputError("inputs", rule, tuple(size))
    return axes


def _paddings(module: Convolution) -> list[tuple[int, int]]:
    """Positions before and behind each axis; "same" puts the odd one behind, as torch does."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if isinstance(module.padding, str):
        spans = zip(module.dilation, module.kernel_size, strict=True)
        totals = [dilation * (taps - 1) for dilation, taps in spans]
        return [(total // 2, total - total // 2) for total in totals]
    return [(width, width) for width in module.padding]


def _autocorrelation_axes(
    axes: tuple[Axis, ...], *, channels: int, groups: int, examples: int
) -> tuple[Axis, Axis] | None:
    """The axes of a plane where the autocorrelation is possible and the cheaper way."""
    if len(axes) > 2 or any(axis.stride != 1 for axis in axes):
        return None
    plane = (axes[0], axes[1]) if len(axes) == 2 else (Axis(1, 1, 1, 1, 0, 0), axes[0])
    side, rows = channels * plane[0].taps * plane[1].taps, examples * _outputs(axes)
    blocks = _num_blocks(side)
    given = examples * channels * plane[0].length * plane[1].length
    written = COPY_COST * (side * (rows + side) + given)
    multiplied = product_cost(rows, side, share=(blocks + 1) / (2 * blocks))
    calls = CALL_COST * blocks * math.ceil(4 * groups * side * rows / _BUFFER_BYTES)
    cost = groups * (written + multiplied) + calls
    other = groups * autocorrelation_cost(plane, channels=channels, examples=examples)
    return plane if other < cost else None


def _num_blocks(side: int) -> int:
    return max(1, min(_MOST_BLOCKS, side // _BLOCK))


def _padded(images: Tensor, axes: tuple[Axis, ...], dtype: torch.dtype) -> Tensor:
    """With its zeros, and room behind for whole windows."""
    widths = [width for axis in reversed(axes) for width in (axis.before, axis.after)]
    return functional.pad(images.to(dtype), widths).contiguous()


def _windows(padded: Tensor, axes: tuple[Axis, ...], groups: int) -> Tensor:
    """A view of (groups, channels / groups, *taps, n, *outputs)."""
    count, channels = padded.shape[:2]
    example, channel, *steps = padded.stride()
    size = (groups, channels // groups, *(a.taps for a in axes), count, *(a.outputs for a in axes))
    taps = [step * axis.dilation for step, axis in zip(steps, axes, strict=True)]
    outputs = [step * axis.stride for step, axis in zip(steps, axes, strict=True)]
    strides = (channel * (channels // groups), channel, *taps, example, *outputs)
    return padded.as_strided(size, strides)


def _sum_of_patches(image: Tensor, axes: tuple[Axis, ...], groups: int) -> Tensor:
    """Sum over the output positions of one image's patches, (groups, channels / groups * taps)."""
    windows = _windows(_padded(image, axes, image.dtype), axes, groups)
    return windows.sum(dim=tuple(range(-len(axes) - 1, 0))).flatten(1)


def _add_products_of_patches(total: Tensor, images: Tensor, axes: tuple[Axis, ...]) -> None:
    """Add P P^T, P the patches: half of it, block row by block row, and then mirror it."""
    groups, side, _ = total.shape
    bounds = [side * part // _num_blocks(side) for part in range(_num_blocks(side) + 1)]
    spans = list(itertools.pairwise(bounds))
    for patches in _patch_matrices(images, axes, groups, total.dtype):
        for start, stop in spans:
            block, row = total[:, start:, start:stop], patches[:, start:stop]
            if groups == 1:
                add_product(block[0], patches[0, start:], row[0])
            else:
                block.baddbmm_(patches[:, start:], row.mT)
    for each in total:
        mirror(each)


def _patch_matrices(
    images: Tensor, axes: tuple[Axis, ...], groups: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Patches of all positions in slices (groups, side, rows), each in the memory of the last."""
    taps = images.shape[1] * math.prod(axis.taps for axis in axes)
    row = dtype.itemsize * taps * _outputs(axes[1:])
    rows = max(1, _BUFFER_BYTES // row)  # rows of outputs, of one example or several
    many = max(1, rows // axes[0].outputs)
    buffer = images.new_empty(taps * _outputs(axes[1:]) * min(rows, many * axes[0].outputs),
                              dtype=dtype)  # fmt: skip
    for part in torch.split(images, many):
        windows = _windows(_padded(part, axes, dtype), axes, groups)
        for some in torch.split(windows, min(rows, axes[0].outputs), dim=-len(axes)):
            patches = buffer[: some.numel()].view(some.shape).copy_(some)
            yield patches.view(groups, taps // groups, -1)
