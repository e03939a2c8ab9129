"""A full disk: exit 2, one line, what was there stays, and with room again the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_files import latest
from processes import assert_same_run, finish, num_lines, start
from robust_tasks import recipe_of, sound

from anybatch.recipe import RecordSettings
from anybatch.run import Run
from anybatch.schedules import epochs
from anybatch.training.checkpoint import load_checkpoint
from anybatch.training.loop import fit, resume

SCRIPT = str(Path(__file__).with_name("train_on_small_disk.py"))
CHECKPOINTS = 5


def train(out: Path, *, limit_bytes: int, first_checkpoint: int) -> str:
    """Train until the disk is full; the one line that was said about it."""
    settings = ["duration=20 epochs", "records.log_every=1", "records.checkpoint_every=4 epochs"]
    arguments = ["train", "robust_tasks:sound", "--recipe", "robust_tasks:sound_recipe", "--json"]
    arguments += [part for text in settings for part in ("--set", text)]
    process = start(
        [SCRIPT, str(limit_bytes), str(first_checkpoint), *arguments, "--out", str(out)]
    )
    code, output, error = finish(process)
    assert code == 2, error
    assert error.startswith("anybatch: ")
    assert error.count("\n") == 1, error
    assert json.loads(output)["error"] in error
    return error


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    records = RecordSettings(log_every=1, checkpoint_every=epochs(4))
    recipe = recipe_of(duration=epochs(20), records=records)
    out = tmp_path_factory.mktemp("runs") / "reference"
    return fit(sound(), recipe, out=out, progress=False).path


def assert_resumed_like(path: Path, reference: Path) -> None:
    """With room again it goes on from its checkpoint, which is whole, to the same numbers."""
    status = Run(path).status
    assert status.name == "failed"
    state, _ = load_checkpoint(Run(path))
    assert 0 < state["step"]["updates"] < 160
    assert not list(path.rglob("*.tmp"))
    resume(path, task=sound(), progress=False)
    assert_same_run(path, reference)


def test_a_disk_that_fills_up_while_a_log_grows(tmp_path, reference):
    log, checkpoint = reference / "steps.jsonl", next((reference / "checkpoints").glob("*.pt"))
    limit = log.stat().st_size * 2 // 3
    assert checkpoint.stat().st_size < limit  # so that it is the log that does not fit
    said = train(tmp_path / "out", limit_bytes=limit, first_checkpoint=0)
    assert (
        said
        == f"anybatch: {tmp_path / 'out' / 'steps.jsonl'} must be writable, got File too large\n"
    )
    # The limit mostly cuts a line in half; what is read are the whole ones.
    assert len(list(Run(tmp_path / "out").steps())) == num_lines(tmp_path / "out" / "steps.jsonl")
    assert_resumed_like(tmp_path / "out", reference)


@pytest.mark.parametrize("first_checkpoint", [2, CHECKPOINTS])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(tmp_path, reference, first_checkpoint):
    out = tmp_path / "out"
    said = train(out, limit_bytes=4096, first_checkpoint=first_checkpoint)
    assert f"{out}/checkpoints/update-" in said
    assert "must be writable, got File too large" in said
    assert json.loads(latest(out).read_text())["update"] == 32 * (first_checkpoint - 1)
    assert_resumed_like(out, reference)


def test_a_disk_that_is_full_from_the_beginning_leaves_no_folder(tmp_path):
    said = train(tmp_path / "new" / "out", limit_bytes=100, first_checkpoint=0)
    assert "must be writable, got File too large" in said
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_before_the_first_checkpoint_costs_only_the_beginning(
    tmp_path, reference
):
    out = tmp_path / "out"
    train(out, limit_bytes=4096, first_checkpoint=1)
    assert not latest(out).exists()
    resume(out, task=sound(), progress=False)
    assert_same_run(out, reference)
