"""The ledger: what plans foretold and what came, one line of JSON for each planned run.

It lies in `$XDG_DATA_HOME/anybatch/ledger.jsonl`, by default below `~/.local/share`;
ANYBATCH_LEDGER names another file, or "off" for none. Lines are only ever appended, each by one
write, so processes need no lock; a damaged line is skipped and named. Nothing is sent anywhere.
What the rows say is computed in `arithmetic.foretold`, of which this module is also the face.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anybatch.errors import InputError
from anybatch.planning.arithmetic.foretold import (
    Coverage,
    Foretold,
    LedgerRow,
    coverage,
    interval_factor,
    kappas,
    median_ratio,
)

__all__ = [
    "Coverage",
    "Foretold",
    "Ledger",
    "LedgerRow",
    "append_to_ledger",
    "coverage",
    "interval_factor",
    "kappas",
    "ledger_path",
    "load_ledger",
    "median_ratio",
    "read_ledger",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The rows that could be read.

    Attributes:
        rows: oldest first.
        damaged: "line 7: what is wrong", for each line that was skipped.
    """

    rows: tuple[LedgerRow, ...] = ()
    damaged: tuple[str, ...] = ()


def ledger_path(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where the ledger lies; None where it is off.

    Args:
        environment: variables; None takes the process's.

    Example:
        >>> print(ledger_path({"ANYBATCH_LEDGER": "off"}))
        None
        >>> ledger_path({"XDG_DATA_HOME": "/data"}).as_posix()
        '/data/anybatch/ledger.jsonl'
    """
    variables = os.environ if environment is None else environment
    given = variables.get("ANYBATCH_LEDGER", "")
    if given == "off":
        return None
    if given:
        return Path(given).expanduser()
    home = variables.get("XDG_DATA_HOME", "")
    # A relative XDG_DATA_HOME is to be ignored, by its specification.
    folder = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    return folder / "anybatch" / "ledger.jsonl"


def append_to_ledger(row: LedgerRow, path: Path | None = None) -> Path | None:
    """Append a row by one write.

    Args:
        row: of a planned run that has ended; by one rank alone.
        path: of the file; None takes `ledger_path()`.

    Returns:
        The file, or None where the ledger is off.

    Raises:
        OSError: the file cannot be written.
    """
    path = path or ledger_path()
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (row.to_json() + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if not _ends_whole(path):  # a line that a full disk or a crash has cut
            line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            raise OSError(None, "only a part of the line could be written", str(path))
    finally:
        os.close(file)
    return path


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def load_ledger(path: Path | None = None) -> Ledger:
    """Every row that can be read, and the name of every line that cannot.

    Args:
        path: of the file; None takes `ledger_path()`. A file that is not there has no rows.

    Raises:
        InputError: the file is there and cannot be read.
    """
    path = path or ledger_path()
    if path is None:
        return Ledger()
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise InputError(str(path), "must be readable", error.strerror) from None
    rows, damaged = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(LedgerRow.from_json(line))
        except ValueError as error:
            damaged.append(f"line {number}: {' '.join(str(error).split())}")
    return Ledger(rows=tuple(rows), damaged=tuple(damaged))


def read_ledger(path: Path | None = None) -> tuple[LedgerRow, ...]:
    """The rows of `load_ledger`, for a plan."""
    return load_ledger(path).rows
