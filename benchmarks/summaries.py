"""Summaries: the few statistics that the tables of the benchmarks are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["markdown_table", "mean_and_spread", "median_and_quartiles", "median_interval"]


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean, standard deviation (n - 1) and range, as text.

    Args:
        values: at least one.
        digits: after the point.

    Example:
        >>> mean_and_spread([0.991, 0.993], 4)
        '0.9920 ± 0.0014 (0.9910 to 0.9930)'
        >>> mean_and_spread([0.991], 3)
        '0.991'
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    deviation = f"{statistics.stdev(values):.{digits}f}"
    return f"{mean} ± {deviation} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def median_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile.

    Args:
        values: at least one.

    Example:
        >>> median_and_quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        (3.0, 2.0, 4.0)
    """
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return median, lower, upper


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval for the median of the distribution that independent values come from.

    The k-th smallest and k-th largest value, with the largest k for which
    P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2; needs no assumption on the distribution. The
    whole range where n is too small for any k.

    Args:
        values: at least one.
        confidence: in (0, 1).

    Example:
        >>> median_interval([float(value) for value in range(1, 31)])
        (10.0, 21.0)
    """
    ordered, n = sorted(values), len(values)
    k, below = 0, 1 / 2**n  # P(Binomial < k + 1)
    while below <= (1 - confidence) / 2:
        k += 1
        below += math.comb(n, k) / 2**n
    k = max(1, k)
    return ordered[k - 1], ordered[n - k]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left and the others to the right.

    Args:
        header: one text for each column.
        rows: likewise, for each row.

    Example:
        >>> print(markdown_table(["arm", "n"], [["bare", "15"]]))
        | arm | n |
        |---|---:|
        | bare | 15 |
    """
    rule = "|---|" + "---:|" * (len(header) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])
