"""The samples of a stage measurement: which passes, blocks and optimizers are timed, and how."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from typing import TYPE_CHECKING, Any, Self, final

import torch

from anybatch.kfac.blocks import Coverage, find_blocks
from anybatch.kfac.capture import Capture
from anybatch.measuring.block_times import BlockTimes, num_bytes, seconds_of
from anybatch.measuring.kfac_step_times import StepTimes
from anybatch.measuring.loading_time import loaded_portion
from anybatch.measuring.stage_times_reading import COLUMNS
from anybatch.measuring.subjects import recipe_settings
from anybatch.measuring.timed_step import TimedStep
from anybatch.progress import Activity
from anybatch.recipe import FixedRefresh, KFACSettings, LARSSettings, OptimizerSettings, SGDSettings
from anybatch.training.build import Optimizer, build_optimizer
from anybatch.training.local_updates import averaged_tensors
from anybatch.training.training import Training

if TYPE_CHECKING:
    from anybatch.measuring.stage_times import StageTimesSettings
    from anybatch.training.portion import Portion

__all__ = ["StageTest"]

_OPTIMIZERS: dict[str, OptimizerSettings] = {
    "sgd": SGDSettings(lr=0.0, momentum=0.9),
    "lars": LARSSettings(lr=0.0),
}
_LEAST_ROUNDS = 2
_PAIRS, _LONGEST_VISIT = 5, 0.06  # of updates in a round, and seconds after which one is enough


@final
class StageTest:
    """The samples of one measurement, as they come: `warm_up`, then `time_rounds`.

    Args:
        training: opened to be measured.
        timed: its step.
        settings: how long and how far.
        kfac: what is measured of it.

    Attributes:
        examples: taken so far, over all ranks.
    """

    def __init__(
        self,
        training: Training,
        timed: TimedStep,
        settings: StageTimesSettings,
        kfac: KFACSettings,
    ) -> None:
        self._training, self._timed = training, timed
        self._settings, self._kfac = settings, kfac
        self._device = training.world.device
        self._coverage: Coverage = find_blocks(training.model, kfac)
        empirical = dataclasses.replace(kfac, fisher="empirical")
        self._capture = Capture(self._coverage.blocks, empirical)
        self._optimizers: dict[str, Optimizer] = {}
        self._portions: list[Portion] = []
        self._not_measured = ""
        self._block_times = BlockTimes(self._coverage.blocks, kfac, settings.seconds)
        self._step_times: StepTimes | None = None
        self._rows: list[list[float]] = []
        self.examples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._capture.remove()
        if self._step_times is not None:
            self._step_times.close()

    # --- before the clock ---------------------------------------------------------------------

    def warm_up(self) -> None:
        """Load the passes and take the first update of each, with statistics."""
        for size in self._sizes():
            portion = loaded_portion(self._training, size)[0]
            if portion is None:
                break
            self._portions.append(portion)
            self._update(portion, observing=False)
            self._update(portion, observing=True)
        self._not_measured = next(
            filter(None, self._training.world.all_values(self._why_no_kfac())), ""
        )
        if not self._not_measured:
            update = functools.partial(self._update, self._portions[0], observing=False)
            model = self._training.model
            self._step_times = StepTimes(model, self._kfac, self._device, update)
        for name, settings in _OPTIMIZERS.items():
            self._optimizers[name] = build_optimizer(settings, self._training.model)
            self._optimizers[name].step()

    def _sizes(self) -> list[int]:
        """A quarter of the pass, and the pass: the recipe's own, within the bounds; ascending."""
        training, recipe = self._training, self._training.recipe
        world, ghost = training.world.size, recipe.ghost_batch_size or 1
        own = training.feed.last_size if recipe.batch_size == "full" else int(recipe.batch_size)
        limits = [max(own // world, 1), self._settings.max_examples]
        total = training.clock.examples_per_epoch
        limits += [] if total is None else [max(total // world, 1)]
        limits += [] if recipe.micro_batch_size is None else [recipe.micro_batch_size]
        least = max(ghost, 2 if training.task.loss_scope == "batch" else 1)
        largest = max(min(limits) // ghost * ghost, least)
        return sorted({max(largest // (4 * ghost) * ghost, least), largest})

    def _why_no_kfac(self) -> str:
        if not self._coverage.blocks:
            return "no layer of the model is covered"
        missing = self._capture.missing()
        if missing:
            return f"layer {missing[0]} took no part in a backward pass"
        if not self._timed.has_gradient():
            return "every gradient is zero"
        return ""

    # --- rounds -------------------------------------------------------------------------------

    def time_rounds(self, activity: Activity) -> None:
        """Everything once a round, until the time is over.

        Args:
            activity: to show what is done.
        """
        began, longest = time.perf_counter(), 0.0
        world = self._training.world
        for number in range(self._settings.rounds):
            spent = time.perf_counter() - began
            is_over = spent + longest > self._settings.seconds and number >= _LEAST_ROUNDS
            if world.from_first(is_over):
                break
            activity.show(f"round {number + 1}", share=(number + 0.5) / self._settings.rounds)
            started = time.perf_counter()
            self._round(number)
            longest = max(longest, time.perf_counter() - started)

    def _round(self, number: int) -> None:
        passes = []
        for portion in self._portions:
            plain, observed = self._pair(portion)
            passes.append((len(portion.indices), plain, observed - plain))
        shared = [seconds_of(o.step, self._device) for o in self._optimizers.values()]
        if self._step_times is None:
            shared += [math.nan] * 5
        else:
            shared += [*self._block_times.take(self._capture.sums), *self._step_times.take()]
        self._rows += [
            [float(size), float(number), plain, added, *shared] for size, plain, added in passes
        ]

    def _pair(self, portion: Portion) -> tuple[float, float]:
        """Seconds of an update without statistics and with them: medians, taken in turn."""
        pairs: list[tuple[float, float]] = []
        while not pairs or (sum(map(sum, pairs)) < _LONGEST_VISIT and len(pairs) < _PAIRS):
            plain, observed = self._update(portion, observing=False), math.nan
            if not self._not_measured:
                observed = self._update(portion, observing=True)
            pairs.append(self._training.world.from_first((plain, observed)))
        plains, observeds = zip(*pairs, strict=True)
        return statistics.median(plains), statistics.median(observeds)

    def _update(self, portion: Portion, *, observing: bool) -> float:
        """Seconds of an update, with its statistics or without; the latter stay in the capture."""
        if observing:
            self._capture.clear()
        self._capture.observing = observing
        try:
            taken = self._timed.take(portion).seconds()
        finally:
            self._capture.observing = False
        self.examples += portion.num_examples
        return sum(taken)

    # --- the result ---------------------------------------------------------------------------

    def samples(self) -> dict[str, tuple[float, ...]]:
        """The columns."""
        columns = zip(*self._rows, strict=True)
        return {name: tuple(map(float, c)) for name, c in zip(COLUMNS, columns, strict=True)}

    def described(self) -> dict[str, Any]:
        """Everything that the estimates follow from beside the samples, and how it was taken."""
        training, kfac = self._training, self._kfac
        settings = dataclasses.asdict(self._settings)
        refresh = kfac.refresh
        every = (1, 1)
        if isinstance(refresh, FixedRefresh):
            every = (refresh.statistics_every, refresh.inverse_every)
        local = training.recipe.communication
        averaged = averaged_tensors(
            training.model,
            training.optimizer,
            state=local is not None and local.state == "averaged",
        )
        return (
            settings
            | recipe_settings(training.task, training.recipe)
            | {
                "kfac": None if settings["kfac"] is None else "given",
                "device": self._device.type,
                "threads": torch.get_num_threads(),
                "world_size": training.world.size,
                "gradient_bytes": self._timed.gradient_bytes(),
                "averaged_bytes": num_bytes(averaged),
                "blocks": [] if self._not_measured else self._block_times.described(),
                "uncovered": {name: reason for name, _, reason in self._coverage.uncovered},
                "not_measured": self._not_measured,
                "preconditioner": {
                    "statistics_every": every[0],
                    "inverse_every": every[1],
                    "batch_share": kfac.batch_share,
                    "distribution": kfac.distribution,
                    "wire": kfac.wire,
                },
            }
        )
