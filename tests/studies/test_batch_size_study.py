"""Studies of batch sizes: what their tables say, stops anywhere, where they run."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from study_tasks import NAME, NUM_EXAMPLES, recipe, task
from torch import nn

from anybatch.errors import InputError
from anybatch.recipe import Recipe, Schedules, SGDSettings, Stopping, Target
from anybatch.run import Status
from anybatch.schedules import Cosine, Linear, epochs, updates
from anybatch.studies import batch_size as procedure
from anybatch.studies import trials as trials_module
from anybatch.studies.batch_size import resume_batch_size_study, study_batch_size
from anybatch.studies.batch_size_grid import BatchSizeSettings
from anybatch.studies.batch_size_table import BatchSizeStudy, Spread, batch_size_table
from anybatch.studies.trials import Order, carry_out, seconds_of_loading
from anybatch.studies.workers import Workers, _carry_out_again, _raise
from anybatch.task import Task, load_task
from anybatch.training.outcome import StopRequest
from anybatch.training.training import Training

FIXED = BatchSizeSettings(batch_sizes=(4, 32), lr=0.05, seeds=2)
TUNED = BatchSizeSettings(batch_sizes=(4, 32), seeds=2)
TIMES = ("seconds", "computing_seconds")


def facts(study: BatchSizeStudy) -> list[dict[str, Any]]:
    """Every trial of a study but for its times."""
    return [
        {name: value for name, value in trial.items() if name not in TIMES}
        for trial in study.to_dict()["trials"]
    ]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> BatchSizeStudy:
    """A tuned study from beginning to end in this process."""
    sys.path.insert(0, str(Path(__file__).parent))
    out = tmp_path_factory.mktemp("tuned") / "study"
    return study_batch_size(load_task(NAME), recipe(), settings=TUNED, out=out)


# --- what the table says -------------------------------------------------------------------------


def updates_to_target(batch_size: int, lr: float, seed: int) -> int:
    """By looking after every single update of a training of its own."""
    made = recipe(
        batch_size=batch_size, optimizer=SGDSettings(lr=lr), seed=seed,
        stopping=Stopping(target=Target("loss", "<=", 0.15), evaluate_every=updates(1)),
    )  # fmt: skip
    with Training(task(), made) as training:
        for _ in training:
            pass
        return int(training.target.reached_update)


def test_a_fixed_lr_gives_the_updates_of_plain_trainings(tmp_path: Path) -> None:
    study = study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "s")
    for row in study.table():
        assert (row.lr, row.planned, row.ended, row.reached, row.share) == (0.05, 2, 2, 2, 1.0)
        true = [updates_to_target(row.batch_size, 0.05, seed) for seed in (0, 1)]
        for found, expected in zip(
            sorted(study.outcomes(row.batch_size), key=lambda o: o.seed), true, strict=True
        ):
            assert expected <= found.updates <= math.ceil(1.05 * expected) + 1
            assert found.resolution is not None
            assert found.resolution <= math.ceil(0.05 * found.updates) + 1
            epoch = 96 // row.batch_size
            whole, rest = divmod(found.updates, epoch)
            assert found.examples == whole * 96 + rest * row.batch_size
        assert row.updates is not None
        assert row.updates.lowest <= row.updates.median <= row.updates.highest
    assert study.is_complete
    assert not (tmp_path / "s" / "tuning").exists()


def test_not_reached_and_diverged_are_results_and_never_enter_a_median(tmp_path: Path) -> None:
    settings = BatchSizeSettings(batch_sizes=(4,), lr=0.0002, seeds=2)
    slow = study_batch_size(task(), recipe(), settings=settings, out=tmp_path / "a")
    (row,) = slow.table()
    assert (row.ended, row.reached, row.diverged_at) == (2, 0, ())
    assert row.updates == Spread(math.inf, math.inf, math.inf)
    assert {found.outcome for found in slow.outcomes(4)} == {"not reached within the cap"}
    assert {found.updates for found in slow.outcomes(4)} == {480}
    for trial in slow.trials(4):
        looks = [record for record in trial.run.evals() if record.split == "validation"]
        assert 60 < len(looks) < 110  # of 480 updates: each 5 % further than the one before

    settings = BatchSizeSettings(batch_sizes=(4,), lr=1e4, seeds=1)
    wild = study_batch_size(task(), recipe(), settings=settings, out=tmp_path / "b")
    (row,) = wild.table()
    (found,) = wild.outcomes(4)
    assert (row.reached, row.diverged_at, found.outcome) == (0, (found.updates,), "diverged")
    run = wild.trials(4)[0].run
    assert run is not None
    assert f"at update {found.updates};" in run.status.reason
    json.dumps(wild.to_dict(), allow_nan=False)


def test_half_of_the_runs_missed_leave_no_median_to_flatter(tmp_path: Path, tuned) -> None:
    one = tuned.outcomes(4)[-1]
    reached = SimpleNamespace(outcome="reached")
    missed = SimpleNamespace(outcome="not reached within the cap")
    spread = sys.modules["anybatch.studies.batch_size_table"]._spread
    assert spread([reached, reached, missed], [5, 9, 1]) == Spread(9.0, 5.0, math.inf)
    assert spread([reached, missed], [5, 1]) == Spread(math.inf, 5.0, math.inf)
    assert one.outcome == "reached"


def test_tuning_finds_a_better_lr_and_its_seed_stays_out_of_the_table(tuned) -> None:
    for row in tuned.table():
        outcomes = tuned.outcomes(row.batch_size)
        tuning = [found for found in outcomes if found.stage == "tuning"]
        table = [found for found in outcomes if found.stage == "table"]
        assert {found.seed for found in tuning} == {0}
        assert sorted(found.seed for found in table) == [1, 2]
        assert {found.lr for found in table} == {row.lr}
        assert len(tuning) >= 5
        best = min((f.updates, f.lr) for f in tuning if f.outcome == "reached")
        assert row.lr in {found.lr for found in tuning if found.updates == best[0]}
        assert min(f.lr for f in tuning) < row.lr < max(f.lr for f in tuning)
    small, large = tuned.table()
    assert large.updates.median < small.updates.median
    assert small.examples.median < large.examples.median


def test_nothing_is_chosen_by_the_test_split_which_is_read_once_by_runs_of_the_table(tuned) -> None:
    for size in tuned.batch_sizes:
        for run in tuned.tuning_runs(size).values():
            assert run.last_eval("test") is None
        for trial in tuned.trials(size):
            assert len([record for record in trial.run.evals() if record.split == "test"]) == 1


def test_the_table_comes_from_the_disk_without_torch(tuned) -> None:
    code = (
        "import sys\n"
        "from anybatch.studies.batch_size_table import batch_size_table\n"
        f"print([row.updates.median for row in batch_size_table({str(tuned.path)!r})])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = [row.updates.median for row in batch_size_table(tuned.path)]
    assert json.loads(done.stdout) == expected


def test_loading_is_timed_apart_and_taken_off(tuned) -> None:
    for size in tuned.batch_sizes:
        for found in tuned.outcomes(size):
            if found.stage == "tuning":
                assert found.computing_seconds is None
                continue
            path = tuned.path / f"batch-{size}" / f"seed-{found.seed}" / "loading.json"
            loading = json.loads(path.read_text())["seconds_per_update"]
            left = max(0.0, found.seconds - found.updates * loading)
            assert found.computing_seconds == pytest.approx(left)
            assert 0.0 < loading < 1.0


class SlowItems(torch.utils.data.Dataset[Any]):
    """Takes a millisecond an example."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.001)
        return torch.rand(2), index % 2


