"""One table of all measurements, and the laws that each of them keeps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.measurement import Measurement
from anybatch.measuring.doctor import DoctorSettings, examine
from anybatch.measuring.loss_oscillation import (
    LossOscillationSettings,
    measure_loss_oscillation,
)
from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range
from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale
from anybatch.measuring.sharpness import SharpnessSettings, measure_sharpness
from anybatch.measuring.stage_times import StageTimesSettings, measure_stage_times
from anybatch.measuring.throughput import ThroughputSettings, measure_throughput
from anybatch.recipe import ClipGlobalNorm, Recipe, SGDSettings
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

# Of a task with a recipe, or of a training under way (then the recipe is None).
MEASUREMENTS: dict[str, Callable[[Task | Training, Recipe | None], Measurement]] = {
    "lr-range": lambda subject, recipe: measure_lr_range(
        subject,
        recipe,
        settings=LRRangeSettings(start_lr=1e-4, num_updates=30, probe_updates=10, repeats=2),
    ),
    "sharpness": lambda subject, recipe: measure_sharpness(
        subject, recipe, settings=SharpnessSettings(num_examples=60, max_iterations=8, repeats=2)
    ),
    "loss-oscillation": lambda subject, recipe: measure_loss_oscillation(
        subject,
        recipe,
        settings=LossOscillationSettings(batch_sizes=(4, 40), num_updates=45, cosine_every=2),
    ),
    # What it times is told apart from the rest, which is the same twice.
    "doctor": lambda subject, recipe: examine(
        subject, recipe, settings=DoctorSettings(timing=False)
    ),
    "noise-scale": lambda subject, recipe: measure_noise_scale(
        subject, recipe, settings=NoiseScaleSettings(max_probes=12)
    ),
    "stage-times": lambda subject, recipe: measure_stage_times(
        subject, recipe, settings=StageTimesSettings(seconds=0.1, rounds=2, max_examples=8)
    ),
    "throughput": lambda subject, recipe: measure_throughput(
        subject, recipe, settings=ThroughputSettings(seconds=0.3, rounds=2, max_micro_batch_size=4)
    ),
}
TIMED = {"stage-times", "throughput"}
RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.05, momentum=0.9),
    batch_size=20,
    duration=updates(60),
    gradient=(ClipGlobalNorm(max_norm=5.0),),
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
    )


class Detached(nn.Module):
    """Outputs that no weight moves: nothing can be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        return outputs.detach() + 0.0 * outputs


def make_task(build_model: Callable[[], nn.Module] = network) -> Task:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    inputs = torch.randn(400, 5, generator=generator) + 2.0 * labels[:, None]
    return Task(build_model=build_model, train=(inputs, labels))


@cache
def measured(name: str, *, learns: bool = True) -> Measurement:
    """Of a task that can be learned, or of one that cannot."""
    return MEASUREMENTS[name](make_task(network if learns else Detached), RECIPE)


def comparable(found: Measurement) -> str:
    """What must be the same twice; of seconds that were measured, what they were measured of."""
    if found.kind not in TIMED:
        return str(replace(found, seconds=0.0))
    of_what = [sorted(set(found.samples[column])) for column in ("batch_size", "round")]
    return str([of_what, sorted(found.estimates), sorted(found.settings)])


def global_random_state() -> list[object]:
    python, kind_and_key = random.getstate(), np.random.get_state()  # noqa: NPY002
    return [python, str(kind_and_key), torch.get_rng_state().tolist()]


def parts_of(training: Training) -> list[Tensor]:
    """Weights, gradients, buffers, optimizer state and settings, modes, place in the data."""
    optimizer = training.optimizer.state_dict()
    parameters = list(training.model.parameters())
    state = [v for values in optimizer["state"].values() for v in values.values()]
    settings = [v for g in optimizer["param_groups"] for v in g.values() if not isinstance(v, list)]
    feed = (training.feed.epoch, training.feed.offset, training.feed.examples, training.updates)
    modes = [float(module.training) for module in training.model.modules()]
    found = [*parameters, *training.model.buffers()]
    found += [p.grad for p in parameters if p.grad is not None]
    found += [v for v in state if isinstance(v, Tensor)]
    numbers = [float(v) for v in settings if isinstance(v, (int, float))]
    found += [torch.tensor([*feed, *modes, *numbers], dtype=torch.float64)]
    return [tensor.detach().clone() for tensor in found]


