"""Raw sums of one pass through one layer, by the kind of its block."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac.blocks import FactorShape, FisherBlock
from anybatch.kfac.norms import norm_gradients
from anybatch.kfac.owners import num_channels
from anybatch.kfac.patch_means import mean_patches
from anybatch.kfac.patches import (
    Convolution,
    add_convolution_input_sum,
    convolution_input_diagonal,
)
from anybatch.kfac.statistics import (
    Sharing,
    add_grouped_products,
    add_norm_products,
    add_position_products,
    add_products,
    add_token_counts,
    convolution_rows,
    linear_rows,
)

__all__ = [
    "Passage",
    "add_input_sum",
    "add_output_sum",
    "first_examples",
    "measured_share",
    "num_examples",
    "num_measured",
    "num_rows",
]


class Passage:
    """What one forward pass gave to one layer of a block.

    Attributes:
        block: that the layer belongs to.
        module: the layer.
        inputs: what it got, with examples first.
        version: of the inputs' memory, which nothing may write to until backward.
    """

    __slots__ = ("__weakref__", "block", "inputs", "module", "version")

    def __init__(self, block: FisherBlock, module: nn.Module, inputs: Tensor) -> None:
        self.block, self.module = block, module
        self.version = inputs._version
        self.inputs = inputs.detach()

    def check_inputs(self) -> None:
        """Refuse inputs that were written over since they were used.

        Raises:
            InputError: they were (autocast, which uses a copy, lets that pass).
        """
        if self.inputs._version != self.version:
            rule = "must find its input unchanged in the backward pass"
            raise InputError(f"layer {self.block.name}", rule, "an in-place change of it")


def add_input_sum(total: Tensor, factor: FactorShape, passage: Passage, sharing: Sharing) -> None:
    """S_A += sum of a a^T of one passage, in place.

    Args:
        total: of the factor's shape.
        factor: role "A".
        passage: of a linear layer, convolution or embedding.
        sharing: of the weight over positions.
    """
    block, module, inputs = passage.block, passage.module, passage.inputs
    with_bias = block.bias is not None
    if isinstance(module, nn.Embedding):
        add_token_counts(total[0], inputs, sharing, padding=module.padding_idx)
    elif block.kind == "linear":
        rows = linear_rows(inputs, sharing, average=True)
        add_products(total[0], rows, with_bias=with_bias)
    elif sharing == "expand":
        convolution = cast(Convolution, module)
        if factor.diagonal:
            total += convolution_input_diagonal(inputs, convolution, with_bias=with_bias)
        else:
            add_convolution_input_sum(total, inputs, convolution, with_bias=with_bias)
    else:
        convolution = cast(Convolution, module)
        patches = mean_patches(_batched(passage), convolution)
        for each, rows in zip(total, patches, strict=True):
            add_products(each, rows, with_bias=with_bias)


def add_output_sum(total: Tensor, passage: Passage, gradient: Tensor, sharing: Sharing) -> None:
    """S_G += sum of ghat ghat^T of one passage (S_F of a norm), in place.

    Args:
        total: of the shape of the factor G or F.
        passage: of the layer.
        gradient: ghat, of the shape of the layer's outputs.
        sharing: of the weight over positions.
    """
    block, module = passage.block, passage.module
    if block.kind == "norm":
        gradient = gradient.to(total.dtype)
        scale, shift = norm_gradients(
            module,
            passage.inputs,
            gradient,
            with_scale=block.weight is not None,
            with_shift=block.bias is not None,
        )
        add_norm_products(total, scale, shift)
    elif block.kind == "convolution":
        convolution = cast(Convolution, module)
        if passage.inputs.dim() < block_dimensions(convolution):
            gradient = gradient.unsqueeze(0)
        if sharing == "expand" and len(total) == 1:
            add_position_products(total[0], gradient)
        else:
            add_grouped_products(total, convolution_rows(gradient, convolution.groups, sharing))
    else:
        if _padding(module) is not None:
            gradient = gradient * _is_token(passage).unsqueeze(-1)
        if isinstance(module, nn.Embedding) and passage.inputs.dim() == 1:
            gradient = gradient.reshape(-1, gradient.shape[-1])
        add_products(total[0], linear_rows(gradient, sharing, average=False))


def block_dimensions(module: Convolution) -> int:
    """Dimensions of a convolution's inputs with examples."""
    return len(module.kernel_size) + 2


def num_measured(examples: int, share: float) -> int:
    """How many of a pass's examples are measured, at least one.

    Example:
        >>> num_measured(8, 1.0), num_measured(8, 0.3), num_measured(1, 0.3)
        (8, 3, 1)
    """
    return min(examples, max(1, math.ceil(share * examples - 1e-9)))


def measured_share(passage: Passage, share: float) -> float:
    """The part of a passage's examples that is measured: whole examples."""
    examples = num_examples(passage)
    return num_measured(examples, share) / max(1, examples)


def first_examples(passage: Passage, gradient: Tensor, share: float) -> tuple[Passage, Tensor]:
    """A passage and its output gradient with the measured part of their examples.

    A norm's normalized inputs need the whole batch, and what an embedding gets may be positions
    without examples: there all is measured, gradients scaled so that they weigh as the part does.
    """
    examples = num_examples(passage)
    measured = num_measured(examples, share)
    if measured == examples:
        return passage, gradient
    if passage.block.kind in ("norm", "embedding"):
        return passage, gradient * math.sqrt(measured / examples)
    part = Passage(passage.block, passage.module, passage.inputs[:measured])
    return part, gradient[:measured]


def num_examples(passage: Passage) -> int:
    """Length of the leading dimension of a layer's inputs."""
    return len(_batched(passage))


def num_rows(passage: Passage, gradient: Tensor, sharing: Sharing) -> int:
    """Outer products in S_G: examples * positions, or examples under "reduce".

    Of a norm, whose S_F has one for each example, positions count too: a loss by tokens needs them.

    One synchronization for an embedding with padding, whose positions do not count.
    """
    if passage.block.kind == "norm":
        return gradient.numel() // num_channels(passage.module)
    if sharing == "reduce":
        return num_examples(passage)
    if _padding(passage.module) is not None:
        return int(_is_token(passage).sum())
    channels = len(cast(Tensor, passage.module.weight))
    if isinstance(passage.module, nn.Embedding):
        channels = passage.module.embedding_dim
    return gradient.numel() // channels


def _padding(module: nn.Module) -> int | None:
    return module.padding_idx if isinstance(module, nn.Embedding) else None


def _is_token(passage: Passage) -> Tensor:
    return torch.ne(passage.inputs, cast(int, _padding(passage.module)))


def _batched(passage: Passage) -> Tensor:
    """The inputs with a dimension of examples."""
    module, inputs = passage.module, passage.inputs
    if passage.block.kind == "convolution":
        least = block_dimensions(cast(Convolution, module))
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        least = len(module.normalized_shape) + 1
    else:
        least = 1 if isinstance(module, nn.Embedding) else 2
    return inputs if inputs.dim() >= least else inputs.unsqueeze(0)