def test_a_slow_loader_is_seen_and_the_training_stays_where_it_is() -> None:
    slow = Task(build_model=lambda: nn.Linear(2, 2), train=SlowItems(), validation=SlowItems())
    with Training(slow, recipe(stopping=Stopping(), duration=epochs(2))) as training:
        before = torch.get_rng_state()
        seconds = seconds_of_loading(training)
        assert seconds is not None
        assert seconds >= 0.008  # eight examples an update
        assert (training.updates, training.feed.examples) == (0, 0)
        assert torch.equal(before, torch.get_rng_state())


def test_a_run_killed_in_a_later_round_still_knows_the_earlier_ones(tmp_path: Path, tuned) -> None:
    shutil.copytree(tuned.path, tmp_path / "s")
    study = BatchSizeStudy(tmp_path / "s")
    runs = study.tuning_runs(4).values()
    run = max(runs, key=lambda run: run.recipe.duration.count)
    length = int(run.recipe.duration.count)
    run.write_status(Status(name="running"))  # as it is written when a run goes on
    history = study.history(run)
    assert (history.updates, history.reached) == (length - 1, None)
    assert not history.is_known_at(length)
    assert history.is_known_at(length // 2)


# --- stopped anywhere ----------------------------------------------------------------------------


def test_a_study_cut_into_slices_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned
) -> None:
    clock = SimpleNamespace(now=0.0)

    def tick() -> float:
        clock.now += 1.0
        return clock.now

    own = SimpleNamespace(time=tick, perf_counter=time.perf_counter)
    monkeypatch.setattr(trials_module, "time", own)
    monkeypatch.setattr(procedure, "time", own)
    monkeypatch.setattr(StopRequest, "_MOST_UPDATES_BETWEEN", 1)  # runs are short
    made = load_task(NAME)
    study = study_batch_size(made, recipe(), settings=TUNED, out=tmp_path / "s", seconds=9.0)
    slices, interrupted = 1, 0
    while not study.is_complete:
        study = resume_batch_size_study(study.path, task=made, seconds=3.0 + 7.0 * (slices % 5))
        names = [json.loads(p.read_text())["name"] for p in study.path.rglob("status.json")]
        interrupted += "interrupted" in names
        slices += 1
        assert slices < 300
    assert slices > 10
    assert interrupted > 3
    assert facts(study) == facts(tuned)
    assert len(study.sessions) == slices


