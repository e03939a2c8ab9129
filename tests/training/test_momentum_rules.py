"""Momentum that decays over the run, and momentum for another batch size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.lr_carrying import momentum_for_batch_size
from anybatch.recipe import (
    AdamWSettings,
    ComputeSettings,
    OptimizerSettings,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.records import StepRecord
from anybatch.run import Run
from anybatch.schedules import Constant, DecayingMomentum, Join, Schedule, Warmup, fraction, updates
from anybatch.task import Task
from anybatch.training.training import Training

INPUTS = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0], [0.0]], dtype=torch.float64)


def training_of(optimizer: OptimizerSettings, momentum: Schedule) -> Training:
    def build() -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    data = INPUTS, TARGETS
    recipe = Recipe(
        optimizer=optimizer,
        duration=updates(4),
        batch_size=2,
        schedules=Schedules(momentum=momentum),
        compute=ComputeSettings(device="cpu", precision="fp64"),
        records=RecordSettings(log_every=1),
        stopping=Stopping(evaluate_every=updates(100)),
    )
    task = Task(build_model=build, train=data, validation=data, kind="regression")
    return Training(task, recipe)


def test_three_updates_of_sgd_under_decaying_momentum_by_hand() -> None:
    training = training_of(SGDSettings(lr=0.1, momentum=0.9), DecayingMomentum(momentum=0.9))
    # m / (1 - m) = 9 (1 - t/4): 9, 6.75, 4.5, so m = 9/10, 27/31, 9/11. The mean squared error
    # of w x has the gradient 5 w - 1.
    weight = velocity = 0.0
    for momentum in (9 / 10, 27 / 31, 9 / 11):
        velocity = momentum * velocity + 5 * weight - 1
        weight -= 0.1 * velocity
        training.step()
        assert training.one_step.hyperparameters.current()["momentum"] == pytest.approx(momentum)
        assert training.model.weight.item() == pytest.approx(weight, rel=1e-14)


def test_adams_first_beta_decays_too_and_the_second_stays() -> None:
    optimizer = AdamWSettings(lr=0.1, beta1=0.8, beta2=0.99)
    training = training_of(optimizer, DecayingMomentum(momentum=0.8))
    records = [record for record in training if isinstance(record, StepRecord)]
    # m / (1 - m) = 4 (1 - t/4): 4, 3, 2, 1.
    assert [record.momentum for record in records] == pytest.approx([4 / 5, 3 / 4, 2 / 3, 1 / 2])
    assert training.optimizer.param_groups[0]["betas"][1] == 0.99


@pytest.mark.parametrize(
    "schedule",
    [
        DecayingMomentum(momentum=0.8),
        Warmup(duration=fraction(0.25), into=DecayingMomentum(momentum=0.8)),
        Join(
            parts=(Constant(), Warmup(duration=fraction(0.1), into=DecayingMomentum(momentum=0.8))),
            boundaries=(fraction(0.5),),
        ),
    ],
)
def test_a_schedule_for_another_momentum_is_refused(schedule: Schedule) -> None:
    message = r"schedules.momentum decaying-momentum momentum must be that of the optimizer, 0.9, "
    with pytest.raises(InputError, match=message + "got 0.8"):
        training_of(SGDSettings(lr=0.1, momentum=0.9), schedule)
    training_of(SGDSettings(lr=0.1, momentum=0.8), schedule)


def test_recipe_lines_decay_the_momentum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = 'schedules.momentum={ name = "decaying-momentum", momentum = 0.9 }'
    arguments = ["train", "digits", "--set", "duration=2 epochs", "--set", line, "--out", "out"]
    assert main(arguments) == 0
    momenta = [record.momentum for record in Run(tmp_path / "out").steps()]
    assert momenta == sorted(momenta, reverse=True)
    assert momenta[0] > 0.85
    assert momenta[-1] < 0.3


# --- for another batch size ----------------------------------------------------------------------


def test_momentum_for_a_batch_size_is_as_noisy() -> None:
    assert momentum_for_batch_size(0.9, 128, 256) == pytest.approx(0.95, rel=1e-12)
    assert momentum_for_batch_size(0.9, 128, 64) == pytest.approx(0.8, rel=1e-12)
    assert momentum_for_batch_size(0.9, 128, 256, lr_ratio=2) == pytest.approx(0.9, rel=1e-12)
    assert momentum_for_batch_size(0.0, 32, 320) == pytest.approx(0.9, rel=1e-12)


@given(st.floats(0, 0.999), st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0.01, 100))
def test_lr_over_batch_size_and_one_minus_momentum_stays(
    momentum: float, old: int, new: int, lr_ratio: float
) -> None:
    try:
        carried = momentum_for_batch_size(momentum, old, new, lr_ratio=lr_ratio)
    except InputError:
        assert (1 - momentum) * lr_ratio * old / new > 1
        return
    assert 0 <= carried < 1
    noise = 1 / (old * (1 - momentum))
    assert lr_ratio / (new * (1 - carried)) == pytest.approx(noise, rel=1e-9)


def test_a_momentum_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"momentum must stay in \[0, 1\) when carried from batch"):
        momentum_for_batch_size(0.5, 128, 32)
    for bad in ({"momentum": 1.0}, {"batch_size": 0}, {"new_batch_size": -1}, {"lr_ratio": 0.0}):
        with pytest.raises(InputError):
            momentum_for_batch_size(
                **({"momentum": 0.5, "batch_size": 8, "new_batch_size": 8} | bad)
            )


def test_the_schedule_keeps_the_recipes_seeds_alone() -> None:
    plain = training_of(SGDSettings(lr=0.1, momentum=0.9), Constant())
    demon = training_of(SGDSettings(lr=0.1, momentum=0.9), DecayingMomentum(momentum=0.9))
    assert replace(demon.recipe, schedules=Schedules()) == plain.recipe
    plain.step(), demon.step()
    assert torch.equal(plain.model.weight, demon.model.weight)  # the first update is the same
    plain.step(), demon.step()
    assert not torch.equal(plain.model.weight, demon.model.weight)
