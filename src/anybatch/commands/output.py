"""Plain text on standard output: tables that also read well when piped."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["show", "table"]


def show(text: str) -> None:
    """Print to standard output."""
    print(text, flush=True)  # noqa: T201


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, left-aligned, two spaces apart.

    Example:
        >>> print(table(["a", "b"], [["long", "x"]]))
        a     b
        long  x
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
