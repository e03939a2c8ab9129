"""An LR range test on two processes: the same on both, and the same as on one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import measure_on_ranks
import pytest
from launching import launch
from measure_on_ranks import BAD_EXAMPLE, CASES, SETTINGS

from anybatch.measurement import Measurement
from anybatch.run import Run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    launch(2, measure_on_ranks.__file__, "own-group", str(folder))
    return folder


def of_rank(folder: Path, name: str, rank: int) -> Measurement:
    return Measurement.from_dict(json.loads((folder / f"{name}-{rank}.json").read_text()))


@cache
def alone(name: str) -> Measurement:
    return CASES[name]()


def finding_names(measured: Measurement) -> list[str]:
    return [finding.name for finding in measured.findings]


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_have_the_same_measurement(name: str, two_ranks: Path) -> None:
    one, other = (replace(of_rank(two_ranks, name, rank), seconds=0.0) for rank in (0, 1))
    assert str(one) == str(other)  # as text, in which nan is nan


@pytest.mark.parametrize("name", CASES)
def test_two_processes_measure_what_one_does(name: str, two_ranks: Path) -> None:
    """Up to rounding."""
    measured, expected = of_rank(two_ranks, name, 0), alone(name)
    assert measured.examples == expected.examples
    assert finding_names(measured) == finding_names(expected)
    for column in ("stage", "repeat", "series", "update"):
        assert measured.samples[column] == expected.samples[column], column
    for column in ("lr", "loss", "metric"):
        assert measured.samples[column] == pytest.approx(
            expected.samples[column], rel=1e-6, nan_ok=True
        ), column
    for key, estimate in expected.estimates.items():
        found = measured.estimates[key]
        assert (found.value is None) == (estimate.value is None), key
        if estimate.value is not None:
            assert found.value == pytest.approx(estimate.value, rel=1e-6), key
        assert (found.low, found.high) == pytest.approx((estimate.low, estimate.high), rel=1e-6)


def test_a_divergence_ends_the_ramp_of_both_ranks(two_ranks: Path) -> None:
    measured = of_rank(two_ranks, "diverges early", 1)
    stages, repeats = measured.samples["stage"], measured.samples["repeat"]
    for repeat in (0.0, 1.0):
        ramp = [s for s, r in zip(stages, repeats, strict=True) if s == 0.0 and r == repeat]
        assert 8 <= len(ramp) < SETTINGS.num_updates


def test_an_example_that_is_no_number_on_one_rank_is_told_by_both(two_ranks: Path) -> None:
    for rank in (0, 1):
        measured = of_rank(two_ranks, "bad example", rank)
        (finding,) = [f for f in measured.findings if f.name == "non-finite-data"]
        assert f" {BAD_EXAMPLE} " in f" {finding.sentence} ".replace(",", " ")
        assert any(math.isnan(loss) for loss in measured.samples["loss"])
        assert math.isfinite(measured.samples["loss"][-1])  # the others were measured on


def test_one_measurement_after_the_other_makes_its_own_group(tmp_path: Path) -> None:
    launch(2, measure_on_ranks.__file__, "no-group", str(tmp_path), seconds_allowed=60.0)
    found = [replace(of_rank(tmp_path, name, 1), seconds=0.0) for name in ("first", "third")]
    assert str(found[0]) == str(found[1])


def test_the_command_writes_one_run_on_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["-m", "anybatch", "lr-range", "digits", "--updates", "40", "--json"]
    settings = ["--set", "batch_size=64", "--set", "compute.device=cpu"]
    printed = launch(2, *command, *settings, "--start-lr", "1e-4", "--out", str(out))
    values = json.loads(printed)  # one document, from the first rank
    assert values["run"] == str(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    run = Run(out)
    measured = run.measurements()["lr-range"]
    assert measured.estimates["max_lr"].value == values["estimates"]["max_lr"]["value"]
    assert measured.estimates["max_lr"].value is not None
    assert (out / "suggested_recipe.json").exists()
    assert len(run.environments) == 1
