"""The samples of a throughput measurement: which sizes are touched, and how each is timed."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from anybatch.errors import InputError
from anybatch.measuring.all_reduce import measure_all_reduce
from anybatch.measuring.loading_time import (
    is_streamed,
    load_seconds,
    loaded_portion,
    num_loaders,
    repeated_portion,
)
from anybatch.measuring.memory import MemoryMeter
from anybatch.measuring.step_time import medians_by_round, relative_error
from anybatch.measuring.subjects import recipe_settings
from anybatch.measuring.throughput_reading import (
    COLUMNS,
    own_pass,
    seconds_to_load,
)
from anybatch.measuring.timed_step import Marks, TimedStep
from anybatch.progress import Activity
from anybatch.training.training import Training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anybatch.measuring.throughput import ThroughputSettings
    from anybatch.training.portion import Portion

__all__ = ["ThroughputTest"]

_LONGEST_UPDATE = 0.05  # of the time allowed
_LONGEST_LOADING = 0.15  # of the time allowed: for batches to compute with, and to time loading
_QUICK_LOADING = 1.0 / 3.0  # of that, where timing ends once it is precise
_LOADING_OF_SIZE = 0.1  # of the latter, at least
_LOADING_PASSES = 3
_LINE = 0.5  # of what is free: what the line through the sizes so far may say
_AT_MOST = 0.9  # of what is free: what a size may take if all of the last one's grows with it
_LEAST_SIZES = 3
_UPDATES_OF_VISIT = 8
_VISITS = 100  # about so many in the time allowed
_LEAST_ROUNDS = 2
_LEAST_TO_JUDGE = 3  # rounds between which a spread can be told


@contextmanager
def _without_collecting() -> Iterator[None]:
    """No pauses for garbage while something is timed."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass(slots=True)
class _Size:
    """What is known of one size after its first touch."""

    portion: Portion
    seconds: float
    added_bytes: float


