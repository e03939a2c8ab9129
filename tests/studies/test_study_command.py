"""`anybatch study` from the command line, and what `anybatch report` shows of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from anybatch.cli import main
from anybatch.commands.study import seconds_of
from anybatch.errors import InputError
from anybatch.reporting.batch_size_figures import Hyperbola, batch_size_picture
from anybatch.reporting.page import write_report
from anybatch.studies.batch_size_table import BatchSizeStudy

CONSTANT = ["--set", "schedules.lr.name=constant", "--set", "duration=4 epochs"]
STUDY = ["study", "batch-size", "digits", "--target", "0.8", "--batch-sizes", "32,256"]
IMPOSSIBLE = ["study", "batch-size", "digits", "--target", "1.0", "--lr", "1e-6", "--seeds", "1"]


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study at a fixed lr in which every run reaches the target."""
    out = tmp_path_factory.mktemp("command") / "study"
    assert main([*STUDY, *CONSTANT, "--lr", "0.1", "--seeds", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def missed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which none does."""
    out = tmp_path_factory.mktemp("command") / "missed"
    sizes = ["--batch-sizes", "256,1024", "--set", "duration=1 epochs"]
    assert main([*IMPOSSIBLE, *CONSTANT, *sizes, "--out", str(out)]) == 1
    return out


def test_what_is_printed_is_what_the_disk_says(
    reached: Path, missed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "resume", str(reached), "--for", "0s"]) == 0
    text = capsys.readouterr().out
    assert "to accuracy >= 0.8 on validation, within 4 epochs" in text
    for row in BatchSizeStudy(reached).table():
        assert row.updates is not None
        (line,) = (line for line in text.splitlines() if line.startswith(f"{row.batch_size} "))
        assert "2 of 2" in line
        assert f"({row.updates.lowest:.0f} to {row.updates.highest:.0f})" in line
    assert "next:" not in text
    assert main(["study", "resume", str(missed), "--for", "0s"]) == 1
    text = capsys.readouterr().out
    assert "0 of 1, not within the cap" in text
    assert "never" in text


def test_json_holds_every_trial(reached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "resume", str(reached), "--json", "--for", "0s"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["batch_size"] for row in values["rows"]] == [32, 256]
    assert len(values["trials"]) == 4
    assert values["complete"]
    assert set(values["rows"][0]["updates"]) == {"median", "lowest", "highest"}


def test_time_that_is_up_is_no_failure_and_the_way_on_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a study"
    assert main([*STUDY, *CONSTANT, "--for", "0s", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"next: anybatch study resume '{out}'" in text
    assert "not decided" in text
    page = write_report([out])  # of a study in which nothing has been begun
    assert "not begun" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "batch-size", "digits"], "target must be given"),
        ([*STUDY, "--for", "soon"], "--for must be a time as in 150m"),
        ([*STUDY[:-1], "8,x"], "--batch-sizes must be whole numbers and commas"),
        ([*STUDY[:-1], "8,,9"], "--batch-sizes must be whole numbers and commas"),
        ([*STUDY[:-1], "4000"], "batch_size must be <= the"),
        ([*STUDY, "--on", "moon"], 'on must be "local" or "ray"'),
        (["study", "resume", "nowhere"], "study must be a folder with a study.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_train_does_not_take_over_a_study_of_batch_sizes(
    reached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(reached)]) == 2
    assert f"anybatch study resume {reached}" in capsys.readouterr().err


def test_without_ray_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # cannot be imported
    assert main([*STUDY, *CONSTANT, "--on", "ray", "--out", str(tmp_path / "s")]) == 2
    assert 'ray must be installed (pip install "anybatch[ray]")' in capsys.readouterr().err


def test_times_have_a_unit() -> None:
    assert [seconds_of(t) for t in (None, "90s", "150m", "2h", "1d")] == [
        None,
        90,
        9000,
        7200,
        86400,
    ]
    with pytest.raises(InputError, match="--for"):
        seconds_of("90")


# --- the report ----------------------------------------------------------------------------------


def test_the_report_shows_table_and_picture(reached: Path, tmp_path: Path) -> None:
    page = write_report([reached], tmp_path / "page.html").read_text()
    assert "Batch size against what accuracy &gt;= 0.8 takes" in page
    assert 'id="batch-size"' in page
    assert "without loading" in page
    for row in BatchSizeStudy(reached).table():
        assert f"batch {row.batch_size:,}: {row.updates.median:.4g} updates" in page  # type: ignore[union-attr]
    folder = write_report([reached], tmp_path / "figures", format="svg")
    assert (folder / "batch-size.svg").is_file()


def test_a_study_without_a_single_median_is_drawn_too(missed: Path) -> None:
    picture = batch_size_picture(BatchSizeStudy(missed), "x")
    assert picture is not None
    assert "256, 1,024, are triangles" in picture.caption
    top = picture.figure.axes[0]
    assert [line.get_marker() for line in top.lines if len(line.get_xdata())] == ["^", "^"]
    assert top.get_xscale() == top.get_yscale() == "log"


def test_the_curves_go_through_the_medians_and_perfect_scaling_through_the_first(
    reached: Path,
) -> None:
    study = BatchSizeStudy(reached)
    fitted = Hyperbola(10.0, 100.0, 2.0)
    picture = batch_size_picture(study, "x", fitted=fitted)
    assert picture is not None
    rows = study.table()
    lines = {line.get_label(): line for line in picture.figure.axes[0].lines}
    (curve,) = (line for line in picture.figure.axes[0].lines if line.get_marker() == "o")
    assert list(curve.get_xdata()) == [32, 256]
    assert list(curve.get_ydata()) == [row.updates.median for row in rows if row.updates]
    first = rows[0].updates
    assert first is not None
    assert list(lines["perfect scaling"].get_ydata()) == [first.median, first.median / 8]
    assert lines["fitted"].get_ydata()[0] == pytest.approx(fitted.updates(32.0))
    assert fitted.updates(100.0) == pytest.approx(10.0 * math.sqrt(2.0))


def test_showing_a_study_loads_no_torch(reached: Path) -> None:
    code = (
        "import sys\nfrom anybatch.cli import main\n"
        f"assert main(['study', 'resume', {str(reached)!r}, '--for', '0s']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
