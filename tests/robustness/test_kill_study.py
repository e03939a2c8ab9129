"""A study of batch sizes in two processes, killed at any moment, goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE_SECONDS, finish, start, wait_until

from anybatch.cli import main
from anybatch.studies.batch_size_table import BatchSizeStudy

SETTINGS = [
    "batch-size", "digits", "--target", "0.97", "--batch-sizes", "8,128", "--seeds", "2",
    "--set", "schedules.lr.name=constant", "--set", "duration=4 epochs",
    "--set", "optimizer.momentum=0.5", "--set", "optimizer.nesterov=false",
]  # fmt: skip
TIMES = ("seconds", "computing_seconds")


def facts(path: Path) -> list[dict[str, Any]]:
    """Every trial of a study but for its times."""
    trials = BatchSizeStudy(path).to_dict()["trials"]
    return [{name: value for name, value in t.items() if name not in TIMES} for t in trials]


def ended(path: Path) -> dict[Path, bytes]:
    """Status files of the trials that have come to an end."""
    files = {file: file.read_bytes() for file in path.rglob("status.json")}
    names = ("finished", "target-missed", "diverged")
    return {f: text for f, text in files.items() if json.loads(text)["name"] in names}


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that it has started, and those that they have."""
    found = [process.pid]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(word) for word in file.read_text().split()]
    return found[1:]


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_study_killed_at_random_moments_ends_like_one_that_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    assert main(["study", *SETTINGS, "--json", "--out", str(reference)]) == 0
    total = len(ended(reference))
    generator = random.Random(5)
    arguments = ["study", *SETTINGS, "--on", "local:2", "--out", str(out)]
    kept: dict[Path, bytes] = {}
    for share, number in ((0.2, signal.SIGKILL), (0.6, signal.SIGTERM)):
        process = start(["-m", "anybatch", *arguments])
        wanted = round(share * total) + generator.randrange(3)
        wait_until(lambda wanted=wanted: len(ended(out)) >= wanted, process)
        children = children_of(process)
        assert len(children) >= 2
        os.kill(process.pid, number)
        code, _, error = finish(process)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 143), error
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(map(is_alive, children)):  # nobody trains on without the one who asked for it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        table_of_runs = {f: t for f, t in kept.items() if "tuning" not in f.parts}
        assert all(file.read_bytes() == text for file, text in table_of_runs.items())
        kept = ended(out)
        arguments = ["study", "resume", str(out), "--on", "local:2"]
    assert main(["study", "resume", str(out), "--json"]) == 0
    assert facts(out) == facts(reference)
    assert all(f.read_bytes() == t for f, t in kept.items() if "tuning" not in f.parts)
    assert not list(out.rglob("*.tmp"))
