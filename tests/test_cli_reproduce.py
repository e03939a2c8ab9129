"""`anybatch reproduce` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anybatch.cli import main
from anybatch.studies.reproductions.table import CLAIMS

QUICK = ["reproduce", "equal-epochs", "--quick", "--seeds", "1"]


def test_without_a_name_the_claims_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    text = capsys.readouterr().out
    assert all(claim.NAME in text for claim in CLAIMS)
    assert main(["reproduce", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["claims"]
    assert [claim["name"] for claim in known] == [claim.NAME for claim in CLAIMS]


def test_it_stops_in_time_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--runs", str(tmp_path / "my runs"), "--out", str(tmp_path / "pages")]
    assert main([*QUICK, *places, "--for", "0s"]) == 0
    text = capsys.readouterr().out
    assert "open (quick: far too small to say anything)" in text
    assert f"next: anybatch reproduce equal-epochs --quick --seeds 1 --out {tmp_path}/pages" in text
    assert f"--runs '{tmp_path}/my runs'" in text
    assert main([*QUICK, *places, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["missing"] == []
    assert values["verdict"]["name"] == "open"  # one seed is too few
    assert values["results"]["arms"]["sgd"]["trials"][0]["values"]["test_accuracy"] > 0
    page = Path(values["page"])
    assert page == tmp_path / "pages" / "equal-epochs.md"
    assert {path.name for path in page.parent.iterdir()} == {
        "README.md", "equal-epochs.json", "equal-epochs.md", "equal-epochs.svg"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "equal-epoch"], "did you mean equal-epochs?"),
        ([*QUICK, "--for", "soon"], "--for must be a time as in 150m"),
        ([*QUICK[:-1], "0"], "seeds must be >= 1"),
        ([*QUICK, "--on", "moon"], 'on must be "local" or "ray"'),
        (["reproduce", "clipping", "--data", "nowhere"], "--data must be an existing folder"),
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
