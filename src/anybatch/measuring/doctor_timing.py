"""What the doctor times: an update by number of threads, and the loader."""

from __future__ import annotations

import os
import statistics
import time

import torch

from anybatch.measuring import doctor_checks as checks
from anybatch.measuring.doctor_checks import Check
from anybatch.training.portion import Portion
from anybatch.training.training import Training

__all__ = ["loader_check", "thread_check"]

_WARM_UPS = 2
_MOST = 50


def thread_check(training: Training, *, seconds: float) -> tuple[Check, float]:
    """The row about threads, and the seconds of an update as the recipe runs it.

    One thread, the recipe's number and one for each core are tried on the same batch; the number
    of threads is as found afterwards.

    Args:
        training: its weights move.
        seconds: for all of it, about.
    """
    present = torch.get_num_threads()
    portion = training.feed.standing_still().next()
    if training.world.device.type != "cpu":
        own = _update_seconds(training, portion, seconds)
        return checks.skipped("threads", "the model is not on the CPU"), own
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    candidates = sorted({1, present, cores or 1})
    found = {}
    try:
        for count in candidates:
            torch.set_num_threads(count)
            found[count] = _update_seconds(training, portion, seconds / len(candidates))
    finally:
        torch.set_num_threads(present)
    return checks.threads(found, present), found[present]


def _update_seconds(training: Training, portion: Portion, seconds: float) -> float:
    """Median of some updates on one batch; of one, where that takes all of the time."""
    step, position = training.one_step, training.feed.position()
    step.train_mode()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _WARM_UPS + _MOST:
        before = time.perf_counter()
        step.gradient(portion)
        step.update(position)
        if training.world.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        times.append(now - before)
        if now - started > seconds:
            break
    return statistics.median(times[_WARM_UPS:] or times[-1:])


def loader_check(training: Training, update_seconds: float, *, seconds: float) -> Check:
    """The row about the loader: batches read one after the other, without an update.

    Args:
        training: whose data are read, from its place on.
        update_seconds: of an update.
        seconds: at most, about.
    """
    feed = training.feed.standing_still()
    size = feed.next().num_examples
    started, examples = time.perf_counter(), 0
    try:
        while examples < 20 * size or time.perf_counter() - started < 0.2:
            portion = feed.next()
            for _ in portion.parts(training.recipe.compute.evaluation_batch_size):
                pass  # a divided update is read part by part
            feed.advance(portion.num_examples)
            examples += size
            if time.perf_counter() - started > seconds:
                break
        loading = examples / (time.perf_counter() - started)
    finally:
        feed.close()
    return checks.loader(loading, size / update_seconds, training.recipe.compute.num_workers)
