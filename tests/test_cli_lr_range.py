"""`anybatch lr-range`: what it prints, keeps, suggests and refuses; its place in a report."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anybatch.cli import main
from anybatch.measurement import Measurement
from anybatch.measuring import lr_range as lr_range_module
from anybatch.recipe_file import load_recipe
from anybatch.run import Run
from anybatch.schedules import OneCycle

QUICK = ["--updates", "60", "--start-lr", "1e-4", "--set", "batch_size=64"]
DIGITS = ["lr-range", "digits", *QUICK]
NOTHING_TO_LEARN = """
import torch, anybatch

class Deaf(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 3))

    def forward(self, inputs):
        return 0.0 * inputs @ self.weight.T

def task():
    data = torch.eye(90, 3), torch.arange(90) % 2
    return anybatch.Task(build_model=Deaf, train=data)
"""
SLOW = """
import time, pathlib, torch, anybatch

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, inputs):
        pathlib.Path("begun").touch()
        time.sleep(0.05)
        return self.linear(inputs)

def task():
    data = torch.eye(90, 3), torch.arange(90) % 2
    return anybatch.Task(build_model=Slow, train=data)
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the command adds the folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a measurement, and the text that came with it."""
    folder = tmp_path_factory.mktemp("digits")
    result = subprocess.run(
        [sys.executable, "-m", "anybatch", *DIGITS, "--out", "measured"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return folder / "measured", result.stdout


def value(measured: Measurement, name: str) -> float:
    found = measured.estimates[name].value
    assert found is not None
    return found


# --- what it says and keeps ----------------------------------------------------------------------


def test_the_table_says_the_range_and_the_next_command(digits: tuple[Path, str]) -> None:
    path, printed = digits
    measured = Run(path).measurements()["lr-range"]
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    for name in ("max_lr", "base_lr"):
        assert rows[name][1] == f"{value(measured, name):.3g}"
    assert set(measured.estimates) <= set(rows)
    assert rows["cost:"][1] == str(len(measured.samples["lr"]))
    assert rows["run:"][1] == "measured"
    next_command = printed.splitlines()[-1]
    assert next_command == (
        "next: anybatch train digits --recipe measured/suggested_recipe.json"
    )  # fmt: skip
    assert "\x1b" not in printed


def test_the_folder_is_a_run_whose_measurement_is_read_without_torch(
    digits: tuple[Path, str],
) -> None:
    path, _ = digits
    code = f"""
import sys
import anybatch as ab
run = ab.Run({str(path)!r})
measured = run.measurements()["lr-range"]
print(measured.estimates["max_lr"].value, run.status.name, run.recipe.batch_size)
assert not {{"torch", "numpy"}} & {{*sys.modules}}
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    top, status, batch_size = result.stdout.split()
    assert 0.001 < float(top) < 10.0
    assert (status, batch_size) == ("finished", "64")
    kept = json.loads((path / "measurements" / "lr-range.json").read_text())
    assert kept["kind"] == "lr-range"
    assert kept["settings"]["num_updates"] == 60
    assert kept["settings"]["batch_size"] == 64
    assert not list(path.glob("*.jsonl"))
    assert not list(path.rglob("*.tmp"))


def test_the_suggested_recipe_is_the_measured_one_with_another_lr(
    digits: tuple[Path, str], call: Any
) -> None:
    path, _ = digits
    measured = Run(path).measurements()["lr-range"]
    suggested = path / "suggested_recipe.json"
    assert call("recipe", "check", str(suggested)) == (0, f"{suggested} is a valid recipe\n", "")
    recipe = load_recipe(str(suggested))
    assert recipe.optimizer.lr == pytest.approx(value(measured, "max_lr"), rel=5e-3)
    assert recipe.batch_size == 64
    code, out, _ = call("recipe", "diff", str(path / "recipe.json"), str(suggested), "--json")
    assert code == 0
    changed = {row["path"] for row in json.loads(out)["differences"]}
    assert "optimizer.lr" in changed
    assert all(name == "optimizer.lr" or name.startswith("schedules.lr") for name in changed)


