"""A large batch that is given as many updates, or as many epochs, as a small one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from anybatch.schedules import epochs
from anybatch.studies.reproductions.common import (
    MNIST,
    momentum_sgd,
    quickly,
    recipe_of,
    shown_effect,
    verdict_of,
)
from anybatch.studies.reproductions.parts import (
    Arm,
    Contrast,
    Effect,
    Experiment,
    SameLR,
    Searched,
    Verdict,
)
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "regime-adaptation"
TITLE = "A large batch with as many updates"
SOURCE = "Hoffer, Hubara, Soudry 2017, Train longer, generalize better, section 5 (article 4)"
CLAIM = (
    "The gap of a large batch is one of updates: with as many updates as the small batch it goes "
    "away. MNIST: 98.27 % at the small batch, 97.05 % at the large one, 98.53 % with regime "
    "adaptation (from memory of the paper's table)."
)
PREDICTION = (
    "After as many epochs a batch of 1,000 is more than half a point behind one of 50, whatever "
    "lr; after as many updates it is not. That costs 20 times the examples."
)


def experiment(*, quick: bool) -> Experiment:
    """Small batch; large batch after as many epochs and updates, by search and by the lr rules."""
    problem = quickly(MNIST) if quick else MNIST
    small_size, large_size, count = (20, 120, 2) if quick else (50, 1000, 30)
    ratio = large_size / small_size
    small = recipe_of(momentum_sgd(0.05), small_size, epochs(count))
    large = recipe_of(momentum_sgd(0.1), large_size, epochs(count))
    long = recipe_of(momentum_sgd(0.1), large_size, epochs(count * ratio))
    root, linear = SameLR(arm="small", factor=math.sqrt(ratio)), SameLR(arm="small", factor=ratio)
    arms = {
        "small": Arm(recipe=small, problem=problem, lr=Searched()),
        "epochs": Arm(recipe=large, problem=problem, lr=Searched()),
        "epochs-sqrt": Arm(recipe=large, problem=problem, lr=root),
        "epochs-linear": Arm(recipe=large, problem=problem, lr=linear),
        "updates": Arm(recipe=long, problem=problem, lr=Searched()),
        "updates-sqrt": Arm(recipe=long, problem=problem, lr=root),
    }
    return Experiment(
        arms=arms,
        contrasts=(
            Contrast(arm="epochs", control="small", foretold="less"),
            Contrast(arm="updates", control="epochs", foretold="more"),
            Contrast(arm="updates", control="small"),
            Contrast(arm="epochs-sqrt", control="epochs"),
            Contrast(arm="epochs-linear", control="epochs"),
            Contrast(arm="updates-sqrt", control="updates"),
        ),
        search_trials=2 if quick else 6,
        limits=(
            "2,000 digits of MNIST at 14 x 14 pixels, LeNet-5, no BatchNorm.",
            "The search is equal in trials; a trial of the long arm is 20 times as long.",
        ),
    )


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether as many updates remove the gap that as many epochs leave."""
    gap, left = effects["epochs - small"], effects["updates - small"]
    return verdict_of(
        effects,
        "updates - epochs",
        seen="as many updates close the gap" if left.excludes_loss else "more updates help",
        opposite="more updates make it worse",
        further=f"gap after as many epochs {shown_effect(gap)}, after as many updates "
        f"{shown_effect(left)}",
    )
