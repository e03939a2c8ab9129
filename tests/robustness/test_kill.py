"""Killed at any moment and resumed, a run ends as if nothing had happened.

Once with kill -9 of real processes, at moments told by how far the files have grown; and once in
this process, where the first, the second, ... and the last thing ever done to the disk is the last.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import assert_same_run, finish, num_lines, start, wait_until
from robust_tasks import examples, recipe_of, task_of

from anybatch.cli import main
from anybatch.recipe import Recipe, RecordSettings
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.loop import fit, resume


@pytest.mark.parametrize(
    ("checkpoint_every", "duration", "kills"),
    [("2 updates", "6 epochs", 2), ("2 epochs", "24 epochs", 1)],
)
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(
    tmp_path, checkpoint_every, duration, kills
):
    settings = [f"duration={duration}", f"records.checkpoint_every={checkpoint_every}"]
    settings += ["records.log_every=2", "stopping.evaluate_every=20 updates"]
    overrides = [part for text in settings for part in ("--set", text)]
    reference, out = tmp_path / "reference", tmp_path / "out"
    assert main(["train", "digits", *overrides, "--json", "--out", str(reference)]) == 0
    total = num_lines(reference / "steps.jsonl")
    moments = sorted(random.Random(kills).sample(range(total // 10, total * 6 // 10), kills))

    arguments = ["train", "digits", *overrides, "--out", str(out)]
    for moment in moments:
        _kill_at(moment, arguments, out, in_checkpoint=checkpoint_every == "2 updates")
        arguments = ["train", "--resume", str(out)]
    code, _, error = finish(start(["-m", "anybatch", *arguments]))
    assert code == 0, error
    assert len(Run(out).environments) == kills + 1
    assert_same_run(out, reference)


def _kill_at(moment: int, arguments: list[str], out: Path, *, in_checkpoint: bool) -> None:
    """Kill -9 once the log has so many lines, and if possible while a checkpoint is written."""
    log = out / "steps.jsonl"
    wanted = max(moment, num_lines(log) + 1)
    process = start(["-m", "anybatch", *arguments])
    wait_until(lambda: num_lines(log) >= wanted, process)
    if in_checkpoint:
        writing, latest = out / "checkpoints", num_lines(log) + 20
        wait_until(lambda: any(writing.glob("*.tmp")) or num_lines(log) >= latest, process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert Run(out).status.name == "running"


# --- every single moment -------------------------------------------------------------------------


class Killed(BaseException):
    """What a process feels of kill -9."""


class Disk:
    """Dies at the given one of all things done to the disk; nothing can be done after that."""

    def __init__(self, dies_at: int | None) -> None:
        self.dies_at, self.count, self.dead = dies_at, 0, False

    def moment(self, half_done: Callable[[], object] = lambda: None) -> None:
        """One more moment; `half_done` is done if it is the last."""
        if not self.dead and self.count == self.dies_at:
            half_done()
            self.dead = True
        self.count += 1
        if self.dead:
            raise Killed


@contextmanager
def disk_that_dies(at: int | None) -> Iterator[Disk]:
    """Count every write, flush, renaming, removal and log line, and die at one of them."""
    disk = Disk(at)
    replace, unlink, append = Path.replace, Path.unlink, Run.append
    save, truncate = torch.save, os.truncate

    def dying(function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            disk.moment()
            return function(*arguments, **options)

        return call

    def save_in_halves(value: Any, file: Any) -> None:
        disk.moment(lambda: file.write(b"half of a checkpoint"))
        save(value, file)

    def append_in_halves(run: Run, record: Any) -> None:
        log = run.log_path(type(record))
        disk.moment(lambda: log.write_bytes((log.read_bytes() if log.exists() else b"") + b'{"up'))
        append(run, record)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name, function in (
            (Path, "replace", dying(replace)),
            (Path, "unlink", dying(unlink)),
            (os, "fsync", dying(lambda file: None)),  # a dying process needs no slow one
            (os, "truncate", dying(truncate)),
            (torch, "save", save_in_halves),
            (Run, "append", append_in_halves),
        ):
            patch.setattr(owner, name, function)
        yield disk


def whole_task() -> Task:
    """With a test split, so that something is written after the last checkpoint."""
    return task_of(validation=examples(), test=examples())


def short_recipe() -> Recipe:
    return recipe_of(
        duration=updates(5), records=RecordSettings(log_every=2, checkpoint_every=updates(2))
    )


def die_in(work: Callable[[], object], at: int) -> bool:
    """Whether the disk died at this moment; otherwise the work came to its end before."""
    with disk_that_dies(at) as disk:
        try:
            work()
        except Killed:
            return True
        assert not disk.dead
        return False


def moments_of(work: Callable[[], object]) -> int:
    with disk_that_dies(None) as disk:
        work()
    return disk.count


def begin(path: Path) -> Run:
    return fit(whole_task(), short_recipe(), out=path, progress=False)


def go_on(path: Path) -> Run:
    return resume(path, task=whole_task(), progress=False)


def test_a_run_that_dies_at_any_write_is_resumed_to_the_same_numbers(tmp_path):
    moments = moments_of(lambda: begin(tmp_path / "reference"))
    assert moments > 30
    generator, begun = random.Random(3), 0
    for at in range(moments):
        path = tmp_path / str(at)
        assert die_in(functools.partial(begin, path), at)
        if not (path / "recipe.json").exists():
            continue  # died before there was a run: nothing of it can be resumed or was lost
        begun += 1
        while Run(path).status.name == "running":
            if not die_in(functools.partial(go_on, path), generator.randrange(5, 2 * moments)):
                break
        if Run(path).status.name == "running":
            go_on(path)
        assert_same_run(path, tmp_path / "reference")
    assert begun > 25


def test_an_extension_that_dies_at_any_write_is_resumed_to_the_same_numbers(tmp_path):
    def extend(path: Path) -> Run:
        return resume(path, task=whole_task(), extend=updates(3), progress=False)

    begin(tmp_path / "reference")
    moments = moments_of(lambda: extend(tmp_path / "reference"))
    for at in range(moments):
        path = tmp_path / str(at)
        begin(path)
        assert die_in(functools.partial(extend, path), at)
        if Run(path).recipe == short_recipe():  # died before anything was changed
            assert Run(path).status.name == "finished"
            assert Run(path).last_eval("test") is not None
            extend(path)
        else:
            go_on(path)
        assert_same_run(path, tmp_path / "reference")
