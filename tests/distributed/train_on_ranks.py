"""What every rank runs: the cases of a group, one after the other, each result into a file.

python -m torch.distributed.run --nproc-per-node=N train_on_ranks.py GROUP FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import exact_cases as cases
import torch

from anybatch.world import World

MICRO_BATCH_SIZES = {None: (1, 3), 4: (4,)}


def jobs(group: str) -> dict[str, Callable[[World], cases.Result]]:
    """Trainings by name; the same names in every world size, so that they can be compared."""
    found: dict[str, Callable[[World], cases.Result]] = {}
    for name, network, recipe in cases.few_examples_cases():
        found[name] = partial(cases.train, network, recipe)
        micro = replace(recipe, micro_batch_size=recipe.ghost_batch_size or 1)
        found[f"{name}-micro"] = partial(cases.train, network, micro)
    if group == "few":
        return found
    for name, network, recipe in (*cases.base_cases(), *cases.mixed_cases()):
        found[name] = partial(cases.train, network, recipe)
        for size in MICRO_BATCH_SIZES[recipe.ghost_batch_size]:
            micro = replace(recipe, micro_batch_size=size)
            found[f"{name}-micro-{size}"] = partial(cases.train, network, micro)
    found["everything"] = partial(cases.train, "cnn", cases.everything())
    micro = replace(cases.everything(), micro_batch_size=4)
    found["everything-micro-4"] = partial(cases.train, "cnn", micro)
    found["evaluation"] = cases.one_example_validation
    found["uninterrupted"] = cases.uninterrupted
    found["interrupted"] = cases.interrupted
    found["begun-on-one-rank"] = begun_on_one_rank
    return found


def begun_on_one_rank(world: World) -> cases.Result:
    return cases.interrupted(world, from_world=World(world.device))


def ended_on_one_rank(world: World) -> cases.Result:
    """Every rank takes part in the first session; each then goes on alone, to the same result."""
    return cases.interrupted(World(world.device), from_world=world)


def main(group: str, folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs(group).items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    if group == "all":
        torch.save(ended_on_one_rank(world), folder / f"ended-on-one-rank-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    cases.leave()
