"""`anybatch predict-scaling`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anybatch.cli import main
from anybatch.commands import predict_scaling
from anybatch.run import Run


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
