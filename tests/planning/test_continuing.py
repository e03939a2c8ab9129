"""A run that follows a plan: bit for bit the pilot gone on with, and one row of the ledger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning import compose
from anybatch.planning.continuing import (
    begin_planned,
    check_planned,
    conclude_planned,
    predicted_and_actual,
)
from anybatch.planning.ledger import coverage, interval_factor, median_ratio, read_ledger
from anybatch.planning.pilot import opened_pilot
from anybatch.recipe import AdamWSettings, Recipe, RecordSettings
from anybatch.records import TIME_FIELDS
from anybatch.run import Run, Status, write_json
from anybatch.schedules import examples as in_examples
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.checkpoint import load_checkpoint
from anybatch.training.loop import create_run, resume, train_to_end
from anybatch.training.training import Training
from anybatch.world import World
from plan_tasks import FULL, RECIPE, SHORT, examples, perceptron, planned, task_of, trained


def dropout() -> nn.Module:
    return perceptron(lambda: nn.BatchNorm1d(12), lambda: nn.Dropout(0.2))


def make_task() -> Task:
    return task_of(build_model=dropout)


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYBATCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(compose, "_NUM_DRAWS", 100)
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """With the length of a test: some 60 updates after the pilot."""
    recipe = replace(RECIPE, ghost_batch_size=8, records=RecordSettings(log_every=1))
    made = planned(tmp_path / "plan", make_task(), recipe, target="accuracy>=0.999")
    return shortened(made)


def shortened(made: Plan, num_updates: int = 60) -> Plan:
    total = int(made.pilot.get("examples", 0)) + num_updates * made.batch_size
    own = replace(made.recipe, duration=in_examples(total), schedules=type(made.recipe.schedules)())
    changed = replace(made, recipe=own)
    write_json(Path(made.folder) / PLAN_FILE, changed.to_dict())
    return changed


def log(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in records]


def weights(run: Run) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run.path / "weights.pt")
    return state


def assert_same(one: Run, other: Run) -> None:
    for name in ("steps.jsonl", "evals.jsonl"):
        assert log(one.path / name) == log(other.path / name), name
    mine, others = weights(one), weights(other)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    names = ("name", "reason", "update", "examples")
    assert [getattr(one.status, n) for n in names] == [getattr(other.status, n) for n in names]


def test_following_the_plan_is_going_on_with_the_pilot_by_hand(tmp_path: Path, plan: Plan) -> None:
    run = trained(plan, tmp_path / "run", make_task())
    pilot_run = Run(tmp_path / "plan")
    state, lengths = load_checkpoint(pilot_run)
    with Training(make_task(), plan.recipe) as training:
        training.begin_from(state)
        assert training.updates == plan.pilot["updates"]
        assert training.feed.examples == plan.pilot["examples"]
        assert training.seconds == plan.pilot["seconds"]
        records = list(training)
        by_hand = training.kept_model.state_dict()
    assert all(torch.equal(tensor, by_hand[name]) for name, tensor in weights(run).items())
    steps = log(run.path / "steps.jsonl")
    begun = log(pilot_run.path / "steps.jsonl")
    assert lengths["steps.jsonl"] == (pilot_run.path / "steps.jsonl").stat().st_size
    assert steps[: len(begun)] == begun
    own = [record.loss for record in records if type(record).__name__ == "StepRecord"]
    assert [record["loss"] for record in steps[len(begun) :]] == own
    assert [record["update"] for record in steps] == sorted({r["update"] for r in steps})


def test_the_pilots_recipe_would_have_gone_on_alike(tmp_path: Path, plan: Plan) -> None:
    """At the pilot's own batch size and lr the run is the pilot, trained for longer."""
    run = Run(tmp_path / "plan")
    state, _ = load_checkpoint(run)
    after = int(plan.pilot["updates"]) + 20
    with opened_pilot(
        make_task(), run.recipe, world=World.from_environment("cpu")
    ) as pilot:  # from its beginning, in one go
        pilot.train(seconds=1e9, most_updates=after)
        whole = [p.detach().clone() for p in pilot.training.model.parameters()]
        taken = pilot.training.updates
    with Training(make_task(), run.recipe) as training:
        training.begin_from(state)
        while training.updates < taken:
            training.one_step.train_mode()
            training.step()
        assert all(map(torch.equal, training.model.parameters(), whole))


