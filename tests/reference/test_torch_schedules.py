"""Schedules against torch's, value by value in float64, and torch's known faults shown absent.

Torch's closed forms and ours round differently where a value comes near its end, so values are
compared within 1e-12 of themselves or of the peak.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as peers
from torch.optim.lr_scheduler import LRScheduler

from anybatch.optim.lr_scheduler import schedule_as_lr_scheduler
from anybatch.schedules import (
    SGDR,
    Constant,
    Cosine,
    Cyclic,
    Duration,
    Exponential,
    InverseSquareRoot,
    Join,
    Levels,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
    Warmup,
    WarmupStableDecay,
    inverse_momentum,
    updates,
)

PEAK = 0.3  # the learning rate that the factors multiply
T = 97


def new_optimizer(lr: float = PEAK, momentum: float = 0.95) -> SGD:
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    return SGD([parameter], lr=lr, momentum=momentum)


def trace(make: Callable[[Optimizer], LRScheduler], count: int) -> list[tuple[float, float]]:
    """lr and momentum of each update."""
    optimizer = new_optimizer()
    scheduler = make(optimizer)
    values = []
    for _ in range(count):
        group = optimizer.param_groups[0]
        values.append((float(group["lr"]), float(group["momentum"])))
        optimizer.step()
        scheduler.step()
    return values


def ours(
    schedule: Schedule, total: int, momentum: Schedule | None = None
) -> Callable[[Optimizer], LRScheduler]:
    return lambda optimizer: schedule_as_lr_scheduler(
        schedule, optimizer, total_updates=total, momentum=momentum
    )


def steps(count: float) -> Duration:
    """A count of updates that need not be whole, in a run of T: as torch's phases have it."""
    return Duration(count / (T - 1), "fraction")


def sequential(optimizer: Optimizer) -> LRScheduler:
    with warnings.catch_warnings():  # SequentialLR itself calls step(epoch), which it warns of
        warnings.simplefilter("ignore")
        return peers.SequentialLR(
            optimizer,
            [
                peers.LinearLR(optimizer, start_factor=0.1, total_iters=10),
                peers.CosineAnnealingLR(optimizer, T_max=T - 10, eta_min=0.01 * PEAK),
            ],
            milestones=[10],
        )


