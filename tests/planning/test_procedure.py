"""The procedure on tiny tasks: what it measures, keeps, leaves as found, and refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning import compose, procedure
from anybatch.planning import pilot as pilot_module
from anybatch.planning.compose import Composer
from anybatch.planning.pilot import WATCHED_EXAMPLES, opened_pilot, pilot_recipe, watched_part
from anybatch.planning.procedure import make_plan
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdaptiveBatchSize,
    BatchNormSettings,
    BlockSettings,
    ClipGlobalNorm,
    ComputeSettings,
    ExponentialAverage,
    LocalUpdates,
    LossSettings,
    MuonSettings,
    Recipe,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.run import Run
from anybatch.schedules import Cosine, OneCycle, epochs, updates
from anybatch.schedules import examples as in_examples
from anybatch.task import Task
from anybatch.training.checkpoint import has_checkpoint
from anybatch.training.training import Training
from anybatch.world import World
from plan_tasks import FULL, RECIPE, SHORT, budget, examples, perceptron, planned, task_of

Batch = nn.BatchNorm1d


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "_NUM_DRAWS", 100)
    monkeypatch.setattr("gc.collect", lambda *generation: 0)  # a third of the time


def assert_sound(plan: Plan, out: Path, task: Task) -> None:
    """Nothing bare, the same again from disk, and a recipe that this task can be trained with."""
    for name, estimate in plan.predictions.items():
        if estimate.value is None:
            assert estimate.reason, name
        else:
            assert math.isfinite(estimate.value), name
    run = Run(out)
    assert run.plan == plan
    again = Composer(plan.request, run.measurements(), interval_factor=plan.interval_factor)
    replayed = again.plan(procedure=plan.procedure, cost=plan.cost)
    assert replace(replayed, pilot=plan.pilot) == plan
    with Training(task, plan.recipe) as training:
        training.step()


# --- what it does --------------------------------------------------------------------------------


def test_the_short_procedure_keeps_everything_that_the_plan_follows_from(tmp_path: Path) -> None:
    task = task_of()
    plan = planned(tmp_path / "plan", task)
    assert_sound(plan, tmp_path / "plan", task)
    run = Run(tmp_path / "plan")
    names = set(run.measurements())
    assert names == {"throughput", "lr-range", "pilot", "noise-scale-1", "noise-scale-2"}
    assert set(plan.cost) == {"throughput", "lr-range", "pilot", "noise-scale"}
    assert all(seconds > 0 for seconds in plan.cost.values())
    assert (plan.procedure, plan.partial) == ("short", "")
    assert run.status.name == "finished"
    assert run.status.update == plan.pilot["updates"] > 0
    assert [record.update for record in run.evals()] == list(
        run.measurements()["pilot"].samples["update"]
    )
    assert next(run.steps()).update == run.recipe.records.log_every
    assert not list(tmp_path.rglob("*.tmp"))
    assert Plan.from_dict(json.loads((tmp_path / "plan" / PLAN_FILE).read_text())) == plan


def test_the_full_procedure_trains_branches_from_the_pilots_state(tmp_path: Path) -> None:
    plan = planned(tmp_path / "plan", wanted=FULL)
    measured = Run(tmp_path / "plan").measurements()
    assert_sound(plan, tmp_path / "plan", task_of())
    columns = measured["branches"].samples
    assert len(set(zip(columns["batch_size"], columns["lr"], strict=True))) >= 4
    assert set(columns["seed"]) == {0.0, 1.0}
    assert 16.0 in columns["batch_size"]
    firsts = {
        (size, lr): loss
        for size, lr, seed, update, loss in zip(
            *(columns[n] for n in ("batch_size", "lr", "seed", "update", "loss")), strict=True
        )
        if update == 1 and seed == 0
    }
    for size in {size for size, _ in firsts}:  # the same examples from the same weights
        assert len({loss for (other, _), loss in firsts.items() if other == size}) == 1


def test_the_short_procedure_ends_its_measurements_early(tmp_path: Path) -> None:
    """The full one looks for the edge anywhere, keeps away from it, and asks for more probes."""
    said = {}
    for name, wanted in (("short", SHORT), ("full", FULL)):
        planned(tmp_path / name, wanted=wanted)
        measured = Run(tmp_path / name).measurements()
        assert measured["throughput"].settings["precision"] == 0.06
        asked, noise = measured["lr-range"].settings, measured["noise-scale-1"].settings
        said[name] = (asked["find_edge"], asked["edge_margin"], noise["precision"],
                      noise["min_probes"], noise["max_probes"])  # fmt: skip
    assert said == {"short": (False, 1.25, 4.0, 6, 24), "full": (True, 2.0, 2.5, 12, 50)}


def test_the_winning_branch_is_the_beginning_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "allowed_sizes", lambda request: [16])
    plan = planned(tmp_path / "plan", wanted=FULL, target="accuracy>=0.99")
    run = Run(tmp_path / "plan")
    measured = run.measurements()
    trained, branches = measured["pilot"].samples, measured["branches"].samples
    assert plan.batch_size == 16
    assert plan.recipe.optimizer.lr in branches["lr"]
    won = [
        (update, loss)
        for lr, seed, update, loss in zip(
            *(branches[name] for name in ("lr", "seed", "update", "loss")), strict=True
        )
        if lr == plan.recipe.optimizer.lr and seed == 0
    ]
    before = int(trained["update"][-1])
    assert plan.pilot["updates"] == before + len(won)
    assert plan.pilot["seconds"] > trained["seconds"][-1]
    assert plan.pilot["batch_size"] == 16
    steps = [(record.update - before, record.loss) for record in run.steps()]
    assert [step for step in steps if step[0] > 0] == won
    assert run.recipe.optimizer.lr == plan.recipe.optimizer.lr
    assert_sound(plan, tmp_path / "plan", task_of())


def test_the_pilot_ends_where_it_meets_the_target(tmp_path: Path) -> None:
    plan = planned(tmp_path / "plan", target="accuracy>=0.6", wanted=replace(SHORT, pilot=600.0))
    measured = Run(tmp_path / "plan").measurements()
    assert "noise-scale-2" not in measured
    metric = measured["pilot"].samples["metric"]
    assert metric[-1] >= 0.6
    assert all(value < 0.6 for value in metric[:-1])
    assert has_checkpoint(Run(tmp_path / "plan"))
    assert plan.predictions["seconds"].value is not None


def test_a_task_is_left_as_found(tmp_path: Path) -> None:
    torch.manual_seed(77)
    task = task_of()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    planned(tmp_path / "plan", task, wanted=FULL)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "duration", [epochs(3), in_examples(720), updates(45)], ids=["epochs", "examples", "updates"]
)
def test_the_budget_is_of_the_present_recipes_own_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duration: Any
) -> None:
    asked: list[tuple[float, float, float]] = []

    def budget_of(seconds: float, num_updates: float, share: float) -> Any:
        asked.append((seconds, num_updates, share))
        return SHORT

    monkeypatch.setattr(procedure, "ramp_and_probe_updates", lambda *given: (24, 12))
    monkeypatch.setattr(procedure, "budget_of", budget_of)
    recipe = replace(RECIPE, duration=duration)
    make_plan(task_of(), recipe, target="0.9", out=tmp_path / "plan", budget=0.1, progress=False)
    seconds, num_updates, share = asked[-1]
    assert (num_updates, share) == (45.0, 0.1)
    model = Composer(
        Run(tmp_path / "plan").plan.request,  # type: ignore[union-attr]
        Run(tmp_path / "plan").measurements(),
    ).time_model
    assert seconds == pytest.approx(45.0 * float(model.seconds_per_update(16)))


# --- what may go wrong on the way ----------------------------------------------------------------


class Explosive(nn.Module):
    """Its loss is no number any more once its weights have moved far, which a high lr does."""

    most = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.register_buffer("begun", self.layer.weight.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        moved = (self.layer.weight - self.begun).abs().max()
        return self.layer(inputs) + torch.where(moved > self.most, math.nan, 0.0)


def test_a_pilot_that_diverges_is_begun_again_at_a_lower_lr(tmp_path: Path) -> None:
    task = task_of(build_model=Explosive)
    plan = planned(tmp_path / "plan", task, RECIPE, target="accuracy>=0.99",
                   wanted=replace(SHORT, pilot=0.3))  # fmt: skip
    run = Run(tmp_path / "plan")
    assert any(finding.name == "pilot-diverged" for finding in plan.findings)
    assert plan.predictions["lr"].value is not None
    assert run.measurements()["pilot"].settings["lr"] < 0.3 * Composer(
        plan.request, run.measurements()
    ).untried_lr(int(run.measurements()["pilot"].settings["batch_size"]))
    firsts = [record.update for record in run.steps()]
    assert firsts == sorted(set(firsts))  # of the last pilot alone
    if run.measurements()["pilot"].settings["diverged"]:
        assert plan.pilot == {}
        assert plan.predictions["seconds"].value is None


def test_a_pilot_that_always_diverges_gives_a_plan_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explosive, "most", 1e-4)
    plan = planned(tmp_path / "plan", task_of(build_model=Explosive))
    assert plan.predictions["seconds"].value is None
    assert plan.findings[0].name == "pilot-diverged"
    assert plan.pilot == {}
    assert Run(tmp_path / "plan").status.update == 0


def test_looking_takes_no_longer_than_half_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One look counts as forty seconds and an update as one: the clock is the test's."""
    clock = [0.0]
    looked = pilot_module.evaluate

    def slow(*given: Any) -> Any:
        clock[0] += 40.0
        return looked(*given)

    def stepped(training: Training) -> None:
        clock[0] += 1.0
        step(training)

    step = Training.step
    monkeypatch.setattr(pilot_module, "evaluate", slow)
    monkeypatch.setattr(Training, "step", stepped)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    recipe = pilot_recipe(RECIPE, 8, 0.05)
    with opened_pilot(task_of(), recipe, world=World.from_environment("cpu")) as pilot:
        pilot.train(seconds=400.0)
    spent = 40.0 * (len(pilot.looks) - 1)
    assert len(pilot.looks) >= 4
    assert spent <= 0.5 * pilot.training.seconds + 40.0
    assert pilot.looks[-1].update == pilot.training.updates