def interrupted(path: Path, plan: Plan, after: int) -> Run:
    """A run whose process dies after so many records of its own."""

    class Killed(BaseException):
        pass

    append, left = Run.append, [after]

    def dying(run: Run, record: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        append(run, record)

    with pytest.MonkeyPatch.context() as patch, Training(make_task(), plan.recipe) as training:
        run = create_run(training, path)
        begin_planned(training, run, Run(plan.folder), plan)
        patch.setattr(Run, "append", dying)
        with pytest.raises(Killed):
            train_to_end(training, run, progress=False)
    return run


@pytest.mark.parametrize("after", [0, 7, 41])
def test_killed_and_resumed_it_equals_one_that_was_not(
    tmp_path: Path, plan: Plan, after: int
) -> None:
    whole = trained(plan, tmp_path / "whole", make_task())
    run = interrupted(tmp_path / "run", plan, after)
    assert run.status.name == "running"
    assert conclude_planned(run) == []
    assert read_ledger() == ()
    resume(run.path, task=make_task(), progress=False)
    assert_same(run, whole)
    assert run.plan == whole.plan == plan


def test_one_row_of_the_ledger_with_what_was_foretold_and_what_came(
    tmp_path: Path, plan: Plan, ledger: Path
) -> None:
    run = trained(plan, tmp_path / "run", make_task())
    assert not ledger.exists()
    lines = conclude_planned(run)
    assert len(lines) == 1
    (row,) = read_ledger()
    assert conclude_planned(run) == lines  # asked again, or extended and ended again
    assert read_ledger() == (row,)
    assert (row.optimizer, row.batch_size) == ("sgd", plan.batch_size)
    assert row.reached is False
    assert (row.actual_updates, row.actual_seconds) == (run.status.update, run.status.seconds)
    assert row.level == plan.predictions["seconds"].level
    told = predicted_and_actual(run)
    assert told is not None
    assert told["reached"] is False
    assert told["inside"] is False


def test_a_target_that_is_reached_counts_to_its_evaluation(tmp_path: Path) -> None:
    made = planned(tmp_path / "plan", target="accuracy>=0.8")
    run = trained(made, tmp_path / "run")
    assert run.status.name == "finished"
    conclude_planned(run)
    (row,) = read_ledger()
    assert row.reached
    assert row.actual_updates == run.status.target_update
    assert row.actual_seconds == run.status.target_seconds
    assert row.actual_seconds >= made.pilot["seconds"]


@pytest.mark.parametrize("name", ["diverged", "target-missed"])
def test_runs_that_fail_are_rows_too_and_unfinished_ones_are_none(
    tmp_path: Path, plan: Plan, name: Any
) -> None:
    with Training(make_task(), plan.recipe) as training:
        run = create_run(training, tmp_path / "run")
        begin_planned(training, run, Run(plan.folder), plan)
    for unfinished in ("running", "interrupted", "failed"):
        run.write_status(Status(name=unfinished))  # type: ignore[arg-type]
        assert conclude_planned(run) == []
    run.write_status(Status(name=name, update=9, seconds=1e6, examples=90))
    (line,) = conclude_planned(run)
    assert "1,000,000" in line
    (row,) = read_ledger()
    assert (row.reached, row.actual_updates, row.actual_seconds) == (False, 9, 1e6)


def test_a_prediction_without_a_number_is_a_row_all_the_same(tmp_path: Path) -> None:
    made = planned(tmp_path / "plan", target="accuracy>=1.0", wanted=replace(SHORT, pilot=0.01))
    seconds = replace(made.predictions["seconds"], value=None, low=-float("inf"),
                      high=float("inf"), reason="not reached in 60 % of the draws")  # fmt: skip
    made = shortened(replace(made, predictions={**made.predictions, "seconds": seconds}), 5)
    run = trained(made, tmp_path / "run")
    assert len(conclude_planned(run)) == 1
    (row,) = read_ledger()
    assert row.seconds.value == row.seconds.high == float("inf")
    came = replace(row, reached=True)  # all the same: later plans and the calibration can be made
    assert (interval_factor([came]), median_ratio([came]), coverage([came]).count) == (1, None, 0)


def test_a_ledger_that_cannot_be_written_does_not_spoil_the_run(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(plan, tmp_path / "run", make_task())
    monkeypatch.setenv("ANYBATCH_LEDGER", str(run.path / "recipe.json" / "ledger.jsonl"))
    lines = conclude_planned(run)
    assert lines[1].startswith("not added to the ledger: ")
    assert run.status.name == "target-missed"


def test_a_plan_without_a_pilot_begins_at_the_beginning(tmp_path: Path, plan: Plan) -> None:
    """Also where a pilot that diverged, or was cut off, has left a checkpoint."""
    without = shortened(replace(plan, pilot={}))
    run = trained(without, tmp_path / "run", make_task())
    assert next(run.steps()).update == 1
    assert run.status.examples == 60 * plan.batch_size


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: task_of(build_model=lambda: nn.Linear(6, 2)), "must have the parameters"),
        (lambda: task_of(build_model=dropout, train=examples(seed=5)), "must hold the data that"),
        (lambda: task_of(build_model=dropout, train=examples(200)), "must hold the 240 examples"),
    ],
)
def test_another_task_is_refused_in_one_line(task: Any, message: str, plan: Plan) -> None:
    recipe: Recipe = replace(plan.recipe, batch_size=8)
    with Training(task(), recipe) as training, pytest.raises(InputError) as caught:
        check_planned(training, Run(plan.folder), plan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_optimizer_is_refused(plan: Plan) -> None:
    recipe = replace(plan.recipe, optimizer=AdamWSettings(lr=0.1))
    with Training(make_task(), recipe) as training, pytest.raises(InputError):
        check_planned(training, Run(plan.folder), plan)


def test_a_damaged_checkpoint_is_refused(plan: Plan) -> None:
    (checkpoint,) = (Path(plan.folder) / "checkpoints").glob("update-*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9] + b"\0" * 9)
    with Training(make_task(), plan.recipe) as training, pytest.raises(InputError, match="damaged"):
        check_planned(training, Run(plan.folder), plan)


def test_a_plans_folder_is_no_run_to_be_resumed(plan: Plan) -> None:
    with pytest.raises(InputError, match="must be a training, not a plan"):
        resume(plan.folder, task=make_task(), progress=False)
    with pytest.raises(InputError, match="must be a training, not a plan"):
        resume(plan.folder, task=make_task(), extend=updates(5), progress=False)


def test_a_winning_branch_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "allowed_sizes", lambda request: [16])
    recipe = replace(RECIPE, records=RecordSettings(log_every=1))
    made = planned(tmp_path / "plan", recipe=recipe, wanted=FULL, target="accuracy>=0.999")
    made = shortened(made, 20)
    run = trained(made, tmp_path / "run")
    trained_alone = [record.update for record in Run(tmp_path / "plan").steps()]
    found = [record.update for record in run.steps()]
    assert found[: len(trained_alone)] == trained_alone
    assert found[len(trained_alone)] == made.pilot["updates"] + 1 == trained_alone[-1] + 1
