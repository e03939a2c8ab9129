"""Bad input on the command line: exit 2, one clear line, nothing half-written.

Each case is run in an empty folder, once as it is and once with --json. Afterwards every file below
that folder is byte for byte as before.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bad_files import (
    MaliciousPickle,
    contents,
    flip_a_byte,
    jpeg_bytes,
    latest,
    latest_checkpoint,
    whole_labels,
    write_cifar,
    write_images,
    write_json,
    write_mnist,
    write_tar,
)

from anybatch.cli import main
from anybatch.run import Run
from anybatch.training.loop import fit

SOUND = ["train", "robust_tasks:sound", "--recipe", "robust_tasks:sound_recipe", "--out", "out"]
DIGITS = ["train", "digits", "--out", "out"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the command adds the folder
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def assert_refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one line that holds `expected`, and every file as before; with --json too."""
    before = contents(Path())
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("anybatch: ")
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n")
    assert expected in printed.err
    assert contents(Path()) == before

    assert main([*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)) == ["error"]
    assert expected in json.loads(printed.out)["error"]
    assert contents(Path()) == before


def settings(*overrides: str) -> list[str]:
    return [*DIGITS, *(part for text in overrides for part in ("--set", text))]


ARGUMENTS = [
    # the task
    (["train", "digts", "--out", "out"], "data set must be a known name, got digts (did you mean"),
    (["train", "--out", "out"], "task must be given"),
    (["train", "digits:8", "--out", "out"], "digits must be given without a path, got digits:8"),
    (["train", "mnist", "--out", "out"], "mnist must have MNIST/raw/train-images-idx3-ubyte"),
    (["train", "text:novel.txt", "--out", "out"], "path of the data must exist, got novel.txt"),
    (["train", "mnist", "--data", "nowhere"], "--data must be an existing folder, got nowhere"),
    (["train", "no_module:task"], "no_module:task must name an importable module, got No module"),
    (["train", "robust_tasks:sund"], "must name something in robust_tasks, got sund (did you mean"),
    (["train", "robust_tasks:raising"], "got ValueError: no data to be had (robust_tasks.py:"),
    (["train", "robust_tasks:raising_input_error"], "colour must be green, got red"),
    (["train", "robust_tasks:exiting"], "must be a function that returns without error, got Syst"),
    (["train", "robust_tasks:returning_text"], "must return a Task, got str"),
    (["train", "robust_tasks:NOT_CALLABLE"], "must return a Task, got float"),
    # the recipe
    ([*DIGITS, "--recipe", "digts"], "recipe must be a shipped name, a .toml file or package.modu"),
    ([*DIGITS, "--recipe", "lost.toml"], "recipe lost.toml must be a readable file, got No such"),
    ([*DIGITS, "--recipe", "robust_tasks:returning_text"], "must return a Recipe, got str"),
    ([*DIGITS, "--recipe", "robust_tasks:raising"], "robust_tasks:raising must be a function that"),
    (settings("optimizer.lr"), "--set must be like optimizer.lr=0.3, got optimizer.lr"),
    (settings("=3"), "--set must be like optimizer.lr=0.3, got =3"),
    (settings("optimizer.lrr=1"), "optimizer.lrr must be a known key (did you mean lr?)"),
    (settings("optimiser.lr=1"), "optimiser must be a known key (did you mean optimizer?)"),
    (settings('optimizer.lr="big"'), "optimizer.lr must be a number, got big"),
    (settings("optimizer.lr=true"), "optimizer.lr must be a number, got True"),
    (settings("optimizer.lr=-0.1"), "optimizer.lr must be >= 0, got -0.1"),
    (settings("optimizer.lr=nan"), "optimizer.lr must be >= 0, got nan"),
    (
        settings("optimizer.name=sgdd"),
        "optimizer.name must be one of: sgd, sgdw, adam, adamw, muon, lars",
    ),
    (settings("optimizer=sgd"), "optimizer must be a table with a name of: sgd, sgdw, adam"),
    (settings("batch_size=0"), "batch_size must be >= 1, got 0"),
    (settings("batch_size=true"), 'batch_size must be a whole number or "full", got True'),
    (settings("batch_size=3.5"), 'batch_size must be a whole number or "full", got 3.5'),
    (settings("batch_size=2000"), "batch_size must be <= the 1293 training examples, got 2000"),
    (settings("seed=true"), "seed must be a whole number, got True"),
    (settings("seed=-1"), "seed must be in [0, 2**63), got -1"),
    (settings("duration=5 weeks"), 'duration must be a number and a unit, like "5 epochs"'),
    (settings("duration=5"), 'duration must be text like "5 epochs", got 5'),
    (settings("duration=0 epochs"), "duration must be > 0, got 0"),
    (settings("duration=0.0001 epochs"), "duration must hold at least one example, got 0.0001"),
    (settings("duration=0.5 updates"), "duration must be a whole number of updates, got 0.5 up"),
    (settings("duration=0.5 fraction"), "duration must be in epochs, updates or examples"),
    (settings("schedules.lr.name=cosin"), "schedules.lr.name must be one of: constant, linear, c"),
    (settings('schedules.lr={name="warmup"}'), "schedules.lr.duration must be given"),
    (
        settings('schedules.lr={name="warmup",duration="1 epoch",into={name="cosine",stop=1}}'),
        "schedules.lr.into.stop must be a known key",
    ),
    (
        settings('schedules.lr={name="warmup",duration="1 epoch",into={name="cosine",end=-1}}'),
        "schedules.lr.into.end must be >= 0 and finite, got -1",
    ),
    (
        settings('schedules.batch_size={name="linear",start=1,end=2}', "duration=100 updates"),
        "duration must not be in updates while the batch size is scheduled, got 100 updates",
    ),
    (settings("gradient=[{max_norm=1}]"), "gradient.0 must be a table with a name of: clip-globa"),
    (settings("micro_batch_size=12", "ghost_batch_size=8"), "micro_batch_size must be a multiple"),
    (settings("model.name=mpl"), "mpl"),
    (settings("stopping.target=nan"), "stopping.target must be"),
    (settings("loss.label_smoothing=1"), "loss.label_smoothing must be in [0, 1), got 1"),
    (settings("image_size=8"), "image_size must be left out for digits, got 8"),
    (settings("augmentation.flip=sideways"), "augmentation.flip must be one of: none, random, al"),
    (
        settings("model.name=resnet9", "micro_batch_size=8"),
        "ghost_batch_size must be set where a batch under BatchNorm is divided into micro-batches",
    ),
    # the other options
    ([*DIGITS, "--target", "good"], 'target must be a number or like "loss<=1.6" or "accuracy>='),
    ([*DIGITS, "--target", "bleu>=0.5"], "stopping.target must be about loss or accuracy, got bl"),
    ([*SOUND, "--target", "0.9", "--target-on", "test"], "stopping.target_on must be a split of t"),
    ([*DIGITS, "--target-on", "moon"], "'moon' for argument '--target-on'"),
    ([*DIGITS, "--seeds", "0"], "--seeds must be >= 1, got 0"),
    ([*DIGITS, "--seeds", "many"], "--seeds: invalid literal for int() with base 10: 'many'"),
    ([*DIGITS, "--extend", "1 epoch"], "--extend must come with --resume DIR, got 1 epoch"),
    ([*DIGITS, "--colour", "red"], "arguments must be understood: Unrecognized options: --colour"),
    ([*DIGITS, "--sed", "3"], "Unrecognized options: --sed, 3; did you mean --seeds?"),
    (["trian", "digits"], "Available subcommands: train, plan, explain, calibration, lr-range,"),
    (["train", "--resume", "nowhere"], "run must be a folder with a recipe.json, got nowhere"),
    (["train", "digits", "--out", "/dev/null/run"], "/dev/null/run must be writable, got Not a d"),
    (["train", "digits", "--out", "/proc/run"], "/proc/run must be writable, got No such file or"),
    (["train", "digits", "--out", "n" * 300], "must be usable, got File name too long"),
    (["train", "digits", "--seeds", "2", "--out", "/dev/null/s"], "/dev/null/s must be writable"),
]


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(capsys, arguments, expected):
    assert_refused(arguments, expected, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(capsys):
    expected = "compute.device must be present on this machine, got cuda"
    assert_refused(settings("compute.device=cuda"), expected, capsys)


def put(name: str, content: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    return write


MNIST, CIFAR = ["train", "mnist", "--out", "out"], ["train", "cifar10", "--out", "out"]
IMAGES = ["train", "image-folder:images", "--out", "out", "--set", "batch_size=2"]
IMAGES += ["--set", "ghost_batch_size=2"]
HALF_GZIP = whole_labels(*range(10))[:-10]

FILES = [
    (put("r.toml", "batch_size = = 3"), [*DIGITS, "--recipe", "r.toml"], "r.toml must be valid TO"),
    (put("r.toml", "batch_size = 3"), [*DIGITS, "--recipe", "r.toml"], "optimizer must be given"),
    (
        put("r.json", "[1]"),
        [*DIGITS, "--recipe", "r.json"],
        "recipe r.json must be a table, got [1",
    ),
    (put("broken_module.py", "1 / 0"), ["train", "broken_module:f"], "ZeroDivisionError: division"),
    (put("quitting_module.py", "exit(3)"), ["train", "quitting_module:f"], "got SystemExit: 3"),
    (put("out/kept.txt", "mine"), DIGITS, "out must be a new or empty folder, got out"),
    (put("out", "a file"), DIGITS, "out must be a new or empty folder, got out"),
    (put("file", ""), [*DIGITS[:2], "--out", "file/run"], "file/run must be writable, got Not a d"),
    (put("book.txt", "short"), ["train", "text:book.txt"], "book.txt must hold about 2580 charact"),
    (
        lambda root: write_mnist(root, train_labels=whole_labels(*range(10), 10, 0)),
        MNIST,
        "train-labels-idx1-ubyte.gz must hold labels 0 ... 9, got 10 at example 10",
    ),
    (
        lambda root: write_mnist(root, train_labels=whole_labels(1, 2)),
        MNIST,
        "train-labels-idx1-ubyte.gz must hold 12 labels",
    ),
    (
        lambda root: write_mnist(root, t10k_labels=HALF_GZIP),
        MNIST,
        "t10k-labels-idx1-ubyte.gz must be a whole gzip file",
    ),
    (
        lambda root: (
            write_mnist(root),
            (root / "MNIST/raw/train-images-idx3-ubyte.gz").unlink(),
            (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + bytes(99)),
        ),
        MNIST,
        "must be an IDX file of unsigned bytes",
    ),
    (
        lambda root: write_cifar(root, {b"data": MaliciousPickle(), b"labels": [1]}),
        CIFAR,
        "data_batch_2 must hold only arrays, lists and numbers, but names",
    ),
    (
        lambda root: write_cifar(root, [1, 2]),
        CIFAR,
        "data_batch_2 must hold a dict, got list",
    ),
    (lambda root: write_images(root, b"\xff\xd8 no image"), IMAGES, "dog/3.jpg"),
    (lambda root: write_images(root, jpeg_bytes(9)[:300]), IMAGES, "dog/3.jpg"),
    (
        write_tar,
        ["train", "image-folder:images.tar", "--out", "out"],
        "images.tar must be a folder or",
    ),
]


@pytest.mark.parametrize(("prepare", "arguments", "expected"), FILES)
def test_bad_files_are_refused_in_one_line(tmp_path, capsys, prepare, arguments, expected):
    prepare(tmp_path)
    assert_refused(arguments, expected, capsys)
    assert not (tmp_path / "executed").exists()


# --- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Folders of runs to copy: one finished, one killed in the middle, one of a task by hand."""

    finished: Path
    killed: Path
    by_hand: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    from robust_tasks import recipe_of, sound

    folder = tmp_path_factory.mktemp("runs")
    assert main([*SOUND[:-1], str(folder / "finished"), "--json"]) == 0
    shutil.copytree(folder / "finished", folder / "killed")
    write_json(folder / "killed" / "status.json", name="running")
    fit(sound(), recipe_of(), out=folder / "by_hand", progress=False)
    write_json(folder / "by_hand" / "status.json", name="running")
    return Runs(*(folder / name for name in ("finished", "killed", "by_hand")))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def nothing(run: Path) -> None:
    pass


RESUME = ["train", "--resume", "run"]

DAMAGE = [
    ("finished", nothing, [], "run must have something left to train, got finished (--extend"),
    ("finished", nothing, ["--extend", "5 updates"], "extend must be in epochs like the run, got"),
    ("finished", nothing, ["--extend", "0 epochs"], "extend must be > 0, got 0 epochs"),
    ("finished", nothing, ["--extend", "soon"], "duration must be a number and a unit"),
    ("finished", lambda run: latest(run).unlink(), [], "run must have checkpoints/latest.json to"),
    (
        "killed",
        nothing,
        ["--set", "optimizer.lr=0.2"],
        "optimizer.lr must be as in the run that is",
    ),
    (
        "killed",
        nothing,
        ["--target", "0.99"],
        "stopping.target must be as in the run that is resum",
    ),
    ("killed", nothing, ["--seeds", "2"], "--seeds must be left out with --resume, got 2"),
    ("killed", nothing, ["--out", "new"], "--out must be left out with --resume, got new"),
    ("killed", lambda run: flip_a_byte(latest_checkpoint(run)), [], "so it is damaged"),
    ("killed", lambda run: truncate(latest_checkpoint(run)), [], "so it is damaged"),
    ("killed", lambda run: latest_checkpoint(run).unlink(), [], ".pt must exist to resume"),
    ("killed", lambda run: latest(run).write_text('{"file'), [], "must be a readable JSON file"),
    ("killed", lambda run: latest(run).write_text("{}"), [], "must name a checkpoint file and the"),
    (
        "killed",
        lambda run: write_json(latest(run), file="../../other.pt"),
        [],
        "latest.json must name a checkpoint file",
    ),
    (
        "killed",
        lambda run: write_json(latest(run), log_lengths={"../precious": 0}),
        [],
        "latest.json must name a checkpoint file and the lengths of the logs",
    ),
    ("killed", lambda run: truncate(run / "evals.jsonl"), [], "evals.jsonl must hold at least"),
    (
        "killed",
        lambda run: write_json(run / "recipe.json", batch_size=4),
        [],
        "batch_size must be as in the checkpoint, 8, got 4",
    ),
    (
        "killed",
        lambda run: write_json(run / "recipe.json", duration="9 epochs"),
        [],
        "duration must be as in the checkpoint, 2 epochs, got 9 epochs",
    ),
    (
        "killed",
        lambda run: (run / "recipe.json").unlink(),
        [],
        "run must be a folder with a recipe",
    ),
    (
        "killed",
        lambda run: (run / "recipe.json").write_text("{"),
        [],
        "recipe.json must be valid J",
    ),
    ("killed", lambda run: (run / "task.json").unlink(), [], "task.json must be a readable JSON f"),
    ("killed", lambda run: (run / "status.json").write_text("{}"), [], "must hold a run's status"),
    (
        "killed",
        lambda run: (run / "environment.json").write_text("{}"),
        [],
        "environment.json must hold a list of sessions",
    ),
    (
        "by_hand",
        nothing,
        [],
        "task must be given to resume a run of a task made by hand (anybatch.",
    ),
]


@pytest.mark.parametrize(("name", "damage", "options", "expected"), DAMAGE)
def test_a_bad_resumption_is_refused_and_leaves_the_run_as_it_was(
    tmp_path, capsys, runs, name, damage, options, expected
):
    shutil.copytree(getattr(runs, name), tmp_path / "run")
    damage(tmp_path / "run")
    assert_refused([*RESUME, *options], expected, capsys)


def test_a_task_beside_a_resumed_run_is_refused(tmp_path, capsys, runs):
    shutil.copytree(runs.killed, tmp_path / "run")
    expected = "task must be left out with --resume, got digits"
    assert_refused(["train", "digits", "--resume", "run"], expected, capsys)


def test_a_run_whose_data_moved_is_resumed_with_data(tmp_path, capsys):
    write_mnist(tmp_path / "here")
    sizes = ["--set", "batch_size=4", "--set", "duration=1 epochs", "--set", "stopping.target=1"]
    main(["train", "mnist", "--out", "out", "--data", "here", *sizes])
    capsys.readouterr()
    write_json(tmp_path / "out" / "status.json", name="running")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_refused(["train", "--resume", "out"], "--data must be an existing folder, got", capsys)
    assert main(["train", "--resume", "out", "--data", "there"]) in (0, 1)


def test_a_study_is_resumed_as_it_is_or_not_at_all(tmp_path, capsys):
    arguments = [*SOUND, "--seeds", "2", "--json"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert_refused(SOUND, "out must be a new or empty folder, got out (--resume out", capsys)
    resume = ["train", "--resume", "out"]
    changed = [*resume, "--set", "seed=3"]
    assert_refused(changed, "--set must be left out to resume a study, got seed=3", capsys)
    changed = [*resume, "--target-on", "test"]
    assert_refused(changed, "--target-on must be left out to resume a study, got test", capsys)
    write_json(tmp_path / "out" / "study.json", seeds=None)
    assert_refused(resume, "study.json must hold seeds, got None", capsys)


# --- ends other than bad input -------------------------------------------------------------------


def test_a_missed_target_exits_1_and_says_by_how_much(capsys):
    arguments = [*DIGITS, "--set", "duration=1 epochs", "--target", "accuracy>=0.9999"]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    status = Run("out").status
    assert status.name == "target-missed"
    last = Run("out").last_eval("validation")
    assert last is not None
    assert f"accuracy >= 0.9999 missed by {0.9999 - last.metric:.4g} (validation" in status.reason
    assert status.reason in printed


def test_a_run_that_diverges_exits_3_with_advice_and_cannot_be_resumed(capsys):
    lengths = ["records.log_every=2", "records.checkpoint_every=2 updates", "duration=2 epochs"]
    arguments = settings("optimizer.lr=1e9", "schedules.lr.name=constant", *lengths)
    assert main([*arguments, "--json"]) == 3
    status = json.loads(capsys.readouterr().out)["status"]
    assert status["name"] == "diverged"
    assert "the training loss is not finite at update " in status["reason"]
    assert "try a third of the lr (--set optimizer.lr=3.3e+08)" in status["reason"]
    expected = "out must not have diverged to be resumed, got the training loss is not finite at"
    assert_refused(["train", "--resume", "out"], expected, capsys)
    assert_refused(["train", "--resume", "out", "--extend", "1 epochs"], expected, capsys)


def test_a_model_that_raises_in_training_fails_the_run_in_one_line(capsys):
    arguments = ["train", "robust_tasks:tired", *SOUND[2:]]
    assert main([*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("anybatch: RuntimeError: tired of it (robust_tasks.py:")
    assert printed.err.count("\n") == 1
    assert json.loads(printed.out)["error"] in printed.err
    assert Run("out").status.name == "failed"
    assert "RuntimeError: tired" in Run("out").status.reason


def test_a_bad_example_met_in_training_fails_the_run_in_one_line(capsys):
    assert main(["train", "robust_tasks:with_streamed_nan", *SOUND[2:]]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == "anybatch: train example 17 must hold finite numbers only"
    assert Run("out").status.name == "failed"
