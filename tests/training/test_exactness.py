"""Accumulation changes nothing; a saved, a resumed and a measured training go on bit for bit.

Ranks are in tests/distributed; the networks and recipes are the same.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.recipe import ExponentialAverage, Recipe, RecordSettings, Schedules, Stopping
from anybatch.records import TIME_FIELDS
from anybatch.schedules import Linear, OneCycle, epochs
from anybatch.task import Task
from anybatch.training.outcome import Outcome
from anybatch.training.snapshot import preserved_training, random_state
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
BASE = {name: (network, recipe) for name, network, recipe in cases.base_cases()}
DIVISIONS = [
    (name, micro)
    for name, (_, recipe) in BASE.items()
    for micro in ((4, 8, 12) if recipe.ghost_batch_size else (1, 3, 5, 8, 15, 16, 100))
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- accumulation ----------------------------------------------------------------------------


@cache
def undivided(name: str) -> cases.Result:
    return cases.train(*BASE[name], ONE)


@pytest.mark.parametrize(("name", "micro"), DIVISIONS)
def test_fifty_updates_by_micro_batches_equal_the_undivided_ones(name, micro):
    network, recipe = BASE[name]
    divided = cases.train(network, replace(recipe, micro_batch_size=micro), ONE)
    cases.assert_same(divided, undivided(name))


def test_the_fifty_updates_have_unequal_last_batches_and_statistics_that_move():
    result = undivided("mlp-sgd-ghosts")
    steps = [record for record in result["records"] if "lr" in record]
    assert steps[-1]["update"] == 50
    assert steps[-1]["batch_size"] == 6
    assert set(result["tracked"]) == {50}
    assert len(result["statistics"]) == 4
    fresh = cases.smooth_mlp(True).state_dict()
    for key, value in result["statistics"].items():
        assert float((value - fresh[key]).norm()) > 0.01


def test_everything_at_once_is_the_same_by_micro_batches():
    recipe = cases.everything()
    whole = cases.train("cnn", recipe, ONE)
    for micro in (4, 8):
        cases.assert_same(cases.train("cnn", replace(recipe, micro_batch_size=micro), ONE), whole)
    norms = [record["gradient_norm"] for record in whole["records"] if "lr" in record]
    assert min(norms) < 3.0 < max(norms)  # some updates are clipped, some are not
    assert cases.relative_difference(whole["average"], whole["weights"]) > 1e-6


@pytest.mark.parametrize("name", [name for name, _, _ in cases.few_examples_cases()])
def test_batches_smaller_than_a_ghost_or_of_one_example_accumulate_too(name):
    network, recipe = {n: case for n, *case in cases.few_examples_cases()}[name]
    for batch_size in (1, 3, 5):
        whole = replace(recipe, batch_size=batch_size)
        micro = replace(whole, micro_batch_size=recipe.ghost_batch_size or 1)
        cases.assert_same(cases.train(network, micro, ONE), cases.train(network, whole, ONE))


def flat_gradient(training: Training) -> Tensor:
    return torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("ghost", [None, 4])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_float32_gradient_by_micro_batches_is_within_1e_6_of_the_parts_norm(network, ghost):
    compute = replace(cases.COMPUTE, precision="fp32")
    recipe = cases.make_recipe("sgd", ghost, batch_size=64, compute=compute)
    task = cases.make_task(network, ghost is not None)

    def gradient(recipe: Recipe) -> Tensor:
        training = Training(task, recipe, world=ONE)
        training.gradient(training.feed.next())
        return flat_gradient(training)

    accumulated = gradient(replace(recipe, micro_batch_size=4))
    whole = Training(task, recipe, world=ONE)
    portion = whole.feed.next()
    norms = []
    for start in range(0, 64, 4):
        part = type(portion.batch)(*(t[start : start + 4] for t in portion.batch))
        whole.gradient(replace(portion, examples=part, num_examples=4))
        norms.append(float(flat_gradient(whole).norm()))
    assert accumulated.dtype == torch.float32
    difference = float((accumulated - gradient(recipe)).norm())
    assert 0 < difference <= 1e-6 * (sum(norms) / len(norms))


# --- state -----------------------------------------------------------------------------------


def awkward_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def awkward_task() -> Task:
    return Task(
        build_model=awkward_network,
        train=cases.examples_of((6,), 70, seed=1),
        validation=cases.examples_of((6,), 33, seed=2),
    )


def awkward_recipe(rule: str = "sgd") -> Recipe:
    """Dropout, BatchNorm, averages, a growing batch size, one cycle, windows of 5 updates."""
    return cases.make_recipe(
        rule,
        4,
        duration=epochs(6),
        schedules=Schedules(lr=OneCycle(), batch_size=Linear(start=0.5, end=1.5)),
        averaging=ExponentialAverage(decay=0.9, every=2),
        compute=replace(cases.COMPUTE, precision="fp32"),
        records=RecordSettings(log_every=5),
        stopping=Stopping(evaluate_every=epochs(1), patience=50),
    )


def new_training(rule: str = "sgd") -> Training:
    return Training(awkward_task(), awkward_recipe(rule), world=ONE)


def without_times(value: Any) -> Any:
    """A state or record as nested plain values and tensors, without the fields of time."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return without_times(dataclasses.asdict(value))
    if isinstance(value, dict):
        times = TIME_FIELDS | {"window_seconds"}
        return {k: without_times(v) for k, v in value.items() if k not in times}
    if isinstance(value, (list, tuple)):
        return [without_times(item) for item in value]
    return value


