"""Critical batch size of MNIST: updates to a target at ten batch sizes, each at its best lr.

The network, the split and the target are those of Lee et al. (2021): two unpadded convolutions and
a linear head, 54,000 examples to train with, 2 % of 6,000 others wrong. SGD with Nesterov
momentum 0.9 at a constant lr. A prediction from the gradient noise scale alone is the first trial.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from anybatch import (
    ComputeSettings,
    InputError,
    ModelSettings,
    Recipe,
    SGDSettings,
    Task,
    load_task,
    updates,
)
from benchmarks.critical_batch_prediction import foretell
from benchmarks.critical_batch_reach import Goal, at_lr, stored_reach, tuned_exponent
from benchmarks.critical_batch_tables import critical_table, critical_verdict
from benchmarks.harness import TrialSkippedError

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "critical_batch"
TITLE = "Critical batch size of MNIST"
QUESTION = (
    "How many updates does a network need to 2 % validation error at batch sizes 8 to 4096, each "
    "with its best lr, and is the critical batch size that follows the published one?"
)
PREDICTION = (
    "B_crit between 100 and 400 (published: 170 to 230), S_min between 40 and 150 updates, and "
    "B_simple / 3 within a factor of 3.2 of B_crit"
)

_BATCH_SIZES = (8, 32, 128, 512, 2048, 16, 64, 256, 1024, 4096)  # a partial table says something
_SEEDS = (0, 1, 2)
_SINGLE_SEED_TUNING_FROM = 2048
_CAP_EXAMPLES, _CAP_UPDATES = 160_000, 400
_GOAL = Goal(error=0.02, watched=2000, margin=0.03)
_COMMON_LR = 0.01  # of the prediction's short training: chosen by nothing
_PRECISION_LR = 2.0**-5


def trials() -> list[str]:
    """The prediction, then each batch size, then what else is compared."""
    return [
        "prediction",
        *(f"batch-{batch_size}" for batch_size in _BATCH_SIZES),
        "precision",
    ]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Predict, or find the lr of a batch size and count its updates.

    Args:
        key: one of `trials`.
        folder: keeps each finished training.

    Raises:
        TrialSkippedError: MNIST is not under ANYBATCH_DATA.
    """
    task = _task()
    if key == "prediction":
        return foretell(task, at_lr(recipe(128), _COMMON_LR, 0))
    if key == "precision":
        return _precisions(task, folder)
    return _at_batch_size(task, int(key.removeprefix("batch-")), folder)


def _task() -> Task:
    try:
        return load_task("mnist")
    except InputError as error:
        raise TrialSkippedError(str(error)) from None


def recipe(batch_size: int, precision: Literal["bf16", "fp32"] = "bf16") -> Recipe:
    """How a training of this benchmark goes, but for its lr, seed and length.

    Args:
        batch_size: of an update; more than 128 are gathered in parts of 128, which is faster.
        precision: "bf16" or "fp32".
    """
    return Recipe(
        optimizer=SGDSettings(lr=0.01, momentum=0.9, nesterov=True),
        model=ModelSettings(name="simple-cnn-lee"),
        batch_size=batch_size,
        micro_batch_size=min(batch_size, 128),
        duration=updates(1),
        compute=ComputeSettings(
            threads=1, precision=precision, channels_last=True, evaluation_batch_size=250
        ),
    )


def _at_batch_size(task: Task, batch_size: int, folder: Path) -> dict[str, Any]:
    own = recipe(batch_size)
    cap = max(_CAP_UPDATES, _CAP_EXAMPLES // batch_size)
    centre = round_to_power(0.03 * batch_size / (96 + batch_size))
    seeds = 1 if batch_size >= _SINGLE_SEED_TUNING_FROM else 2
    exponent, tuning = tuned_exponent(folder, task, own, _GOAL, cap=cap, centre=centre, seeds=seeds)
    lr = 2.0**exponent
    runs = [
        stored_reach(
            folder / f"final_{exponent}_{seed}.json", task, at_lr(own, lr, seed), _GOAL, cap=cap
        )
        for seed in _SEEDS
    ]
    return {"batch_size": batch_size, "lr": lr, "tuning": tuning, "runs": runs}


def _precisions(task: Task, folder: Path) -> dict[str, Any]:
    """The same trainings in bfloat16 and in float32."""
    told: dict[str, Any] = {"batch_size": 128, "lr": _PRECISION_LR}
    precisions: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    for precision in precisions:
        told[precision] = [
            stored_reach(
                folder / f"{precision}_{seed}.json",
                task,
                at_lr(recipe(128, precision), _PRECISION_LR, seed),
                _GOAL,
                cap=2000,
            )
            for seed in _SEEDS
        ]
    return told


def round_to_power(value: float) -> int:
    """The whole power of 2 nearest to a value.

    Args:
        value: > 0.

    Example:
        >>> round_to_power(0.03), round_to_power(0.0023)
        (-5, -9)
    """
    return round(math.log2(value))


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """The critical batch size and whether the prediction held.

    Args:
        results: key -> values of finished trials.
    """
    return critical_verdict(results)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row a batch size, then what the rows say together.

    Args:
        results: key -> values of finished trials.
    """
    return critical_table(results)
