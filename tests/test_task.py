"""Tasks: their splits, batches of the past, and the ways to make one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from anybatch.data.order import epoch_order
from anybatch.errors import InputError
from anybatch.models.table import ModelShape
from anybatch.recipe import ModelSettings
from anybatch.task import Task, load_task

NUM = 50
INPUTS = torch.arange(NUM * 2.0).view(NUM, 2)
LABELS = torch.arange(NUM) % 2


def task_of(**changes) -> Task:
    settings = {"build_model": lambda: nn.Linear(2, 2), "train": (INPUTS, LABELS)}
    return Task(**(settings | changes))


def rows(task: Task, split) -> set[int]:
    source = task.source(split)
    batch = next(iter(source.batches([torch.arange(source.num_examples or 0)])))
    return {int(value) // 2 for value in batch.inputs[:, 0]}


def test_a_tenth_is_set_aside_the_same_always_and_never_trained_on() -> None:
    task = task_of()
    train, validation = rows(task, "train"), rows(task, "validation")
    assert len(validation) == 5
    assert train | validation == set(range(NUM))
    assert not train & validation
    assert rows(task_of(), "validation") == validation


def test_at_most_ten_thousand_are_set_aside() -> None:
    inputs = torch.zeros(150_000, 1, dtype=torch.uint8).float()
    task = task_of(train=(inputs, torch.zeros(150_000, dtype=torch.long)))
    assert task.source("validation").num_examples == 10_000
    assert task.source("train").num_examples == 140_000


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (4, 1), (14, 1), (16, 2), (100, 10)])
def test_small_sets_keep_at_least_one_example_for_each(count: int, held_out: int) -> None:
    task = task_of(train=(torch.zeros(count, 2), torch.zeros(count, dtype=torch.long)))
    assert task.source("validation").num_examples == held_out
    assert task.source("train").num_examples == count - held_out


def test_splits_that_are_given_are_used_whole() -> None:
    task = task_of(validation=(INPUTS[:7], LABELS[:7]), test=(INPUTS[:3], LABELS[:3]))
    counts = [task.source(split).num_examples for split in ("train", "validation", "test")]
    assert counts == [NUM, 7, 3]
    assert task.has("test")
    assert not task_of().has("test")
    with pytest.raises(InputError, match="split must be one of: train, validation, got test"):
        task_of().source("test")


def test_any_batch_can_be_made_again() -> None:
    task = task_of()
    order = epoch_order(task.source("train"), seed=3, epoch=2)
    batch = task.batch(epoch=2, position=10, batch_size=4, seed=3)
    assert torch.equal(batch.indices, order[10:14])
    whole = next(iter(task.source("train").batches([torch.arange(45)])))
    assert torch.equal(batch.inputs, whole.inputs[batch.indices])
    assert torch.equal(batch.targets, whole.targets[batch.indices])
    assert len(task.batch(epoch=0, position=44, batch_size=16).indices) == 1
    for position in (-1, 45):
        with pytest.raises(InputError, match=r"position must be in \[0, 45\)"):
            task.batch(epoch=0, position=position, batch_size=4)


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own() -> None:
    source = task_of().source("train")
    orders = [
        epoch_order(source, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(torch.equal(order.sort().values, torch.arange(45)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], epoch_order(source, seed=0, epoch=0))


def test_a_model_is_new_each_time_and_the_packages_own_needs_a_shape() -> None:
    task = task_of(shape=ModelShape(input_shape=(2,), num_outputs=2))
    assert task.new_model() is not task.new_model()
    assert sum(p.numel() for p in task.new_model(ModelSettings(name="mlp")).parameters()) == 5122
    with pytest.raises(InputError, match="model must be left out for a task without a shape"):
        task_of().new_model(ModelSettings(name="mlp"))
    with pytest.raises(InputError, match=r"build_model must return a torch\.nn\.Module"):
        task_of(build_model=lambda: 3).new_model()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build_model": nn.Linear(2, 2)}, "build_model must be a function"),
        ({"kind": "clasification"}, "kind must be one of"),
        ({"loss_scope": "epoch"}, 'loss_scope must be "example" or "batch"'),
        ({"train": (INPUTS[:1], LABELS[:1])}, "train must hold at least 2 examples"),
        ({"train": 3}, "train must be"),
        ({"validation": (INPUTS[:0], LABELS[:0])}, "validation inputs must hold at least one"),
    ],
)
def test_a_task_that_cannot_be_is_refused(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_of(**changes)


def test_own_losses_leave_no_room_for_label_smoothing() -> None:
    task = task_of(loss=nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="label_smoothing must be 0 for a task with its own loss"):
        task.loss_function(0.1)


def test_the_digits_come_with_three_splits_and_a_network() -> None:
    task = load_task("digits")
    counts = [task.source(split).num_examples for split in ("train", "validation", "test")]
    assert counts == [1293, 144, 360]
    assert task.judge.name == "accuracy"
    assert isinstance(task.new_model(), nn.Module)
    assert load_task(str(task.reference["name"])).name == "digits"


def test_a_task_of_a_module_remembers_where_it_came_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("task_made_here.py").write_text(
        "import torch, anybatch\n"
        "def make():\n"
        "    data = torch.zeros(20, 3), torch.arange(20) % 2\n"
        "    model = lambda: torch.nn.Linear(3, 2)\n"
        "    return anybatch.Task(build_model=model, train=data, name='mine')\n"
    )
    task = load_task("task_made_here:make")
    assert task.name == "mine"
    assert task.reference == {
        "name": "task_made_here:make",
        "data": None,
        "image_size": None,
        "folder": str(tmp_path),
    }
