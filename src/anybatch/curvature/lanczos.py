"""Lanczos: the largest eigenvalue of a symmetric matrix of which only products are known.

Each product adds a row to a tridiagonal matrix T whose largest eigenvalue (the Ritz value) rises
towards the matrix's. Every new direction is made orthogonal to all earlier ones, twice, so that
no eigenvalue is found again as a ghost; the coefficients are kept in float64.

Reference: Parlett 1998, "The Symmetric Eigenvalue Problem", chapters 4 and 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ritz", "lanczos"]


@dataclass(frozen=True, slots=True)
class Ritz:
    """What is known after some products.

    Attributes:
        eigenvalue: the largest of T: a lower bound of the matrix's largest eigenvalue, up to
            rounding.
        residual: |A y - eigenvalue y| of the Ritz vector y of length 1: an eigenvalue of A lies no
            further away than this.
        is_exhausted: whether no further direction exists (or none that rounding leaves): then the
            eigenvalue is exact to rounding.
    """

    eigenvalue: float
    residual: float
    is_exhausted: bool


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor) -> Iterator[Ritz]:
    """Ever better bounds of the largest eigenvalue of a symmetric matrix A.

    beta_k q_{k+1} = A q_k - alpha_k q_k - beta_{k-1} q_{k-1}, alpha_k = q_k . A q_k; T has the
    alphas on its diagonal and the betas beside it. With T s = theta s, |s| = 1: residual =
    beta_k |s_k|. The error of theta is at most the residual and, with a gap to the next
    eigenvalue, about residual^2 / gap.

    Args:
        product: v -> A v, (n,) to (n,); called once for each value that is taken.
        start: (n,), not 0; drawn at random, so that the wanted direction is not missed.

    Yields:
        At most n values; the last one is exhausted. One that is not finite is the last too.

    Cost:
        One product each; k vectors of memory and O(k n) arithmetic at the k-th.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
        >>> *_, last = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64))
        >>> round(last.eigenvalue, 12), last.residual < 1e-12, last.is_exhausted
        (5.0, True, True)
    """
    basis = [start / torch.linalg.vector_norm(start)]
    alphas: list[float] = []
    betas: list[float] = []
    floor = 10.0 * torch.finfo(start.dtype).eps
    while True:
        direction = product(basis[-1])
        alphas.append(_dot(basis[-1], direction))
        direction = _orthogonal(_orthogonal(direction, basis), basis)
        beta = float(torch.linalg.vector_norm(direction, dtype=torch.float64))
        if not _is_finite(alphas[-1], beta):
            yield Ritz(float("nan"), float("inf"), True)
            return
        values, vectors = torch.linalg.eigh(_tridiagonal(alphas, betas))
        scale = float(values.abs().max())
        is_complete = len(alphas) == len(start)
        is_exhausted = is_complete or beta <= 10.0 * floor * scale
        residual = (0.0 if is_complete else beta) * float(vectors[-1, -1].abs())
        yield Ritz(float(values[-1]), residual + floor * scale, is_exhausted)
        if is_exhausted:
            return
        betas.append(beta)
        basis.append(direction / beta)


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.double(), right.double()))


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """What is left of a vector when its parts along an orthonormal basis are taken away."""
    for direction in basis:
        vector = vector - _dot(direction, vector) * direction
    return vector


def _is_finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)


def _tridiagonal(alphas: list[float], betas: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        beside = torch.tensor(betas, dtype=torch.float64)
        matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
    return matrix
