"""Clipping by the global norm: one factor for all gradients, and the norm before it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anybatch.optim.clipping import clip_global_norm


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    return parameters


def test_the_norm_goes_over_all_gradients_together() -> None:
    parameters = with_gradients([3.0, 0.0], [0.0, 4.0, 12.0])  # 13 together
    assert clip_global_norm(parameters, max_norm=6.5).item() == pytest.approx(13.0)
    assert parameters[0].grad is not None
    assert parameters[1].grad is not None
    assert parameters[0].grad.tolist() == pytest.approx([1.5, 0.0], rel=1e-6)
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 2.0, 6.0], rel=1e-6)


def test_a_short_gradient_is_left_bit_for_bit() -> None:
    parameters = with_gradients([0.3, -0.4])
    assert clip_global_norm(parameters, max_norm=0.6).item() == pytest.approx(0.5)
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [0.3, -0.4]


def test_a_gradient_of_zero_stays_zero_and_parameters_without_one_do_not_count() -> None:
    parameters = [*with_gradients([0.0, 0.0]), nn.Parameter(torch.ones(3))]
    assert clip_global_norm(parameters, max_norm=1.0).item() == 0.0
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [0.0, 0.0]
    assert parameters[1].grad is None


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    assert math.isnan(clip_global_norm(with_gradients([1.0, math.nan]), max_norm=1.0).item())
    assert math.isinf(clip_global_norm(with_gradients([1.0, math.inf]), max_norm=1.0).item())


NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=3), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_length(
    gradients: list[list[float]], max_norm: float
) -> None:
    parameters = with_gradients(*gradients)
    flat = torch.tensor([value for gradient in gradients for value in gradient])
    norm = clip_global_norm(parameters, max_norm=max_norm).item()
    assert norm == pytest.approx(float(flat.double().norm()), rel=1e-5, abs=1e-9)
    clipped = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert float(clipped.norm()) <= max_norm * (1 + 1e-9)
    factor = min(1.0, max_norm / (norm + 1e-6))
    torch.testing.assert_close(clipped, flat.double() * factor, rtol=1e-6, atol=1e-9)
