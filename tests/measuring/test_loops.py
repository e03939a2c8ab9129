"""The loops that a measurement drives: where they begin, what they read, whose lr they move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch import (
    SGDR,
    AdamWSettings,
    Augmentation,
    BlockSettings,
    ComputeSettings,
    Cosine,
    GradientPenalty,
    Linear,
    LRRangeSettings,
    Measurement,
    Recipe,
    Schedules,
    SGDSettings,
    SGDWSettings,
    Target,
    Task,
    Training,
    measure_lr_range,
    updates,
)
from anybatch.measuring.loops import TrainingLoop, new_training
from anybatch.optim.decay import decoupled_in_own_run
from anybatch.planning.pilot import pilot_recipe
from anybatch.training.portion import Reading

NOTHING = 1e-30  # an lr that leaves every weight as it is
SETTINGS = LRRangeSettings(start_lr=1e-3, end_lr=1.0, num_updates=16, probe_updates=0)
RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.1, momentum=0.9),
    batch_size=8,
    duration=updates(200),
    compute=ComputeSettings(threads=1),
)


class Noisy(nn.Module):
    """Dropout, and draws that do not care for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(self.drop(x))
        return outputs + 0.1 * torch.randn(2)


def make_task(*, noisy: bool = False) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(400, 4, generator=generator), torch.arange(400) % 2
    return Task(
        build_model=Noisy if noisy else lambda: nn.Linear(4, 2),
        train=(inputs + labels[:, None], labels),
        validation=(inputs[:40], labels[:40]),
    )


@contextmanager
def under_way(recipe: Recipe = RECIPE, *, noisy: bool = False) -> Iterator[Training]:
    """A training that has taken seven updates, so that its momentum is not 0."""
    with Training(make_task(noisy=noisy), recipe) as training:
        for _ in range(7):
            training.step()
        yield training


def losses(loop: TrainingLoop, count: int, lr: float) -> list[float]:
    loop.restart()
    return [loop.update(lr).loss for _ in range(count)]


def first_losses(measured: Measurement) -> list[float]:
    """Of each ramp."""
    columns = (measured.samples[name] for name in ("stage", "update", "loss"))
    return [loss for stage, update, loss in zip(*columns, strict=True) if stage == update == 0]


# --- where a loop begins -------------------------------------------------------------------------


def test_every_restart_gives_the_same_losses() -> None:
    """Momentum, weights, data and draws: a state that is not copied is spoiled the second time."""
    with under_way(noisy=True) as training, TrainingLoop.around(training) as loop:
        first = losses(loop, 6, 0.3)
        assert len(set(first)) == 6
        assert losses(loop, 6, 0.3) == first
        assert losses(loop, 6, 0.3) == first


def test_a_later_beginning_is_whole_batches_further_on() -> None:
    with under_way() as training, TrainingLoop.around(training) as loop:
        found = losses(loop, 9, NOTHING)
        for batches in (3, 5, 0):
            loop.begin_at(batches)
            expected = found[batches : batches + 4]
            assert losses(loop, 4, NOTHING) == pytest.approx(expected, rel=1e-6)


def test_repeats_on_a_training_begin_at_other_data() -> None:
    with under_way() as training:
        first, second = first_losses(
            measure_lr_range(training, settings=replace(SETTINGS, repeats=2))
        )
        assert first != second


def test_repeats_on_a_task_begin_at_other_weights() -> None:
    settings = replace(SETTINGS, repeats=3)
    assert len(set(first_losses(measure_lr_range(make_task(), RECIPE, settings=settings)))) == 3


def test_a_training_found_in_eval_mode_is_measured_in_train_mode_and_left_in_eval_mode() -> None:
    found = []
    for training_mode in (True, False):
        with under_way(noisy=True) as training:
            training.model.train(training_mode)
            found.append(measure_lr_range(training, settings=SETTINGS).samples["loss"])
            assert training.model.training == training_mode
    assert found[0] == found[1]


