"""Doctor: each thing that is commonly wrong, put in on purpose, is found; a sound task has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.cli import main
from anybatch.measurement import Measurement
from anybatch.measuring import doctor_checks as checks
from anybatch.measuring import doctor_timing
from anybatch.measuring.doctor import DoctorSettings, estimates_of, examine
from anybatch.objectives import Metric
from anybatch.recipe import Augmentation, Recipe, SGDSettings
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

RECIPE = Recipe(optimizer=SGDSettings(lr=0.1, momentum=0.9), batch_size=16, duration=updates(50))
QUIET = DoctorSettings(timing=False, seconds=20.0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


def data(num_examples: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_examples) % 3
    inputs = torch.randn(num_examples, 6, generator=generator)
    inputs[:, 0] += 1.5 * labels - 1.5
    return inputs, labels


def task_of(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "build_model": network,
        "train": data(),
        "validation": data(60, 1),
        "test": data(60, 2),
    }
    return Task(**(values | changes))


def found_in(task: Task, recipe: Recipe = RECIPE) -> dict[str, str]:
    """Sentence of each finding."""
    measured = examine(task, recipe, settings=QUIET)
    return {finding.name: finding.sentence for finding in measured.findings}


def text_of(task: Task, check: str, recipe: Recipe = RECIPE) -> str:
    checks_found: dict[str, str] = examine(task, recipe, settings=QUIET).settings["checks"]
    return checks_found[check]


def test_nothing_is_found_in_a_sound_task() -> None:
    measured = examine(task_of(), RECIPE, settings=QUIET)
    assert not measured.findings, measured.findings
    assert set(measured.samples["ok"]) == {1}
    assert len(measured.settings["checks"]) == len(measured.samples["ok"])
    assert measured.estimates["expected_loss"].value == pytest.approx(math.log(3.0))
    assert measured.estimates["fall_on_one_batch"].value > 0.9
    assert estimates_of(measured.samples, measured.settings) == measured.estimates


# --- data ----------------------------------------------------------------------------------------


def changed(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Task:
    return task_of(train=change(*data()))


def with_constant(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    inputs[:, 4] = 0.25
    return inputs, labels


def with_rare(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    labels[labels == 2] = 0
    labels[7] = 2
    return inputs, labels


def with_copies(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    inputs[30:60], labels[30:60] = inputs[:30], labels[:30]
    return inputs, labels


def with_contradictions(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    inputs[30:32], labels[30:32] = inputs[:2], (labels[:2] + 1) % 3
    return inputs, labels


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (lambda x, y: (x * 1000.0, y), "inputs", "standard deviation 1.14e+03"),
        (lambda x, y: (x + 50.0, y), "inputs", "mean 50"),
        (with_constant, "features", "1 of 6 features have one value"),
        (lambda x, y: (x * torch.tensor([1.0, 1, 1, 1, 1, 1e-3]), y), "features", "a factor 1"),
        (lambda x, y: (x, torch.zeros_like(y)), "labels", "of one class: there is nothing"),
        (with_rare, "labels", "classes with one example of 300 training examples: 2"),
        (lambda x, y: (x, y % 2), "labels", "2 of the model's 3 classes occur"),
        (with_copies, "duplicates", "30 of 300 training inputs came before"),
        (with_contradictions, "contradictions", "2 of 300 inputs came before with another"),
    ],
)
def test_data_that_are_wrong_are_found(change: Any, name: str, said: str) -> None:
    found = found_in(changed(change))
    assert name in found, found
    assert said in found[name]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_examples_in_train_are_found(split: str) -> None:
    inputs, labels = data(60, 4)
    inputs[5:7] = data()[0][100:102]
    found = found_in(task_of(**{split: (inputs, labels)}))
    assert found == {f"{split}-in-train": f"2 of 60 {split} inputs are among 300 of train"}


def test_constant_targets_of_a_regression_are_found() -> None:
    inputs = data()[0]
    constant = inputs, torch.full((300, 1), 3.0)
    task = task_of(build_model=lambda: nn.Linear(6, 1), kind="regression", train=constant,
                   validation=constant, test=None)  # fmt: skip
    assert "labels" in found_in(task)


def test_targets_of_another_scale_are_found() -> None:
    inputs = data()[0]
    far = inputs, 500.0 + torch.randn(300, 1)
    task = task_of(build_model=lambda: nn.Linear(6, 1), kind="regression", train=far,
                   validation=far, test=None)  # fmt: skip
    assert "standardize the targets" in str(examine(task, RECIPE, settings=QUIET).findings)


class _Rare(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        inputs, labels = data()
        inputs[3, 1] = math.nan
        return iter(list(zip(inputs, labels, strict=True)))


def test_a_stream_is_looked_at_and_its_bad_inputs_are_found() -> None:
    found = found_in(task_of(train=_Rare(), num_examples=300))
    assert found["inputs"] == "1 examples hold nan or inf"


# --- model ---------------------------------------------------------------------------------------


class _Model(nn.Module):
    """A network with one thing wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.last, self.fault = nn.Linear(6, 32), nn.Linear(32, 3), fault
        self.unused = nn.Linear(2, 2) if fault == "unused" else None
        with torch.no_grad():
            if fault == "dead":
                self.first.bias[:20] = -100.0
            if fault == "loud":
                self.last.weight *= 60.0
            if fault == "vanishing":
                self.first.weight *= 1e-5
                self.first.bias *= 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.first(inputs))
        if self.fault == "detached":
            hidden = hidden.detach()
        if self.fault == "ignores":
            hidden = 0.0 * hidden
        outputs: Tensor = self.last(hidden)
        return outputs


