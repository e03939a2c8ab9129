"""LR range test: which learning rates a training can use, how sure that is, and what is broken.

    for each repeat: from its beginning, raise the lr update by update until the loss blows up
    read the curve of loss against lr: starts, steepest, minimum, a first guess of the edge
    from the same beginnings, on the same batches: short trainings at constant learning rates
    -> max_lr, base_lr and the edge of stability, each with an interval; findings by name

Nothing is left behind: the task, the training or the loop is bit for bit as it was found.

Reference: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.measuring.blow_up import blow_up
from anybatch.measuring.loops import Loop, Sample
from anybatch.measuring.lr_curve import CurveReading, read_curve
from anybatch.measuring.lr_probes import Probe, ProbePlan, best_probe, next_probe, should_give_up
from anybatch.measuring.lr_range_reading import estimates_of, findings_of, perhaps_converged
from anybatch.measuring.subjects import OpenLoop, Subject, subject_of
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.recipe_checks import require, require_choices, require_positive
from anybatch.task import Task
from anybatch.training.snapshot import preserved_random_state
from anybatch.training.training import Training

__all__ = ["LRRangeSettings", "measure_lr_range"]

_OCTAVES_BELOW = 8.0  # the ramp's guess that may be tried
_MOST_SKIPPED = 20  # updates in a row that a gradient scaler may leave out
_OCTAVES_BELOW_BLOW_UP = 3.0
_CLEAR = 20.0  # standard deviations of one loss: such a drop needs no comparison
_USUAL_PROBES = 6.5  # at their full length, from the first beginning


@dataclass(frozen=True, kw_only=True, slots=True)
class LRRangeSettings:
    """How an LR range test is taken.

    Attributes:
        start_lr: of the ramp, > 0.
        end_lr: of the ramp, > start_lr; the loss stops it earlier, as a rule.
        num_updates: of a whole ramp, >= 16.
        spacing: "log" multiplies the lr by the same factor in every update, "linear" adds.
        repeats: beginnings that are tried, >= 1: other weights, order and draws for a task; other
            data for a training under way; other seeds of the generators for a loop of your own.
        probe_updates: of a short training at constant lr, >= 10; 0 tries none and reads the ramp
            alone.
        metric_every: updates of a ramp between two looks at the metric, >= 0; 0 never looks.
        metric_direction: which way the metric of a loop of your own is better.
        edge_margin: `max_lr` is at most the edge over this, >= 1. 2, as edges differ between
            beginnings by about an octave; less for a training from the beginning that is tested.
        find_edge: False looks for the edge only where it may limit `max_lr`.
    """

    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_updates: int = 100
    spacing: Literal["log", "linear"] = "log"
    repeats: int = 1
    probe_updates: int = 100
    metric_every: int = 2
    metric_direction: Literal["max", "min"] = "max"
    edge_margin: float = 2.0
    find_edge: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("start_lr", self.start_lr)
        rule = f"must be > start_lr {self.start_lr:.4g}"
        require("end_lr", self.end_lr, rule, self.end_lr > self.start_lr)
        require("num_updates", self.num_updates, "must be >= 16", self.num_updates >= 16)
        require("repeats", self.repeats, "must be >= 1", self.repeats >= 1)
        allowed = self.probe_updates == 0 or self.probe_updates >= 10
        require("probe_updates", self.probe_updates, "must be 0 or >= 10", allowed)
        require("metric_every", self.metric_every, "must be >= 0", self.metric_every >= 0)
        is_margin = math.isfinite(self.edge_margin) and self.edge_margin >= 1.0
        require("edge_margin", self.edge_margin, "must be >= 1", is_margin)

    def lrs(self) -> list[float]:
        """Learning rate of each update of a ramp."""
        space = np.geomspace if self.spacing == "log" else np.linspace
        return [float(lr) for lr in space(self.start_lr, self.end_lr, self.num_updates)]


def measure_lr_range(
    task: Task | Training | None = None,
    recipe: Recipe | None = None,
    *,
    step: Callable[[], Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    restore: Sequence[Any] = (),
    settings: LRRangeSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure the range of learning rates that a training can use.

    Give a task and a recipe, or a `Training` under way, or a loop of your own as `step` and
    `optimizer`. The recipe's own lr and its schedule play no part, its other choices do.

    Args:
        task: what is to be learned; or a Training, which is measured from where it stands.
        recipe: of the training.
        step: takes one update at the optimizer's present lr and returns the loss, or
            (loss, metric), or a mapping with "loss" and "metric". It accumulates and casts as it
            likes; a scheduler must not be stepped in it.
        optimizer: whose lr `step` uses. Several move together, each group in its ratio to the
            first; one that is to keep its lr is given in `restore` instead.
        restore: what else `step` changes: modules, a gradient scaler, averaged weights, a loader
            with `state_dict`, generators, lists, dicts.
        settings: of the test.
        progress: show what is being done.

    Returns:
        A measurement of kind "lr-range". Estimates, all learning rates: "learning_starts",
        "steepest" and "minimum" of the ramp; "edge", the largest constant lr that still learns;
        "max_lr", to train with, or for the top of a cycle; "base_lr", for its bottom; and where
        there is a metric, "best_metric", the lr of the ramp at which it is best. A value is None,
        with its reason, where the samples do not tell. Findings: "never-learned",
        "never-diverged", "diverged-at-once", "noisy", "no-three-regions", "nan-gap",
        "too-few-points", "not-confirmed", "loss-ignores-weights", "non-finite-data",
        "not-restored".

    Raises:
        InputError: what was given does not make one loop; `step` returns no number or changes the
            lr itself; the recipe's lr is 0.

    Cost:
        About 80 updates for a ramp and 450 to 1,050 for the short trainings (a third
        less without `find_edge`); 1 or 2 copies of the model's and the optimizer's state.

    Collectives:
        Those of an update, and one all-reduce of a number in each; every rank must call.

    Example:
        >>> from anybatch.recipe import SGDSettings
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(256, 3), torch.arange(256) % 2
        >>> task = Task(build_model=lambda: nn.Linear(3, 2), train=data)
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32)
        >>> found = measure_lr_range(task, recipe, settings=LRRangeSettings(probe_updates=0))
        >>> sorted(found.estimates)
        ['base_lr', 'best_metric', 'edge', 'learning_starts', 'max_lr', 'minimum', 'steepest']
    """
    settings = settings or LRRangeSettings()
    subject = subject_of(task, recipe, step, optimizer, restore)
    started = time.perf_counter()
    with (
        preserved_random_state(),
        subject.opened() as open_loop,
        Activity("lr-range", shown=progress and subject.is_first) as activity,
    ):
        test = _Test(settings, open_loop, activity)
        reading = test.ramps()
        plan = test.plan(reading) if settings.probe_updates else None
        if plan is not None:
            test.probe(plan)
    return dataclasses.replace(
        _measured(test, reading, plan, subject), seconds=time.perf_counter() - started
    )


