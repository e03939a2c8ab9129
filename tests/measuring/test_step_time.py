"""The curve of seconds against examples: right kind, right numbers, honest intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from anybatch.measuring.memory_line import largest_size_within, slope_of_memory
from anybatch.measuring.step_time import (
    fit_latency,
    fit_step_time,
    fixed_seconds,
    half_rate_size,
    interval_of,
    last_slope,
    medians_by_round,
    resampled_fits,
    seconds_per_update,
)

SIZES = np.array([2.0**power for power in range(11)])
AFFINE = 3e-3 + 5e-5 * SIZES  # B_half = 60
SATURATING = np.maximum(4e-3, 5e-5 * SIZES)  # flat up to 80; half of 20,000/s at 40
ROUNDS = 6


def timed(truth: np.ndarray, seed: int, irregular: float = 0.0) -> np.ndarray:
    """Rounds that drift by 3 %, updates that are late by 5 % or so, sizes off by `irregular`."""
    random = np.random.default_rng(seed)
    late = np.abs(random.normal(size=(len(truth), ROUNDS))) - 0.6745
    off = random.normal(size=(len(truth), 1)) * irregular
    return truth[:, None] * np.exp(off + 0.03 * random.normal(size=(1, ROUNDS)) + 0.05 * late)


@pytest.mark.parametrize(
    ("truth", "kind", "half"), [(AFFINE, "affine", 60.0), (SATURATING, "piecewise", 40.0)]
)
def test_exact_samples_give_the_exact_curve(truth: np.ndarray, kind: str, half: float) -> None:
    fit = fit_step_time(SIZES, truth[:, None])
    assert fit["kind"] == kind
    # Changes of slope are looked for at four places between two sizes: 80 lies beside 80.6.
    assert [seconds_per_update(fit, b) for b in SIZES] == pytest.approx(list(truth), rel=0.01)
    assert half_rate_size(fit) == pytest.approx(half, rel=0.02)
    assert last_slope(fit) == pytest.approx(5e-5, rel=0.01)
    assert seconds_per_update(fit, 4096.0) == pytest.approx(5e-5 * 4096 + (kind == "affine") * 3e-3,
                                                            rel=0.01)  # fmt: skip


def test_the_kind_is_told_from_noise() -> None:
    kinds = [
        [fit_step_time(SIZES, timed(truth, seed))["kind"] for seed in range(20)]
        for truth in (AFFINE, SATURATING)
    ]
    assert kinds[0].count("affine") >= 19
    assert kinds[1].count("piecewise") == 20


@pytest.mark.parametrize("irregular", [0.0, 0.03])
def test_intervals_hold_as_often_as_they_say(irregular: float) -> None:
    truths = [(fixed_seconds, 3e-3), (last_slope, 5e-5), (half_rate_size, 60.0)]
    inside = dict.fromkeys(range(3), 0)
    widths = []
    for seed in range(40):
        table = timed(AFFINE, seed, irregular)
        fit = fit_step_time(SIZES, table)
        others = resampled_fits(SIZES, table, fit, num=200)
        for n, (function, truth) in enumerate(truths):
            found = interval_of(function, fit, others, unit="")
            inside[n] += found.low <= truth <= found.high
            widths += [found.high / found.low] if n == 2 else []
    assert all(count >= 0.85 * 40 for count in inside.values()), inside
    assert np.median(widths) < 1.3  # and they say something


def test_a_late_update_now_and_then_moves_nothing() -> None:
    table = np.repeat(AFFINE[:, None], 9, axis=1)
    table[:, [2, 5]] *= 40.0
    assert half_rate_size(fit_step_time(SIZES, table)) == pytest.approx(60.0)


def test_medians_are_taken_within_a_visit_and_missing_visits_are_nan() -> None:
    sizes, table = medians_by_round([4, 1, 4, 4, 1], [0, 0, 0, 0, 1], [3.0, 1.0, 5.0, 90.0, 2.0])
    assert list(sizes) == [1.0, 4.0]
    assert table[0].tolist() == [1.0, 2.0]
    assert table[1, 0] == 5.0
    assert math.isnan(table[1, 1])
    fit = fit_step_time(sizes, table)
    assert len(resampled_fits(sizes, table, fit, num=5)) == 5


def test_nothing_is_negative_and_the_curve_is_continuous_and_rising() -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        table = np.exp(random.normal(size=(len(SIZES), 3))) * 1e-3  # no curve at all
        fit = fit_step_time(SIZES, table)
        for curve in (fit, *resampled_fits(SIZES, table, fit, num=20)):
            assert fixed_seconds(curve) >= 0.0
            seconds = [t for _, t in curve["knots"]]
            assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(seconds))
            for b, t in curve["knots"]:
                assert seconds_per_update(curve, b) == pytest.approx(t)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_sizes_still_give_a_curve(count: int) -> None:
    fit = fit_step_time(SIZES[:count], AFFINE[:count, None])
    assert fit["kind"] == "affine"
    assert seconds_per_update(fit, 1.0) == pytest.approx(AFFINE[0])
    assert len(fit["knots"]) >= 2


def test_seconds_that_do_not_grow_have_no_b_half_but_a_lower_end() -> None:
    table = np.repeat(np.full((6, 1), 5e-3), 4, axis=1)
    fit = fit_step_time(SIZES[:6], table)
    found = interval_of(half_rate_size, fit, resampled_fits(SIZES[:6], table, fit), unit="examples")
    assert found.value is None
    assert found.reason
    assert 0.0 < found.low < math.inf
    assert found.high == math.inf


def test_the_memory_line_is_that_of_the_largest_sizes() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    in_use = [50e6, 50e6, 50e6, 8e6 * 8, 16e6 * 8, 32e6 * 8]  # flat, then 8 MB an example
    slope = slope_of_memory(sizes, in_use, resolution=1e6)
    assert slope is not None
    assert slope[0] == pytest.approx(8e6, rel=0.1)
    assert slope[1] <= slope[0] <= slope[2]
    assert slope_of_memory(sizes, [5e6] * 6, resolution=1e6) is None
    assert slope_of_memory(sizes, [math.nan] * 6, resolution=1e6) is None
    assert largest_size_within(1e9, (32.0, 256e6), 8e6, multiple=32) == 96


def test_latency_and_bandwidth_come_back() -> None:
    sizes = [1024 * 8**n for n in range(5)]
    samples = [(b, (40e-6 + 2e-10 * b) * (1.02 if n % 2 else 0.98)) for n, b in enumerate(sizes)]
    latency, per_byte = fit_latency(samples)
    assert latency == pytest.approx(40e-6, rel=0.05)
    assert per_byte == pytest.approx(2e-10, rel=0.1)