def assert_bitwise(one: Any, other: Any, path: str = "state") -> None:
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_bitwise(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_bitwise(left, right, f"{path}[{number}]")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def snapshot(training: Training) -> Any:
    return copy.deepcopy(without_times(training.state_dict()))


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("num_rounds", "num_steps"),
    [(0, 0), (0, 3), (1, 0), (1, 2), (2, 1), (3, 2), (4, 0), (7, 3)],
)
def test_a_saved_and_loaded_training_goes_on_bit_for_bit(rule, num_rounds, num_steps):
    uninterrupted = new_training(rule)
    expected = list(uninterrupted)
    first = new_training(rule)
    said = [record for records in islice(first.rounds(), num_rounds) for record in records]
    for _ in range(num_steps):
        first.step()  # into the middle of a log window
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = new_training(rule)
    torch.rand(7), np.random.rand(3), random.random()  # noqa: NPY002 - another process drew these
    second.load_state_dict(torch.load(file, weights_only=True))
    assert_bitwise(snapshot(second), snapshot(first))
    said += list(second)
    assert_bitwise(without_times(said), without_times(expected))
    assert_bitwise(snapshot(second), snapshot(uninterrupted))


def disturb(training: Training) -> None:
    """What measurements do: step, evaluate, change settings, draw, switch modes, stop."""
    for _ in range(13):  # past the end of an epoch
        training.step()
    training.evaluate("validation")
    training.model.eval()
    training.optimizer.param_groups[0]["lr"] = 123.0
    next(training.model.parameters()).data.fill_(float("nan"))
    torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
    training.gradient(training.feed.next())


class _MeasurementError(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_measurement_leaves_the_training_bitwise_as_found(rule, fails):
    measured, undisturbed = new_training(rule), None
    for number in range(2):  # a training that is measured, and one that is not
        torch.manual_seed(0)
        training = new_training(rule)
        for _ in range(8):  # in the middle of an epoch and of a log window
            training.step()
        training.model[1].eval()  # a layer that the user has frozen
        if number == 0:
            measured = training
            before = snapshot(training)
            gradient = flat_gradient(training).clone()
            try:
                with preserved_training(training):
                    disturb(training)
                    if fails:
                        raise _MeasurementError
            except _MeasurementError:
                assert fails
            assert_bitwise(snapshot(training), before)
            assert torch.equal(flat_gradient(training), gradient)
            assert [m.training for m in training.model.modules()] == [True] * 2 + [False] + [
                True
            ] * 3
        else:
            undisturbed = training
        for _ in range(20):
            training.step()
        if number == 0:
            after = snapshot(training)
    assert undisturbed is not None
    assert_bitwise(after, snapshot(undisturbed))
    assert measured.updates == undisturbed.updates == 28


def test_a_measurement_before_the_first_update_leaves_no_optimizer_state():
    training = new_training("adamw")
    with preserved_training(training):
        disturb(training)
    assert training.optimizer.state_dict()["state"] == {}
    assert all(p.grad is None for p in training.model.parameters())
    assert_bitwise(without_times(list(training)), without_times(list(new_training("adamw"))))


def test_evaluation_changes_nothing_but_the_records():
    training = new_training()
    for _ in range(3):
        training.step()
    before, generators = snapshot(training), random_state()
    training.kept_model[3].eval()
    for split in ("train", "validation"):
        training.evaluate(split)
    assert_bitwise(snapshot(training), before)
    assert_bitwise(random_state(), generators)
    assert [m.training for m in training.kept_model.modules()] == [True] * 4 + [False, True]


def test_a_gradient_that_is_not_taken_leaves_no_trace():
    # Forward passes in training mode feed BatchNorm; only those of the update taken may count.
    twice, once = new_training(), new_training()
    for training in (twice, once):
        torch.manual_seed(5)
        if training is twice:
            training.gradient(training.feed.next())
            torch.manual_seed(5)
        training.step()
    assert_bitwise(snapshot(twice), snapshot(once))


def test_a_measurement_between_gradient_and_update_leaves_no_trace():
    measured, undisturbed = new_training(), new_training()
    for training in (measured, undisturbed):
        torch.manual_seed(1)
        portion = training.feed.next()
        training.gradient(portion)
        if training is measured:
            with preserved_training(training):
                disturb(training)
        training.update(portion.num_examples)
    assert_bitwise(snapshot(measured), snapshot(undisturbed))


def test_a_measurement_leaves_the_outcome_as_found():
    training = new_training()
    training.outcome = Outcome(name="interrupted", reason="by SIGINT")
    with preserved_training(training):
        training.outcome = None
    assert training.outcome == Outcome(name="interrupted", reason="by SIGINT")