@pytest.mark.parametrize("batch_size", ["64", "full"])
def test_the_suggested_lr_is_trained_with_also_under_a_scaling_rule(
    batch_size: str, call: Any
) -> None:
    rule = "scaling={base_batch_size=16,lr='linear'}"
    code, _, err = call(*DIGITS, "--set", rule, "--set", f"batch_size={batch_size}", "--out", "out")
    assert code == 0, err
    recipe = load_recipe("out/suggested_recipe.json")
    assert recipe.scaling is None
    expected = value(Run("out").measurements()["lr-range"], "max_lr")
    assert recipe.optimizer.lr == pytest.approx(expected, rel=5e-3)


def test_a_constant_lr_becomes_one_cycle_from_base_lr_to_max_lr(call: Any) -> None:
    code, _, err = call(*DIGITS, "--set", "schedules.lr.name=constant", "--out", "out")
    assert code == 0, err
    measured = Run("out").measurements()["lr-range"]
    recipe = load_recipe("out/suggested_recipe.json")
    assert isinstance(recipe.schedules.lr, OneCycle)
    start = recipe.optimizer.lr * recipe.schedules.lr.start
    assert start == pytest.approx(value(measured, "base_lr"), rel=1e-2)


def test_json_is_one_strict_document(call: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    code, out, err = call(*DIGITS, "--out", "out", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out, parse_constant=refuse)
    assert values.pop("run") == "out"
    assert str(Measurement.from_dict(values)) == str(Run("out").measurements()["lr-range"])


def test_repeats_spacing_and_ends_reach_the_measurement(call: Any) -> None:
    options = ["--repeats", "2", "--spacing", "linear", "--start-lr", "0.01", "--end-lr", "2"]
    code, out, _ = call(*DIGITS, *options, "--updates", "30", "--out", "out", "--json")
    assert code == 0
    settings, samples = (json.loads(out)[name] for name in ("settings", "samples"))
    assert (settings["repeats"], settings["spacing"]) == (2, "linear")
    assert set(samples["repeat"]) == {0, 1}
    ramp = [lr for lr, s in zip(samples["lr"], samples["stage"], strict=True) if s == 0]
    assert ramp[0] == 0.01
    assert ramp[2] - ramp[1] == pytest.approx(ramp[1] - ramp[0])
    assert max(ramp) <= 2.0


# --- nothing can be suggested --------------------------------------------------------------------


def test_where_nothing_can_be_learned_it_exits_1_and_suggests_nothing(call: Any) -> None:
    Path("deaf_made_here.py").write_text(NOTHING_TO_LEARN)
    command = ["lr-range", "deaf_made_here:task", "--updates", "40", "--set", "batch_size=9"]
    code, out, _ = call(*command, "--out", "out")
    assert code == 1
    assert "don't know" in out
    assert "! loss-ignores-weights:" in out
    assert "next:" not in out
    assert not Path("out/suggested_recipe.json").exists()
    measured = Run("out").measurements()["lr-range"]
    assert measured.estimates["max_lr"].value is None
    assert measured.estimates["max_lr"].reason
    code, out, err = call(*command, "--out", "again", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["estimates"]["max_lr"]["value"] is None


# --- refused -------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused_before_any_work(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was measured first")

    monkeypatch.setattr(lr_range_module, "measure_lr_range", measure)
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    code, out, err = call(*DIGITS, "--out", "out")
    assert (code, out) == (2, "")
    assert err.startswith("anybatch: ")
    assert err.count("\n") == 1
    assert "out" in err
    assert [path.name for path in Path("out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lr-range"], "Missing from anybatch lr-range"),
        (["lr-range", "digts"], "did you mean digits"),
        ([*DIGITS, "--updates", "3"], "updates must be >= 16, got 3"),
        ([*DIGITS, "--updates", "many"], "--updates: invalid literal"),
        ([*DIGITS, "--repeats", "0"], "repeats must be >= 1, got 0"),
        ([*DIGITS, "--start-lr", "0"], "start_lr must be > 0, got 0"),
        ([*DIGITS, "--start-lr", "-1"], "start_lr must be > 0, got -1"),
        ([*DIGITS, "--start-lr", "nan"], "start_lr must be > 0, got nan"),
        ([*DIGITS, "--end-lr", "1e-5"], "end_lr must be > start_lr 0.0001, got 1e-05"),
        ([*DIGITS, "--end-lr", "inf"], "end_lr must be"),
        ([*DIGITS, "--spacing", "cubic"], "--spacing"),
        ([*DIGITS, "--set", "batch_size=0"], "batch_size must be >= 1, got 0"),
        ([*DIGITS, "--set", "optimizer.lr=0"], "optimizer.lr must be > 0"),
        (
            ["lr-range", "mnist", "--data", "nowhere"],
            "--data must be an existing folder, got nowhere",
        ),
        ([*DIGITS, "--out", "/dev/null/out"], "/dev/null/out must be writable"),
        ([*DIGITS, "--probes", "3"], "Unrecognized options: --probes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    call: Any, options: list[str], message: str
) -> None:
    code, out, err = call(*options)
    assert (code, out) == (2, "")
    assert err.startswith("anybatch: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert not list(Path().iterdir())


LISTENING_TO_SIGINT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from anybatch.cli import main
sys.exit(main())
"""


def test_ctrl_c_inside_exits_130_and_leaves_no_folder() -> None:
    Path("slow_made_here.py").write_text(SLOW)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LISTENING_TO_SIGINT,
            "lr-range",
            "slow_made_here:task",
            "--set",
            "batch_size=9",
            "--out",
            "runs/out",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60.0
    while not Path("begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # well inside of the ramp, which sleeps for five seconds
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert not list(Path().rglob("*.json"))
    assert not Path("runs/out").exists()


# --- in a report ---------------------------------------------------------------------------------


class Tables(HTMLParser):
    """The rows of every table of a page, as lists of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def numbers(text: str) -> list[float]:
    return [float(part.replace(",", "")) for part in re.findall(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?",
                                                                 text)]  # fmt: skip


def test_one_page_holds_the_measurement_and_the_training_that_followed(
    digits: tuple[Path, str], call: Any
) -> None:
    path, _ = digits
    train = ["train", "digits", "--recipe", str(path / "suggested_recipe.json")]
    short = ["--set", "duration=60 updates", "--set", "stopping.evaluate_every=30 updates"]
    code, _, err = call(*train, *short, "--out", "trained")
    assert code == 0, err
    code, out, err = call("report", str(path), "trained", "--out", "page.html")
    assert (code, out, err) == (0, "page.html\n", "")
    page = Path("page.html").read_text()
    parser = Tables()
    parser.feed(page)
    rows = {row[0].strip(): [cell.strip() for cell in row] for row in parser.rows if row}

    measured = Run(path).measurements()["lr-range"]
    for name, estimate in measured.estimates.items():
        _, shown, interval, *_ = rows[name]
        if estimate.value is None:
            assert shown == "not known"
            continue
        assert numbers(shown) == pytest.approx([estimate.value], rel=1e-3), name
        ends = [end for end in (estimate.low, estimate.high) if math.isfinite(end)]
        assert numbers(interval)[: len(ends)] == pytest.approx(ends, rel=1e-3), name
    assert "Loss against learning rate" in page

    last = Run("trained").last_eval("test")
    assert last is not None
    assert last.metric > 0.5
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    (shown,) = set(re.findall(r"test accuracy ([\d.]+)", words))
    assert float(shown.rstrip(".")) == pytest.approx(last.metric, abs=1e-4)
    for finding in measured.findings:
        assert finding.name in page


def test_the_page_of_a_measurement_alone_is_written_into_its_folder(call: Any) -> None:
    assert call(*DIGITS, "--out", "out")[0] == 0
    code, out, _ = call("report", "out")
    assert (code, out) == (0, "out/report.html\n")
    text = Path("out/report.html").read_text()
    assert "lr-range" in text
    assert "max_lr" in text