@pytest.mark.parametrize(
    ("fault", "name", "said"),
    [
        ("unused", "gradients", "2 of 6 trainable tensors get none: unused.weight, unused.bias"),
        ("detached", "gradients", "2 of 4 trainable tensors get none: first.weight, first.bias"),
        ("dead", "dead-units", "20 of 32 never fire"),
        ("loud", "initial-loss", "ln of 3 classes is 1.099"),
        ("vanishing", "activations", "(first)"),
        ("ignores", "one-batch", "loss"),
    ],
)
def test_models_that_are_wrong_are_found(fault: str, name: str, said: str) -> None:
    found = found_in(task_of(build_model=lambda: _Model(fault)))
    assert name in found, found
    assert said in found[name]


def test_a_loss_that_is_not_finite_is_found() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - outputs[:, 0]).log().abs() + 0.0 * targets

    assert found_in(task_of(loss=loss))["initial-loss"] == "the loss is not finite"


def test_frozen_and_tied_parameters_are_named_and_nothing_is_wrong() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(),
                              nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))  # fmt: skip
        model[2].weight = model[0].weight
        model[2].bias.requires_grad_(False)
        return model

    measured = examine(task_of(build_model=build), RECIPE, settings=QUIET)
    said = measured.settings["checks"]["parameters"]
    assert said == "7 tensors; 1 frozen: 2.bias; tied: 0.weight = 2.weight"
    assert "gradients" not in {finding.name for finding in measured.findings}


def test_a_metric_that_points_the_wrong_way_is_found() -> None:
    def errors(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).float()

    wrong = Metric(name="error", direction="max", per_example=errors)
    assert list(found_in(task_of(metric=wrong))) == ["metric"]
    assert not found_in(task_of(metric=replace(wrong, direction="min")))


def test_tiny_batches_under_batch_norm_are_found() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))

    found = found_in(task_of(build_model=build), replace(RECIPE, batch_size=4))
    assert found["batch-norm"] == "4 examples share statistics"
    assert "batch-norm" not in found_in(task_of(build_model=build))


def test_dropout_does_not_hide_that_a_batch_can_be_learned() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.9), nn.Linear(32, 3))

    assert not found_in(task_of(build_model=build))


