"""From draws to one batch size: closed forms, laws of the move, sizes that suit the hardware."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from planning_cases import ALL_REDUCE, known_world, noise_scale, throughput

from anybatch.errors import InputError
from anybatch.planning.arithmetic.calibration import calibration_for
from anybatch.planning.arithmetic.decision import (
    best_batch_size,
    decide,
    expected_excess,
    near_optimal,
)
from anybatch.planning.arithmetic.error_shares import shares_of_choice, shares_of_seconds
from anybatch.planning.arithmetic.posterior import Posterior, make_posterior
from anybatch.planning.arithmetic.sizes import batch_size_grid, friendly
from anybatch.planning.arithmetic.time_model import TimeModel

STEP = 2.0 ** (1.0 / 16.0)  # half a step of the grid


def unsure(scatter: float = 0.05, **settings: object) -> Posterior:
    return make_posterior(
        noise_scale(after_updates=500),
        TimeModel.from_measurement(throughput(scatter=scatter, **settings)),  # type: ignore[arg-type]
        calibration_for("sgd", "classification"),
        np.random.default_rng(5).lognormal(6.0, 0.3, 2000),
        64,
    )


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [4.0, 30.0, 200.0, 2000.0])
@pytest.mark.parametrize("critical", [20.0, 200.0, 15000.0])
def test_the_best_batch_size_is_the_geometric_mean(half: float, critical: float) -> None:
    world = known_world(critical=critical, half=half)
    best = best_batch_size(world, set_size=60_000)
    assert abs(math.log(best.least / math.sqrt(half * critical))) <= math.log(STEP) + 0.03


@pytest.mark.parametrize(("half", "cost"), [(4.0, 0.05), (30.0, 0.10), (200.0, 0.125)])
def test_twice_the_best_costs_what_the_closed_form_says(half: float, cost: float) -> None:
    world = known_world(critical=200.0, half=half)
    best = math.sqrt(half * 200.0)
    for factor in (0.5, 2.0):
        excess = expected_excess(world.seconds_to_target([best, factor * best]), world.weights)
        exact = best * (factor + 1.0 / factor - 2.0) / (math.sqrt(half) + math.sqrt(200.0)) ** 2
        assert excess[1] == pytest.approx(exact, rel=1e-9)
        assert excess[1] == pytest.approx(cost, abs=0.005)


@pytest.mark.parametrize(("half", "cost"), [(200.0, 0.37), (4.0, 0.16)])
def test_a_critical_batch_size_ten_times_off_costs_at_most_a_third(
    half: float, cost: float
) -> None:
    believed = best_batch_size(known_world(critical=2000.0, half=half), set_size=10**6).least
    truth = known_world(critical=200.0, half=half)
    best = math.sqrt(half * 200.0)
    assert believed / best == pytest.approx(10.0**0.5, rel=0.06)
    excess = expected_excess(truth.seconds_to_target([best, believed]), truth.weights)[1]
    assert excess == pytest.approx(cost, rel=0.1)
    assert excess <= 0.38


def test_a_sharper_elbow_draws_the_best_to_the_critical_batch_size() -> None:
    off = [
        abs(math.log(best_batch_size(known_world(elbow=p, half=10.0)).least / 200.0))
        for p in (1.0, 2.0, 5.0)
    ]
    assert off[0] > off[1] > off[2]


def test_the_near_optimal_set_is_where_the_closed_form_is_within_five_percent() -> None:
    world = known_world(critical=200.0, half=4.0)
    best = best_batch_size(world, set_size=60_000)
    exact = [
        size
        for size in best.batch_sizes
        if (4.0 + size) * (1.0 + 200.0 / size) <= 1.05 * (2.0 + math.sqrt(200.0)) ** 2
    ]
    assert best.near_optimal == tuple(exact)
    assert best.batch_size in best.near_optimal


# --- excess over draws -------------------------------------------------------------------------


def test_a_far_or_unreachable_target_has_no_more_say() -> None:
    seconds = np.array([[1.0, 2.0], [2.0, 1.0]])
    even = expected_excess(seconds, [0.5, 0.5])
    np.testing.assert_allclose(even, [0.0, 0.0])
    np.testing.assert_allclose(expected_excess(seconds * [[1.0], [1e6]], [0.5, 0.5]), even)
    lost = np.vstack([seconds, [math.inf, math.inf]])
    np.testing.assert_allclose(expected_excess(lost, np.ones(3) / 3), even)
    with pytest.raises(InputError, match="a finite draw"):
        expected_excess([[math.inf, math.inf]], [1.0])


def test_weights_count() -> None:
    seconds = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert near_optimal(seconds, [0.9, 0.1], [8, 16]) == (8,)
    assert near_optimal(seconds, [0.1, 0.9], [8, 16]) == (16,)
    assert near_optimal(seconds, [0.5, 0.5], [16, 8]) == (8, 16)


# --- moving ------------------------------------------------------------------------------------


def test_far_away_it_moves_in_either_direction() -> None:
    for present in (1, 4096):
        decision = decide(unsure(), present, set_size=60_000)
        assert decision.moves
        assert decision.batch_size == decision.choice.batch_size != present
        assert decision.expected_gain > 0.05
        assert decision.probability_worse < 0.2
        assert decision.present_excess.low > 0.05
        assert decision.present_excess.value is not None
        assert any(
            "worth it" in reason and "not worth" not in reason for reason in decision.reasons
        )


def test_among_equals_it_stays() -> None:
    world = unsure()
    near = best_batch_size(world, set_size=60_000).near_optimal
    for present in (near[0], near[-1]):
        decision = decide(world, present, set_size=60_000)
        assert not decision.moves
        assert decision.batch_size == present


def test_a_gain_that_may_be_a_loss_is_not_taken() -> None:
    world = known_world()
    tiny = dataclasses.replace(
        world,
        noise_scale=np.array([2.0, 2.0, 2.0, 20_000.0]),
        kappa=np.ones(4),
        elbow=np.ones(4),
        updates_at_pilot=np.full(4, 100.0),
        weights=np.full(4, 0.25),
        time=dataclasses.replace(
            world.time,
            seconds=np.repeat(world.time.seconds, 4, axis=0),
            loading_seconds_per_example=np.zeros(4),
        ),
    )
    decision = decide(tiny, 256, [32, 256])
    assert decision.choice.batch_size in (32, 256)
    ratio = tiny.seconds_to_target([32, 256])
    worse = float(np.mean(ratio[:, 0] > 1.1 * ratio[:, 1]))
    assert worse == pytest.approx(0.25)
    forced = decide(tiny, 256, [32])
    assert forced.probability_worse == pytest.approx(worse)
    assert not forced.moves
    assert forced.batch_size == 256
    surer = dataclasses.replace(tiny, weights=np.array([0.3, 0.3, 0.3, 0.1]))
    assert decide(surer, 256, [32]).probability_worse == pytest.approx(0.1)


def test_the_present_excess_is_said_with_its_interval() -> None:
    decision = decide(unsure(), 4096, set_size=60_000)
    excess = decision.present_excess
    assert excess.value is not None
    said = f"{100 * excess.value:+.0f} % time (80 %: {100 * excess.low:+.0f} % to"
    assert any("4,096" in reason and said in reason for reason in decision.reasons)
    proposal = decision.choice.batch_size
    seconds = unsure().seconds_to_target([proposal, 4096])
    assert excess.value == pytest.approx(np.median(seconds[:, 1] / seconds[:, 0]) - 1.0, rel=0.01)


@pytest.mark.parametrize("candidates", [[1], [1, 60_000], [7, 100, 60_000], list(range(1, 40))])
def test_any_candidates(candidates: list[int]) -> None:
    decision = decide(unsure(), 60_000, candidates, set_size=60_000)
    assert decision.choice.batch_size in candidates
    assert set(decision.near_optimal) <= set(candidates)
    assert decision.reasons


def test_a_set_of_one_example() -> None:
    decision = decide(unsure(), 1, set_size=1)
    assert decision.batch_size == 1
    assert not decision.moves
    assert decision.choice.batch_sizes == (1,)


def test_the_whole_set_is_the_limit() -> None:
    world = known_world(critical=1e7, half=1e5)
    decision = decide(world, 10, set_size=50_000)
    assert decision.choice.least == 50_000
    assert max(decision.choice.batch_sizes) == 50_000
    assert any("whole set, 50,000, is the limit" in reason for reason in decision.reasons)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="batch_size must be at most the 100 of the set, got 512"):
        decide(unsure(), 512, set_size=100)
    with pytest.raises(InputError, match="batch_size must be >= 1"):
        decide(unsure(), 0)
    with pytest.raises(InputError, match="candidates must hold a size within the set"):
        decide(unsure(), 64, [200, 300], set_size=100)
    with pytest.raises(InputError, match="ranks need a measured all-reduce"):
        decide(unsure(), 64, ranks=2, set_size=100)


# --- ranks, memory, hardware -------------------------------------------------------------------


def test_ranks_move_the_best_batch_size_up() -> None:
    world = unsure(all_reduce=ALL_REDUCE)
    one = best_batch_size(world, set_size=60_000)
    four = best_batch_size(world, set_size=60_000, ranks=4)
    assert four.least > one.least
    assert all(size % 4 == 0 for size in four.batch_sizes)
    assert four.batch_size % 4 == 0


def test_memory_moves_the_best_batch_size_down() -> None:
    free = best_batch_size(known_world(critical=2000.0, half=500.0), set_size=60_000)
    tight = best_batch_size(known_world(critical=2000.0, half=500.0, largest=64), set_size=60_000)
    assert tight.least < free.least


def test_the_answer_suits_the_hardware() -> None:
    world = unsure(all_reduce=ALL_REDUCE)
    cpu = best_batch_size(world, set_size=60_000).batch_size
    assert cpu // (cpu & -cpu) in (1, 3)
    cuda = best_batch_size(world, set_size=60_000, device="cuda").batch_size
    assert cuda % (64 if cuda >= 64 else 8) == 0
    ghosts = best_batch_size(world, set_size=60_000, ranks=3, ghost=16)
    assert all(size % 48 == 0 for size in ghosts.batch_sizes)
    assert ghosts.batch_size in ghosts.near_optimal


def test_friendly_sizes() -> None:
    assert friendly([1, 2, 3, 5, 6, 7, 8, 12]).tolist() == [1, 2, 3, 6, 8, 12]
    assert friendly([4, 8, 16, 20], device="cuda").tolist() == [4, 8, 16]
    assert friendly([96, 128, 192, 320], device="cuda").tolist() == [128, 192]
    assert friendly([10, 20, 30, 40, 60, 80], ghost=10).tolist() == [10, 20, 30, 40, 60, 80]
    assert friendly([64, 96, 128], set_size=100).tolist() == [64, 96]
    assert friendly([12, 24, 25], ranks=3).tolist() == [12, 24]
    assert friendly([]).tolist() == []


def test_the_grid() -> None:
    grid = batch_size_grid(set_size=60_000)
    assert grid[0] == 1
    assert grid[-1] == 60_000
    ratio = grid[1:] / grid[:-1]
    assert ratio[grid[1:] > 25].max() < 1.13
    assert {2**k for k in range(15)} <= set(grid.tolist())
    assert batch_size_grid(set_size=1).tolist() == [1]
    assert batch_size_grid(set_size=100, ranks=2, ghost=16).tolist() == [32, 64, 96]
    with pytest.raises(InputError, match="at least 64, one ghost on each of 2 ranks, got 60"):
        batch_size_grid(set_size=60, ranks=2, ghost=32)


# --- which error dominates ---------------------------------------------------------------------


def test_the_error_that_is_there_is_the_one_that_is_named() -> None:
    world = unsure()
    sizes = batch_size_grid(set_size=60_000)
    shares = shares_of_choice(world, sizes)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert max(shares, key=lambda name: shares[name]) == "calibration"
    assert shares["learning curve"] == 0.0
    seconds = shares_of_seconds(world, 64)
    assert max(seconds, key=lambda name: seconds[name]) == "learning curve"
    sure = dataclasses.replace(world, kappa=np.full(2000, 3.0), elbow=np.ones(2000))
    assert shares_of_choice(sure, sizes).get("calibration", 0.0) == 0.0
    noisy = dataclasses.replace(
        world, noise_scale=600.0 * np.exp(3.0 * np.random.default_rng(0).standard_normal(2000))
    )
    noisy_shares = shares_of_choice(noisy, sizes)
    assert max(noisy_shares, key=lambda name: noisy_shares[name]) == "noise scale"


def test_where_nothing_is_unsure_nothing_is_blamed() -> None:
    assert shares_of_choice(known_world(), np.array([8, 16, 32])) == {}
    assert shares_of_seconds(known_world(), 32) == {}
    assert shares_of_seconds(known_world(updates=math.inf), 32) == {}


def test_an_unreachable_target_still_gets_a_batch_size() -> None:
    world = dataclasses.replace(unsure(), updates_at_pilot=np.full(2000, math.inf))
    reachable = decide(unsure(), 4096, set_size=60_000)
    assert decide(world, 4096, set_size=60_000).batch_size == reachable.batch_size
