"""Records as lines of JSON, and the Run's folder: logs, atomic files, status, verdict."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.errors import ExitCode, InputError
from anybatch.measurement import Estimate, Measurement
from anybatch.recipe import Recipe, SGDSettings
from anybatch.records import TIME_FIELDS, EvalRecord, Record, StepRecord, from_json, to_json
from anybatch.run import (
    Run,
    Status,
    StatusName,
    new_folder,
    read_json,
    write_atomically,
    write_json,
)

RECIPE = Recipe(optimizer=SGDSettings(lr=0.1))


def step(update: int = 1, **changes: object) -> StepRecord:
    record = StepRecord(
        update=update,
        examples=32 * update,
        epoch=0.25,
        loss=2.3,
        batch_size=32,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.0,
        gradient_norm=None,
        seconds=0.5,
        examples_per_second=64.0,
    )
    return dataclasses.replace(record, **changes)


def evaluation(split: str = "validation", **changes: object) -> EvalRecord:
    record = EvalRecord(
        update=10,
        examples=320,
        epoch=0.25,
        split="validation",
        loss=0.4,
        metric=0.9,
        metric_name="accuracy",
        seconds=1.5,
        evaluation_seconds=0.1,
    )
    return dataclasses.replace(record, split=split, **changes)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", RECIPE, {"name": "digits"})


# --- records -------------------------------------------------------------------------------------

ANY_NUMBER = st.floats(allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(step, st.integers(1, 2**60), loss=ANY_NUMBER, gradient_norm=st.none() | ANY_NUMBER)
    | st.builds(
        evaluation,
        st.sampled_from(["train", "validation", "test"]),
        metric=ANY_NUMBER,
        metric_name=st.text(),
    )
)
def test_a_record_is_one_line_and_comes_back(record: Record) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert from_json(line, type(record)) == record


@pytest.mark.parametrize(
    ("value", "text"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")]
)
def test_a_number_that_is_not_finite_is_text_in_strict_json(value: float, text: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = to_json(step(loss=value))
    assert json.loads(line, parse_constant=refuse)["loss"] == text
    back = from_json(line, StepRecord).loss
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_a_metric_may_be_named_like_a_number() -> None:
    record = evaluation(metric_name="inf")
    assert from_json(to_json(record), EvalRecord) == record


def test_the_time_fields_are_fields_of_the_records() -> None:
    names = {f.name for kind in (StepRecord, EvalRecord) for f in dataclasses.fields(kind)}
    assert names >= TIME_FIELDS


# --- logs ----------------------------------------------------------------------------------------


def test_records_come_back_in_order_each_from_its_own_log(run: Run) -> None:
    run.append(step(1))
    run.append(evaluation("validation"))
    run.append(step(2, loss=math.nan))
    run.append(evaluation("test", metric=0.8))
    assert [record.update for record in run.steps()] == [1, 2]
    assert math.isnan(list(run.steps())[1].loss)
    assert list(run.evals()) == [evaluation("validation"), evaluation("test", metric=0.8)]


def test_a_run_without_logs_has_no_records(run: Run) -> None:
    assert list(run.steps()) == list(run.evals()) == []
    assert run.last_eval("validation") is None
    empty = {"steps.jsonl": 0, "evals.jsonl": 0, "events.jsonl": 0}
    assert run.log_lengths() == empty


def test_the_last_evaluation_of_a_split_is_found(run: Run) -> None:
    for record in (evaluation(metric=0.1), evaluation(metric=0.2), evaluation("test", metric=0.3)):
        run.append(record)
    assert run.last_eval("validation") == evaluation(metric=0.2)
    assert run.last_eval("test") == evaluation("test", metric=0.3)
    assert run.last_eval("train") is None


@pytest.mark.parametrize("kept", [1, 10, -2])
def test_a_last_line_that_was_cut_off_is_ignored(run: Run, kept: int) -> None:
    run.append(step(1))
    line = to_json(step(2)).encode()
    with (run.path / "steps.jsonl").open("ab") as log:
        log.write(line[:kept])
    assert [record.update for record in run.steps()] == [1]


def test_a_last_line_that_lacks_only_its_end_is_ignored(run: Run) -> None:
    (run.path / "steps.jsonl").write_text(to_json(step(1)) + "\n" + to_json(step(2)))
    assert [record.update for record in run.steps()] == [1]


@pytest.mark.parametrize("line", ["{", '{"update": 1}', "[1]", "null", '{"speed": 3}', "\udcff"])
def test_a_whole_line_that_is_no_record_is_refused_with_its_number(run: Run, line: str) -> None:
    run.append(step(1))
    with (run.path / "steps.jsonl").open("ab") as log:
        log.write(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(InputError, match=r"steps\.jsonl line 2 must be a StepRecord"):
        list(run.steps())


def test_logs_are_cut_back_to_a_remembered_length(run: Run) -> None:
    run.append(step(1))
    lengths = run.log_lengths()
    run.append(step(2))
    run.append(evaluation())
    run.truncate_logs(lengths)
    assert run.log_lengths() == lengths
    assert [record.update for record in run.steps()] == [1]
    assert list(run.evals()) == []
    run.append(step(3))
    assert [record.update for record in run.steps()] == [1, 3]


def test_a_log_that_lost_lines_is_refused(run: Run) -> None:
    run.append(step(1))
    run.append(evaluation())
    lengths = run.log_lengths()
    run.check_logs(lengths)
    with pytest.raises(InputError, match=r"evals\.jsonl must hold at least"):
        run.check_logs(lengths | {"evals.jsonl": lengths["evals.jsonl"] + 1})
    (run.path / "steps.jsonl").unlink()
    with pytest.raises(InputError, match=r"steps\.jsonl must hold at least"):
        run.check_logs(lengths)


# --- files ---------------------------------------------------------------------------------------


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: typing.BinaryIO) -> None:
        file.write(b"half of the n")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fill(file: typing.BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="file must be writable, got No space left on device"):
        write_atomically(path, fill)
    assert path.read_bytes() == b"old"


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def look(file: typing.BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, look)
    assert path.read_bytes() == b"new"


def test_json_files_are_strict_and_must_hold_an_object(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": [math.nan, math.inf, 1.0], "b": {"c": -math.inf}})
    assert read_json(path) == {"a": ["nan", "inf", 1.0], "b": {"c": "-inf"}}
    path.write_text("[1]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(InputError, match="must be a readable JSON file"):
        read_json(path)


def test_a_folder_that_cannot_be_filled_is_as_before(tmp_path: Path) -> None:
    def fill_and_fail(folder: Path) -> None:
        with new_folder(folder):
            (folder / "inner").mkdir()
            (folder / "file").touch()
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        fill_and_fail(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="cut"):
        fill_and_fail(tmp_path / "empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


# --- the run -------------------------------------------------------------------------------------


def test_a_new_run_holds_its_recipe_its_task_and_that_it_is_running(run: Run) -> None:
    again = Run(str(run.path))
    assert again.recipe == RECIPE
    assert again.task["name"] == "digits"
    assert again.status == Status(name="running")
    assert again.environments == []
    assert again.measurements() == {}


def test_a_run_is_made_only_in_a_new_or_empty_folder(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out must be a new or empty folder.*--resume"):
        Run.create(run.path, RECIPE, {})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out must be a new or empty folder"):
        Run.create(tmp_path / "file", RECIPE, {})
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", RECIPE, {}).recipe == RECIPE


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run must be a folder with a recipe\.json"):
        Run(tmp_path)


def test_sessions_are_added_to_the_environment(run: Run) -> None:
    run.add_environment({"threads": 1})
    run.add_environment({"threads": 2})
    assert run.environments == [{"threads": 1}, {"threads": 2}]


def test_a_status_comes_back_as_written(run: Run) -> None:
    status = Status(
        name="interrupted", reason="by SIGINT", update=3, examples=96, seconds=0.25, signal=2,
        target="accuracy >= 0.9", target_seconds=0.125, target_update=2,
    )  # fmt: skip
    run.write_status(status)
    assert run.status == status


EXIT_CODES = {
    "running": 0, "finished": 0, "target-missed": 1, "failed": 2, "diverged": 3, "interrupted": 130,
}  # fmt: skip


@pytest.mark.parametrize("name", typing.get_args(StatusName))
def test_every_status_has_its_exit_code(name: StatusName) -> None:
    assert Status(name=name).exit_code == EXIT_CODES[name]


def test_a_signal_decides_the_exit_code() -> None:
    assert Status(name="interrupted", signal=2).exit_code == ExitCode.INTERRUPTED
    assert Status(name="interrupted", signal=15).exit_code == ExitCode.TERMINATED


def test_the_verdict_is_one_line_with_both_splits(run: Run) -> None:
    run.append(evaluation("validation", metric=0.98765))
    run.append(evaluation("test", metric=0.97))
    run.write_status(Status(name="finished", reason="done", update=9, examples=12345, seconds=2.34))
    assert run.verdict() == (
        "finished (done); validation accuracy 0.9877; test accuracy 0.9700; "
        "12,345 examples in 2.3 s of training"
    )


def test_the_verdict_of_a_run_that_saw_nothing(run: Run) -> None:
    assert run.verdict() == "running; 0 examples in 0.0 s of training"


def test_plain_values_of_a_run_are_strict_json(run: Run) -> None:
    run.append(evaluation("validation", loss=math.inf))
    values = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert values["status"]["name"] == "running"
    assert values["validation"]["loss"] == "inf"
    assert "test" not in values


def test_a_measurement_comes_back_with_unbounded_intervals(run: Run) -> None:
    measurement = Measurement(
        kind="noise-scale",
        settings={"updates": 3},
        samples={"square": (1.0, math.nan), "trace": (0.5, math.inf)},
        estimates={"batch": Estimate(value=None, low=5.0, high=math.inf, reason="too few")},
        seconds=1.0,
        examples=64,
    )
    run.add_measurement(measurement)
    back = run.measurements()["noise-scale"]
    assert back.estimates == measurement.estimates
    assert math.isnan(back.samples["square"][1])
    assert back.samples["trace"] == (0.5, math.inf)
    run.add_measurement(dataclasses.replace(measurement, seconds=2.0))
    assert [m.seconds for m in run.measurements().values()] == [2.0]
