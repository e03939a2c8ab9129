"""One trial of a study of batch sizes: begun, gone on with, or trained longer, in this process."""

from __future__ import annotations

import functools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anybatch.recipe import Recipe
from anybatch.records import Record
from anybatch.run import Run, write_json
from anybatch.studies.batch_size_grid import Looks
from anybatch.studies.batch_size_table import LOADING
from anybatch.task import Task
from anybatch.training.loop import (
    continue_run,
    create_run,
    raise_if_signalled,
    task_from,
    training_records,
)
from anybatch.training.outcome import Outcome
from anybatch.training.snapshot import preserved_random_state
from anybatch.training.training import Training

__all__ = ["STOP", "Order", "carry_out", "seconds_of_loading", "train_until_stopped", "why_stop"]

STOP = threading.Event()
"""Set in a process that is to begin no further updates; its trial is saved."""

_TIMED_SECONDS, _TIMED_UPDATES = 0.25, 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A trial to be trained to the end of its recipe's duration.

    Attributes:
        path: of its Run, new or not.
        recipe: resolved. Only its duration may be longer than that of a Run that is there.
        task: how the task is made again, plain values.
        deadline: `time.time()` after which it is to be saved and left; None: none.
        times_loading: whether the loader is timed before a new run, which is one of the table.
    """

    path: Path
    recipe: Recipe
    task: dict[str, Any]
    deadline: float | None = None
    times_loading: bool = False

    def carry_out(self, task: Task | None) -> None:
        """See `carry_out`; without a task it is made again from its reference, once a process."""
        carry_out(self, task or _known_task(json.dumps(self.task)))


@functools.cache
def _known_task(reference: str) -> Task:
    return task_from(json.loads(reference))


def carry_out(order: Order, task: Task) -> None:
    """Train what is ordered, from wherever the run stands, and save it however it ends.

    Evaluations come at `Looks` from the recipe's first distance on. After the deadline nothing is
    begun; a run under way is saved at its next record.

    Raises:
        InputError: bad input met by the trial.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
        SystemExit: after SIGTERM, likewise.
    """
    if why_stop(order.deadline):
        return
    found = Run(order.path) if (order.path / "recipe.json").is_file() else None
    if not order.times_loading and order.recipe.stopping.target_on == "validation":
        task = replace(task, test=None)  # nothing is chosen by the test split, or even looked up
    with Training(task, order.recipe) as training:
        every = training.judge.every
        training.judge.every = Looks(length=every.length, counts=every.counts)
        if found is None:
            shutil.rmtree(order.path, ignore_errors=True)  # what a kill left before it was a run
            run = create_run(training, order.path)
        else:
            run = found
            continue_run(training, run, extend=run.recipe.duration != order.recipe.duration)
        if order.times_loading and not (run.path / LOADING).exists():
            values = {"seconds_per_update": seconds_of_loading(training)}
            write_json(run.path / LOADING, values)
        for _ in train_until_stopped(training, run, order.deadline):
            pass
        raise_if_signalled(training, run)


def train_until_stopped(training: Training, run: Run, deadline: float | None) -> Iterator[Record]:
    """Train to the end, the deadline, or the wish of the process to stop; yields the records."""
    for record in training_records(training, run):
        yield record
        reason = why_stop(deadline)
        if reason and training.stop_wish is None:  # a signal's wish tells more
            training.request_stop(Outcome(name="interrupted", reason=reason))


def why_stop(deadline: float | None) -> str:
    """Why nothing further may be trained; "" while it may.

    Args:
        deadline: `time.time()` after which nothing is; None: none.
    """
    if STOP.is_set():
        return "the study was stopped"
    is_late = deadline is not None and time.time() >= deadline
    return "out of time" if is_late else ""


def seconds_of_loading(training: Training) -> float | None:
    """Seconds that the loader takes for one update when nothing is computed, on average.

    At most 200 updates or a quarter of a second after a first one; the training stays where it
    is. With loader processes, which work while others compute, it is an upper limit of what a
    training loses to loading. None for a stream, which cannot be read twice.
    """
    if not training.task.source("train").random_access:
        return None
    with preserved_random_state():
        feed = training.feed.standing_still()
        feed.advance(feed.next().num_examples)
        _wait(training)
        started, updates = time.perf_counter(), 0
        while updates < _TIMED_UPDATES and time.perf_counter() - started < _TIMED_SECONDS:
            feed.advance(feed.next().num_examples)
            updates += 1
        _wait(training)
        seconds = (time.perf_counter() - started) / updates
        feed.close()
    return seconds


def _wait(training: Training) -> None:
    if training.world.device.type == "cuda":
        torch.cuda.synchronize(training.world.device)
