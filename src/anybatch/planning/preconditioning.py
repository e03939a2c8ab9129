"""K-FAC beside the present optimizer: which branches try it, and what they say. Needs no torch."""

from __future__ import annotations

import dataclasses
import math

from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.branches import log_ratio_of_updates
from anybatch.planning.arithmetic.preconditioner_choice import (
    SURE,
    WORTH,
    LogRatio,
    PreconditionerChoice,
    PreconditionerTrial,
    long_run_seconds,
    ratio_of_seconds,
    ratio_of_updates,
)
from anybatch.planning.arms import Arms, arms_of, best_lr, diverged_lrs, seconds_of
from anybatch.planning.recipe import written_lr
from anybatch.recipe import FixedRefresh, KFACSettings, Recipe, SGDSettings, SGDWSettings

__all__ = ["REFUSED", "TRIED", "may_precondition", "preconditioned", "preconditioned_lrs",
           "trial_of", "verdict", "why_untried"]  # fmt: skip

# Early inverses would leave short branches no update that only measures, whose seconds are asked.
_REFRESH = FixedRefresh(early_inverses=False)

TRIED = KFACSettings(refresh=_REFRESH)
"""What is tried, and recommended where it is worth it."""

REFUSED = "preconditioner_refused"
"""Setting of branches in which it could not be tried: why."""

_LRS = (0.1, 0.03)  # of a mean loss: the step is bounded by max_norm, whatever the task


def may_precondition(recipe: Recipe) -> bool:
    """Whether a preconditioner may be put before a recipe's optimizer, which has none.

    Args:
        recipe: the present choice.
    """
    is_sgd = isinstance(recipe.optimizer, SGDSettings | SGDWSettings)
    return is_sgd and recipe.preconditioner is None


def preconditioned_lrs(recipe: Recipe, batch_size: int) -> list[float]:
    """Learning rates to try it with, as a recipe writes them; none where it cannot be.

    Args:
        recipe: the present choice; that of a summed loss divides them by the batch size.
        batch_size: global.
    """
    if not may_precondition(recipe):
        return []
    divisor = batch_size if recipe.loss.reduction == "sum" else 1
    return [written_lr(lr / divisor) for lr in _LRS]


def preconditioned(recipe: Recipe) -> Recipe:
    """The recipe with what is tried."""
    return dataclasses.replace(recipe, preconditioner=TRIED)


def trial_of(branches: Measurement | None) -> PreconditionerTrial | None:
    """What the branches with and without it say of one batch size; None where nothing.

    Each at its best lr for the updates; for the seconds all that did not diverge.

    Args:
        branches: the measurement; None has none.
    """
    tried = arms_of(branches, preconditioned=True)
    if branches is None or not tried:
        return None
    size = min(size for size, _ in tried)  # they are of one
    plain = _arms_at(branches, size)
    if not plain:
        return None
    lr = best_lr(tried, size)
    ours, theirs = tried[size, lr], plain[size, best_lr(plain, size)]
    if len(ours.losses) != len(theirs.losses):
        return None
    ratio, error = log_ratio_of_updates(ours, theirs)
    if not math.isfinite(error):
        return None
    return PreconditionerTrial(
        batch_size=size,
        lr=lr,
        seconds=_ratio_of_seconds(branches, tried, plain),
        updates=ratio_of_updates(ratio, error),
    )


def _arms_at(branches: Measurement, batch_size: int) -> Arms:
    """Those without it."""
    return {arm: losses for arm, losses in arms_of(branches).items() if arm[0] == batch_size}


def _ratio_of_seconds(branches: Measurement, tried: Arms, plain: Arms) -> LogRatio:
    statistics_every, inverse_every = _REFRESH.statistics_every, _REFRESH.inverse_every
    slow = [
        long_run_seconds(seconds, statistics_every=statistics_every, inverse_every=inverse_every)
        for arm in tried
        for seconds in seconds_of(branches, arm, preconditioned=True)
    ]
    quick = [long_run_seconds(one) for arm in plain for one in seconds_of(branches, arm)]
    return ratio_of_seconds(slow, quick)


def verdict(choice: PreconditionerChoice) -> str:
    """Both ratios, their product, and what follows.

    Args:
        choice: weighed.
    """
    trial = choice.trial
    step, updates = (_band(ratio.band()) for ratio in (trial.seconds, trial.updates))
    asked = f"less than {WORTH:g} x with probability {100.0 * choice.probability:.0f} %"
    follows = f"recommended ({asked}, {100.0 * SURE:.0f} % are asked)"
    return (
        f"K-FAC at batch size {trial.batch_size:,} and lr {trial.lr:.3g}: a step takes {step}, "
        f"updates to the same loss {updates}: {_band(choice.time)} the time: "
        f"{'' if choice.recommended else 'not '}{follows}"
    )


def _band(ratio: tuple[float, float, float]) -> str:
    middle, low, high = ratio
    return f"{middle:.2f} x ({low:.2f} to {high:.2f})"


def why_untried(recipe: Recipe, branches: Measurement | None) -> str:
    """Why there is no trial; empty where none was to be expected.

    Args:
        recipe: the present choice.
        branches: the measurement; None has none.
    """
    if not may_precondition(recipe):
        return ""
    if branches is None:
        return (
            "K-FAC was not tried, as no branches were trained: without a measured step time and "
            "gain it is not recommended"
        )
    if branches.settings.get(REFUSED):
        return f"K-FAC could not be tried: {branches.settings[REFUSED]}"
    columns = (branches.samples.get(name, ()) for name in ("preconditioned", "batch_size"))
    sizes = [int(size) for flag, size in zip(*columns, strict=False) if flag]
    if not sizes:  # a measurement of before there was any
        return ""
    lost = sorted(set(diverged_lrs(branches, sizes[0], preconditioned=True)))
    tried, plain = arms_of(branches, preconditioned=True), _arms_at(branches, sizes[0])
    if not tried:
        at = " and ".join(f"{lr:.3g}" for lr in lost)
        what = f"K-FAC diverged at lr {at}" if lost else "K-FAC: its branches are too short"
        return f"{what}: not recommended"
    step = ""
    if plain:
        band = _band(_ratio_of_seconds(branches, tried, plain).band())
        step = f"a step takes {band}; "
    return (
        f"K-FAC at batch size {sizes[0]:,}: {step}the branches do not tell its updates to the same "
        "loss: not recommended"
    )
