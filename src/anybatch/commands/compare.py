"""`anybatch compare`: the difference between two arms, and whether it is resolved."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode
from anybatch.records import plain

if TYPE_CHECKING:
    from anybatch.options.report import Compare
    from anybatch.reporting.comparison import Comparison

__all__ = ["compare"]


def compare(options: Compare) -> int:
    """Print the comparison; what it says makes no difference to the exit code.

    Raises:
        InputError: no runs, or runs that cannot be compared.
    """
    from anybatch.reporting.comparison import compare_runs

    found = compare_runs(options.a, options.b, metric=options.metric, split=options.split)
    if options.json:
        rows = [asdict(one) | {"difference": one.difference._asdict()} for one in found]
        show(json.dumps(plain({"a": options.a, "b": options.b, "comparisons": rows})))
        return ExitCode.OK
    for one in found:
        show(_text(one))
    return ExitCode.OK


def _text(one: Comparison) -> str:
    """A table of two rows and the difference, the verdict, the notes."""
    name = one.quantity if one.quantity == "seconds to target" else f"{one.split} {one.quantity}"
    rows = [
        [label, str(count), f"{mean:.4g}" if abs(mean) >= 10.0 else f"{mean:.4f}"]
        for label, count, mean in zip(one.labels, one.counts, one.means, strict=True)
    ]
    _, low, high, _, count = one.difference
    interval = (
        f"95 % interval {low:+.4g} to {high:+.4g}, {'paired' if one.paired else 'not paired'}"
        if math.isfinite(low)
        else "no interval"
    )
    rows.append(["difference", str(count), f"{one.difference.value:+.4g}  ({interval})"])
    lines = [table(["", "n", name], rows), one.verdict, *(f"note: {note}" for note in one.notes)]
    return "\n".join(lines)
