"""Seconds of an update in this process, or these processes, beside what the model foretells.

    python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.scaling_processes CASE FILE

With one process also the two measurements that `anybatch predict-scaling` takes. One thread each.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anybatch.measuring.all_reduce import measure_all_reduce
from anybatch.measuring.stage_times import StageTimesSettings, measure_stage_times
from anybatch.measuring.throughput import ThroughputSettings, measure_throughput
from anybatch.models.mlp import MLP
from anybatch.models.resnet_small import ResNet8
from anybatch.recipe import (
    ComputeSettings,
    FixedRefresh,
    KFACSettings,
    LARSSettings,
    LocalUpdates,
    Recipe,
    SGDSettings,
    Stopping,
)
from anybatch.run import write_json
from anybatch.schedules import epochs, updates
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

__all__ = ["CASES", "LOCAL_EVERY", "PER_RANK", "arms", "main"]

LOCAL_EVERY = 4
PER_RANK = 32
CASES = ("network", "resnet8")
_ROUNDS, _UPDATES = 15, 8  # a multiple of the refresh and of the averaging
_EXAMPLES = 1024
_LR = 1e-3


def task_of(case: str) -> Task:
    """Random images and labels with a fully connected network of 0.7 M weights, or a ResNet-8."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_EXAMPLES) % 10
    if case == "network":
        inputs = torch.randn(_EXAMPLES, 784, generator=generator)
        return Task(build_model=_network, train=(inputs, labels), validation=(inputs, labels))
    images = torch.randn(_EXAMPLES, 3, 32, 32, generator=generator)
    return Task(build_model=ResNet8, train=(images, labels), validation=(images, labels))


def _network() -> nn.Module:
    return MLP((784,), 10, hidden=(512, 512))


def arms(batch_size: int) -> dict[str, Recipe]:
    """The recipes, by method.

    Args:
        batch_size: global.
    """
    plain = Recipe(
        optimizer=SGDSettings(lr=_LR, momentum=0.9),
        batch_size=batch_size,
        ghost_batch_size=PER_RANK,
        duration=updates(1_000_000),
        stopping=Stopping(evaluate_every=epochs(1_000_000)),
        compute=ComputeSettings(device="cpu", threads=1),
    )
    refresh = FixedRefresh(statistics_every=2, inverse_every=4)
    return {
        "sgd": plain,
        "lars": dataclasses.replace(plain, optimizer=LARSSettings(lr=_LR)),
        "local-sgd": dataclasses.replace(plain, communication=LocalUpdates(every=LOCAL_EVERY)),
        "kfac": dataclasses.replace(plain, preconditioner=KFACSettings(refresh=refresh)),
    }


def _seconds(task: Task, recipes: dict[str, Recipe], world: World) -> dict[str, list[float]]:
    """Seconds of an update of each arm in each round; arms take turns."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    trainings = {name: Training(task, recipe, world=world) for name, recipe in recipes.items()}
    for number in range(_ROUNDS + 1):
        for name, training in trainings.items():
            world.barrier()
            started = time.perf_counter()
            for _ in range(_UPDATES):
                training.step()
            world.barrier()
            if number:  # the first round warms up
                found[name].append((time.perf_counter() - started) / _UPDATES)
    for training in trainings.values():
        training.__exit__(None, None, None)
    return found


def main(case: str, file: Path) -> None:
    """Measure, and write plain values into a file from rank 0.

    Args:
        case: of `CASES`.
        file: to write.
    """
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    task = task_of(case)
    recipes = arms(PER_RANK * world.size)
    seconds = _seconds(task, recipes, world)
    weights = sum(p.numel() * p.element_size() for p in task.new_model(None).parameters())
    values: dict[str, Any] = {
        "ranks": world.size,
        "seconds": seconds,
        "median": {name: statistics.median(found) for name, found in seconds.items()},
        "all_reduce": measure_all_reduce(world, weights),
        "load_average": os.getloadavg()[0],
    }
    if world.size == 1:
        recipe = recipes["kfac"]
        throughput = measure_throughput(
            task,
            recipes["sgd"],
            settings=ThroughputSettings(seconds=8.0, max_micro_batch_size=2 * PER_RANK),
        )
        stages = measure_stage_times(
            task, recipe, settings=StageTimesSettings(seconds=8.0, max_examples=PER_RANK)
        )
        values |= {"throughput": throughput.to_dict(), "stage_times": stages.to_dict()}
    if world.is_first:
        write_json(file, values)
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo may still let go of a tensor
