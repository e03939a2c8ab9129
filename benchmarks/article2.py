"""Article 2: six batch sizes from 1 to all of MNIST at one lr, its figures and its table again.

The article trains with lr 0.02 and momentum 0.5, and shows the time of an epoch, the losses of the
first 1,000 updates, and the updates and seconds to an accuracy of 98 %. Its pictures are not kept
with the text that is left of it, nor does that name the network: LeNet-5 stands in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from benchmarks.article2_step_times import step_times
from benchmarks.article2_tables import BATCH_SIZES, article_table, verdict_of
from benchmarks.critical_batch_reach import Goal, at_lr, stored_reach, tuned_exponent
from benchmarks.harness import TrialSkippedError

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "article2"
TITLE = "Article 2: one lr for batch sizes 1 to 60,000"
QUESTION = (
    "With lr 0.02 and momentum 0.5 throughout, how many updates and seconds does MNIST need to "
    "98 % test accuracy at batch sizes 1, 6, 60, 600, 6,000 and 60,000, and does batch size 1 "
    "blow up?"
)
PREDICTION = (
    "6 to 60 takes the least time with loading, as the article says; batch size 1 does not reach "
    "98 % with every seed; 60,000 does not within its cap"
)

_LR, _MOMENTUM, _ERROR = 0.02, 0.5, 0.02
_SEEDS = (0, 1, 2)
_UNLUCKY_SEEDS = (0, 1, 2, 3, 4)
_OTHER_NETWORKS = ("simple-cnn-lee", "mlp")
_CAPS = {1: 120_000, 6: 50_000, 60: 12_000, 600: 6_000, 6_000: 6_000, 60_000: 100}
_TUNING_CAPS = {1: 160_000, 6: 40_000, 60: 6_000, 600: 3_000, 6_000: 1_200}
_CENTRES = {1: -9, 6: -7, 60: -4, 600: -3, 6_000: -2}
_FEW_SEEDS = {6_000: (0,), 60_000: (0,)}
_KEPT_LOSSES = 1000


def trials() -> list[str]:
    """The article's lr, further networks at batch size 1, the best lr, dear ones, step times."""
    quick = [size for size in BATCH_SIZES if size <= 600]
    return [
        *(f"fixed-{size}-{seed}" for size in quick for seed in _SEEDS),
        *(f"fixed-1-{seed}" for seed in _UNLUCKY_SEEDS if seed not in _SEEDS),
        "fixed-60000-0",
        *(f"tuned-{size}" for size in quick),
        "fixed-6000-0",
        *(f"alone-{net}-{seed}" for net in _OTHER_NETWORKS for seed in _SEEDS),
        "tuned-6000",
        "step-times",
    ]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Train at the article's lr or at the best one, or take the times of a step.

    Args:
        key: one of `trials`.
        folder: keeps each finished training.

    Raises:
        TrialSkippedError: MNIST is not under ANYBATCH_DATA.
    """
    task = article_task()
    kind, _, rest = key.partition("-")
    if kind == "step":
        return step_times(task, {size: recipe(size) for size in BATCH_SIZES})
    if kind == "tuned":
        return _tuned(task, int(rest), folder)
    which, _, seed = rest.rpartition("-")
    if kind == "alone":  # at batch size 1, one epoch of a network
        own = recipe(1, which)
        cap = 60_000
    else:
        own = recipe(int(which))
        cap = _CAPS[int(which)]
    goal = Goal(
        error=_ERROR if kind == "fixed" else 0.0,
        split="test",
        first_examples=2000,
        first_updates=10,
        kept_losses=_KEPT_LOSSES,
        goes_on=which == "1",  # a blow-up may come later
    )
    told = stored_reach(folder / "run.json", task, at_lr(own, _LR, int(seed)), goal, cap=cap)
    return told | {"batch_size": own.batch_size, "cap": cap}


def article_task() -> Task:
    """MNIST as the article has it: all 60,000 examples to train with, judged on test.

    The split "validation" is the test split again, and nothing is chosen by it.

    Raises:
        TrialSkippedError: MNIST is not under ANYBATCH_DATA.
    """
    try:
        divided = load_task("mnist")
    except InputError as error:
        raise TrialSkippedError(str(error)) from None
    test = divided.source("test")
    return Task(
        build_model=divided.build_model,
        train=divided.train,
        validation=test,
        test=test,
        shape=divided.shape,
        name="mnist",
    )


def recipe(batch_size: int, network: str = "lenet") -> Recipe:
    """How a training of this benchmark goes, but for its lr, seed and length.

    Args:
        batch_size: of an update; more than 600 are gathered in parts of 500.
        network: one of the package's.
    """
    return Recipe(
        optimizer=SGDSettings(lr=_LR, momentum=_MOMENTUM),
        model=ModelSettings(name=network),
        batch_size=batch_size,
        micro_batch_size=None if batch_size <= 600 else 500,
        duration=updates(1),
        compute=ComputeSettings(threads=1, channels_last=True, evaluation_batch_size=250),
    )


def _tuned(task: Task, batch_size: int, folder: Path) -> dict[str, Any]:
    """The best lr by 6,000 examples held out of training, then the article's protocol with it."""
    own, cap = recipe(batch_size), _TUNING_CAPS[batch_size]
    choosing = Goal(error=_ERROR, watched=2000, margin=0.03, first_examples=2000, first_updates=10)
    exponent, tuning = tuned_exponent(
        folder, load_task("mnist"), own, choosing, cap=cap, centre=_CENTRES[batch_size], seeds=1
    )
    judged = Goal(error=_ERROR, split="test", first_examples=2000, first_updates=10)
    runs = [
        stored_reach(
            folder / f"final_{exponent}_{seed}.json",
            task,
            at_lr(own, 2.0**exponent, seed),
            judged,
            cap=2 * cap,
        )
        for seed in _SEEDS
    ]
    return {"batch_size": batch_size, "lr": 2.0**exponent, "tuning": tuning, "runs": runs}


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Which batch size is quickest, and what became of the largest and the smallest.

    Args:
        results: key -> values of finished trials.
    """
    return verdict_of(results)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The article's table, with its lr and with the best one.

    Args:
        results: key -> values of finished trials.
    """
    return article_table(results)