both = pytest.mark.parametrize("learns", [True, False])
every = pytest.mark.parametrize("name", MEASUREMENTS)


@every
def test_a_training_is_bitwise_as_found(name: str) -> None:
    with Training(make_task(), RECIPE) as training:
        for _ in range(3):
            training.step()
        training.one_step.train_mode()
        before, random_before = parts_of(training), global_random_state()
        found = MEASUREMENTS[name](training, None)
        assert found.examples > 0
        after = parts_of(training)
        assert len(after) == len(before)
        assert all(map(torch.equal, after, before))
        assert global_random_state() == random_before
        training.step()
        assert not all(map(torch.equal, parts_of(training), before))  # a trace would be seen


@every
def test_a_task_is_bitwise_as_found(name: str) -> None:
    task = make_task()
    before, random_before = task.batch(0, 0, batch_size=300), global_random_state()
    MEASUREMENTS[name](task, RECIPE)
    after = task.batch(0, 0, batch_size=300)
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.targets, after.targets)
    assert global_random_state() == random_before


@both
@every
def test_it_is_the_same_twice(name: str, learns: bool) -> None:
    again = MEASUREMENTS[name](make_task(network if learns else Detached), RECIPE)
    assert comparable(again) == comparable(measured(name, learns=learns))


@every
def test_another_seed_is_another_measurement(name: str) -> None:
    other = MEASUREMENTS[name](make_task(), replace(RECIPE, seed=1))
    columns = [str(found.samples) for found in (other, measured(name))]  # in text, nan is nan
    assert columns[0] != columns[1]


@both
@every
def test_it_comes_back_from_strict_json(name: str, learns: bool) -> None:
    found = measured(name, learns=learns)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Measurement.from_dict(json.loads(text))
    assert str(again) == str(found)  # as text, in which nan is nan
    assert json.dumps(again.to_dict(), allow_nan=False) == text


@every
def test_it_comes_back_from_a_run(name: str, tmp_path) -> None:
    run = Run.create(tmp_path / "run", RECIPE, make_task().reference)
    run.add_measurement(measured(name))
    assert {kind: str(found) for kind, found in Run(run.path).measurements().items()} == {
        name: str(measured(name))
    }


@both
@every
def test_what_it_was_taken_with_and_what_it_cost_are_recorded(name: str, learns: bool) -> None:
    found = measured(name, learns=learns)
    assert found.kind == name
    assert found.examples > 0
    assert found.seconds >= 0.0
    assert (found.settings["batch_size"], found.settings["seed"]) == (20, 0)
    assert found.settings["optimizer"] == "sgd"
    assert "task" in found.settings
    json.dumps(found.settings, allow_nan=False)


@both
@every
def test_its_columns_are_as_long_as_each_other(name: str, learns: bool) -> None:
    found = measured(name, learns=learns)
    for columns in (found.samples, found.fitted):
        assert len({len(column) for column in columns.values()}) <= 1
    assert all(found.samples.values()), "no sample at all"
    assert all(isinstance(v, int | float) for column in found.samples.values() for v in column)


@both
@every
def test_an_estimate_without_value_has_a_reason(name: str, learns: bool) -> None:
    estimates = measured(name, learns=learns).estimates
    assert estimates
    assert any(e.value is None for e in estimates.values()) or learns
    for key, estimate in estimates.items():
        assert estimate.value is not None or estimate.reason, key
        assert estimate.value is None or estimate.low <= estimate.value <= estimate.high, key


@both
@every
def test_a_finding_has_a_sentence_and_an_advice(name: str, learns: bool) -> None:
    findings = measured(name, learns=learns).findings
    assert findings or learns  # where nothing can be learned, something is told
    for finding in findings:
        assert finding.name == finding.name.lower()
        assert " " not in finding.name
        assert finding.sentence, finding.name
        assert finding.advice, finding.name
        assert "\n" not in str(finding)
