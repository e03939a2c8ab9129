"""Progress on the terminal: a bar with loss, metric, speed, time left; plain lines when piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, final

from anybatch.records import EvalRecord, EventRecord, Record, StepRecord

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.status import Status

__all__ = ["Activity", "Progress"]

_SECONDS_BETWEEN_LINES = 10.0


@final
class Progress:
    """Shows records of one training as they come, on standard error.

    Args:
        total_examples: of the run.
        shown: False shows nothing.
        title: before each line; "" for none.
        stream: where to; standard error by default, so that standard output stays for results.
    """

    def __init__(
        self,
        total_examples: int,
        *,
        shown: bool = True,
        title: str = "",
        stream: TextIO | None = None,
    ) -> None:
        self._total = total_examples
        self._stream = stream or sys.stderr
        self._shown, self._title = shown, title
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._epoch, self._loss, self._speed = "", "", ""
        self._metrics: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._shown and self._stream.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[news]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title or "training", total=self._total, news="")
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

    def show(self, record: Record) -> None:
        """Take in a record; evaluations and events make a line, steps every ten seconds at most."""
        if not self._shown:
            return
        if isinstance(record, EventRecord):
            self.say(f"{self._position(record)}  {record.sentence}")
            return
        self._epoch = f"epoch {record.epoch:.2f}"
        if isinstance(record, EvalRecord):
            self._metrics[record.split] = f"{record.split} {record.metric_name} {record.metric:.4f}"
        else:
            self._loss = f"loss {record.loss:.4f}"
            self._speed = f"{record.examples_per_second:,.0f} examples/s"
        texts = (self._loss, *self._metrics.values(), self._speed)
        news = "  ".join(text for text in texts if text)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record.examples, news=f"{self._epoch}  {news}")
        else:
            self._show_line(record, news)

    def _position(self, record: Record) -> str:
        head = f"{self._title}  " if self._title else ""
        return f"{head}epoch {record.epoch:7.2f}  update {record.update:7d}"

    def _show_line(self, record: StepRecord | EvalRecord, news: str) -> None:
        now = time.monotonic()
        if isinstance(record, StepRecord) and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = record.seconds * (self._total / max(1, record.examples) - 1.0)
        line = f"{self._position(record)}  {news}  {record.seconds:.1f} s"
        if left >= 1.0 and not (isinstance(record, EvalRecord) and record.split == "test"):
            line += f", about {left:.0f} s left"
        print(line, file=self._stream, flush=True)


@final
class Activity:
    """Shows what a measurement is doing, on standard error: one line that changes on a terminal.

    When piped, a plain line every ten seconds at most.

    Args:
        title: before each line.
        shown: False shows nothing.
        stream: where to; standard error by default.
    """

    def __init__(self, title: str, *, shown: bool = True, stream: TextIO | None = None) -> None:
        self._title, self._shown = title, shown
        self._stream = stream or sys.stderr
        self._status: Status | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._stream.isatty():
            from rich.console import Console

            console = Console(file=self._stream)
            self._status = console.status(self._title, spinner="dots")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, text: str, *, share: float = 0.0) -> None:
        """Replace the line by `text`, with the time since the beginning and the time left.

        Args:
            text: what is being done.
            share: of the whole that is done, about; 0 where nobody knows.
        """
        if not self._shown:
            return
        now = time.monotonic()
        seconds = now - self._started
        text = f"{text}  {seconds:.0f} s"
        if 0.0 < share < 1.0 and seconds >= 2.0:
            text += f", about {seconds * (1.0 / share - 1.0):.0f} s left"
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(f"{self._title}  {text}"))
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self._title}  {text}", file=self._stream, flush=True)
