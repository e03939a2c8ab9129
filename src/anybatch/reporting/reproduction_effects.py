"""Effects of a reproduction: every contrast with its interval over pairs of seeds."""

from __future__ import annotations

import math

from anybatch.errors import InputError
from anybatch.reporting.comparison import mean_difference
from anybatch.studies.reproductions.parts import Contrast, Effect, Verdict
from anybatch.studies.reproductions.results import Results
from anybatch.studies.reproductions.table import claim_named, judged

__all__ = ["effects_of", "verdict_on"]


def effects_of(results: Results) -> dict[str, Effect]:
    """Every contrast of a claim, by name; of no pairs where one side has no values."""
    experiment = claim_named(results.name).experiment(quick=results.quick)
    return {contrast.name: _effect(results, contrast) for contrast in experiment.contrasts}


def _effect(results: Results, contrast: Contrast) -> Effect:
    """The mean difference over seeds that both sides have, with Student's interval.

    Raises:
        InputError: trials have finished, and none knows the quantity: it is misnamed.
    """
    sides = [results.arms[name] for name in (contrast.arm, contrast.control)]
    one, other = (side.values(contrast.quantity) for side in sides)
    for side, found in zip(sides, (one, other), strict=True):
        if not found and any(trial.outcome == "finished" for trial in side.trials):
            rule = f"must be known of the finished trials of {side.name}"
            raise InputError("quantity of a contrast", rule, contrast.quantity)
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return Effect(contrast=contrast, value=math.nan, low=-math.inf, high=math.inf, number=0)
    control, arm = [other[seed] for seed in seeds], [one[seed] for seed in seeds]
    value, low, high, _, number = mean_difference(control, arm, paired=True)
    return Effect(contrast=contrast, value=value, low=low, high=high, number=number)


def verdict_on(results: Results) -> Verdict:
    """What a reproduction has found."""
    return judged(results, effects_of(results))
