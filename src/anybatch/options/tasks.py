"""Options of `anybatch tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.parts import Flag, Folder

__all__ = ["Tasks"]


@dataclass(kw_only=True)
class Tasks:
    """List the built-in tasks, where each is looked for, and whether it was found.

    Example: anybatch tasks --download mnist --data ~/data
    """

    download: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")
    ] = ()
    """First fetch this data set: mnist, fashion-mnist or cifar10; may be repeated."""
    data: Folder = None
    """Folder of data sets; by default ANYBATCH_DATA, then ./data."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.tasks import list_tasks

        return list_tasks(self.data, download=self.download, as_json=self.json)