CASES: dict[str, tuple[Callable[[Optimizer], LRScheduler], Schedule]] = {
    "StepLR": (
        lambda o: peers.StepLR(o, step_size=13, gamma=0.3),
        Step(every=updates(13), factor=0.3),
    ),
    "MultiStepLR": (
        lambda o: peers.MultiStepLR(o, milestones=[10, 11, 60], gamma=0.2),
        MultiStep(milestones=(updates(10), updates(11), updates(60)), factor=0.2),
    ),
    "ExponentialLR": (
        lambda o: peers.ExponentialLR(o, gamma=0.97),
        Exponential(factor=0.97, per=updates(1)),
    ),
    "ExponentialLR by epochs": (
        lambda o: peers.LambdaLR(o, lambda t: 0.5 ** (t // 8)),
        Step(every=updates(8), factor=0.5),
    ),
    "PolynomialLR": (
        lambda o: peers.PolynomialLR(o, total_iters=T, power=1.7),
        Polynomial(power=1.7),
    ),
    "PolynomialLR that ends early": (
        lambda o: peers.PolynomialLR(o, total_iters=60, power=2.0),
        Join(parts=(Polynomial(), Constant(value=0.0)), boundaries=(updates(60),)),
    ),
    "LinearLR": (
        lambda o: peers.LinearLR(o, start_factor=0.25, end_factor=0.8, total_iters=40),
        Join(parts=(Linear(start=0.25, end=0.8), Constant(value=0.8)), boundaries=(updates(40),)),
    ),
    "ConstantLR": (
        lambda o: peers.ConstantLR(o, factor=0.25, total_iters=30),
        Levels(values=(0.25, 1.0), boundaries=(updates(30),)),
    ),
    "CosineAnnealingLR": (
        lambda o: peers.CosineAnnealingLR(o, T_max=T, eta_min=0.1 * PEAK),
        Cosine(end=0.1),
    ),
    "CosineAnnealingWarmRestarts": (
        lambda o: peers.CosineAnnealingWarmRestarts(o, T_0=11, eta_min=0.05 * PEAK),
        SGDR(first_cycle=updates(11), end=0.05),
    ),
    "CosineAnnealingWarmRestarts, doubling": (
        lambda o: peers.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2),
        SGDR(first_cycle=updates(7), cycle_growth=2.0),
    ),
    "CosineAnnealingWarmRestarts, tripling": (
        lambda o: peers.CosineAnnealingWarmRestarts(o, T_0=2, T_mult=3),
        SGDR(first_cycle=updates(2), cycle_growth=3.0),
    ),
    "SequentialLR": (
        sequential,
        Warmup(duration=updates(10), start=0.1, into=Cosine(end=0.01)),
    ),
}


def assert_equal(values: list[float], expected: list[float], peak: float = PEAK) -> None:
    assert len(values) == len(expected)
    assert values == pytest.approx(expected, rel=1e-12, abs=1e-12 * peak)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_every_update_has_torchs_learning_rate(name: str) -> None:
    make, schedule = CASES[name]
    expected = trace(make, T)
    values = trace(ours(schedule, T), T)
    assert_equal([lr for lr, _ in values], [lr for lr, _ in expected])
    assert {momentum for _, momentum in values} == {0.95}
    assert len(set(expected)) > 1


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("up", "down"), [(7, None), (5, 14)])
def test_every_update_has_the_values_of_torchs_cyclic_lr(
    mode: str, up: int, down: int | None
) -> None:
    gamma = 0.98
    cycle = up + (down or up)
    expected = trace(
        lambda o: peers.CyclicLR(
            o,
            base_lr=0.1 * PEAK,
            max_lr=PEAK,
            step_size_up=up,
            step_size_down=down,
            mode=mode,
            gamma=gamma,
            base_momentum=0.85,
            max_momentum=0.95,
        ),
        T,
    )
    cyclic = Cyclic(
        up=updates(up),
        down=None if down is None else updates(down),
        mode=mode,
        decay=gamma**cycle if mode == "exp_range" else None,
        start=0.1,
    )
    momentum = inverse_momentum(cyclic, lowest=0.85 / 0.95)
    values = trace(ours(cyclic, T, momentum), T)
    assert_equal([lr for lr, _ in values], [lr for lr, _ in expected])
    assert_equal([m for _, m in values], [m for _, m in expected], 0.95)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("torchs", "shape"), [("cos", "cosine"), ("linear", "linear")])
@pytest.mark.parametrize("start", [0.3, 0.1, 0.4537])
def test_every_update_has_the_values_of_torchs_one_cycle_lr(
    three_phase: bool, torchs: str, shape: str, start: float
) -> None:
    expected = trace(
        lambda o: peers.OneCycleLR(
            o,
            max_lr=PEAK,
            total_steps=T,
            pct_start=start,
            anneal_strategy=torchs,
            three_phase=three_phase,
        ),
        T,
    )
    cycle = OneCycle(
        warmup=steps(start * T - 1),
        down=steps(start * T - 1) if three_phase else None,
        start=1 / 25,
        end=1 / 25 / 1e4,
        shape=shape,
        grid="t/(T-1)",
    )
    values = trace(ours(cycle, T, inverse_momentum(cycle, lowest=0.85 / 0.95)), T)
    assert_equal([lr for lr, _ in values], [lr for lr, _ in expected])
    assert_equal([m for _, m in values], [m for _, m in expected], 0.95)
    assert values[-1][0] == pytest.approx(PEAK / 25 / 1e4)


# --- formulas of transformers, by hand; tests/integrations compares with the library itself ------


def warmup_then(after: Callable[[float], float], warmup: int = 10) -> list[float]:
    factors = [t / warmup for t in range(warmup)]
    return factors + [after((t - warmup) / (T - warmup)) for t in range(warmup, T)]


