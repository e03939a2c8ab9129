"""Progress: plain lines in a pipe, a bar on a terminal, nothing when it is not asked for."""

from __future__ import annotations

import io
import os
import pty
import threading
from types import SimpleNamespace

import pytest

from anybatch import progress
from anybatch.progress import Progress
from anybatch.records import EvalRecord, StepRecord


def step(update: int, seconds: float = 1.0) -> StepRecord:
    return StepRecord(
        update=update, examples=100 * update, epoch=0.5, loss=1.25, batch_size=100, lr=0.1,
        momentum=0.0, weight_decay=0.0, gradient_norm=None, seconds=seconds,
        examples_per_second=12345.6,
    )  # fmt: skip


def evaluation(metric_name: str = "accuracy") -> EvalRecord:
    return EvalRecord(
        update=1, examples=100, epoch=0.5, split="validation", loss=0.5, metric=0.875,
        metric_name=metric_name, seconds=1.0, evaluation_seconds=0.0,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, changed by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def on_terminal(show) -> str:
    """What a pseudo-terminal received while `show` drew on it."""
    leader, follower = pty.openpty()
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the other side has closed
                return
            if not data:
                return
            received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as stream:
        show(stream)
    reader.join(timeout=10)
    os.close(leader)
    return b"".join(received).decode()


def test_a_pipe_gets_a_plain_line_with_everything_on_it(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(400, stream=stream) as bar:
        bar.show(step(1, seconds=2.0))
    assert stream.getvalue() == (
        "epoch    0.50  update       1  loss 1.2500  12,346 examples/s  2.0 s, about 6 s left\n"
    )


def test_steps_make_a_line_every_ten_seconds_and_evaluations_always(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(10_000, stream=stream) as bar:
        for update in range(1, 26):
            bar.show(step(update))
            clock[0] += 1.0
        bar.show(evaluation())
        bar.show(evaluation())
    lines = stream.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["1", "11", "21", "1", "1"]
    assert "loss 1.2500  validation accuracy 0.8750" in lines[-1]


def test_what_is_said_and_the_title_are_lines_without_control_characters(
    clock: list[float],
) -> None:
    stream = io.StringIO()
    with Progress(100, stream=stream, title="arm a") as bar:
        bar.say("note: [threads] was 1, is 2")
        bar.show(step(1))
    assert stream.getvalue().startswith("note: [threads] was 1, is 2\narm a  epoch")
    assert all(character == "\n" or character.isprintable() for character in stream.getvalue())


def test_nothing_is_shown_when_it_is_not_asked_for() -> None:
    stream = io.StringIO()
    with Progress(100, shown=False, stream=stream) as bar:
        bar.say("note")
        bar.show(step(1))
        bar.show(evaluation())
    assert stream.getvalue() == ""


def test_standard_error_is_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100) as bar:
        bar.show(evaluation())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "validation accuracy 0.8750" in printed.err


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    def show(stream: io.TextIOWrapper) -> None:
        with Progress(200, stream=stream) as bar:
            bar.show(step(1))
            bar.show(evaluation())
            bar.show(step(2))

    drawn = on_terminal(show)
    assert "\x1b[" in drawn
    assert "━" in drawn
    assert "100 %" in drawn
    assert "validation accuracy 0.8750" in drawn


def test_brackets_are_text_on_a_terminal_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    def show(stream: io.TextIOWrapper) -> None:
        with Progress(200, stream=stream, title="arm [/b]") as bar:
            bar.say("note: cpu was [/x], is [red]")
            bar.show(evaluation(metric_name="top[/5]"))

    drawn = on_terminal(show)
    assert "note: cpu was [/x], is [red]" in drawn
    assert "validation top[/5] 0.8750" in drawn
    assert "arm [/b]" in drawn
