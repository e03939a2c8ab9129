"""Damping: what is added to the diagonals of a layer's two Kronecker factors.

All of it stays on the device: nothing here waits for a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["damping_by_means", "factored_damping", "mean_eigenvalue"]


def mean_eigenvalue(statistic: Tensor) -> Tensor:
    """Mean eigenvalue, tr X / side, of each of a factor's matrices: (groups,), at least float32.

    Args:
        statistic: (groups, side, side), or (groups, side) where only the diagonal is kept.
    """
    diagonal = statistic if statistic.dim() == 2 else statistic.diagonal(dim1=-2, dim2=-1)
    dtype = torch.promote_types(statistic.dtype, torch.float32)
    return diagonal.mean(dim=-1, dtype=dtype)


def damping_by_means(
    mean_a: Tensor, mean_g: Tensor, damping: float | Tensor
) -> tuple[Tensor, Tensor]:
    """What is added to A and to G, of the mean eigenvalues alone.

    pi sqrt(damping) and sqrt(damping) / pi with pi^2 = mean_a / mean_g. pi is 1 where one of the
    two is zero, negative or not finite: then nothing is known about their balance.

    Args:
        mean_a: mean eigenvalue of A, of any shape: (groups,), or 0-dim.
        mean_g: of G, of the same shape; A and G may be known to different ranks, and of different
            updates.
        damping: in units of the Fisher, > 0; a number or 0-dim.

    Returns:
        Two tensors of that shape, whose product is the damping.

    Example:
        >>> a, g = damping_by_means(torch.tensor(4.0), torch.tensor(1.0), 0.25)
        >>> float(a), float(g)
        (1.0, 0.25)
    """
    # Root by root: the quotient itself may leave float32's range.
    pi = mean_a.sqrt() / mean_g.sqrt()
    known = torch.isfinite(pi) & (pi > 0) & torch.isfinite(mean_a) & torch.isfinite(mean_g)
    pi = torch.where(known, pi, torch.ones_like(pi))
    root = damping.sqrt() if isinstance(damping, Tensor) else math.sqrt(damping)
    return pi * root, root / pi


def factored_damping(
    a_statistic: Tensor, g_statistic: Tensor, damping: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Factored Tikhonov: A + pi sqrt(damping) I and G + sqrt(damping) / pi I.

    pi^2 = (tr A / dim A) / (tr G / dim G), for each group of a convolution by itself. The damped
    product (A + ..) (x) (G + ..) does not change when A becomes c A and G becomes G / c. pi is 1
    where a trace is zero or not finite.

    Args:
        a_statistic: A, (groups, side, side), or (groups, side) where only the diagonal is kept.
        g_statistic: G, likewise; as many groups.
        damping: in units of the Fisher of one example's loss, > 0; a number or 0-dim.

    Returns:
        What is added to A's diagonal and what to G's, (groups,) each.

    Cost:
        O(groups * side).

    Example:
        >>> a, g = factored_damping(4 * torch.eye(3)[None], torch.eye(2)[None], 0.25)
        >>> a.tolist(), g.tolist()
        ([1.0], [0.25])

    Reference:
        Martens, Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature, section 6.3.
    """
    means = mean_eigenvalue(a_statistic), mean_eigenvalue(g_statistic)
    return damping_by_means(*means, damping)
