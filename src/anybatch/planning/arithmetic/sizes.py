"""Batch sizes to choose from: a fine grid, and those that suit the hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError

__all__ = ["batch_size_grid", "friendly", "permitted"]

_Sizes = NDArray[np.int64]

_STEPS_PER_OCTAVE = 8
_MOST_UNKNOWN = 2**20  # batch size that is looked at where the set's length is not known
_CUDA_STEPS = ((64, 64), (8, 8))  # from so many examples on a rank: multiples of


def permitted(
    batch_sizes: ArrayLike, *, ranks: int = 1, ghost: int | None = None, set_size: int | None = None
) -> _Sizes:
    """Those of the sizes that can be trained with: whole ghosts on each rank, within the set.

    Args:
        batch_sizes: in examples.
        ranks: that share a batch.
        ghost: examples that share BatchNorm statistics; None where nothing does.
        set_size: training examples; None where not known.

    Example:
        >>> permitted([16, 32, 48, 64, 128], ranks=2, ghost=16, set_size=100).tolist()
        [32, 64]
    """
    sizes = np.unique(np.asarray(batch_sizes, dtype=np.int64))
    fits = sizes >= 1
    unit = ranks * (ghost or 1)
    if unit > 1:
        fits &= sizes % unit == 0
    if set_size is not None:
        fits &= sizes <= set_size
    return np.asarray(sizes[fits])


def friendly(
    batch_sizes: ArrayLike,
    *,
    device: str = "cpu",
    ranks: int = 1,
    ghost: int | None = None,
    set_size: int | None = None,
) -> _Sizes:
    """Those of the sizes that suit the hardware, ascending.

    Permitted ones (`permitted`) of which a rank gets 2^k or 3 * 2^k examples, or so many ghosts.
    On CUDA a rank's part is a multiple of 8 from 8 examples on, of 64 from 64 on.

    Args:
        batch_sizes: in examples.
        device: "cpu" or "cuda".
        ranks: that share a batch.
        ghost: examples that share BatchNorm statistics; None where nothing does.
        set_size: training examples; None where not known.

    Example:
        >>> friendly(range(20, 200)).tolist()
        [24, 32, 48, 64, 96, 128, 192]
        >>> friendly(range(20, 200), device="cuda").tolist()
        [24, 32, 48, 64, 128, 192]
    """
    sizes = permitted(batch_sizes, ranks=ranks, ghost=ghost, set_size=set_size)
    suits = [_suits(int(size) // ranks, ghost or 1, device) for size in sizes]
    return np.asarray(sizes[np.array(suits, dtype=bool)])


def _suits(per_rank: int, ghost: int, device: str) -> bool:
    is_round = _is_round(per_rank) or (per_rank % ghost == 0 and _is_round(per_rank // ghost))
    if not device.startswith("cuda"):
        return is_round
    step = next((step for least, step in _CUDA_STEPS if per_rank >= least), 1)
    return is_round and per_rank % step == 0


def _is_round(count: int) -> bool:
    """Whether it is 2^k or 3 * 2^k."""
    odd = count // (count & -count) if count > 0 else 0
    return odd in (1, 3)


def batch_size_grid(
    *, ranks: int = 1, ghost: int | None = None, set_size: int | None = None,
    also: Sequence[int] = (),
) -> _Sizes:  # fmt: skip
    """Permitted sizes eight to the octave, the whole set, all 2^k and 3 * 2^k, and the given ones.

    Args:
        ranks: that share a batch.
        ghost: examples that share BatchNorm statistics; None where nothing does.
        set_size: training examples; None looks up to 2^20.
        also: further sizes.

    Raises:
        InputError: the set is smaller than one ghost on each rank.

    Example:
        >>> batch_size_grid(set_size=10, also=[7]).tolist()
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    unit = ranks * (ghost or 1)
    largest = _MOST_UNKNOWN if set_size is None else set_size
    if largest < unit:
        rule = f"must be at least {unit:,}, one ghost on each of {ranks} ranks"
        raise InputError("set_size", rule, largest)
    octaves = math.log2(largest / unit)
    places = np.arange(math.floor(octaves * _STEPS_PER_OCTAVE) + 1) / _STEPS_PER_OCTAVE
    doubled = 2.0 ** np.arange(math.floor(octaves) + 1) * unit
    few = np.array([largest // unit * unit, *also], dtype=np.float64)
    sizes = np.concatenate([np.rint(2.0**places) * unit, doubled, np.rint(1.5 * doubled), few])
    return permitted(
        sizes.astype(np.int64),
        ranks=ranks,
        ghost=ghost,
        set_size=set_size,
    )
