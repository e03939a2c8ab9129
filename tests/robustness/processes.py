"""Trainings in processes of their own, to be killed, and what they must agree in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from anybatch.records import TIME_FIELDS
from anybatch.run import Run

__all__ = [
    "DEADLINE_SECONDS",
    "assert_same_run",
    "environment",
    "finish",
    "num_lines",
    "start",
    "wait_until",
]

DEADLINE_SECONDS = 120.0
_SECONDS_BETWEEN_LOOKS = 0.001


def environment() -> dict[str, str]:
    """Of a process that finds the helpers here and computes on one thread."""
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(folder for folder in folders if folder)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Python with these arguments, in a process group of its own; its output is kept."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, once it has ended."""
    try:
        out, error = process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        raise AssertionError(f"the process did not end:\n{out}\n{error}") from None
    return process.returncode, out, error


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look again and again until the condition holds; fail if the process ends before it does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            out, error = process.communicate()
            raise AssertionError(f"the process ended or hung too early:\n{out}\n{error}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def num_lines(path: Path) -> int:
    """Whole lines in a log; 0 while there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _log(path: Path) -> list[dict[str, Any]]:
    """The records of a log without what differs between two otherwise identical runs."""
    lines = path.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in records]


def assert_same_run(path: Path, reference: Path) -> None:
    """The same end, the same logs but for times, the same weights bit for bit, nothing left over.

    Args:
        path: of a run that was interrupted and resumed.
        reference: of the run that was not.
    """
    status, expected = Run(path).status, Run(reference).status
    names = ("name", "reason", "update", "examples", "target_update")
    for name in names:
        assert getattr(status, name) == getattr(expected, name), name
    for log in ("steps.jsonl", "evals.jsonl"):
        assert _log(path / log) == _log(reference / log), log
    assert list(Run(path).events()) == list(Run(reference).events())
    weights, expected_weights = (torch.load(p / "weights.pt") for p in (path, reference))
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == expected_weights[name].dtype
        assert torch.equal(tensor, expected_weights[name]), name
    checkpoints = sorted(p.name for p in (path / "checkpoints").iterdir())
    assert checkpoints == sorted(p.name for p in (reference / "checkpoints").iterdir())
    assert not list(path.rglob("*.tmp"))
