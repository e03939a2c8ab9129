"""Muon: who takes which parameter, one step by hand, and two optimizers behind one face."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from anybatch.models.table import ModelShape, build_model
from anybatch.optim.muon import MuonWithAdamW, divide_parameters
from anybatch.recipe import MuonSettings
from anybatch.training.build import build_optimizer


class Tied(nn.Module):
    """An embedding whose weight also makes the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def names(model: nn.Module, part: list[nn.Parameter]) -> list[str]:
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return [own[id(parameter)] for parameter in part]


def test_hidden_matrices_are_muons_and_all_else_is_adamws() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 5),
        nn.Linear(5, 2),
    )  # fmt: skip
    muon, adamw = divide_parameters(model)
    assert names(model, muon) == ["3.weight", "4.weight"]
    assert names(model, adamw) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "3.bias", "4.bias", "5.weight", "5.bias",
    ]  # fmt: skip


def test_a_tied_embedding_and_what_is_frozen_are_not_muons() -> None:
    model = Tied()
    assert names(model, divide_parameters(model)[0]) == ["hidden.weight"]
    model.hidden.weight.requires_grad_(False)
    muon, adamw = divide_parameters(model)
    assert (names(model, muon), names(model, adamw)) == ([], ["embedding.weight", "hidden.bias"])


def test_a_layer_that_shares_its_weight_with_an_embedding_is_not_muons() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert names(model, divide_parameters(model)[0]) == ["2.weight"]


def test_in_the_gpt_the_blocks_are_muons_and_embeddings_and_head_are_not() -> None:
    model = build_model("gpt", ModelShape(input_shape=(8,), num_outputs=11, vocabulary_size=11))
    muon, adamw = divide_parameters(model)
    assert len(muon) + len(adamw) == len(list(model.parameters()))
    assert all(parameter.dim() == 2 for parameter in muon)
    assert len(muon) == 24  # 4 blocks: query, key, value, out, two of the perceptron
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            assert id(module.weight) in {id(parameter) for parameter in adamw}


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, which Newton-Schulz approximates."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_a_first_step_is_the_orthogonalized_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6, bias=False), nn.Linear(6, 2, bias=False))
    hidden = model.get_parameter("0.weight")
    before = hidden.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    assert hidden.grad is not None
    direction = orthogonalized(hidden.grad)
    build_optimizer(MuonSettings(lr=0.1, nesterov=False, adamw_lr=0.0), model).step()
    moved = (before - hidden.detach()) / 0.1
    # torch's five iterations bring singular values near 1, between 0.7 and 1.2, in bfloat16
    values = torch.linalg.svdvals(moved)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    cosine = float((moved * direction).sum() / (moved.norm() * direction.norm()))
    assert cosine > 0.97


def test_the_original_adjustment_scales_tall_matrices() -> None:
    def length(rows: int, columns: int, adjust: str) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(columns, rows, bias=False), nn.Linear(rows, 2, bias=False))
        before = model.get_parameter("0.weight").detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        settings = MuonSettings(lr=1.0, adjust_lr=adjust, adamw_lr=0.0)  # type: ignore[arg-type]
        build_optimizer(settings, model).step()
        return float((model.get_parameter("0.weight").detach() - before).norm())

    # k orthonormal rows have the norm sqrt(k); the factor is sqrt(max(1, rows / columns))
    assert length(16, 4, "original") == pytest.approx(2.0 * 2.0, rel=0.3)
    assert length(4, 16, "original") == pytest.approx(2.0, rel=0.3)
    assert length(16, 4, "match_rms_adamw") == pytest.approx(2.0 * 0.2 * 4.0, rel=0.3)


def test_two_optimizers_step_clear_and_are_saved_as_one() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    muon, others = divide_parameters(model)
    both = MuonWithAdamW(torch.optim.Muon(muon, lr=0.1), torch.optim.AdamW(others, lr=0.2))
    assert [group["lr"] for group in both.param_groups] == [0.1, 0.2]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy([p.detach() for p in model.parameters()])
    assert both.step() is None
    after = [p.detach() for p in model.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    both.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(both.state_dict()["optimizers"]) == 2
    both.param_groups[1]["lr"] = 0.5  # as schedules do
    assert both.param_groups[1]["lr"] == 0.5
    with pytest.raises(ValueError, match="argument 2 is"):
        both.load_state_dict({"optimizers": both.state_dict()["optimizers"][:1]})


def test_a_closure_is_evaluated_once_with_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    muon, others = divide_parameters(model)
    both = MuonWithAdamW(torch.optim.Muon(muon, lr=0.1), torch.optim.AdamW(others, lr=0.2))
    calls = []

    def closure() -> float:
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    with torch.no_grad():
        assert both.step(closure) == calls[0]
    assert len(calls) == 1


def test_a_model_without_hidden_matrices_takes_adamw_alone() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(MuonSettings(lr=0.1, adamw_lr=0.25), model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]


def test_a_model_of_nothing_but_hidden_matrices_takes_muon_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    model.get_parameter("1.weight").requires_grad_(False)
    optimizer = build_optimizer(MuonSettings(lr=0.1, adamw_lr=0.25), model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
