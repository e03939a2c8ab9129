"""JPEG copy of CIFAR-10: the shipped recipe on the 2 cores of a small machine.

The images were re-encoded as JPEG (quality about 75, 4:2:0), which costs every method about 2
points of accuracy. Figures from it are compared only with each other, never with CIFAR-10's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.summaries import mean_and_spread
from benchmarks.training_trial import accuracies, train_with_recipe, training_table

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "cifar10_jpeg"
TITLE = "JPEG copy of CIFAR-10 with the shipped recipe"
QUESTION = (
    "How accurate on the test set of the JPEG copy of CIFAR-10 is a network trained with the "
    "shipped recipe, and how long does it take?"
)
PREDICTION = "more than 0.85 test accuracy on the JPEG copy of CIFAR-10"

_TARGET = 0.85
_SEEDS = (0,)
_TASK = "image-folder:cifar10-jpeg.tar.xz"  # below ANYBATCH_DATA
_RECIPE = "cifar10-jpeg"  # made for just these images


def trials() -> list[str]:
    """One key for each seed."""
    return [f"seed-{seed}" for seed in _SEEDS]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Train with one seed.

    Args:
        key: one of `trials`.
        folder: holds the run.

    Raises:
        TrialSkippedError: the archive is not under ANYBATCH_DATA, or the recipe does not exist.
    """
    seed = int(key.removeprefix("seed-"))
    return train_with_recipe(_TASK, _RECIPE, seed=seed, folder=folder)


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """How many seeds pass the target.

    Args:
        results: key -> values of finished trials.
    """
    values = accuracies(results)
    passed = sum(value > _TARGET for value in values)
    held = "holds" if passed == len(values) else "does not hold"
    return f"{held}: {mean_and_spread(values, 4)} with {len(values)} seed(s)"


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each seed, and one for all.

    Args:
        results: key -> values of finished trials.
    """
    return training_table(results, target=_TARGET)
