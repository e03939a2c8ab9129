"""Laws of a whole range test that hold whatever is measured: counts, order, begin and end."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch import (
    ComputeSettings,
    InputError,
    LRRangeSettings,
    Measurement,
    Recipe,
    SGDSettings,
    Task,
    Training,
    measure_lr_range,
    updates,
)
from anybatch.measuring.blow_up import blow_up

QUICK = LRRangeSettings(start_lr=1e-4, num_updates=50, probe_updates=20)
RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.1),
    batch_size=10,  # a whole number of them makes an epoch of 180
    duration=updates(500),
    compute=ComputeSettings(threads=1),
)


class Quadratic(nn.Module):
    """Loss sum of h w^2 / 2 plus noise that is linear in w: gradient descent ends at lr 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (torch.linspace(1.0, 4.0, 5) * self.w**2).sum() + x @ self.w


def make_task() -> Task:
    half = 0.05 * torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    return Task(
        build_model=Quadratic,
        train=(torch.cat([half, -half]), torch.zeros(200)),
        kind="regression",
        loss=lambda outputs, targets: outputs,
    )


def series_of(measured: Measurement, stage: float) -> list[list[tuple[float, float]]]:
    """(lr, loss) of each ramp (stage 0) or short training (stage 1), in the order taken."""
    found: dict[tuple[float, float], list[tuple[float, float]]] = {}
    names = ("stage", "repeat", "series", "lr", "loss")
    for at, repeat, series, lr, loss in zip(*(measured.samples[n] for n in names), strict=True):
        if at == stage and series >= 0:
            found.setdefault((repeat, series), []).append((lr, loss))
    return list(found.values())


def value(measured: Measurement, name: str) -> float:
    found = measured.estimates[name].value
    assert found is not None, measured.estimates[name]
    return found


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure_lr_range(make_task(), RECIPE, settings=replace(QUICK, repeats=2))


def test_every_example_and_second_is_counted(measured: Measurement) -> None:
    assert measured.examples == RECIPE.batch_size * len(measured.samples["lr"])
    assert measured.seconds > 0.0


def test_a_ramp_ends_where_its_loss_has_blown_up_and_not_before(measured: Measurement) -> None:
    for ramp in series_of(measured, 0.0):
        losses = [loss for _, loss in ramp]
        assert [lr for lr, _ in ramp] == QUICK.lrs()[: len(ramp)]
        assert len(losses) < QUICK.num_updates
        assert blow_up(losses) is not None
        assert blow_up(losses[:-1]) is None


def test_the_first_short_training_is_between_the_steepest_place_and_the_minimum(
    measured: Measurement,
) -> None:
    middle = 0.5 * (math.log2(value(measured, "steepest")) + math.log2(value(measured, "minimum")))
    assert series_of(measured, 1.0)[0][0][0] == 2.0 ** round(middle)


def test_short_trainings_beyond_the_edge_are_given_up(measured: Measurement) -> None:
    lengths = {lrs[0][0]: len(lrs) for lrs in series_of(measured, 1.0)}
    assert lengths[max(lengths)] < QUICK.probe_updates
    assert all(n == QUICK.probe_updates for lr, n in lengths.items() if 0.1 < lr < 0.4)


def test_base_lr_is_at_most_a_quarter_of_max_lr_which_is_below_the_edge(
    measured: Measurement,
) -> None:
    assert value(measured, "base_lr") <= value(measured, "max_lr") / 4.0 * (1.0 + 1e-12)
    assert value(measured, "max_lr") <= value(measured, "edge")
    ramp = measure_lr_range(make_task(), RECIPE, settings=replace(QUICK, probe_updates=0))
    assert value(ramp, "base_lr") <= value(ramp, "max_lr") / 4.0 * (1.0 + 1e-12)
    middle = math.sqrt(value(ramp, "steepest") * value(ramp, "minimum"))
    assert value(ramp, "max_lr") == pytest.approx(middle)


def test_that_the_ramp_did_not_diverge_is_not_said_where_short_trainings_did() -> None:
    settings = replace(QUICK, end_lr=0.6)
    found = measure_lr_range(make_task(), RECIPE, settings=settings)
    assert value(found, "edge") == pytest.approx(0.5, rel=0.2)
    assert "never-diverged" not in {finding.name for finding in found.findings}
    ramp = measure_lr_range(make_task(), RECIPE, settings=replace(settings, probe_updates=0))
    assert "never-diverged" in {finding.name for finding in ramp.findings}


