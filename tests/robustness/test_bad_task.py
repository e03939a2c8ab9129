"""Bad tasks, data and models in Python: an InputError of one line, and no folder half-written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from robust_tasks import (
    NUM_EXAMPLES,
    BrokenDataset,
    examples,
    linear,
    not_a_number,
    out_of_range,
    recipe_of,
    sound,
    sound_recipe,
    task_of,
    unreadable,
)
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.recipe import LossSettings, RecordSettings, Schedules, Stopping
from anybatch.run import Run
from anybatch.schedules import Linear, Warmup, epochs, updates
from anybatch.study import Study
from anybatch.training.loop import fit, resume
from anybatch.world import World

INPUTS, TARGETS = examples()


def batch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def with_value(tensor: Tensor, index: Any, value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        raise ValueError("not today")


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def pairs() -> list[tuple[Tensor, int]]:
    return [(row, int(label)) for row, label in zip(INPUTS, TARGETS, strict=True)]


STREAM = {"train": lambda: iter(pairs()), "validation": examples()}
NAN = float("nan")

# What differs from a sound task, what differs from a sound recipe, what the message must hold.
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # data
    ({"train": (INPUTS[:0], TARGETS[:0])}, {}, "train inputs must hold at least one example"),
    ({"train": []}, {}, "train dataset must hold at least one example"),
    ({"train": (INPUTS, TARGETS[:9])}, {}, "train inputs and targets must have equally many exa"),
    ({"train": 3}, {}, "train must be (inputs, targets), a Dataset, a DataLoader or an iterable"),
    ({"train": (INPUTS[:1], TARGETS[:1])}, {}, "train must hold at least 2 examples to set valid"),
    (
        {"train": (with_value(INPUTS, (17, 1), NAN), TARGETS)},
        {},
        "train inputs must be finite, example 17 holds nan",
    ),
    (
        {"test": (with_value(INPUTS, (5, 0), float("inf")), TARGETS)},
        {},
        "test inputs must be finite, example 5 holds inf",
    ),
    (
        {"train": (INPUTS, with_value(TARGETS, 17, 7))},
        {},
        "train label of example 17 must be in [0, 2), the model's outputs, got 7",
    ),
    (
        {"validation": (INPUTS, with_value(TARGETS, 3, -1))},
        {},
        "validation label of example 3 must be in [0, 2), the model's outputs, got -1",
    ),
    ({"train": (INPUTS, TARGETS.float())}, {}, "targets must be whole class numbers of shape"),
    ({"train": (np.array([["a"]] * 9), np.arange(9))}, {}, "train inputs must be an array of numb"),
    ({"train": lambda: iter(pairs())}, {}, "validation must be given for a stream, which cannot"),
    # streams
    (STREAM, {}, "duration must be in examples or updates, since the data's length is unknown"),
    (STREAM, {"batch_size": "full"}, "batch_size must be a number for a stream of unknown length"),
    (
        STREAM,
        {"duration": updates(4), "stopping": Stopping()},
        "stopping.evaluate_every must be in examples or updates",
    ),
    (
        STREAM,
        {"duration": updates(4), "records": RecordSettings()},
        "records.checkpoint_every must be in examples or updates",
    ),
    (
        STREAM,
        {"duration": updates(4), "schedules": Schedules(lr=Warmup(duration=epochs(1)))},
        "warmup duration must be in examples or updates",
    ),
    # model
    ({"build_model": nn.Linear(3, 2)}, {}, "build_model must be a function that returns a new mo"),
    ({"build_model": lambda: "net"}, {}, "build_model must return a torch.nn.Module, got str"),
    ({"build_model": nn.Identity}, {}, "model must have at least one trainable parameter"),
    ({"build_model": Raising}, {}, "model must accept inputs of shape (2, 3), got ValueError: not"),
    ({"build_model": lambda: nn.Linear(4, 2)}, {}, "model must accept inputs of shape (2, 3)"),
    (
        {"build_model": lambda: nn.Sequential(linear(), nn.Flatten(0))},
        {},
        "model output must be logits of shape (examples, classes), got (4,)",
    ),
    (
        {"build_model": lambda: nn.Sequential(linear(), nn.Unflatten(0, (1, -1)))},
        {},
        "model output must have 2 rows for 2 examples, got (1, 2, 2)",
    ),
    (
        {"kind": "regression", "train": (INPUTS, INPUTS), "build_model": linear},
        {},
        "model output must have the targets' shape (2, 3), got (2, 2)",
    ),
    # loss and metric
    ({"kind": "clasification"}, {}, "kind must be one of: classification, regression, language-m"),
    ({"loss": batch_loss}, {}, "loss must return one value per example, shape (2,), got shape ()"),
    ({"loss": lambda o, t: o}, {}, "loss must return one value per example, shape (2,), got shape"),
    ({"loss": lambda o, t: 3.0}, {}, "loss must return a tensor, got float"),
    ({"loss": lambda o, t: o[9]}, {}, "loss must accept the model's outputs and the targets of s"),
    (
        {"loss": lambda o, t: o.sum(1) - t, "loss_scope": "batch"},
        {},
        "loss must return one value where loss_scope is batch, got shape (2,)",
    ),
    ({"loss_scope": "some"}, {}, 'loss_scope must be "example" or "batch", got some'),
    (
        {"loss": nn.CrossEntropyLoss()},
        {"loss": LossSettings(label_smoothing=0.1)},
        "loss.label_smoothing must be 0 for a task with its own loss, got 0.1",
    ),
    # division
    (
        {"loss": batch_loss, "loss_scope": "batch"},
        {"micro_batch_size": 4},
        "a batch with loss_scope batch, divided into micro-batches, must stay whole",
    ),
    (
        {"build_model": normalized},
        {"micro_batch_size": 4},
        "ghost_batch_size must be set where a batch under BatchNorm is divided into micro-batches",
    ),
    # lengths
    ({}, {"batch_size": 60}, "batch_size must be <= the 58 training examples, got 60"),
    (
        {},
        {"schedules": Schedules(batch_size=Linear(start=1, end=2)), "duration": updates(9)},
        "duration must not be in updates while the batch size is scheduled, got 9 updates",
    ),
    ({}, {"stopping": Stopping(target_on="test")}, "stopping.target_on must be a split of the ta"),
]


@pytest.mark.parametrize(("task", "recipe", "expected"), CASES)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(
    tmp_path, task, recipe, expected
):
    with pytest.raises(InputError) as caught:
        fit(task_of(**task), recipe_of(**recipe), out=tmp_path / "out", progress=False)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# Found only while training: the run is kept, and says that it failed and why.
MET_IN_TRAINING: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"train": BrokenDataset(not_a_number)}, {}, "train example 17 must hold finite numbers only"),
    (
        {"train": BrokenDataset(not_a_number), "validation": examples()},
        {},
        "train example 17 must hold finite numbers only",
    ),
    (
        {"validation": BrokenDataset(not_a_number)},
        {},
        "validation example 17 must hold finite numbers only",
    ),
    (
        {"train": BrokenDataset(out_of_range), "validation": examples()},
        {},
        "targets must be classes of the model, got Target",
    ),
    (
        {"validation": BrokenDataset(out_of_range)},
        {},
        "targets must be classes of the model, got Target",
    ),
    (
        {"train": BrokenDataset(unreadable), "validation": examples()},
        {},
        "train dataset must give example 17, got OSError: the tape is torn",
    ),
    (
        {"train": iter(pairs()), "validation": examples()},
        {"duration": updates(20)},
        "train stream must start anew for each pass, but it can be read only once (pass a list",
    ),
]


@pytest.mark.parametrize(("task", "recipe", "expected"), MET_IN_TRAINING)
def test_bad_data_met_in_training_are_named_and_the_run_says_that_it_failed(
    tmp_path, task, recipe, expected
):
    with pytest.raises(InputError) as caught:
        fit(task_of(**task), recipe_of(**recipe), out=tmp_path / "out", progress=False)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    status = Run(tmp_path / "out").status
    assert status.name == "failed"
    assert expected in status.reason
    assert status.exit_code == 2


def test_a_batch_under_batch_norm_is_not_divided_over_ranks_without_ghosts(tmp_path):
    two_ranks = World(torch.device("cpu"), rank=0, size=2)
    with pytest.raises(InputError, match=r"ghost_batch_size must be set .* divided over ranks"):
        fit(task_of(build_model=normalized), recipe_of(), out=tmp_path / "out", world=two_ranks)
    assert not (tmp_path / "out").exists()


def test_a_study_with_repeated_seeds_or_nothing_to_do_is_refused(tmp_path):
    for arms, seeds, expected in (
        ({"one": sound_recipe()}, [1, 2, 1], r"seeds must all be different, got \[1, 2, 1\]"),
        ({"one": sound_recipe()}, [], "study must have at least one arm and one seed"),
        ({}, [1], "study must have at least one arm and one seed"),
    ):
        with pytest.raises(InputError, match=expected):
            Study.create(tmp_path / "study", arms, seeds, {})
        assert not (tmp_path / "study").exists()


def test_a_run_is_not_resumed_with_another_model_or_other_data(tmp_path):
    run = fit(sound(), sound_recipe(), out=tmp_path / "out", progress=False)
    other_model = task_of(build_model=normalized, validation=examples())
    with pytest.raises(InputError, match="model must have the parameters that are in the checkpoi"):
        resume(run.path, task=other_model, extend=epochs(1), progress=False)
    fewer = task_of(train=(INPUTS[:40], TARGETS[:40]), validation=examples())
    expected = f"train must hold the {NUM_EXAMPLES} examples that the run began with, got 40"
    with pytest.raises(InputError, match=expected):
        resume(run.path, task=fewer, extend=epochs(1), progress=False)
    assert run.status.name == "finished"
