"""Solvers: one way each to a damped inverse, and what it is worth, tried on one vector.

Each returns the inverses, of the statistic's shape, and verdicts, (groups,): 0 good, 1 not
definite, 2 inaccurate. An inverse X is good when it has a positive diagonal and
|M (X v) - v| < |v| / 10 for a fixed vector v.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from anybatch.kfac.products import add_lower_product, is_served, mirror, product

__all__ = [
    "LARGEST_ERROR",
    "Solver",
    "attempt",
    "attempt_in_float64",
    "by_eigenvalues",
    "by_entries",
]

Solver: TypeAlias = Literal["cholesky", "eigen"]

_LARGEST_LEAF = 512  # side up to which a matrix is not divided
LARGEST_ERROR = 0.1  # |M (X v) - v| / |v| of a useful inverse X; float32 is there at condition 1e7


def attempt(statistic: Tensor, damping: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """The way that fits: by entries, by adjugate, or as the solver says.

    Args:
        statistic: (groups, side, side), or (groups, side) where only the diagonal is kept.
        damping: (groups,), in the same precision.
        solver: of sides above 2.
    """
    if statistic.dim() == 2:
        return by_entries(statistic, damping)
    if statistic.shape[-1] <= 2:
        return _by_adjugate(statistic, damping)
    if solver == "cholesky":
        return _by_cholesky(statistic, damping)
    return by_eigenvalues(statistic, damping)


def attempt_in_float64(statistic: Tensor, damping: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """The same of matrices in float64; inverse, and what is judged, in their own precision.

    Args:
        statistic: (groups, side, side).
        damping: (groups,).
        solver: of sides above 2.
    """
    wide, wide_damping = statistic.double(), damping.double()
    inverse, verdict = attempt(wide, wide_damping, solver)
    inverse = inverse.to(statistic.dtype)  # as it will be used: rounding may be what spoils it
    answer = _times(inverse.double(), _probe(wide))
    image = _times(_damped(wide, wide_damping), answer)
    return inverse, _verdict(inverse, image, verdict == 0)


def by_entries(diagonal: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Of a diagonal.

    Args:
        diagonal: (groups, side).
        damping: (groups,).
    """
    damped = diagonal + damping[:, None]
    inverse = damped.reciprocal()
    good = (diagonal >= 0) & torch.isfinite(damped) & torch.isfinite(inverse)
    return inverse, 1 - good.all(dim=-1).to(torch.uint8)


