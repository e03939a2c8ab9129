"""MNIST: the shipped recipe reaches 99 % on the test set, seed after seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.summaries import mean_and_spread
from benchmarks.training_trial import accuracies, train_with_recipe, training_table

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "mnist"
TITLE = "MNIST with the shipped recipe"
QUESTION = (
    "How accurate on the test set is a network that `anybatch train mnist` trains with its shipped "
    "recipe, and how long does it take?"
)
PREDICTION = "at least 0.990 test accuracy with each of 3 seeds"

_TARGET = 0.990
_SEEDS = (0, 1, 2)


def trials() -> list[str]:
    """One key for each seed."""
    return [f"seed-{seed}" for seed in _SEEDS]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Train with one seed.

    Args:
        key: one of `trials`.
        folder: holds the run.

    Raises:
        TrialSkippedError: MNIST is not under ANYBATCH_DATA.
    """
    seed = int(key.removeprefix("seed-"))
    return train_with_recipe("mnist", "mnist", seed=seed, folder=folder)


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """How many seeds reach the target.

    Args:
        results: key -> values of finished trials.
    """
    values = accuracies(results)
    reached = sum(value >= _TARGET for value in values)
    held = "holds" if reached == len(values) else "does not hold"
    return f"{held}: {reached} of {len(values)} seeds reach it, {mean_and_spread(values, 4)}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each seed, and one for all.

    Args:
        results: key -> values of finished trials.
    """
    return training_table(results, target=_TARGET)
