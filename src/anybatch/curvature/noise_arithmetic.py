"""Arithmetic of the gradient noise scale: from parts to pairs, from pairs to an interval.

A probe is a batch of n examples at one point of the weights, taken in m disjoint parts of b_j
examples, with part gradients g_j (of the mean loss of the part). With w_j = b_j / n,

    L = sum_j w_j |g_j|^2            A = |sum_j w_j g_j|^2
    covariance trace      S = (L - A) n / (m - 1)
    squared gradient norm Q = A - S (1/n - 1/N)

S and Q are unbiased for tr Sigma (covariance of single examples' gradients, divisor N - 1) and
|G|^2, for parts of any sizes. 1/N stands for examples drawn without replacement from a set of N; it
is 0 for fresh ones. The noise scale is B_simple = tr Sigma / |G|^2. Pairs of several probes are
averaged first and divided last: a probe's own ratio is biased and has no mean.

All parts of a probe are taken at the same weights. Gradients of consecutive updates cannot be used:
w_t depends on g_{t-1}, which biases |G|^2 (to exactly -E|G|^2 for SGD at rest on a quadratic).

Reference: McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training",
appendix A.1 (two batch sizes; here any number of parts). Fieller 1954, "Some Problems in Interval
Estimation".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate

__all__ = [
    "LEVEL",
    "TREND",
    "Pair",
    "b_simple_estimate",
    "covariance_trace_variance",
    "jackknife_estimate",
    "looks",
    "mean_estimate",
    "noise_estimates",
    "pair_of_parts",
    "running_estimates",
    "squared_norm_variance",
]

Array = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""
TREND = "a trend, not a batch size"
"""What to know about the noise scale of preconditioned gradients."""
_FEWEST = 4  # probes, for an interval
_GROWTH = math.sqrt(2.0)  # from one look of the stopping rule to the next


class Pair(NamedTuple):
    """What one probe says; both unbiased, each a number or one for each layer.

    Attributes:
        squared_norm: Q, of the gradient; may be negative.
        trace: S, of the covariance of single examples' gradients; >= 0.
    """

    squared_norm: Array
    trace: Array


def pair_of_parts(
    mean_of_squares: float | Array,
    square_of_mean: float | Array,
    *,
    num_examples: float,
    num_parts: int,
    set_size: float = math.inf,
) -> Pair:
    """The unbiased pair (Q, S) of one probe.

    S = (L - A) n / (m - 1),  Q = A - S (1/n - 1/N).

    Args:
        mean_of_squares: L = sum_j (b_j/n) |g_j|^2, of part gradients of the mean loss.
        square_of_mean: A = |sum_j (b_j/n) g_j|^2.
        num_examples: n, of the probe.
        num_parts: m, >= 2.
        set_size: N, of the set that examples are drawn from without replacement; inf for fresh
            examples (a stream, augmented images, dropout).

    Raises:
        InputError: fewer than two parts; more examples than the set has.

    Example:
        Gradients 1 and 3 of two parts of one example each, then the same two as a whole set:

        >>> pair = pair_of_parts(5.0, 4.0, num_examples=2, num_parts=2)
        >>> float(pair.trace), float(pair.squared_norm)
        (2.0, 3.0)
        >>> whole = pair_of_parts(5.0, 4.0, num_examples=2, num_parts=2, set_size=2)
        >>> float(whole.squared_norm)
        4.0
    """
    if num_parts < 2:
        raise InputError("parts of a probe", "must be >= 2", num_parts)
    if num_examples > set_size:
        raise InputError("examples of a probe", f"must be <= the set's {set_size:g}", num_examples)
    large, small = np.asarray(mean_of_squares, np.float64), np.asarray(square_of_mean, np.float64)
    with np.errstate(invalid="ignore"):  # an overflow under fp16 or bf16: nan, left out later
        trace = np.maximum(large - small, 0.0) * num_examples / (num_parts - 1)  # but for rounding
        squared_norm = small - trace * (1.0 / num_examples - 1.0 / set_size)
    return Pair(squared_norm, trace)


def covariance_trace_variance(trace_of_square: float, num_parts: int) -> float:
    """Variance of one probe's S under Gaussian noise: 2 tr(Sigma^2) / (m - 1).

    Args:
        trace_of_square: tr(Sigma^2).
        num_parts: m, equal parts.

    Example:
        >>> covariance_trace_variance(3.0, 4)
        2.0
    """
    return 2.0 * trace_of_square / (num_parts - 1)


def squared_norm_variance(
    trace_of_square: float, noise_along_gradient: float, *, num_examples: float, num_parts: int
) -> float:
    """Variance of one probe's Q under Gaussian noise.

    4 G'Sigma G / n + 2 tr(Sigma^2) / (n^2 (1 - 1/m)), so that 4 parts have a standard deviation
    only sqrt(4/3) times that of single examples.

    Args:
        trace_of_square: tr(Sigma^2).
        noise_along_gradient: G' Sigma G.
        num_examples: n.
        num_parts: m, equal parts.

    Example:
        >>> squared_norm_variance(3.0, 2.0, num_examples=4, num_parts=4)
        2.5
    """
    noise = 2.0 * trace_of_square / (num_examples**2 * (1.0 - 1.0 / num_parts))
    return 4.0 * noise_along_gradient / num_examples + noise


# --- intervals ----------------------------------------------------------------------------------


def b_simple_estimate(
    squared_norms: Sequence[float],
    traces: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    unit: str = "examples",
    reason: str = "",
) -> Estimate:
    """B_simple = mean S / mean Q with Fieller's 95 % interval; "at least low" where unbounded.

    The interval holds every B with (S - B Q)^2 <= t^2 (v_SS - 2 B v_SQ + B^2 v_QQ), S and Q being
    means over the probes, v their estimated (co)variances and t Student's quantile. It is bounded
    where Q is clear of 0; otherwise only its lower end is told. Pairs that are not finite are left
    out.

    Args:
        squared_norms: Q of each probe.
        traces: S of each probe.
        weights: of the probes, their examples, say; None: equal.
        unit: of the result.
        reason: what to know about the value.

    Example:
        >>> str(b_simple_estimate([1.0, 1.1, 0.9, 1.0], [20.0, 19.0, 21.0, 20.0]))
        '20 examples (16.55 to 24.47)'
        >>> str(b_simple_estimate([1.0, -0.9, 2.0, -1.5], [20.0, 19.0, 21.0, 20.0]))
        'at least 7.634 examples'
    """
    pairs = _finite(squared_norms, traces, weights)
    unknown = _why_unknown(pairs)
    if unknown:
        return Estimate(value=None, unit=unit, level=LEVEL, reason=unknown)
    (mean_q, mean_s), covariance = pairs.mean(axis=1), np.cov(pairs) / pairs.shape[1]
    t = _student_quantile(0.5 + LEVEL / 2.0, pairs.shape[1] - 1)
    low, high = _fieller(mean_s, mean_q, covariance * t * t)
    if not math.isfinite(high):
        told = "signal not resolved: |G|^2 is not clear of 0"
        return Estimate(value=None, low=low, unit=unit, level=LEVEL, reason=told)
    value = float(mean_s / mean_q)
    ends = min(low, value), max(high, value)
    return Estimate(value=value, low=ends[0], high=ends[1], unit=unit, level=LEVEL, reason=reason)


def _fieller(mean_s: float, mean_q: float, covariance: Array) -> tuple[float, float]:
    """Ends of Fieller's interval in [0, inf]; the covariance of (Q, S), times t^2."""
    q = max(mean_q, 0.0)  # a negative mean says no more than 0 does: the bound stays cautious
    a = q * q - covariance[0, 0]
    b = mean_s * q - covariance[0, 1]
    c = mean_s * mean_s - covariance[1, 1]
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0.0:
        return max(float((b - root) / a), 0.0), float((b + root) / a)
    if c <= 0.0:
        return 0.0, math.inf
    return float(c / (b + root)), math.inf  # (b - root) / a without its 0 / 0


