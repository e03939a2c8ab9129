"""Interruptions: trainings in processes of their own, killed with SIGKILL at chosen moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anybatch.errors import InputError
from anybatch.records import TIME_FIELDS, Record
from anybatch.run import Run, read_json

__all__ = ["Kill", "Session", "compare", "kill_once", "run_to_end"]

_POLL_SECONDS = 0.002
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One process that trains.

    Attributes:
        arguments: of `anybatch train` for a new run, without --out.
        path: of the run; it is resumed where it exists.
        log: file for what the process says.
    """

    arguments: tuple[str, ...]
    path: Path
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, one thread, new run or resumed one."""
        exists = (self.path / "recipe.json").exists()
        options = ("--resume",) if exists else (*self.arguments, "--out")
        command = [sys.executable, "-m", "anybatch", "train", *options, str(self.path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """When a training was killed.

    Attributes:
        during: "training", or "a checkpoint write" when a half-written file was waited for.
        seconds: between the beginning of this session's training and the kill.
        checkpoint_update: update of the checkpoint that it will be resumed from; 0: none yet.
        half_written: whether a half-written file was left behind.
    """

    during: str
    seconds: float
    checkpoint_update: int
    half_written: bool


def run_to_end(session: Session) -> float:
    """Train until the process ends; the seconds from the beginning of the training.

    Raises:
        RuntimeError: it did not end with exit code 0.
    """
    process = session.start()
    begun = _wait_for_training(session, process)
    code = process.wait()
    if code:
        raise RuntimeError(f"training ended with {code}: {session.log.read_text()[-2000:]}")
    return time.perf_counter() - begun


def kill_once(
    session: Session, draw: random.Random, *, longest: float, inside_a_write: bool = False
) -> Kill:
    """Start a training, or go on with one, and kill it.

    Args:
        session: what to start.
        draw: where the moment comes from: uniform in [0, longest].
        longest: seconds after the beginning of the training.
        inside_a_write: wait, after that moment, for a half-written checkpoint.

    Raises:
        RuntimeError: it ended every time before it could be killed.
    """
    kept = session.path.with_name(session.path.name + "-before")
    shutil.rmtree(kept, ignore_errors=True)
    if session.path.exists():
        shutil.copytree(session.path, kept)
    for attempt in range(_ATTEMPTS):
        seconds = draw.uniform(0, longest * 0.8**attempt)
        if _killed(session, seconds, inside_a_write):
            shutil.rmtree(kept, ignore_errors=True)
            return _described(session.path, seconds, inside_a_write)
        shutil.rmtree(session.path)  # it ended first: once more, from where it was
        if kept.exists():
            shutil.copytree(kept, session.path)
    raise RuntimeError(f"ended before the kill {_ATTEMPTS} times: {session.path.name}")


def _killed(session: Session, seconds: float, inside_a_write: bool) -> bool:
    """Start, wait, kill; whether the run had not come to its end."""
    process = session.start()
    try:
        begun = _wait_for_training(session, process)
        while process.poll() is None and time.perf_counter() - begun < seconds:
            time.sleep(_POLL_SECONDS)
        checkpoints = session.path / "checkpoints"
        while inside_a_write and process.poll() is None and not _half_written(checkpoints):
            pass  # without a pause: a write takes milliseconds
    finally:
        process.kill()
        code = process.wait()
    return code == -signal.SIGKILL and Run(session.path).status.name == "running"


def _wait_for_training(session: Session, process: subprocess.Popen[bytes]) -> float:
    """The moment at which the run says that a new session has begun."""
    before = _sessions(session.path)
    while process.poll() is None and _sessions(session.path) <= before:
        time.sleep(_POLL_SECONDS)
    return time.perf_counter()


def _sessions(path: Path) -> int:
    try:
        return len(read_json(path / "environment.json")["sessions"])
    except InputError:
        return 0


def _half_written(checkpoints: Path) -> list[str]:
    return [name for name in os.listdir(checkpoints) if name.endswith(".tmp")]


def _described(path: Path, seconds: float, inside_a_write: bool) -> Kill:
    latest = path / "checkpoints" / "latest.json"
    return Kill(
        during="a checkpoint write" if inside_a_write else "training",
        seconds=round(seconds, 3),
        checkpoint_update=read_json(latest)["update"] if latest.exists() else 0,
        half_written=bool(_half_written(latest.parent)),
    )


def compare(one: Path, other: Path) -> dict[str, bool]:
    """What is identical between two runs: weights byte for byte, records but for times.

    Args:
        one: a finished run.
        other: likewise.
    """
    a, b = Run(one), Run(other)
    weights = [(path / "weights.pt").read_bytes() for path in (one, other)]
    steps, evals = list(a.steps()), list(a.evals())
    return {
        "weights": weights[0] == weights[1],
        "steps": bool(steps) and _timeless(steps) == _timeless(list(b.steps())),
        "evals": bool(evals) and _timeless(evals) == _timeless(list(b.evals())),
        "status": (a.status.name, a.status.update) == (b.status.name, b.status.update),
    }


def _timeless(records: list[Any]) -> list[dict[str, Any]]:
    """Records as plain values without the fields that tell time."""
    return [_values(record) for record in records]


def _values(record: Record) -> dict[str, Any]:
    names = (name for name in record.__slots__ if name not in TIME_FIELDS)
    return {name: getattr(record, name) for name in names}