def press_ctrl_c(number: int, batch_size: int, patch: pytest.MonkeyPatch) -> None:
    """Raise SIGINT in one update of the first run with this batch size."""
    step = Training.step

    def step_and_press(training: Training) -> None:
        step(training)
        if training.recipe.batch_size == batch_size and training.updates == number:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(Training, "step", step_and_press)


def test_ctrl_c_loses_nothing_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        press_ctrl_c(3, 32, patch)
        with pytest.raises(KeyboardInterrupt):
            study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "s")
    part = BatchSizeStudy(tmp_path / "s")
    assert [row.ended for row in part.table()] == [1, 0] or [row.ended for row in part.table()] == [
        1,
        1,
    ]
    kept = (tmp_path / "s" / "batch-4" / "seed-0" / "status.json").read_bytes()
    done = resume_batch_size_study(tmp_path / "s", task=task())
    assert (tmp_path / "s" / "batch-4" / "seed-0" / "status.json").read_bytes() == kept
    assert facts(done) == facts(whole)


def test_no_time_trains_nothing(tmp_path: Path) -> None:
    study = study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "s", seconds=0.0)
    assert [row.ended for row in study.table()] == [0, 0]
    assert not list(study.path.rglob("recipe.json"))


# --- where it runs -------------------------------------------------------------------------------


def test_two_processes_find_what_one_finds(tmp_path: Path, tuned) -> None:
    study = study_batch_size(
        load_task(NAME), recipe(), settings=TUNED, out=tmp_path / "s", on="local:2"
    )
    assert facts(study) == facts(tuned)
    (session,) = study.sessions
    assert (session["on"], session["processes"], session["threads"]) == ("local", 2, 1)


def test_an_error_in_another_process_comes_as_the_same_line(tmp_path: Path) -> None:
    order = Order(
        path=tmp_path / "run",
        recipe=recipe(batch_size=NUM_EXAMPLES + 1),
        task=load_task(NAME).reference,
    )
    with pytest.raises(InputError) as met:
        carry_out(order, task())
    parts = pickle.loads(pickle.dumps(_carry_out_again(order)))
    with pytest.raises(InputError) as told:
        _raise(parts)
    assert str(told.value) == str(met.value)
    assert (told.value.thing, told.value.hint) == (met.value.thing, met.value.hint)


def test_ray_finds_what_one_process_finds(tmp_path: Path, tuned) -> None:
    pytest.importorskip("ray")
    study = study_batch_size(
        load_task(NAME), recipe(), settings=TUNED, out=tmp_path / "s", on="ray:2"
    )
    assert facts(study) == facts(tuned)
    assert study.sessions[0]["on"] == "ray"


def test_a_task_made_by_hand_stays_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on must be local for a task made by hand"):
        study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "s", on="local:2")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["", "slurm", "local:0", "local:x", "ray:", "local:-1"])
def test_places_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(InputError, match='on must be "local" or "ray"'):
        Workers.parse(text)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (recipe(stopping=Stopping()), FIXED, "target must be given"),
        (recipe(), BatchSizeSettings(batch_sizes=(4, 128), lr=0.1), "must be <= the 96 training"),
        (recipe(), BatchSizeSettings(target="accuracy>=0.9"), "stopping.target must be about loss"),
        (recipe(schedules=Schedules(batch_size=Linear())), FIXED, "schedules.batch_size must be"),
        (recipe(optimizer=SGDSettings(lr=0.0)), TUNED, "optimizer.lr must be > 0 to be tuned"),
    ],
)
def test_what_cannot_be_studied_is_refused_and_leaves_nothing(
    tmp_path: Path, made: Recipe, settings: BatchSizeSettings, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        study_batch_size(task(), made, settings=settings, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE must be 1"):
        study_batch_size(task(), recipe(), settings=FIXED, out=tmp_path / "s")


def test_a_schedule_is_kept_tried_once_and_said(tmp_path: Path) -> None:
    scheduled = recipe(schedules=Schedules(lr=Cosine()), duration=epochs(8))
    settings = BatchSizeSettings(batch_sizes=(32,), seeds=1)
    study = study_batch_size(task(), scheduled, settings=settings, out=tmp_path / "s")
    assert any("schedules stretch over the cap" in note for note in study.notes())
    durations = {str(run.recipe.duration) for run in study.tuning_runs(32).values()}
    assert durations == {"8 epochs"}


def test_a_target_found_too_coarsely_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["anybatch.studies.batch_size_grid"], "_LOOKS_PER_EPOCH", 1)
    settings = BatchSizeSettings(batch_sizes=(4,), lr=0.05, seeds=1)
    study = study_batch_size(task(), recipe(), settings=settings, out=tmp_path / "s")
    assert any("updates are known to" in note for note in study.notes())
