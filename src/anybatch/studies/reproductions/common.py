"""Problems, schedules and recipes that several claims share, and the wording of verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import (
    BatchNormSettings,
    ComputeSettings,
    OptimizerSettings,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.schedules import Cosine, Duration, Schedule, Warmup, fraction
from anybatch.studies.reproductions.parts import Effect, Problem, Verdict

__all__ = [
    "MNIST",
    "PHOTOGRAPHS",
    "WARMED_COSINE",
    "WHOLE_SET",
    "momentum_sgd",
    "quickly",
    "recipe_of",
    "shown_effect",
    "verdict_of",
]

MNIST = Problem(data="mnist", train=2000, validation=5000, side=14, network="lenet")
"""2,000 digits of MNIST at half their resolution."""

PHOTOGRAPHS = Problem(data="cifar10-jpeg", train=1000, validation=5000, side=16, network="conv")
"""1,000 photographs of the JPEG copy of CIFAR-10 at half their resolution."""

WARMED_COSINE = Warmup(duration=fraction(0.1), start=0.1, into=Cosine())
"""A tenth of the run up from a tenth of the lr, and a cosine down to 0."""

WHOLE_SET = BatchNormSettings(evaluated_with="whole-set")

_MICRO_BATCH_SIZE = 250


def quickly(problem: Problem) -> Problem:
    """The same network on 240 of the shipped digits: it shows that everything runs, no more."""
    return replace(problem, data="digits", train=240, validation=100, test=100, side=16)


def recipe_of(
    optimizer: OptimizerSettings,
    batch_size: int | Literal["full"],
    length: Duration,
    lr_schedule: Schedule = WARMED_COSINE,
) -> Recipe:
    """A training on one thread that is evaluated at its end.

    Args:
        optimizer: its lr is where the search begins.
        batch_size: of an update; larger ones than 250 are accumulated.
        length: of the training.
        lr_schedule: of the lr.
    """
    is_small = batch_size != "full" and batch_size <= _MICRO_BATCH_SIZE
    return Recipe(
        optimizer=optimizer,
        batch_size=batch_size,
        micro_batch_size=None if is_small else _MICRO_BATCH_SIZE,
        duration=length,
        schedules=Schedules(lr=lr_schedule),
        stopping=Stopping(evaluate_every=fraction(1)),
        records=RecordSettings(log_every=20, checkpoint_every=fraction(0.25)),
        compute=ComputeSettings(threads=1, channels_last=True, evaluation_batch_size=250),
    )


def momentum_sgd(lr: float, *, momentum: float = 0.9, weight_decay: float = 5e-4) -> SGDSettings:
    """SGD with Nesterov momentum and L2 regularization, as article 4's runs have it."""
    return SGDSettings(lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay)


def shown_effect(effect: Effect) -> str:
    """An effect on accuracy in words, with its interval.

    Example:
        >>> from anybatch.studies.reproductions.parts import Contrast
        >>> contrast = Contrast(arm="a", control="b")
        >>> shown_effect(Effect(contrast=contrast, value=-0.04, low=-0.05, high=-0.03, number=3))
        '-4.0 points (95 % interval -5.0 to -3.0, n = 3)'
    """
    value, low, high = (100.0 * x for x in (effect.value, effect.low, effect.high))
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, n = {effect.number})"


def verdict_of(
    effects: Mapping[str, Effect], name: str, *, seen: str, opposite: str, further: str = ""
) -> Verdict:
    """The verdict that one foretold contrast gives.

    Args:
        effects: of all contrasts.
        name: of the contrast that decides.
        seen: what it means where it is as foretold.
        opposite: what it means where it is the other way round.
        further: said in any case.
    """
    effect = effects[name]
    shown = f"{name}: {shown_effect(effect)}"
    also = f"; {further}" if further else ""
    match effect.reading:
        case "none":
            size = f"{100.0 * effect.contrast.smallest:g} points"
            return Verdict(name="null", sentence=f"{shown}, which is less than {size}{also}")
        case "unresolved":
            return Verdict(name="null", sentence=f"{shown}, not told from 0{also}")
        case "too few":
            return Verdict(name="null", sentence=f"{shown}: too few pairs, as runs diverged{also}")
        case reading:
            held = reading == effect.contrast.foretold
            meaning = seen if held else opposite
            kind: Literal["seen", "not seen"] = "seen" if held else "not seen"
            return Verdict(name=kind, sentence=f"{shown}: {meaning}{also}")
