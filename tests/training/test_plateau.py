"""A plateau reduces the lr in a training: on top of any schedule, on the record, resumable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.progress import Progress
from anybatch.recipe import (
    MuonSettings,
    Recipe,
    RecordSettings,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
    Stopping,
    Target,
)
from anybatch.recipe_file import load_recipe
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.records import EvalRecord, EventRecord, Record, StepRecord
from anybatch.run import Run
from anybatch.schedules import Linear, Warmup, epochs, updates
from anybatch.task import Task
from anybatch.training.checkpoint import load_checkpoint
from anybatch.training.loop import create_run, fit, resume, training_records
from anybatch.training.snapshot import preserved_training
from anybatch.training.training import Training

INPUTS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


class Scripted(nn.Module):
    """The loss of the n-th evaluation is the n-th of a list; its accuracy is 1 - loss."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.matrix = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.losses = losses
        self.evaluations = -1  # the first is the trial of the model

    def forward(self, inputs: Tensor) -> Tensor:
        value = 0.0
        if not self.training:
            value = self.losses[max(0, self.evaluations)]
            self.evaluations += 1
        return torch.full((len(inputs), 2), value) + self.matrix(self.weight).sum() * 0


def scripted(losses: list[float]) -> Task:
    return Task(
        build_model=lambda: Scripted(losses),
        train=(INPUTS, LABELS),
        validation=(INPUTS, LABELS),
        metric=Metric(name="accuracy", direction="max", per_example=lambda o, t: 1.0 - o[:, 0]),
        loss=lambda outputs, targets: outputs[:, 0],
    )


def recipe_of(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "optimizer": SGDSettings(lr=0.8),
        "batch_size": 16,
        "duration": updates(8),
        "stopping": Stopping(evaluate_every=updates(1)),
        "plateau": ReduceOnPlateauSettings(patience=1, factor=0.5),
        "records": RecordSettings(log_every=1),
    }
    return Recipe(**(settings | changes))


def records_of(losses: list[float], recipe: Recipe) -> list[Record]:
    with Training(scripted(losses), recipe) as training:
        return list(training)


def lrs(records: list[Record]) -> list[float]:
    return [record.lr for record in records if isinstance(record, StepRecord)]


def events(records: list[Record]) -> list[EventRecord]:
    return [record for record in records if isinstance(record, EventRecord)]


