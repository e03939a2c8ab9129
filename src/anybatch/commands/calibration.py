"""`anybatch calibration`: how often what plans foretold came true."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.planning.ledger import (
    LedgerRow,
    coverage,
    interval_factor,
    kappas,
    ledger_path,
    load_ledger,
    median_ratio,
)
from anybatch.records import plain

if TYPE_CHECKING:
    from anybatch.options.calibration import Calibration

__all__ = ["calibration"]


def calibration(options: Calibration) -> int:
    """Print what the ledger says; nothing it says makes a difference to the exit code.

    Raises:
        InputError: a ledger that was named and is not there, or cannot be read.
    """
    path = options.ledger or ledger_path()
    if options.ledger is not None and not options.ledger.is_file():
        raise InputError(str(options.ledger), "must be a file of predictions and outcomes")
    if path is None:
        if options.json:
            show(json.dumps({"ledger": None, "rows": 0, "groups": [], "damaged": []}))
        else:
            show("the ledger is off (ANYBATCH_LEDGER); nothing is kept of planned runs")
        return ExitCode.OK
    ledger = load_ledger(path)
    groups = _groups(ledger.rows)
    if options.json:
        found = {"ledger": str(path), "rows": len(ledger.rows), "groups": groups}
        show(json.dumps(plain(found | {"damaged": list(ledger.damaged)})))
        return ExitCode.OK
    lines = _lines(groups, path) if ledger.rows else [_nothing(path)]
    lines += [f"! {path}, {line}; skipped" for line in ledger.damaged]
    show("\n".join(lines))
    return ExitCode.OK


def _groups(rows: Sequence[LedgerRow]) -> list[dict[str, Any]]:
    """What all rows say, and those of each level and task."""
    levels = sorted({row.level for row in rows})
    tasks = sorted({row.task for row in rows})
    parts = [("all", level, [r for r in rows if r.level == level]) for level in levels]
    for task in tasks if len(tasks) > 1 else []:
        for level in levels:
            own = [row for row in rows if (row.task, row.level) == (task, level)]
            parts += [(task, level, own)] if own else []
    return [
        {
            "task": name,
            "level": level,
            "runs": len(part),
            "reached": sum(row.reached for row in part),
            "coverage": asdict(coverage(part)),
            "median_foretold_over_actual": median_ratio(part),
            "factor": interval_factor(rows) if name == "all" else None,
            "critical_batch_sizes": len(kappas(part)),
        }
        for name, level, part in parts
    ]


def _lines(groups: Sequence[dict[str, Any]], path: Path) -> list[str]:
    rows = []
    for group in groups:
        found, ratio = group["coverage"], group["median_foretold_over_actual"]
        inside = "none to judge"
        if found["count"]:
            ends = f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %"
            inside = f"{found['inside']} of {found['count']}, {100 * found['share']:.0f} % ({ends})"
        rows.append(
            [
                group["task"],
                str(group["runs"]),
                str(group["reached"]),
                f"{100 * group['level']:.0f} %",
                inside,
                "" if ratio is None else f"{ratio:.2f}",
                "" if group["factor"] is None else f"{group['factor']:.2f}",
            ]
        )
    head = ["task", "runs", "reached", "meant", "inside the interval (95 %)"]
    return [
        table([*head, "foretold / actual", "factor"], rows),
        f"seconds to the target; the next plan widens its intervals by the factor; {path}",
    ]


def _nothing(path: Path) -> str:
    return f"no planned run has ended yet, so the factor is 1 ({path} keeps them)"
