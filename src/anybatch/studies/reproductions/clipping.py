"""Full-batch descent with a clipped gradient and the larger lr that it allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from anybatch.recipe import ClipGlobalNorm, NormalizeGradient
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

NAME = "clipping"
TITLE = "Full batch with a clipped gradient"
SOURCE = (
    "Geiping et al. 2022, Stochastic training is not necessary for generalization; Zhang, He, Sra, "
    "Jadbabaie 2020, Why gradient clipping accelerates training (article 4)"
)
CLAIM = (
    "A clip of the gradient's norm at 0.25 allows a larger lr and is the largest single gain of "
    "full-batch descent: 93.9 % instead of 87.4 % (from memory of the paper's table 1)."
)
PREDICTION = (
    "The lr found with a clip is at least twice that without one; accuracy gains more than half a "
    "point, and the same lr without the clip does worse or diverges."
)
_NORMS = (0.1, 0.25, 1.0)


def experiment(*, quick: bool) -> Experiment:
    """No clip, three clips, a normalized gradient, each with its own lr; a clip's lr without it."""
    problem = quickly(MNIST) if quick else MNIST
    plain = recipe_of(momentum_sgd(0.1), "full", epochs(6 if quick else 300))
    own = Searched()
    arms = {"unclipped": Arm(recipe=plain, problem=problem, lr=own)}
    for norm in _NORMS:
        clipped = replace(plain, gradient=(ClipGlobalNorm(max_norm=norm),))
        clipped = replace(clipped, optimizer=momentum_sgd(0.2))
        arms[f"clip-{norm:g}"] = Arm(recipe=clipped, problem=problem, lr=own)
    normalized = replace(plain, gradient=(NormalizeGradient(norm=0.25),))
    arms["normalized"] = Arm(recipe=normalized, problem=problem, lr=own)
    same = SameLR(arm="clip-0.25")
    arms["unclipped-same-lr"] = Arm(recipe=plain, problem=problem, lr=same)
    return Experiment(
        arms=arms,
        contrasts=(
            Contrast(arm="clip-0.25", control="unclipped", foretold="more"),
            Contrast(arm="clip-0.25", control="unclipped-same-lr", foretold="more"),
            Contrast(arm="clip-0.1", control="unclipped"),
            Contrast(arm="clip-1", control="unclipped"),
            Contrast(arm="normalized", control="unclipped"),
        ),
        search_trials=2 if quick else 6,
        limits=(
            "MNIST at 14 x 14 pixels and LeNet-5 stand in for CIFAR-10 and ResNet-18.",
            "A clip without a larger lr may do nothing: each arm has an lr of its own.",
        ),
    )


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether the clip helps, with the lr it allowed and what that lr does without it."""
    clipped, plain = results.arms["clip-0.25"], results.arms["unclipped"]
    ratio = (clipped.lr or 0.0) / (plain.lr or 1.0)
    without = results.arms["unclipped-same-lr"]
    diverged = f"{without.diverged} of {len(without.trials)} runs diverged"
    same = diverged if without.diverged else shown_effect(effects["clip-0.25 - unclipped-same-lr"])
    return verdict_of(
        effects,
        "clip-0.25 - unclipped",
        seen="clipping helps",
        opposite="clipping harms",
        further=f"the lr found is {ratio:g} times the unclipped one; at that lr without it: {same}",
    )
