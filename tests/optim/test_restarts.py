"""SGDWR and AdamWR: periods, traces by hand, and the same as the recipe that restarts."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.restarts import SGDWR, AdamWR, period_at
from anybatch.optim.sgdw import SGDW
from anybatch.recipe import AdamWSettings, Schedules, SGDWSettings
from anybatch.schedules import SGDR, Clock, fraction
from anybatch.training.build import build_optimizer
from anybatch.training.hyperparameters import Hyperparameters

BOTH = (SGDWR, AdamWR)
BothKinds = type[SGDWR] | type[AdamWR]


# --- periods ---------------------------------------------------------------------------------


@given(
    first=st.floats(1.0, 50.0),
    factor=st.one_of(st.just(1.0), st.floats(1.0, 4.0)),
    update=st.integers(0, 3000),
)
def test_every_update_lies_in_its_period(first: float, factor: float, update: int) -> None:
    number, begin, length = period_at(update, first, factor)
    assert length == pytest.approx(first * factor**number, rel=1e-6)
    assert begin <= update + 1e-6
    assert update < begin + length + 1e-5 * length
    if number < 200:  # summed up, one after another
        assert begin == pytest.approx(sum(first * factor**k for k in range(number)), rel=1e-6)


@pytest.mark.parametrize(
    ("first", "factor"), [(1, 1.0), (3, 1.0), (1.1, 1.0), (5, 2.0), (1, 3.0), (10, 1.1)]
)
def test_a_period_of_whole_updates_ends_where_it_says(first: float, factor: float) -> None:
    begin, length = 0.0, float(first)
    for number in range(32 if factor == 1.0 else 8):
        expected = math.ceil(begin - 1e-9)  # the first update of this period
        assert period_at(expected, first, factor).number == number
        if number:
            assert period_at(expected - 1, first, factor).number < number
        begin, length = begin + length, length * factor


# --- by hand ---------------------------------------------------------------------------------


def trace(optimizer: Any, weight: nn.Parameter, gradients: tuple[float, ...]) -> list[float]:
    values = []
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        values.append(weight.item())
    return values


def one_weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(1, dtype=torch.float64))


def test_four_steps_of_sgdwr_by_hand() -> None:
    # periods of 1 and 4 updates; lr 0.1, min_lr 0, norm 0.2, momentum 0.5; g = 2, -1, 4, 0
    # t=0: T=1: eta 1, lambda .2: m = .2; w = 1 - .2 - .2 = .6
    # t=1: T=4: eta 1, lambda .1: m = .1 - .1 = 0; w = .6 - 0 - .06 = .54
    # t=2: eta (1 + cos(pi/4))/2 = .8535533906: m = .3414213562;
    #      w = .54 - .3414213562 - .0853553391 * .54 = .1524867607
    # t=3: eta .5: m = .1707106781; w = .1524867607 - .1707106781 - .05 * .1524867607
    #      = -.0258482554
    weight = one_weight()
    optimizer = SGDWR([weight], 0.1, updates_in_first_period=1, period_factor=4.0,
                      weight_decay_norm=0.2, momentum=0.5)  # fmt: skip
    by_hand = [0.6, 0.54, 0.1524867607, -0.0258482554]
    assert trace(optimizer, weight, (2.0, -1.0, 4.0, 0.0)) == pytest.approx(by_hand, abs=1e-10)


def test_three_steps_of_adamwr_by_hand() -> None:
    # periods of 1 and 2 updates; lr 0.01, min_lr 0.002: e = .2; norm 0.03; g = 2, -1, 4, of which
    # the steps m^ / sqrt(v^) are 1, .2663371, .6581116 (tests/optim/test_decay.py)
    # t=0: T=1: eta 1, lambda .03: w = 1 - .01 - .03 = .96
    # t=1: T=2: eta 1, lambda .0212132034: w = .96 - .002663371 - .0203646753 = .9369719537
    # t=2: eta .2 + .8 / 2 = .6: w = .9369719537 - .6 (.006581116 + .0198761756) = .9210975787
    weight = one_weight()
    optimizer = AdamWR([weight], 0.01, updates_in_first_period=1, period_factor=2.0, min_lr=0.002,
                       weight_decay_norm=0.03)  # fmt: skip
    by_hand = [0.96, 0.9369719537, 0.9210975787]
    assert trace(optimizer, weight, (2.0, -1.0, 4.0)) == pytest.approx(by_hand, abs=2e-8)


def test_one_long_period_is_sgdw_under_a_cosine() -> None:
    weights = one_weight(), one_weight()
    ours = SGDWR([weights[0]], 0.1, updates_in_first_period=9, weight_decay_norm=0.3)
    sgdw = SGDW([weights[1]], 0.1, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgdw, 9)
    for gradient in (2.0, -1.0, 4.0, 0.5):
        for weight, optimizer in zip(weights, (ours, sgdw), strict=True):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        cosine.step()
        assert weights[0].item() == pytest.approx(weights[1].item(), rel=1e-12)


@pytest.mark.parametrize("first", [2, 3, 7])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_lr_is_that_of_torchs_warm_restarts(first: int, factor: int) -> None:
    weights = one_weight(), one_weight()
    ours = AdamWR([weights[0]], 0.1, updates_in_first_period=first, period_factor=factor,
                  min_lr=0.01)  # fmt: skip
    torchs = torch.optim.AdamW([weights[1]], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(torchs, first, factor, 0.01)
    for _ in range(25):
        expected = torchs.param_groups[0]["lr"]
        trace(ours, weights[0], (0.5,))
        trace(torchs, weights[1], (0.5,))
        schedule.step()
        assert ours.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


# --- the recipe ------------------------------------------------------------------------------


def gradients_of(model: nn.Module, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize(
    ("first", "factor", "total"), [(5, 1.0, 20), (3, 2.0, 24), (4, 1.5, 37), (2.5, 1.7, 40)]
)
@pytest.mark.parametrize("kind", ["sgdw", "adamw"])
def test_the_recipe_that_restarts_takes_the_same_updates(first, factor, total, kind) -> None:
    models = [nn.Linear(3, 2).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    lr, min_lr, norm = 0.05, 0.005, 0.4
    settings: Any
    ours: Any
    if kind == "sgdw":
        settings = SGDWSettings(lr=lr, momentum=0.8, weight_decay=norm, decay="normalized")
        ours = SGDWR(models[0].parameters(), lr, updates_in_first_period=first,
                     period_factor=factor, min_lr=min_lr, weight_decay_norm=norm,
                     momentum=0.8)  # fmt: skip
    else:
        settings = AdamWSettings(lr=lr, weight_decay=norm, decay="normalized")
        ours = AdamWR(models[0].parameters(), lr, updates_in_first_period=first,
                      period_factor=factor, min_lr=min_lr, weight_decay_norm=norm)  # fmt: skip
    built = build_optimizer(settings, models[1])
    clock = Clock(examples_per_epoch=10 * total, batch_size=10, total_examples=10 * total)
    lengths = fraction(first / total)
    sgdr = SGDR(first_cycle=lengths, cycle_growth=factor, end=min_lr / lr)
    values = Hyperparameters(built, Schedules(lr=sgdr), clock)
    for update in range(total):
        values.apply(clock.position(update))
        for model, optimizer in zip(models, (ours, built), strict=True):
            gradients_of(model, update)
            optimizer.step()
        (group,), (other,) = ours.param_groups, built.param_groups
        assert group["lr"] == pytest.approx(other["lr"], rel=1e-9), update
        assert group["num_updates"] == pytest.approx(other["num_updates"], rel=1e-12), update
        for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


# --- state, groups, hooks --------------------------------------------------------------------


def built(cls: BothKinds, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).to(dtype)
    options = {"lr": 0.1, "updates_in_first_period": 2, "period_factor": 2} | options
    return model, cls(model.parameters(), **options)


def take(model: nn.Module, optimizer: Any, numbers: range) -> list[Tensor]:
    for number in numbers:
        gradients_of(model, number)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("cls", BOTH)
def test_the_solution_to_keep_is_the_one_before_a_restart(cls: BothKinds) -> None:
    model, optimizer = built(cls)
    kept = [optimizer.at_restart]
    for number in range(15):
        take(model, optimizer, range(number, number + 1))
        kept.append(optimizer.at_restart)
    assert [taken for taken, keep in enumerate(kept) if keep] == [2, 6, 14]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("through", ["file", "deepcopy"])
def test_a_state_goes_on_bitwise_in_the_middle_of_a_period(cls: BothKinds, through: str) -> None:
    model, optimizer = built(cls)
    take(model, optimizer, range(4))
    if through == "deepcopy":
        other, again = copy.deepcopy((model, optimizer))
    else:
        other, again = built(cls, updates_in_first_period=50, lr=0.7)
        other.load_state_dict(model.state_dict())
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
    assert again.at_restart == optimizer.at_restart
    expected, got = take(model, optimizer, range(4, 9)), take(other, again, range(4, 9))
    assert all(map(torch.equal, expected, got))


def test_bfloat16_momentum_stays_in_32_bits() -> None:
    model, optimizer = built(SGDWR, torch.bfloat16)
    take(model, optimizer, range(3))
    other, again = built(SGDWR, torch.bfloat16)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    buffers = [entry["momentum_buffer"].dtype for entry in again.state.values()]
    assert set(buffers) == {torch.float32}
    expected, got = take(model, optimizer, range(3, 6)), take(other, again, range(3, 6))
    assert all(map(torch.equal, expected, got))


@pytest.mark.parametrize("cls", BOTH)
def test_groups_keep_their_ratio_and_their_own_decay(cls: BothKinds) -> None:
    weights = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(3)]
    options = {"updates_in_first_period": 4.0, "weight_decay_norm": 0.4}
    groups = [{"params": weights[:1]}, {"params": weights[1:2], "lr": 0.2, "weight_decay_norm": 0}]
    optimizer = cls(groups, 0.1, **options)

    def step() -> list[float]:
        before = [weight.item() for weight in weights]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        return [1 - w.item() / old for w, old in zip(weights, before, strict=True)]

    assert step()[:2] == pytest.approx([0.2, 0.0])
    step()
    optimizer.add_param_group({"params": weights[2:], "lr": 0.3})
    assert step() == pytest.approx([0.1, 0.0, 0.1])  # joins the period's middle
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1, 0.15])
    assert [group["reference_lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3]
    assert "initial_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize("cls", BOTH)
def test_a_step_that_a_scaler_skips_does_not_count(cls: BothKinds) -> None:
    model, optimizer = built(cls)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (True, False):
        optimizer.zero_grad()
        inputs = torch.full((2, 4), math.inf if bad else 1.0)
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["updates_taken"] == (0 if bad else 1)


@pytest.mark.parametrize("cls", BOTH)
def test_closures_and_hooks_are_called_once(cls: BothKinds) -> None:
    model, optimizer = built(cls)
    plain = nn.Parameter(torch.ones(1))
    torch.optim.AdamW([plain]).step()  # puts hooks around the step that AdamWR is made of
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> float:
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        calls.append("closure")
        return loss.item()

    with torch.no_grad():
        assert isinstance(optimizer.step(closure), float)
    assert calls == ["before", "closure", "after"]


@pytest.mark.parametrize("cls", BOTH)
def test_an_lr_of_0_and_no_gradient_move_nothing(cls: BothKinds) -> None:
    model, optimizer = built(cls, lr=0.0, weight_decay_norm=0.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(map(torch.equal, before, take(model, optimizer, range(3))))
    model, optimizer = built(cls)
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGDWR(embedding.parameters(), 0.1, updates_in_first_period=5)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="gradient must be dense"):
        optimizer.step()
    assert optimizer.param_groups[0]["updates_taken"] == 0


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates_in_first_period": 0.5}, "updates_in_first_period must be >= 1"),
        ({"updates_in_first_period": math.inf}, "updates_in_first_period must be >= 1"),
        ({"period_factor": 0.5}, r"period_factor must be in \[1, 1000\]"),
        ({"min_lr": 0.2}, r"min_lr must be in \[0, 0.1\], lr"),
        ({"weight_decay_norm": -1.0}, "weight_decay_norm must be >= 0"),
        ({"lr": 0.0}, "lr must be > 0 under normalized weight decay"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    cls: BothKinds, options: dict[str, Any], message: str
) -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    settings: dict[str, Any] = {"lr": 0.1, "updates_in_first_period": 5}
    with pytest.raises(InputError, match=message):
        cls(weights, **(settings | options))
    optimizer = cls(weights[:1], **settings)
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": weights[1:]} | options)
    assert len(optimizer.param_groups) == 1