def test_a_training_under_way_is_looked_at_where_it_stands() -> None:
    with Training(task_of(), RECIPE) as training:
        for _ in range(40):
            training.step()
        measured = examine(training, settings=QUIET)
    assert measured.estimates["initial_loss"].value < 0.9
    assert not [f for f in measured.findings if f.name == "initial-loss"]


# --- machine, and rules --------------------------------------------------------------------------


def test_the_machine_is_timed_and_threads_are_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    real = doctor_timing._update_seconds

    def timed(training: Training, *rest: Any) -> float:
        seen.append(torch.get_num_threads())
        real(training, rest[0], 0.0)
        return 1.0 if len(seen) == 1 else 0.1

    monkeypatch.setattr(doctor_timing, "_update_seconds", timed)
    monkeypatch.setattr(doctor_timing.os, "sched_getaffinity", lambda _: {0, 1, 2})
    measured = examine(task_of(), RECIPE, settings=DoctorSettings(seconds=0.5))
    assert seen == sorted({1, before, 3})
    assert torch.get_num_threads() == before
    (finding,) = (f for f in measured.findings if f.name == "threads")
    assert finding.advice == "--set compute.threads=3"
    assert "examples/s" in measured.settings["checks"]["loader"]


@pytest.mark.parametrize(
    ("made", "is_ok"),
    [
        (checks.threads({1: 0.1, 8: 0.2}, 8), False),
        (checks.threads({1: 0.1, 8: 0.11}, 8), True),
        (checks.loader(100.0, 1000.0, 0), False),
        (checks.loader(1000.0, 100.0, 0), True),
        (checks.batch_size(500, 300), False),
        (checks.one_batch(1.0, 0.5, 60, 0.1, in_time=True), False),
        (checks.one_batch(1.0, 0.5, 60, 0.1, in_time=False), True),  # it may yet have been
        (checks.initial_loss(0.1, 2.3, meaning="ln", is_trained=False), False),
        (checks.initial_loss(0.1, 2.3, meaning="ln", is_trained=True), True),
        (checks.initial_loss(9.0, 2.3, meaning="ln", is_trained=True), False),
        (checks.activation_scale({"a": 1.0, "b": math.nan}), False),
        (checks.class_balance([990, 10], kind="1,000", outputs=2, is_whole=True), False),
        (checks.class_balance([9, 1], kind="10", outputs=3, is_whole=False), True),
    ],
)
def test_rules(made: checks.Check, is_ok: bool) -> None:
    assert made.is_ok is is_ok
    assert made.text
    assert made.is_ok or made.advice


def test_what_could_not_be_looked_at_is_said() -> None:
    assert text_of(task_of(test=None), "test-in-train").startswith("not looked at")
    assert text_of(task_of(), "threads") == "not looked at: left out"


def test_findings_carry_an_advice() -> None:
    measured: Measurement = examine(changed(with_copies), RECIPE, settings=QUIET)
    assert all(finding.advice for finding in measured.findings)


def test_the_command_prints_a_row_for_each_check_and_ends_with_0_or_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "digits", "--no-timing", "--out", "well"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "result"]
    assert lines[9].startswith("initial-loss         ok      2.3")
    assert lines[-1] == "run: well"
    cold = ["--set", "optimizer.lr=0", "--no-timing", "--out", "ill"]
    assert main(["doctor", "digits", *cold]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert len(said) == 1
    assert said[0].startswith("! one-batch: the loss of 2.41 does not fall at any lr; look for")
    axes = Run(tmp_path / "ill").measurements()["doctor"].plot()
    assert "one-batch" in {text.get_text() for text in axes.texts}


def test_an_epoch_of_fixed_copies_holds_each() -> None:
    recipe = replace(RECIPE, batch_size="full", augmentation=Augmentation(copies=2))
    assert "batch-size" not in found_in(task_of(), recipe)
