"""Full-batch descent beside SGD after as many epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from anybatch.schedules import epochs, updates
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
    Searched,
    Verdict,
)
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "equal-epochs"
TITLE = "Full batch against SGD after as many epochs"
SOURCE = "Geiping et al. 2022, Stochastic training is not necessary for generalization (article 4)"
CLAIM = (
    "Gradient descent with the whole set in each update is far behind SGD after as many epochs: "
    "75.4 % against 95.7 % on CIFAR-10 after 300 (from memory of the paper's table 1)."
)
PREDICTION = (
    "Full batch is more than 3 points behind, and its training loss is higher too; SGD stopped "
    "after as few updates is as far behind. So the deficit is one of updates, not of noise."
)


def experiment(*, quick: bool) -> Experiment:
    """SGD, full batch, and SGD with the updates of the full batch."""
    problem = quickly(MNIST) if quick else replace(MNIST, train=5000, side=28)
    count = 3 if quick else 30
    sgd = recipe_of(momentum_sgd(0.05), 50, epochs(count))
    arms = {
        "sgd": sgd,
        "full-batch": recipe_of(momentum_sgd(0.1), "full", epochs(count)),
        "sgd-few-updates": recipe_of(momentum_sgd(0.05), 50, updates(count)),
    }
    return Experiment(
        arms={n: Arm(recipe=r, problem=problem, lr=Searched()) for n, r in arms.items()},
        contrasts=(
            Contrast(arm="full-batch", control="sgd", foretold="less"),
            Contrast(arm="full-batch", control="sgd", quantity="train_loss", smallest=0.0,
                     foretold="more"),
            Contrast(arm="full-batch", control="sgd-few-updates"),
        ),
        search_trials=2 if quick else 6,
        limits=(
            "MNIST and LeNet-5 stand in for CIFAR-10 and ResNet-18; batch 50 for 128.",
            "No augmentation.",
        ),
    )  # fmt: skip


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether full batch is behind, and whether as few updates of SGD are too."""
    few = effects["full-batch - sgd-few-updates"]
    losses = [f"{results.mean(arm, 'train_loss'):.3f}" for arm in ("full-batch", "sgd")]
    return verdict_of(
        effects,
        "full-batch - sgd",
        seen="full batch is behind after as many epochs",
        opposite="full batch is ahead",
        further=(
            f"training loss {losses[0]} against {losses[1]}; against SGD with as few updates "
            f"{shown_effect(few)}"
        ),
    )
