"""Updates against batch size: the curve's laws, fits of known and of published curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic.updates_model import (
    UpdatesCurve,
    fit_updates,
    relative_updates,
)

SIZES = [2.0**k for k in range(1, 14)]
SHALLUE_LOG2 = [16.95, 15.7, 14.9, 13.7, 12.7, 11.8, 10.6, 10.0, 9.8, 9.4, 9.85, 9.45, 9.5]
SHALLUE = [2.0**value for value in SHALLUE_LOG2]


def measured(curve: UpdatesCurve, sizes: list[float], scatter: float, replicates: int,
             seed: int = 0) -> tuple[list[float], list[float]]:  # fmt: skip
    rng = np.random.default_rng(seed)
    repeated = np.repeat(sizes, replicates)
    noise = np.exp(scatter * rng.standard_normal(len(repeated)))
    return repeated.tolist(), (curve.updates(repeated) * noise).tolist()


def test_the_hyperbola_and_its_two_ends() -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=300.0)
    sizes = np.array([1.0, 30.0, 300.0, 9000.0])
    updates = curve.updates(sizes)
    excess = (updates / 100.0 - 1.0) * (sizes * updates / curve.fewest_examples - 1.0)
    np.testing.assert_allclose(excess, 1.0, rtol=1e-12)
    for elbow in (0.5, 1.0, 3.0, 6.0):
        relative = relative_updates(np.array([1e-9, 1e15]), 300.0, elbow)
        np.testing.assert_allclose(relative, [300.0 / 1e-9, 1.0], rtol=1e-4)
        at_critical = relative_updates(300.0, 300.0, elbow)
        np.testing.assert_allclose(at_critical, 2.0 ** (1.0 / elbow))


@pytest.mark.parametrize(
    ("fewest", "critical", "elbow"), [(75, 170, 1.0), (900, 30, 2.0), (40, 2000, 3.5)]
)
def test_a_known_curve_is_found_again(fewest: float, critical: float, elbow: float) -> None:
    curve = UpdatesCurve(fewest_updates=fewest, critical_batch_size=critical, elbow=elbow)
    fit = fit_updates(*measured(curve, SIZES, 0.0, 1))
    assert fit.curve.fewest_updates == pytest.approx(fewest, rel=0.01)
    assert fit.curve.critical_batch_size == pytest.approx(critical, rel=0.01)
    assert fit.curve.elbow == pytest.approx(elbow, rel=0.02)
    assert fit.log_spread < 1e-3
    assert fit.fewest_examples.value == pytest.approx(fewest * critical, rel=0.02)


def test_the_published_curve_as_a_hyperbola() -> None:
    fit = fit_updates(SIZES, SHALLUE, elbow=1.0)
    assert fit.curve.fewest_updates == pytest.approx(610, rel=0.01)
    assert fit.curve.fewest_examples == pytest.approx(199_000, rel=0.01)
    assert fit.curve.critical_batch_size == pytest.approx(326, rel=0.01)
    assert fit.log_spread == pytest.approx(0.18, abs=0.005)


def test_the_published_curve_bends_more_sharply() -> None:
    fit = fit_updates(SIZES, SHALLUE)
    assert fit.curve.fewest_updates == pytest.approx(764, rel=0.01)
    assert fit.curve.fewest_examples == pytest.approx(223_000, rel=0.01)
    assert fit.curve.critical_batch_size == pytest.approx(292, rel=0.01)
    assert fit.elbow.value == pytest.approx(3.0, abs=0.3)
    assert fit.elbow.low > 1.0
    assert fit.log_spread == pytest.approx(0.095, abs=0.005)


@pytest.mark.parametrize("replicates", [1, 3])
def test_intervals_hold_the_truth(replicates: int) -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=200.0)
    sizes = [8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0]
    inside = 0
    for seed in range(60):
        given = measured(curve, sizes, 0.15, replicates, seed)
        found = fit_updates(*given, elbow=1.0).critical_batch_size
        inside += found.low <= 200.0 <= found.high
    assert 53 <= inside <= 60  # nominal 57 of 60; 0.3 % of binomial draws are below 53


def test_more_replicates_narrow_the_interval() -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=200.0)

    def width(replicates: int) -> float:
        widths = []
        for seed in range(5):
            given = measured(curve, SIZES, 0.3, replicates, seed)
            found = fit_updates(*given, elbow=1.0).critical_batch_size
            widths.append(math.log(found.high / found.low))
        return float(np.mean(widths))

    assert width(16) < 0.5 * width(1)


def test_one_training_gone_wrong_does_not_carry_the_fit_away() -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=200.0)
    sizes, updates = measured(curve, SIZES, 0.03, 1)
    updates[-1] *= 4.0
    fit = fit_updates(sizes, updates, elbow=1.0)
    assert fit.curve.critical_batch_size == pytest.approx(200.0, rel=0.15)


def test_sizes_on_one_side_only_bound_the_critical_batch_size() -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=2000.0)
    steep = fit_updates(*measured(curve, [1, 2, 4, 8, 16], 0.05, 1))
    assert steep.critical_batch_size.value is None
    assert steep.critical_batch_size.high == math.inf
    assert steep.critical_batch_size.low > 16.0
    assert "still fall" in steep.critical_batch_size.reason
    assert steep.fewest_updates.value is None
    assert steep.fewest_updates.high < 1e5
    assert steep.fewest_examples.low <= 200_000 <= steep.fewest_examples.high
    assert steep.fewest_examples.value is not None
    flat = fit_updates(*measured(curve, [2e5, 4e5, 8e5, 16e5], 0.05, 1))
    assert flat.critical_batch_size.value is None
    assert flat.critical_batch_size.low == 0.0
    assert flat.critical_batch_size.high < 2e5
    assert "hardly rise" in flat.critical_batch_size.reason
    assert flat.fewest_updates.value == pytest.approx(100.0, rel=0.1)
    assert flat.fewest_examples.value is None


def test_two_noisy_sizes_tell_nothing() -> None:
    fit = fit_updates([64, 128], [100.0, 80.0])
    assert fit.critical_batch_size.value is None
    assert fit.elbow.value is None
    assert fit.curve.elbow == 1.0


def test_a_fit_is_the_same_twice_and_in_any_order() -> None:
    curve = UpdatesCurve(fewest_updates=100.0, critical_batch_size=200.0)
    sizes, updates = measured(curve, SIZES, 0.1, 1)
    first = fit_updates(sizes, updates)
    assert fit_updates(sizes, updates) == first
    assert fit_updates(sizes[::-1], updates[::-1]) == first


@pytest.mark.parametrize(
    ("sizes", "updates", "elbow", "words"),
    [
        ([8, 8], [10, 12], None, "at least two sizes"),
        ([8, 16], [10], None, "one for each batch size"),
        ([8, 16], [10, math.inf], None, "leave out trainings that missed the target"),
        ([0, 16], [10, 5], None, "batch_sizes must be > 0"),
        ([8, 16], [10, 5], 0.0, "elbow must be > 0"),
    ],
)
def test_bad_input(sizes: list[float], updates: list[float], elbow: float | None,
                   words: str) -> None:  # fmt: skip
    with pytest.raises(InputError, match=words):
        fit_updates(sizes, updates, elbow=elbow)