HUGGING_FACE = {
    "cosine": (
        Warmup(duration=updates(10), into=Cosine()),
        warmup_then(lambda p: 0.5 * (1 + math.cos(math.pi * p))),
    ),
    "linear": (Warmup(duration=updates(10), into=Linear()), warmup_then(lambda p: 1 - p)),
    "inverse square root": (
        InverseSquareRoot(warmup=updates(10)),
        [t / 10 if t < 10 else 1 / math.sqrt(t / 10) for t in range(T)],
    ),
    "warm-up, stable, decay": (
        WarmupStableDecay(warmup=updates(10), decay=updates(20), end=0.1, shape="1-sqrt"),
        [
            t / 10 if t < 10 else 1 - 0.9 * math.sqrt(max(0.0, (t - (T - 20)) / 20))
            for t in range(T)
        ],
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_every_update_has_the_factor_of_the_formula(name: str) -> None:
    schedule, factors = HUGGING_FACE[name]
    values = [lr / PEAK for lr, _ in trace(ours(schedule, T), T)]
    assert_equal(values, factors, 1.0)


# --- torch's faults, absent ----------------------------------------------------------------------


def test_one_step_too_many_holds_the_last_value() -> None:
    # torch's OneCycleLR goes back up at update T and raises at T + 1.
    cycle = OneCycle(grid="t/(T-1)")
    values = [lr for lr, _ in trace(ours(cycle, T), T + 5)]
    assert values[T:] == [values[T - 1]] * 5


def test_a_phase_of_one_update_does_not_divide_by_zero() -> None:
    # torch's OneCycleLR(total_steps=2, pct_start=0.5) does.
    cycle = OneCycle(warmup=updates(0), grid="t/(T-1)")
    assert [lr for lr, _ in trace(ours(cycle, 2), 2)] == pytest.approx([PEAK, PEAK * 4e-6])
    one_cycle = OneCycle(warmup=updates(1))
    assert [lr for lr, _ in trace(ours(one_cycle, 2), 2)] == pytest.approx([PEAK / 25, PEAK])


def test_momentum_stays_the_users_unless_it_is_asked_for() -> None:
    assert {momentum for _, momentum in trace(ours(OneCycle(), T), T)} == {0.95}


@pytest.mark.parametrize("saved_at", [0, 9, 10, 11, 33, 96])
@pytest.mark.parametrize(
    "schedule",
    [
        CASES["SequentialLR"][1],
        SGDR(first_cycle=updates(11), cycle_growth=1.5, peak_decay=0.7),
        Join(
            parts=(Linear(start=0.0, end=1.0), Constant(), Step(every=updates(9))),
            boundaries=(updates(10), updates(33)),
        ),
    ],
)
def test_a_resumed_schedule_is_the_recomputed_one(schedule: Schedule, saved_at: int) -> None:
    whole = trace(ours(schedule, T), T)
    for optimizer_first in (True, False):
        optimizer = new_optimizer()
        scheduler = ours(schedule, T)(optimizer)
        for _ in range(saved_at):
            optimizer.step()
            scheduler.step()
        saved = scheduler.state_dict(), optimizer.state_dict()
        optimizer = new_optimizer()
        scheduler = ours(schedule, T)(optimizer)
        if optimizer_first:
            optimizer.load_state_dict(saved[1])
            scheduler.load_state_dict(saved[0])
        else:
            scheduler.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        rest = []
        for _ in range(saved_at, T):
            rest.append((optimizer.param_groups[0]["lr"], 0.95))
            optimizer.step()
            scheduler.step()
        assert rest == whole[saved_at:]


def test_a_scheduler_made_after_its_optimizer_was_loaded_goes_on_rightly() -> None:
    schedule = CASES["SequentialLR"][1]
    whole = trace(ours(schedule, T), T)
    optimizer = new_optimizer()
    scheduler = ours(schedule, T)(optimizer)
    for _ in range(40):
        optimizer.step()
        scheduler.step()
    loaded = new_optimizer()
    loaded.load_state_dict(optimizer.state_dict())
    again = ours(schedule, T)(loaded)  # would begin anew from the decayed lr, were it the setting
    again.load_state_dict(scheduler.state_dict())
    assert loaded.param_groups[0]["lr"] == whole[40][0]
    loaded.step()
    again.step()
    assert loaded.param_groups[0]["lr"] == whole[41][0]
