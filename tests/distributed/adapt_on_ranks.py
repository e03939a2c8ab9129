"""What every rank runs: trainings whose batch size moves, each result into a file.

python -m torch.distributed.run --nproc-per-node=N adapt_on_ranks.py FOLDER
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import exact_cases as cases
import torch

from anybatch.recipe import (
    AdaptiveBatchSize,
    ClipGlobalNorm,
    ExponentialAverage,
    LossSettings,
    Recipe,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
)
from anybatch.schedules import MultiStep, OneCycle, epochs, examples
from anybatch.training.training import Training
from anybatch.world import World

NUM_EXAMPLES = 2000  # batches of 16, 32, ... leave ends that two ranks share evenly
CONTROL = AdaptiveBatchSize(every=examples(400))
STAGES = Schedules(batch_size=MultiStep(milestones=(epochs(2), epochs(4)), factor=2.5))


def adaptive(ghost: int | None, **changes: Any) -> Recipe:
    settings = {"duration": epochs(2), "batch_control": CONTROL} | changes
    return cases.make_recipe("sgd", ghost, **settings)


def stepped(ghost: int | None, **changes: Any) -> Recipe:
    settings = {"duration": epochs(6), "schedules": STAGES, "batch_size": 8} | changes
    return cases.make_recipe("adamw", ghost, **settings)


def everything() -> Recipe:
    """Clipping, averaging, one cycle, summed losses, plateau."""
    return adaptive(
        4,
        optimizer=SGDSettings(lr=0.004, momentum=0.9, nesterov=True, weight_decay=0.01),
        schedules=Schedules(lr=OneCycle()),
        gradient=(ClipGlobalNorm(max_norm=3.0),),
        loss=LossSettings(reduction="sum", label_smoothing=0.1),
        averaging=ExponentialAverage(decay=0.9, every=2),
        plateau=ReduceOnPlateauSettings(patience=0, threshold=0.9, factor=0.5),
    )


def train(network: str, recipe: Recipe, world: World, num_examples: int = 70) -> cases.Result:
    return with_words(cases.train(network, recipe, world, num_examples))


def with_words(result: cases.Result) -> cases.Result:
    """What is no finite number as text, so that nan equals nan."""
    for record in result["records"]:
        for key, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[key] = str(value)
    return result


def interrupted(world: World, from_world: World | None = None) -> cases.Result:
    """Saved between two looks, when observed updates are pending, and loaded elsewhere."""
    recipe, normalized = adaptive(4), True
    first = Training(cases.make_task("cnn", normalized, NUM_EXAMPLES), recipe,
                     world=from_world or world)  # fmt: skip
    first.one_step.train_mode()
    for _ in range(60):
        first.step()
    state = copy.deepcopy(first.state_dict())
    second = Training(cases.make_task("cnn", normalized, NUM_EXAMPLES), recipe, world=world)
    second.load_state_dict(state)
    return with_words(cases.plain(second, list(second)))


def jobs() -> dict[str, Callable[[World], cases.Result]]:
    """Trainings by name; the same names in every world size, so that they can be compared."""
    adapted = partial(train, num_examples=NUM_EXAMPLES)
    return {
        "halves": partial(adapted, "mlp", adaptive(None)),
        "micro-4": partial(adapted, "mlp", adaptive(None, micro_batch_size=4)),
        "ghosts": partial(adapted, "cnn", adaptive(4)),
        "everything": partial(adapted, "cnn", everything()),
        "stepped": partial(train, "mlp", stepped(None)),
        "stepped-micro-3": partial(train, "mlp", stepped(None, micro_batch_size=3)),
        "stepped-ghosts": partial(train, "cnn", stepped(4)),
        "stepped-ghosts-micro-4": partial(train, "cnn", stepped(4, micro_batch_size=4)),
        "interrupted": interrupted,
    }


def begun_together(world: World) -> cases.Result:
    """Every rank takes part in the first session; each then goes on alone."""
    return interrupted(World(world.device), from_world=world)


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in (jobs() | {"begun-together": begun_together}).items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    cases.leave()
