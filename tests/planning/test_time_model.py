"""Seconds per update: the measured curve, its draws, accumulation, loading and ranks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from planning_cases import ALL_REDUCE, throughput

from anybatch.errors import InputError
from anybatch.planning.arithmetic.time_model import AllReduce, TimeModel


def test_the_measured_line_and_its_half_batch_size() -> None:
    model = TimeModel.from_measurement(throughput(fixed=0.01, per_example=1e-4))
    sizes = np.array([1, 4, 100, 256, 1000])
    np.testing.assert_allclose(model.seconds_per_update(sizes), 0.01 + 1e-4 * sizes)
    assert float(model.seconds_per_update(100)) == pytest.approx(0.02)
    assert model.half_batch_size == pytest.approx(100.0)


def test_a_curve_that_saturates_is_followed_from_knot_to_knot() -> None:
    fit = {"kind": "piecewise", "knots": [[1, 0.02], [100, 0.02], [200, 0.04]]}
    model = TimeModel.from_measurement(throughput(fit=fit))
    np.testing.assert_allclose(
        model.seconds_per_update([1, 50, 150, 400]), [0.02, 0.02, 0.03, 0.08]
    )


def test_nothing_extrapolated_is_negative_or_falls() -> None:
    fit = {"kind": "affine", "knots": [[100, 0.01], [200, 0.03]]}  # 0 seconds at 50 examples
    model = TimeModel.from_measurement(throughput(fit=fit, sizes=(100, 200)))
    np.testing.assert_allclose(model.seconds_per_update([1, 50]), [1e-4, 5e-3])
    fit = {"kind": "affine", "knots": [[100, 0.03], [200, 0.02]]}
    model = TimeModel.from_measurement(throughput(fit=fit, sizes=(100, 200)))
    np.testing.assert_allclose(model.seconds_per_update([200, 1000]), [0.02, 0.02 * 2.0])


def test_draws_scatter_about_the_measured_line_as_the_timings_do() -> None:
    def spread(scatter: float, rounds: int) -> float:
        model = TimeModel.from_measurement(throughput(scatter=scatter, rounds=rounds))
        drawn = model.draws(500, np.random.default_rng(1)).seconds_per_update([16.0])[:, 0]
        assert float(np.median(drawn)) == pytest.approx(0.0116, rel=0.1)
        return float(np.log(drawn).std())

    assert spread(0.0, 9) == pytest.approx(0.0, abs=1e-9)
    assert 1.5 * spread(0.02, 9) < spread(0.1, 9)
    assert spread(0.1, 100) < 0.5 * spread(0.1, 9)
    assert 0.005 < spread(0.1, 9) < 0.1


def test_a_slow_round_moves_all_sizes_of_a_draw_together() -> None:
    measured = throughput(rounds=8)
    rounds = np.array(measured.samples["round"])
    slow = np.where(rounds >= 4, 2.0, 1.0) * np.array(measured.samples["update_seconds"])
    samples = dict(measured.samples) | {"update_seconds": tuple(slow.tolist())}
    model = TimeModel.from_measurement(dataclasses.replace(measured, samples=samples))
    drawn = np.log(model.draws(300, np.random.default_rng(0)).seconds_per_update([1.0, 256.0]))
    assert np.corrcoef(drawn.T)[0, 1] > 0.99


def test_sizes_that_only_some_rounds_timed() -> None:
    measured = throughput(scatter=0.05)
    rounds, sizes = (np.array(measured.samples[name]) for name in ("round", "batch_size"))
    kept = (sizes < 100) | (rounds < 1)
    samples = {n: tuple(np.array(c)[kept].tolist()) for n, c in measured.samples.items()}
    model = TimeModel.from_measurement(dataclasses.replace(measured, samples=samples))
    drawn = model.draws(300, np.random.default_rng(0)).seconds_per_update([1.0, 256.0])
    assert np.isfinite(drawn).all()
    assert (drawn > 0.0).all()


def test_one_round_draws_no_scatter() -> None:
    model = TimeModel.from_measurement(throughput(rounds=1, scatter=0.1))
    drawn = model.draws(5, np.random.default_rng(0)).seconds_per_update([10.0])
    assert np.ptp(drawn) == 0.0


def test_what_does_not_fit_goes_in_passes_with_one_optimizer_step() -> None:
    model = TimeModel.from_measurement(throughput(fixed=0.01, per_example=1e-4, largest=64))
    passes = 3 * (0.01 + 64e-4 - 0.002) + (0.01 + 8e-4)  # 64 + 64 + 64 + 8
    assert float(model.seconds_per_update(200)) == pytest.approx(passes)
    assert float(model.seconds_per_update(64)) == pytest.approx(0.01 + 64e-4)
    whole = 0.01 + 64e-4 + (0.01 + 64e-4 - 0.002)
    assert float(model.seconds_per_update(128)) == pytest.approx(whole)


def test_loading_is_added_or_overlapped() -> None:
    added = TimeModel.from_measurement(throughput(loading=1e-3, num_workers=0))
    beside = TimeModel.from_measurement(throughput(loading=1e-3, num_workers=2))
    assert float(added.seconds_per_update(100)) == pytest.approx(0.02 + 0.1)
    assert float(beside.seconds_per_update(100)) == pytest.approx(0.1)
    assert float(beside.seconds_per_update(1)) == pytest.approx(0.0101)


def test_ranks_share_a_batch_and_sum_the_gradient_in_a_ring() -> None:
    model = TimeModel.from_measurement(throughput(all_reduce=ALL_REDUCE))
    for ranks in (2, 4):
        ring = 1e-3 + 1e-9 * 4e6 * 2 * (ranks - 1) / ranks
        here = float(model.seconds_per_update(101, ranks=ranks))
        assert here == pytest.approx(0.01 + 1e-4 * math.ceil(101 / ranks) + ring)
    assert float(model.seconds_per_update(101)) == pytest.approx(0.01 + 101e-4)
    assert AllReduce(latency_seconds=1.0, seconds_per_byte=1.0, num_bytes=8.0).seconds(1) == 0.0


def test_on_the_ranks_that_were_timed_the_timings_hold_their_own_sum() -> None:
    model = TimeModel.from_measurement(throughput(all_reduce=ALL_REDUCE, world_size=4))
    timed = 0.01 + 1e-4 * 25
    assert float(model.seconds_per_update(100, ranks=4)) == pytest.approx(timed)
    # 1e-9 a byte on four ranks is a link of 1e-9 / 1.5, of which two ranks use one share.
    four, two = 1e-3 + 4e-3, 1e-3 + 4e-3 / 1.5
    on_two = 0.01 + 1e-4 * 50 - four + two
    assert float(model.seconds_per_update(100, ranks=2)) == pytest.approx(on_two)
    assert float(model.seconds_per_update(100)) == pytest.approx(0.01 + 1e-2 - four)
    short = TimeModel.from_measurement(throughput(fixed=0.004, all_reduce=ALL_REDUCE, world_size=4))
    assert float(short.seconds_per_update(1)) == pytest.approx(0.5 * 0.0041)
    alone = TimeModel.from_measurement(throughput(world_size=4))
    assert float(alone.seconds_per_update(100, ranks=4)) == pytest.approx(timed)
    with pytest.raises(InputError, match="ranks need a measured all-reduce, got 1"):
        alone.seconds_per_update(100)


def test_passes_on_ranks_sum_the_gradient_once() -> None:
    model = TimeModel.from_measurement(
        throughput(fixed=0.02, all_reduce=ALL_REDUCE, world_size=2, largest=64)
    )
    ring = 1e-3 + 4e-3
    one_pass = 0.02 + 64e-4
    expected = one_pass + (one_pass - 0.002 - ring)
    assert float(model.seconds_per_update(256, ranks=2)) == pytest.approx(expected)


def test_a_micro_batch_of_the_recipe_is_a_limit_too() -> None:
    for largest in (None, 1000):
        model = TimeModel.from_measurement(throughput(largest=largest, micro_batch_size=32))
        assert model.best.largest_micro_batch == 32
    tight = TimeModel.from_measurement(throughput(largest=16, micro_batch_size=32))
    assert tight.best.largest_micro_batch == 16
    assert TimeModel.from_measurement(throughput()).best.largest_micro_batch is None


def test_bad_input() -> None:
    model = TimeModel.from_measurement(throughput())
    with pytest.raises(InputError, match="ranks need a measured all-reduce, got 2"):
        model.seconds_per_update(64, ranks=2)
    with pytest.raises(InputError, match="ranks must be >= 1"):
        model.seconds_per_update(64, ranks=0)
    with pytest.raises(InputError, match="batch_sizes must be >= 1"):
        model.seconds_per_update([0, 64])
    with pytest.raises(InputError, match="kind throughput, got lr-range"):
        TimeModel.from_measurement(dataclasses.replace(throughput(), kind="lr-range"))
    for knots in ([[1, 0.1]], [[2, 0.1], [1, 0.2]], [[1, 0.0], [2, 0.1]]):
        with pytest.raises(InputError, match="throughput must be two knots or more"):
            TimeModel.from_measurement(throughput(fit={"kind": "affine", "knots": knots}))
