"""A preview is what Training will do, to the last bit; its outline leaves no corner out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.preview import PreviewRow, outline, plateau_sentence, preview
from anybatch.recipe import (
    AdamWSettings,
    MuonSettings,
    Recipe,
    RecordSettings,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.records import StepRecord
from anybatch.schedules import (
    SGDR,
    Constant,
    Cosine,
    Cyclic,
    Duration,
    Linear,
    MultiStep,
    OneCycle,
    Schedule,
    Warmup,
    epochs,
    examples,
    fraction,
    updates,
)
from anybatch.task import Task
from anybatch.training.training import Training

NUM = 23
SGD = SGDSettings(lr=0.3, momentum=0.9, weight_decay=1e-3)


def recipe_of(**changes: Any) -> Recipe:
    fixed: dict[str, Any] = {
        "optimizer": SGD,
        "batch_size": 5,
        "duration": epochs(3),
        "records": RecordSettings(log_every=1),
        "stopping": Stopping(evaluate_every=epochs(1000)),
    }
    return Recipe(**(fixed | changes))


def with_lr(schedule: Schedule, **changes: Any) -> Recipe:
    return recipe_of(schedules=Schedules(lr=schedule), **changes)


def as_trained(recipe: Recipe) -> list[PreviewRow]:
    task = Task(
        build_model=lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        train=(torch.zeros(NUM, 3), torch.zeros(NUM, dtype=torch.long)),
        validation=(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)),
    )
    with Training(task, recipe) as training:
        steps = [record for record in training if isinstance(record, StepRecord)]
    return [PreviewRow(*(getattr(step, name) for name in PreviewRow._fields)) for step in steps]


EVERYTHING = Schedules(
    lr=Warmup(duration=epochs(0.5), start=0.1, into=Cosine()),
    momentum=OneCycle(start=1.0, peak=0.85 / 0.95, end=1.0),
    weight_decay=Linear(start=0.0, end=1.0),
    batch_size=Linear(start=0.3, end=2.0),
)
CASES = {
    "plain": recipe_of(),
    "a last partial batch in the run": recipe_of(duration=examples(31)),
    "updates": recipe_of(duration=updates(7)),
    "everything scheduled": recipe_of(schedules=EVERYTHING),
    "an update that ends with the epoch": recipe_of(batch_size=NUM),
    "full": recipe_of(batch_size="full", duration=epochs(4)),
    "adamw": recipe_of(optimizer=AdamWSettings(lr=1e-3, beta1=0.7), schedules=EVERYTHING),
    "muon": recipe_of(optimizer=MuonSettings(lr=0.02, weight_decay=0.1), schedules=EVERYTHING),
    "t+1": with_lr(Linear(grid="(t+1)/T")),
    "T-1": with_lr(Cosine(grid="t/(T-1)"), duration=examples(31)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_update_is_what_a_training_records(name: str) -> None:
    recipe = CASES[name]
    assert list(preview(recipe, NUM)) == as_trained(recipe)


SHAPES = st.sampled_from([Constant(), Linear(), Cosine(start=0.2), OneCycle(start=0.5, end=0.1)])
SIZES = st.sampled_from([Constant(), Linear(start=0.1, end=3.0), Linear(start=2.0, end=0.0)])
LENGTHS = st.integers(1, 60).map(examples) | st.sampled_from([epochs(0.3), epochs(1), epochs(2.5)])


@settings(max_examples=15, deadline=None)
@given(SHAPES, SIZES, LENGTHS, st.integers(1, NUM))
def test_whatever_the_schedules(
    lr: Schedule, batch_size: Schedule, duration: Duration, size: int
) -> None:
    schedules = Schedules(lr=lr, batch_size=batch_size)
    recipe = recipe_of(schedules=schedules, duration=duration, batch_size=size)
    assert list(preview(recipe, NUM)) == as_trained(recipe)


@pytest.mark.parametrize(
    ("plateau", "every", "said"),
    [
        (None, epochs(1), ""),
        (
            {"patience": 1},
            epochs(1),
            "plateau: can never reduce the lr; it takes 3 evaluations before",
        ),
        (
            {"patience": 0},
            epochs(1),
            "plateau: each reduction multiplies the lr by 0.1 from there on",
        ),
        ({"patience": 1}, epochs(0.5), "plateau: each reduction"),
        ({"patience": 3}, epochs(0.5), "plateau: each reduction"),
        ({"patience": 4}, epochs(0.5), "plateau: can never"),
        ({"patience": 12}, updates(1), "plateau: each reduction"),
        ({"patience": 13}, updates(1), "and there are 14"),
        ({"patience": 8, "begin_after": epochs(1)}, updates(1), "plateau: each reduction"),
        ({"patience": 9, "begin_after": epochs(1)}, updates(1), "and there are 10"),
    ],
)
def test_a_plateau_that_can_never_act_is_told(
    plateau: dict[str, Any] | None, every: Duration, said: str
) -> None:
    """3 epochs of 5 updates; what acts at the end of the run changes nothing."""
    watched = ReduceOnPlateauSettings(**plateau) if plateau is not None else None
    recipe = recipe_of(plateau=watched, stopping=Stopping(evaluate_every=every))
    sentence = plateau_sentence(recipe, NUM, preview(recipe, NUM))
    assert said in sentence
    assert bool(said) == bool(sentence)


def test_what_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"^batch_size must be <= the 3 training examples"):
        preview(recipe_of(), 3)
    with pytest.raises(InputError, match=r"^examples_per_epoch must be >= 1, got 0"):
        preview(recipe_of(), 0)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(SGDSettings(lr=0.1), Linear()), (SGD, Linear(start=1.0, end=1.2))],
)
def test_momentum_that_a_training_refuses_is_refused(
    optimizer: SGDSettings, schedule: Schedule
) -> None:
    recipe = recipe_of(optimizer=optimizer, schedules=Schedules(momentum=schedule))
    with pytest.raises(InputError, match=r"^schedules.momentum must ") as refused:
        preview(recipe, NUM)
    with pytest.raises(InputError) as in_training:
        as_trained(recipe)
    assert str(refused.value) == str(in_training.value)


# --- outline -------------------------------------------------------------------------------------


def outlined(schedule: Schedule, num: int = 200, count: int = 20, **changes: Any) -> list[int]:
    recipe = with_lr(schedule, batch_size=1, duration=epochs(1), **changes)
    return [row.update for row in outline(preview(recipe, num), count)]


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (Constant(), set()),
        (Warmup(duration=updates(10)), {11}),
        (Warmup(duration=updates(50), into=Linear()), {51}),
        (OneCycle(warmup=fraction(0.25)), {51}),
        (SGDR(first_cycle=updates(40)), {40, 41, 80, 81, 120, 121, 160, 161}),
        (MultiStep(milestones=(updates(60), updates(90))), {60, 61, 90, 91}),
        (Cyclic(up=updates(25)), {26, 51, 76, 101, 126, 151, 176}),
    ],
)
def test_an_outline_has_every_corner(schedule: Schedule, corners: set[int]) -> None:
    found = outlined(schedule)
    assert len(found) == 20
    assert {1, 200, *corners} <= set(found)
    assert found == sorted(set(found))


def test_an_outline_has_more_rows_than_asked_for_where_there_are_more_corners() -> None:
    found = outlined(SGDR(first_cycle=updates(10)), count=5)
    assert found == sorted({1, 200, *range(10, 200, 10), *range(11, 200, 10)})
    assert len(outlined(SGDR(first_cycle=updates(2)), num=1000)) <= 62
    steps = MultiStep(milestones=(updates(50), updates(100), updates(150)))
    assert outlined(steps, count=5) == [1, 50, 51, 100, 101, 150, 151, 200]


def test_lines_through_an_outline_miss_little_of_a_curve() -> None:
    rows = preview(with_lr(Cosine(), batch_size=1, duration=epochs(1)), 500)
    chosen = outline(rows, 20)
    for early, late in itertools.pairwise(chosen):
        slope = (late.lr - early.lr) / (late.update - early.update)
        for row in rows[early.update : late.update]:
            line = early.lr + slope * (row.update - early.update)
            assert abs(row.lr - line) < 0.02 * SGD.lr


def test_corners_of_momentum_decay_and_batch_size_count_too() -> None:
    for name in ("momentum", "weight_decay"):
        schedules = Schedules(**{name: OneCycle(start=0.5, peak=1.0, warmup=fraction(0.35))})
        recipe = recipe_of(schedules=schedules, batch_size=1, duration=epochs(1))
        assert 71 in [row.update for row in outline(preview(recipe, 200))]
    steps = MultiStep(milestones=(fraction(0.5),), factor=2.0)
    recipe = recipe_of(schedules=Schedules(batch_size=steps), batch_size=4, duration=epochs(4))
    sizes = [row.batch_size for row in outline(preview(recipe, 101))]  # 101 = 25 * 4 + 1
    assert {4, 8} <= set(sizes)


def test_what_an_epoch_leaves_over_is_no_corner() -> None:
    recipe = recipe_of(duration=epochs(400))
    found = [row.update for row in outline(preview(recipe, NUM))]
    assert len(found) == 20


def test_a_growing_batch_is_a_slope_and_not_a_hundred_corners() -> None:
    schedules = Schedules(batch_size=Linear(start=0.1, end=1.0))
    rows = preview(recipe_of(schedules=schedules, batch_size=100, duration=epochs(2)), 2000)
    assert len({row.batch_size for row in rows}) > 30
    assert len(outline(rows)) == 20


def test_a_run_of_few_updates_is_shown_whole() -> None:
    for num in (1, 2, 3):
        assert outlined(Linear(), num=num) == list(range(1, num + 1))


# --- the command ---------------------------------------------------------------------------------

COMMAND = ["recipe", "preview", "cifar10", "--examples", "45000"]


def test_the_table_has_corners_and_the_json_every_update(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(COMMAND) == 0
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first == "2,112 updates, 1,080,000 examples, 24 epochs"
    assert head.split() == list(PreviewRow._fields)
    assert len(rows) == 20
    assert rows[0].split() == ["1", "512", "0.01", "0", "0.9", "0.0005", "512"]
    assert [row.split()[3] for row in rows].count("0.4") == 1  # the peak
    assert main([*COMMAND, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["examples_per_epoch"] == 45000
    assert document["updates"]["update"] == list(range(1, 2113))
    assert max(document["updates"]["lr"]) == 0.4


def test_the_picture_shows_four_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        assert main([*COMMAND, "--out", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.endswith(f"{tmp_path / name}\n")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("lr", "momentum", "weight decay", "batch size", "updates", "epochs", "24"):
        assert f">{text}</text>" in svg
    assert "cifar10 on 45,000 training examples" in svg
    assert (tmp_path / "b.svg").read_text() == svg
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_draws_every_corner_of_a_long_run(tmp_path: Path) -> None:
    from anybatch.commands.preview_figure import preview_figure

    # 30,000 updates, of which only some are points of the picture
    recipe = with_lr(SGDR(first_cycle=updates(7001)), batch_size=1, duration=epochs(1))
    rows = preview(recipe, 30_000)
    line = preview_figure(rows, "title").axes[0].lines[0]
    x, y = line.get_data()
    assert 3000 < len(x) < 6000
    assert {7001, 7002, 14002, 14003} <= {int(value) for value in x}
    assert max(y) == SGD.lr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "anybatch: --examples must be given where no task is ("),
        (["mnist", "--examples", "0"], "anybatch: --examples must be >= 1, got 0"),
        (["mnist", "digits", "--examples", "9"], "--examples must be left out where a task is"),
        (["mnist", "--examples", "9"], "anybatch: batch_size must be <= the 9 training examples"),
        (["mnist", "--examples", "999", "--out", "a.pdf"], "--out must end in .png or .svg"),
        (["mnist", "--examples", "999", "--out", "no/a.png"], "no/a.png must be writable"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "preview", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_tasks_training_examples_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "preview", "digits", "digits", "--json"]) == 0
    by_task = capsys.readouterr().out
    num_examples = json.loads(by_task)["examples_per_epoch"]
    assert main(["recipe", "preview", "digits", "--examples", str(num_examples), "--json"]) == 0
    assert capsys.readouterr().out == by_task


def test_torch_is_left_out_where_no_task_is_counted(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--out", str(tmp_path / "a.svg")]
    code = f"""
import sys
from anybatch.cli import main
assert main({arguments!r}) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
