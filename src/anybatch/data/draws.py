"""Random numbers by counter: each is a pure function of (seed, epoch, stream, example index).

There is no generator state, so a draw does not depend on what was drawn before, on the rank, the
loader process or the other examples of the batch. Everything is 64-bit integer arithmetic with
wrap-around, hence equal on every device and in every version of torch; other distributions than the
uniform are read from tables of their quantiles, for the same reason.
"""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from torch import Tensor

from anybatch.errors import InputError

__all__ = ["integers", "mixed_key", "normal", "permutation", "symmetric_beta", "uniform"]

_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
_FIRST_MULTIPLIER: Final = 0xBF58476D1CE4E5B9
_SECOND_MULTIPLIER: Final = 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1
_PERMUTATION_STREAM: Final = 1 << 32
_LARGEST_HIGH: Final = 1 << 31
_NORMAL_QUANTILES: Final = 1 << 16
_BETA_INTERVALS: Final = 1 << 14


def mixed_key(*parts: int) -> int:
    """Mix whole numbers, in order, into one of 0 ... 2^64 - 1.

    Each part is added to the key so far and sent through SplitMix64's output function. That is a
    bijection, so for fixed other parts two different values never give the same key.

    Args:
        parts: whole numbers of any size and sign; taken modulo 2^64.

    Returns:
        The key.

    Example:
        >>> mixed_key(0)  # the first output of SplitMix64 with seed 0
        16294208416658607535
        >>> mixed_key(1, 2) == mixed_key(2, 1)
        False

    Reference:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, Figure 16.
    """
    key = 0
    for part in parts:
        key = (key + part + _GOLDEN_GAMMA) & _MASK
        key = ((key ^ (key >> 30)) * _FIRST_MULTIPLIER) & _MASK
        key = ((key ^ (key >> 27)) * _SECOND_MULTIPLIER) & _MASK
        key ^= key >> 31
    return key