def jackknife_estimate(
    squared_norms: Sequence[float],
    traces: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    unit: str = "examples",
) -> Estimate:
    """B_simple with the delete-one jackknife's 95 % interval; none where Fieller's is unbounded.

    Its variance is (K-1)/K sum_k (B_(k) - mean B_(.))^2, B_(k) being the ratio without probe k.

    Args:
        squared_norms: Q of each probe.
        traces: S of each probe.
        weights: of the probes; None: equal.
        unit: of the result.

    Example:
        >>> str(jackknife_estimate([1.0, 1.1, 0.9, 1.0], [20.0, 19.0, 21.0, 20.0]))
        '20 examples (16.1 to 23.9)'
    """
    fieller = b_simple_estimate(squared_norms, traces, weights=weights, unit=unit)
    if fieller.value is None:
        return Estimate(value=None, unit=unit, level=LEVEL, reason=fieller.reason)
    pairs = _finite(squared_norms, traces, weights)
    count = pairs.shape[1]
    without = pairs.sum(axis=1, keepdims=True) - pairs
    if not np.all(without[0] > 0.0):
        told = "one probe alone decides the sign of the squared gradient norm"
        return Estimate(value=None, unit=unit, level=LEVEL, reason=told)
    ratios = without[1] / without[0]
    error = math.sqrt((count - 1) * float(np.var(ratios)))
    reach = _student_quantile(0.5 + LEVEL / 2.0, count - 1) * error
    value = fieller.value
    low = max(value - reach, 0.0)
    return Estimate(value=value, low=low, high=value + reach, unit=unit, level=LEVEL)