def _by_adjugate(statistic: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Of sides 1 and 2, in float64, which holds products of float32 numbers exactly."""
    matrix = _damped(statistic.double(), damping.double())
    if matrix.shape[-1] < 2:
        inverse, definite = matrix.reciprocal(), (matrix > 0).flatten(1).all(dim=-1)
    else:
        first, beside, last = matrix[:, 0, 0], matrix[:, 1, 0], matrix[:, 1, 1]
        determinant = first * last - beside.square()
        adjugate = torch.stack([last, -beside, -beside, first], dim=-1).view(-1, 2, 2)
        inverse = adjugate / determinant[:, None, None]
        definite = (determinant > 0) & (first > 0)
    inverse = inverse.to(statistic.dtype)
    answer = _times(inverse.double(), _probe(matrix))
    return inverse, _verdict(inverse, _times(matrix, answer), definite)


def _by_cholesky(statistic: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    matrix = _damped(statistic, damping)
    if len(matrix) == 1 and matrix.shape[-1] > _LARGEST_LEAF and is_served(matrix):
        found, definite = _by_halves(matrix[0])
        inverse, answer = found[None], _times(found[None], _probe(matrix))
        return inverse, _verdict(inverse, _times(matrix, answer), definite)
    root, failed = torch.linalg.cholesky_ex(matrix)
    if matrix.is_cuda:
        # cholesky_inverse would make the host wait, and is this solve inside.
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        inverse = torch.cholesky_solve(eye, root)
        inverse = (inverse + inverse.mT) / 2
    else:
        if failed.any():  # an unfinished root would raise
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
            root = torch.where((failed == 0)[:, None, None], root, eye)
        inverse = torch.cholesky_inverse(root)  # both triangles of one computation: symmetric
    answer = _times(inverse, _probe(matrix))
    return inverse, _verdict(inverse, _times(matrix, answer), failed == 0)


def _by_halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of (A, B^T; B, D) from those of A and of D - B A^-1 B^T, each by halves again.

    As much work as a Cholesky inverse, nearly all of it in large products: where oneDNN
    multiplies it takes half the time. Errors are those of Cholesky within a factor of 3.

    Returns:
        The inverse, exactly symmetric, of (side, side); whether all halves were definite, (1,).
    """
    side = len(matrix)
    if side <= _LARGEST_LEAF:
        root, failed = torch.linalg.cholesky_ex(matrix)
        definite = (failed == 0).view(1)
        return torch.cholesky_inverse(root) if definite else torch.zeros_like(matrix), definite
    half = side // 2
    corner, below = matrix[:half, :half], matrix[half:, :half]
    first, definite = _by_halves(corner)
    carried = product(below, first)  # B A^-1
    left = matrix[half:, half:].clone()
    add_lower_product(left, carried, -below)
    mirror(left)
    last, also = _by_halves(left)
    beside = product(last, carried.mT).neg_()
    add_lower_product(first, carried.mT, beside.mT.neg())
    mirror(first)
    inverse = torch.empty_like(matrix)
    inverse[:half, :half], inverse[:half, half:] = first, beside.mT
    inverse[half:, :half], inverse[half:, half:] = beside, last
    return inverse, definite & also


def by_eigenvalues(
    statistic: Tensor, damping: Tensor, smallest: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Eigenvalues below zero count as zero; damped ones are at least `smallest` of the largest.

    Args:
        statistic: (groups, side, side).
        damping: (groups,).
        smallest: share of the largest damped eigenvalue.
    """
    eye = torch.eye(statistic.shape[-1], dtype=statistic.dtype, device=statistic.device)
    finite = torch.isfinite(statistic).flatten(1).all(dim=-1)
    try:
        values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], statistic, eye))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it did not converge
        return torch.zeros_like(statistic), torch.ones_like(finite, dtype=torch.uint8)
    damped = values.clamp_min(0.0) + damping[:, None]
    damped = damped.maximum(smallest * damped[:, -1:])
    root = vectors * damped.rsqrt()[:, None, :]
    wide = root.double() if root.is_cuda else root  # whatever precision products are set to
    inverse = (wide @ wide.mT).to(statistic.dtype)
    inverse = (inverse + inverse.mT) / 2
    answer = _times(inverse, _probe(statistic))
    raised = (damped - values) * _times(vectors.mT, answer)
    image = _times(statistic, answer) + _times(vectors, raised)
    return inverse, _verdict(inverse, image, finite & torch.isfinite(damping))


def _damped(statistic: Tensor, damping: Tensor) -> Tensor:
    matrix = statistic.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    return matrix


def _probe(matrix: Tensor) -> Tensor:
    """A fixed vector of all frequencies, (1, side): cos(sqrt(2) pi i^2)."""
    index = torch.arange(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    return torch.cos(math.sqrt(2.0) * math.pi * index.square()).to(matrix.dtype)[None]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(groups, n, n) times (groups or 1, n): never in the reduced precision of a GPU's products."""
    if len(matrix) == 1:
        return torch.mv(matrix[0], vector[0])[None]
    return (matrix * vector[:, None, :]).sum(dim=-1)


def _verdict(inverse: Tensor, image: Tensor, definite: Tensor) -> Tensor:
    """Of an inverse and what M X makes of the probe."""
    probe = _probe(image)
    error = torch.linalg.vector_norm(image - probe, dim=-1) / torch.linalg.vector_norm(probe)
    positive = (inverse.diagonal(dim1=-2, dim2=-1) > 0).all(dim=-1)
    good = positive & (error < LARGEST_ERROR)  # not of a NaN
    return torch.where(definite, 2 * (~good).to(torch.uint8), 1)
