"""The largest eigenvalue by Lanczos, on matrices whose eigenvalues are known."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anybatch.curvature.lanczos import lanczos


def matrix_of(eigenvalues: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


def start_of(size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=12), st.integers(0, 99))
def test_it_ends_with_the_largest_eigenvalue(eigenvalues: list[float], seed: int) -> None:
    matrix = matrix_of(eigenvalues, seed)
    *_, last = lanczos(lambda v: matrix @ v, start_of(len(eigenvalues), seed + 1))
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    assert last.is_exhausted
    scale = max(1.0, *map(abs, eigenvalues))
    assert last.eigenvalue == pytest.approx(largest, abs=1e-8 * scale)


def test_the_bounds_hold_on_the_way_and_grow_no_worse() -> None:
    matrix = matrix_of([100.0 * 0.9**k for k in range(60)])
    values = list(itertools.islice(lanczos(lambda v: matrix @ v, start_of(60)), 40))
    eigenvalues = [ritz.eigenvalue for ritz in values]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(eigenvalues))
    assert all(ritz.eigenvalue <= 100.0 + 1e-9 for ritz in values)
    everything = torch.linalg.eigvalsh(matrix)
    for ritz in values:  # an eigenvalue lies within the residual
        assert float((everything - ritz.eigenvalue).abs().min()) <= ritz.residual
    assert values[-1].eigenvalue == pytest.approx(100.0, rel=1e-12)
    assert values[-1].residual < 1e-3 * values[5].residual


def test_no_direction_comes_twice() -> None:
    """With one eigenvalue far above the others, plain Lanczos would lose orthogonality."""
    matrix = matrix_of([1e6, *[float(k) for k in range(50)]])
    directions: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        directions.append(vector)
        return matrix @ vector

    *_, last = lanczos(product, start_of(51))
    basis = torch.stack(directions)
    overlaps = basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)
    assert float(overlaps.abs().max()) < 1e-12
    assert len(basis) <= 51
    assert last.eigenvalue == pytest.approx(1e6, rel=1e-13)


@pytest.mark.parametrize("eigenvalues", [[-3.0, -1.0, -2.0], [0.0, 0.0], [2.0, 2.0, 2.0]])
def test_negative_zero_and_equal_eigenvalues(eigenvalues: list[float]) -> None:
    matrix = matrix_of(eigenvalues)
    *_, last = lanczos(lambda v: matrix @ v, start_of(len(eigenvalues)))
    assert last.eigenvalue == pytest.approx(max(eigenvalues), abs=1e-12)


def test_what_is_not_finite_ends_it() -> None:
    (only,) = lanczos(lambda v: v * float("nan"), start_of(4))
    assert only.eigenvalue != only.eigenvalue
    assert only.residual == float("inf")


def test_float32_is_as_good_as_its_rounding() -> None:
    matrix = matrix_of([50.0, *[0.1 * k for k in range(30)]]).float()
    values = list(itertools.islice(lanczos(lambda v: matrix @ v, start_of(31).float()), 12))
    assert values[-1].eigenvalue == pytest.approx(50.0, rel=1e-5)
    assert values[-1].residual < 1e-3
