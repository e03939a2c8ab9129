"""Options that every measurement on a task has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from anybatch.options.parts import Flag, Folder, Name, Overrides

__all__ = ["MeasurementOptions"]


@dataclass(kw_only=True)
class MeasurementOptions:
    """What is measured, and where the result goes."""

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
    """Built-in name (see `anybatch tasks`) or package.module:function."""
    recipe: Name = None
    """Shipped name, TOML file or package.module:function; by default the one that fits the task."""
    set: Overrides = ()
    """Change a field of the recipe, as in --set batch_size=512; may be repeated."""
    data: Folder = None
    """Folder of data sets; by default ANYBATCH_DATA, then ./data."""
    out: Folder = None
    """New folder for the result; by default one below runs/."""
    json: Flag = False
    """Print one JSON document on standard output and nothing else."""
