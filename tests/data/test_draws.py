"""Counter-based draws: exact against SplitMix64 in whole numbers, uniform, and independent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.data.draws import (
    integers,
    mixed_key,
    normal,
    permutation,
    symmetric_beta,
    uniform,
)
from anybatch.errors import InputError

MASK = 2**64 - 1
NUM_DRAWS = 100_000
WORDS = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def splitmix64_output(state: int) -> int:
    """Figure 16 of Steele, Lea and Flood (2014), in Python's whole numbers."""
    mixed = state & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def expected_draw(index: int, seed: int, epoch: int, stream: int) -> int:
    key = mixed_key(seed, epoch, stream)
    return splitmix64_output(key + (index + 1) * 0x9E3779B97F4A7C15)


def test_mixed_key_gives_the_published_first_output_of_splitmix64():
    # Seed 0 of the reference implementation (Vigna, splitmix64.c): 0xE220A8397B1DCDAF.
    assert mixed_key(0) == 0xE220A8397B1DCDAF


@settings(max_examples=200, deadline=None)
@given(index=WORDS, seed=WORDS, epoch=st.integers(0, 10**6), stream=st.integers(0, 100))
def test_draws_equal_the_mixing_function_in_whole_numbers(index, seed, epoch, stream):
    draw = expected_draw(index, seed, epoch, stream)
    indices = torch.tensor([index])
    arguments = {"seed": seed, "epoch": epoch, "stream": stream}
    assert uniform(indices, **arguments).item() == (draw >> 11) * 2.0**-53
    single = uniform(indices, dtype=torch.float32, **arguments)
    assert single.dtype == torch.float32
    assert single.item() == (draw >> 40) * 2.0**-24
    assert integers(indices, 1000, **arguments).item() == ((draw >> 32) * 1000) >> 32
    assert integers(indices, 2**31, **arguments).item() == draw >> 33


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.integers(0, 10**9), min_size=1, max_size=20), seed=WORDS)
def test_a_draw_does_not_depend_on_the_other_indices(chosen, seed):
    together = uniform(torch.tensor(chosen), seed=seed, epoch=3, stream=1)
    alone = [uniform(torch.tensor([i]), seed=seed, epoch=3, stream=1).item() for i in chosen]
    assert together.tolist() == alone


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum().item() / counts.numel()
    return float(((counts.double() - expected) ** 2 / expected).sum())


def within_five_sigma(statistic: float, degrees: int) -> bool:
    """Chi-square has mean k and variance 2k; too even is as suspicious as too uneven."""
    return abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62])
def test_draws_are_uniform(seed):
    draws = uniform(torch.arange(NUM_DRAWS), seed=seed, epoch=0, stream=0)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=1000, min=0, max=1)
    assert within_five_sigma(chi_square(counts), 999)


@pytest.mark.parametrize("high", [2, 7, 9, 32])
def test_whole_numbers_are_uniform(high):
    draws = integers(torch.arange(NUM_DRAWS), high, seed=5, epoch=2, stream=3)
    assert within_five_sigma(chi_square(torch.bincount(draws, minlength=high)), high - 1)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("streams", {"seed": 0, "epoch": 0, "stream": 0}, {"seed": 0, "epoch": 0, "stream": 1}),
        ("epochs", {"seed": 0, "epoch": 0, "stream": 0}, {"seed": 0, "epoch": 1, "stream": 0}),
        ("seeds", {"seed": 0, "epoch": 0, "stream": 0}, {"seed": 1, "epoch": 0, "stream": 0}),
        ("swapped", {"seed": 1, "epoch": 2, "stream": 0}, {"seed": 2, "epoch": 1, "stream": 0}),
    ],
)
def test_pairs_of_draws_are_independent(name, first, second):
    indices = torch.arange(NUM_DRAWS)
    cells = integers(indices, 16, **first) * 16 + integers(indices, 16, **second)
    assert within_five_sigma(chi_square(torch.bincount(cells, minlength=256)), 255), name


@pytest.mark.parametrize("distance", [1, 2, 50_000, 2**32])
def test_draws_of_different_indices_are_independent(distance):
    indices = torch.arange(NUM_DRAWS)
    arguments = {"seed": 0, "epoch": 0, "stream": 0}
    cells = integers(indices, 16, **arguments) * 16 + integers(indices + distance, 16, **arguments)
    assert within_five_sigma(chi_square(torch.bincount(cells, minlength=256)), 255)


