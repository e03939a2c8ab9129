"""Branches: equal times, and ratios of updates whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic.branches import (
    BranchLosses,
    branch_updates,
    compare_at_equal_time,
    log_ratio_of_updates,
)


def loss_after(progress: object) -> np.ndarray:
    return 0.3 + 6.0 * (150.0 + np.asarray(progress, dtype=float)) ** -0.35


def branch(
    updates: int,
    speed: float = 1.0,
    *,
    spread: float = 0.0,
    seeds: int = 1,
    rng: np.random.Generator | None = None,
) -> BranchLosses:
    """Losses with first-order autoregressive noise; an update is worth `speed` of the others'."""
    series = []
    for _ in range(seeds):
        noise = np.zeros(updates)
        if rng is not None:
            fresh = rng.standard_normal(updates)
            noise[0] = fresh[0]
            for n in range(1, updates):
                noise[n] = 0.7 * noise[n - 1] + math.sqrt(1 - 0.49) * fresh[n]
        curve = loss_after(np.arange(1, updates + 1) * speed) + spread * noise
        series.append(tuple(curve.tolist()))
    return BranchLosses(batch_size=32, losses=tuple(series))


# --- time ---------------------------------------------------------------------------------------


def test_branches_take_the_same_time() -> None:
    seconds = {8: 0.011, 64: 0.023, 512: 0.31}
    found = branch_updates(seconds, 7.0)
    for size, updates in found.items():
        assert updates * seconds[size] <= 7.0 + 1e-6
        assert (updates + 1) * seconds[size] > 7.0
    assert branch_updates({8: 0.1}, 0.3) == {8: 3}  # 0.3 / 0.1 is 2.9999999999999996
    assert branch_updates({8: 5.0}, 1.0) == {8: 1}
    with pytest.raises(InputError, match="seconds per update at 8 must be > 0"):
        branch_updates({8: 0.0}, 1.0)
    with pytest.raises(InputError, match="wall_seconds"):
        branch_updates({8: 0.1}, math.inf)


# --- the ratio of updates -----------------------------------------------------------------------


@pytest.mark.parametrize(("other", "speed"), [(300, 1.0), (200, 1.5), (100, 3.0), (400, 0.5)])
def test_the_ratio_without_noise(other: int, speed: float) -> None:
    a, b = branch(400), branch(other, speed)
    ratio, error = log_ratio_of_updates(a, b)
    assert ratio == pytest.approx(math.log(speed), abs=0.03)
    turned, turned_error = log_ratio_of_updates(b, a)
    assert turned == pytest.approx(-ratio)
    assert max(error, turned_error) < 0.02


def test_the_ratio_is_unbiased_and_its_error_true() -> None:
    rng = np.random.default_rng(5)
    found = [
        log_ratio_of_updates(
            branch(300, spread=0.03, seeds=2, rng=rng),
            branch(200, 1.5, spread=0.03, seeds=2, rng=rng),
            num_resamples=60,
            seed=number,
        )
        for number in range(80)
    ]
    ratios, errors = np.array(found).T
    assert np.mean(ratios) == pytest.approx(math.log(1.5), abs=3 * ratios.std() / math.sqrt(80))
    covered = np.abs(ratios - math.log(1.5)) < 1.96 * errors
    assert 0.88 <= covered.mean() <= 0.99
    assert 0.7 < errors.mean() / ratios.std() < 1.4


def test_blocks_see_noise_that_lasts() -> None:
    rng = np.random.default_rng(7)
    lasting = branch(400, spread=0.05, rng=rng)
    (series,) = np.array(lasting.losses)
    noise = series - loss_after(np.arange(1, 401))
    mixed = loss_after(np.arange(1, 401)) + rng.permutation(noise)
    brief = BranchLosses(batch_size=32, losses=(tuple(mixed.tolist()),))
    errors = [log_ratio_of_updates(one, branch(200, 2.0))[1] for one in (lasting, brief)]
    assert errors[0] > 1.6 * errors[1]


def test_more_seeds_say_more_and_seeds_that_differ_say_less() -> None:
    rng = np.random.default_rng(9)
    two, eight = (
        log_ratio_of_updates(
            branch(300, spread=0.03, seeds=seeds, rng=rng),
            branch(300, spread=0.03, seeds=seeds, rng=rng),
        )[1]
        for seeds in (2, 8)
    )
    assert eight < 0.75 * two
    apart = [branch(300, speed).losses[0] for speed in (0.5, 1.0, 2.0)]
    mixed = BranchLosses(batch_size=8, losses=tuple(apart))
    same = BranchLosses(batch_size=8, losses=(apart[1],) * 3)
    assert log_ratio_of_updates(mixed, same)[1] > 0.2
    paired = log_ratio_of_updates(mixed, mixed)  # seeds differ alike in both
    assert paired[0] == pytest.approx(0.0, abs=1e-9)
    assert paired[1] < 0.02


def test_losses_that_tell_nothing() -> None:
    flat = BranchLosses(batch_size=8, losses=((1.0,) * 50,))
    rising = BranchLosses(batch_size=8, losses=(tuple(np.linspace(1, 2, 50).tolist()),))
    wild = BranchLosses(batch_size=8, losses=((1.0,) * 49 + (math.nan,),))
    for a, b in ((flat, flat), (rising, branch(50)), (wild, branch(50)), (branch(50), flat)):
        assert log_ratio_of_updates(a, b) == (0.0, math.inf)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(1)
    a, b = (branch(100, spread=0.03, rng=rng) for _ in range(2))
    assert log_ratio_of_updates(a, b, seed=1) == log_ratio_of_updates(a, b, seed=1)
    assert log_ratio_of_updates(a, b, seed=1) != log_ratio_of_updates(a, b, seed=2)


# --- at equal time ------------------------------------------------------------------------------


def test_the_difference_at_equal_time() -> None:
    rng = np.random.default_rng(11)
    truth = float(loss_after(400.0) - loss_after(300.0))
    inside = []
    for number in range(80):
        found = compare_at_equal_time(
            branch(300, spread=0.03, seeds=2, rng=rng),
            branch(200, 2.0, spread=0.03, seeds=2, rng=rng),
            num_resamples=60,
            seed=number,
        )
        assert found.low < found.value < found.high
        inside.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(inside) <= 0.99


def test_a_branch_that_diverged_is_worse() -> None:
    lost = BranchLosses(batch_size=8, losses=((1.0,) * 19 + (math.inf,),))
    assert compare_at_equal_time(branch(20), lost).value == math.inf
    assert compare_at_equal_time(lost, branch(20)).high == -math.inf
    both = compare_at_equal_time(lost, lost)
    assert (both.low, both.high) == (-math.inf, math.inf)


def test_branches_that_are_none() -> None:
    with pytest.raises(InputError, match="at least 12 updates"):
        branch(11)
    with pytest.raises(InputError, match="series of the same length"):
        BranchLosses(batch_size=8, losses=((1.0,) * 20, (1.0,) * 21))
    with pytest.raises(InputError, match="must have the same seeds"):
        log_ratio_of_updates(branch(20), branch(20, seeds=2))
