"""What every rank runs: trainings with blocks and full batches, each result into a file.

python -m torch.distributed.run --nproc-per-node=N blocks_on_ranks.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import exact_cases as cases
import torch
from torch import nn

from anybatch.data.augmentation import Normalization
from anybatch.data.resident import ResidentSource
from anybatch.recipe import (
    Augmentation,
    BlockSettings,
    GradientPenalty,
    LossSettings,
    Recipe,
    SharpnessAware,
)
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

EXACT = GradientPenalty(method="exact", coefficient=0.3)


def jobs() -> dict[str, Callable[[World], cases.Result]]:
    """Trainings by name; the same names in every world size, so that they can be compared."""
    short = {"duration": updates(12)}
    clipped = BlockSettings(size=5, penalty=EXACT, clip_norm=0.4, accumulate="fp64")
    recipes: dict[str, tuple[str, Recipe]] = {
        "plain": ("mlp", cases.make_recipe("adamw", None, blocks=BlockSettings(size=5), **short)),
        "clipped": ("mlp", cases.make_recipe("sgd", None, blocks=clipped, **short)),
        "ghosts": (
            "cnn",
            cases.make_recipe("sgd", 4, blocks=BlockSettings(size=8, penalty=EXACT), **short),
        ),
        "sam-and-sum": (
            "cnn",
            cases.make_recipe(
                "sgd",
                None,
                blocks=BlockSettings(size=3, penalty=SharpnessAware()),
                loss=LossSettings(reduction="sum"),
                **short,
            ),
        ),
        "one-block": (  # the second rank has no example
            "mlp",
            cases.make_recipe(
                "sgd", None, batch_size=8, blocks=BlockSettings(size=8, penalty=EXACT), **short
            ),
        ),
        "unused-head": (
            "unused-head",
            cases.make_recipe("sgd", None, batch_size=3, blocks=BlockSettings(size=4), **short),
        ),
        "full": (
            "cnn",
            cases.make_recipe(
                "sgd",
                4,
                batch_size="full",
                micro_batch_size=8,
                blocks=BlockSettings(size=16, penalty=EXACT),
                **short,
            ),
        ),
        "full-without-blocks": (
            "cnn",
            cases.make_recipe("sgd", 4, batch_size="full", micro_batch_size=12, **short),
        ),
    }
    found = {name: partial(cases.train, *recipe) for name, recipe in recipes.items()}
    network, recipe = recipes["ghosts"]
    found["ghosts-micro-4"] = partial(cases.train, network, replace(recipe, micro_batch_size=4))
    network, recipe = recipes["full"]
    found["full-micro-4"] = partial(cases.train, network, replace(recipe, micro_batch_size=4))
    return found | {"copies": on_copies, "block-is-ghost": block_is_ghost}


def block_is_ghost(world: World) -> cases.Result:
    """BatchNorm without a ghost size: shares of the ranks are whole blocks."""
    task = cases.make_task("cnn", normalized=True)
    blocks = BlockSettings(size=8, penalty=EXACT)
    recipe = cases.make_recipe("sgd", None, blocks=blocks, duration=updates(12))
    training = Training(task, recipe, world=world)
    return cases.plain(training, list(training))


def on_copies(world: World) -> cases.Result:
    """Full batches of three fixed augmented copies, divided where no copy ends."""
    pixels = torch.randint(0, 256, (23, 6, 6, 1), generator=torch.Generator().manual_seed(0))
    source = ResidentSource.from_arrays(
        pixels.to(torch.uint8),
        torch.arange(23) % 3,
        normalization=Normalization(mean=(0.5,), std=(0.3,)),
    )
    task = Task(
        build_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 3)),
        train=source,
        validation=source,
    )
    recipe = cases.make_recipe(
        "sgd",
        None,
        batch_size="full",
        micro_batch_size=7,
        augmentation=Augmentation(crop_padding=1, flip="random", copies=3),
        duration=updates(5),
    )
    training = Training(task, recipe, world=world)
    return cases.plain(training, list(training))


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs().items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    cases.leave()
