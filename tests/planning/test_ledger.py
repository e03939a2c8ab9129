"""The ledger: whole lines under every accident, coverage and factor with known answers."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.planning.arithmetic.calibration import calibration_for
from anybatch.planning.ledger import (
    Foretold,
    LedgerRow,
    append_to_ledger,
    coverage,
    interval_factor,
    kappas,
    ledger_path,
    load_ledger,
    median_ratio,
    read_ledger,
)


@pytest.fixture(autouse=True)
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing here may write into anybody's home."""
    path = tmp_path / "here" / "ledger.jsonl"
    monkeypatch.setenv("ANYBATCH_LEDGER", str(path))
    return path


def row(actual: float = 10.0, **changes: Any) -> LedgerRow:
    plain: dict[str, Any] = {
        "time": "2026-11-21T10:15:00+00:00",
        "task": "digits",
        "optimizer": "sgd",
        "batch_size": 32,
        "seconds": Foretold(value=10.0, low=5.0, high=20.0),
        "updates": Foretold(value=1000.0, low=500.0, high=2000.0),
        "actual_seconds": actual,
        "actual_updates": 900,
        "reached": True,
    }
    return LedgerRow(**(plain | changes))


# --- the file -----------------------------------------------------------------------------------


def test_rows_come_back(ledger_file: Path) -> None:
    rows = [row(), row(7.5, task="é, \n", b_simple=900.0, b_crit=200.0, version="0.1.0")]
    rows.append(row(3.0, seconds=Foretold(value=2.0, low=1.0, high=math.inf), reached=False))
    assert [append_to_ledger(one) for one in rows] == [ledger_file] * 3
    assert read_ledger() == tuple(rows)
    assert len(ledger_file.read_text().splitlines()) == 3
    for line in ledger_file.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict


def test_damaged_lines_are_skipped_and_named(ledger_file: Path) -> None:
    append_to_ledger(row())
    good = row().to_json()
    wrong = [
        '{"task": "x"}',
        "[]",
        "null",
        "{",
        good.replace("32", '"32"'),
        good.replace('"low": 5.0', '"low": 50.0'),
        good.replace('"reached"', '"arrived"'),
        good.replace("0.8", "8"),
    ]
    with ledger_file.open("ab") as file:
        file.write(b"\xff\xfe\n" + "\n".join(wrong).encode() + b"\n\n" + good[:40].encode())
    append_to_ledger(row(11.0))  # after a line that was cut
    found = load_ledger()
    assert [one.actual_seconds for one in found.rows] == [10.0, 11.0]
    assert [text.split(":")[0] for text in found.damaged] == [
        f"line {number}" for number in (*range(2, 11), 12)
    ]
    assert all("\n" not in text for text in found.damaged)


def _append_many(number: int) -> None:
    for count in range(25):
        append_to_ledger(row(1.0 + number + count / 100, task=f"{number}" * 500))


def test_processes_do_not_mix_their_lines(ledger_file: Path) -> None:
    append_to_ledger(row())
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_append_many, range(4))
    found = load_ledger()
    assert found.damaged == ()
    assert len(found.rows) == 101


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_path(home) == tmp_path / ".local/share/anybatch/ledger.jsonl"
    assert ledger_path({"XDG_DATA_HOME": "data"}) == ledger_path(home)  # not absolute
    assert ledger_path({"XDG_DATA_HOME": "/x", "ANYBATCH_LEDGER": "~/l"}) == tmp_path / "l"
    monkeypatch.setenv("ANYBATCH_LEDGER", "off")
    assert append_to_ledger(row()) is None
    assert read_ledger() == ()
    assert not list(tmp_path.iterdir())


def test_a_ledger_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "none.jsonl") == ()
    with pytest.raises(InputError, match="must be readable"):
        load_ledger(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"level": 1.0}, {"actual": math.nan}, {"actual": -1.0}, {"actual": math.inf}],
)
def test_rows_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        row(**changes)
    with pytest.raises(InputError, match="low <= value <= high"):
        Foretold(value=1.0, low=2.0, high=3.0)


# --- what it says -------------------------------------------------------------------------------


def test_coverage_counts_what_can_be_judged() -> None:
    rows = [row(6.0), row(20.0), row(4.0), row(25.0), row(15.0, reached=False)]
    rows.append(row(21.0, reached=False))
    found = coverage(rows)
    assert (found.inside, found.count) == (2, 5)
    assert found.low < found.share == 0.4 < found.high
    none = coverage([])
    assert math.isnan(none.share)
    assert (none.low, none.high) == (0.0, 1.0)
    assert coverage([row()] * 10).high == 1.0
    assert coverage([row()] * 10).low == pytest.approx(0.722, abs=1e-3)  # Wilson
    assert median_ratio(rows) == statistics.median([10 / 6, 10 / 20, 10 / 4, 10 / 25])
    assert median_ratio([row(reached=False)]) is None