def mean_estimate(values: Sequence[float], *, weights: Sequence[float] | None = None) -> Estimate:
    """Mean over the probes with Student's 95 % interval.

    Args:
        values: one a probe; those that are not finite are left out.
        weights: of the probes; None: equal.

    Example:
        >>> str(mean_estimate([1.0, 2.0, 3.0, 2.0]))
        '2 (0.7023 to 3.298)'
    """
    weighted = _finite(values, values, weights)[0]
    if len(weighted) < _FEWEST:
        return Estimate(value=None, level=LEVEL, reason=_too_few(len(weighted)))
    mean, error = float(weighted.mean()), float(weighted.std(ddof=1)) / math.sqrt(len(weighted))
    reach = _student_quantile(0.5 + LEVEL / 2.0, len(weighted) - 1) * error
    return Estimate(value=mean, low=mean - reach, high=mean + reach, level=LEVEL)


def noise_estimates(samples: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Every estimate of a noise-scale measurement, from its samples alone.

    Args:
        samples: columns "examples", "squared_gradient_norm" and "covariance_trace", one row a
            probe; a pair of columns with "/NAME" after it gives "b_simple/NAME", one with
            "_preconditioned" gives "b_simple_preconditioned".

    Example:
        >>> samples = {"examples": [8.0] * 4, "squared_gradient_norm": [1.0, 1.1, 0.9, 1.0],
        ...     "covariance_trace": [20.0, 19.0, 21.0, 20.0]}
        >>> sorted(noise_estimates(samples))
        ['b_simple', 'b_simple_jackknife', 'covariance_trace', 'squared_gradient_norm']
    """
    weights = samples["examples"]
    norms, traces = samples["squared_gradient_norm"], samples["covariance_trace"]
    estimates = {
        "b_simple": b_simple_estimate(norms, traces, weights=weights),
        "b_simple_jackknife": jackknife_estimate(norms, traces, weights=weights),
        "squared_gradient_norm": mean_estimate(norms, weights=weights),
        "covariance_trace": mean_estimate(traces, weights=weights),
    }
    start = "squared_gradient_norm"
    for name in samples:
        rest = name.removeprefix(start)
        if name.startswith(start) and rest:
            reason = TREND if rest == "_preconditioned" else ""
            pair = samples[name], samples[f"covariance_trace{rest}"]
            found = b_simple_estimate(*pair, weights=weights, reason=reason)
            estimates[f"b_simple{rest}"] = found
    return estimates


def running_estimates(samples: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """B_simple of the first k probes with its interval, for each k from 4 on.

    Args:
        samples: columns "probe", "examples", "squared_gradient_norm", "covariance_trace".

    Returns:
        Columns "probe", "b_simple" (nan where it is not known), "low" and "high".
    """
    columns: dict[str, list[float]] = {"probe": [], "b_simple": [], "low": [], "high": []}
    for count in range(_FEWEST, len(samples["probe"]) + 1):
        found = b_simple_estimate(
            samples["squared_gradient_norm"][:count],
            samples["covariance_trace"][:count],
            weights=samples["examples"][:count],
        )
        value = math.nan if found.value is None else found.value
        row = (samples["probe"][count - 1], value, max(found.low, 0.0), found.high)
        for column, number in zip(columns.values(), row, strict=True):
            column.append(number)
    return {name: tuple(column) for name, column in columns.items()}


def looks(min_probes: int, max_probes: int) -> list[int]:
    """Numbers of probes after which the stopping rule looks: geometric, the last one the most.

    Few looks, and none early, keep the interval's coverage: one that stops whenever it seems narrow
    stops too often where the spread happens to be underestimated.

    Example:
        >>> looks(12, 50)
        [12, 17, 24, 34, 48, 50]
        >>> looks(12, 8)
        [8]
    """
    found = [min(min_probes, max_probes)]
    while found[-1] < max_probes:
        following = round(min_probes * _GROWTH ** len(found))
        found.append(min(max(following, found[-1] + 1), max_probes))
    return found


def _finite(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None
) -> Array:
    """Two rows of values, each times its weight over the mean weight, where both are finite."""
    rows = np.array([first, second], dtype=np.float64)
    kept = np.isfinite(rows).all(axis=0)
    share = np.ones(rows.shape[1]) if weights is None else np.asarray(weights, np.float64)
    rows, share = rows[:, kept], share[kept]
    weighted: Array = rows * (share / share.mean()) if len(share) else rows
    return weighted


def _why_unknown(pairs: Array) -> str:
    """Why there can be no interval; "" if there can be one."""
    if pairs.shape[1] < _FEWEST:
        return _too_few(pairs.shape[1])
    return "" if pairs.any() else "every gradient is zero"


def _too_few(count: int) -> str:
    return f"{count} probes with a finite gradient, of at least {_FEWEST}"


def _student_quantile(probability: float, degrees: int) -> float:
    """Student's quantile by its expansion in 1/degrees, within 0.2 % from 3 degrees on.

    Reference: Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms: tuple[Any, ...] = (
        z,
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
        (79.0 * z**9 + 776.0 * z**7 + 1482.0 * z**5 - 1920.0 * z**3 - 945.0 * z) / 92160.0,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
