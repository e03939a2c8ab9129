"""Draws of the run's average noise scale from stored probes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from planning_cases import noise_scale, throughput

from anybatch.errors import InputError
from anybatch.planning.arithmetic.noise_draws import draw_noise_scale, draw_run_average

RUN = np.full(2000, 1000.0)


def test_draws_lie_about_the_ratio_of_means_as_wide_as_theory_says() -> None:
    measured = noise_scale(signal=1.0, trace=600.0, scatter=0.5, probes=100)
    drawn = draw_noise_scale(measured, 4000, np.random.default_rng(0))
    estimate = measured.estimates["b_simple"].value
    assert estimate is not None
    assert float(np.median(drawn.values)) == pytest.approx(estimate, rel=0.01)
    assert float(np.log(drawn.values).std()) == pytest.approx(0.5 / 10.0, rel=0.2)
    assert drawn.share_unresolved == 0.0


def test_means_come_first_so_negative_probes_do_no_harm() -> None:
    measured = noise_scale(signal=1.0, trace=600.0, scatter=3.0, probes=2000)
    assert min(measured.samples["squared_gradient_norm"]) < 0.0
    drawn = draw_noise_scale(measured, 2000, np.random.default_rng(0))
    assert float(np.median(drawn.values)) == pytest.approx(600.0, rel=0.15)


def test_a_signal_lost_in_noise_is_a_large_noise_scale_not_a_small_or_infinite_one() -> None:
    measured = noise_scale(signal=-0.5, trace=600.0, scatter=1.0, probes=25)
    drawn = draw_noise_scale(measured, 500, np.random.default_rng(0))
    assert drawn.share_unresolved > 0.9
    assert np.isfinite(drawn.values).all()
    # A quarter of the standard error, 1 / sqrt(25), is the weakest signal: 600 / 0.05.
    assert float(np.median(drawn.values)) == pytest.approx(600.0 / 0.05, rel=0.3)


def test_a_full_batch_has_no_noise() -> None:
    drawn = draw_noise_scale(noise_scale(trace=0.0), 50, np.random.default_rng(0))
    assert (drawn.values == 1e-3).all()


def test_few_probes_scatter_as_much_as_they_should() -> None:
    widths = []
    for seed in range(200):
        measured = noise_scale(scatter=0.05, probes=4, seed=seed)
        drawn = draw_noise_scale(measured, 200, np.random.default_rng(seed))
        widths.append(np.log(drawn.values).var())
    truth = 0.05**2 / 4 + 0.05**2 / 4  # signal and trace, both of relative scatter 0.05
    assert float(np.mean(widths)) == pytest.approx(truth, rel=0.15)


def test_between_measurements_the_run_follows_a_power_law() -> None:
    law = [(100, 200.0), (1000, 400.0)]
    measured = [noise_scale(trace=b, scatter=0.0, after_updates=u, probes=4000) for u, b in law]
    drawn = draw_run_average(measured, RUN, np.random.default_rng(0)).values
    u = np.arange(1, 1001)
    truth = np.where(u < 100, 200.0, 200.0 * (u / 100.0) ** math.log10(2.0)).mean()
    np.testing.assert_allclose(drawn, truth, rtol=0.01)


def test_behind_the_last_measurement_it_grows_between_not_and_as_before() -> None:
    measured = [
        noise_scale(trace=b, scatter=0.0, after_updates=u, probes=4000)
        for u, b in ((10, 100.0), (100, 200.0))
    ]
    drawn = draw_run_average(measured, np.full(2000, 10_000.0), np.random.default_rng(0)).values
    u = np.arange(100, 10_001)
    highest = (200.0 * (u / 100.0) ** math.log10(2.0)).mean()
    assert 195.0 < drawn.min() < 205.0
    assert drawn.max() == pytest.approx(highest, rel=0.02)
    # The early measurement hardly counts: what lies behind the last is nearly the whole run.
    late = draw_run_average(measured[1:], np.full(2000, 100.0), np.random.default_rng(0)).values
    assert float(np.median(late)) == pytest.approx(200.0, rel=0.02)


def test_a_falling_noise_scale_is_not_carried_on_downwards() -> None:
    measured = [
        noise_scale(trace=b, scatter=0.0, after_updates=u, probes=4000)
        for u, b in ((10, 400.0), (100, 200.0))
    ]
    drawn = draw_run_average(measured, np.full(500, 10_000.0), np.random.default_rng(0)).values
    assert float(np.median(drawn)) == pytest.approx(200.0, rel=0.03)


def test_order_of_measurements_and_unreachable_targets() -> None:
    pair = [noise_scale(after_updates=10), noise_scale(trace=900.0, after_updates=100, seed=1)]
    lengths = np.where(np.arange(2000) % 2, np.inf, 1000.0)
    forward = draw_run_average(pair, lengths, np.random.default_rng(0)).values
    backward = draw_run_average(pair[::-1], lengths, np.random.default_rng(0)).values
    np.testing.assert_array_equal(forward, backward)
    assert np.isfinite(forward).all()
    never = draw_run_average(pair, np.full(50, np.inf), np.random.default_rng(0)).values
    assert np.isfinite(never).all()


def test_bad_input() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="kind noise-scale, got throughput"):
        draw_noise_scale(throughput(), 10, rng)
    with pytest.raises(InputError, match="at least two finite probes, got 1"):
        draw_noise_scale(noise_scale(probes=1), 10, rng)
    lost = noise_scale(probes=3)
    samples = dict(lost.samples) | {"covariance_trace": (1.0, math.nan, math.inf)}
    with pytest.raises(InputError, match="at least two finite probes, got 1"):
        draw_noise_scale(dataclasses.replace(lost, samples=samples), 10, rng)
    with pytest.raises(InputError, match="at least one"):
        draw_run_average([], RUN, rng)
