"""From parts to pairs to an interval: exact cases, known variances, coverage through the rule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from anybatch.curvature.noise_arithmetic import (
    b_simple_estimate,
    covariance_trace_variance,
    jackknife_estimate,
    looks,
    mean_estimate,
    noise_estimates,
    pair_of_parts,
    running_estimates,
    squared_norm_variance,
)
from anybatch.errors import InputError


def pair(gradients: np.ndarray, sizes: list[int], set_size: float = math.inf):
    """Of single examples' gradients, in parts of these sizes."""
    ends = np.cumsum([0, *sizes])
    means = [gradients[a:b].mean(axis=0) for a, b in itertools.pairwise(ends)]
    count = sum(sizes)
    squares = sum(b / count * float(g @ g) for b, g in zip(sizes, means, strict=True))
    mean = gradients[:count].mean(axis=0)
    return pair_of_parts(
        squares, float(mean @ mean), num_examples=count, num_parts=len(sizes), set_size=set_size
    )


def truth(gradients: np.ndarray) -> tuple[float, float]:
    """|G|^2 and tr Sigma of a whole set, divisor N - 1."""
    mean = gradients.mean(axis=0)
    return float(mean @ mean), float(((gradients - mean) ** 2).sum() / (len(gradients) - 1))


@pytest.mark.parametrize("sizes", [[1, 2], [2, 2], [1, 1, 3], [3, 1, 1]])
def test_pairs_are_unbiased_over_every_order_of_a_set(sizes: list[int]) -> None:
    gradients = np.random.default_rng(0).normal(size=(5, 3)) + 0.5
    pairs = [
        pair(gradients[list(order)], sizes, set_size=5)
        for order in itertools.permutations(range(5))
    ]
    norm, trace = truth(gradients)
    assert np.mean([p.squared_norm for p in pairs]) == pytest.approx(norm, rel=1e-12)
    assert np.mean([p.trace for p in pairs]) == pytest.approx(trace, rel=1e-12)


def test_fresh_examples_need_no_correction() -> None:
    """Every pair of draws with replacement of a set: divisor N, and no 1/N."""
    gradients = np.random.default_rng(1).normal(size=(3, 2)) + 0.5
    draws = [gradients[list(rows)] for rows in itertools.product(range(3), repeat=3)]
    pairs = [pair(drawn, [1, 2]) for drawn in draws]
    norm, trace = truth(gradients)
    assert np.mean([p.squared_norm for p in pairs]) == pytest.approx(norm, rel=1e-12)
    assert np.mean([p.trace for p in pairs]) == pytest.approx(trace * 2 / 3, rel=1e-12)


def test_a_probe_of_the_whole_set_has_no_noise() -> None:
    gradients = np.random.default_rng(2).normal(size=(8, 3))
    found = pair(gradients, [2, 2, 4], set_size=8)
    assert float(found.squared_norm) == pytest.approx(truth(gradients)[0], rel=1e-12)


def test_broken_probes_are_refused() -> None:
    with pytest.raises(InputError, match="parts of a probe must be >= 2"):
        pair_of_parts(1.0, 1.0, num_examples=4, num_parts=1)
    with pytest.raises(InputError, match="must be <= the set's 3"):
        pair_of_parts(1.0, 1.0, num_examples=4, num_parts=2, set_size=3)


# --- Gaussian noise of known covariance ---------------------------------------------------------

VARIANCES = 1.0 / np.arange(1.0, 21.0)  # of the 20 coordinates: tr Sigma = 3.6, d_eff = 8.1