@settings(max_examples=50, deadline=None)
@given(num_examples=st.integers(0, 500), seed=WORDS, epoch=st.integers(0, 1000))
def test_a_permutation_has_each_example_once_and_is_pure(num_examples, seed, epoch):
    order = permutation(num_examples, seed=seed, epoch=epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(num_examples))
    torch.rand(1)  # the generators' state has no part in it
    assert torch.equal(order, permutation(num_examples, seed=seed, epoch=epoch))


def test_permutations_differ_between_epochs_and_seeds_and_reach_all_orders():
    first = permutation(1000, seed=0, epoch=0)
    assert not torch.equal(first, permutation(1000, seed=0, epoch=1))
    assert not torch.equal(first, permutation(1000, seed=1, epoch=0))
    orders = [tuple(permutation(4, seed=s, epoch=0).tolist()) for s in range(4800)]
    counts = torch.tensor([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert within_five_sigma(chi_square(counts), 23)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    permutation(100, seed=0, epoch=0)
    uniform(torch.arange(5), seed=0, epoch=0, stream=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation(-1, seed=0, epoch=0), "num_examples must be >= 0, got -1"),
        (
            lambda: integers(torch.arange(2), 0, seed=0, epoch=0, stream=0),
            "high must lie in [1, 2147483648], got 0",
        ),
        (
            lambda: uniform(torch.arange(2.0), seed=0, epoch=0, stream=0),
            "indices must be int64, got torch.float32",
        ),
        (
            lambda: uniform(torch.arange(2), seed=0, epoch=0, stream=0, dtype=torch.float16),
            "dtype must be torch.float64 or torch.float32, got torch.float16",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


# --- other distributions --------------------------------------------------------------------------


def test_normal_draws_are_the_quantiles_of_whole_numbers():
    indices = torch.arange(NUM_DRAWS)
    values = normal(indices, seed=3, epoch=1, stream=2)
    places = integers(indices, 1 << 16, seed=3, epoch=1, stream=2)
    probability = 0.5 * (1.0 + torch.erf(values.double() / math.sqrt(2.0)))
    torch.testing.assert_close(probability, (places + 0.5).double() / (1 << 16), rtol=0, atol=1e-7)
    assert values.dtype == torch.float32
    assert float(values.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(values.var()) == pytest.approx(1.0, abs=0.02)
    assert float(values.pow(4).mean()) == pytest.approx(3.0, abs=0.1)
    assert torch.equal(values[7:9], normal(indices[7:9], seed=3, epoch=1, stream=2))


def beta_distribution(alpha: float, values: torch.Tensor) -> torch.Tensor:
    """P(Beta <= value) for the alphas that have it in closed form."""
    if alpha == 0.5:
        return 2 / math.pi * values.sqrt().asin()
    return {
        1.0: lambda: values,
        2.0: lambda: values**2 * (3 - 2 * values),
        3.0: lambda: values**3 * (10 - 15 * values + 6 * values**2),
    }[alpha]()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_beta_draws_invert_the_distribution(alpha):
    indices = torch.arange(NUM_DRAWS)
    values = symmetric_beta(indices, alpha, seed=1, epoch=0, stream=4)
    places = uniform(indices, seed=1, epoch=0, stream=4)
    error = (beta_distribution(alpha, values) - places).abs()
    assert float(error.max()) < 2e-5  # the outermost interval; elsewhere far less
    assert float(error.quantile(0.99)) < 1e-6
    assert torch.equal(values[:2], symmetric_beta(indices[:2], alpha, seed=1, epoch=0, stream=4))


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.2, 0.4, 1.5, 10.0, 1000.0])
def test_beta_draws_have_the_moments_of_beta(alpha):
    values = symmetric_beta(torch.arange(NUM_DRAWS), alpha, seed=0, epoch=0, stream=0)
    assert 0.0 <= float(values.min()) <= float(values.max()) <= 1.0
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.02)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_beta_needs_a_positive_parameter(alpha):
    with pytest.raises(InputError, match="alpha must be > 0"):
        symmetric_beta(torch.arange(2), alpha, seed=0, epoch=0, stream=0)
