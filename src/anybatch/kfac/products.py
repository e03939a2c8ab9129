"""Products of matrices, by oneDNN where it serves: torch's own products do not ask it on a CPU.

On processors for which torch's BLAS has no best code (AMD's with AVX-512) it is twice as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_lower_product", "add_product", "is_served", "mirror", "product"]

_LEAST_SIDE, _LEAST_SUMMED = 16, 64  # below which a product is too short to be handed over
_WHOLE = 256  # side up to which a product is not divided to use its symmetry


def is_served(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies tensors of this precision on this device."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and available


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product left right^T.

    Args:
        left: (m, summed).
        right: (n, summed).

    Example:
        >>> product(torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[6.],
                [6.]])
    """
    if not _gains(left, right):
        return left @ right.mT
    with torch.autocast("cpu", enabled=False):
        found: Tensor = torch.nn.functional.linear(left.contiguous().to_mkldnn(), right)
    return found.to_dense()


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right^T to total, in place.

    Args:
        total: (m, n).
        left: (m, summed).
        right: (n, summed).
    """
    if _gains(left, right):
        total += product(left, right)
    else:
        total.addmm_(left, right.mT)


def _gains(left: Tensor, right: Tensor) -> bool:
    large = min(len(left), len(right)) >= _LEAST_SIDE and left.shape[1] >= _LEAST_SUMMED
    return large and is_served(left)


def add_lower_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the lower triangle of a symmetric left right^T, in place; `mirror` gives the upper one.

    Args:
        total: (side, side); what is above its diagonal is undefined afterwards.
        left: (side, summed).
        right: likewise.

    Cost:
        summed * side^2 multiply-adds, approaching half of it for sides above 256.
    """
    side = len(left)
    if side <= _WHOLE:
        add_product(total, left, right)
        return
    half = side // 2
    add_lower_product(total[:half, :half], left[:half], right[:half])
    add_lower_product(total[half:, half:], left[half:], right[half:])
    add_product(total[half:, :half], left[half:], right[:half])


def mirror(total: Tensor) -> None:
    """Make a matrix symmetric to the last bit, in place: what is above its diagonal is replaced.

    Args:
        total: (side, side).

    Example:
        >>> total = torch.tensor([[1.0, 9.0], [2.0, 3.0]])
        >>> mirror(total)
        >>> total
        tensor([[1., 2.],
                [2., 3.]])
    """
    side = len(total)
    if side <= _WHOLE:
        total.copy_(torch.tril(total) + torch.tril(total, diagonal=-1).mT)
        return
    half = side // 2
    mirror(total[:half, :half])
    mirror(total[half:, half:])
    total[:half, half:] = total[half:, :half].mT
