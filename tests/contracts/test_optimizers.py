"""One table of all optimizers, and the laws that each of them keeps."""

from __future__ import annotations

import copy
import dataclasses
import math
import typing

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.rmsprop_warmup import sgd_share
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    LAMBSettings,
    LARSSettings,
    ModelSettings,
    MuonSettings,
    OptimizerSettings,
    Recipe,
    RecordSettings,
    RMSpropWarmupSettings,
    Schedules,
    SGDSettings,
    SGDWSettings,
    Stopping,
)
from anybatch.records import StepRecord
from anybatch.schedules import Clock, Constant, Linear, OneCycle, Position, epochs, updates
from anybatch.task import load_task
from anybatch.training.build import Optimizer, build_optimizer
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.training import Training

# Settings under which the optimizer learns the digits, no weight decay.
OPTIMIZERS: dict[str, OptimizerSettings] = {
    "sgd": SGDSettings(lr=0.1),
    "sgd with momentum": SGDSettings(lr=0.05, momentum=0.9),
    "sgd with nesterov": SGDSettings(lr=0.05, momentum=0.9, nesterov=True),
    "adam": AdamSettings(lr=0.003),
    "adamw": AdamWSettings(lr=0.003, weight_decay=0.0),
    "muon": MuonSettings(lr=0.02, adamw_lr=0.003),
    "sgdw": SGDWSettings(lr=0.05),
    "sgdw normalized": SGDWSettings(lr=0.05, decay="normalized"),
    "sgdw coupled": SGDWSettings(lr=0.05, nesterov=True, decay="coupled"),
    "adamw decoupled": AdamWSettings(lr=0.003, weight_decay=0.0, decay="decoupled"),
    "lars": LARSSettings(lr=4.0),
    "lars unscaled": LARSSettings(lr=3.0, buffer="unscaled", nesterov=True),
    "lamb": LAMBSettings(lr=0.02, weight_decay=0.0),
    "rmsprop-warmup": RMSpropWarmupSettings(
        lr=0.05, rms_lr=0.003, center=updates(20), width=updates(10)
    ),
    "muon as adamw": MuonSettings(lr=0.01, adjust_lr="match_rms_adamw", adamw_lr=0.01),
}
NEED_MOMENTUM = [name for name, s in OPTIMIZERS.items() if s != SGDSettings(lr=0.1)]
CLOCK = Clock(examples_per_epoch=100, batch_size=10, total_examples=1000)


def at(progress: float) -> Position:
    return Position(examples=round(1000 * progress), size=10, total=1000)


def with_decay(settings: OptimizerSettings, weight_decay: float = 0.1) -> OptimizerSettings:
    return dataclasses.replace(settings, weight_decay=weight_decay)


def prepared(settings: OptimizerSettings, model: nn.Module) -> Optimizer:
    """An optimizer at the beginning of a run of 100 updates."""
    optimizer = build_optimizer(settings, model)
    Hyperparameters(optimizer, Schedules(), CLOCK).apply(at(0.0))
    return optimizer


def new_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return model.double()