# --- the test -----------------------------------------------------------------------------------


class _Test:
    """The samples of one measurement, as they come."""

    def __init__(self, settings: LRRangeSettings, open_loop: OpenLoop, activity: Activity) -> None:
        self.settings, self._open_loop, self._activity = settings, open_loop, activity
        self.lrs = settings.lrs()
        self.ramp_losses: list[list[float]] = []
        self.probes: list[Probe] = []
        self.rows: list[tuple[float, ...]] = []  # stage, repeat, series, update, lr, loss, metric
        self.examples = self.updates = 0
        self._unlearned: dict[int, list[float]] = {}  # by repeat: losses of weights that stay
        self.findings: list[Finding] = []

    def ramps(self) -> CurveReading:
        """One ramp for each repeat, and what they say together."""
        for repeat in range(self.settings.repeats):
            with self._open_loop(repeat) as loop:
                self.ramp_losses.append(self._ramp(loop, repeat))
        return read_curve(self.lrs, *self.ramp_losses)

    def _ramp(self, loop: Loop, repeat: int) -> list[float]:
        losses: list[float] = []
        loop.restart()
        every = self.settings.metric_every
        looked_at = range(0, len(self.lrs), every) if every else range(0)
        while len(losses) < len(self.lrs):
            number = len(losses)
            lr = self.lrs[number]
            sample = self._update(loop, lr, with_metric=number in looked_at)
            self._note(0, repeat, repeat, number, lr, sample)
            losses.append(sample.loss)
            self._say(f"ramp {repeat + 1} of {self.settings.repeats}  lr {lr:.2e}", sample)
            if not math.isfinite(sample.loss):
                self._look_at_data(loop, lr)
            if blow_up(losses) is not None:
                break
        if loop.ignores_weights() and "loss-ignores-weights" not in self._names():
            sentence = "no update gave any gradient: the loss does not depend on the weights"
            advice = "look for detach(), no_grad() or frozen parameters"
            self.findings.append(
                Finding(name="loss-ignores-weights", sentence=sentence, advice=advice)
            )
        return losses

    def _update(self, loop: Loop, lr: float, *, with_metric: bool = False) -> Sample:
        """An update that counts: one that a gradient scaler leaves out is taken again."""
        for _ in range(_MOST_SKIPPED):
            sample = loop.update(lr, with_metric=with_metric)
            self.examples += sample.examples
            self.updates += 1
            if sample.counted:
                return sample
        return Sample(math.nan)

    def _names(self) -> set[str]:
        return {finding.name for finding in self.findings}

    def _look_at_data(self, loop: Loop, lr: float) -> None:
        """Say once which example is not finite, if the data are to blame."""
        if "non-finite-data" in self._names():
            return
        what = loop.bad_data()
        if what:
            sentence = f"at lr {lr:.3g} the loss was not finite because of the data: {what}"
            advice = "mend or leave out that example"
            self.findings.append(Finding(name="non-finite-data", sentence=sentence, advice=advice))

    def _note(
        self, stage: int, repeat: int, series: int, update: int, lr: float, sample: Sample
    ) -> None:
        self.rows.append((stage, repeat, series, update, lr, sample.loss, sample.metric))

    def _say(self, what: str, sample: Sample) -> None:
        """Show what is done; how many short trainings it takes is a guess."""
        settings = self.settings
        probes = _USUAL_PROBES * (1.0 + 0.5 * (settings.repeats - 1)) * settings.probe_updates
        expected = 0.85 * settings.num_updates * settings.repeats + probes
        self._activity.show(f"{what}  loss {sample.loss:.4g}", share=len(self.rows) / expected)

    def plan(self, reading: CurveReading) -> ProbePlan | None:
        """Where to look for the best constant lr; None where there is no place to begin.

        Where the ramps saw no fall that is clear of the noise, the search begins below the blow-up
        or the last lr: losses on the same batches show what a ramp cannot.
        """
        settings = self.settings
        steepest, minimum = reading.estimates["steepest"], reading.estimates["minimum"]
        if "loss-ignores-weights" in self._names():
            return None
        if steepest.value is not None:
            high = math.log2(minimum.value or minimum.low)
            guess = 0.5 * (math.log2(steepest.value) + high)
        elif math.isfinite(reading.noise):
            guess = math.log2(reading.blow_up_lr or self.lrs[-1]) - _OCTAVES_BELOW_BLOW_UP
        else:
            return None
        return ProbePlan(
            guess=guess,
            lowest=guess - _OCTAVES_BELOW,
            highest=math.log2(settings.end_lr) + 1.0,
            num_updates=settings.probe_updates,
            repeats=settings.repeats,
            start=reading.start,
            noise=reading.noise,
            is_noisy=steepest.value is None or reading.drop < _CLEAR * reading.noise,
            edge_within=math.inf if settings.find_edge else math.log2(settings.edge_margin),
        )

    def probe(self, plan: ProbePlan) -> None:
        """Short trainings at constant learning rates, until enough is known."""
        wanted = next_probe(self.probes, plan)
        while wanted is not None:
            repeat = wanted[1]
            with self._open_loop(repeat) as loop:
                if plan.is_noisy and repeat not in self._unlearned:
                    self._unlearned[repeat] = self._losses_of_weights_that_stay(loop, repeat, plan)
                while wanted is not None and wanted[1] == repeat:
                    self.probes.append(self._probe(loop, wanted[0], repeat, plan))
                    wanted = next_probe(self.probes, plan)

    def _losses_of_weights_that_stay(self, loop: Loop, repeat: int, plan: ProbePlan) -> list[float]:
        """On the batches of the short trainings, at the ramp's first lr, which moves nothing."""
        loop.restart()
        losses: list[float] = []
        while len(losses) < plan.num_updates:
            sample = self._update(loop, self.settings.start_lr)
            self._note(1, repeat, -1, len(losses), self.settings.start_lr, sample)
            losses.append(sample.loss if math.isfinite(sample.loss) else plan.start)
            self._say(f"weights that stay  update {len(losses)} of {plan.num_updates}", sample)
        return losses

    def _probe(self, loop: Loop, octave: float, repeat: int, plan: ProbePlan) -> Probe:
        losses: list[float] = []
        lr, series = 2.0**octave, len(self.probes)
        best = best_probe(self.probes, repeat, plan)
        loop.restart()
        while len(losses) < plan.num_updates:
            sample = self._update(loop, lr)
            self._note(1, repeat, series, len(losses), lr, sample)
            # An easy batch is no success: what counts is the distance to weights that stay.
            unlearned = self._unlearned.get(repeat)
            batch = unlearned[len(losses)] if unlearned else plan.start
            losses.append(sample.loss - batch + plan.start)
            self._say(f"constant lr {lr:.3g}  update {len(losses)} of {plan.num_updates}", sample)
            if should_give_up(losses, best, plan):
                break
        return Probe(octave=octave, repeat=repeat, losses=tuple(losses))


