"""Full-batch descent drives the sharpness to the edge of stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import SGDSettings
from anybatch.schedules import Constant, updates
from anybatch.studies.reproductions.common import PHOTOGRAPHS, quickly, recipe_of
from anybatch.studies.reproductions.parts import (
    Arm,
    Contrast,
    Effect,
    Experiment,
    SharpnessTracked,
    Verdict,
)
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "edge-of-stability"
TITLE = "The edge of stability"
SOURCE = (
    "Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of "
    "stability (article 4)"
)
CLAIM = (
    "Under full-batch gradient descent the sharpness rises until it stands at 2 / lr, and stays "
    "there while the loss goes on falling; with Polyak's momentum b at (2 + 2 b) / lr. SGD stays "
    "below."
)
PREDICTION = (
    "At every lr the sharpness begins below 0.8 of its edge and its median over the last quarter "
    "of the run is between 0.85 and 1.25 of it, with momentum too; SGD with the same lr ends below "
    "the full batch."
)
_LRS = (0.025, 0.05)
_MOMENTUM = 0.5
_BEGINS, _LOW, _HIGH = 0.8, 0.85, 1.25


def experiment(*, quick: bool) -> Experiment:
    """Gradient descent at two lr, with momentum, and SGD."""
    problem = replace(PHOTOGRAPHS, network="tanh", loss="squared", train=1000, validation=1000)
    problem = replace(quickly(problem), loss="squared") if quick else problem
    length = updates(8 if quick else 3000)
    procedure = SharpnessTracked(every=4 if quick else 50)
    base = recipe_of(SGDSettings(lr=_LRS[0]), "full", length, Constant())
    base = replace(base, records=replace(base.records, log_every=procedure.every))
    heavy = SGDSettings(lr=_LRS[0], momentum=_MOMENTUM)
    recipes = {
        **{f"gd-{lr:g}": replace(base, optimizer=SGDSettings(lr=lr)) for lr in _LRS},
        f"momentum-{_LRS[0]:g}": replace(base, optimizer=heavy),
        f"sgd-{_LRS[0]:g}": replace(base, batch_size=40, micro_batch_size=None),
    }
    return Experiment(
        arms={
            name: Arm(recipe=recipe, problem=problem, procedure=procedure)
            for name, recipe in recipes.items()
        },
        contrasts=(
            Contrast(arm=f"sgd-{_LRS[0]:g}", control=f"gd-{_LRS[0]:g}", smallest=0.05,
                     quantity="late_share_of_edge", foretold="less"),
        ),
        picture="paths",
        shown=("share_of_edge",),
        limits=(
            "A net of two tanh layers of 64 units on 1,000 photographs of the JPEG copy of "
            "CIFAR-10 at 16 x 16 pixels, half the squared distance to the one-hot target.",
            "The lr are given, not searched: they are what the claim is about. A pilot on another "
            "seed chose them and the length, so that the edge comes within reach.",
            "SGD takes as many updates as the full batch, with batches of 40.",
        ),
    )  # fmt: skip


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether the sharpness rises to its edge and stays, and whether SGD stays below."""
    told, held, opposite = [], True, False
    for name, arm in results.arms.items():
        if name.startswith("sgd"):
            continue
        first = arm.values("first_share_of_edge").values()
        late = arm.values("late_share_of_edge").values()
        known = len(late) == arm.planned
        rises = known and max(first) < _BEGINS
        stays = known and _LOW <= min(late) <= max(late) <= _HIGH
        held &= rises and stays
        opposite |= known and max(late) < _LOW
        shown = f"{min(late):.2f} to {max(late):.2f}" if late else "unknown"
        begins = f"{max(first):.2f}" if first else "unknown"
        told.append(f"{name} from {begins} at most to {shown}")
    (effect,) = effects.values()
    held &= effect.reading == "less"
    name_: Literal["seen", "not seen", "null"]
    name_ = "seen" if held else "not seen" if opposite or effect.reading == "more" else "null"
    shown = f"{effect.value:+.2f} ({effect.low:+.2f} to {effect.high:+.2f}, n = {effect.number})"
    return Verdict(
        name=name_,
        sentence=f"sharpness in shares of its edge: {'; '.join(told)}; SGD against the full batch "
        f"{shown}",
    )