def uniform(
    indices: Tensor, *, seed: int, epoch: int, stream: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Uniform numbers in [0, 1), one for each index.

    u_i = floor(mix(key + (i + 1) gamma) / 2^(64 - b)) / 2^b with key = mixed_key(seed, epoch,
    stream), gamma the golden-ratio increment, mix SplitMix64's output function and b the bits of
    the mantissa (53 for float64, 24 for float32).

    Args:
        indices: int64, shape (n,), any device; the counters (example indices).
        seed: the run's seed.
        epoch: number of the pass over the data.
        stream: which draw of the example this is; different streams are independent.
        dtype: torch.float64 or torch.float32.

    Returns:
        Shape (n,), on the device of `indices`.

    Raises:
        InputError: if `indices` is not int64 or `dtype` is another one.

    Example:
        >>> uniform(torch.tensor([0, 1]), seed=0, epoch=0, stream=0, dtype=torch.float32)
        tensor([0.1296, 0.0499])

    Reference:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, Figure 16;
        the multipliers are Stafford's "Mix13" (2011).
    """
    bits_of_dtype = {torch.float64: 53, torch.float32: 24}
    if dtype not in bits_of_dtype:
        raise InputError("dtype", "must be torch.float64 or torch.float32", dtype)
    bits = bits_of_dtype[dtype]
    return _shifted_right(_bits(indices, seed, epoch, stream), 64 - bits).to(dtype) * 2.0**-bits


def integers(indices: Tensor, high: int, *, seed: int, epoch: int, stream: int) -> Tensor:
    """Uniform whole numbers in [0, high), one for each index.

    k_i = floor(high w_i / 2^32) with w_i the upper 32 bits of the draw. The probability of each
    value is within 2^-32 of 1 / high.

    Args:
        indices: int64, shape (n,), any device; the counters (example indices).
        high: number of possible values, in [1, 2^31].
        seed: the run's seed.
        epoch: number of the pass over the data.
        stream: which draw of the example this is; different streams are independent.

    Returns:
        int64, shape (n,), on the device of `indices`.

    Raises:
        InputError: if `high` is outside of its interval or `indices` is not int64.

    Example:
        >>> integers(torch.arange(5), 10, seed=0, epoch=0, stream=0)
        tensor([1, 0, 6, 6, 2])

    Reference:
        Lemire (2019), Fast random integer generation in an interval, Section 3 (without the
        rejection step).
    """
    if not 1 <= high <= _LARGEST_HIGH:
        raise InputError("high", f"must lie in [1, {_LARGEST_HIGH}]", high)
    words = _shifted_right(_bits(indices, seed, epoch, stream), 32)
    return (words * high) >> 32


def normal(indices: Tensor, *, seed: int, epoch: int, stream: int) -> Tensor:
    """Standard normal numbers, one for each index.

    z_i = the (k_i + 1/2) / 2^16 quantile of N(0, 1), k_i uniform on 0 ... 2^16 - 1: at most 4.3 in
    size, with variance 0.9998.

    Args:
        indices: int64, shape (n,), any device; the counters.
        seed: the run's seed.
        epoch: number of the pass over the data.
        stream: which draw this is; different streams are independent.

    Returns:
        float32, shape (n,), on the device of `indices`.

    Raises:
        InputError: if `indices` is not int64.

    Example:
        >>> normal(torch.arange(3), seed=0, epoch=0, stream=0)
        tensor([-1.1281, -1.6456,  0.4408])
    """
    drawn = integers(indices, _NORMAL_QUANTILES, seed=seed, epoch=epoch, stream=stream)
    return _normal_quantiles(indices.device).index_select(0, drawn)


@functools.lru_cache(maxsize=8)
def _normal_quantiles(device: torch.device) -> Tensor:
    inverse = NormalDist().inv_cdf
    count = _NORMAL_QUANTILES
    return torch.tensor([inverse((k + 0.5) / count) for k in range(count)], device=device)


def symmetric_beta(indices: Tensor, alpha: float, *, seed: int, epoch: int, stream: int) -> Tensor:
    """Numbers in [0, 1] from Beta(alpha, alpha), one for each index.

    b_i = the u_i quantile, u_i uniform, by linear interpolation between 2^14 + 1 quantiles, of
    which the outermost are those of 2^-17 and 1 - 2^-17.

    Args:
        indices: int64, shape (n,), any device; the counters.
        alpha: > 0; 1 is uniform, towards 0 it is a fair coin, towards infinity 1/2.
        seed: the run's seed.
        epoch: number of the pass over the data.
        stream: which draw this is; different streams are independent.

    Returns:
        float64, shape (n,), on the device of `indices`.

    Raises:
        InputError: if `indices` is not int64 or alpha is not > 0.

    Example:
        >>> symmetric_beta(torch.arange(3), 1.0, seed=0, epoch=0, stream=0)
        tensor([0.1296, 0.0499, 0.6703], dtype=torch.float64)
    """
    if not alpha > 0:
        raise InputError("alpha", "must be > 0", alpha)
    table = _beta_quantiles(alpha).to(indices.device)
    place = uniform(indices, seed=seed, epoch=epoch, stream=stream) * _BETA_INTERVALS
    below = place.long()
    low, high = table.index_select(0, below), table.index_select(0, below + 1)
    return low + (high - low) * (place - below)


@functools.lru_cache(maxsize=8)
def _beta_quantiles(alpha: float) -> Tensor:
    """The k / 2^14 quantiles of Beta(alpha, alpha), by the trapezoidal rule over its lower half."""
    grid = np.linspace(0.0, 1.0, (1 << 16) + 1)
    if alpha < 1.0:  # over x^alpha, for the density's pole at 0
        values = 0.5 * grid ** (1.0 / alpha)
        density = (1.0 - values) ** (alpha - 1.0)
    else:
        values = 0.5 * grid
        density = (4.0 * values * (1.0 - values)) ** (alpha - 1.0)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    wanted = np.linspace(0.0, mass[-1], _BETA_INTERVALS // 2 + 1)
    wanted[0] = wanted[1] / 8.0  # a straight line to 0 itself would lie far outside of a thin tail
    lower = np.interp(wanted, mass, values)
    return torch.from_numpy(np.concatenate((lower, 1.0 - lower[-2::-1])))


def permutation(num_examples: int, *, seed: int, epoch: int) -> Tensor:
    """A random order of the examples, pure in its arguments.

    The examples are sorted by a 64-bit draw each. For a fixed key the draw is a bijection of the
    index, so there are no ties and the order does not depend on the sorting method.

    Args:
        num_examples: how many, >= 0.
        seed: the run's seed.
        epoch: number of the pass over the data.

    Returns:
        int64 on the CPU, shape (num_examples,): each of 0 ... num_examples - 1 once.

    Raises:
        InputError: if `num_examples` is negative.

    Example:
        >>> permutation(6, seed=0, epoch=0)
        tensor([2, 1, 4, 3, 0, 5])

    Cost:
        One sort: about 1 ms for 60,000 examples and 40 ms for a million on one core.
    """
    if num_examples < 0:
        raise InputError("num_examples", "must be >= 0", num_examples)
    draws = _bits(torch.arange(num_examples), seed, epoch, _PERMUTATION_STREAM)
    return torch.argsort(draws)


def _bits(indices: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """One 64-bit draw for each index, as int64."""
    if indices.dtype != torch.int64:
        raise InputError("indices", "must be int64", indices.dtype)
    mixed = indices * _signed(_GOLDEN_GAMMA)
    mixed += _signed(mixed_key(seed, epoch, stream) + _GOLDEN_GAMMA)
    mixed ^= _shifted_right(mixed, 30)
    mixed *= _signed(_FIRST_MULTIPLIER)
    mixed ^= _shifted_right(mixed, 27)
    mixed *= _signed(_SECOND_MULTIPLIER)
    mixed ^= _shifted_right(mixed, 31)
    return mixed


def _shifted_right(values: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically: mask the copies of the sign away.
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value
