"""Studies: trials in a fair order, summaries computed by hand, resuming, a budget of time."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.recipe import Recipe, RecordSettings, SGDSettings, Stopping, Target
from anybatch.records import EvalRecord
from anybatch.run import Run, Status
from anybatch.schedules import updates
from anybatch.studies import run_study as module
from anybatch.studies.run_study import run_study
from anybatch.study import Study, Trial
from anybatch.task import Task
from anybatch.training.training import Training

RECIPE = Recipe(optimizer=SGDSettings(lr=0.1))
TARGET = Recipe(optimizer=SGDSettings(lr=0.1), stopping=Stopping(target=Target("", "", 0.9)))


def end(trial: Trial, metric: float | None, *, split: str = "test", **status: object) -> None:
    """Write a run as a trial would have left it."""
    run = Run.create(trial.path, trial.recipe, {"name": "digits"})
    if metric is not None:
        run.append(
            EvalRecord(
                update=1,
                examples=8,
                epoch=1.0,
                split=split,
                loss=0.1,
                metric=metric,
                metric_name="accuracy",
                seconds=1.0,
                evaluation_seconds=0.1,
            )
        )
    run.write_status(Status(**({"name": "finished"} | status)))


# --- what a study is -----------------------------------------------------------------------------


def test_a_study_comes_back_from_its_folder(tmp_path: Path) -> None:
    made = Study.create(tmp_path / "s", {"a": RECIPE, "b": TARGET}, [3, 1], {"name": "digits"})
    again = Study(tmp_path / "s")
    assert (again.arms, again.seeds, again.task) == (made.arms, [3, 1], {"name": "digits"})
    assert again.arms == {"a": RECIPE, "b": TARGET}


def test_trials_go_seed_by_seed_so_that_a_partial_study_is_fair(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE, "b": TARGET}, [3, 1], {})
    trials = study.trials()
    assert [(t.arm, t.seed) for t in trials] == [("a", 3), ("b", 3), ("a", 1), ("b", 1)]
    assert [t.recipe.seed for t in trials] == [3, 3, 1, 1]
    assert trials[1].path == tmp_path / "s" / "b" / "seed-3"
    assert trials[1].recipe.stopping == TARGET.stopping
    assert all(trial.run is None and not trial.has_ended for trial in trials)


@pytest.mark.parametrize(
    ("arms", "seeds", "message"),
    [
        ({}, [0], "study must have at least one arm and one seed"),
        ({"a": RECIPE}, [], "study must have at least one arm and one seed"),
        ({"a": RECIPE}, [1, 2, 1], "seeds must all be different"),
        ({"../a": RECIPE}, [0], "arm must be a plain folder name"),
        ({"a/b": RECIPE}, [0], "arm must be a plain folder name"),
        ({"": RECIPE}, [0], "arm must be a plain folder name"),
        ({"..": RECIPE}, [0], "arm must be a plain folder name"),
    ],
)
def test_a_study_that_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, arms, seeds, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Study.create(tmp_path / "s", arms, seeds, {})
    assert not (tmp_path / "s").exists()


def test_a_study_is_made_only_in_a_new_or_empty_folder(tmp_path: Path) -> None:
    Study.create(tmp_path / "s", {"a": RECIPE}, [0], {})
    with pytest.raises(InputError, match=r"out must be a new or empty folder.*--resume"):
        Study.create(tmp_path / "s", {"a": RECIPE}, [0], {})


# --- summaries -----------------------------------------------------------------------------------


def test_a_summary_adds_up_what_was_computed_by_hand(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", {"a": TARGET, "b": RECIPE}, [0, 1, 2, 3], {})
    a = [trial for trial in study.trials() if trial.arm == "a"]
    end(a[0], 0.9, seconds=4.0, target_seconds=2.0, target_update=5)
    end(a[1], 0.8, name="target-missed", seconds=6.0)
    end(a[2], None, name="diverged", seconds=1.0)
    end(a[3], 0.1, name="interrupted", seconds=9.0)  # has not ended: counts for nothing
    row, empty = study.summaries()
    assert (row.arm, row.n, row.planned, row.diverged, row.reached) == ("a", 3, 4, 1, 1)
    assert (row.metric_name, row.split) == ("accuracy", "test")
    assert row.mean == pytest.approx(0.85)
    assert row.standard_deviation == pytest.approx(0.1 / 2**0.5)  # sqrt((0.05^2 + 0.05^2) / 1)
    assert (row.lowest, row.highest) == (0.8, 0.9)
    assert row.mean_seconds == pytest.approx((2.0 + 6.0) / 2)
    assert (empty.n, empty.planned, empty.mean, empty.standard_deviation) == (0, 4, None, None)
    assert (empty.lowest, empty.highest, empty.mean_seconds, empty.reached) == (None,) * 4


def test_one_run_has_no_spread_and_without_a_test_split_validation_counts(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE}, [0], {})
    end(study.trials()[0], 0.7, split="validation")
    row = study.summaries()[0]
    assert (row.split, row.mean, row.standard_deviation, row.reached) == (
        "validation",
        0.7,
        None,
        None,
    )


def test_plain_values_of_a_study_are_strict_json(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE}, [0, 1], {})
    end(study.trials()[0], 0.7)
    values = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert values["arms"][0]["mean"] == 0.7
    assert [run["status"]["name"] for run in values["runs"]] == ["finished"]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([], 0),
        (["finished", "finished"], 0),
        (["target-missed", "finished"], 1),
        (["target-missed", "diverged"], 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst_run(
    tmp_path: Path, names: list[str], code: int
) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE}, [0, 1], {})
    for trial, name in zip(study.trials(), names, strict=False):
        end(trial, 0.5, name=name)
    assert study.exit_code == code


# --- carrying out --------------------------------------------------------------------------------


@dataclass
class Machine:
    """Stands in for training: every call is noted and takes its time on a clock of our own."""

    takes: list[float] = field(default_factory=lambda: [1.0])
    now: float = 100.0
    calls: list[str] = field(default_factory=list)

    def fit(self, task: Task, recipe: Recipe, *, out: Path, progress: bool) -> None:
        self.calls.append(f"fit {out.parent.name} {recipe.seed}")
        self._spend()
        run = Run.create(out, recipe, {})
        run.write_status(Status(name="finished"))

    def resume(self, path: Path, *, task: Task, progress: bool) -> None:
        self.calls.append(f"resume {path.parent.name} {path.name}")
        self._spend()
        Run(path).write_status(Status(name="finished"))

    def _spend(self) -> None:
        self.now += self.takes.pop(0) if len(self.takes) > 1 else self.takes[0]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(module, "fit", made.fit)
    monkeypatch.setattr(module, "resume", made.resume)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


TASK = Task(
    build_model=lambda: nn.Linear(2, 2),
    train=(torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 16), torch.tensor([0, 1] * 16)),
)


def test_trials_are_begun_resumed_or_left_alone(tmp_path: Path, machine: Machine) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE}, [0, 1, 2, 3, 4, 5], {})
    for trial, name in zip(
        study.trials(), ("finished", "target-missed", "diverged", "interrupted", "running"),
        strict=False,
    ):  # fmt: skip
        end(trial, 0.5, name=name)
    assert run_study(study, TASK)
    assert machine.calls == ["resume a seed-3", "resume a seed-4", "fit a 5"]
    assert run_study(study, TASK)
    assert len(machine.calls) == 3


@pytest.mark.parametrize(
    ("seconds", "takes", "begun", "complete"),
    [
        (None, [50.0], 4, True),
        (0.0, [1.0], 0, False),
        (100.0, [10.0], 4, True),
        (25.0, [10.0], 2, False),  # after two, 5 are left and 10 needed
        (30.0, [10.0], 2, False),  # 20 + 10 would just not fit
        (30.1, [10.0], 3, False),
        (40.0, [5.0, 20.0, 1.0], 2, False),  # 25 spent; the longest took 20
        (41.0, [20.0, 1.0, 1.0, 1.0], 2, False),  # 21 spent; the longest took 20
        (50.0, [20.0, 1.0, 1.0, 1.0], 4, True),
    ],
)
def test_no_trial_is_begun_that_would_not_fit_into_the_budget(
    tmp_path: Path, machine: Machine, seconds: float | None, takes, begun: int, complete: bool
) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE}, [0, 1, 2, 3], {})
    machine.takes = list(takes)
    assert run_study(study, TASK, seconds=seconds) is complete
    assert len(machine.calls) == begun


def test_a_study_out_of_time_goes_on_later_where_it_stopped(
    tmp_path: Path, machine: Machine
) -> None:
    study = Study.create(tmp_path / "s", {"a": RECIPE, "b": RECIPE}, [0, 1], {})
    assert not run_study(study, TASK, seconds=2.5)
    assert not run_study(Study(study.path), TASK, seconds=1.5)
    assert run_study(Study(study.path), TASK, seconds=100.0)
    assert machine.calls == ["fit a 0", "fit b 0", "fit a 1", "fit b 1"]


def test_a_real_study_trains_every_arm_with_every_seed(tmp_path: Path) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.5),
        duration=updates(6),
        batch_size=8,
        stopping=Stopping(target=Target("loss", "<=", 0.0)),
        records=RecordSettings(log_every=1),
    )
    study = Study.create(tmp_path / "s", {"a": recipe, "b": recipe}, [7, 8], {})
    assert run_study(study, TASK, progress=False)
    losses = {(t.arm, t.seed): [r.loss for r in t.run.steps()] for t in study.trials() if t.run}
    assert losses["a", 7] == losses["b", 7] != losses["a", 8]
    assert study.exit_code == 1
    assert [row.reached for row in study.summaries()] == [0, 0]


def press_ctrl_c_in_update(number: int, seed: int, patch: pytest.MonkeyPatch) -> None:
    """Raise SIGINT in one update of the trial with this seed."""
    step = Training.step

    def step_and_press(training: Training) -> None:
        step(training)
        if training.recipe.seed == seed and training.updates == number:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(Training, "step", step_and_press)


@pytest.mark.parametrize(
    ("num_updates", "status"),
    [(200, "interrupted"), (6, "finished")],  # six are over before ranks would agree on anything
)
def test_ctrl_c_ends_the_study_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_updates: int, status: str
) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.5), duration=updates(num_updates), batch_size=8,
        stopping=Stopping(evaluate_every=updates(1000)),
        records=RecordSettings(checkpoint_every=updates(1000)),
    )  # fmt: skip
    whole = Study.create(tmp_path / "whole", {"a": recipe}, [0, 1, 2], {})
    run_study(whole, TASK, progress=False)

    study = Study.create(tmp_path / "s", {"a": recipe}, [0, 1, 2], {})
    with monkeypatch.context() as patch:
        press_ctrl_c_in_update(3, 1, patch)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, TASK, progress=False)
    assert [t.run.status.name for t in study.trials() if t.run] == ["finished", status]
    assert study.exit_code == (130 if status == "interrupted" else 0)
    assert run_study(study, TASK, progress=False)
    for ours, theirs in zip(study.trials(), whole.trials(), strict=True):
        assert ours.run is not None
        assert theirs.run is not None
        assert [r.loss for r in ours.run.steps()] == [r.loss for r in theirs.run.steps()]
