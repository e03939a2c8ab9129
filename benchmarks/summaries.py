"""Summaries: the few statistics that the tables of the benchmarks are made of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["markdown_table", "mean_and_spread", "median_and_quartiles"]


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
