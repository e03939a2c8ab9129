"""Trainings with K-FAC whose result must not depend on how their batches are divided.

python -m torch.distributed.run --nproc-per-node=N kfac_cases.py FOLDER
python -m torch.distributed.run --nproc-per-node=N kfac_cases.py FOLDER NAME UPDATE
    (the last rank ends without a word after UPDATE updates of the run NAME)
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import exact_cases as cases
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.kfac import KFAC
from anybatch.recipe import (
    AdaptiveRefresh,
    ClipGlobalNorm,
    ComputeSettings,
    FixedRefresh,
    KFACSettings,
    KLBound,
    LossSettings,
    NoBound,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
)
from anybatch.schedules import Linear, updates
from anybatch.task import Task
from anybatch.training.loop import create_run, train_to_end
from anybatch.training.training import Training
from anybatch.world import World

NUM_UPDATES = 20
OFTEN = FixedRefresh(statistics_every=2, inverse_every=4)


def grouped_cnn(normalized: bool) -> nn.Module:
    """Groups, a stride, dilation; a layer norm; a scale that K-FAC does not know."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GELU(),
        nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2), nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False), nn.PReLU(),
        nn.Flatten(), nn.LayerNorm(72), nn.Linear(72, cases.NUM_CLASSES),
    )  # fmt: skip


NETWORKS = {
    "mlp": (cases.smooth_mlp, (6,)),
    "cnn": (cases.smooth_cnn, (1, 6, 6)),
    "grouped": (grouped_cnn, (1, 6, 6)),
}


def make_task(network: str, normalized: bool) -> Task:
    """70 examples in batches of 16 leave a last batch of 6."""
    build, shape = NETWORKS[network]
    return Task(
        build_model=lambda: build(normalized),
        train=cases.examples_of(shape, 70, seed=1),
        validation=cases.examples_of(shape, 33, seed=2),
        name=network,
    )


def recipe_of(
    ghost: int | None = None, kfac: dict[str, Any] | None = None, **changes: Any
) -> Recipe:
    settings = KFACSettings(**({"damping": 0.01, "refresh": OFTEN} | (kfac or {})))
    own = {
        "optimizer": SGDSettings(lr=0.05, momentum=0.9, weight_decay=1e-3),
        "duration": updates(NUM_UPDATES),
        "preconditioner": settings,
    }
    return cases.make_recipe("sgd", ghost, **(own | changes))


def recipes() -> dict[str, tuple[str, Recipe]]:
    """Trainings in float64, by name."""
    each = {"refresh": FixedRefresh(statistics_every=1, inverse_every=1), "average": 0.0}
    adaptive = {"refresh": AdaptiveRefresh(similarity=0.5, longest=6)}
    inverses = {"distribution": "inverses"}
    summed = SGDSettings(lr=0.004, momentum=0.9, weight_decay=0.01)
    clip = ClipGlobalNorm(max_norm=0.2)
    schedules = Schedules(damping=Linear(start=10.0, end=1.0), refresh=Linear(start=1.0, end=3.0))
    by_kl = {"bound": KLBound(largest=1e-3)}
    return {
        "mlp": ("mlp", recipe_of()),
        "cnn-ghosts": ("cnn", recipe_of(4)),
        "grouped": ("grouped", recipe_of()),
        "every-update": ("mlp", recipe_of(kfac=each)),
        "adaptive": ("grouped", recipe_of(kfac=adaptive)),
        "adaptive-inverses": ("mlp", recipe_of(kfac=adaptive | inverses)),
        "inverses": ("grouped", recipe_of(kfac=inverses)),
        "inverses-ghosts": ("cnn", recipe_of(4, kfac=inverses | {"norms": "diagonal"})),
        "eigen": ("mlp", recipe_of(kfac={"solver": "eigen"})),
        "exact-fisher": ("mlp", recipe_of(kfac={"fisher": "exact"})),
        "sum": ("mlp", recipe_of(optimizer=summed, loss=LossSettings(reduction="sum"))),
        "clipped": ("mlp", recipe_of(gradient=(clip,), kfac={"bound": NoBound()})),
        "scheduled": ("mlp", recipe_of(schedules=schedules, kfac=by_kl)),
        "three-examples": ("mlp", recipe_of(batch_size=3)),  # a rank of 4 has none
        "one-ghost": ("cnn", recipe_of(4, batch_size=4)),  # only one rank has examples
        "no-overlap": ("cnn", recipe_of(4, kfac={"overlap": False})),
    }


def single_recipes() -> dict[str, tuple[str, Recipe]]:
    """Trainings in float32, also with statistics in half precision on the wire."""
    compute = ComputeSettings(device="cpu", precision="fp32", evaluation_batch_size=8)
    return {
        f"fp32-{wire}": ("mlp", recipe_of(compute=compute, kfac={"damping": 0.1, "wire": wire}))
        for wire in ("fp32", "bf16", "fp16")
    }


