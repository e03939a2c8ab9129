"""Options of `anybatch reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anybatch.options.parts import Flag, Folder, Name

__all__ = ["Reproduce"]


@dataclass(kw_only=True)
class Reproduce:
    """Test a claim of an article: arms with equally searched lr, fresh seeds, a verdict, a page.

    Without a name it lists the claims. The same command goes on where it was stopped, or killed.
    Data is found under ANYBATCH_DATA, or ./data.

    Example: anybatch reproduce clipping --for 30m --out docs/reproductions
    """

    name: tyro.conf.Positional[Name] = None
    """Of the claim; by default all of them are listed."""
    quick: Flag = False
    """Seconds on the shipped digits: shows that everything runs, and nothing else."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Final trials of each arm, beside the search; more than before adds some."""
    for_: Annotated[str | None, tyro.conf.arg(name="for", metavar="TIME")] = None
    """Stop after this time, as in 150m, 2h or 90s; 0s trains nothing and writes the page."""
    on: Annotated[str, tyro.conf.arg(metavar="WHERE")] = "local"
    """local (this process), local:2 (two of them), ray, or ray:8."""
    data: Folder = None
    """Folder of data sets; by default ANYBATCH_DATA, then ./data."""
    runs: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/reproductions")
    """Where trials are kept, a folder for each claim."""
    out: Folder = None
    """Where the page goes, with its picture and its numbers; by default beside the trials."""
    json: Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.reproduce import reproduce_claim

        return reproduce_claim(self)
