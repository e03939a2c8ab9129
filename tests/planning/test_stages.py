"""What each stage may cost, and which batch sizes there are: arithmetic alone."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest
from compose_cases import recipe_with, request_of
from planning_cases import throughput

from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.stages import (
    FEWEST_UPDATES,
    Budget,
    allowed_sizes,
    budget_of,
    pilot_batch_size,
    ramp_and_probe_updates,
)


@pytest.mark.parametrize(
    ("seconds", "updates", "procedure"),
    [
        (36_000.0, 90_000, "full"),
        (36_000.0, FEWEST_UPDATES, "full"),
        (36_000.0, FEWEST_UPDATES - 1, "short"),  # too few updates
        (1_199.0, 90_000, "short"),  # 5 % of it is less than a minute
        (1_200.0, 90_000, "full"),
        (0.1, 10, "short"),
    ],
)
def test_which_procedure(seconds: float, updates: int, procedure: str) -> None:
    found = budget_of(seconds, updates, 0.05)
    assert found.procedure == procedure
    assert (found.branches == 0.0) == (procedure == "short")
    assert min(found.throughput, found.lr_range, found.pilot, found.noise) > 0.0


@pytest.mark.parametrize("seconds", [3600.0 * 2**k for k in range(8)])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.5])
def test_a_long_run_is_measured_for_its_share(seconds: float, share: float) -> None:
    found = budget_of(seconds, 10**6, share)
    if found.procedure == "full":
        assert 0.75 * share * seconds <= found.measuring <= share * seconds * (1 + 1e-9)
        assert found.pilot <= share * seconds


@pytest.mark.parametrize("seconds", [1.0, 10.0, 17.0, 60.0, 600.0, 1_000.0])
def test_a_short_run_is_measured_for_5_to_18_seconds(seconds: float) -> None:
    measuring = budget_of(seconds, 10**6, 0.05).measuring
    assert 3.75 <= measuring <= max(18.0, 0.05 * seconds) + 1e-9
    assert measuring <= max(5.0, 0.3 * seconds) + 1e-9


def test_a_ramp_and_short_trainings_fit_the_budget_where_updates_are_quick() -> None:
    for short, probes in ((True, 6.0), (False, 11.0)):
        for seconds in (2.0, 10.0, 100.0):
            for each in (1e-4, 1e-3, 1e-2):
                budget = range_budget(seconds, "short" if short else "full")
                ramp, probe = ramp_and_probe_updates(budget, each)
                assert 40 <= ramp <= 100
                assert 12 <= probe <= 110
                if probe > 12:
                    assert (0.85 * 60 + probes * probe) * each <= 1.1 * seconds
    assert ramp_and_probe_updates(range_budget(1.0, "short"), 0.0) == (100, 110)


def test_short_trainings_of_a_short_procedure_do_not_use_up_seconds_that_tell_little() -> None:
    short, full = range_budget(1000.0, "short"), range_budget(1000.0, "full")
    few, many = ramp_and_probe_updates(short, 0.04)[1], ramp_and_probe_updates(short, 0.01)[1]
    assert many == pytest.approx(2.0 * few, abs=1)  # a quarter of the seconds, twice as many
    assert few < many < 110 == ramp_and_probe_updates(full, 0.04)[1]
    assert ramp_and_probe_updates(short, 1e-3)[1] == 110
    assert ramp_and_probe_updates(short, 100.0)[1] == 12


def range_budget(seconds: float, procedure: Literal["full", "short"]) -> Budget:
    return Budget(procedure=procedure, throughput=1.0, lr_range=seconds, pilot=1.0, noise=1.0,
                  branches=0.0)  # fmt: skip


@pytest.mark.parametrize(("updates", "fewest"), [(10**6, 36), (1000, 36), (500, 20), (10, 12)])
def test_a_short_training_is_long_enough_to_tell_unless_the_run_is_short(
    updates: int, fewest: int
) -> None:
    for seconds in (60.0, 36_000.0):
        budget = budget_of(seconds, updates, 0.05)
        assert ramp_and_probe_updates(budget, 1e9)[1] == fewest


def test_the_pilot_trains_where_time_and_updates_balance() -> None:
    model = TimeModel.from_measurement(throughput(fixed=0.01, per_example=1e-4))  # B_half 100
    sizes = [2**k for k in range(15)]
    for critical in (1.0, 100.0, 10_000.0):
        found = pilot_batch_size(model, sizes, critical)
        assert found == pytest.approx(math.sqrt(100.0 * critical), rel=0.45)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"num_examples": 20}, [1, 2, 3, 4, 6, 8, 12, 16]),
        ({"num_examples": 20, "ranks": 4}, [4, 8, 12, 16]),
        ({"num_examples": 1}, [1]),
        ({"num_examples": 3, "ranks": 4}, []),
        ({"num_examples": 200, "device": "cuda"}, [1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 128, 192]),
    ],
)
def test_sizes(facts: Any, expected: list[int]) -> None:
    assert allowed_sizes(request_of(recipe_with(batch_size=1), **facts)) == expected


def test_sizes_under_ghosts() -> None:
    recipe = recipe_with(batch_size=20, ghost_batch_size=20)
    assert allowed_sizes(request_of(recipe, num_examples=200)) == [
        1, 2, 3, 4, 6, 8, 12, 16, 20, 40, 60, 80, 120, 160,
    ]  # fmt: skip
    assert allowed_sizes(request_of(recipe, num_examples=200, ranks=2)) == [40, 80, 120, 160]
    assert allowed_sizes(request_of(recipe, num_examples=30, ranks=2)) == []


def test_powers_of_two_are_there_however_large_the_set() -> None:
    found = allowed_sizes(request_of(num_examples=1_281_167))
    assert {2**k for k in range(21)} <= set(found)
    assert max(b / a for a, b in itertools.pairwise(found)) <= 2.0
