"""Options of `anybatch report` and `anybatch compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from anybatch.options.parts import Flag, Name

__all__ = ["Compare", "Report"]


@dataclass(kw_only=True)
class Report:
    """Write one page about runs and studies: verdict, curves, measurements, environment, commands.

    Example: anybatch report runs/one runs/other --out both.html
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Folders of runs, studies or measurements; several are drawn on the same axes."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to; by default report.html in the run's folder, or here for several."""
    format: Annotated[
        Literal["html", "md", "png", "svg"], tyro.conf.arg(metavar="{html,md,png,svg}")
    ] = "html"
    """One page; Markdown with figures beside it; or the figures alone, into a folder."""
    title: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Of the page; by default the tasks' names."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.report import report

        return report(self)


@dataclass(kw_only=True)
class Compare:
    """Compare two arms: difference, interval, and a verdict only where it is resolved.

    Example: anybatch compare runs/sgd runs/adam
    """

    a: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="A")]]
    """A run, a study of one arm, STUDY:ARM, or a folder of runs."""
    b: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="B")]]
    """The other one."""
    metric: Name = None
    """The metric's name, or loss; by default the metric, and the time to the target."""
    split: Annotated[
        Literal["validation", "test"] | None, tyro.conf.arg(metavar="{validation,test}")
    ] = None
    """By default test where both have it, else validation."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.compare import compare

        return compare(self)
