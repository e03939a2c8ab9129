"""`anybatch tasks`: the built-in tasks and whether their data is here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.data.catalog import catalog_status
from anybatch.errors import ExitCode

if TYPE_CHECKING:
    from anybatch.data.download import Download

__all__ = ["list_tasks"]


def list_tasks(data: Path | None, *, download: Sequence[str] = (), as_json: bool) -> int:
    """Print one row for each built-in task, after downloading what is asked for.

    Args:
        data: folder of data sets; None looks into ANYBATCH_DATA, then ./data.
        download: names of data sets to fetch first.
        as_json: print one JSON document instead.
    """
    downloads = _downloaded(download, data, progress=not as_json) if download else []
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
        fetched = [
            {"name": done.name, "folder": str(done.folder), "new_files": list(done.new_files)}
            for done in downloads
        ]
        show(json.dumps({"tasks": plain, "downloads": fetched}))
        return ExitCode.OK
    for done in downloads:
        came = f"{', '.join(done.new_files)} fetched" if done.new_files else "was there already"
        show(f"{done.name}: {came}; the checksums in {done.folder} are right")
    words = {True: "found", False: "not found", None: "give a path"}
    cells = [
        [row.name, words[row.found], row.description, " or ".join(map(str, row.looked_for))]
        for row in rows
    ]
    show(table(["task", "", "what", "looked for"], cells))
    show("\nanybatch train NAME trains one; --data DIR or ANYBATCH_DATA says where data sets lie.")
    return ExitCode.OK


def _downloaded(names: Sequence[str], data: Path | None, *, progress: bool) -> list[Download]:
    from anybatch.data.download import download_data, published_data

    for name in names:
        published_data(name)  # refused before anything is fetched
    return [download_data(name, data, progress=progress) for name in names]
