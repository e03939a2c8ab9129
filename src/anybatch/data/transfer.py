"""Transfer: a download on the terminal, a bar with speed and time left; plain lines when piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, final

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["TransferProgress", "megabytes"]

_SECONDS_BETWEEN_LINES = 10.0


def megabytes(num_bytes: int) -> str:
    """A length for people.

    Args:
        num_bytes: the length.

    Example:
        >>> megabytes(9_912_422), megabytes(4_542)
        ('9.9 MB', '5 kB')
    """
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.0f} kB"


@final
class TransferProgress:
    """Shows how much of one file is here, on standard error.

    Args:
        title: of the file.
        total_bytes: its length.
        shown: False shows nothing.
        stream: where to; standard error by default, so that standard output stays for results.
    """

    def __init__(
        self, title: str, total_bytes: int, *, shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self._title, self._total = title, total_bytes
        self._stream = stream or sys.stderr
        self._shown = shown
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._received = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._stream.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def show(self, position: int, received: int) -> None:
        """Take in a position; in a pipe it makes a line every ten seconds at most.

        Args:
            position: bytes of the file that are here.
            received: bytes that have just come.
        """
        self._received += received
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=position)
            return
        now = time.monotonic()
        if not self._shown or now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        speed = self._received / (now - self._started)
        self.say(
            f"{self._title}  {megabytes(position)} of {megabytes(self._total)}"
            f"  {speed / 1e6:.2f} MB/s, about {(self._total - position) / speed:.0f} s left"
        )
