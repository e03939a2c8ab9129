"""Fit: a Task and a Recipe go in, a Run comes out, and nothing finished is ever lost.

for each round of records of the training:
    append them to the run's logs
    a checkpoint when it is due
a checkpoint, the weights and the status at every end: finished, missed, diverged, interrupted
"""

from __future__ import annotations

import contextlib
import datetime
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from anybatch.errors import InputError
from anybatch.progress import Progress
from anybatch.recipe import Recipe
from anybatch.recipe_file import difference
from anybatch.records import Record
from anybatch.run import Run, Status, read_json, write_json
from anybatch.schedules import Duration, Interval
from anybatch.task import Task, load_task
from anybatch.training.checkpoint import (
    restore,
    save_checkpoint,
    save_weights,
)
from anybatch.training.environment import changes, describe_environment
from anybatch.training.outcome import Outcome
from anybatch.training.training import Training
from anybatch.world import World

__all__ = [
    "continue_run",
    "create_run",
    "default_out",
    "extended",
    "fit",
    "resume",
    "task_from",
    "task_of",
    "train_to_end",
    "training_records",
]


def fit(
    task: Task,
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    progress: bool = True,
    world: World | None = None,
) -> Run:
    """Train a task with a recipe and write a Run.

    Args:
        task: what is to be learned.
        recipe: every choice of the training.
        out: a new folder; None makes one below `runs/`.
        progress: show a progress bar (plain lines when not on a terminal).
        world: ranks that train together; None reads torchrun's environment.

    Returns:
        The Run, whose `status` says how it ended.

    Raises:
        InputError: something given breaks a rule; nothing is left half-written.
        KeyboardInterrupt: after Ctrl-C, once the Run has been saved; `resume` continues it.
    """
    with Training(task, recipe, world=world) as training:
        run = create_run(training, Path(out) if out is not None else default_out(task.name))
        train_to_end(training, run, progress=progress)
        raise_if_signalled(training, run)
    return run


def resume(
    path: Path | str,
    *,
    task: Task | None = None,
    recipe: Recipe | None = None,
    extend: Duration | None = None,
    progress: bool = True,
) -> Run:
    """Go on with an interrupted Run, or extend a finished one, to the same numbers bit for bit.

    Args:
        path: of the run.
        task: needed only where the run's task was made by hand.
        recipe: if given, must be the run's own.
        extend: added to the run's duration, in the same unit; schedules stretch over the new one.
        progress: show a progress bar (plain lines when not on a terminal).

    Raises:
        InputError: not a run, a damaged checkpoint, another recipe, or nothing left to do.
    """
    run = Run(path)
    recipe = extended(run, recipe, extend)
    with Training(task or task_of(run), recipe) as training:
        notes = continue_run(training, run, extend=extend is not None)
        train_to_end(training, run, progress=progress, notes=notes)
        raise_if_signalled(training, run)
    return run


def train_to_end(
    training: Training, run: Run, *, progress: bool = True, notes: Sequence[str] = ()
) -> None:
    """Train to the end, whatever it is, writing the run and showing progress on rank 0.

    Args:
        training: new, or brought to a checkpoint.
        run: to write.
        progress: show a progress bar (plain lines when not on a terminal).
        notes: lines to show above it.
    """
    shown = progress and training.world.is_first
    with Progress(training.feed.total_examples, shown=shown, title=run.path.name) as bar:
        for note in notes:
            bar.say(f"note: {note}")
        for record in training_records(training, run):
            bar.show(record)
        if training.outcome is not None and training.outcome.name == "interrupted":
            bar.say(f"interrupted and saved; anybatch train --resume {run.path} goes on")


def raise_if_signalled(training: Training, run: Run) -> None:
    """Let the caller of a training that was sent a signal know, once everything is saved.

    Also where the training came to its end before the signal could end it: a study must not go on.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was SIGTERM; the code is 143.
    """
    ends = (training.outcome, training.stop_wish)
    number = next((end.signal for end in ends if end is not None and end.signal), None)
    if number == signal.SIGINT:
        raise KeyboardInterrupt(f"saved; anybatch.resume({str(run.path)!r}) goes on")
    if number:
        raise SystemExit(128 + number)


