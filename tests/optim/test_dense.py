"""What the layer-wise rules stand on: norms, and tensors brought into one form."""

from __future__ import annotations

import pytest
import torch

from anybatch.optim.dense import norms


def test_norms_of_long_tensors_are_as_exact_as_of_short_ones() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(n) * 0.1 for n in (1, 7, 65_535, 65_537, 589_824, 784_000)]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    torch.testing.assert_close(norms(tensors).double(), expected, rtol=1e-6, atol=0)
    constant = torch.full((589_824,), 0.1)  # one sum in 32 bits is wrong by 3e-4 here
    assert norms([constant]).item() == pytest.approx(0.1 * 768, rel=2e-5)


def test_norms_do_not_depend_on_the_layout_in_memory() -> None:
    torch.manual_seed(0)
    filters = torch.randn(64, 128, 3, 3)
    other = filters.to(memory_format=torch.channels_last)
    assert norms([filters]).item() == pytest.approx(norms([other]).item(), rel=1e-6)
    offset = torch.randn(4 * 65_536)[65_536 : 2 * 65_536]
    assert norms([offset]).item() == pytest.approx(offset.clone().norm().item(), rel=1e-5)


def test_norms_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    tensor, found = torch.randn(3, 65_536), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = norms([tensor])
        torch.set_num_threads(2)
        assert torch.equal(norms([tensor]), alone)
    finally:
        torch.set_num_threads(found)


def test_an_empty_tensor_has_norm_0() -> None:
    assert norms([torch.zeros(0, 3), torch.ones(4)]).tolist() == [0.0, 2.0]
