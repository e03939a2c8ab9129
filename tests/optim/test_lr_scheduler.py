"""The adapter to torch's LRScheduler keeps torch's contract, and resumes from any order."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

import anybatch as ab
from anybatch.errors import InputError
from anybatch.optim.lr_scheduler import ScheduleLR, schedule_as_lr_scheduler
from anybatch.schedules import (
    Clock,
    Constant,
    Cosine,
    Cyclic,
    Linear,
    OneCycle,
    Schedule,
    Step,
    Warmup,
    epochs,
    inverse_momentum,
    updates,
)

FALL = Linear()


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


def two_groups(**settings: Any) -> SGD:
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.01}]
    return SGD(groups, lr=0.5, **settings)


def walk(optimizer: Optimizer, scheduler: LRScheduler, count: int, key: str = "lr") -> list[Any]:
    """The first group's value at each of the next updates."""
    values = []
    for _ in range(count):
        values.append(copy.deepcopy(optimizer.param_groups[0][key]))
        optimizer.step()
        scheduler.step()
    return values


def test_it_is_a_plain_lr_scheduler_with_torchs_names() -> None:
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10)
    assert isinstance(scheduler, LRScheduler)
    assert not hasattr(scheduler, "total_steps")  # accelerate treats what has it differently
    assert scheduler.get_last_lr() == [0.5, 0.01]
    theirs = two_groups()
    torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: 1.0)
    for ours, plain in zip(optimizer.param_groups, theirs.param_groups, strict=True):
        assert ours.keys() == plain.keys()
        assert ours["initial_lr"] == plain["initial_lr"]


def test_groups_keep_their_ratios() -> None:
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10)
    for update in range(1, 11):
        optimizer.step()
        scheduler.step()
        factor = 1 - update / 10
        assert scheduler.get_last_lr() == pytest.approx([0.5 * factor, 0.01 * factor], abs=1e-15)


def test_a_tensor_lr_is_filled_and_never_rebound() -> None:
    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer = AdamW([parameter()], lr=lr, capturable=False, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10)
    values = [float(value) for value in walk(optimizer, scheduler, 5)]
    assert values == pytest.approx([0.5, 0.45, 0.4, 0.35, 0.3])
    assert optimizer.param_groups[0]["lr"] is held
    state = scheduler.state_dict()
    optimizer.step()
    scheduler.step()
    scheduler.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.25)
    last = scheduler.get_last_lr()[0]
    assert isinstance(last, torch.Tensor)
    last.zero_()  # a copy
    assert float(held) == pytest.approx(0.25)


def test_past_the_end_the_last_value_holds() -> None:
    for schedule, value in ((FALL, 0.0), (Linear(end=0.25), 0.125), (Step(every=updates(5)), 0.05)):
        optimizer = two_groups()
        scheduler = schedule_as_lr_scheduler(schedule, optimizer, total_updates=10)
        assert walk(optimizer, scheduler, 14)[10:] == pytest.approx([value] * 4)


def test_epochs_are_counted_in_updates_or_in_examples() -> None:
    warmup = Warmup(duration=epochs(1), into=Cosine(end=0.1))
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(warmup, optimizer, total_updates=12, updates_per_epoch=4)
    assert walk(optimizer, scheduler, 5) == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])
    clock = Clock(examples_per_epoch=100, batch_size=32, total_examples=300)
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(warmup, optimizer, clock=clock)
    assert walk(optimizer, scheduler, 5) == pytest.approx([0.0, 0.16, 0.32, 0.48, 0.5])


@pytest.mark.parametrize("grid", ["t/T", "(t+1)/T", "t/(T-1)"])
def test_it_gives_what_a_training_gives(grid: Any) -> None:
    inputs, labels = torch.randn(70, 3), torch.arange(70) % 2
    task = ab.Task(
        build_model=lambda: nn.Linear(3, 2),
        train=(inputs, labels),
        validation=(inputs, labels),
        name="small",
    )
    cycle = OneCycle(warmup=epochs(1), start=0.1, end=0.01, grid=grid)
    schedules = ab.Schedules(
        lr=Warmup(duration=updates(3), into=Step(every=epochs(1)), grid=grid),
        momentum=inverse_momentum(cycle, lowest=0.5),
        weight_decay=Linear(start=1.0, end=0.5, grid=grid),
    )
    recipe = ab.Recipe(
        optimizer=ab.SGDSettings(lr=0.5, momentum=0.9, weight_decay=0.1),
        schedules=schedules,
        batch_size=16,
        duration=epochs(3),
        records=ab.RecordSettings(log_every=1),
    )
    with ab.Training(task, recipe) as training:
        records = [r for r in training if isinstance(r, ab.StepRecord)]
    optimizer = SGD([parameter()], lr=0.5, momentum=0.9, weight_decay=0.1)
    scheduler = schedule_as_lr_scheduler(
        schedules.lr,
        optimizer,
        clock=Clock(70, 16, 210),
        momentum=schedules.momentum,
        weight_decay=schedules.weight_decay,
    )
    assert len(records) == 15
    for record in records:
        group = optimizer.param_groups[0]
        values = group["lr"], group["momentum"], group["weight_decay"]
        assert values == (record.lr, record.momentum, record.weight_decay)
        optimizer.step()
        scheduler.step()
    last = {"t/T": 204 / 210, "(t+1)/T": 1.0, "t/(T-1)": 1.0}[grid]
    assert records[-1].weight_decay == pytest.approx(0.1 * (1 - 0.5 * last))


