"""Ctrl-C, SIGTERM and kill -9 of `anybatch plan`: what is known stays, and nothing pretends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from processes import finish, start, wait_until

from anybatch.cli import main
from anybatch.run import Run

LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from anybatch.cli import main
sys.exit(main())
"""
DIGITS = ["plan", "digits", "--target", "0.999"]


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYBATCH_LEDGER", str(tmp_path / "ledger.jsonl"))


def planning(out: Path, *options: str) -> subprocess.Popen[str]:
    return start(["-c", LISTENING, *DIGITS, "--out", str(out), *options])


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_a_signal_leaves_a_partial_plan(
    tmp_path: Path, number: signal.Signals, code: int, name: str
) -> None:
    out = tmp_path / "out"
    process = planning(out, "--json")
    wait_until((out / "measurements" / "throughput.json").exists, process)
    process.send_signal(number)
    exit_code, output, error = finish(process)
    assert exit_code == code, error
    assert error == ""
    run = Run(out)
    assert (run.status.name, run.status.signal) == ("interrupted", number)
    plan = run.plan
    assert plan is not None
    assert plan.partial.startswith(f"ended by {name} during the ")
    assert json.loads(output)["partial"] == plan.partial
    assert plan.predictions["seconds"].reason
    assert not list(out.rglob("*.tmp"))
    assert main(["explain", str(out), "--replay"]) == 0
    before = (out / "plan.json").read_bytes()
    assert main([*DIGITS, "--out", str(out)]) == 2  # a second one goes elsewhere
    assert (out / "plan.json").read_bytes() == before


def test_after_kill_9_nothing_pretends_to_be_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    process = planning(out)
    wait_until((out / "measurements" / "lr-range.json").exists, process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    run = Run(out)
    assert run.status.name == "running"
    assert run.plan is None
    assert {"throughput", "lr-range"} <= set(run.measurements())
    for command in (
        ["explain", str(out)],
        ["train", "digits", "--plan", str(out)],
        ["train", "--resume", str(out)],
        [*DIGITS, "--out", str(out)],
    ):
        capsys.readouterr()
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "must be" in error
    assert not (tmp_path / "ledger.jsonl").exists()
