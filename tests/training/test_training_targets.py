"""How a training ends: target, patience, duration, divergence, a wish to stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.recipe import ComputeSettings, Recipe, RecordSettings, SGDSettings, Stopping, Target
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.run import Run
from anybatch.schedules import epochs, updates
from anybatch.task import Task
from anybatch.training.checkpoint import load_checkpoint
from anybatch.training.loop import fit, resume
from anybatch.training.outcome import Outcome, StopRequest, TargetWatch
from anybatch.training.training import Training
from anybatch.world import World

INPUTS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()
ACCURACY = Metric(name="accuracy", direction="max", per_example=lambda o, t: o[:, 0])


class Scripted(nn.Module):
    """Its output counts evaluations: the metric of the n-th evaluation is the n-th of a list."""

    def __init__(self, metrics: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.metrics = metrics
        self.evaluations = -1  # the first is the trial of the model

    def forward(self, inputs: Tensor) -> Tensor:
        value = 0.0
        if not self.training:
            value = self.metrics[max(0, self.evaluations)]
            self.evaluations += 1
        return torch.full((len(inputs), 2), value) + self.weight * 0


def scripted(metrics: list[float], *, test: bool = False) -> Task:
    return Task(
        build_model=lambda: Scripted(metrics),
        train=(INPUTS, LABELS),
        validation=(INPUTS, LABELS),
        test=(INPUTS, LABELS) if test else None,
        metric=ACCURACY,
        loss=lambda outputs, targets: 1.0 - outputs[:, 0],
    )


def trained(task: Task, stopping: Stopping, **changes: Any) -> tuple[Training, list[Record]]:
    settings: dict[str, Any] = {
        "optimizer": SGDSettings(lr=0.1),
        "batch_size": 16,
        "duration": updates(6),
        "stopping": stopping,
        "compute": ComputeSettings(evaluation_batch_size=64),
    }
    with Training(task, Recipe(**(settings | changes))) as training:
        records = list(training)
    return training, records


def splits(records: list[Record]) -> list[tuple[int, str]]:
    return [(r.update, r.split) for r in records if isinstance(r, EvalRecord)]


EVERY = updates(1)

# --- the target ----------------------------------------------------------------------------------


def test_a_training_ends_at_the_first_evaluation_that_reaches_the_target() -> None:
    stopping = Stopping(evaluate_every=EVERY, target=Target("", "", 0.5))
    training, records = trained(scripted([0.1, 0.4, 0.5, 0.2, 0.9]), stopping)
    assert splits(records) == [(1, "validation"), (2, "validation"), (3, "validation")]
    assert training.outcome is not None
    assert training.outcome.name == "finished"
    reason = "target accuracy >= 0.5 reached on validation at update 3"
    assert training.outcome.reason == reason
    assert training.target is not None
    assert training.target.reached_update == 3
    assert training.target.reached_seconds == training.seconds > 0


def test_a_target_on_the_loss_goes_down_and_on_a_relation_as_written() -> None:
    down = Stopping(evaluate_every=EVERY, target=Target("loss", "", 0.61))
    assert trained(scripted([0.1, 0.4, 0.3, 0.5]), down)[0].updates == 2
    written = Stopping(evaluate_every=EVERY, target=Target("accuracy", "<=", 0.25))
    assert trained(scripted([0.4, 0.3, 0.25, 0.5]), written)[0].updates == 3


def test_a_target_judged_on_test_reads_test_at_each_evaluation() -> None:
    # validation and test are evaluated in turn: test sees the second, the fourth, ...
    stopping = Stopping(evaluate_every=EVERY, target=Target("", "", 0.5), target_on="test")
    training, records = trained(scripted([0.9, 0.1, 0.9, 0.6, 0.3], test=True), stopping)
    assert splits(records)[:4] == [(1, "validation"), (1, "test"), (2, "validation"), (2, "test")]
    assert training.outcome is not None
    assert training.outcome.reason == "target accuracy >= 0.5 reached on test at update 2"


def test_test_is_read_once_and_only_at_the_end_otherwise() -> None:
    training, records = trained(scripted([0.1] * 9, test=True), Stopping(evaluate_every=EVERY))
    assert splits(records) == [(n, "validation") for n in range(1, 7)] + [(6, "test")]
    assert training.outcome is not None
    assert training.outcome.name == "finished"


def test_a_target_that_is_missed_says_by_how_much() -> None:
    stopping = Stopping(evaluate_every=updates(3), target=Target("", "", 0.5))
    training, records = trained(scripted([0.125, 0.25, 0.0], test=True), stopping)
    assert training.outcome == Outcome(
        name="target-missed",
        reason="accuracy >= 0.5 missed by 0.25 (validation 0.25); the whole duration was trained",
    )
    assert splits(records)[-1] == (6, "test")


def test_a_target_of_another_quantity_or_split_is_refused() -> None:
    with pytest.raises(InputError, match=r"stopping\.target must be about loss or accuracy"):
        trained(scripted([0.0]), Stopping(target=Target("f1", ">=", 0.5)))
    with pytest.raises(InputError, match=r"stopping\.target_on must be a split of the task"):
        trained(scripted([0.0]), Stopping(target=Target("", "", 0.5), target_on="test"))


@pytest.mark.parametrize(
    ("target", "direction", "value", "reached"),
    [
        (Target("", "", 0.5), "max", 0.5, True),
        (Target("", "", 0.5), "max", 0.49, False),
        (Target("", "", 0.5), "min", 0.51, False),
        (Target("", "", 0.5), "min", 0.5, True),
        (Target("m", ">=", 0.5), "min", 0.6, True),
        (Target("", "", 0.5), "max", math.nan, False),
        (Target("", "", 0.5), "min", math.nan, False),
    ],
)
def test_a_value_is_judged_in_the_metrics_direction(target, direction, value, reached) -> None:
    watch = TargetWatch(target, Metric(name="m", direction=direction, per_example=lambda o, t: o))
    record = EvalRecord(
        update=7, examples=7, epoch=1.0, split="validation", loss=0.0, metric=value,
        metric_name="m", seconds=2.5, evaluation_seconds=0.0,
    )  # fmt: skip
    assert watch.is_reached(record) is reached
    assert watch.state_dict() == (
        {"update": 7, "seconds": 2.5} if reached else {"update": None, "seconds": None}
    )


# --- patience ------------------------------------------------------------------------------------


def test_patience_ends_a_training_without_a_target_as_finished() -> None:
    stopping = Stopping(evaluate_every=EVERY, patience=2)
    training, records = trained(scripted([0.1, 0.3, 0.3, 0.2, 0.9, 0.9]), stopping)
    assert splits(records) == [(n, "validation") for n in (1, 2, 3, 4)]
    assert training.outcome == Outcome(name="finished", reason="no improvement in 2 evaluations")


def test_patience_with_a_target_that_was_not_reached_misses_it() -> None:
    stopping = Stopping(evaluate_every=EVERY, patience=1, target=Target("", "", 0.5), min_delta=0.2)
    training, _ = trained(scripted([0.125, 0.25, 0.9]), stopping)
    assert training.outcome is not None
    assert training.outcome.name == "target-missed"
    assert training.outcome.reason.endswith("(validation 0.25); no improvement in 1 evaluations")


def test_patience_is_saved_and_begins_anew_in_an_extension(tmp_path: Path) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, duration=updates(2),
        stopping=Stopping(evaluate_every=EVERY, patience=3),
    )  # fmt: skip
    run = fit(scripted([0.5, 0.4]), recipe, out=tmp_path / "run", progress=False)
    assert run.status.reason == "the whole duration was trained"
    saved, _ = load_checkpoint(run)
    assert saved["patience"] == {"best": 0.5, "without_improvement": 1}
    resume(run.path, task=scripted([0.4] * 9), extend=updates(6), progress=False)
    assert run.status.reason == "no improvement in 3 evaluations"
    assert run.status.update == 6  # the first of the extension is its best


def test_patience_goes_on_counting_after_an_interruption() -> None:
    stopping = Stopping(evaluate_every=EVERY, patience=3)
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, duration=updates(9), stopping=stopping
    )
    with Training(scripted([0.5, 0.4]), recipe) as training:
        rounds = training.rounds()
        next(rounds)
        next(rounds)
        state = training.state_dict()
    with Training(scripted([0.4] * 9), recipe) as resumed:
        resumed.load_state_dict(state)
        list(resumed)
    assert resumed.updates == 4
    assert resumed.outcome == Outcome(name="finished", reason="no improvement in 3 evaluations")


def test_a_run_that_reached_its_target_is_not_extended(tmp_path: Path) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, duration=updates(9),
        stopping=Stopping(evaluate_every=EVERY, target=Target("", "", 0.5)),
    )  # fmt: skip
    run = fit(scripted([0.5]), recipe, out=tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="must not have reached its target to be extended"):
        resume(run.path, task=scripted([0.5]), extend=updates(1), progress=False)


# --- divergence ----------------------------------------------------------------------------------


def exploding(at: int) -> Task:
    """A loss that is not a number in one update."""
    calls = [0]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        values = nn.functional.cross_entropy(outputs, targets, reduction="none")
        if outputs.requires_grad:
            calls[0] += 1
            if calls[0] == at:
                return values * math.nan
        return values

    return Task(build_model=lambda: nn.Linear(3, 2), train=(INPUTS, LABELS), loss=loss)


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_divergence_ends_the_training_and_names_its_update(log_every: int) -> None:
    training, records = trained(
        exploding(3), Stopping(), duration=epochs(5), records=RecordSettings(log_every=log_every)
    )
    assert training.outcome is not None
    assert training.outcome.name == "diverged"
    reason, _, advice = training.outcome.reason.partition("; ")
    assert reason == "the training loss is not finite at update 3"
    assert advice.startswith("try a third of the lr (--set optimizer.lr=0.033)")
    last = records[-1]
    assert isinstance(last, StepRecord)
    assert math.isnan(last.loss)
    assert last.update == (3 if log_every == 1 else 4)


def test_a_divergence_leaves_a_run_that_reads_and_is_not_resumed(tmp_path: Path) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, records=RecordSettings(log_every=1)
    )
    run = fit(exploding(3), recipe, out=tmp_path / "run", progress=False)
    assert Run(run.path).status.exit_code == 3
    assert math.isnan(list(run.steps())[-1].loss)
    assert not (run.path / "weights.pt").exists()
    with pytest.raises(InputError, match="must not have diverged to be resumed"):
        resume(run.path, task=exploding(99), progress=False)


def test_a_validation_loss_that_is_not_finite_is_a_divergence() -> None:
    training, _ = trained(scripted([0.1, math.inf]), Stopping(evaluate_every=EVERY))
    assert training.outcome is not None
    assert training.outcome.name == "diverged"
    assert training.outcome.reason.startswith("the validation loss is not finite at update 2")


# --- a wish to stop ------------------------------------------------------------------------------


def test_a_wish_is_heard_within_64_updates_and_nothing_is_lost() -> None:
    wish = Outcome(name="interrupted", reason="by hand")
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, duration=updates(400),
        records=RecordSettings(log_every=1000), stopping=Stopping(evaluate_every=updates(1000)),
    )  # fmt: skip
    task = Task(build_model=lambda: nn.Linear(3, 2), train=(INPUTS, LABELS))
    with Training(task, recipe) as training:
        training.request_stop(wish)
        records = list(training)
        assert training.outcome == training.stop_wish == wish
        assert 1 <= training.updates <= 65
        assert records == []
        state = training.state_dict()
    with Training(task, recipe) as again, Training(task, recipe) as whole:
        again.load_state_dict(state)
        assert again.outcome is None
        resumed, expected = list(again), list(whole)
    assert [record.loss for record in resumed] == [record.loss for record in expected]


def test_ranks_agree_about_twice_a_second() -> None:
    wish = Outcome(name="interrupted", reason="by hand")
    request = StopRequest(World(torch.device("cpu")))
    assert request.agreed(0.1) is None  # 0.1 s an update: the next agreement is 5 updates on
    request.ask(wish)
    assert [request.agreed(0.1) for _ in range(5)] == [None, None, None, None, wish]
    slow = StopRequest(World(torch.device("cpu")))
    assert slow.agreed(10.0) is None
    slow.ask(wish)
    assert slow.agreed(10.0) == wish