def test_a_loss_that_ignores_the_weights_is_tried_no_further() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.w).detach() + 0.0 * self.w.sum()

    task = replace(make_task(), build_model=Detached)
    found = measure_lr_range(task, RECIPE, settings=QUICK)
    assert set(found.samples["stage"]) == {0.0}


def test_the_settings_say_how_far_a_training_had_come() -> None:
    with Training(make_task(), RECIPE) as training:
        for _ in range(3):
            training.step()
        settings = replace(QUICK, num_updates=16, probe_updates=0)
        assert measure_lr_range(training, settings=settings).settings["after_updates"] == 3


# --- a loop of one's own -------------------------------------------------------------------------


class Own:
    """A loop whose loss has a draw of torch's generator in it."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = Quadratic()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.calls = self.skipped = 0
        self.overflows_every = 10**9

    def step(self) -> Tensor:
        self.calls += 1
        loss = self.model(0.05 * torch.randn(1, 5)).mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.calls % self.overflows_every == 0:
            self.skipped += 1
            self.model.w.grad.fill_(math.inf)  # type: ignore[union-attr]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def measure(self, **changes: Any) -> Measurement:
        return measure_lr_range(
            step=self.step,
            optimizer=self.optimizer,
            restore=[self.model, self.scaler],
            settings=replace(QUICK, **changes),
        )


def test_the_first_repeat_draws_what_the_loop_would_have_drawn_and_the_next_other_numbers() -> None:
    expected = float(Own().step())
    first, second = series_of(Own().measure(repeats=2, probe_updates=0), 0.0)
    assert first[0][1] == expected
    assert second[0][1] != expected
    assert second[0][1] == pytest.approx(expected, rel=0.2)  # the weights are those of before


def test_each_update_that_a_scaler_skips_is_taken_again_also_in_short_trainings() -> None:
    own = Own()
    own.overflows_every = 7
    found = own.measure()
    assert own.skipped > 10
    assert len(found.samples["lr"]) == own.calls - own.skipped
    assert 1.0 in found.samples["stage"]


def test_a_tensor_lr_is_filled_and_never_rebound() -> None:
    """A captured graph, or a compiled step, holds it."""
    own, seen = Own(), set()
    own.optimizer.param_groups[0]["lr"] = lr = torch.tensor(0.1)

    def step() -> Tensor:
        assert own.optimizer.param_groups[0]["lr"] is lr
        seen.add(float(lr))
        return own.step()

    settings = replace(QUICK, num_updates=16, probe_updates=0)
    found = measure_lr_range(
        step=step, optimizer=own.optimizer, restore=[own.model, own.scaler], settings=settings
    )
    assert sorted(seen) == pytest.approx(sorted(found.samples["lr"]))
    assert own.optimizer.param_groups[0]["lr"] is lr
    assert lr == torch.tensor(0.1)


def test_groups_that_a_warm_up_has_at_0_are_moved_in_the_ratio_of_their_initial_lr() -> None:
    own, seen = Own(), set()
    own.optimizer.param_groups[0] |= {"lr": 0.0, "initial_lr": 0.1}
    other = {"params": [nn.Parameter(torch.ones(1))], "lr": 0.0, "initial_lr": 0.02}
    own.optimizer.add_param_group(other)

    def step() -> Tensor:
        first, second = (group["lr"] for group in own.optimizer.param_groups)
        seen.add(round(second / first, 9))
        return own.step()

    settings = replace(QUICK, num_updates=16, probe_updates=0)
    measure_lr_range(
        step=step, optimizer=own.optimizer, restore=[own.model, own.scaler], settings=settings
    )
    assert seen == {0.2}
    assert [group["lr"] for group in own.optimizer.param_groups] == [0.0, 0.0]


def test_data_that_end_are_refused() -> None:
    own, batches = Own(), iter(range(20))

    def step() -> Tensor:
        next(batches)
        return own.step()

    with pytest.raises(InputError, match="must not run out of data"):
        measure_lr_range(step=step, optimizer=own.optimizer, restore=[own.model], settings=QUICK)
    assert own.model.w.tolist() == [1.0] * 5
