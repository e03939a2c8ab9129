"""Raw sums as pure functions, against sums written out."""

from __future__ import annotations

import pytest
import torch
from fisher_cases import DOUBLE, assert_same, gram, patches_of, with_one
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anybatch.kfac import statistics
from anybatch.kfac.patch_means import mean_patches
from anybatch.kfac.statistics import (
    accumulation_dtype,
    add_grouped_products,
    add_position_products,
    add_products,
    add_token_counts,
    convolution_rows,
    linear_rows,
    normalized,
)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("side", [1, 7, 600, 1025])
def test_products_add_to_a_running_sum(side: int, with_bias: bool) -> None:
    torch.manual_seed(side)
    rows = torch.randn(9, side, dtype=DOUBLE)
    before = gram(torch.randn(3, side + with_bias, dtype=DOUBLE))
    total = before.clone()
    add_products(total, rows, with_bias=with_bias)
    added = with_one(rows) if with_bias else rows
    assert_same(total, before + gram(added), 1e-12)
    diagonal = before.diagonal().clone()
    add_products(diagonal, rows, with_bias=with_bias)
    assert_same(diagonal, before.diagonal() + gram(added).diagonal(), 1e-12)


def test_half_precision_rows_are_widened_first() -> None:
    rows = torch.ones(5000, 2, dtype=torch.bfloat16)
    total = torch.zeros(2, 2)
    add_products(total, rows)
    assert torch.equal(total, torch.full((2, 2), 5000.0))
    assert accumulation_dtype(torch.float16) == torch.float32
    assert accumulation_dtype(DOUBLE) == DOUBLE
    reduced = linear_rows(torch.ones(1, 5000, 1, dtype=torch.bfloat16), "reduce", average=False)
    assert reduced.item() == 5000.0


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, 4) for _ in range(3))),
    groups=st.integers(1, 3),
    last=st.booleans(),
)
def test_rows_of_convolutions(shape: tuple[int, int, int], groups: int, last: bool) -> None:
    count, height, width = shape
    values = torch.randn(count, 2 * groups, height, width, dtype=DOUBLE)
    gradient = values.contiguous(memory_format=torch.channels_last) if last else values
    rows = convolution_rows(gradient, groups, "expand")
    total = torch.zeros(groups, 2, 2, dtype=DOUBLE)
    add_grouped_products(total, rows)
    expected = torch.einsum(
        "ngchw,ngdhw->gcd", *(values.view(count, groups, 2, height, width),) * 2
    )
    assert_same(total, expected)
    diagonals = torch.zeros(groups, 2, dtype=DOUBLE)
    add_grouped_products(diagonals, rows)
    assert_same(diagonals, expected.diagonal(dim1=1, dim2=2))
    summed = convolution_rows(gradient, groups, "reduce")
    assert_same(summed, values.sum((2, 3)).view(count, groups, 2).transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE])
@pytest.mark.parametrize("last", [True, False])
def test_products_of_positions_in_slices(
    last: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_SLICE_BYTES", 9000)  # some examples, the last slice smaller
    torch.manual_seed(0)
    values = torch.randn(7, 40, 5, 4).to(dtype)
    exact = torch.einsum("nchw,ndhw->cd", values.double(), values.double())
    gradient = values.contiguous(memory_format=torch.channels_last) if last else values
    total = torch.ones(40, 40, dtype=accumulation_dtype(dtype))
    add_position_products(total, gradient)
    tolerance = 1e-12 if dtype == DOUBLE else 1e-4
    assert (total - 1 - exact).abs().max() < tolerance * exact.max()
    assert torch.equal(total, total.T)
    diagonal = torch.ones(40, dtype=total.dtype)
    add_position_products(diagonal, gradient)
    assert (diagonal - 1 - exact.diagonal()).abs().max() < tolerance * exact.max()


@pytest.mark.parametrize("side", [40, 300])
def test_products_of_many_rows_in_float32(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_SLICE_BYTES", 1000)
    torch.manual_seed(0)
    rows, total = torch.randn(1000, side), torch.ones(side, side)
    add_products(total, rows)
    exact = rows.double().T @ rows.double()
    assert (total - 1 - exact).abs().max() < 1e-5 * exact.max()
    assert torch.equal(total, total.T)


def test_channels_last_gradients_are_not_copied() -> None:
    gradient = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    rows = convolution_rows(gradient, 1, "expand")
    assert rows.data_ptr() == gradient.data_ptr()
    assert rows.shape == (1, 18, 4)


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    groups=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
)
def test_mean_patches(
    kernel: int, stride: int, dilation: int, padding: int, groups: int, mode: str
) -> None:
    layer = nn.Conv2d(
        2 * groups, 2 * groups, kernel, stride, padding, dilation, groups, False, mode
    )  # fmt: skip
    inputs = torch.randn(2, 2 * groups, 5, 6, dtype=DOUBLE)
    assert_same(mean_patches(inputs, layer), patches_of(inputs, layer).mean(2))


def test_token_counts() -> None:
    tokens = torch.tensor([[1, 1, 2, 0], [3, 1, 1, 1]])
    for sharing, expected in (
        ("expand", [0.0, 5.0, 1.0, 1.0]),
        ("reduce", [0.0, 0.25 + 0.5625, 0.0625, 0.0625]),
    ):
        total = torch.zeros(4)
        add_token_counts(total, tokens, sharing, padding=0)  # type: ignore[arg-type]
        assert total.tolist() == expected


@given(
    examples=st.integers(1, 1000),
    positions=st.integers(1, 50),
    divisor=st.floats(0.1, 1e4),
    copies=st.integers(1, 5),
)
def test_statistics_do_not_depend_on_how_often_a_batch_is_repeated(
    examples: int, positions: int, divisor: float, copies: int
) -> None:
    total = torch.tensor([3.0], dtype=DOUBLE)
    for role in ("A", "G", "F"):
        once = normalized(
            total, role, examples=examples, rows=examples * positions, divisor=divisor
        )  # type: ignore[arg-type]
        # Repeated: a a^T comes again; gradients of the mean loss are divided by the copies.
        again = total * copies / (1 if role == "A" else copies**2)
        many = normalized(
            again,
            role,  # type: ignore[arg-type]
            examples=copies * examples,
            rows=copies * examples * positions,
            divisor=copies * divisor,
        )
        assert_same(many, once, 1e-12)
