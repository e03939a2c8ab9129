"""Seconds of what an update is made of beside its passes: optimizers and the stages of K-FAC.

    rounds: for two sizes of a pass, an update as it is and one whose statistics are taken;
        the optimizers' own part (SGD with momentum, LARS);
        each different inversion and preconditioning of the model's blocks, once;
        whole steps of K-FAC between refreshes, and with new statistics
    -> what statistics cost for b examples, what each block costs its owner

Passes are those of the training's one step, at lr 0. Nothing of it is distributed: what ranks
exchange follows from the sizes (`planning.arithmetic.cluster_model`).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from anybatch.errors import InputError
from anybatch.measurement import Finding, Measurement
from anybatch.measuring.stage_times_reading import read_stage_times
from anybatch.measuring.stage_times_samples import StageTest
from anybatch.measuring.subjects import opened_training
from anybatch.measuring.timed_step import timed_step
from anybatch.progress import Activity
from anybatch.recipe import AdaptiveRefresh, KFACSettings, Recipe
from anybatch.recipe_checks import require, require_choices, require_positive
from anybatch.task import Task
from anybatch.training.training import Training

__all__ = ["StageTimesSettings", "measure_stage_times"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimesSettings:
    """How long and how far a measurement of stages goes.

    Attributes:
        seconds: after which no further round is begun, > 0; two rounds are always taken.
        rounds: in which everything is timed, >= 2.
        max_examples: of the largest pass, on one rank, >= 1; the recipe's own where that is less.
        kfac: whose statistics and inverses are timed; None: the recipe's, or the defaults.
    """

    seconds: float = 10.0
    rounds: int = 10
    max_examples: int = 256
    kfac: KFACSettings | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("seconds", self.seconds)
        require("rounds", self.rounds, "must be >= 2", self.rounds >= 2)
        require("max_examples", self.max_examples, "must be >= 1", self.max_examples >= 1)


def measure_stage_times(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: StageTimesSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure what optimizers and the stages of K-FAC add to an update's passes.

    Statistics are the difference of two updates of the same examples. Inversions are timed one
    factor at a time, on statistics of real examples.

    Args:
        task: what is to be learned; or a Training under way, which is bitwise as found afterwards.
        recipe: of the training; its own preconditioner is left out of the updates.
        settings: how long and how far.
        progress: show what is being done.

    Returns:
        A measurement of kind "stage-times". One sample for each round and size: see
        `stage_times_reading.COLUMNS`. Estimates: "sgd_seconds", "lars_seconds" (one update of the
        weights), "statistics_fixed_seconds", "statistics_seconds_per_example",
        "inversion_seconds", "precondition_seconds" (of all blocks, on one rank), and see
        `kfac_step_times`: "step_seconds", "collection_seconds", "taking_apart_seconds".
        settings["blocks"]: each block's factors with their packed elements, seconds of each
        inversion, bytes of its gradient. Findings: "kfac-not-measured", "adaptive-refresh",
        "fisher-as-empirical", "uncovered".

    Raises:
        InputError: they do not fit together; a training under way that has a preconditioner.

    Cost:
        `settings.seconds` or two rounds, building the training, and inverting all factors once;
        memory of all statistics twice, of the inverses, and of three of the largest factor.

    Collectives:
        Those of an update; every rank must call. Each times its own, rank 0 is kept.
    """
    settings = settings or StageTimesSettings()
    started = time.perf_counter()
    if isinstance(task, Training) and task.recipe.preconditioner is not None:
        rule = "must have no preconditioner while stages are timed"
        raise InputError("training", rule, hint="give task and recipe instead")
    own = task.recipe if isinstance(task, Training) else recipe
    kfac = settings.kfac or (own.preconditioner if own is not None else None) or KFACSettings()
    if recipe is not None:  # nor compiled: a compiled model does not see hooks that come later
        compute = dataclasses.replace(recipe.compute, compile=False)
        recipe = dataclasses.replace(recipe.without_preconditioner(), compute=compute)
    with opened_training(task, recipe) as training, timed_step(training) as timed:
        shown = progress and training.world.is_first
        with Activity("stage times", shown=shown) as activity:
            with StageTest(training, timed, settings, kfac) as test:
                test.warm_up()
                test.time_rounds(activity)
            samples, described = training.world.from_first((test.samples(), test.described()))
        if isinstance(task, Training):
            described["after_updates"] = task.updates
    return Measurement(
        kind="stage-times",
        settings=described,
        samples=samples,
        estimates=read_stage_times(samples, described),
        seconds=time.perf_counter() - started,
        examples=test.examples,
        findings=_findings(described["not_measured"], described["uncovered"], kfac),
    )


def _findings(reason: str, uncovered: dict[str, str], kfac: KFACSettings) -> tuple[Finding, ...]:
    found = []
    if reason:
        advice = "K-FAC is left out of predictions"
        found.append(Finding(name="kfac-not-measured", sentence=reason, advice=advice))
        return tuple(found)
    if isinstance(kfac.refresh, AdaptiveRefresh):
        sentence = "how often statistics are refreshed is not known beforehand"
        advice = "seconds are those of a refresh in every update: an upper bound"
        found.append(Finding(name="adaptive-refresh", sentence=sentence, advice=advice))
    if kfac.fisher != "empirical":
        sentence = f"the further backward passes of fisher = {kfac.fisher} were not timed"
        advice = "seconds are those of the empirical Fisher: a lower bound"
        found.append(Finding(name="fisher-as-empirical", sentence=sentence, advice=advice))
    if uncovered:
        first = next(iter(uncovered.items()))
        sentence = f"{len(uncovered)} parameters are not covered, as {first[0]}: {first[1]}"
        advice = "they take a first-order step, which costs nothing more"
        found.append(Finding(name="uncovered", sentence=sentence, advice=advice))
    return tuple(found)