def simulated(count: int, spread: float, seed: int) -> list[LedgerRow]:
    """Outcomes whose log spread is `spread` times what the 80 % intervals say."""
    rng = random.Random(seed)
    deviation = spread * math.log(2.0) / 1.2816
    return [row(10.0 * math.exp(rng.gauss(0.0, deviation))) for _ in range(count)]


@pytest.mark.parametrize("spread", [0.6, 1.0, 2.0])
def test_the_factor_finds_the_spread(spread: float) -> None:
    factor = interval_factor(simulated(1000, spread, 1))
    assert factor == pytest.approx(spread, rel=0.12)
    fresh = simulated(1000, spread, 2)
    ends = math.log(2.0) * factor
    inside = [abs(math.log(one.actual_seconds / 10.0)) <= ends for one in fresh]
    assert statistics.fmean(inside) == pytest.approx(0.8, abs=0.05)


def test_the_factor_is_slow_to_believe_a_few() -> None:
    assert interval_factor([]) == 1.0
    one = interval_factor([row(80.0)])  # three times the half width
    assert 1.0 < one < 1.2
    assert one < interval_factor([row(80.0)] * 5) < interval_factor([row(80.0)] * 50) < 3.0
    assert interval_factor([row(10.0)] * 1000) == 0.5  # bounded
    assert interval_factor([row(1e9)] * 1000) == 4.0


def test_the_factor_leaves_out_what_cannot_be_judged() -> None:
    exact = replace(row(50.0), seconds=Foretold(value=10.0, low=10.0, high=10.0))
    open_end = replace(row(50.0), seconds=Foretold(value=10.0, low=5.0, high=math.inf))
    early = row(15.0, reached=False)
    assert interval_factor([exact, open_end, early, row(0.0)]) == 1.0
    assert interval_factor([row(40.0, reached=False)]) > 1.0
    assert interval_factor([replace(open_end, actual_seconds=2.5)]) > 1.0


def test_kappas_and_the_planner_that_takes_them() -> None:
    both = row(b_simple=900.0, b_crit=200.0)
    rows = [both, row(b_simple=5.0), row(b_crit=5.0), replace(both, optimizer="adam")]
    assert kappas(rows) == [4.5, 4.5]
    assert kappas(rows, "adam") == [4.5]
    wide, narrow = calibration_for("sgd", None), calibration_for("sgd", None, [both] * 20)
    assert narrow.log_spread < wide.log_spread


# --- the command --------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["calibration", *arguments]) == 0
    return capsys.readouterr().out


def test_an_empty_ledger_says_so(capsys: pytest.CaptureFixture[str], ledger_file: Path) -> None:
    assert run(capsys) == (
        f"no planned run has ended yet, so the factor is 1 ({ledger_file} keeps them)\n"
    )
    assert json.loads(run(capsys, "--json")) == {
        "ledger": str(ledger_file),
        "rows": 0,
        "groups": [],
        "damaged": [],
    }
    assert not ledger_file.exists()


def test_a_ledger_that_is_off_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYBATCH_LEDGER", "off")
    assert "the ledger is off" in run(capsys)
    assert json.loads(run(capsys, "--json"))["ledger"] is None


def test_the_table(capsys: pytest.CaptureFixture[str], ledger_file: Path) -> None:
    for one in (row(8.0), row(80.0), row(12.0, task="mnist", level=0.9), row(5.0, reached=False)):
        append_to_ledger(one)
    with ledger_file.open("a") as file:
        file.write("{\n")
    text = run(capsys)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["task", "runs", "reached", "meant"]
    assert lines[1].split()[:8] == ["all", "3", "2", "80", "%", "1", "of", "2,"]
    assert lines[2].split()[:5] == ["all", "1", "1", "90", "%"]
    assert [line.split()[0] for line in lines[3:5]] == ["digits", "mnist"]
    assert text.count("! ") == 1
    assert "line 5: " in text
    found = json.loads(run(capsys, "--json"))
    assert found["rows"] == 4
    assert found["groups"][0]["coverage"]["inside"] == 1
    assert found["groups"][0]["factor"] == interval_factor(read_ledger())


def test_a_named_ledger_must_be_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ledger_file: Path
) -> None:
    assert main(["calibration", "--ledger", str(tmp_path / "none")]) == 2
    assert "must be a file of predictions" in capsys.readouterr().err
    append_to_ledger(row(), tmp_path / "mine.jsonl")
    assert "1 of 1, 100 %" in run(capsys, "--ledger", str(tmp_path / "mine.jsonl"))
    assert not ledger_file.exists()


def test_nothing_here_reaches_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, anybatch.cli as c; c.main(['calibration']); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
