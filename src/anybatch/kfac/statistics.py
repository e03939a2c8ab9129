"""Raw sums of the Fisher's factors, and what they mean.

a is what a layer gets, ghat the gradient of the weighted loss by what it gives. Sums add up over
micro-batches and ranks:

    S_A = sum over examples and positions of a a^T      S_G = sum of ghat ghat^T
    A = S_A / N     G = D^2 S_G / R     F = D^2 S_F / N

N: examples; R: outer products in S_G (examples * positions * uses; examples under "reduce"); D:
what an example's loss was divided by. This is the convention of Grosse, Martens (2016), "A
Kronecker-factored approximate Fisher matrix for convolution layers": A is not divided by
positions.
Under "reduce" positions come first: S_A of the mean of a, S_G of the sum of ghat (Eschenhagen et
al. 2023, "Kronecker-factored approximate curvature for modern neural network architectures").

Sums are float32, float64 where the gradient is. Each function adds to a running sum in place.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from anybatch.kfac.products import add_lower_product, is_served, mirror

__all__ = [
    "Sharing",
    "accumulation_dtype",
    "add_grouped_products",
    "add_norm_products",
    "add_position_products",
    "add_products",
    "add_token_counts",
    "convolution_rows",
    "linear_rows",
    "normalized",
]

Sharing: TypeAlias = Literal["expand", "reduce"]

_SLICE_BYTES = 2**21  # so that a slice and its transpose stay in the cache


def normalized(
    total: Tensor,
    role: Literal["A", "G", "F"],
    *,
    examples: float,
    rows: float,
    divisor: float,
) -> Tensor:
    """A statistic of its raw sum: A = S / examples, G = D^2 S / rows, F = D^2 S / examples.

    Args:
        total: raw sum over micro-batches and ranks, of any shape.
        role: which factor it is.
        examples: N; of a token-wise loss the rows.
        rows: R, outer products in the sum.
        divisor: D, the batch size under a mean loss, 1 under a sum; over the loss scale.

    Example:
        >>> normalized(torch.tensor([8.0]), "G", examples=2, rows=4, divisor=2.0)
        tensor([8.])
    """
    if role == "A":
        return total / examples
    return total * (divisor**2 / (rows if role == "G" else examples))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others: half precision is never summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear_rows(values: Tensor, sharing: Sharing, *, average: bool) -> Tensor:
    """Values (examples, ..., side) as the rows whose outer products are summed.

    Args:
        values: inputs or output gradients; (side,) is one example.
        sharing: "expand": (examples * positions, side); "reduce": (examples, side).
        average: under "reduce" the mean over positions (inputs), else their sum (gradients).
    """
    if values.dim() == 1:
        values = values.unsqueeze(0)
    if sharing == "expand" or values.dim() == 2:
        return values.reshape(-1, values.shape[-1])
    return _reduced(values.flatten(1, -2), 1, average)


def convolution_rows(gradient: Tensor, groups: int, sharing: Sharing) -> Tensor:
    """Output gradients (n, channels, *positions) as (groups, rows, channels / groups).

    Channels-last memory is not copied for one group.
    """
    if sharing == "reduce":
        rows = _reduced(gradient.flatten(2), 2, average=False)
    else:
        rows = gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
    return rows.view(len(rows), groups, -1).transpose(0, 1)


def _reduced(values: Tensor, dim: int, average: bool) -> Tensor:
    dtype = accumulation_dtype(values.dtype)
    return values.mean(dim, dtype=dtype) if average else values.sum(dim, dtype=dtype)


def add_products(total: Tensor, rows: Tensor, *, with_bias: bool = False) -> None:
    """S += sum of r r^T over rows, in place; with a bias of (r, 1) (r, 1)^T.

    Args:
        total: (side, side), or (side,) of the diagonal; side has the bias as its last entry.
        rows: (many, side without the bias), of any floating dtype.
        with_bias: whether the side has that entry.

    Cost:
        rows * side^2 multiply-adds, approaching half of it for sides above 256; the diagonal
        rows * side.

    Example:
        >>> total = torch.zeros(2, 2)
        >>> add_products(total, torch.tensor([[2.0], [3.0]]), with_bias=True)
        >>> total
        tensor([[13.,  5.],
                [ 5.,  2.]])
    """
    rows = rows.to(total.dtype)
    side = rows.shape[1]
    if total.dim() == 1:
        total[:side] += _squares(rows)
    else:
        _add_symmetric(total[:side, :side], rows)
    if not with_bias:
        return
    if total.dim() == 2:
        sums = rows.sum(0)
        total[side, :side] += sums
        total[:side, side] += sums
    total[..., -1:].view(-1)[-1:] += len(rows)


def add_position_products(total: Tensor, values: Tensor) -> None:
    """S += sum over examples and positions of v v^T, in place.

    Args:
        total: (channels, channels), or (channels,) of the diagonal.
        values: (n, channels, *positions), in any layout and of any floating dtype.

    Cost:
        As `add_products`; channels-last values are not copied as a whole, others neither where
        oneDNN multiplies.

    Example:
        >>> total = torch.zeros(1, 1)
        >>> add_position_products(total, torch.tensor([[[2.0, 3.0]]]))
        >>> total
        tensor([[13.]])
    """
    last = values.movedim(1, -1)
    if total.dim() == 1 or last.is_contiguous() or not is_served(total):
        add_products(total, last.reshape(-1, values.shape[1]))
        return
    examples = max(1, _SLICE_BYTES // (4 * max(1, values[:1].numel())))
    for part in torch.split(values.flatten(2), examples):
        columns = part.to(total.dtype).transpose(0, 1).flatten(1)
        add_lower_product(total, columns, columns)
    mirror(total)


def _add_symmetric(total: Tensor, rows: Tensor) -> None:
    """S += r^T r, half of it, and its mirror image."""
    if is_served(rows):  # which wants what it sums over side by side
        many = max(rows.shape[1], _SLICE_BYTES // (4 * max(1, rows.shape[1])))
        for part in torch.split(rows, many):
            columns = part.T.contiguous()
            add_lower_product(total, columns, columns)
    else:
        add_lower_product(total, rows.T, rows.T)
    mirror(total)


def add_grouped_products(total: Tensor, rows: Tensor) -> None:
    """S_g += sum of r r^T over the rows of each group, in place.

    Args:
        total: (groups, side, side), or (groups, side) of the diagonals.
        rows: (groups, many, side).
    """
    if len(total) == 1:
        add_products(total[0], rows[0])
        return
    rows = rows.to(total.dtype)
    if total.dim() == 2:
        total += rows.square().sum(1)
    elif total.shape[-1] == 1:  # depthwise
        total += rows.square().sum(1).unsqueeze(-1)
    else:
        total.baddbmm_(rows.mT, rows)


def add_token_counts(
    total: Tensor, tokens: Tensor, sharing: Sharing, *, padding: int | None
) -> None:
    """Diagonal of S_A of an embedding, whose a is the one-hot vector of a token.

    "expand": how often each token came; "reduce": sum over examples of (its share of the positions)
    squared. Padding counts as a = 0.

    Args:
        total: (tokens of the vocabulary,), added to in place.
        tokens: (examples, ...), integers.
        sharing: of the weight over positions.
        padding: token without a gradient; None: there is none.
    """
    if sharing == "expand" or tokens.dim() < 2:
        total += torch.bincount(tokens.flatten(), minlength=len(total)).to(total.dtype)
    else:
        flat = tokens.flatten(1).long()
        example = torch.arange(len(flat), device=flat.device).unsqueeze(1)
        keys, counts = torch.unique(flat + example * len(total), return_counts=True)
        shares = counts.to(total.dtype) / flat.shape[1]
        total.index_add_(0, keys % len(total), shares.square())
    if padding is not None:
        total[padding] = 0


def add_norm_products(total: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """S_F += sum over examples of s s^T for each channel, s = (scale, shift) gradients.

    Args:
        total: (channels, side, side), or (channels, side) of the diagonals.
        scale: per-example gradients (examples, channels); None: the norm has no scale.
        shift: likewise.
    """
    parts = [part.to(total.dtype) for part in (scale, shift) if part is not None]
    for row, left in enumerate(parts):
        if total.dim() == 2:
            total[:, row] += _squares(left)
            continue
        for column, right in enumerate(parts):
            total[:, row, column] += (left * right).sum(0)


def _squares(rows: Tensor) -> Tensor:
    """Sum of squares of each column."""
    return rows.square().sum(0)
