"""Stages of an update on one rank: what is timed, of what, and what follows from the samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.stage_times import StageTimesSettings, measure_stage_times
from anybatch.measuring.stage_times_reading import COLUMNS, read_stage_times
from anybatch.recipe import AdaptiveRefresh, KFACSettings, Recipe, SGDSettings
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

QUICK = StageTimesSettings(seconds=0.05, rounds=2, max_examples=16)
RECIPE = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32, duration=updates(10))


def make_task(*, layers: Any = None) -> Task:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(80, 2, 6, 6, generator=generator), torch.arange(80) % 3
    return Task(build_model=layers or _network, train=data, validation=data)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure_stage_times(make_task(), RECIPE, settings=QUICK)


def test_blocks_are_told_with_what_travels(measured: Measurement) -> None:
    told = [
        (block["kind"], block["gradient_bytes"], [f["elements"] for f in block["factors"]])
        for block in measured.settings["blocks"]
    ]
    assert told == [
        ("convolution", 4 * (4 * 9 + 4), [2 * 55, 2 * 3]),  # two groups, a bias in each
        ("norm", 4 * 8, [4 * 3]),
        ("linear", 4 * (3 * 64 + 3), [65 * 66 // 2, 6]),
    ]
    weights = 4 * (40 + 8 + 195)
    assert measured.settings["gradient_bytes"] == weights
    assert measured.settings["averaged_bytes"] == weights + 4 * 8  # with running mean and variance


def test_two_sizes_are_timed_in_every_round(measured: Measurement) -> None:
    rows = list(zip(measured.samples["batch_size"], measured.samples["round"], strict=True))
    assert rows == [(4.0, 0.0), (16.0, 0.0), (4.0, 1.0), (16.0, 1.0)]
    for name in ("plain_seconds", "sgd_seconds", "lars_seconds", "inversion_seconds"):
        assert min(measured.samples[name]) > 0.0
    assert all(len(f["inversion_seconds"]) == 2 for f in measured.settings["blocks"][0]["factors"])


def test_estimates_can_be_computed_again(measured: Measurement) -> None:
    assert read_stage_times(measured.samples, measured.settings) == measured.estimates
    assert all(e.value is not None and e.value >= 0.0 for e in measured.estimates.values())


def test_whole_steps_of_kfac_are_timed_on_gradients_of_their_own(measured: Measurement) -> None:
    for name in ("step_seconds", "collection_seconds", "taking_apart_seconds"):
        assert all(np.isfinite(measured.samples[name]))
        assert min(measured.samples[name]) >= 0.0
    assert min(measured.samples["step_seconds"]) > 0.0


def test_samples_of_before_whole_steps_can_be_read(measured: Measurement) -> None:
    older = {name: values for name, values in measured.samples.items() if name in COLUMNS[:8]}
    found = read_stage_times(older, measured.settings)
    assert found["step_seconds"].value is None
    assert found["inversion_seconds"] == measured.estimates["inversion_seconds"]


def test_a_line_through_statistics_is_found() -> None:
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for number in range(9):
        for size in (16.0, 64.0):
            late = 5.0 if number == 4 else 1.0  # one round of a busy machine
            row = {"batch_size": size, "round": number, "statistics_seconds": 0.002 + 1e-4 * size}
            for name in COLUMNS:
                columns[name].append(late * row.get(name, 0.25) if "sec" in name else row[name])
    found = read_stage_times(columns, {"seed": 0, "not_measured": ""})
    values = {name: estimate.value for name, estimate in found.items()}
    assert values["statistics_fixed_seconds"] == pytest.approx(0.002)
    assert values["statistics_seconds_per_example"] == pytest.approx(1e-4)
    assert values["inversion_seconds"] == 0.25


def test_statistics_that_seem_to_save_time_cost_nothing() -> None:
    columns = {name: np.full(4, -0.001) for name in COLUMNS}
    columns |= {"batch_size": np.array([8, 32, 8, 32.0]), "round": np.array([0, 0, 1, 1.0])}
    found = read_stage_times(columns, {"seed": 0, "not_measured": ""})
    assert found["statistics_fixed_seconds"].value == 0.0
    assert found["statistics_seconds_per_example"].value == 0.0


def test_what_statistics_of_a_model_cost_grows_with_the_examples() -> None:
    wide = make_task(layers=lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    found = measure_stage_times(wide, RECIPE, settings=QUICK)
    assert found.settings["blocks"][0]["factors"][0]["side"] == 73
    assert found.findings == ()


def test_a_model_without_layers_that_are_covered_is_measured_without_kfac() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.scale * inputs.flatten(1)[:, :3]

    found = measure_stage_times(make_task(layers=Scaled), RECIPE, settings=QUICK)
    (finding,) = found.findings
    assert str(finding).startswith("kfac-not-measured: no layer of the model is covered")
    assert found.settings["blocks"] == []
    assert found.estimates["inversion_seconds"].value is None
    assert found.estimates["sgd_seconds"].value is not None


def test_what_is_not_timed_is_said() -> None:
    kfac = KFACSettings(refresh=AdaptiveRefresh(), fisher="sampled")
    recipe = dataclasses.replace(RECIPE, preconditioner=kfac)
    found = measure_stage_times(make_task(), recipe, settings=QUICK)
    assert [finding.name for finding in found.findings] == [
        "adaptive-refresh",
        "fisher-as-empirical",
    ]
    assert found.settings["preconditioner"]["inverse_every"] == 1


def test_no_hook_stays_behind() -> None:
    with Training(make_task(), RECIPE) as training:
        measure_stage_times(training, settings=QUICK)
        modules = training.model.modules()
        assert not any(module._forward_hooks for module in modules)


def test_a_training_with_a_preconditioner_is_refused() -> None:
    recipe = dataclasses.replace(RECIPE, preconditioner=KFACSettings())
    with (
        Training(make_task(), recipe) as training,
        pytest.raises(InputError, match="must have no preconditioner while stages are timed"),
    ):
        measure_stage_times(training, settings=QUICK)


@pytest.mark.parametrize("values", [{"seconds": 0.0}, {"rounds": 1}, {"max_examples": 0}])
def test_settings_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        StageTimesSettings(**values)
