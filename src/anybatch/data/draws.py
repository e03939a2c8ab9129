"""Random numbers by counter: each is a pure function of (seed, epoch, stream, example index).

There is no generator state, so a draw does not depend on what was drawn before, on the rank, the
loader process or the other examples of the batch. Everything is 64-bit integer arithmetic with
wrap-around, hence equal on every device and in every version of torch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from anybatch.errors import InputError

__all__ = ["integers", "mixed_key", "permutation", "uniform"]

_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
_FIRST_MULTIPLIER: Final = 0xBF58476D1CE4E5B9
_SECOND_MULTIPLIER: Final = 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1
_PERMUTATION_STREAM: Final = 1 << 32
_LARGEST_HIGH: Final = 1 << 31


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