def test_a_pilot_of_slow_updates_ends_within_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half of a pilot that has time for less than an update takes one, and looks."""
    planned(tmp_path / "plan", wanted=replace(SHORT, pilot=1e-9), target="accuracy>=0.99")
    assert list(Run(tmp_path / "plan").measurements()["pilot"].samples["update"]) == [1.0, 2.0]


def test_what_is_watched_is_the_same_part_of_every_class() -> None:
    inputs, labels = examples(2 * WATCHED_EXAMPLES)
    order = labels.argsort()
    task = task_of(validation=(inputs[order], labels[order]))
    watched = watched_part(task, World.from_environment("cpu"))
    assert watched.num_examples == WATCHED_EXAMPLES
    batch = next(iter(watched.batches([torch.arange(WATCHED_EXAMPLES)])))
    share = float(labels.float().mean())
    assert float(batch.targets.float().mean()) == pytest.approx(share, abs=0.08)
    again = watched_part(task, World.from_environment("cpu"))
    assert torch.equal(next(iter(again.batches([torch.arange(50)]))).inputs, batch.inputs[:50])


# --- all kinds of task ---------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there = nn.Linear(6, 6)
        self.back = nn.Linear(6, 6)
        self.back.weight = self.there.weight
        self.out = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.relu(self.back(torch.relu(self.there(inputs)))))


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.1), nn.ReLU(), nn.Linear(12, 2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


def one_of_its_kind() -> tuple[Tensor, Tensor]:
    inputs, labels = examples()
    labels[5] = 2
    return inputs, labels


def regression(constant: bool = False) -> Task:
    def data(seed: int) -> tuple[Tensor, Tensor]:
        inputs, _ = examples(200, seed)
        targets = inputs[:, :1] * 2.0
        return inputs, torch.full_like(targets, 3.0) if constant else targets

    return Task(
        build_model=lambda: nn.Linear(6, 1), train=data(0), validation=data(1), kind="regression"
    )


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).float()


def normalized() -> nn.Module:
    return perceptron(lambda: Batch(12))


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


METRIC = Metric(name="error", direction="min", per_example=wrong)
KINDS: dict[str, tuple[Any, Recipe, str]] = {
    "batchnorm": (
        lambda: task_of(build_model=normalized),
        RECIPE,
        "0.9",
    ),
    "ghosts": (
        lambda: task_of(build_model=normalized),
        replace(RECIPE, ghost_batch_size=8, micro_batch_size=8),
        "0.9",
    ),
    "frozen and dropout": (lambda: task_of(build_model=half_frozen), RECIPE, "0.85"),
    "tied": (lambda: task_of(build_model=Tied), RECIPE, "0.85"),
    "one-sample class": (
        lambda: task_of(
            build_model=lambda: nn.Linear(6, 3), train=one_of_its_kind(), validation=None
        ),
        RECIPE,
        "0.85",
    ),
    "regression": (regression, replace(RECIPE, optimizer=SGDSettings(lr=0.01)), "loss<=0.01"),
    "constant targets": (
        lambda: regression(True),
        replace(RECIPE, optimizer=SGDSettings(lr=0.01)),
        "loss<=0.001",
    ),
    "bf16": (task_of, replace(RECIPE, compute=ComputeSettings(precision="bf16")), "0.85"),
    "adam": (task_of, replace(RECIPE, optimizer=AdamSettings(lr=1e-3)), "0.85"),
    "adamw, clipped": (
        task_of,
        replace(RECIPE, optimizer=AdamWSettings(lr=1e-3), gradient=(ClipGlobalNorm(max_norm=1.0),)),
        "0.85",
    ),
    "muon": (task_of, replace(RECIPE, optimizer=MuonSettings(lr=0.02)), "0.85"),
    "sum": (
        task_of,
        replace(RECIPE, loss=LossSettings(reduction="sum"), optimizer=SGDSettings(lr=0.003)),
        "0.85",
    ),
    "own loss and metric": (lambda: task_of(loss=own_loss, metric=METRIC), RECIPE, "error<=0.15"),
    "scheduled": (
        task_of,
        replace(
            RECIPE,
            schedules=Schedules(lr=OneCycle(), momentum=Cosine()),
            averaging=ExponentialAverage(decay=0.9),
            plateau=ReduceOnPlateauSettings(patience=1),
            stopping=Stopping(patience=4),
        ),
        "0.85",
    ),
    "full batch": (task_of, replace(RECIPE, batch_size="full", duration=epochs(50)), "0.85"),
    "few examples": (
        lambda: task_of(train=examples(24)),
        replace(RECIPE, batch_size=4),
        "0.85",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_task_is_planned_or_says_why_not(name: str, tmp_path: Path) -> None:
    make_task, recipe, target = KINDS[name]
    task, wanted = make_task(), FULL if name in ("ghosts", "bf16", "muon", "sum") else SHORT
    plan = planned(tmp_path / "plan", task, recipe, target=target, wanted=wanted)
    assert_sound(plan, tmp_path / "plan", task)
    finding = {"batchnorm": "ghost-unit", "ghosts": "ghost-unit"}.get(name)
    assert finding is None or finding in [f.name for f in plan.findings]


# --- refused -------------------------------------------------------------------------------------


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*examples(), strict=True))


def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.std() + 0.0 * targets.sum()


REFUSED: dict[str, tuple[Any, Recipe, str | None, str]] = {
    "stream": (
        lambda: task_of(train=Stream(), num_examples=240),
        RECIPE,
        "0.9",
        "train must have random access for a plan, got a stream",
    ),
    "streamed validation": (
        lambda: task_of(validation=Stream()),
        RECIPE,
        "0.9",
        "validation must have random access for a plan, got a stream",
    ),
    "coupled": (
        lambda: task_of(loss=coupled, loss_scope="batch"),
        RECIPE,
        "0.9",
        "loss_scope must be example for a plan, got batch",
    ),
    "batch larger than the set": (
        task_of,
        replace(RECIPE, batch_size=241),
        "0.9",
        "batch_size must be <= the 240 training examples, got 241",
    ),
    "blocks": (
        task_of,
        replace(RECIPE, blocks=BlockSettings(size=4)),
        "0.9",
        "blocks must be left out for a plan",
    ),
    "local updates": (
        task_of,
        replace(RECIPE, communication=LocalUpdates(every=4)),
        "0.9",
        "communication must be left out for a plan",
    ),
    "batch control": (
        task_of,
        replace(RECIPE, batch_control=AdaptiveBatchSize()),
        "0.9",
        "batch_control must be left out for a plan, which chooses the size",
    ),
    "BatchNorm of the last update": (
        task_of,
        replace(RECIPE, batch_norm=BatchNormSettings(evaluated_with="last-update")),
        "0.9",
        'batch_norm.evaluated_with must be "running" or "whole-set" for a plan',
    ),
    "no lr": (task_of, replace(RECIPE, optimizer=SGDSettings(lr=0.0)), "0.9", "optimizer.lr must"),
    "no target": (task_of, RECIPE, None, "target must be given for a plan"),
    "a target of nothing": (task_of, RECIPE, "colour>=1", "must be about loss or accuracy"),
    "98 %": (task_of, RECIPE, "98", "must be in"),
    "against the direction": (
        task_of,
        RECIPE,
        "accuracy<=0.5",
        "target must be accuracy>=VALUE for a plan, got accuracy<=0.5",
    ),
    "loss upwards": (task_of, RECIPE, "loss>=0.5", "target must be loss<=VALUE for a plan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_before_anything_is_measured_or_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procedure, "measure_throughput", lambda *a, **k: pytest.fail("measured"))
    make_task, recipe, target, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        make_plan(make_task(), recipe, target=target, out=tmp_path / "plan", progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, math.nan])
def test_a_budget_is_a_share(share: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="budget must be in"):
        make_plan(task_of(), RECIPE, target="0.9", budget=share, out=tmp_path / "plan")


def test_a_folder_that_holds_something_is_refused_and_stays(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    out.mkdir()
    (out / PLAN_FILE).write_text("{}")
    with budget(), pytest.raises(InputError, match=r"new or empty folder.*anybatch explain"):
        make_plan(task_of(), RECIPE, target="0.9", out=out, progress=False)
    assert [path.name for path in out.iterdir()] == [PLAN_FILE]


# --- ended early ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize(
    ("stage", "known"),
    [
        ("measure_throughput", []),
        ("measure_lr_range", ["throughput"]),
        ("measure_noise_scale", ["lr-range", "pilot", "throughput"]),
        ("train_branches", ["lr-range", "noise-scale-1", "noise-scale-2", "pilot", "throughput"]),
    ],
)
def test_what_was_known_is_written_as_a_partial_plan(
    stage: str,
    known: list[str],
    end: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*given: Any, **settings: Any) -> Any:
        raise end

    monkeypatch.setattr(procedure, stage, ended)
    with pytest.raises(type(end)):
        planned(tmp_path / "plan", target="accuracy>=0.97", wanted=FULL)
    run = Run(tmp_path / "plan")
    name = "Ctrl-C" if isinstance(end, KeyboardInterrupt) else "SIGTERM"
    assert run.status.name == "interrupted"
    assert run.status.reason.startswith(f"ended by {name} during the ")
    assert run.status.exit_code == (130 if isinstance(end, KeyboardInterrupt) else 143)
    assert sorted(run.measurements()) == known
    plan = run.plan
    assert (plan is not None) == bool(known)
    if plan is None:
        return
    assert plan.partial == run.status.reason
    assert plan.lines()[0] == f"partial: {plan.partial}"
    again = Composer(plan.request, run.measurements())
    assert again.plan(procedure=plan.procedure, cost=plan.cost, partial=plan.partial) == plan
    assert has_checkpoint(run) == bool(plan.pilot) == ("pilot" in known)


def test_a_measurement_whose_writing_was_cut_off_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, cut = Run.add_measurement, [False]

    def cut_off(run: Run, measured: Any, *, name: str) -> None:
        if name == "lr-range" and not cut[0]:
            cut[0] = True
            raise KeyboardInterrupt
        add(run, measured, name=name)

    monkeypatch.setattr(Run, "add_measurement", cut_off)
    with pytest.raises(KeyboardInterrupt):
        planned(tmp_path / "plan")
    assert sorted(Run(tmp_path / "plan").measurements()) == ["lr-range", "throughput"]


def test_an_error_on_the_way_is_the_folders_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **settings: Any) -> Any:
        raise OSError("the tape\nis torn")

    monkeypatch.setattr(procedure, "measure_noise_scale", broken)
    with pytest.raises(OSError, match="torn"):
        planned(tmp_path / "plan", target="accuracy>=0.97")
    status = Run(tmp_path / "plan").status
    assert (status.name, status.reason) == ("failed", "OSError: the tape is torn")
