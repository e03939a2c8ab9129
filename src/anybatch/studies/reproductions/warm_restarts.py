"""A cosine with warm restarts beside one cosine: good at any time, and at the end?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import Schedules
from anybatch.schedules import SGDR, Cosine, epochs, fraction
from anybatch.studies.reproductions.common import (
    PHOTOGRAPHS,
    momentum_sgd,
    quickly,
    recipe_of,
    shown_effect,
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

NAME = "warm-restarts"
TITLE = "Warm restarts: good at any time"
SOURCE = "Loshchilov, Hutter 2017, SGDR (article 5)"
CLAIM = (
    "With restarts after 1, 3, 7 of 15 parts of the run there is a good solution at each of them, "
    "long before one cosine has come down, and at the end nothing is lost."
)
PREDICTION = (
    "At the first three restarts SGDR is more than half a point ahead of the cosine as it stands "
    "there; at the end they tie."
)
_PARTS = 15
_ENDS = (1, 3, 7)


def experiment(*, quick: bool) -> Experiment:
    """One cosine, and four of growing length."""
    problem = quickly(PHOTOGRAPHS) if quick else replace(PHOTOGRAPHS, train=2000)
    size, count = (40, 3) if quick else (50, 45)
    base = recipe_of(momentum_sgd(0.05), size, epochs(count), Cosine())
    looks = replace(base.stopping, evaluate_every=fraction(1 / _PARTS))
    base = replace(base, stopping=looks)
    sgdr = SGDR(first_cycle=fraction(1 / _PARTS), cycle_growth=2.0)
    recipes = {"cosine": base, "sgdr": replace(base, schedules=Schedules(lr=sgdr))}
    return Experiment(
        arms={n: Arm(recipe=r, problem=problem, lr=Searched()) for n, r in recipes.items()},
        contrasts=(
            *(Contrast(arm="sgdr", control="cosine", quantity=_at(end), foretold="more")
              for end in _ENDS),
            Contrast(arm="sgdr", control="cosine"),
        ),
        search_trials=2 if quick else 6,
        picture="paths",
        shown=("validation_accuracy",),
        limits=(
            "A net of three convolutions on 2,000 photographs of the JPEG copy of CIFAR-10 at "
            "16 x 16 pixels stands in for a WRN-28-10; no augmentation.",
            "Accuracy at the restarts is that of 5,000 validation examples which no search saw.",
        ),
    )  # fmt: skip


def _at(end: int) -> str:
    return f"validation_accuracy_at_{end}"


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether SGDR is ahead at each restart, and no worse at the end."""
    early = [effects[f"sgdr - cosine, {_at(end)}"] for end in _ENDS]
    last = effects["sgdr - cosine"]
    ahead, behind = ([e.reading == kind for e in early] for kind in ("more", "less"))
    name: Literal["seen", "not seen", "null"] = "null"
    if all(ahead) and last.reading != "less":
        name = "seen"
    elif any(behind) or last.reading == "less":
        name = "not seen"
    told = [f"after {end} of 15 {shown_effect(e)}" for end, e in zip(_ENDS, early, strict=True)]
    return Verdict(name=name, sentence=f"SGDR - cosine: {'; '.join(told)}; at the end "
                   f"{shown_effect(last)} on the test set")  # fmt: skip