# --- the result ---------------------------------------------------------------------------------

_COLUMNS = ("stage", "repeat", "series", "update", "lr", "loss", "metric")


def _measured(
    test: _Test, reading: CurveReading, plan: ProbePlan | None, subject: Subject
) -> Measurement:
    estimates = estimates_of(reading, test.probes, plan, edge_margin=test.settings.edge_margin)
    described = subject.described()
    best_metric = _best_metric(test, described.get("metric_direction"))
    if best_metric is not None:
        estimates["best_metric"] = best_metric
    findings = [*test.findings, *_restore_findings(subject.not_covered())]
    findings += findings_of(reading, estimates, test.probes, plan)
    if described.get("after_updates") and estimates["max_lr"].value is None:
        findings = [perhaps_converged(finding) for finding in findings]
    columns = zip(*test.rows, strict=True)
    return Measurement(
        kind="lr-range",
        settings=dataclasses.asdict(test.settings) | described,
        samples={name: tuple(c) for name, c in zip(_COLUMNS, columns, strict=True)},
        estimates=estimates,
        seconds=0.0,
        examples=test.examples,
        findings=tuple(findings),
        fitted=reading.fitted,
    )


def _best_metric(test: _Test, direction: str | None) -> Estimate | None:
    """The lr of the ramp at which the metric is best; None where no metric was measured."""
    sign = -1.0 if (direction or test.settings.metric_direction) == "max" else 1.0
    ramps: dict[float, dict[float, float]] = {}
    for stage, repeat, _, _, lr, _, metric in test.rows:
        if stage == 0 and math.isfinite(metric):
            ramps.setdefault(repeat, {})[lr] = sign * metric
    if not ramps:
        return None
    longest = max(ramps.values(), key=len)
    return read_curve(list(longest), *(list(ramp.values()) for ramp in ramps.values())).estimates[
        "minimum"
    ]


def _restore_findings(not_covered: Sequence[str]) -> list[Finding]:
    """What could not be put back."""
    if not not_covered:
        return []
    sentence = f"not put back: {'; '.join(not_covered)}"
    advice = "give restore the module, and a loader with state_dict, or build the iterator anew"
    return [Finding(name="not-restored", sentence=sentence, advice=advice)]
