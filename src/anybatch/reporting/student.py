"""Student's t distribution: its probability, its quantile, and how many samples a difference needs.

Reference: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 1964, 26.7.1 (the
    probability) and 26.5.8 (the continued fraction of the incomplete beta function).
"""

from __future__ import annotations

import math

from anybatch.errors import InputError

__all__ = ["samples_needed", "student_probability", "student_quantile"]

_MOST_SAMPLES = 10_000


def student_probability(t: float, degrees: float) -> float:
    """P(T <= t) of Student's distribution.

    Args:
        t: any finite number.
        degrees: of freedom, > 0; need not be whole.

    Raises:
        InputError: the degrees of freedom are not positive.

    Example:
        >>> round(student_probability(2.776445105, 4), 6)
        0.975
    """
    if not degrees > 0.0:
        raise InputError("degrees of freedom", "must be > 0", degrees)
    tail = 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2.0, 0.5)
    return 1.0 - tail if t > 0.0 else tail


def student_quantile(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability, by bisection to the last digits.

    Args:
        probability: in (0, 1).
        degrees: of freedom, > 0.

    Raises:
        InputError: one of them lies outside.

    Example:
        >>> round(student_quantile(0.975, 2), 4), round(student_quantile(0.975, 30), 4)
        (4.3027, 2.0423)
    """
    if not 0.0 < probability < 1.0:
        raise InputError("probability", "must be in (0, 1)", probability)
    if probability < 0.5:
        return -student_quantile(1.0 - probability, degrees)
    low, high = 0.0, 1.0
    while student_probability(high, degrees) < probability:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        if student_probability(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def samples_needed(effect: float, *, level: float = 0.95, power: float = 0.8) -> int | None:
    """Samples for which a mean of this size is told from 0 with the given power.

    The smallest n >= 3 with n >= ((t_level(n - 1) + t_power(n - 1)) / effect)^2, where t_level is
    the two-sided quantile of Student's distribution with n - 1 degrees of freedom.

    Args:
        effect: |mean| / standard deviation of one sample, > 0.
        level: confidence of the interval, in (0, 1).
        power: probability that the interval excludes 0, in (0, 1).

    Returns:
        n; None where more than 10,000 would be needed.

    Example:
        >>> samples_needed(0.5), samples_needed(1.0), samples_needed(1e-3)
        (34, 10, None)

    Reference: J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd edition, 1988,
        chapter 2.
    """
    if not effect > 0.0:
        return None

    def is_enough(n: int) -> bool:
        quantiles = student_quantile(0.5 + level / 2.0, n - 1) + student_quantile(power, n - 1)
        return n >= (quantiles / effect) ** 2

    if not is_enough(_MOST_SAMPLES):
        return None
    low, high = 2, _MOST_SAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), x in [0, 1]."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # where the fraction would converge slowly
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) of 26.5.8, by Lentz's method."""
    tiny = 1e-300
    value = numerator = 1.0
    denominator = 0.0
    for m in range(1, 1000):
        k = m // 2
        if m % 2:
            term = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            term = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        denominator = 1.0 / ((1.0 + term * denominator) or tiny)
        numerator = (1.0 + term / numerator) or tiny
        value *= numerator * denominator
        if abs(numerator * denominator - 1.0) < 1e-15:
            break
    return value
