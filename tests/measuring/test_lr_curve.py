"""Reading a range test's curve: laws that every curve keeps, and curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anybatch import InputError
from anybatch.measuring.blow_up import blow_up, noise_of
from anybatch.measuring.lr_curve import CurveReading, read_curve

Array = NDArray[np.float64]
LRS = np.geomspace(1e-8, 1.0, 100)


def sigmoid_drop(centre: float, *, width: float = 0.5, edge: float = 0.5) -> Array:
    """From 2.3 to 0.3, steepest in log lr at `centre`, rising steeply past `edge`."""
    x = np.log10(LRS / centre) / width
    rise = np.clip(LRS / edge, 0, 50) ** 8
    return 0.3 + 2.0 / (1.0 + np.exp(2.0 * x)) + np.where(edge / 3 < LRS, rise, 0.0)


def noisy(curve: Array, sigma: float, seed: int) -> list[float]:
    return list(curve + sigma * np.random.default_rng(seed).standard_normal(len(curve)))


def values(reading: CurveReading) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in reading.estimates.items()}


def names(reading: CurveReading) -> list[str]:
    return [finding.name for finding in reading.findings]


@given(
    scale=st.floats(1e-9, 1e6),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 5),
)
@settings(max_examples=15, deadline=None)
def test_scale_and_offset_of_the_loss_play_no_part(scale: float, shift: float, seed: int) -> None:
    losses = np.array(noisy(sigmoid_drop(3e-3), 0.05, seed))
    before = values(read_curve(LRS.tolist(), losses.tolist()))
    after = values(read_curve(LRS.tolist(), (scale * (losses + shift)).tolist()))
    for name, value in before.items():
        other = after[name]
        assert value is not None
        assert other is not None
        assert math.isclose(value, other, rel_tol=0.05), name


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_another_scale_of_the_lr_moves_the_answer_with_it(factor: float) -> None:
    losses = noisy(sigmoid_drop(3e-3), 0.05, 1)
    before, after = read_curve(LRS.tolist(), losses), read_curve((LRS * factor).tolist(), losses)
    for name, estimate in before.estimates.items():
        assert estimate.value is not None
        assert after.estimates[name].value == pytest.approx(factor * estimate.value, rel=1e-6)


@pytest.mark.parametrize("centre", [1e-5, 1e-4, 6.9e-3, 3e-2])
def test_the_steepest_place_has_no_lag(centre: float) -> None:
    found = read_curve(LRS.tolist(), sigmoid_drop(centre).tolist()).estimates["steepest"]
    assert found.value == pytest.approx(centre, rel=0.25)
    assert found.low < centre < found.high


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_move_it_by_decades(sigma: float, seed: int) -> None:
    """Where others, measured, are off by a factor 3 to 5,000."""
    reading = read_curve(LRS.tolist(), noisy(sigmoid_drop(6.9e-3), sigma, seed))
    steepest = reading.estimates["steepest"].value
    assert steepest is not None
    assert 6.9e-3 / 3 < steepest < 6.9e-3 * 3


def test_repeats_sharpen_the_intervals() -> None:
    curves = [noisy(sigmoid_drop(6.9e-3), 0.3, seed) for seed in range(8)]

    def octaves(reading: CurveReading) -> float:
        starts = reading.estimates["learning_starts"]
        assert starts.value is not None
        return math.log2(starts.high / starts.low)

    assert octaves(read_curve(LRS.tolist(), *curves)) < octaves(read_curve(LRS.tolist(), curves[0]))


def test_spikes_do_not_count() -> None:
    clean = sigmoid_drop(6.9e-3)
    spiked = clean.copy()
    spiked[[3, 4, 20, 55, 70]] += [5.0, 3.0, 8.0, 4.0, 6.0]
    before, after = (
        values(read_curve(LRS.tolist(), clean.tolist())),
        values(read_curve(LRS.tolist(), spiked.tolist())),
    )
    for name in before:
        assert after[name] == pytest.approx(before[name], rel=1.0), name


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_gap_is_named_and_kept_open(missing: float) -> None:
    losses = sigmoid_drop(6.9e-3)
    losses[40:43] = missing
    reading = read_curve(LRS.tolist(), losses.tolist())
    assert names(reading) == ["nan-gap"]
    assert f"3 losses between lr {LRS[40]:.3g} and {LRS[42]:.3g}" in reading.findings[0].sentence
    assert reading.estimates["steepest"].value == pytest.approx(6.9e-3, rel=0.3)


def test_a_non_finite_end_is_the_end() -> None:
    losses = sigmoid_drop(6.9e-3, edge=1e9)
    losses[90:] = math.nan
    reading = read_curve(LRS.tolist(), losses.tolist())
    assert names(reading) == []
    assert reading.estimates["edge"].value == pytest.approx(LRS[90], rel=0.3)


@pytest.mark.parametrize(
    ("losses", "name"),
    [
        (noisy(np.full(100, 2.3), 0.02, 0), "never-learned"),
        ([2.3] * 100, "never-learned"),
        (noisy(sigmoid_drop(1e-3, edge=1e9), 0.02, 0), "never-diverged"),
        ([1.0, 3.0, 50.0, 1e4, 1e9, *[math.inf] * 95], "diverged-at-once"),
        ([2.3, 2.2, 2.1], "too-few-points"),
        (list(np.clip(2 - 0.3 * np.arange(100), -3, None) + 1e-3), "no-three-regions"),
        (list(2.3 + 0.001 * 1.3 ** np.arange(100)), "never-learned"),
    ],
)
def test_what_is_wrong_has_a_name_and_an_advice(losses: list[float], name: str) -> None:
    reading = read_curve(LRS.tolist(), losses)
    assert name in names(reading), reading.findings
    assert all(finding.advice for finding in reading.findings)


def test_dont_know_has_a_reason() -> None:
    reading = read_curve(LRS.tolist(), [2.3] * 100)
    for estimate in reading.estimates.values():
        assert estimate.value is None
        assert "did not fall" in estimate.reason


def test_without_divergence_the_edge_is_a_bound() -> None:
    reading = read_curve(LRS.tolist(), sigmoid_drop(1e-3, edge=1e9).tolist())
    edge = reading.estimates["edge"]
    assert edge.value is None
    assert edge.low == pytest.approx(1.0, rel=1e-6)


def test_a_loss_that_still_falls_has_its_minimum_further_on() -> None:
    reading = read_curve(LRS.tolist(), noisy(sigmoid_drop(0.3, edge=1e9), 0.02, 0))
    minimum = reading.estimates["minimum"]
    assert minimum.value is None
    assert 0.5 < minimum.low <= 1.0
    assert minimum.high == math.inf


def test_the_first_ramp_to_blow_up_decides_the_edge() -> None:
    sooner, later = sigmoid_drop(1e-3, edge=1e9), sigmoid_drop(1e-3, edge=1e9)
    sooner[80:], later[90:] = math.nan, math.nan
    for ramps in ((sooner, later), (later, sooner)):
        reading = read_curve(LRS.tolist(), *(ramp.tolist() for ramp in ramps))
        assert reading.estimates["edge"].value == pytest.approx(LRS[80], rel=0.3)


def test_losses_that_end_without_a_rise_are_a_fault_and_no_blow_up() -> None:
    losses = list(2.3 + 0.02 * np.random.default_rng(0).standard_normal(60)) + [math.nan] * 10
    reading = read_curve(LRS.tolist(), losses)
    assert names(reading) == ["nan-gap"]
    assert f"from lr {LRS[60]:.3g} on no loss is finite" in reading.findings[0].sentence
    assert reading.blow_up_lr == pytest.approx(LRS[60])


def test_one_ramp_of_few_losses_is_too_few() -> None:
    whole = sigmoid_drop(1e-3, edge=1e9).tolist()
    reading = read_curve(LRS.tolist(), whole, whole[:5])
    assert names(reading) == ["too-few-points"]
    assert reading.findings[0].sentence.startswith("5 finite losses")


def test_a_fall_that_the_noise_half_hides_is_called_noisy() -> None:
    found = [
        names(read_curve(LRS.tolist(), noisy(sigmoid_drop(6.9e-3, edge=1e9), 2.5, seed)))
        for seed in range(6)
    ]
    assert sum(name == ["noisy"] for name in found) >= 3, found


def test_intervals_hold_the_truth() -> None:
    """95 % are meant; less than nine in twelve would be seen."""
    held = 0
    for seed in range(12):
        reading = read_curve(LRS.tolist(), noisy(sigmoid_drop(6.9e-3), 0.3, seed))
        steepest = reading.estimates["steepest"]
        held += steepest.low <= 6.9e-3 <= steepest.high
    assert held >= 9


def test_the_fitted_curve_is_the_loss_where_nothing_is_noisy() -> None:
    losses = 5.0 + sigmoid_drop(6.9e-3)
    fitted = read_curve(LRS.tolist(), losses.tolist()).fitted
    quiet = LRS < 0.2
    found = np.interp(np.log(LRS[quiet]), np.log(fitted["lr"]), fitted["loss"])
    assert np.abs(found - losses[quiet]).max() < 0.1


@pytest.mark.parametrize("offset", [-100.0, 0.0, 1e-8])
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_the_stop_rule_works_for_negative_and_tiny_losses(offset: float, scale: float) -> None:
    losses = list(scale * (sigmoid_drop(6.9e-4, edge=0.05) + offset))
    stops = [n for n in range(1, 101) if blow_up(losses[:n]) is not None]
    assert stops
    assert 0.05 < LRS[stops[0] - 1] < 0.3  # not before the rise, and soon after it


def test_a_spike_stops_nothing() -> None:
    losses = [2.0] * 30 + [1.0] * 10 + [1e6] * 4 + [1.0] * 10
    assert all(blow_up(losses[:n]) is None for n in range(len(losses)))


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_noise_is_measured_in_spite_of_a_trend(sigma: float) -> None:
    generator = np.random.default_rng(0)
    trend = np.linspace(0, 5 * sigma, 500)
    assert noise_of(trend + sigma * generator.standard_normal(500)) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize(
    ("lrs", "losses", "rule"),
    [
        ([1.0, 0.5], [1.0, 1.0], "rising"),
        ([0.0, 0.5], [1.0, 1.0], "> 0"),
        ([0.1], [1.0, 1.0], "at most the 1"),
        ([0.1], [], "at least one loss"),
    ],
)
def test_bad_input(lrs: list[float], losses: list[float], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        read_curve(lrs, losses)
