"""`anybatch predict-scaling`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anybatch.cli import main
from anybatch.commands import predict_scaling
from anybatch.measurement import Measurement
from anybatch.measuring.throughput import measure_throughput
from anybatch.recipe import Recipe
from anybatch.run import Run
from anybatch.task import Task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_scaling, "_SECONDS", 0.3)


def test_it_prints_a_row_for_each_method_and_keeps_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ranks", "1,8,64", "--bandwidth-gigabytes-per-second", "2.5",
               "--latency-microseconds", "50", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(["predict-scaling", "digits", *options]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [tuple(line.split()[:2]) for line in lines[1:9]] == [
        (ranks, method) for ranks in ("1", "8") for method in ("sgd", "lars", "local-sgd", "kfac")
    ]
    for words in (
        "link: 2.5 GB/s, 50 us a message (as given)",
        "left out: 64 ranks, more than examples in a batch of 32",
        "K-FAC pays where it needs less than this share of SGD's updates: ",
        "no time to a target for sgd, lars, local-sgd, kfac: no updates were given",
    ):
        assert words in printed
    assert "<svg" in (tmp_path / "out" / "scaling.svg").read_text()
    kept = Run(tmp_path / "out").measurements()
    assert set(kept) == {"stage-times", "throughput"}
    assert sorted(set(kept["stage-times"].fitted["ranks"])) == [1.0, 8.0]


def test_json_is_one_document_with_the_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ranks", "2", "--batch-size-per-rank", "16", "--json"]
    assert main(["predict-scaling", "digits", *options, "--out", str(tmp_path / "out")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["settings"]["link"]["source"] == "assumed: 100 Gbit/s and 10 us"
    assert values["fitted"]["batch_size"] == [32.0] * 4
    assert min(values["fitted"]["seconds_per_update"]) > 0.0


def test_passes_are_timed_without_the_preconditioner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Recipe] = []

    def watched(task: Task, recipe: Recipe, **settings: Any) -> Measurement:
        seen.append(recipe)
        return measure_throughput(task, recipe, **settings)

    monkeypatch.setattr("anybatch.measuring.throughput.measure_throughput", watched)
    options = ["--ranks", "1,2", "--set", "preconditioner.name=kfac", "--json"]
    options += ["--set", "preconditioner.refresh.name=fixed", "--out", str(tmp_path / "out")]
    options += ["--set", "preconditioner.refresh.inverse_every=10"]
    assert main(["predict-scaling", "digits", *options]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["settings"]["preconditioner"]["inverse_every"] == 10
    assert [recipe.preconditioner for recipe in seen] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "x"], "--ranks must be numbers of ranks >= 1, got x (--ranks 1,8,64,1024)"),
        (["--ranks", "0"], "--ranks must be numbers of ranks >= 1, got 0 (--ranks 1,8,64,1024)"),
        (["--bandwidth-gigabytes-per-second", "0"],
         "--bandwidth-gigabytes-per-second must be > 0, got 0.0 (25 Gbit/s are 3.125)"),
        (["--latency-microseconds", "-1"], "--latency-microseconds must be >= 0, got -1.0"),
        (["--ranks", "64"], "batch_size must hold an example for each of 64 ranks, got 32 "
                            "(give --batch-size-per-rank, or --set batch_size=...)"),
        (["--batch-size-per-rank", "0"], "batch_size_per_rank must be >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict-scaling", "digits", *options, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"anybatch: {message}\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_without_updates_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict-scaling", "digits", "--updates-from", str(tmp_path)]) == 2
    assert "must be the folder of a study of batch sizes, or of a plan" in capsys.readouterr().err


def test_updates_of_a_study_give_seconds_to_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", "batch-size", "digits", "--target", "0.8", "--batch-sizes", "16,64"]
    assert main([*study, "--lr", "0.1", "--seeds", "1", "--out", str(tmp_path / "study")]) == 0
    options = ["--ranks", "1,4,16", "--batch-size-per-rank", "16", "--json"]
    options += ["--updates-from", str(tmp_path / "study"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["predict-scaling", "digits", *options]) == 0
    fitted = json.loads(capsys.readouterr().out)["fitted"]
    methods = [method for method, known in zip(fitted["method"], fitted["seconds_to_target"],
                                               strict=True) if known != "nan"]  # fmt: skip
    assert methods == [0.0, 0.0, 0.0]  # SGD, as the study's recipe
    assert fitted["extrapolated"][:3] == [0.0, 0.0, 1.0]
    assert fitted["updates"][0] >= fitted["updates"][1] > 0.0