@final
class ThroughputTest:
    """The samples of one measurement, as they come: `grow`, `time_loading`, `time_rounds`.

    Args:
        training: opened to be measured.
        timed: its step.
        settings: how long and how far.
        activity: to show what is done.

    Attributes:
        examples: taken so far, over all ranks.
    """

    def __init__(
        self,
        training: Training,
        timed: TimedStep,
        settings: ThroughputSettings,
        activity: Activity,
    ) -> None:
        self._training, self._timed, self._settings = training, timed, settings
        self._activity, self._world = activity, training.world
        self._began = time.perf_counter()
        self._meter: MemoryMeter | None = None
        self._free_bytes = math.nan
        self._sizes: dict[int, _Size] = {}
        self._refused: list[str] = []  # the smallest passes, where the model does not take them
        self._stopped_by = "set"
        self._loaded = 0  # the largest size whose examples are all different ones
        self._last_loaded: Portion | None = None
        self._loading: list[tuple[float, float]] = []
        self._rows: list[list[float]] = []
        self._has_gradient = False
        self.examples = 0

    # --- growing ---------------------------------------------------------------------------

    def grow(self) -> None:
        """Touch ever larger sizes, until data, memory or time say that it is enough."""
        for size in self._planned():
            reason = self._reason_to_stop(size)
            if reason:
                self._stopped_by = reason
                break
            if not self._touch(size):
                break
        if not self._sizes:
            raise InputError("throughput", "must find a size that can be timed", self._refused)
        self._has_gradient = any(self._world.all_values(self._timed.has_gradient()))

    def _planned(self) -> list[int]:
        """Powers of two of the ghost, and the recipe's own pass, within the set."""
        training, recipe = self._training, self._training.recipe
        ghost = recipe.ghost_batch_size or 1
        total, world = training.clock.examples_per_epoch, self._world.size
        limits = [math.inf if total is None else total // world]
        if self._settings.max_micro_batch_size is not None:
            limits.append(self._settings.max_micro_batch_size)
            self._stopped_by = "max_micro_batch_size" if limits[1] < limits[0] else "set"
        own = own_pass(self._run_settings())
        start = max(ghost, 2) if training.task.loss_scope == "batch" else ghost
        sizes = {start * 2**power for power in range(40)} | {own or start}
        found = sorted(s for s in sizes if s <= min(limits) and s >= start and s % ghost == 0)
        if not found:
            hint = f"the smallest pass has {start} examples on each of {world} ranks"
            raise InputError("train", "must hold enough examples to be timed", total, hint=hint)
        return found

    def _reason_to_stop(self, size: int) -> str:
        """Why a size is not to be touched, the same on all ranks: time, memory or nothing."""
        if not self._sizes:
            return ""
        known, last = self._sizes, max(self._sizes)
        used, seconds = known[last].added_bytes, known[last].seconds
        more = size - last
        reason = ""
        if len(known) > 1:
            seconds += max(0.0, self._slope("seconds")) * more
            longest = _LONGEST_UPDATE * self._settings.seconds
            reason = "time" if seconds > longest and len(known) >= _LEAST_SIZES else ""
            if used + max(0.0, self._slope("added_bytes")) * more > _LINE * self._free_bytes:
                reason = "memory"
        if used * size / last > _AT_MOST * self._free_bytes:  # were nothing of it fixed
            reason = "memory"
        return next(filter(None, self._world.all_values(reason)), "")

    def _slope(self, name: str) -> float:
        """Of the line through the last two sizes; nan where it is not known."""
        *_, one, other = self._sizes.items()
        return float(getattr(other[1], name) - getattr(one[1], name)) / (other[0] - one[0])

    def _touch(self, size: int) -> bool:
        """Take the first updates of a size, which warm up; False at the end of the data."""
        self._activity.show(f"first pass of {size:,} examples")
        portion = self._portion(size)
        if portion is None:
            return False
        try:
            self._timed.take(portion).seconds()  # optimizer state, lazy parts, the allocator
            if self._meter is None:
                self._meter = MemoryMeter(self._world.device)
                self._free_bytes = min(self._world.all_values(self._meter.free_bytes()))
            self._meter.begin()
            seconds = sum(self._timed.take(portion).seconds())
        except torch.OutOfMemoryError:
            if self._world.size > 1 or not self._sizes:  # other ranks wait in a collective
                raise
            self._stopped_by = "memory"
            return False
        except (ValueError, RuntimeError) as error:
            if isinstance(error, InputError) or self._sizes or len(self._refused) >= 2:
                raise
            self._refused.append(f"{size}: {type(error).__name__}: {error}")
            return True
        seconds = max(self._world.all_values(seconds))
        self._sizes[size] = _Size(portion, seconds, self._meter.added_bytes())
        self.examples += 2 * portion.num_examples
        return True

    def _portion(self, size: int) -> Portion | None:
        """Examples of the set, or those of a smaller size over and over where loading is slow."""
        spent = sum(seconds for _, seconds in self._loading)
        expected = 2.0 * self._loading[-1][1] if self._loading else 0.0
        slow = spent + expected > _LONGEST_LOADING * self._settings.seconds
        if self._loaded and self._world.from_first(slow):
            assert self._last_loaded is not None
            return repeated_portion(self._last_loaded, size)
        portion, seconds = loaded_portion(self._training, size)
        if portion is not None:
            self._loaded, self._last_loaded = size, portion
            self._loading.append((float(size), seconds))
        return portion

    # --- loading ---------------------------------------------------------------------------

    def time_loading(self) -> None:
        """Load sizes by themselves, the recipe's own first, as long as there is time for it."""
        own = min(self._sizes, key=lambda size: abs(size - (own_pass(self._run_settings()) or 1)))
        loadable = [size for size in self._sizes if size <= self._loaded]
        order = sorted(loadable, key=lambda size: (size != own, size))
        budget = _LONGEST_LOADING * self._settings.seconds
        budget *= 1.0 if self._settings.precision is None else _QUICK_LOADING
        each = budget * max(_LOADING_OF_SIZE, 1.0 / (_LOADING_PASSES * len(order)))
        found: list[tuple[float, float]] = []
        began = time.perf_counter()
        for size in order * _LOADING_PASSES:
            if time.perf_counter() - began > budget and found:
                break
            self._activity.show(f"loading batches of {size:,}")
            seconds = load_seconds(self._training, size, longest=each)
            found.append((float(size), seconds))
        self._loading = self._world.from_first(found)

    # --- rounds ----------------------------------------------------------------------------

    def time_rounds(self) -> None:
        """Every size once a round, in an order drawn anew, until time or precision end it."""
        random = np.random.default_rng(self._training.recipe.seed)
        longest = 0.0
        with _without_collecting():
            for number in range(self._settings.rounds):
                spent = time.perf_counter() - self._began
                is_over = spent + longest > self._settings.seconds and number >= _LEAST_ROUNDS
                if self._world.from_first(is_over or self._is_precise(number)):
                    break
                began = time.perf_counter()
                for size in random.permutation(list(self._sizes)):
                    self._visit(int(size), number)
                longest = max(longest, time.perf_counter() - began)

    def _is_precise(self, num_rounds: int) -> bool:
        """Whether this rank's timings are as sure as is asked for."""
        wanted = self._settings.precision
        if wanted is None or num_rounds < _LEAST_TO_JUDGE:
            return False
        rows = np.array(self._rows)
        _, table = medians_by_round(rows[:, 0], rows[:, 1], rows[:, 2:5].sum(axis=1))
        return relative_error(table) <= wanted

    def _visit(self, size: int, number: int) -> None:
        """Some updates of a size; before small ones an uncounted one, which wakes the caches."""
        known = self._sizes[size]
        allowed = self._settings.seconds / _VISITS
        updates = max(1, min(_UPDATES_OF_VISIT, int(allowed / max(known.seconds, 1e-9))))
        self._activity.show(f"round {number + 1}  {size:,} examples a pass",
                            share=(number + 0.5) / self._settings.rounds)  # fmt: skip
        taken: list[Marks] = []
        for _ in range(updates + (updates > 1)):
            taken.append(self._timed.take(known.portion))
            self.examples += known.portion.num_examples
        for marks in taken[-updates:]:
            self._rows.append([float(size), float(number), *marks.seconds()])

    # --- the result ------------------------------------------------------------------------

    def samples(self) -> dict[str, tuple[float, ...]]:
        """The columns, the same on every rank."""
        of_ranks = self._world.all_values(self._rows)
        rows = np.mean(np.array(of_ranks), axis=0)
        added = self._world.all_values([size.added_bytes for size in self._sizes.values()])
        memory = dict(zip(self._sizes, np.max(added, axis=0), strict=True))
        loading = {size: seconds_to_load(self._loading, size) for size in self._sizes}
        columns = [*rows.T]
        columns[5:] = [
            [loading[int(size)] for size in rows[:, 0]],
            rows[:, 2:5].sum(axis=1),
            [memory[int(size)] for size in rows[:, 0]],
        ]
        return {name: tuple(map(float, c)) for name, c in zip(COLUMNS, columns, strict=True)}

    def _run_settings(self) -> dict[str, Any]:
        recipe = self._training.recipe
        return {
            "batch_size": recipe.batch_size,
            "micro_batch_size": recipe.micro_batch_size,
            "ghost_batch_size": recipe.ghost_batch_size,
            "world_size": self._world.size,
            "examples_per_epoch": self._training.clock.examples_per_epoch,
        }

    def described(self) -> dict[str, Any]:
        """Everything that the estimates follow from beside the samples, and how it was taken."""
        recipe, meter = self._training.recipe, self._meter
        assert meter is not None
        free = self._free_bytes
        return (
            dataclasses.asdict(self._settings)
            | recipe_settings(self._training.task, recipe)
            | self._run_settings()
            | {
                "device": self._world.device.type,
                "num_workers": num_loaders(self._training),
                "is_streamed": is_streamed(self._training),
                "stopped_by": self._stopped_by,
                "refused": list(self._refused),
                "has_gradient": self._has_gradient,
                "loading": {
                    "samples": [list(sample) for sample in self._loading],
                    "largest_loaded": self._loaded,
                },
                "memory": {
                    "method": meter.method,
                    "resolution_bytes": meter.resolution,
                    "free_bytes": free if math.isfinite(free) else None,
                },
                "all_reduce": measure_all_reduce(self._world, self._timed.gradient_bytes()),
            }
        )