def put_gradients(model: nn.Module, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def take_steps(model: nn.Module, optimizer: Optimizer, numbers: range) -> list[Tensor]:
    for number in numbers:
        put_gradients(model, number)
        optimizer.step()
    return weights(model)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_holds_every_optimizer() -> None:
    assert {type(s) for s in OPTIMIZERS.values()} == set(typing.get_args(OptimizerSettings))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_moves_every_parameter(name: str) -> None:
    model = new_model()
    before = weights(model)
    after = take_steps(model, build_optimizer(OPTIMIZERS[name], model), range(1))
    assert all(bool((a != b).any()) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_lr_of_0_moves_nothing(name: str) -> None:
    model = new_model()
    before = weights(model)
    optimizer = prepared(with_decay(OPTIMIZERS[name]), model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert same(take_steps(model, optimizer, range(3)), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_0_without_decay_move_nothing(name: str) -> None:
    model = new_model()
    before = weights(model)
    optimizer = build_optimizer(OPTIMIZERS[name], model)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert same(weights(model), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_alone_shrinks_and_keeps_its_convention(name: str) -> None:
    settings = with_decay(OPTIMIZERS[name])
    model = new_model()
    before = weights(model)
    optimizer = prepared(settings, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    lrs = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter, old in zip(model.parameters(), before, strict=True):
        expected = decayed(settings, old, lrs[id(parameter)])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=0)


def decayed(settings: OptimizerSettings, weight: Tensor, lr: float) -> Tensor:
    """What the first step makes of a weight whose gradient is 0, under a weight decay of 0.1."""
    lookahead = 1.9 if getattr(settings, "nesterov", False) else 1.0
    match settings:
        case SGDWSettings(decay="decoupled") | AdamWSettings(decay="decoupled"):
            return weight * (1.0 - 0.1)  # the schedule's factor is 1, whatever lr is
        case SGDWSettings(decay="normalized"):
            return weight * (1.0 - 0.1 / math.sqrt(100))  # of CLOCK's 100 updates
        case SGDSettings() | SGDWSettings() | LARSSettings():
            return weight * (1.0 - lr * 0.1 * lookahead)  # LARS: a gradient of 0 has the ratio 1
        case LAMBSettings():  # u = 0.1 w; a weight's ratio |w| / |u| undoes the size of the decay
            return weight * (1.0 - lr * (1.0 if weight.dim() > 1 else 0.1))
        case AdamSettings():  # about one lr, whatever the size of the decay
            gradient = 0.1 * weight
            return weight - lr * gradient / (gradient.abs() + 1e-8)
        case RMSpropWarmupSettings():
            gradient = 0.1 * weight
            share = sgd_share(0.0, center=20.0, width=10.0)
            root = gradient.abs() * math.sqrt(1.0 - settings.rms_decay)
            rms = (1.0 - share) * settings.rms_lr / lr / (root + settings.epsilon)
            return weight - lr * (share + rms) * gradient
        case _:
            return weight * (1.0 - lr * 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_and_loaded_goes_on_identically(name: str, tmp_path) -> None:
    settings = with_decay(OPTIMIZERS[name])
    model = new_model()
    optimizer = prepared(settings, model)
    take_steps(model, optimizer, range(4))
    other = new_model(seed=1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded = build_optimizer(settings, other)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = take_steps(model, optimizer, range(4, 8))
    assert same(take_steps(other, loaded, range(4, 8)), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedules_multiply_the_settings_of_every_group(name: str) -> None:
    model = new_model()
    settings = with_decay(OPTIMIZERS[name])
    optimizer = build_optimizer(settings, model)
    lrs = [group["lr"] for group in optimizer.param_groups]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    schedules = Schedules(lr=Linear(), weight_decay=Linear(start=0.5, end=0.0))
    scheduled = Hyperparameters(optimizer, schedules, CLOCK)
    for progress in (0.0, 0.25, 0.75, 0.5):  # stateless: also backwards
        scheduled.apply(at(progress))
        assert [g["lr"] for g in optimizer.param_groups] == [lr * (1 - progress) for lr in lrs]
        shares = [decay * 0.5 * (1 - progress) for decay in decays]
        assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx(shares)
        assert scheduled.current()["lr"] == lrs[0] * (1 - progress)


@pytest.mark.parametrize("name", NEED_MOMENTUM)
def test_a_momentum_schedule_moves_momentum_or_beta1_and_nothing_else(name: str) -> None:
    model = new_model()
    optimizer = build_optimizer(OPTIMIZERS[name], model)
    before = [(g.get("momentum"), g.get("betas")) for g in optimizer.param_groups]
    scheduled = Hyperparameters(optimizer, Schedules(momentum=Linear(start=1.0, end=0.5)), CLOCK)
    scheduled.apply(at(0.5))
    for group, (momentum, betas) in zip(optimizer.param_groups, before, strict=True):
        if betas is None:
            assert group["momentum"] == pytest.approx(0.75 * momentum)
        else:
            assert group["betas"] == (pytest.approx(0.75 * betas[0]), betas[1])
    lrs = [group["lr"] for group in optimizer.param_groups]
    assert lrs == [group["lr"] for group in build_optimizer(OPTIMIZERS[name], model).param_groups]
    take_steps(model, optimizer, range(2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_does_not_become_the_reference_of_the_schedule(name: str) -> None:
    model = new_model()
    settings = OPTIMIZERS[name]
    optimizer = build_optimizer(settings, model)
    scheduled = Hyperparameters(optimizer, Schedules(lr=Linear()), CLOCK)
    scheduled.apply(at(0.75))
    take_steps(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())  # its groups hold a quarter of the lr

    fresh = build_optimizer(settings, model)
    again = Hyperparameters(fresh, Schedules(lr=Linear()), CLOCK)
    fresh.load_state_dict(state)
    assert again.current()["lr"] == settings.lr / 4
    again.apply(at(0.5))
    assert again.current()["lr"] == settings.lr / 2
    assert "initial_lr" not in fresh.param_groups[0]


def test_a_momentum_schedule_without_momentum_is_refused() -> None:
    optimizer = build_optimizer(SGDSettings(lr=0.1), new_model())
    with pytest.raises(InputError, match=r"schedules\.momentum must be constant while"):
        Hyperparameters(optimizer, Schedules(momentum=OneCycle()), CLOCK)


@pytest.mark.parametrize("name", NEED_MOMENTUM)
def test_a_momentum_schedule_that_reaches_1_is_refused(name: str) -> None:
    optimizer = build_optimizer(OPTIMIZERS[name], new_model())
    for schedule in (
        Constant(value=1.2),
        Linear(start=0.5, end=1.2),
        OneCycle(start=1.0, peak=1.2, end=1.0),
    ):
        with pytest.raises(InputError, match=r"schedules\.momentum must keep momentum below 1"):
            Hyperparameters(optimizer, Schedules(momentum=schedule), CLOCK)


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_thirty_updates_lower_the_loss_of_the_digits(name: str, digits) -> None:
    recipe = Recipe(
        optimizer=OPTIMIZERS[name],
        duration=updates(30),
        batch_size=64,
        model=ModelSettings(name="mlp", width=0.0625),
        stopping=Stopping(evaluate_every=epochs(100)),
        records=RecordSettings(log_every=5),
    )
    with Training(digits, recipe) as training:
        losses = [record.loss for record in training if isinstance(record, StepRecord)]
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] < 1.5 < 2.0 < losses[0] + 0.3
