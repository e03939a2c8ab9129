"""Which parameters have a block, of which sizes, and why others have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac.blocks import Coverage, find_blocks
from anybatch.kfac.explain import explain_rows, explain_table
from anybatch.models.gpt import GPT
from anybatch.models.resnet import resnet18
from anybatch.recipe import BatchNormSettings
from anybatch.recipe_preconditioner import KFACSettings
from anybatch.training.normalization import GhostNormalization


def coverage_of(model: nn.Module, **settings: Any) -> Coverage:
    return find_blocks(model, KFACSettings(**settings))


def reasons(coverage: Coverage) -> dict[str, str]:
    return {name: reason for name, _, reason in coverage.uncovered}


def shapes(coverage: Coverage) -> dict[str, tuple[int, ...]]:
    return {factor.name: factor.shape for block in coverage.blocks for factor in block.factors}


def test_sizes_of_every_kind() -> None:
    model = nn.ModuleDict({
        "linear": nn.Linear(5, 4),
        "plain": nn.Linear(5, 4, bias=False),
        "grouped": nn.Conv2d(6, 9, (3, 2), groups=3),
        "sequence": nn.Conv1d(4, 6, 3, bias=False),
        "volume": nn.Conv3d(2, 3, 2),
        "tokens": nn.Embedding(11, 4),
        "batch": nn.BatchNorm2d(6),
        "layer": nn.LayerNorm((3, 4)),
        "group": nn.GroupNorm(2, 6),
        "scale": nn.RMSNorm(5),
    })  # fmt: skip
    coverage = coverage_of(model)
    assert not coverage.uncovered
    assert shapes(coverage) == {
        "linear.A": (1, 6, 6), "linear.G": (1, 4, 4),
        "plain.A": (1, 5, 5), "plain.G": (1, 4, 4),
        "grouped.A": (3, 13, 13), "grouped.G": (3, 3, 3),
        "sequence.A": (1, 12, 12), "sequence.G": (1, 6, 6),
        "volume.A": (1, 17, 17), "volume.G": (1, 3, 3),
        "tokens.A": (1, 11), "tokens.G": (1, 4, 4),
        "batch.F": (6, 2, 2), "layer.F": (12, 2, 2), "group.F": (6, 2, 2), "scale.F": (5, 1, 1),
    }  # fmt: skip


def test_large_factors_and_norms_by_settings() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Embedding(3, 9))
    found = shapes(coverage_of(model, largest_factor=5, norms="diagonal"))
    assert found == {
        "0.A": (1, 6), "0.G": (1, 4, 4), "1.F": (4, 2), "2.A": (1, 3), "2.G": (1, 9),
    }  # fmt: skip
    assert shapes(coverage_of(model, largest_factor=6))["0.A"] == (1, 6, 6)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class Stretched(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2.0 * weight, bias)


class Renamed(nn.Linear):
    """A subclass that computes what Linear does."""


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(2, 2)


def test_what_is_not_covered_says_why() -> None:
    patched = nn.Linear(2, 2)
    patched.forward = lambda inputs: inputs  # type: ignore[method-assign]
    model = nn.ModuleDict({
        "attention": nn.MultiheadAttention(4, 2),
        "recurrent": nn.LSTM(2, 3),
        "cell": nn.GRUCell(2, 3),
        "doubled": Doubled(2, 2),
        "stretched": Stretched(1, 1, 2),
        "patched": patched,
        "renamed": Renamed(2, 2),
        "own": Own(),
        "transposed": nn.ConvTranspose2d(2, 2, 2),
        "sparse": nn.Embedding(3, 2, sparse=True),
        "synchronized": nn.SyncBatchNorm(3),
        "normed": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    })  # fmt: skip
    coverage = coverage_of(model)
    assert [block.name for block in coverage.blocks] == ["renamed", "own.inner"]
    found = reasons(coverage)
    assert found["attention.in_proj_weight"] == found["attention.out_proj.weight"]
    assert found["attention.out_proj.weight"].startswith("MultiheadAttention computes by fused")
    assert found["recurrent.weight_ih_l0"].startswith("LSTM computes by fused")
    assert found["cell.bias_hh"].startswith("GRUCell computes by fused")
    assert found["doubled.weight"] == "Doubled has a forward pass of its own"
    assert found["stretched.bias"] == "Stretched has a forward pass of its own"
    assert found["patched.weight"] == "Linear has a forward pass of its own"
    assert found["own.gain"] == "Own is no layer that K-FAC knows"
    assert found["transposed.weight"] == "ConvTranspose2d is no layer that K-FAC knows"
    assert "sparse" in found["sparse.weight"]
    assert "ranks" in found["synchronized.weight"]
    assert "normed.parametrizations.weight.original0" in found
    assert "computed from other parameters" in found["normed.bias"]


def test_every_parameter_is_found_exactly_once() -> None:
    for model in (resnet18(num_classes=10), GPT(9, 8, tie_head=True), Own()):
        coverage = coverage_of(model)
        found = [id(each) for block in coverage.blocks for each in block.parameters]
        found += [id(each) for _, each, _ in coverage.uncovered]
        assert sorted(found) == sorted(id(each) for each in model.parameters())
        rows = {row.parameter for row in explain_rows(coverage)}
        assert rows == {name for name, _ in model.named_parameters()}


def test_frozen_parameters() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 2) for name in "abc"} | {"n": nn.BatchNorm1d(2)})
    model["a"].weight.requires_grad_(False)
    model["b"].bias.requires_grad_(False)
    model["c"].requires_grad_(False)
    model["n"].weight.requires_grad_(False)
    coverage = coverage_of(model)
    assert shapes(coverage) == {"b.A": (1, 3, 3), "b.G": (1, 2, 2), "n.F": (2, 1, 1)}
    assert coverage.blocks[1].weight is None
    assert coverage.blocks[1].bias is model["n"].bias
    assert reasons(coverage) == {"a.bias": "its weight is frozen"}
    frozen = {name for name, _ in coverage.frozen}
    assert frozen == {"a.weight", "b.bias", "c.weight", "c.bias", "n.weight"}


def test_tied_weights() -> None:
    layers = {name: nn.Linear(3, 3) for name in "abcdef"}
    layers["b"].weight, layers["b"].bias = layers["a"].weight, layers["a"].bias
    layers["d"].weight = layers["c"].weight  # biases of their own
    layers["f"].bias = layers["e"].bias  # weights of their own
    model = nn.ModuleDict(layers)
    coverage = coverage_of(model)
    assert [(block.name, len(block.modules)) for block in coverage.blocks] == [
        ("a", 2), ("c", 2), ("e", 1), ("f", 1),
    ]  # fmt: skip
    assert [block.bias is None for block in coverage.blocks] == [False, True, True, True]
    assert shapes(coverage)["a.A"] == (1, 4, 4)
    assert shapes(coverage)["c.A"] == (1, 3, 3)
    assert reasons(coverage) == {
        "c.bias": "its weight is shared with a layer of another bias",
        "d.bias": "its weight is shared with a layer of another bias",
        "e.bias": "shared with a layer of another weight",
    }


def test_a_weight_that_is_used_in_several_ways_has_no_block() -> None:
    tied = GPT(9, 8, num_layers=1, tie_head=True)
    assert reasons(coverage_of(tied)) == {
        "token_embedding.weight": "shared by layers of several kinds: embedding, linear"
    }
    own = Own()
    own.register_parameter("alias", own.inner.weight)
    assert "shared with model: Own is no layer" in reasons(coverage_of(own))["alias"]


def test_norms_of_the_training_and_wrappers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    GhostNormalization(model, 2, BatchNormSettings())
    assert shapes(coverage_of(model))["1.F"] == (4, 2, 2)
    compiled = torch.compile(model, backend="eager")
    assert shapes(coverage_of(compiled)) == shapes(coverage_of(model))
    assert shapes(coverage_of(nn.Linear(3, 4)))["model.A"] == (1, 4, 4)


def test_a_ghost_norm_normalizes_ghost_by_ghost_without_a_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3))
    normalization = GhostNormalization(model, 2)
    layer = model[1]
    inputs = torch.randn(6, 3, 4, 4)
    normalization.begin(6, counted=True)
    kept = {key: value.clone() for key, value in layer.named_buffers()}
    found = layer.normalized(inputs)
    assert all(torch.equal(value, kept[key]) for key, value in layer.named_buffers())
    assert torch.equal(found, layer(inputs))  # whose scale is 1 and shift 0
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    scale, shift = (each.view(3, 1, 1) for each in (layer.weight, layer.bias))
    torch.testing.assert_close(found * scale + shift, layer(inputs))
    layer.running_mean.normal_()
    layer.eval()
    torch.testing.assert_close(layer.normalized(inputs) * scale + shift, layer(inputs))


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(InputError, match=r"parameter 0.weight must have a size"):
        coverage_of(nn.Sequential(nn.LazyLinear(3)))


def test_explained_sizes_and_costs() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6), nn.PReLU())
    rows = explain_rows(coverage_of(model))
    assert [row.parameter for row in rows] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
    ]
    # A 2 of 3^2, G 2 of 3^2; statistics and inverses in 4 bytes
    assert rows[0].bytes == 2 * 4 * (18 + 18)
    assert rows[0].inversion_multiply_adds == 2 * 13 + 2 * 13
    assert rows[0].preconditioning_multiply_adds == 2 * (3 * 3 * 3 + 3 * 3 * 3)
    assert (rows[2].bytes, rows[2].preconditioning_multiply_adds) == (2 * 4 * 24, 24)
    assert sum(row.bytes for row in rows) == rows[0].bytes + rows[2].bytes
    assert rows[4].reason == "PReLU is no layer that K-FAC knows"
    text = explain_table(coverage_of(model))
    assert [line.split()[0] for line in text.splitlines()] == [
        "parameter", "0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "all",
    ]  # fmt: skip
    assert "A 2 of 3^2, G 2 of 3^2" in text
    double = explain_rows(coverage_of(model.double()))
    assert double[0].bytes == 2 * rows[0].bytes


def test_explained_numbers_have_the_unit_of_their_size() -> None:
    small = explain_table(coverage_of(nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))))
    assert small.splitlines()[0].split()[4:] == ["memory", "invert", "MAC", "apply", "MAC"]
    assert "2.63 KiB" in small  # 2 * 4 bytes * (9^2 + 16^2)
    assert "0.50 KiB" in small  # 2 * 4 bytes * 16 * 2^2
    assert "0.06 k" in small
    with torch.device("meta"):
        large = nn.Sequential(nn.Linear(1023, 1024, bias=False), nn.Linear(8191, 8192))
    table = explain_table(coverage_of(large)).splitlines()
    assert "15.98 MiB" in table[1]
    assert "1.00 GiB" in table[2]  # 2 * 4 bytes * 2 * 8192^2
    assert "549.76 G" in table[2]  # 2 * 8192^3 / 2 to invert
    assert "1.02 GiB" in table[-1]