def default_out(name: str) -> Path:
    """A new folder below `runs/`, named after the task and the time."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.rpartition("/")[2])
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{stem}-{now}"
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{now}-{number}"
        number += 1
    return path


def create_run(training: Training, out: Path) -> Run:
    """The folder of a new run, made by rank 0 once the training could be built.

    Raises:
        InputError: the folder holds something, or cannot be written.
    """
    _checkpoint_interval(training)  # nothing is written if it cannot be told
    if training.world.is_first:
        judge = training.task.judge
        metric = {"name": judge.name, "direction": judge.direction}  # which way is better
        run = Run.create(out, training.recipe, training.task.reference | {"metric": metric})
        run.add_environment(describe_environment(training.world))
    path = training.world.from_first(out)
    return Run(path)


def task_of(run: Run) -> Task:
    """The task of a run, made again from its name.

    Raises:
        InputError: it was made by hand.
    """
    return task_from(run.task)


def task_from(reference: dict[str, Any]) -> Task:
    """The task that a reference kept in a Run or a Study describes.

    Raises:
        InputError: it was made by hand.
    """
    if not reference.get("name"):
        hint = "anybatch.resume(path, task=...)"
        raise InputError("task", "must be given to resume a run of a task made by hand", hint=hint)
    data = Path(reference["data"]) if reference.get("data") else None
    with contextlib.chdir(_folder_of(reference)):
        return load_task(reference["name"], data=data, image_size=reference.get("image_size"))


def _folder_of(reference: dict[str, Any]) -> Path:
    """The folder that relative paths of the task were meant from."""
    folder = Path(reference.get("folder") or ".")
    return folder if folder.is_dir() else Path()


def extended(run: Run, recipe: Recipe | None, extend: Duration | None) -> Recipe:
    """The run's recipe, with a longer duration where it is to be extended.

    Raises:
        InputError: the folder is a plan's, `recipe` differs from the run's, or the units differ.
    """
    if "planned_for" in run.task:
        hint = f"anybatch train TASK --plan {run.path} begins one where its pilot ended"
        raise InputError("run", "must be a training, not a plan", str(run.path), hint=hint)
    own = run.recipe
    for path, was, now in difference(own, recipe or own):
        raise InputError(path, f"must be as in the run that is resumed, {was}", now)
    if extend is None:
        return own
    if not isinstance(extend, Duration):
        raise InputError("extend", "must be a Duration, like anybatch.epochs(5)", repr(extend))
    if extend.count == 0:
        raise InputError("extend", "must be > 0", str(extend))
    if extend.unit != own.duration.unit:
        raise InputError("extend", f"must be in {own.duration.unit} like the run", str(extend))
    return replace(own, duration=Duration(own.duration.count + extend.count, extend.unit))


def continue_run(training: Training, run: Run, *, extend: bool) -> list[str]:
    """Bring a new training to the state of the run's latest checkpoint.

    Args:
        training: of the run's task and recipe.
        run: its logs are cut back to the checkpoint.
        extend: whether the recipe's duration has been lengthened.

    Returns:
        What differs from the session before and may change the numbers, in words.

    Raises:
        InputError: damaged checkpoint, changed recipe, or nothing left to do.
    """
    environment = describe_environment(training.world)
    before = run.environments
    restored = restore(training, run, extend=extend)
    environment["extension"] = restored.extension
    training.world.barrier()  # every rank has read before rank 0 writes
    if training.world.is_first:
        run.add_environment(environment)  # before the recipe: tells an extension from an edit
        run.replace_recipe(training.recipe)
        run.write_status(Status(name="running"))
        run.truncate_logs(restored.log_lengths)  # last: a run that seems finished stays whole
    return changes(before[-1], environment) if before else []


def training_records(training: Training, run: Run) -> Iterator[Record]:
    """Train, write everything into the run, and yield each record once it is on the disk.

    SIGINT and SIGTERM end the training after an update, with a checkpoint; a second one of the
    same kind acts at once.

    Raises:
        InputError: bad data met on the way, or a place that cannot be written; the run's status
            is then "failed".
    """
    every = _checkpoint_interval(training)

    def times_due() -> int:
        return every.times(updates=training.updates, examples=training.feed.examples)

    saved_at, ended = times_due(), False
    first = training.world.is_first
    with _stopping_on_signals(training), _noting_failure(training, run):
        for records in training.rounds():
            for record in records if first else ():
                run.append(record)
            if (times_due() != saved_at or training.outcome) and not ended:
                ended, saved_at = training.outcome is not None, times_due()
                if training.outcome is None or training.outcome.name != "diverged":
                    save_checkpoint(run, training)
            yield from records
        if training.outcome is not None and training.outcome.name != "diverged":
            training.settle()
        if first:
            if training.outcome is not None and training.outcome.name != "diverged":
                save_weights(run, training)
            run.write_status(_status(training, training.outcome))
        training.world.barrier()  # whoever reads the run next finds it whole, on every rank


def _checkpoint_interval(training: Training) -> Interval:
    """The distance between two checkpoints."""
    try:
        return training.clock.interval(training.recipe.records.checkpoint_every)
    except InputError as error:
        raise error.renamed("records.checkpoint_every") from None


@contextmanager
def _noting_failure(training: Training, run: Run) -> Iterator[None]:
    """Write the status "failed" when an exception ends the training, with the rank's own reason."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(InputError):  # the disk may be what failed
            _write_failure(training, run, reason)
        raise


def _write_failure(training: Training, run: Run, reason: str) -> None:
    rank = training.world.rank
    if rank > 0:
        write_json(run.path / f"failed-rank-{rank}.json", {"rank": rank, "reason": reason})
        return
    if training.world.size > 1:
        time.sleep(0.5)  # rank 0 may only have seen a connection close; another knows why
        for path in sorted(run.path.glob("failed-rank-*.json"))[:1]:
            values = read_json(path)
            reason = f"rank {values['rank']}: {values['reason']}"
    run.write_status(_status(training, Outcome(name="failed", reason=reason)))


def _status(training: Training, outcome: Outcome | None) -> Status:
    target = training.target
    return Status(
        name=outcome.name if outcome else "running",
        reason=outcome.reason if outcome else "",
        update=training.updates,
        examples=training.feed.examples,
        seconds=training.seconds,
        signal=outcome.signal if outcome else None,
        target=str(target) if target else None,
        target_seconds=target.reached_seconds if target else None,
        target_update=target.reached_update if target else None,
    )


@contextmanager
def _stopping_on_signals(training: Training) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request; outside of the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        training.request_stop(Outcome(name="interrupted", reason=f"by {name}", signal=number))
        signal.signal(number, kept[signal.Signals(number)] or signal.SIG_DFL)

    for number in kept:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