def simulated(
    probes: int, *, examples: int, parts: int, b_simple: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q and S of many probes, and G."""
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=len(VARIANCES))
    gradient *= math.sqrt(VARIANCES.sum() / b_simple) / np.linalg.norm(gradient)
    noise = rng.normal(size=(probes, parts, len(VARIANCES)))
    of_parts = gradient + noise * np.sqrt(VARIANCES * parts / examples)
    squares = (of_parts**2).sum(axis=-1).mean(axis=-1)
    of_mean = (of_parts.mean(axis=1) ** 2).sum(axis=-1)
    found = pair_of_parts(squares, of_mean, num_examples=examples, num_parts=parts)
    return found.squared_norm, found.trace, gradient


@pytest.mark.parametrize(("examples", "parts"), [(32, 2), (64, 4), (256, 8)])
def test_means_and_variances_are_those_of_the_formulas(examples: int, parts: int) -> None:
    norms, traces, gradient = simulated(
        60_000, examples=examples, parts=parts, b_simple=100.0, seed=examples
    )
    square, along = float((VARIANCES**2).sum()), float(gradient @ (VARIANCES * gradient))
    variance = squared_norm_variance(square, along, num_examples=examples, num_parts=parts)
    assert norms.var() == pytest.approx(variance, rel=0.05)
    assert traces.var() == pytest.approx(covariance_trace_variance(square, parts), rel=0.05)
    error = 4.0 / math.sqrt(len(norms))
    assert norms.mean() == pytest.approx(gradient @ gradient, abs=error * norms.std())
    assert traces.mean() == pytest.approx(VARIANCES.sum(), abs=error * traces.std())


@pytest.mark.parametrize("share", [0.64, 2.0])
def test_the_interval_covers_through_the_stopping_rule(share: float) -> None:
    """1,000 measurements of up to 60 probes, each ended by the rule: nominal 95 %."""
    repeats, most = 1000, 60
    norms, traces, _ = simulated(
        repeats * most, examples=64, parts=4, b_simple=64 / share, seed=int(10 * share)
    )
    covered, used = 0, 0
    for number in range(repeats):
        rows = slice(number * most, (number + 1) * most)
        for count in looks(12, most):
            found = b_simple_estimate(norms[rows][:count], traces[rows][:count])
            if found.value is not None and found.high <= 2.5 * found.low:
                break
        covered += found.low <= 64 / share <= found.high
        used += count
    assert 0.925 <= covered / repeats <= 0.975, covered
    assert used < 0.9 * repeats * most, "the rule never stopped early"


def test_the_jackknife_covers_about_as_well() -> None:
    norms, traces, _ = simulated(300 * 25, examples=64, parts=4, b_simple=40.0, seed=5)
    rows = zip(norms.reshape(300, 25), traces.reshape(300, 25), strict=True)
    found = [jackknife_estimate(q, s) for q, s in rows]
    assert 0.88 <= np.mean([e.low <= 40.0 <= e.high for e in found]) <= 0.98


def test_averages_come_first_and_the_division_last() -> None:
    """Clipping each probe's Q at 0, or averaging ratios, is far off; the ratio of means is not."""
    norms, traces, _ = simulated(20_000, examples=16, parts=4, b_simple=100.0, seed=3)
    ours = b_simple_estimate(norms, traces)
    assert ours.value == pytest.approx(100.0, rel=0.1)
    assert traces.mean() / np.maximum(norms, 0.0).mean() < 60.0


# --- intervals ----------------------------------------------------------------------------------


def test_an_unbounded_interval_says_at_least() -> None:
    found = b_simple_estimate([1.0, -0.9, 2.0, -1.5, 0.1], [20.0, 19.0, 21.0, 20.0, 22.0])
    assert found.value is None
    assert (found.low > 5.0, found.high) == (True, math.inf)
    assert str(found).startswith("at least")
    assert found.reason.startswith("signal not resolved")


def test_a_negative_signal_bounds_no_higher_than_none() -> None:
    traces = [20.0, 19.0, 21.0, 20.0]
    negative = b_simple_estimate([-1.0, -1.1, -0.9, -1.0], traces)
    none = b_simple_estimate([0.0, -0.1, 0.1, 0.0], traces)
    assert negative.value is None
    assert 0.0 < negative.low < math.inf
    assert negative.low == pytest.approx(none.low, rel=0.3)


@pytest.mark.parametrize(
    ("norms", "reason"),
    [([1.0, 2.0], "2 probes"), ([math.nan] * 9, "0 probes"), ([0.0] * 9, "every gradient is zero")],
)
def test_what_cannot_be_known_has_a_reason(norms: list[float], reason: str) -> None:
    traces = [0.0] * len(norms)
    for found in (b_simple_estimate(norms, traces), jackknife_estimate(norms, traces)):
        assert found.value is None
        assert found.reason.startswith(reason)


def test_probes_that_are_not_finite_are_left_out() -> None:
    norms, traces, _ = simulated(20, examples=64, parts=4, b_simple=40.0, seed=7)
    with_gaps = [*norms, math.nan, 1.0], [*traces, 1.0, math.inf]
    weights = [64.0] * 22
    assert b_simple_estimate(*with_gaps, weights=weights) == b_simple_estimate(norms, traces)
    assert mean_estimate(with_gaps[0][:21]) == mean_estimate(norms)


def test_longer_probes_weigh_more() -> None:
    pairs = [1.0, 1.1, 0.9, 1.4], [20.0, 19.0, 21.0, 60.0]
    plain, weighted = (b_simple_estimate(*pairs, weights=w) for w in ([1] * 4, [8, 8, 8, 1]))
    assert plain.value == pytest.approx(120 / 4.4)
    assert weighted.value == pytest.approx((8 * 60 + 60) / (8 * 3 + 1.4))


def test_no_noise_at_all_is_a_noise_scale_of_zero() -> None:
    assert str(b_simple_estimate([2.0] * 5, [0.0] * 5)) == "0 examples (0 to 0)"


def test_fieller_does_not_depend_on_the_scale_of_the_loss() -> None:
    norms, traces, _ = simulated(20, examples=64, parts=4, b_simple=40.0, seed=8)
    plain, scaled = (b_simple_estimate(f * norms, f * traces) for f in (1.0, 65536.0**2))
    assert (plain.low, plain.value, plain.high) == pytest.approx(
        (scaled.low, scaled.value, scaled.high)
    )


def test_layers_and_the_preconditioned_trend_come_from_their_columns() -> None:
    norms, traces, _ = simulated(20, examples=64, parts=4, b_simple=40.0, seed=9)
    samples = {
        "probe": np.arange(1.0, 21.0), "examples": [64.0] * 20,
        "squared_gradient_norm": norms, "covariance_trace": traces,
        "squared_gradient_norm/head": 2.0 * norms, "covariance_trace/head": traces,
        "squared_gradient_norm_preconditioned": norms,
        "covariance_trace_preconditioned": 3.0 * traces,
    }  # fmt: skip
    found = noise_estimates(samples)
    total = found["b_simple"].value
    assert found["b_simple/head"].value == pytest.approx(total / 2.0)
    assert found["b_simple_preconditioned"].value == pytest.approx(3.0 * total)
    assert found["b_simple_preconditioned"].reason == "a trend, not a batch size"
    running = running_estimates(samples)
    assert running["probe"] == tuple(range(4, 21))
    assert (running["b_simple"][-1], running["high"][-1]) == (total, found["b_simple"].high)


def test_looks_are_geometric_and_end_at_the_most() -> None:
    assert looks(12, 200) == [12, 17, 24, 34, 48, 68, 96, 136, 192, 200]
    assert looks(4, 4) == [4]
