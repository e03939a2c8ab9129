"""Applying: a layer's gradient as a matrix, and that matrix between two damped inverses.

A gradient travels through these functions as V of shape (groups, outputs, inputs [+ 1]): of a
convolution with groups each group's rows and columns by themselves, the bias as the last column. A
norm's is (channels, parameters, 1), its scale before its shift.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.blocks import FisherBlock
from anybatch.kfac.products import product

__all__ = [
    "gradient_matrix",
    "has_gradient",
    "matrix_shape",
    "preconditioned_matrix",
    "write_gradient",
]


def has_gradient(block: FisherBlock) -> bool:
    """Whether every parameter of a block has a gradient.

    Raises:
        InputError: a sparse gradient, or the gradient of only one of weight and bias.
    """
    gradients = [parameter.grad for parameter in block.parameters]
    if any(g is not None and g.is_sparse for g in gradients):
        rule = "must be dense for K-FAC"
        raise InputError(f"the gradient of {block.name}", rule, "sparse", hint="sparse=False")
    present = [g is not None for g in gradients]
    if any(present) and not all(present):
        rule = "must be there for weight and bias, or for neither"
        raise InputError(f"the gradient of {block.name}", rule, str(present))
    return all(present)


def matrix_shape(block: FisherBlock) -> tuple[int, int, int]:
    """The shape of a block's gradient as a matrix (see the module)."""
    if block.kind == "norm":
        (factor,) = block.factors
        return (factor.groups, factor.side, 1)
    a, g = block.factors
    return (a.groups, g.side, a.side)


def gradient_matrix(block: FisherBlock) -> Tensor:
    """The gradient of a block's parameters as a matrix (see the module); a copy or a view.

    Zero where there is none.
    """
    if not has_gradient(block):
        like = block.parameters[0]
        return like.new_zeros(matrix_shape(block))
    weight = None if block.weight is None else block.weight.grad
    bias = None if block.bias is None else block.bias.grad
    if block.kind == "norm":
        columns = [g.reshape(-1, 1) for g in (weight, bias) if g is not None]
        return torch.cat(columns, dim=1).unsqueeze(-1)
    assert weight is not None  # by `has_gradient`
    if block.kind == "embedding":
        return weight.t().unsqueeze(0)
    groups = block.factors[0].groups
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    if bias is None:
        return matrix
    return torch.cat([matrix, bias.reshape(groups, -1, 1)], dim=2)


def write_gradient(block: FisherBlock, matrix: Tensor) -> None:
    """Put a matrix back into the `.grad` of a block's parameters, in place."""
    weight = None if block.weight is None else block.weight.grad
    bias = None if block.bias is None else block.bias.grad
    if block.kind == "norm":
        present = [g for g in (weight, bias) if g is not None]
        for column, gradient in enumerate(present):
            gradient.copy_(matrix[:, column, 0].view_as(gradient))
        return
    assert weight is not None
    if block.kind == "embedding":
        weight.copy_(matrix[0].t())
        return
    if bias is not None:
        bias.copy_(matrix[:, :, -1].reshape(bias.shape))
        matrix = matrix[:, :, :-1]
    weight.copy_(matrix.reshape(weight.shape))


def preconditioned_matrix(
    block: FisherBlock, matrix: Tensor, inverses: Mapping[str, Tensor]
) -> Tensor:
    """P = G^-1 V A^-1 for each group; of a norm P_c = F_c^-1 v_c for each channel.

    Args:
        block: whose gradient it is.
        matrix: V (see the module).
        inverses: damped, by factor name: (groups, side, side), or (groups, side) of a diagonal.

    Returns:
        P, of V's shape and in the inverses' precision.

    Cost:
        groups * outputs * inputs * (outputs + inputs) multiply-adds.

    Reference:
        Martens, Grosse (2015), eq. 8.
    """
    if block.kind == "norm":
        inverse = inverses[block.factors[0].name]
        return _from_left(inverse, matrix.to(inverse.dtype))
    a, g = (inverses[factor.name] for factor in block.factors)
    return _from_right(_from_left(g, matrix.to(g.dtype)), a)


def _from_left(inverse: Tensor, matrix: Tensor) -> Tensor:
    if inverse.dim() == 2:
        return inverse.unsqueeze(-1) * matrix
    if len(inverse) == 1:
        return product(inverse[0], matrix[0].mT).unsqueeze(0)
    return torch.bmm(inverse, matrix)


def _from_right(matrix: Tensor, inverse: Tensor) -> Tensor:
    if inverse.dim() == 2:
        return matrix * inverse.unsqueeze(1)
    if len(inverse) == 1:
        return product(matrix[0], inverse[0]).unsqueeze(0)  # it is symmetric
    return torch.bmm(matrix, inverse)