def test_momentum_and_decay_move_only_when_asked() -> None:
    cycle = Cyclic(up=updates(5), start=0.1)
    optimizer = AdamW([parameter()], lr=0.5, betas=(0.8, 0.99), weight_decay=0.1)
    scheduler = schedule_as_lr_scheduler(cycle, optimizer, total_updates=10)
    assert set(walk(optimizer, scheduler, 10, "betas")) == {(0.8, 0.99)}
    optimizer = AdamW([parameter()], lr=0.5, betas=(0.8, 0.99), weight_decay=0.1)
    scheduler = schedule_as_lr_scheduler(
        cycle,
        optimizer,
        total_updates=10,
        momentum=inverse_momentum(cycle, lowest=0.5),
        weight_decay=FALL,
    )
    betas = walk(optimizer, scheduler, 6, "betas")
    assert [b for b, _ in betas] == pytest.approx([0.8, 0.72, 0.64, 0.56, 0.48, 0.4])
    assert {b for _, b in betas} == {0.99}
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.04)


def test_a_group_added_later_is_scheduled_from_its_own_lr() -> None:
    optimizer = two_groups(momentum=0.9)
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10, momentum=Constant())
    walk(optimizer, scheduler, 3)
    optimizer.add_param_group({"params": [parameter()], "lr": 0.2})
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.3, 0.006, 0.12])
    again = two_groups(momentum=0.9)
    other = schedule_as_lr_scheduler(FALL, again, total_updates=10)
    with pytest.raises(
        InputError, match="scheduler state must be of the optimizer's 2 groups, got 3"
    ):
        other.load_state_dict(scheduler.state_dict())


def test_its_state_is_plain_and_loading_does_not_change_it(tmp_path: Path) -> None:
    def new() -> tuple[SGD, ScheduleLR]:
        optimizer = two_groups(momentum=0.9)
        momentum = inverse_momentum(OneCycle(), lowest=0.5)
        return optimizer, schedule_as_lr_scheduler(
            OneCycle(), optimizer, total_updates=20, momentum=momentum
        )

    optimizer, scheduler = new()
    walk(optimizer, scheduler, 7)
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    state = torch.load(tmp_path / "scheduler.pt", weights_only=True)
    before = copy.deepcopy(state)
    fresh_optimizer, fresh = new()
    fresh.load_state_dict(state)
    assert state == before == fresh.state_dict()
    assert fresh.get_last_lr() == scheduler.get_last_lr()
    for key in ("lr", "momentum"):
        assert fresh_optimizer.param_groups[0][key] == optimizer.param_groups[0][key] != 0.9
    rest = walk(optimizer, scheduler, 13), optimizer.param_groups[0]["momentum"]
    assert (walk(fresh_optimizer, fresh, 13), fresh_optimizer.param_groups[0]["momentum"]) == rest
    assert state == before


def test_the_settings_are_those_of_the_saved_run() -> None:
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10)
    walk(optimizer, scheduler, 5)
    other = SGD([{"params": [parameter()]}, {"params": [parameter()]}], lr=9.0)
    loaded = schedule_as_lr_scheduler(FALL, other, total_updates=10)
    loaded.load_state_dict(scheduler.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.005]


def test_torchs_step_to_an_epoch_is_the_closed_form() -> None:
    optimizer = two_groups()
    scheduler = schedule_as_lr_scheduler(FALL, optimizer, total_updates=10)
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(7)
    assert scheduler.get_last_lr() == pytest.approx([0.15, 0.003])
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.1, 0.002])


def refused(schedule: Schedule = FALL, **options: Any) -> Callable[[], object]:
    return lambda: schedule_as_lr_scheduler(schedule, two_groups(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused(), "total_updates must be given, or a clock, and not both, got None"),
        (refused(total_updates=5, clock=Clock(None, 1, 5)), "total_updates must be given, or a cl"),
        (
            refused(clock=Clock(None, 1, 5), updates_per_epoch=5),
            "updates_per_epoch must be left out with a clock, got 5",
        ),
        (refused(total_updates=0), "total_updates must be >= 1, got 0"),
        (refused(clock=Clock(9, None, 90)), "clock must have a batch size to count updates"),
        (
            refused(Warmup(duration=epochs(1)), total_updates=5),
            "warmup duration must be in examples or updates",
        ),
        (
            refused(total_updates=5, momentum=Linear()),
            "momentum must be left out while the optimizer's momentum is 0, got linear",
        ),
    ],
)
def test_what_cannot_be_scheduled_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_momentum_that_would_reach_1_is_refused() -> None:
    with pytest.raises(InputError, match=r"momentum must keep momentum below 1, got 1\.08"):
        schedule_as_lr_scheduler(
            FALL, two_groups(momentum=0.9), total_updates=5, momentum=Linear(start=1.0, end=1.2)
        )
