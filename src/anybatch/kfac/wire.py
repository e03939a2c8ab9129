"""The wire: statistics in half precision between ranks, scaled so that they fit, and the error.

fp16 has 5 bits of exponent: raw sums overflow it at 65504 and vanish below 6e-8. Every factor is
therefore multiplied by a power of two of its own before it is cast, so that the largest magnitude
on any rank, times the ranks, is between 2^13 and 2^15. Powers of two change no bit of a mantissa.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Wire", "largest_magnitudes", "wire_dtype", "wire_error", "wire_scales"]

Wire: TypeAlias = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TOP = 15  # a scaled sum stays below 2^15, half of the largest fp16


def wire_dtype(wire: Wire, dtype: torch.dtype) -> torch.dtype:
    """What statistics of `dtype` travel in: "fp32" leaves them as they are, also in float64."""
    return _DTYPES.get(wire, dtype)


def largest_magnitudes(tensors: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> Tensor:
    """The largest magnitude of each tensor, (names,); inf where one is not finite, 0 if missing.

    inf rather than NaN, because a maximum over ranks may lose a NaN.

    Args:
        tensors: by name.
        names: in their order.
        like: of the result's type and device.

    Example:
        >>> tensors = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([1.0, float("nan")])}
        >>> largest_magnitudes(tensors, ["a", "b", "c"], torch.zeros(()))
        tensor([3., inf, 0.])
    """
    zero = like.new_zeros(())
    found = [
        torch.linalg.vector_norm(tensors[name], math.inf).to(like) if name in tensors else zero
        for name in names
    ]
    largest = torch.stack(found) if found else like.new_zeros(0)
    return largest.nan_to_num_(nan=math.inf, posinf=math.inf)


def wire_scales(largest: Tensor, ranks: int) -> Tensor:
    """Powers of two by which tensors are multiplied before they travel in half precision.

    2^(15 - ceil(log2 ranks) - e), for a largest magnitude in [2^(e-1), 2^e): sums over the ranks
    stay below 2^15. NaN where the largest is inf, so that the whole tensor arrives as NaN.

    Args:
        largest: magnitudes that the ranks have agreed on, >= 0, fp32 or fp64.
        ranks: over which to add.

    Example:
        >>> wire_scales(torch.tensor([1.0, 3.0, float("inf")]), ranks=3)
        tensor([4096., 2048.,   nan])
    """
    exponent = _TOP - (ranks - 1).bit_length() - torch.frexp(largest).exponent
    most = 126 if largest.dtype == torch.float32 else 1022  # that an inverse of it is normal
    scales = torch.ldexp(torch.ones_like(largest), exponent.clamp(-most, most))
    return torch.where(torch.isfinite(largest), scales, math.nan)


def wire_error(wire: Wire, ranks: int, *, added_in_full: bool) -> tuple[float, float]:
    """Bound of what the wire does to an element of a sum over ranks.

    |received - exact| <= relative * (sum over ranks of |x_r|) + absolute * (largest |x_r| of all
    the factor's elements), beside the rounding of the sums' own precision.

    relative: u where parts are added in full precision, R u / (1 - R u) where every one of R - 1
    additions rounds; u = 2^-11 of fp16, 2^-8 of bf16. absolute: R^2 2^-38 of fp16 (R 2^-38 each),
    what is lost to its smallest numbers; of bf16 nothing that counts.

    Args:
        wire: that it travels in.
        ranks: R, over which to add.
        added_in_full: whether each rank's part arrives by itself (the all-to-all of gloo) and not
            as part of a sum in the wire's precision (reduce-scatter, all-reduce).

    Returns:
        relative, absolute; (inf, inf) where R u >= 1.

    Example:
        >>> wire_error("fp32", 8, added_in_full=False)
        (0.0, 0.0)
        >>> relative, absolute = wire_error("fp16", 8, added_in_full=False)
        >>> round(relative, 5), absolute < 1e-9
        (0.00392, True)

    Reference:
        Higham (2002), Accuracy and stability of numerical algorithms, section 3.1 for R u / (1 -
        R u).
    """
    if wire == "fp32":
        return 0.0, 0.0
    unit = 2.0**-11 if wire == "fp16" else 2.0**-8
    absolute = ranks**2 * 2.0**-38 if wire == "fp16" else ranks**2 * 2.0**-120
    if added_in_full:
        return unit, absolute
    if ranks * unit >= 1:
        return math.inf, math.inf
    return ranks * unit / (1 - ranks * unit), absolute
