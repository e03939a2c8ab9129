"""Which parameters count as weights, biases and norms, and the groups that optimizers get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.models.gpt import GPT
from anybatch.models.resnet import resnet18
from anybatch.optim.parameter_kinds import divide_by_kind
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    LAMBSettings,
    LARSSettings,
    MuonSettings,
    OptimizerSettings,
    ParameterKinds,
    RMSpropWarmupSettings,
    SGDSettings,
    SGDWSettings,
)
from anybatch.training.build import build_optimizer
from anybatch.training.normalization import GhostNormalization

NOBODY_ELSE = ParameterKinds(biases=False, norms=False)


def kinds_by_name(model: nn.Module) -> dict[str, str]:
    divided = divide_by_kind(model)
    kinds = zip(("weight", "bias", "norm"), divided, strict=True)
    of = {id(parameter): kind for kind, members in kinds for parameter in members}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))
        self.bias = nn.Parameter(torch.zeros(4))
        self.mixing = nn.Parameter(torch.ones(4, 4))
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(4), nn.LayerNorm((4, 4)),
        nn.GroupNorm(2, 4), nn.RMSNorm((4, 4)),
    ],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_all_parameters_of_torchs_norms_are_norms(norm: nn.Module) -> None:
    found = kinds_by_name(nn.Sequential(norm))
    assert found
    assert set(found.values()) == {"norm"}


def test_layers_of_torch() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "filters": nn.Conv2d(4, 4, 3),
            "embedding": nn.Embedding(7, 4),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "recurrent": nn.LSTM(4, 4),
            "bilinear": nn.Bilinear(4, 4, 2),
            "activation": nn.PReLU(4),
        }
    )
    found = kinds_by_name(model)
    weights = {name for name, kind in found.items() if kind == "weight"}
    assert weights == {
        "linear.weight", "filters.weight", "embedding.weight", "attention.in_proj_weight",
        "attention.out_proj.weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0",
        "bilinear.weight",
    }  # fmt: skip
    assert {name for name, kind in found.items() if kind == "norm"} == {"activation.weight"}
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_layers_of_ones_own() -> None:
    found = kinds_by_name(nn.Sequential(OwnNorm()))
    assert found == {
        "0.gamma": "norm", "0.bias": "bias", "0.mixing": "weight", "0.temperature": "norm",
    }  # fmt: skip


def test_our_batch_norm_under_ghosts_is_found_without_being_imported() -> None:
    model = resnet18(width=0.0625)
    before = kinds_by_name(model)
    GhostNormalization(model, ghost_batch_size=4)
    assert kinds_by_name(model) == before
    counts = {kind: list(before.values()).count(kind) for kind in ("weight", "bias", "norm")}
    assert counts == {"weight": 21, "bias": 1, "norm": 40}


def test_tied_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), nn.Linear(7, 4))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    divided = divide_by_kind(model)
    assert [len(kind) for kind in divided] == [1, 2, 0]
    assert divided.weights[0] is model[0].weight
    gpt = GPT(11, 8, embedding_size=16)
    assert sum(map(len, divide_by_kind(gpt))) == len(list(gpt.parameters()))


# --- groups ----------------------------------------------------------------------------------

RULES: dict[str, OptimizerSettings] = {
    "sgd": SGDSettings(lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgdw": SGDWSettings(lr=0.1, weight_decay=0.1),
    "adam": AdamSettings(lr=0.1, weight_decay=0.1),
    "adamw": AdamWSettings(lr=0.1, weight_decay=0.1),
    "adamw decoupled": AdamWSettings(lr=0.1, weight_decay=0.1, decay="decoupled"),
    "muon": MuonSettings(lr=0.1, weight_decay=0.1, adamw_lr=0.1),
    "lars": LARSSettings(lr=0.1, weight_decay=0.1, adapted=ParameterKinds()),
    "lamb": LAMBSettings(lr=0.1, weight_decay=0.1, adapted=ParameterKinds()),
    "rmsprop-warmup": RMSpropWarmupSettings(lr=0.1, weight_decay=0.1),
}


def new_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize("name", RULES)
def test_weight_decay_spares_the_kinds_that_the_recipe_names(name: str) -> None:
    model = new_model()
    decayed = ParameterKinds(biases=False, norms=True)
    optimizer = build_optimizer(RULES[name], model, decayed=decayed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    spared = {n for n, p in model.named_parameters() if bool((p == 1.0).all())}
    assert spared == {"0.bias", "2.bias"}


@pytest.mark.parametrize(
    "name", [name for name in RULES if name != "muon"]
)  # which is two optimizers
def test_one_group_in_the_models_order_where_nothing_differs(name: str) -> None:
    model = new_model()
    optimizer = build_optimizer(RULES[name], model, decayed=ParameterKinds())
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert build_optimizer(RULES[name], model).param_groups[0].keys() == group.keys()


def test_without_weight_decay_nobody_is_spared_it() -> None:
    optimizer = build_optimizer(SGDSettings(lr=0.1), new_model(), decayed=NOBODY_ELSE)
    assert len(optimizer.param_groups) == 1


def test_what_is_not_adapted_stands_in_a_group_of_its_own() -> None:
    def groups(settings: OptimizerSettings, decayed: ParameterKinds) -> list[Any]:
        optimizer = build_optimizer(settings, new_model(), decayed=decayed)
        return [(len(g["params"]), g["weight_decay"], g["adapted"]) for g in optimizer.param_groups]

    for kind in (LARSSettings, LAMBSettings):
        settings = kind(lr=0.1, weight_decay=0.1)  # by default weights alone are adapted
        assert groups(settings, NOBODY_ELSE) == [(2, 0.1, True), (4, 0.0, False)]
        assert groups(settings, ParameterKinds()) == [(2, 0.1, True), (4, 0.1, False)]
        decayed = ParameterKinds(biases=False, norms=True)
        found = groups(settings, decayed)
        assert found == [(2, 0.1, True), (2, 0.1, False), (2, 0.0, False)]
        settings = kind(lr=0.1, weight_decay=0.1, adapted=ParameterKinds())
        assert groups(settings, NOBODY_ELSE) == [(2, 0.1, True), (4, 0.0, True)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            LARSSettings(
                lr=2.0, momentum=0.8, nesterov=True, weight_decay=0.1, trust=0.02, epsilon=1e-3,
                buffer="unscaled", max_ratio=3.0, adapted=ParameterKinds(),
            ),
            {
                "lr": 2.0, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "trust": 0.02,
                "epsilon": 1e-3, "buffer": "unscaled", "max_ratio": 3.0, "adapted": True,
            },
        ),
        (
            LAMBSettings(
                lr=2.0, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.1,
                bias_correction=False, max_weight_norm=3.0, adapted=ParameterKinds(),
            ),
            {
                "lr": 2.0, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1,
                "bias_correction": False, "max_weight_norm": 3.0, "adapted": True,
            },
        ),
        (
            RMSpropWarmupSettings(
                lr=2.0, momentum=0.8, rms_decay=0.95, rms_lr=0.02, epsilon=1e-3, weight_decay=0.1,
            ),
            {
                "lr": 2.0, "momentum": 0.8, "rms_decay": 0.95, "rms_lr": 0.02, "eps": 1e-3,
                "weight_decay": 0.1, "reference_lr": 2.0, "sgd_share": 0.0,
                "center": "10 epochs", "width": "5 epochs",
            },
        ),
    ],
    ids=lambda given: getattr(given, "name", None),
)  # fmt: skip
def test_every_setting_of_a_recipe_reaches_the_group(
    settings: OptimizerSettings, expected: dict[str, Any]
) -> None:
    (group,) = build_optimizer(settings, new_model()).param_groups
    assert {name: value for name, value in group.items() if name != "params"} == expected


def test_a_model_without_weights_has_its_groups_too() -> None:
    optimizer = build_optimizer(
        LARSSettings(lr=0.1, weight_decay=0.1), nn.Sequential(nn.LayerNorm(4)), decayed=NOBODY_ELSE
    )
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["adapted"]) == (0.0, False)
