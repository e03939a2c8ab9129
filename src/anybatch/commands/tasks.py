"""`anybatch tasks`: the built-in tasks and whether their data is here."""

from __future__ import annotations

import json
from pathlib import Path

from anybatch.commands.output import show, table
from anybatch.data.catalog import catalog_status
from anybatch.errors import ExitCode

__all__ = ["list_tasks"]


def list_tasks(data: Path | None, *, as_json: bool) -> int:
    """Print one row for each built-in task.

    Args:
        data: folder of data sets; None looks into ANYBATCH_DATA, then ./data.
        as_json: print one JSON document instead.
    """
    rows = catalog_status(data)
    if as_json:
        plain = [
            {
                "name": row.name,
                "description": row.description,
                "looked_for": [str(path) for path in row.looked_for],
                "found": row.found,
            }
            for row in rows
        ]
        show(json.dumps({"tasks": plain}))
        return ExitCode.OK
    words = {True: "found", False: "not found", None: "give a path"}
    cells = [
        [row.name, words[row.found], row.description, " or ".join(map(str, row.looked_for))]
        for row in rows
    ]
    show(table(["task", "", "what", "looked for"], cells))
    show("\nanybatch train NAME trains one; --data DIR or ANYBATCH_DATA says where data sets lie.")
    return ExitCode.OK
