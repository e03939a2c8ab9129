"""Large products: what oneDNN multiplies is what torch multiplies."""

from __future__ import annotations

import pytest
import torch

from anybatch.kfac import products
from anybatch.kfac.products import add_lower_product, add_product, is_served, mirror, product


@pytest.mark.parametrize(("rows", "columns", "summed"), [(40, 300, 70), (3, 5, 7), (16, 16, 64)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_product_is_that_of_torch(rows: int, columns: int, summed: int, contiguous: bool) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(rows, summed), torch.randn(columns, summed)
    expected = left.double() @ right.double().T
    if not contiguous:
        left, right = left.T.contiguous().T, right.T.contiguous().T
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=contiguous and rows > 8):
        found, total = product(left, right), torch.ones(rows, columns)
        add_product(total, left, right)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4
    assert (total - 1 - expected).abs().max() < 1e-4


def test_double_precision_is_left_to_torch() -> None:
    left = torch.randn(100, 100, dtype=torch.float64)
    assert not is_served(left)
    assert torch.equal(product(left, left), left @ left.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_of_a_symmetric_product_and_its_mirror(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    columns, before = torch.randn(600, 70, dtype=dtype), torch.randn(600, 600, dtype=dtype)
    before = before + before.T
    total = before.clone()
    add_lower_product(total, columns, 2 * columns)
    total += torch.full_like(total, torch.nan).triu(1).nan_to_num(1e9)  # undefined by contract
    mirror(total)
    expected = before.double() + 2 * columns.double() @ columns.double().T
    assert torch.equal(total, total.T)
    assert (total - expected).abs().max() < (1e-3 if dtype == torch.float32 else 1e-11)
    assert products._WHOLE < 600  # several parts
