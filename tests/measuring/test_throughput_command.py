"""`anybatch throughput`: what it prints and keeps; its picture; one measurement on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anybatch.cli import main
from anybatch.measuring.throughput_reading import read_throughput
from anybatch.reporting.measurement_figures import measurement_picture
from anybatch.run import Run

QUICK = ["--seconds", "0.5", "--max-micro-batch-size", "8"]
ON_RANKS = """
import json, os, sys, torch
from anybatch import Recipe, SGDSettings, Task, ThroughputSettings, measure_throughput
from torch import nn
torch.manual_seed(0)  # the same data on every rank
data = torch.randn(61, 3), torch.arange(61) % 2
task = Task(build_model=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            train=data, validation=data)
recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=16, ghost_batch_size=4)
found = measure_throughput(task, recipe, settings=ThroughputSettings(seconds=1.0, rounds=2))
name = f"{sys.argv[1]}/{os.environ['RANK']}.json"
open(name, "w").write(json.dumps(found.to_dict(), allow_nan=False))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("throughput")
    assert main(["throughput", "digits", *QUICK, "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_the_table_says_each_size_and_the_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["throughput", "digits", *QUICK, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split() == [
        "batch", "ms/update", "forward", "backward", "optimizer", "loading", "examples/s",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "4", "8"]
    for words in ("B_half ", "largest micro-batch: ", "an epoch at batch 32 takes ", "cost: ",
                  "next: anybatch lr-range digits"):  # fmt: skip
        assert words in printed
    measured = Run(tmp_path / "out").measurements()["throughput"]
    assert read_throughput(measured.samples, measured.settings).estimates == measured.estimates


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*QUICK, "--json", "--out", str(tmp_path / "out")]
    assert main(["throughput", "digits", *options]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kind"] == "throughput"
    assert values["settings"]["fit"]["knots"]


def test_one_size_alone_is_no_curve_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seconds", "0.3", "--max-micro-batch-size", "1", "--out", str(tmp_path / "out")]
    assert main(["throughput", "digits", *options]) == 1
    printed = capsys.readouterr().out
    assert "! too-few-sizes: only passes of 1 examples were timed" in printed
    assert "don't know: 1 sizes were timed, 3 are needed" in printed


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", "digits", "--seconds", "0"]) == 2
    assert capsys.readouterr().err == "anybatch: seconds must be > 0, got 0.0\n"


def test_the_picture_has_the_parts_the_rate_and_the_memory(made: Path) -> None:
    measured = Run(made).measurements()["throughput"]
    picture = measurement_picture(measured, "picture")
    assert picture is not None
    seconds, rates, memory = picture.figure.axes
    labels = [text.get_text() for text in seconds.get_legend().get_texts()]
    assert labels == ["forward", "backward", "optimizer", "loading", "update, fitted"]
    assert [axes.get_xscale() for axes in (seconds, rates, memory)] == ["log"] * 3
    assert seconds.get_yscale() == "log"
    dots = seconds.get_lines()[0]
    assert list(dots.get_ydata()) == [1e3 * t for t in measured.samples["update_seconds"]]
    curve = rates.get_lines()[1]
    columns = (measured.fitted["batch_size"], measured.fitted["seconds"])
    assert list(curve.get_ydata()) == [b / t for b, t in zip(*columns, strict=True)]
    assert "timed updates" in picture.caption
    assert measured.plot() is not None


def test_two_ranks_have_the_same_measurement_and_an_all_reduce(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(ON_RANKS)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "--nproc-per-node=2", str(tmp_path / "ranks.py"),
        str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = [
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    ]
    for part in ("samples", "estimates", "settings"):
        assert found[0][part] == found[1][part], part
    assert sorted(set(found[0]["samples"]["batch_size"])) == [4.0, 8.0, 16.0]  # 30 each
    exchange = found[0]["settings"]["all_reduce"]
    assert exchange["bytes"] == 4 * (3 * 4 + 4 + 4 + 4 + 4 * 2 + 2)
    assert exchange["latency_seconds"] > 0.0
    assert all(len(sample) == 2 for sample in exchange["samples"])
