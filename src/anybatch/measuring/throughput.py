"""Throughput: seconds of an update against the examples of its pass, and the memory that it takes.

    sizes 1 (or the ghost), 2, 4, ... up to the set's length, half of the free memory by the line
        through the sizes so far, or an update of 5 % of the time allowed; each once, uncounted
    loading: the training's own feed, by itself
    rounds: every size once, in an order drawn anew; forward, backward and optimizer apart; until
        the time is over or, where that is asked for, the medians are precise enough
    -> t(b) = a + c b, B_half = a / c, the largest pass that fits, the seconds of an epoch

Updates are those of the training (autocast, ghosts, transforms, sum over ranks) at lr 0. Memory is
never filled to find its end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from anybatch.measurement import Measurement
from anybatch.measuring.subjects import opened_training
from anybatch.measuring.throughput_findings import throughput_findings
from anybatch.measuring.throughput_reading import read_throughput
from anybatch.measuring.throughput_samples import ThroughputTest
from anybatch.measuring.timed_step import timed_step
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.recipe_checks import require, require_choices, require_positive
from anybatch.task import Task
from anybatch.training.training import Training

__all__ = ["ThroughputSettings", "measure_throughput"]

_LEAST_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ThroughputSettings:
    """How long and how far a throughput measurement goes.

    Attributes:
        seconds: that it may take, > 0, building the model left out.
        rounds: in which every size is timed, >= 2; fewer where the time ends before.
        precision: no further round once the medians are known to this, relative, > 0: root mean
            square over sizes of the standard error between rounds; None: all the time is used.
        max_micro_batch_size: largest pass to time, in examples of one rank; None: as far as data,
            time and half of the memory go.
    """

    seconds: float = 10.0
    rounds: int = 20
    precision: float | None = None
    max_micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("seconds", self.seconds)
        require("rounds", self.rounds, "must be >= 2", self.rounds >= _LEAST_ROUNDS)
        if self.precision is not None:
            require_positive("precision", self.precision)
        largest = self.max_micro_batch_size
        if largest is not None:
            require("max_micro_batch_size", largest, "must be >= 1", largest >= 1)


def measure_throughput(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: ThroughputSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure how long an update takes at each micro-batch size, and how large one may be.

    Args:
        task: what is to be learned; or a Training under way, which is bitwise as found afterwards.
        recipe: of the training.
        settings: how long and how far.
        progress: show what is being done.

    Returns:
        A measurement of kind "throughput". One sample a timed update: "batch_size" (examples of
        one rank's pass), "round", "forward_seconds", "backward_seconds" (with the gradient's
        transforms and, on several ranks, its sum), "optimizer_seconds", "update_seconds" (their
        sum), "loading_seconds" (of so many examples, measured apart), "memory_bytes" (beyond
        weights, gradients and optimizer; nan: not known). On several ranks the mean of their
        seconds and the greatest memory.
        Estimates: "fixed_seconds" a and "seconds_per_example" c of t(b), "b_half" (a / c),
        "largest_micro_batch" (None where memory is not the limit), "bytes_per_example",
        "loading_seconds_per_example", and at the recipe's batch size "epoch_compute_seconds" and
        "epoch_loading_seconds" (what loading adds to it). settings["fit"] is the curve, which
        `step_time.seconds_per_update` evaluates. Findings: "loader-bound", "saturates",
        "still-rising", "noisy-clock", "memory-limits", "batch-covers-the-set",
        "extrapolated", "too-few-sizes", "smallest-refused", "loss-ignores-weights".

    Raises:
        InputError: they do not fit together; a training under way whose data is a stream.

    Cost:
        `settings.seconds` at most, and building the training; memory of the batches, twice the
        largest.

    Collectives:
        Those of an update, of decisions and of an all-reduce of several sizes; every rank must
        call.

    Reference: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", for what the
    curve is used for.
    """
    settings = settings or ThroughputSettings()
    started = time.perf_counter()
    updates = task.updates if isinstance(task, Training) else 0
    with opened_training(task, recipe) as training, timed_step(training) as timed:
        shown = progress and training.world.is_first
        with Activity("throughput", shown=shown) as activity:
            test = ThroughputTest(training, timed, settings, activity)
            test.grow()
            test.time_loading()
            test.time_rounds()
        described = test.described()
        if isinstance(task, Training):
            described["after_updates"] = updates
        samples = test.samples()
    reading = read_throughput(samples, described)
    described["fit"] = reading.fit
    return Measurement(
        kind="throughput",
        settings=described,
        samples=samples,
        estimates=reading.estimates,
        seconds=time.perf_counter() - started,
        examples=test.examples,
        findings=throughput_findings(reading, samples, described),
        fitted=reading.fitted,
    )
