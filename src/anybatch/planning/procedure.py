"""Planning, the part that measures and trains: stages under a budget, each kept as it ends.

throughput -> range test at the pilot's batch size -> pilot, with noise scales on the way ->
a first decision -> branches from the pilot's state (full procedure) -> the plan

Whatever ends it early, what was measured so far gives a plan, marked partial.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, final

from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range
from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale
from anybatch.measuring.throughput import ThroughputSettings, measure_throughput
from anybatch.plan import PLAN_FILE, Plan, PlanRequest
from anybatch.planning.arithmetic.branches import branch_updates
from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.asking import check_plannable, new_plan_run, plan_request
from anybatch.planning.branching import Branch, BranchState, train_branches
from anybatch.planning.compose import Composer
from anybatch.planning.ledger import interval_factor, read_ledger
from anybatch.planning.pilot import (
    LOSSES_KEPT_EVERY,
    Pilot,
    PilotGoal,
    opened_pilot,
    pilot_recipe,
)
from anybatch.planning.preconditioning import preconditioned
from anybatch.planning.stages import (
    Budget,
    budget_of,
    ramp_and_probe_updates,
)
from anybatch.progress import Activity
from anybatch.recipe import Recipe, Target
from anybatch.run import SCHEMA, Run, Status, write_json
from anybatch.task import Task
from anybatch.training.checkpoint import save_checkpoint
from anybatch.training.loop import default_out
from anybatch.training.snapshot import preserved_random_state
from anybatch.world import World

__all__ = ["make_plan"]

_BRANCH_SEEDS = 2
_LEAST_OF_PILOT = 0.125  # of its seconds, for each of its two parts
_WIDTHS = (6.0, 2.5)  # of the forecast, at which the two parts of the pilot may end
_THROUGHPUT_SECONDS = 1.0  # at most, before anything is known
_TIME_PRECISION = 0.06  # relative: less than what a clock changes within minutes
_EDGE_MARGIN = 1.25  # of a short run, whose pilot has the very beginning that was tested
_NOISE_PRECISION = 4.0  # high over low: critical batch sizes differ by more at the same noise
_NOISE_PROBES = 6, 24  # least and most
_MOST_PILOTS = 3  # of which each but the last has diverged
_MOST_SLOWER = 4.0  # than the others may a branch be that tries a preconditioner


def make_plan(
    task: Task,
    recipe: Recipe,
    *,
    target: str | Target | None = None,
    budget: float = 0.05,
    out: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Measure a task and this machine, and say with what to train to the target.

    Args:
        task: what is to be learned; left as found.
        recipe: the present choice; optimizer, model, loss and data treatment stay, batch size, lr,
            schedule and duration are planned.
        target: as in `Target.parse`; None takes the recipe's.
        budget: share of the present recipe's seconds that measuring may take, in (0, 1].
        out: a new folder; None makes one below `runs/`.
        progress: show what is being done.

    Returns:
        The plan, also written to `plan.json` in its folder, beside all raw samples, the pilot's
        logs and its checkpoint.

    Raises:
        InputError: no target, a stream as training or validation data, a batch-coupled loss,
            anything that breaks a rule.
        KeyboardInterrupt: after Ctrl-C, once what is known has been written as a partial plan.
        SystemExit: after SIGTERM, likewise; the code is 143.

    Cost:
        `budget` of the present recipe's seconds; for a run below 2,000 updates or so, up to 30 % of
        it, 18 seconds at the most. The pilot is part of the training.

    Collectives:
        Those of the measurements and trainings; every rank must call.
    """
    check_plannable(task, recipe, budget)
    world = World.from_environment(recipe.compute.device)
    good = False
    try:
        request = plan_request(task, recipe, target, budget, world)
        path = world.from_first(Path(out) if out is not None else default_out(f"{task.name}-plan"))
        run = new_plan_run(task, request, path, world)
        with preserved_random_state():
            plan = _carried_out(_Procedure(task, request, run, world, progress))
        good = True
    finally:
        world.close(together=good)
    return plan


def _carried_out(procedure: _Procedure) -> Plan:
    """The plan; after an interruption a partial one is written before it goes on."""
    try:
        with _ended_by_sigterm():
            procedure.measure()
            return procedure.finish()
    except KeyboardInterrupt:
        procedure.interrupted("Ctrl-C", signal.SIGINT)
        raise
    except SystemExit:
        procedure.interrupted("SIGTERM", signal.SIGTERM)
        raise
    except Exception as error:
        procedure.failed(error)
        raise


