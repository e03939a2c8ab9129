"""Article 5's question: what is there beyond Adam at 3e-4, when all are searched alike?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import AdamSettings, AdamWSettings, Recipe, Schedules, SGDWSettings
from anybatch.schedules import (
    SGDR,
    Constant,
    Cyclic,
    OneCycle,
    epochs,
    fraction,
    inverse_momentum,
)
from anybatch.studies.reproductions.common import (
    MNIST,
    PHOTOGRAPHS,
    WARMED_COSINE,
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

NAME = "beyond-adam"
TITLE = "Beyond Adam at 3e-4"
SOURCE = (
    "Loshchilov, Hutter 2017 and 2019; Smith 2017; Smith, Topin 2018: the methods that article 5 "
    "puts beside Adam with a constant lr of 3e-4"
)
CLAIM = (
    "AdamW, its restarts, SGD with restarts, cyclical lr and one cycle with an LR range test reach "
    "better accuracy than Adam at 3e-4 in as many epochs."
)
PREDICTION = (
    "On the photographs every one of them is more than half a point ahead of Adam at 3e-4; so is "
    "Adam with a searched lr and a cosine, by about as much. On MNIST all are within half a point."
)
_TASKS = ("mnist", "photographs")
_METHODS = ("adamw", "adamwr", "sgdwr", "clr", "one-cycle")
_NORMALIZED_DECAY = 0.05


def experiment(*, quick: bool) -> Experiment:
    """Nine ways to train, on MNIST with LeNet-5 and on photographs with ResNet-8."""
    problems = {
        "mnist": replace(MNIST, train=5000),
        "photographs": replace(PHOTOGRAPHS, train=3000, network="resnet8"),
    }
    arms: dict[str, Arm] = {}
    for task in _TASKS[:1] if quick else _TASKS:
        problem = quickly(problems[task]) if quick else problems[task]
        for method, recipe in _recipes(quick).items():
            by_range = method in ("clr", "one-cycle")
            search = Searched(around="range-test" if by_range else "recipe")
            lr = None if method == "adam-3e-4" else search
            arms[f"{task}-{method}"] = Arm(recipe=recipe, problem=problem, lr=lr)
    others = ("adam-cosine", "sgd-cosine", *_METHODS)
    contrasts = [
        Contrast(arm=f"{task}-{method}", control=f"{task}-adam-3e-4", foretold="more")
        for task in (_TASKS[:1] if quick else _TASKS)
        for method in others
    ]
    contrasts += [
        Contrast(arm=f"{task}-{method}", control=f"{task}-adam-cosine")
        for task in (_TASKS[:1] if quick else _TASKS)
        for method in _METHODS
    ]
    return Experiment(
        arms=arms,
        contrasts=tuple(contrasts),
        search_trials=2 if quick else 5,
        limits=(
            "5,000 digits and 3,000 photographs of the JPEG copy of CIFAR-10 at 16 x 16 pixels, 15 "
            "epochs, batch 50; no augmentation.",
            "Adam at 3e-4 is as it is; every other arm has five trials for its lr, of which the LR "
            "range test of CLR and one cycle counts as one.",
            "Decays are not searched: normalized 0.05 for AdamW, AdamWR, SGDWR; L2 of 5e-4 for the "
            "other SGD arms; none for Adam.",
        ),
    )


def _recipes(quick: bool) -> dict[str, Recipe]:
    adam = recipe_of(AdamSettings(lr=1e-3), 40 if quick else 50, epochs(1 if quick else 15))
    constant = replace(adam, schedules=Schedules(lr=Constant()))
    restarts = SGDR(first_cycle=fraction(1 / 15), cycle_growth=2.0)
    adamw = AdamWSettings(lr=1e-3, weight_decay=_NORMALIZED_DECAY, decay="normalized")
    sgdw = SGDWSettings(lr=0.05, weight_decay=_NORMALIZED_DECAY, decay="normalized")
    cycle = OneCycle()
    momentum = inverse_momentum(cycle, lowest=0.85 / 0.95)
    cycles = Cyclic(up=fraction(1 / 6), mode="triangular", start=0.1)
    return {
        "adam-3e-4": replace(constant, optimizer=AdamSettings(lr=3e-4)),
        "adam": constant,
        "adam-cosine": adam,
        "sgd-cosine": replace(adam, optimizer=momentum_sgd(0.02)),
        "adamw": replace(adam, optimizer=adamw, schedules=Schedules(lr=WARMED_COSINE)),
        "adamwr": replace(adam, optimizer=adamw, schedules=Schedules(lr=restarts)),
        "sgdwr": replace(adam, optimizer=sgdw, schedules=Schedules(lr=restarts)),
        "clr": replace(adam, optimizer=momentum_sgd(0.05), schedules=Schedules(lr=cycles)),
        "one-cycle": replace(
            adam,
            optimizer=momentum_sgd(0.05, momentum=0.95),
            schedules=Schedules(lr=cycle, momentum=momentum),
        ),
    }


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """How many methods beat Adam at 3e-4 on the photographs, and how many Adam with a cosine."""
    task = next(task for task in reversed(_TASKS) if f"{task}-adam" in results.arms)
    readings = {m: effects[f"{task}-{m} - {task}-adam-3e-4"].reading for m in _METHODS}
    ahead = [method for method, reading in readings.items() if reading == "more"]
    behind = [method for method, reading in readings.items() if reading == "less"]
    beyond = [m for m in _METHODS if effects[f"{task}-{m} - {task}-adam-cosine"].reading == "more"]
    name: Literal["seen", "not seen", "null"]
    name = "seen" if len(ahead) == len(_METHODS) else "not seen" if behind else "null"
    told = [
        f"{m} {shown_effect(effects[f'{task}-{m} - {task}-adam-3e-4'])}"
        for m in ("adam-cosine", *_METHODS)
    ]
    return Verdict(
        name=name,
        sentence=(
            f"on the {task}, against Adam at 3e-4: {'; '.join(told)}. Ahead of it: "
            f"{', '.join(ahead) or 'none'}; ahead of Adam with a searched lr and a cosine: "
            f"{', '.join(beyond) or 'none'}"
        ),
    )
