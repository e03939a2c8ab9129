"""RMSprop warm-up: a trace by hand, the share of SGD, both ends, and the schedule of a recipe."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.optim.rmsprop_warmup import (
    RMSpropWarmup,
    RMSpropWarmupNumbers,
    rmsprop_warmup_step,
    sgd_share,
)
from anybatch.recipe import RMSpropWarmupSettings, Schedules
from anybatch.schedules import Clock, Linear, Position, epochs, fraction
from anybatch.training.build import build_optimizer
from anybatch.training.hyperparameters import Hyperparameters


def test_three_steps_by_hand() -> None:
    # rms_decay 3/4, eps 1, momentum 1/2, rms_lr = lr, so (1 - a) stands before the root:
    # g = 2:  s = 1/4 * 4 = 1, a = 1/2: D = -(1/2 + 1/2 / 2) 2 = -3/2,          w = 1 - 3/4
    # g = 1:  s = 3/4 + 1/4,   a = 3/4: D = -3/4 - (3/4 + 1/4 / 2) = -13/8,     w = 1/4 - 13/32
    # g = -2: s rests,         a = 1:   D = -13/16 + 2 = 19/16,                 w = -5/32 + 19/32
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = RMSpropWarmup([weight], lr=0.5, momentum=0.5, rms_decay=0.75, rms_lr=0.5, eps=1.0)
    (group,) = optimizer.param_groups
    seen = []
    for lr, share, gradient in ((0.5, 0.5, 2.0), (0.25, 0.75, 1.0), (0.5, 1.0, -2.0)):
        group["lr"], group["sgd_share"] = lr, share
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(weight.item())
    assert seen == [0.25, -0.15625, 0.4375]
    assert optimizer.state[weight]["square_avg"].item() == 1.0
    assert optimizer.state[weight]["direction"].item() == 1.1875


def test_the_share_is_continuous_in_value_and_slope() -> None:
    def share(epoch: float) -> float:
        return sgd_share(epoch, center=10, width=5)

    def slope(epoch: float, side: float) -> float:
        return (share(epoch + side) - share(epoch)) / side

    assert share(0) == pytest.approx(math.exp(-4) / 2)
    assert share(10) == 0.5
    for joint in (10.0, 12.5):
        assert share(joint - 1e-9) == pytest.approx(share(joint + 1e-9), abs=1e-8)
    assert slope(10, -1e-6) == pytest.approx(slope(10, 1e-6), rel=1e-5)  # as printed, the double
    assert slope(11, 1e-6) == pytest.approx(1 / 5)
    assert share(12.5) == share(1000) == 1.0
    values = [share(epoch / 10) for epoch in range(200)]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] == 1.0
    with pytest.raises(InputError, match="width must be > 0"):
        sgd_share(1, center=10, width=0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_at_a_share_of_1_it_is_torchs_sgd(decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    warm = RMSpropWarmup([ours], lr=0.1, weight_decay=decay)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=decay)
    warm.param_groups[0]["sgd_share"] = 1.0
    for lr in (0.1, 0.2, 0.05):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        for optimizer, weight in ((warm, ours), (sgd, theirs)):
            weight.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_at_a_share_of_0_it_is_torchs_rmsprop(decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    warm = RMSpropWarmup([ours], lr=0.1, rms_lr=0.01, weight_decay=decay)
    rmsprop = torch.optim.RMSprop([theirs], lr=0.01, alpha=0.99, momentum=0.9, weight_decay=decay)
    for factor in (1.0, 2.0, 0.5):  # a schedule moves both lrs
        gradient = torch.randn(4, 3, dtype=torch.float64)
        for optimizer, weight, lr in ((warm, ours, 0.1), (rmsprop, theirs, 0.01)):
            weight.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rms", [0.0, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_many_tensors_at_once_take_the_same_steps(rms: float, decay: float) -> None:
    torch.manual_seed(0)
    numbers = RMSpropWarmupNumbers(lr=0.1, sgd=0.5, rms=rms, weight_decay=decay)
    starts = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 3), (5,), ())]
    gradients = [torch.randn_like(start) for start in starts]
    both = []
    for foreach in (False, True):
        weights = [w.clone() for w in starts]
        squares, directions = ([torch.zeros_like(w) for w in starts] for _ in range(2))
        for _ in range(3):
            rmsprop_warmup_step(weights, gradients, squares, directions, numbers, foreach=foreach)
        both.append([*weights, *squares, *directions])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


def built(settings: RMSpropWarmupSettings) -> tuple[Any, Any]:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = build_optimizer(settings, model)
    clock = Clock(examples_per_epoch=100, batch_size=10, total_examples=2000)
    return optimizer, Hyperparameters(optimizer, Schedules(lr=Linear()), clock)


def test_a_recipe_writes_the_share_of_every_update() -> None:
    settings = RMSpropWarmupSettings(lr=0.2, center=epochs(10), width=epochs(5))
    optimizer, values = built(settings)
    for examples in (0, 500, 1000, 1100, 1250, 1990):
        values.apply(Position(examples=examples, size=10, total=2000))
        expected = sgd_share(examples / 100, center=10, width=5)
        assert [g["sgd_share"] for g in optimizer.param_groups] == [pytest.approx(expected)]
        assert optimizer.param_groups[0]["reference_lr"] == 0.2
    optimizer, values = built(RMSpropWarmupSettings(lr=0.2, center=fraction(0.5), width=epochs(5)))
    values.apply(Position(examples=1000, size=10, total=2000))
    assert optimizer.param_groups[0]["sgd_share"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"lr": 0.0}, "reference_lr must be > 0"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"rms_decay": 1.0}, "rms_decay must be"),
        ({"rms_lr": 0.0}, "rms_lr must be > 0"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RMSpropWarmup([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | settings))


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = RMSpropWarmup([weight], lr=0.1)
    optimizer.param_groups[0]["sgd_share"] = share
    weight.grad = torch.ones(1)
    with pytest.raises(InputError, match=r"sgd_share must be in \[0, 1\]"):
        optimizer.step()