@final
class _Procedure:
    """What has been measured so far, and what comes next.

    Args:
        task: what is to be learned.
        request: what is asked.
        run: the plan's folder.
        world: ranks that train together.
        progress: show what is being done.
    """

    def __init__(
        self, task: Task, request: PlanRequest, run: Run, world: World, progress: bool
    ) -> None:
        self._task, self._request, self._run, self._world = task, request, run, world
        self._shown = progress and world.is_first
        self.stage = "throughput"
        self.measurements: dict[str, Measurement] = {}
        self._cost: dict[str, float] = {}
        self._ends: list[BranchState] = []
        self._interval_factor = world.from_first(interval_factor(read_ledger()))
        self._budget = budget_of(60.0, 1000.0, request.budget)  # until the machine is known

    # --- stages ------------------------------------------------------------------------------

    def measure(self) -> None:
        """Every stage that the budget allows, in order."""
        with self._stage("throughput"):
            seconds = min(_THROUGHPUT_SECONDS, self._budget.throughput)
            settings = ThroughputSettings(seconds=seconds, precision=_TIME_PRECISION)
            self._keep("throughput", measure_throughput(
                self._task, self._request.recipe, settings=settings, progress=self._shown
            ))  # fmt: skip
        model = self._time_model
        self._budget = self._divided(model)
        size = self._composer().pilot_batch_size()
        self._find_lr(model, size)
        for _ in range(_MOST_PILOTS):  # each after the first at a lower lr
            recipe = self._pilot_recipe(
                size, self._composer().pilot_lr(size), self._log_every(size)
            )
            if self._world.is_first:
                self._run.replace_recipe(recipe)
                self._run.truncate_logs(dict.fromkeys(self._run.log_lengths(), 0))
            with opened_pilot(self._task, recipe, world=self._world, run=self._run) as pilot:
                self._train_pilot(pilot)
                if self._budget.procedure == "full" and not pilot.diverged:
                    self._branch(pilot)
            if not pilot.diverged:
                break

    def _pilot_recipe(self, batch_size: int, lr: float, log_every: int) -> Recipe:
        return pilot_recipe(
            self._request.recipe,
            batch_size,
            lr,
            log_every=log_every,
            largest_micro_batch=self._time_model.best.largest_micro_batch,
            ranks=self._world.size,
            num_examples=self._request.num_examples,
        )

    def _log_every(self, batch_size: int) -> int:
        """Updates between two step records, of which the pilot can only end at one."""
        seconds = float(self._time_model.seconds_per_update(batch_size, ranks=self._world.size))
        return max(1, min(LOSSES_KEPT_EVERY, int(0.05 * self._budget.pilot / seconds)))

    def _divided(self, model: TimeModel) -> Budget:
        """The budget, now that an update's seconds are known."""
        request = self._request
        clock = recipe_clock(request.recipe, request.num_examples)
        updates = (clock.total_examples or 0) / request.present_batch_size
        seconds = float(
            model.seconds_per_update(request.present_batch_size, ranks=self._world.size)
        )
        return budget_of(updates * seconds, updates, request.budget)

    def _find_lr(self, model: TimeModel, batch_size: int) -> None:
        with self._stage("lr-range"):
            seconds = float(model.seconds_per_update(batch_size, ranks=self._world.size))
            ramp, probe = ramp_and_probe_updates(self._budget, seconds)
            settings = LRRangeSettings(num_updates=ramp, probe_updates=probe, metric_every=0)
            if self._budget.procedure == "short":
                settings = dataclasses.replace(settings, edge_margin=_EDGE_MARGIN, find_edge=False)
            recipe = self._pilot_recipe(batch_size, _lr_of(self._request.recipe), 1)
            self._keep("lr-range", measure_lr_range(
                self._task, recipe, settings=settings, progress=self._shown
            ))  # fmt: skip

    def _train_pilot(self, pilot: Pilot) -> None:
        """Train, and measure the noise scale half-way and at the end."""
        for part, width in enumerate(_WIDTHS, start=1):
            least = _LEAST_OF_PILOT * part * self._budget.pilot
            goal = PilotGoal(request=self._request, width=width, least_seconds=least)
            with self._stage("pilot"), self._activity("pilot") as activity:
                if not pilot.reached:
                    pilot.train(seconds=0.5 * self._budget.pilot, activity=activity, goal=goal)
                self._keep("pilot", pilot.measurement())
            if pilot.diverged:
                return
            save_checkpoint(self._run, pilot.training)  # of what the measurement tells
            with self._stage("noise-scale"):
                measured = measure_noise_scale(
                    pilot.training, settings=_noise_settings(self._budget), progress=self._shown
                )
                self._keep(f"noise-scale-{part}", measured)
            if pilot.reached:
                return

    def _branch(self, pilot: Pilot) -> None:
        """Branches at the present batch size, the best one with three lrs, and a neighbour.

        With SGD also two of the best size that try K-FAC.
        """
        with self._stage("branches"), self._activity("branches") as activity:
            composer = self._composer()
            arms, tried = composer.branch_arms(), composer.preconditioned_arms()
            seconds = self._budget.branches / (len(arms + tried) * _BRANCH_SEEDS)
            by_size = {
                size: float(self._time_model.seconds_per_update(size, ranks=self._world.size))
                for size, _ in arms
            }
            updates = self._world.from_first(branch_updates(by_size, seconds))
            branches = [
                Branch(recipe=self._pilot_recipe(size, lr, 1), num_updates=updates[size])
                for size, lr in arms
            ]
            branches += [
                Branch(recipe=preconditioned(self._pilot_recipe(size, lr, 1)), is_trial=True,
                       num_updates=updates[size], most_seconds=_MOST_SLOWER * seconds)
                for size, lr in tried
            ]  # fmt: skip
            measured, self._ends = train_branches(
                self._task,
                self._request.recipe,
                copy.deepcopy(pilot.training.state_dict()),
                branches,
                num_seeds=_BRANCH_SEEDS,
                world=self._world,
                activity=activity,
            )
            self._keep("branches", measured)

    # --- what they share ---------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.stage = name.replace("-", " ")
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._cost[name] = self._cost.get(name, 0.0) + spent

    def _activity(self, title: str) -> Activity:
        return Activity(title, shown=self._shown)

    def _keep(self, name: str, measured: Measurement) -> None:
        """Note a measurement, rank 0's on every rank, and write it at once."""
        measured = self._world.from_first(measured)
        self.measurements[name] = measured
        if self._world.is_first:
            self._run.add_measurement(measured, name=name)

    @property
    def _time_model(self) -> TimeModel:
        return TimeModel.from_measurement(self.measurements["throughput"])

    def _composer(self) -> Composer:
        factor = self._interval_factor
        return Composer(self._request, self.measurements, interval_factor=factor)

    # --- the end -----------------------------------------------------------------------------

    def finish(self) -> Plan:
        """Compose the plan and write it; rank 0's on every rank."""
        plan = self._world.from_first(self._going_on_from_winner(self._plan("")))
        self._write(plan, signal_number=None)
        return dataclasses.replace(plan, folder=str(self._run.path))

    def interrupted(self, name: str, number: int) -> None:
        """Write the plan so far, marked partial, or that nothing is known yet; no collective.

        Args:
            name: of what ended it.
            number: of its signal.
        """
        if not self._world.is_first:
            return
        reason = f"ended by {name} during the {self.stage}"
        if "throughput" not in self.measurements:
            self._run.write_status(Status(name="interrupted", reason=reason, signal=number))
            return
        for kept, measured in self.measurements.items():  # one may have been cut off
            self._run.add_measurement(measured, name=kept)
        self._write(self._plan(reason), signal_number=number)

    def failed(self, error: Exception) -> None:
        """Write why there is no plan.

        Args:
            error: that ended it.
        """
        if self._world.is_first:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            with contextlib.suppress(InputError):  # the disk may be what failed
                self._run.write_status(Status(name="failed", reason=reason))

    def _plan(self, partial: str) -> Plan:
        return self._composer().plan(
            procedure=self._budget.procedure, cost=self._cost, partial=partial
        )

    def _write(self, plan: Plan, *, signal_number: int | None) -> None:
        if self._world.is_first:
            write_json(self._run.path / PLAN_FILE, {"schema": SCHEMA} | plan.to_dict())
            self._run.write_status(_status(plan, signal_number))

    def _going_on_from_winner(self, plan: Plan) -> Plan:
        """Make the winning branch, where there is one, the state that the run begins from."""
        for end in self._ends:
            recipe = end.branch.recipe
            of_plan = (plan.batch_size, _lr_of(plan.recipe), plan.recipe.preconditioner)
            if (end.branch.batch_size, end.branch.lr, recipe.preconditioner) == of_plan:
                with opened_pilot(self._task, recipe, world=self._world, state=end.state) as pilot:
                    if self._world.is_first:
                        self._run.replace_recipe(recipe)
                        for record in end.records:
                            self._run.append(record)
                    save_checkpoint(self._run, pilot.training)
                    return dataclasses.replace(plan, pilot=_pilot_values(pilot))
        return plan


def _pilot_values(pilot: Pilot) -> dict[str, float]:
    training = pilot.training
    return {
        "updates": float(training.updates),
        "examples": float(training.feed.examples),
        "seconds": training.seconds,
        "batch_size": float(training.feed.last_size),
    }


def _noise_settings(budget: Budget) -> NoiseScaleSettings:
    settings = NoiseScaleSettings(seconds=0.5 * budget.noise)
    if budget.procedure == "full":
        return settings
    least, most = _NOISE_PROBES
    return dataclasses.replace(
        settings, precision=_NOISE_PRECISION, min_probes=least, max_probes=most
    )


def _lr_of(recipe: Recipe) -> float:
    return float(recipe.optimizer.lr)


def _status(plan: Plan, signal_number: int | None) -> Status:
    pilot = plan.pilot
    return Status(
        name="interrupted" if plan.partial else "finished",
        signal=signal_number,
        reason=plan.partial or "planned; its pilot is the beginning of the run",
        update=int(pilot.get("updates", 0)),
        examples=int(pilot.get("examples", 0)),
        seconds=float(pilot.get("seconds", 0.0)),
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, so that a partial plan can be written; exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    kept: Any = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)
