"""The command line: help, one JSON document, exit codes, a training from beginning to end."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from anybatch.cli import _parsed, main
from anybatch.errors import ExitCode
from anybatch.methods import METHODS
from anybatch.recipe_file import load_recipe, shipped_recipe_names
from anybatch.records import TIME_FIELDS
from anybatch.run import Run
from anybatch.study import Study

COMMANDS = [
    [],
    ["train"],
    ["plan"],
    ["explain"],
    ["calibration"],
    ["lr-range"],
    ["throughput"],
    ["predict-scaling"],
    ["noise-scale"],
    ["loss-oscillation"],
    ["sharpness"],
    ["doctor"],
    ["study"],
    ["study", "batch-size"],
    ["study", "resume"],
    ["reproduce"],
    ["report"],
    ["compare"],
    ["tasks"],
    ["recipe"],
    ["recipe", "list"],
    ["recipe", "show"],
    ["recipe", "check"],
    ["recipe", "diff"],
    ["recipe", "preview"],
]
SHORT = ["--set", "duration=40 updates", "--set", "stopping.evaluate_every=20 updates"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


def steps_without_times(run: Run) -> list[dict[str, object]]:
    rows = [dataclasses.asdict(record) for record in run.steps()]
    return [{k: v for k, v in row.items() if k not in TIME_FIELDS} for row in rows]


def weights(run: Run) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run.path / "weights.pt", weights_only=True)
    return loaded


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(call, command: Sequence[str]) -> None:
    code, out, err = call(*command, "--help")
    assert (code, err) == (0, "")
    assert "Example: anybatch" in out
    assert "usage: anybatch" in out


def test_without_arguments_help_is_shown(call) -> None:
    assert call() == call("--help")


def test_every_example_of_the_help_is_a_command_that_is_understood(call) -> None:
    for command in COMMANDS:
        example = call(*command, "--help")[1].partition("Example: anybatch ")[2].splitlines()[0]
        given = example.strip("│ ").split()
        assert given[: len(command)] == command
        assert callable(_parsed(given).run)


def test_the_version_is_that_of_the_package(call) -> None:
    assert call("--version") == (0, f"anybatch {importlib.metadata.version('anybatch')}\n", "")


# --- one JSON document ---------------------------------------------------------------------------


def test_recipe_list_as_json(call) -> None:
    code, out, err = call("recipe", "list", "--json")
    assert (code, err) == (0, "")
    assert [row["name"] for row in json.loads(out)["recipes"]] == shipped_recipe_names()


def test_recipe_show_as_json_is_a_recipe(call) -> None:
    code, out, err = call("recipe", "show", "mnist", "--set", "seed=7", "--json")
    assert (code, err) == (0, "")
    Path("shown.json").write_text(out)
    assert load_recipe("shown.json") == load_recipe("mnist", ["seed=7"])


def test_recipe_diff_as_json(call) -> None:
    Path("mine.toml").write_text('[optimizer]\nname = "sgd"\nlr = 0.1\n')
    Path("yours.toml").write_text('seed = 3\n[optimizer]\nname = "sgd"\nlr = 0.2\n')
    code, out, err = call("recipe", "diff", "mine.toml", "yours.toml", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["differences"] == [
        {"path": "optimizer.lr", "one": 0.1, "other": 0.2},
        {"path": "seed", "one": 0, "other": 3},
    ]


def test_tasks_as_json(call) -> None:
    code, out, err = call("tasks", "--json")
    assert (code, err) == (0, "")
    found = {row["name"]: row["found"] for row in json.loads(out)["tasks"]}
    assert found["digits"] is True
    assert found["mnist"] is False


def test_train_as_json_is_one_document_and_nothing_else(call) -> None:
    code, out, err = call("train", "digits", *SHORT, "--out", "out", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values == json.loads(json.dumps(Run("out").to_dict()))
    assert values["status"]["name"] == "finished"
    assert values["status"]["update"] == 40
    assert 0 <= values["test"]["metric"] <= 1


def test_a_study_as_json_is_one_document_and_nothing_else(call) -> None:
    code, out, err = call("train", "digits", *SHORT, "--out", "out", "--seeds", "2", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["arms"][0]["n"] == 2
    assert [run["status"]["name"] for run in values["runs"]] == ["finished"] * 2


# --- text ----------------------------------------------------------------------------------------


def test_recipes_are_listed_checked_and_compared(call) -> None:
    code, out, _ = call("recipe", "list")
    assert code == 0
    recipes, _, methods = out.partition("\n\n")
    assert [line.split()[0] for line in recipes.splitlines()] == ["recipe", *shipped_recipe_names()]
    for method in METHODS:
        head = next(line for line in methods.splitlines() if line.startswith(f"{method.title}  "))
        assert method.paper in head
        assert f"docs/{method.page}.md" in head
        assert (f"article {method.article}" in head) == (method.article > 0)
        assert all(f"    {line}\n" in f"{methods}\n" for line in method.lines)
    assert call("recipe", "check", "mnist") == (0, "mnist is a valid recipe\n", "")
    assert call("recipe", "diff", "mnist", "mnist") == (0, "no difference\n", "")
    code, out, _ = call("recipe", "diff", "mnist", "fashion-mnist")
    assert code == 0
    assert any(
        line.split() == ["augmentation.flip", '"none"', '"alternating"']
        for line in out.splitlines()
    )


def test_the_conventions_are_printed_with_a_recipe(call) -> None:
    assert "# weight decay is coupled" in call("recipe", "show", "digits")[1]
    assert "# weight decay is decoupled" in call("recipe", "show", "default")[1]
    summed = call(
        "recipe", "show", "digits", "--set", "loss.reduction=sum", "--set", "batch_size=10"
    )[1]
    assert "with the mean loss at batch size 10: lr 1, weight_decay 5e-05" in summed


def test_tasks_are_listed_with_where_they_are_looked_for(call) -> None:
    code, out, _ = call("tasks", "--data", str(Path.cwd()))
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert "found" in rows["digits"]
    assert "not found" in rows["mnist"]
    assert "train-images-idx3-ubyte" in rows["mnist"]


# --- training ------------------------------------------------------------------------------------


def test_digits_are_learned_from_the_command_line(call) -> None:
    code, out, err = call("train", "digits", "--out", "out", "--target", "0.95")
    run = Run("out")
    assert code == 0, err
    assert out == f"{run.verdict()}\nrun: out\n"
    assert run.status.name == "finished"
    assert run.status.target == "accuracy >= 0.95"
    last = run.last_eval("validation")
    assert last is not None
    assert last.metric >= 0.95
    assert last.update == run.status.target_update == run.status.update
    assert (run.last_eval("test") or last).metric > 0.9
    expected = {
        "recipe.json", "task.json", "environment.json", "steps.jsonl", "evals.jsonl",
        "checkpoints", "weights.pt", "status.json",
    }  # fmt: skip
    assert {path.name for path in run.path.iterdir()} == expected
    assert run.task["name"] == "digits"
    assert run.environments[0]["threads"] == 1


def test_a_target_that_is_missed_exits_1_and_says_by_how_much(call) -> None:
    code, out, _ = call("train", "digits", *SHORT, "--out", "out", "--target", "accuracy>=1")
    assert code == ExitCode.TARGET_MISSED == 1
    last = Run("out").last_eval("validation")
    assert last is not None
    assert out.startswith(f"target-missed (accuracy >= 1 missed by {1 - last.metric:.4g} ")


def test_a_target_may_be_judged_on_the_loss_and_on_test(call) -> None:
    code, _, _ = call(
        "train", "digits", *SHORT, "--out", "out", "--target", "loss<=5", "--target-on", "test"
    )
    assert code == 0
    status = Run("out").status
    assert status.reason == "target loss <= 5 reached on test at update 20"


def test_a_divergence_exits_3(call) -> None:
    code, out, _ = call("train", "digits", *SHORT, "--out", "out", "--set", "optimizer.lr=1e30")
    assert code == ExitCode.DIVERGED == 3
    assert out.startswith("diverged (the")
    assert not (Path("out") / "weights.pt").exists()


def test_without_out_a_folder_below_runs_is_made(call) -> None:
    code, out, _ = call("train", "digits", *SHORT)
    (path,) = Path("runs").iterdir()
    assert code == 0
    assert path.name.startswith("digits-")
    assert out.endswith(f"run: {path}\n")


def test_a_recipe_file_is_kept_as_written_beside_the_resolved_one(call) -> None:
    written = (
        "# my own\nduration = '4 updates'\nbatch_size    = 16\n"
        "[optimizer]\nname='adam'  # a comment\nlr=1e-3\n"
    )
    Path("my.toml").write_text(written)
    code, _, _ = call("train", "digits", "--recipe", "my.toml", "--set", "seed=3", "--out", "out")
    assert code == 0
    assert Path("out/recipe.toml").read_text() == written
    assert Run("out").recipe == load_recipe("my.toml", ["seed=3"])


def test_a_task_of_ones_own_is_trained_with_the_default_recipe(call, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the command adds the folder
    Path("cli_task_made_here.py").write_text(
        "import torch, anybatch\n"
        "def task():\n"
        "    data = torch.eye(60, 3), torch.arange(60) % 2\n"
        "    return anybatch.Task(build_model=lambda: torch.nn.Linear(3, 2), train=data)\n"
    )
    code, _, err = call("train", "cli_task_made_here:task", "--out", "out", "--set", "batch_size=9")
    assert code == 0, err
    assert Run("out").recipe == load_recipe("default", ["batch_size=9"])
    assert call("train", "--resume", "out", "--extend", "1 epoch")[0] == 0
    assert Run("out").status.examples == 11 * 54


def test_a_run_that_is_extended_goes_on_and_one_that_is_finished_is_refused(call) -> None:
    assert call("train", "digits", *SHORT, "--out", "out")[0] == 0
    code, _, err = call("train", "--resume", "out")
    assert code == ExitCode.BAD_INPUT == 2
    assert "must have something left to train" in err
    code, out, _ = call("train", "--resume", "out", "--extend", "20 updates")
    assert code == 0
    assert out.startswith("finished (the whole duration was trained)")
    run = Run("out")
    assert run.status.update == 60
    assert [record.update for record in run.steps()] == [20, 40, 60]
    assert len(run.environments) == 2


def test_a_run_without_checkpoint_begins_anew_and_comes_to_the_same(call) -> None:
    assert call("train", "digits", *SHORT, "--out", "whole")[0] == 0
    assert call("train", "digits", *SHORT, "--out", "cut")[0] == 0
    Path("cut/status.json").write_text(json.dumps({"schema": 1, "name": "running"}))
    for path in Path("cut/checkpoints").iterdir():
        path.unlink()
    assert call("train", "--resume", "cut")[0] == 0
    whole, cut = Run("whole"), Run("cut")
    assert steps_without_times(cut) == steps_without_times(whole)
    assert all(torch.equal(weights(cut)[key], value) for key, value in weights(whole).items())


def test_what_a_run_settled_cannot_be_given_again_but_the_same_recipe_can(call) -> None:
    assert call("train", "digits", *SHORT, "--out", "out")[0] == 0
    assert "task must be left out with --resume" in call("train", "digits", "--resume", "out")[2]
    assert "--out must be left out" in call("train", "--resume", "out", "--out", "other")[2]
    more = ("--resume", "out", "--extend", "20 updates")
    code, _, err = call("train", *more, "--set", "optimizer.lr=0.3")
    assert code == 2
    assert "optimizer.lr must be as in the run that is resumed, 0.1" in err
    assert call("train", *more, "--set", "optimizer.lr=0.1")[0] == 0


def test_seeds_make_a_study_with_a_table(call) -> None:
    code, out, _ = call(
        "train", "digits", *SHORT, "--out", "out", "--seeds", "3", "--target", "accuracy>=0.1",
        "--set", "seed=5",
    )  # fmt: skip
    assert code == 0
    study = Study("out")
    assert study.seeds == [5, 6, 7]
    head, row, where = out.splitlines()
    assert head.split() == [
        "arm", "runs", "metric", "mean", "std", "lowest", "highest", "reached", "seconds",
    ]  # fmt: skip
    summary = study.summaries()[0]
    cells = ["recipe", "3", "of", "3", "test", "accuracy", f"{summary.mean:.4f}"]
    assert row.split()[:7] == cells
    assert "3 of 3" in row
    assert where == "study: out"
    again = call("train", "--resume", "out")
    assert again[0] == 0
    assert again[1].splitlines()[1] == row  # nothing was trained again


def test_a_seed_in_a_study_is_the_run_with_that_seed(call) -> None:
    assert call("train", "digits", *SHORT, "--out", "study", "--seeds", "2")[0] == 0
    assert call("train", "digits", *SHORT, "--out", "run", "--set", "seed=1")[0] == 0
    trial = Study("study").trials()[1].run
    assert trial is not None
    assert steps_without_times(trial) == steps_without_times(Run("run"))


# --- progress ------------------------------------------------------------------------------------


def test_piped_progress_is_plain_lines_on_standard_error(call) -> None:
    code, out, err = call("train", "digits", *SHORT, "--out", "out")
    assert code == 0
    assert all(character == "\n" or character.isprintable() for character in out + err)
    lines = err.splitlines()
    assert any("validation accuracy" in line and "loss" in line for line in lines)
    assert any("examples/s" in line for line in lines)
    assert all(line.startswith("out  epoch") for line in lines)


def test_a_terminal_sees_the_bar_and_standard_output_stays_clean() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "anybatch", "train", "digits", *SHORT, "--out", "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True
    ) as process:
        os.close(follower)
        drawn = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the program has closed its side
                break
            if not data:
                break
            drawn += data
        out, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0, drawn.decode()
    assert "━" in drawn.decode()
    assert "\x1b[" in drawn.decode()
    assert "validation accuracy" in drawn.decode()
    assert out == f"{Run('out').verdict()}\nrun: out\n"