def test_the_metric_changes_nothing_and_is_that_of_eval_mode() -> None:
    with under_way(noisy=True) as training, TrainingLoop.around(training) as loop:
        without = losses(loop, 6, 0.1)
        loop.restart()
        samples = [loop.update(0.1, with_metric=True) for _ in range(6)]
        assert [sample.loss for sample in samples] == without
        assert all(0.0 <= sample.metric <= 1.0 for sample in samples)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_loss_is_the_mean_over_its_batch(micro_batch_size: int | None) -> None:
    """So that an epoch of small batches has the mean of one large batch."""
    means = []
    for size in (8, 360):
        recipe = replace(RECIPE, batch_size=size, micro_batch_size=micro_batch_size)
        with new_training(make_task(), recipe, seed=0, world=None) as training:
            loop = TrainingLoop(training)
            samples = [loop.update(NOTHING) for _ in range(360 // size)]
            assert {sample.examples for sample in samples} == {size}
            means.append(sum(sample.loss for sample in samples) / len(samples))
            loop.close()
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    assert 0.2 < means[1] < 2.0


# --- whose settings ------------------------------------------------------------------------------


def test_a_new_training_has_no_schedules_and_no_end() -> None:
    falls = Cosine(end=0.0)
    schedules = Schedules(lr=falls, momentum=falls, weight_decay=falls, batch_size=Linear(end=4.0))
    recipe = replace(
        RECIPE,
        optimizer=SGDSettings(lr=0.1, momentum=0.9, weight_decay=0.01),
        duration=updates(5),
        schedules=schedules,
        stopping=replace(RECIPE.stopping, target=Target("loss", "<=", 99.0), patience=1),
        augmentation=Augmentation(),
    )
    with new_training(make_task(), recipe, seed=5, world=None) as training:
        for _ in range(8):
            record = training.step()
            assert record is None or record.batch_size == 8
        group = training.optimizer.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 0.01)
        assert training.recipe.stopping.target is None
        assert training.recipe.stopping.patience is None
        assert training.recipe.seed == 5


def test_the_lr_is_the_one_that_was_asked_for_whatever_the_schedule_says() -> None:
    """One update from the same weights: what it moves is lr times the same gradient."""
    recipe = replace(RECIPE, optimizer=SGDSettings(lr=0.1), schedules=Schedules(lr=Cosine(end=0.0)))
    with under_way(recipe) as training, TrainingLoop.around(training) as loop:
        moved = []
        for lr in (0.25, 0.5):
            loop.restart()
            before = [p.detach().clone() for p in training.model.parameters()]
            loop.update(lr)
            gradients = [p.grad for p in training.model.parameters()]
            for parameter, then, gradient in zip(
                training.model.parameters(), before, gradients, strict=True
            ):
                assert gradient is not None
                torch.testing.assert_close(then - parameter.detach(), lr * gradient)
            moved.append(before[0] - next(training.model.parameters()).detach())
        torch.testing.assert_close(moved[1], 2.0 * moved[0])


def test_a_batch_whose_loss_is_not_finite_is_passed_over_and_moves_nothing() -> None:
    inputs, labels = (
        torch.randn(64, 4, generator=torch.Generator().manual_seed(1)),
        torch.arange(64),
    )

    class Broken(nn.Module):
        """The third forward pass after `calls` is 0 gives nan."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x) * (math.nan if self.calls == 3 else 1.0)

    task = Task(build_model=Broken, train=(inputs, labels % 2), validation=(inputs, labels % 2))
    with new_training(task, RECIPE, seed=0, world=None) as training:
        loop = TrainingLoop(training)
        model = training.model
        model.calls = 3
        whole = losses(loop, 5, NOTHING)
        model.calls = 0
        found = losses(loop, 5, NOTHING)
        before = [p.detach().clone() for p in model.parameters()]
        assert found == pytest.approx([*whole[:2], math.nan, *whole[3:]], nan_ok=True)
        model.calls = 2
        assert math.isnan(loop.update(0.5).loss)
        assert all(map(torch.equal, before, model.parameters()))
        loop.close()


# --- settings that go with the lr or with the length ---------------------------------------------


def test_a_penalty_in_units_of_lr_follows_the_lr_that_is_tried() -> None:
    penalty = GradientPenalty(coefficient=1.0, unit="lr", method="exact")
    recipe = replace(RECIPE, blocks=BlockSettings(size=4, penalty=penalty))
    with new_training(make_task(), recipe, seed=0, world=None) as tried:
        TrainingLoop(tried).update(0.4)
        found = [parameter.detach().clone() for parameter in tried.model.parameters()]
    with Training(make_task(), replace(recipe, optimizer=SGDSettings(lr=0.4))) as training:
        training.step()
        torch.testing.assert_close(found, [*training.model.parameters()], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", [SGDWSettings, AdamWSettings])
def test_a_normalized_decay_is_that_of_the_recipes_own_run(kind: Any) -> None:
    settings = kind(lr=0.1, weight_decay=0.05, decay="normalized")
    recipe = replace(RECIPE, optimizer=settings, duration=updates(100))
    with new_training(make_task(), recipe, seed=0, world=None) as training:
        assert training.one_step.hyperparameters.current()["weight_decay"] == pytest.approx(0.005)
        assert training.recipe.optimizer.decay == "decoupled"
    pilot = pilot_recipe(recipe, 16, 0.2, num_examples=360)
    assert pilot.optimizer.weight_decay == pytest.approx(0.005)
    restarted = replace(recipe, schedules=Schedules(lr=SGDR(first_cycle=updates(25))))
    assert decoupled_in_own_run(restarted, 360).weight_decay == pytest.approx(0.01)


def test_a_full_batch_is_read_part_by_part_in_a_measurement_too() -> None:
    recipe = replace(RECIPE, batch_size="full")
    with new_training(make_task(), recipe, seed=0, world=None) as training:
        portion = training.feed.standing_still().next()
        assert isinstance(portion.examples, Reading)
        assert portion.num_examples == training.feed.source.num_examples
