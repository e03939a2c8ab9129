"""Where a ramp is stopped: the stated limits to the last loss, on losses made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anybatch.measuring.blow_up import blow_up
from anybatch.measuring.local_regression import best_bandwidth, robust_weights, smoother

FALLEN = [2.0] * 10 + [1.0] * 10  # a drop of 1, without noise: the limit is 1 + 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([2.9] * 10, None),  # less than twice the drop
        ([3.1] * 4, None),  # four are not enough
        ([3.1] * 5, 20),
        ([3.1] * 4 + [2.9] + [3.1] * 4, None),  # nor twice four
        ([3.1, 9.0, 99.0, 2.0, *[3.1] * 5], 24),  # from the last return on
        ([9.0, math.nan, 9.0, math.inf, 9.0], 20),  # what is not finite has risen
        ([math.nan] * 9, None),
        ([math.nan] * 10, 20),
        ([math.inf] * 5 + [1.0] + [math.inf] * 9, None),
    ],
)
def test_five_losses_above_twice_the_drop_or_ten_that_are_not_finite(
    more: list[float], expected: int | None
) -> None:
    assert blow_up(FALLEN + more) == expected


def test_ten_losses_that_are_not_finite_from_the_first_on() -> None:
    assert blow_up([math.nan] * 9) is None
    assert blow_up([math.nan] * 10) == 0


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_rise_must_be_clear_of_the_noise(scale: float) -> None:
    """Of losses about 0 that do not fall: eight standard deviations decide."""
    noise = scale * np.random.default_rng(0).standard_normal(100)
    assert blow_up([*noise, *[scale * 4.0] * 5]) is None
    assert blow_up([*noise, *[scale * 10.0] * 5]) == 100


@pytest.mark.parametrize(("fall", "expected"), [(0.005, None), (0.1, 20)])
def test_a_drop_of_less_than_a_hundredth_is_none_to_compare_with(
    fall: float, expected: int | None
) -> None:
    assert blow_up([2.0] * 10 + [2.0 - fall] * 10 + [2.0 + 3.0 * fall] * 5) == expected
    assert blow_up([2.0] * 10 + [2.0 - fall] * 10 + [4.1] * 5) == 20


# --- the regression that a curve is read with ----------------------------------------------------


def test_the_kernel_is_tricube() -> None:
    x = np.linspace(-1.0, 1.0, 9)
    (row,), _ = smoother(x, np.zeros(1), 1.0, np.ones(9))
    kernel = (1.0 - np.abs(x) ** 3) ** 3
    np.testing.assert_allclose(row, kernel / kernel.sum(), atol=1e-9)


@pytest.mark.parametrize("place", [0.0, 4.3, 19.0])
def test_a_narrow_bandwidth_is_widened_to_seven_points(place: float) -> None:
    (row,), _ = smoother(np.arange(20.0), np.array([place]), 0.1, np.ones(20))
    assert int((np.abs(row) > 1e-9).sum()) == 7


def test_spikes_choose_no_bandwidth_and_end_without_weight() -> None:
    x = np.linspace(0.0, 18.0, 100)
    y = np.tanh(x - 9.0) + 0.02 * np.random.default_rng(1).standard_normal(100)
    spiked, spikes = y.copy(), [4, 33, 71, 90]
    spiked[spikes] += [50.0, -80.0, 30.0, 60.0]
    assert best_bandwidth(x, spiked) == best_bandwidth(x, y)
    weights = robust_weights(x, spiked, best_bandwidth(x, y))
    assert (weights[spikes] == 0.0).all()
    assert np.median(weights) > 0.8
