"""Damping: pi by hand, the law that a scale may wander from A to G, traces that say nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anybatch.kfac.damping import damping_by_means, factored_damping, mean_eigenvalue


def covariance(groups: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, 2 * side, side, generator=generator, dtype=torch.float64)
    return rows.mT @ rows / (2 * side)


def damped_product(a: Tensor, g: Tensor, damping: float) -> Tensor:
    damping_a, damping_g = factored_damping(a, g, damping)
    eye_a, eye_g = (torch.eye(x.shape[-1], dtype=x.dtype) for x in (a, g))
    return torch.kron(
        (g + damping_g[:, None, None] * eye_g)[0], (a + damping_a[:, None, None] * eye_a)[0]
    )


def test_pi_by_hand() -> None:
    a = torch.diag(torch.tensor([1.0, 3.0, 5.0]))[None]  # mean 3
    g = torch.diag(torch.tensor([0.5, 1.0]))[None]  # mean 0.75: pi = 2
    damping_a, damping_g = factored_damping(a, g, 0.01)
    assert damping_a.tolist() == pytest.approx([0.2])
    assert damping_g.tolist() == pytest.approx([0.05])


@settings(max_examples=50, deadline=None)
@given(st.floats(-12, 12), st.integers(1, 5), st.integers(1, 5), st.floats(1e-6, 10))
def test_the_damped_product_does_not_see_a_scale_that_goes_from_one_factor_to_the_other(
    exponent: float, side_a: int, side_g: int, damping: float
) -> None:
    a, g, scale = covariance(1, side_a), covariance(1, side_g, seed=1), 10.0**exponent
    before, after = damped_product(a, g, damping), damped_product(scale * a, g / scale, damping)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


def test_every_group_has_a_pi_of_its_own() -> None:
    a, g = covariance(3, 4), covariance(3, 2, seed=1)
    a[1] *= 100.0
    together = factored_damping(a, g, 0.1)
    for group in range(3):
        one = slice(group, group + 1)
        alone = factored_damping(a[one], g[one], 0.1)
        assert [float(x[group]) for x in together] == [float(x) for x in alone]


def test_a_diagonal_counts_as_the_matrix_it_stands_for() -> None:
    a, g = covariance(2, 5), covariance(2, 3, seed=1)
    diagonal = a.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(factored_damping(diagonal, g, 0.1), factored_damping(a, g, 0.1))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("side", ["a", "g", "both"])
def test_pi_is_one_where_a_trace_says_nothing(bad: float, side: str) -> None:
    good, broken = torch.tensor([2.0, 3.0]), torch.tensor([2.0, bad])
    a, g = (broken if side in (which, "both") else good for which in ("a", "g"))
    damping_a, damping_g = damping_by_means(a, g, 0.04)
    assert damping_a[1] == damping_g[1] == pytest.approx(0.2)
    assert damping_a[0] == damping_g[0] == pytest.approx(0.2)  # of equal means


@pytest.mark.parametrize(("mean_a", "mean_g"), [(1e30, 1e-30), (1e-30, 1e30), (1e-38, 1e38)])
def test_means_far_apart_stay_within_float32(mean_a: float, mean_g: float) -> None:
    dampings = damping_by_means(torch.tensor(mean_a), torch.tensor(mean_g), 1e-3)
    expected = math.sqrt(1e-3) * math.sqrt(mean_a / mean_g)
    assert float(dampings[0]) == pytest.approx(expected, rel=1e-5)
    assert float(dampings[0].double() * dampings[1].double()) == pytest.approx(1e-3, rel=1e-5)


def test_the_damping_may_be_a_tensor_and_statistics_of_half_precision_are_averaged_in_float32() -> (
    None
):
    a, g = covariance(1, 3), covariance(1, 2)
    torch.testing.assert_close(
        factored_damping(a, g, torch.tensor(0.1, dtype=torch.float64)), factored_damping(a, g, 0.1)
    )
    large = torch.full((1, 10), 6e4, dtype=torch.float16)  # whose sum is beyond float16
    assert mean_eigenvalue(large).dtype == torch.float32
    assert float(mean_eigenvalue(large)) == pytest.approx(6e4, rel=1e-3)
