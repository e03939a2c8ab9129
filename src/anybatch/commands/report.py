"""`anybatch report`: one page about runs and studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show
from anybatch.errors import ExitCode, InputError

if TYPE_CHECKING:
    from anybatch.options.report import Report

__all__ = ["report"]


def report(options: Report) -> int:
    """Write the report and print where it is.

    Raises:
        InputError: no run, a damaged one, or a place that cannot be written.
    """
    from anybatch.reporting.page import write_report

    if not options.runs:
        raise InputError("RUN", "must be given", hint="anybatch report runs/NAME")
    path = write_report(options.runs, options.out, format=options.format, title=options.title)
    written = [path]
    if path.is_dir():
        written = sorted(Path(path).glob(f"*.{options.format}"))
    if options.json:
        files = [str(file) for file in written]
        show(json.dumps({"report": str(path), "format": options.format, "files": files}))
    else:
        show(str(path))
    return ExitCode.OK