def one_example_recipes() -> dict[str, tuple[str, Recipe]]:
    """A half-precision wire, and a rank that never has an example."""
    few = {"batch_size": 1, "duration": updates(4)}
    return {
        f"one-example-{wire}": ("mlp", recipe_of(kfac={"wire": wire}, **few))
        for wire in ("fp32", "fp16")
    }


def train(network: str, recipe: Recipe, world: World) -> cases.Result:
    task = make_task(network, recipe.ghost_batch_size is not None)
    with Training(task, recipe, world=world) as training:
        result = cases.plain(training, list(training))
        preconditioning = training.one_step.preconditioning
        assert preconditioning is not None
        result["counts"] = preconditioning.kfac.counts()
        result["factors"] = preconditioning.kfac.state_dict()["flow"]["factors"]
    return result


def parts(network: str, recipe: Recipe, world: World) -> cases.Result:
    """Saved in the middle of an interval, and gone on with by a new training."""
    task = make_task(network, recipe.ghost_batch_size is not None)
    with Training(task, recipe, world=world) as first:
        for _ in range(7):
            first.step()
        state = world.from_first(first.state_dict())
    with Training(task, recipe, world=world) as second:
        second.load_state_dict(copy.deepcopy(state))
        result = cases.plain(second, list(second))
    return result | {"state": state}


def whole(network: str, recipe: Recipe, world: World) -> cases.Result:
    """The same without an interruption."""
    task = make_task(network, recipe.ghost_batch_size is not None)
    with Training(task, recipe, world=world) as training:
        for _ in range(7):
            training.step()
        return cases.plain(training, list(training))


def interrupted_recipes() -> dict[str, tuple[str, Recipe]]:
    """Trainings that are saved in the middle of an interval; batches that ranks share unequally."""
    sampled = recipe_of(kfac={"fisher": "sampled"}, batch_size=3)
    chosen = {name: recipes()[name] for name in ("adaptive", "inverses-ghosts")}
    return chosen | {"sampled": ("mlp", sampled)}


class OneRankOnly(nn.Module):
    """A branch that examples of one rank alone pass through."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.body, self.branch, self.rank = nn.Linear(4, 3), nn.Linear(4, 3), rank

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.body(inputs)
        return outputs + self.branch(inputs) if self.rank == 0 else outputs


def silent(world: World) -> list[bool]:
    """A layer that fires on one rank is no error on any; one that fires nowhere is on all."""
    found = []
    for rank in (world.rank, 1):
        torch.manual_seed(0)
        model = OneRankOnly(rank)
        kfac = KFAC(model, world=world)
        model(torch.randn(8, 4)).square().mean().backward()
        for parameter in model.parameters():
            parameter.grad = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
            world.sum_in_place(parameter.grad)
        try:
            kfac.step()
            found.append(True)
        except InputError:
            found.append(False)
        kfac.close()
    return found


def departed(world: World) -> dict[str, Any]:
    """Which statistics have left when a last backward pass ends, in a loop of one's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    kfac = KFAC(model, world=world)
    kfac.begin_update(8 * world.size)
    kfac.begin_last_pass()
    random = torch.Generator().manual_seed(world.rank)
    losses = nn.functional.cross_entropy(
        model(torch.randn(8, 4, generator=random)), torch.arange(8) % 3, reduction="sum"
    )
    (losses / (8 * world.size)).backward()
    departures = kfac._capture.departures
    left = [] if departures is None else sorted(departures.left)
    for parameter in model.parameters():
        assert parameter.grad is not None
        world.sum_in_place(parameter.grad)
    kfac.step()
    return {"left": left, "weights": [p.grad for p in model.parameters()]}


def jobs() -> dict[str, Callable[[World], Any]]:
    found: dict[str, Callable[[World], Any]] = {}
    for name, (network, recipe) in (recipes() | single_recipes() | one_example_recipes()).items():
        found[name] = partial(train, network, recipe)
    found["departed"] = departed
    found["silent"] = silent
    for name, (network, recipe) in interrupted_recipes().items():
        found[f"parts-{name}"] = partial(parts, network, recipe)
        found[f"whole-{name}"] = partial(whole, network, recipe)
    return found


def saved_often(recipe: Recipe) -> Recipe:
    return replace(recipe, records=RecordSettings(log_every=1, checkpoint_every=updates(5)))


def lose_a_rank(folder: Path, name: str, last_update: int) -> None:
    world = World.from_environment("cpu")
    network, recipe = recipes()[name]
    with Training(make_task(network, False), saved_often(recipe), world=world) as training:
        run = create_run(training, folder / "lost")
        step = training.one_step.update

        def dying(position: Any) -> None:
            step(position)
            if training.updates > last_update and world.rank == world.size - 1:
                os._exit(7)

        training.one_step.update = dying  # type: ignore[method-assign]
        train_to_end(training, run, progress=False)


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs().items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        lose_a_rank(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    cases.leave()
