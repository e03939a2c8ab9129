"""BatchNorm over ghosts of a large batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from anybatch.schedules import epochs
from anybatch.studies.reproductions.common import (
    PHOTOGRAPHS,
    WHOLE_SET,
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
    Searched,
    Verdict,
)
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "ghost-batch-norm"
TITLE = "BatchNorm over ghosts of a large batch"
SOURCE = "Hoffer, Hubara, Soudry 2017, Train longer, generalize better, section 4 (article 4)"
CLAIM = (
    "At a large batch, BatchNorm statistics over ghosts of 128 instead of the whole batch raise "
    "test accuracy: ResNet-44 on CIFAR-10 from 89.3 to 90.5 % (from memory of the paper's table)."
)
PREDICTION = (
    "Ghosts of 32 or 64 are 0 to 2 points better than statistics of the whole batch of 1,024, with "
    "as many updates and an lr of their own."
)


def experiment(*, quick: bool) -> Experiment:
    """One batch size, four ghosts, and the small batch as a landmark."""
    problem = replace(PHOTOGRAPHS, train=2048, network="conv-batch-norm")
    problem = quickly(problem) if quick else problem
    size, ghosts = (120, (None, 24)) if quick else (1024, (None, 256, 64, 32))
    base = recipe_of(momentum_sgd(0.1), size, epochs(2 if quick else 60))
    base = replace(base, micro_batch_size=None, batch_norm=WHOLE_SET)
    arms = {}
    for ghost in ghosts:
        recipe = replace(base, ghost_batch_size=ghost)
        arms[f"ghost-{ghost or 'all'}"] = Arm(recipe=recipe, problem=problem, lr=Searched())
    small = replace(recipe_of(momentum_sgd(0.05), 24 if quick else 64, base.duration),
                    batch_norm=WHOLE_SET)  # fmt: skip
    arms["batch-64"] = Arm(recipe=small, problem=problem, lr=Searched())
    smallest = f"ghost-{ghosts[-1]}"
    return Experiment(
        arms=arms,
        contrasts=(
            Contrast(arm=smallest, control="ghost-all", foretold="more"),
            *(Contrast(arm=f"ghost-{ghost}", control="ghost-all") for ghost in ghosts[1:-1]),
            Contrast(arm=smallest, control="batch-64"),
        ),
        search_trials=2 if quick else 5,
        limits=(
            "A net of three convolutions on the JPEG copy of CIFAR-10 at 16 x 16 pixels stands in "
            "for ResNet-44; no augmentation.",
            "Every arm is evaluated with statistics of the whole training set, so that the running "
            "averages play no part.",
        ),
    )


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether the smallest ghost beats the whole batch."""
    name = next(iter(effects))
    further = [
        f"{effect.contrast.name} {shown_effect(effect)}"
        for effect in effects.values()
        if effect.contrast.name != name
    ]
    return verdict_of(
        effects,
        name,
        seen="small ghosts help",
        opposite="small ghosts harm",
        further="; ".join(further),
    )