def test_the_lr_is_reduced_from_the_next_update_on_and_said_to_be() -> None:
    records = records_of([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3, 0.3], recipe_of())
    assert lrs(records) == [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    first, second = events(records)
    assert (first.name, first.update, first.examples, first.epoch) == ("lr-reduced", 4, 64, 1.0)
    sentence = "lr 0.8 -> 0.4: validation loss has not improved on 0.4 in 2 evaluations"
    assert first.sentence == sentence
    assert second.update == 6
    place = records.index(first)
    assert isinstance(records[place - 1], EvalRecord)  # the one that led to it


WARMUP = Warmup(duration=updates(4), start=0.25, into=Linear(start=1.0, end=0.5))


def test_a_reduction_multiplies_whatever_the_schedule_says_also_in_a_warm_up() -> None:
    schedules = Schedules(lr=WARMUP)
    plain = lrs(records_of([0.5] * 8, recipe_of(schedules=schedules, plateau=None)))
    assert plain[:5] == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    records = records_of([0.5] * 8, recipe_of(schedules=schedules))
    factors = [0.5 ** (n >= 3) * 0.5 ** (n >= 5) * 0.5 ** (n >= 7) for n in range(8)]
    assert lrs(records) == pytest.approx([a * b for a, b in zip(plain, factors, strict=True)])
    assert [event.update for event in events(records)] == [3, 5, 7]
    assert [event.values["lr_before"] for event in events(records)] == [
        lrs(records)[n - 1] for n in (3, 5, 7)
    ]


def test_a_warm_up_does_not_use_the_patience_up() -> None:
    settings = ReduceOnPlateauSettings(patience=1, factor=0.5, begin_after=updates(4))
    losses = [0.1, 0.9, 0.9, 0.5, 0.4, 0.4, 0.4, 0.4]  # nothing later beats the first
    records = records_of(losses, recipe_of(schedules=Schedules(lr=WARMUP), plateau=settings))
    assert [event.update for event in events(records)] == [7]
    assert events(records)[0].values["best"] == pytest.approx(0.4)


def test_floor_and_smallest_change_refer_to_the_lr_that_results() -> None:
    settings = ReduceOnPlateauSettings(patience=0, factor=0.5, min_lr=0.3)
    half = Schedules(lr=Linear(start=0.5, end=0.5))
    records = records_of([0.5] * 8, recipe_of(schedules=half, plateau=settings))
    assert lrs(records) == pytest.approx([0.4, 0.4, *[0.3] * 6])
    assert len(events(records)) == 1
    settings = ReduceOnPlateauSettings(patience=0, factor=0.5, eps=0.25)
    assert len(events(records_of([0.5] * 8, recipe_of(plateau=settings)))) == 1
    records = records_of([0.5] * 8, recipe_of(schedules=half, plateau=settings))
    assert events(records) == []


def test_every_group_keeps_its_ratio_to_the_first() -> None:
    optimizer = MuonSettings(lr=0.8, adamw_lr=0.1)
    with Training(scripted([0.5] * 8), recipe_of(optimizer=optimizer)) as training:
        before = [group["lr"] for group in training.optimizer.param_groups]
        assert sorted(set(before)) == [0.1, 0.8]
        list(training)
        after = [group["lr"] for group in training.optimizer.param_groups]
        assert after == [lr / 8 for lr in before]


def test_the_metric_may_be_watched_in_the_tasks_direction() -> None:
    settings = ReduceOnPlateauSettings(watch="metric", patience=0, factor=0.5)
    records = records_of([0.5, 0.4, 0.3, 0.3, 0.2, 0.1, 0.0, 0.0], recipe_of(plateau=settings))
    (event,) = events(records)  # at the last update nothing is left to be reduced
    assert event.update == 4
    assert event.sentence.startswith("lr 0.8 -> 0.4: validation accuracy has not improved on 0.7")


def test_early_stopping_counts_beside_it() -> None:
    stopping = Stopping(evaluate_every=updates(1), patience=4)
    with Training(scripted([0.5] * 9), recipe_of(stopping=stopping)) as training:
        records = list(training)
    assert [event.update for event in events(records)] == [3]  # at 5 the training has ended
    assert (training.updates, training.outcome.reason) == (5, "no improvement in 4 evaluations")


@pytest.mark.parametrize("losses", [[0.5, 0.5, 0.1], [0.5, 0.5, float("nan")]])
def test_an_evaluation_that_ends_the_training_reduces_nothing(losses: list[float]) -> None:
    stopping = Stopping(evaluate_every=updates(1), target=Target("loss", "<=", 0.2))
    settings = ReduceOnPlateauSettings(patience=1, factor=0.5, threshold=0.9)
    records = records_of(losses, recipe_of(stopping=stopping, plateau=settings))
    assert events(records) == []
    assert len(lrs(records)) == 3


def test_without_a_plateau_nothing_is_observed() -> None:
    assert events(records_of([0.5] * 8, recipe_of(plateau=None))) == []


def test_a_beginning_that_cannot_be_told_is_refused() -> None:
    settings = ReduceOnPlateauSettings(begin_after=updates(4))
    recipe = recipe_of(
        duration=epochs(2),
        schedules=Schedules(batch_size=Linear(start=0.5, end=1.0)),
        plateau=settings,
    )
    with pytest.raises(InputError, match=r"^plateau.begin_after must not be in updates"):
        Training(scripted([0.5]), recipe)


# --- in a Run ------------------------------------------------------------------------------------


def noisy() -> Task:
    """A loss that stops falling at once, as the lr is too large for it."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 6, generator=generator)
    targets = inputs.sum(1, keepdim=True) + torch.randn(48, 1, generator=generator)
    return Task(build_model=lambda: nn.Linear(6, 1), train=(inputs, targets), kind="regression")


def noisy_recipe() -> Recipe:
    return Recipe(
        optimizer=SGDSettings(lr=0.1, momentum=0.9),
        batch_size=8,
        duration=updates(24),
        schedules=Schedules(lr=Warmup(duration=updates(5))),
        stopping=Stopping(evaluate_every=updates(2)),
        plateau=ReduceOnPlateauSettings(patience=1, factor=0.5, threshold=0.1, cooldown=1),
        records=RecordSettings(log_every=1, checkpoint_every=updates(3)),
    )


def what_is_kept(run: Run) -> tuple[Any, ...]:
    steps = [dataclasses.replace(r, seconds=0, examples_per_second=0) for r in run.steps()]
    evals = [dataclasses.replace(r, seconds=0, evaluation_seconds=0) for r in run.evals()]
    weights = torch.load(run.path / "weights.pt", weights_only=True)
    bits = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    return steps, evals, list(run.events()), bits


def test_a_run_killed_anywhere_and_resumed_has_the_same_events_and_numbers(tmp_path: Path) -> None:
    reference = fit(noisy(), noisy_recipe(), out=tmp_path / "reference", progress=False)
    expected = what_is_kept(reference)
    assert len(expected[2]) >= 3
    for kill_after in range(1, 24, 3):  # before each of the checkpoints, and after the last
        with Training(noisy(), noisy_recipe()) as training:
            run = create_run(training, tmp_path / str(kill_after))
            records = training_records(training, run)
            while training.updates < kill_after:
                next(records)
            records.close()
        assert run.status.name == "running"
        resume(run.path, task=noisy(), progress=False)
        assert what_is_kept(run) == expected, kill_after


def test_a_checkpoint_of_a_version_without_events_is_resumed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(noisy_recipe(), plateau=None)
    expected = what_is_kept(fit(noisy(), recipe, out=tmp_path / "reference", progress=False))
    with Training(noisy(), recipe) as training:
        run = create_run(training, tmp_path / "run")
        records = training_records(training, run)
        while training.updates < 10:
            next(records)
        records.close()
    latest = run.path / "checkpoints" / "latest.json"
    description = json.loads(latest.read_text())
    assert description["log_lengths"].pop("events.jsonl") == 0
    latest.write_text(json.dumps(description))
    (run.path / "events.jsonl").write_text("of a time after the checkpoint\n")
    _, lengths = load_checkpoint(run)
    assert lengths.keys() == {"steps.jsonl", "evals.jsonl", "events.jsonl"}
    resume(run.path, task=noisy(), progress=False)
    assert what_is_kept(run) == expected


def test_a_state_of_a_version_without_plateau_is_loaded() -> None:
    recipe = dataclasses.replace(noisy_recipe(), plateau=None)
    with Training(noisy(), recipe) as training:
        state = training.state_dict()
        for name in ("plateau", "hyperparameters"):
            del state[name]
        training.load_state_dict(state)
        assert training.one_step.hyperparameters.lr_factor == 1.0


def test_reductions_stay_in_an_extension(tmp_path: Path) -> None:
    run = fit(noisy(), noisy_recipe(), out=tmp_path / "run", progress=False)
    lr = list(run.steps())[-1].lr
    assert lr < 0.1
    resume(run.path, task=noisy(), extend=updates(2), progress=False)
    assert list(run.steps())[24].lr == lr


def test_a_measurement_between_reduction_and_update_leaves_the_reduction() -> None:
    """The optimizer does not show the new lr yet when the state is taken."""
    with Training(scripted([0.5] * 9), recipe_of()) as training:
        next(record for record in training if isinstance(record, EventRecord))
        assert training.optimizer.param_groups[0]["lr"] == 0.8
        with preserved_training(training):
            training.step()
            assert training.optimizer.param_groups[0]["lr"] == 0.4
        assert training.one_step.hyperparameters.lr_factor == 0.5
        training.step()
        assert training.optimizer.param_groups[0]["lr"] == 0.4


def test_an_event_is_shown_as_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    event = EventRecord(
        update=4,
        examples=64,
        epoch=1.0,
        name="lr-reduced",
        sentence="lr 0.8 -> 0.4: why",
        values={},
    )
    with Progress(100, title="run") as bar:
        bar.show(event)
    assert capsys.readouterr().err == "run  epoch    1.00  update       4  lr 0.8 -> 0.4: why\n"


# --- in a recipe ---------------------------------------------------------------------------------


def test_a_plateau_is_set_and_taken_away_on_the_command_line() -> None:
    recipe = load_recipe("digits", ["plateau.patience=5", "plateau.watch=metric"])
    assert recipe.plateau == ReduceOnPlateauSettings(patience=5, watch="metric")
    assert load_recipe("digits", ["plateau.patience=5", "plateau=none"]).plateau is None


def test_settings_go_through_a_file_and_back() -> None:
    recipe = noisy_recipe()
    assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe
    table = {"watch": "metric", "mode": "max", "begin_after": "5 epochs", "min_lr": 1e-3}
    mapping = {"optimizer": {"name": "sgd", "lr": 0.1}, "plateau": table}
    assert recipe_from_mapping(mapping).plateau == ReduceOnPlateauSettings(
        watch="metric", mode="max", begin_after=epochs(5), min_lr=1e-3
    )
    with pytest.raises(InputError, match=r"plateau.patiense must be a known key .*patience"):
        recipe_from_mapping(mapping | {"plateau": {"patiense": 3}})
    with pytest.raises(InputError, match=r"plateau.factor must be in \(0, 1\)"):
        recipe_from_mapping(mapping | {"plateau": {"factor": 2.0}})
