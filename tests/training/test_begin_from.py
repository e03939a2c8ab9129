"""A training that begins where another one of the same model stands."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from anybatch.recipe import AdamWSettings, PolynomialAverage, Recipe, Schedules, SGDSettings
from anybatch.schedules import Linear, examples, updates
from anybatch.task import Task
from anybatch.training.training import Training

RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.1, momentum=0.9, weight_decay=1e-3),
    batch_size=8,
    duration=updates(9),
)


def make_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 4, generator=generator)
    return Task(build_model=lambda: nn.Linear(4, 2), train=(inputs, (inputs[:, 0] > 0).long()))


def begun(recipe: Recipe) -> tuple[Training, dict[str, object]]:
    training = Training(make_task(), recipe)
    for _ in range(5):
        training.step()
    return training, training.state_dict()


def test_it_goes_on_as_the_other_would_have_with_the_same_recipe() -> None:
    training, state = begun(RECIPE)
    other = Training(make_task(), replace(RECIPE, duration=updates(500)))
    other.begin_from(state)
    for one in (training, other):
        for _ in range(3):
            one.step()
    assert other.updates == training.updates == 8
    assert all(map(torch.equal, other.model.parameters(), training.model.parameters()))


@pytest.mark.parametrize("optimizer", [SGDSettings(lr=0.1, momentum=0.9), AdamWSettings(lr=0.01)])
def test_settings_are_its_own_and_what_was_learned_is_the_others(optimizer) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    training, state = begun(recipe)
    before = copy.deepcopy(state)
    own = replace(
        recipe,
        optimizer=replace(optimizer, lr=0.03, weight_decay=0.2),
        batch_size=20,
        duration=examples(400),
    )
    other = Training(make_task(), own)
    other.begin_from(state)
    group = other.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.2)
    assert (other.feed.examples, other.feed.next().num_examples) == (40, 20)
    assert all(map(torch.equal, other.model.parameters(), training.model.parameters()))
    moments = [next(iter(o.optimizer.state_dict()["state"].values())) for o in (training, other)]
    for name, value in moments[0].items():
        assert value is None or torch.equal(value, moments[1][name]), name
    weight = training.model.weight.detach().clone()
    other.step()
    assert other.updates == 6
    assert torch.equal(training.model.weight, weight)  # nothing is shared
    assert str(state) == str(before)


def test_a_schedule_is_read_at_the_position_in_the_new_run() -> None:
    _, state = begun(RECIPE)
    own = replace(RECIPE, schedules=Schedules(lr=Linear()), duration=examples(80))
    other = Training(make_task(), own)
    other.begin_from(state)
    other.step()
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 40 / 80))


def test_an_average_that_the_other_lacks_begins_at_its_weights() -> None:
    training, state = begun(RECIPE)
    other = Training(make_task(), replace(RECIPE, averaging=PolynomialAverage()))
    other.begin_from(state)
    assert torch.equal(other.kept_model.weight, training.model.weight)
