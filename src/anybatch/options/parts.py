"""Types of options that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

__all__ = ["Flag", "Folder", "Name", "Overrides", "named"]

Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Folder: TypeAlias = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Name: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Overrides: TypeAlias = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")
]


def named(command: Any, name: str) -> Any:
    """A command under its name, described by its docstring.

    Args:
        command: class of options.
        name: on the command line.
    """
    summary = re.sub(r"\s*\n\s*", "\n", (command.__doc__ or "").strip())
    return Annotated[command, tyro.conf.subcommand(name, description=summary)]
