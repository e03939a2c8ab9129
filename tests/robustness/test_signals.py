"""Ctrl-C and SIGTERM: the run is saved, says so, and is resumed to the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import assert_same_run, finish, num_lines, start, wait_until

from anybatch.cli import main
from anybatch.run import Run
from anybatch.study import Study
from anybatch.training.checkpoint import has_checkpoint

SETTINGS = ["duration=60 epochs", "records.log_every=3", "stopping.evaluate_every=1 epochs"]
DIGITS = ["train", "digits", *(part for text in SETTINGS for part in ("--set", text))]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "reference"
    assert main([*DIGITS, "--json", "--out", str(out)]) == 0
    return out


def assert_interrupted(path: Path, number: signal.Signals) -> None:
    run = Run(path)
    status = run.status
    assert (status.name, status.signal, status.exit_code) == ("interrupted", number, 128 + number)
    assert status.reason == f"by {number.name}"
    assert has_checkpoint(run)
    assert not list(path.rglob("*.tmp"))
    updates = [record.update for record in run.steps()]
    assert updates == sorted(set(updates))
    assert 0 < updates[-1] <= status.update
    assert all(record.update <= status.update for record in run.evals())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_run_which_is_resumed_to_the_same_numbers(
    tmp_path, reference, number, code
):
    out = tmp_path / "out"
    process = start(["-m", "anybatch", *DIGITS, "--json", "--out", str(out)])
    wait_until(lambda: num_lines(out / "steps.jsonl") >= 30, process)
    process.send_signal(number)
    exit_code, output, error = finish(process)
    assert exit_code == code, error
    assert error == ""
    assert json.loads(output)["status"]["name"] == "interrupted"
    assert_interrupted(out, number)
    assert main(["train", "--resume", str(out), "--json"]) == 0
    assert_same_run(out, reference)


def test_a_signal_ends_a_study_which_is_resumed(tmp_path, reference, capsys):
    out = tmp_path / "out"
    process = start(["-m", "anybatch", *DIGITS, "--seeds", "2", "--json", "--out", str(out)])
    second = out / "recipe" / "seed-1"
    wait_until(lambda: num_lines(second / "steps.jsonl") >= 30, process)
    process.send_signal(signal.SIGTERM)
    exit_code, output, error = finish(process)
    assert exit_code == 143, error
    assert [run["status"]["name"] for run in json.loads(output)["runs"]] == [
        "finished",
        "interrupted",
    ]
    assert_interrupted(second, signal.SIGTERM)
    assert main(["train", "--resume", str(out), "--json"]) == 0
    assert all(trial.has_ended for trial in Study(out).trials())
    assert_same_run(out / "recipe" / "seed-0", reference)


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    return start([*LAUNCHER, "-m", "anybatch", *arguments])


def first_rank(launcher: subprocess.Popen[str]) -> int:
    """The process number of rank 0, a child of the launcher."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launcher.pid and b"\0RANK=0\0" in (entry / "environ").read_bytes():
                    return int(entry.name)
            except OSError:  # it has just ended
                continue
    raise AssertionError("rank 0 must be a child of the launcher")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find rank 0")
def test_sigterm_to_rank_0_stops_both_ranks_and_the_run_is_resumed(tmp_path):
    reference, out = tmp_path / "reference", tmp_path / "out"
    code, _, error = finish(torchrun(*DIGITS, "--json", "--out", str(reference)))
    assert code == 0, error
    process = torchrun(*DIGITS, "--json", "--out", str(out))
    wait_until(lambda: num_lines(out / "steps.jsonl") >= 30, process)
    os.kill(first_rank(process), signal.SIGTERM)
    code, output, error = finish(process)
    assert code == 1  # the launcher's own; both ranks exit with 143
    assert error.count("exitcode  : 143") == 2, error
    assert json.loads(output)["status"]["name"] == "interrupted"
    assert_interrupted(out, signal.SIGTERM)
    code, _, error = finish(torchrun("train", "--resume", str(out), "--json"))
    assert code == 0, error
    assert_same_run(out, reference)
