"""What every rank runs for the tests of local updates and of BatchNorm's rules.

python -m torch.distributed.run --nproc-per-node=N local_cases.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import exact_cases as cases
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from anybatch.errors import InputError
from anybatch.recipe import (
    AdamWSettings,
    BatchNormSettings,
    ClipGlobalNorm,
    ExponentialAverage,
    LocalUpdates,
    LossSettings,
    Recipe,
    SGDSettings,
    Stopping,
)
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.training.local_updates import averaged_tensors
from anybatch.training.loop import create_run, resume, train_to_end
from anybatch.training.outcome import Outcome
from anybatch.training.training import Training
from anybatch.world import World

PLAIN = SGDSettings(lr=0.05, momentum=0.0, weight_decay=1e-3)
MOMENTUM = SGDSettings(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
WARMUP_UPDATES = 3


def recipe_of(optimizer: Any, ghost: int | None = None, **changes: Any) -> Recipe:
    own = {"optimizer": optimizer, "duration": updates(13)} | changes
    return cases.make_recipe("sgd", ghost, **own)


def synchronous() -> dict[str, tuple[str, Recipe]]:
    """Trainings that local updates with an averaging after each must equal, by name."""
    short = {"batch_size": 1, "duration": updates(5)}  # one rank never has an example
    return {
        "plain": ("mlp", recipe_of(PLAIN)),
        "sum": ("mlp", recipe_of(replace(PLAIN, lr=0.004), loss=LossSettings(reduction="sum"))),
        "micro": ("cnn", recipe_of(PLAIN, micro_batch_size=3)),
        "average": ("mlp", recipe_of(PLAIN, averaging=ExponentialAverage(decay=0.8))),
        "uneven": ("mlp", recipe_of(PLAIN, batch_size=5)),
        "one-example": ("mlp", recipe_of(PLAIN, **short)),
        "unused-head": ("unused-head", recipe_of(PLAIN)),
        "momentum": ("mlp", recipe_of(MOMENTUM)),
    }


def after_each(name: str, recipe: Recipe) -> Recipe:
    state = "averaged" if name == "momentum" else "own"
    return replace(recipe, communication=LocalUpdates(every=1, state=state))


def local_recipes() -> dict[str, tuple[str, Recipe]]:
    """Trainings of which only the ranks' agreement is known, by name."""
    clipped = {"gradient": (ClipGlobalNorm(max_norm=0.5),)}
    found = {
        "sgd": ("mlp", recipe_of(MOMENTUM, communication=LocalUpdates(every=4), **clipped)),
        "adamw": (
            "cnn",
            recipe_of(
                AdamWSettings(lr=3e-3), 4, averaging=ExponentialAverage(decay=0.9),
                communication=LocalUpdates(every=4, begin_after=updates(4), state="averaged"),
            ),
        ),
        "ghosts": ("cnn", recipe_of(MOMENTUM, 4, communication=LocalUpdates(every=4))),
        "one-ghost": (  # one rank never has an example
            "cnn",
            recipe_of(MOMENTUM, 4, batch_size=4, communication=LocalUpdates(every=4)),
        ),
        "recalibrated": (
            "cnn",
            recipe_of(
                MOMENTUM, 4, communication=LocalUpdates(every=5),
                batch_norm=BatchNormSettings(evaluated_with="whole-set"),
            ),
        ),
    }  # fmt: skip
    ends_between = {"duration": updates(14), "stopping": Stopping(evaluate_every=updates(2))}
    return {name: (net, replace(one, **ends_between)) for name, (net, one) in found.items()}


def rule_recipes() -> dict[str, tuple[str, Recipe]]:
    """BatchNorm's rules in synchronous trainings, which must not depend on the ranks."""
    rules = {
        "last-update": BatchNormSettings(evaluated_with="last-update"),
        "whole-set": BatchNormSettings(evaluated_with="whole-set"),
        "some-examples": BatchNormSettings(evaluated_with="whole-set", recalibration_examples=9),
        "frozen": BatchNormSettings(frozen=True),
    }
    found = {n: ("cnn", recipe_of(MOMENTUM, 4, batch_norm=rule)) for n, rule in rules.items()}
    found["whole-set-average"] = (
        "cnn",
        replace(found["whole-set"][1], averaging=ExponentialAverage(decay=0.8)),
    )
    found["frozen-without-ghosts"] = "cnn", replace(found["frozen"][1], ghost_batch_size=None)
    return found


def task_of(network: str, recipe: Recipe) -> Any:
    normalized = recipe.ghost_batch_size is not None or recipe.batch_norm.frozen
    return cases.make_task(network, normalized)


def train(network: str, recipe: Recipe, world: World) -> cases.Result:
    training = Training(task_of(network, recipe), recipe, world=world)
    result = cases.plain(training, list(training))
    kept = training.kept_model.state_dict()
    result["kept"] = {k: v.double().clone() for k, v in kept.items()}
    return result


# --- torch's averager in a loop by hand ------------------------------------------------------


def by_hand(every: int, warmup: int, world: World) -> list[list[Tensor]]:
    """Weights after each update: the share's mean, torch's SGD, torch's averager after warm-up."""
    task, recipe = cases.make_task("mlp", False), recipe_of(MOMENTUM)
    reader = Training(task, recipe, world=World(world.device))  # for its weights and whole batches
    model = reader.model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    averager = PeriodicModelAverager(every, warmup_steps=warmup)
    found = []
    for number in range(13):
        batch = reader.feed.next().batch
        half = len(batch.indices) // 2
        share = slice(0, half) if world.is_first else slice(half, None)
        optimizer.zero_grad()
        outputs = model(batch.inputs[share].double())
        nn.functional.cross_entropy(outputs, batch.targets[share]).backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters() if number < warmup else ():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size
        optimizer.step()
        averager.average_parameters(model.parameters())
        found.append([p.detach().clone() for p in model.parameters()])
        reader.feed.advance(len(batch.indices))
    return found


def by_recipe(every: int, warmup: int, world: World) -> list[list[Tensor]]:
    settings = LocalUpdates(every=every, begin_after=updates(warmup))
    recipe = recipe_of(MOMENTUM, communication=settings)
    training = Training(cases.make_task("mlp", False), recipe, world=world)
    found = []
    for _ in range(13):
        training.one_step.train_mode()
        training.step()
        found.append([p.detach().clone() for p in training.model.parameters()])
    return found


# --- bytes, states, runs -----------------------------------------------------------------------


def counted_bytes(communication: LocalUpdates | None, world: World) -> dict[str, float]:
    """What all-reduces were given in 12 updates, and the sizes that predict it."""
    recipe = recipe_of(MOMENTUM, 4, communication=communication, batch_size=8)
    training = Training(cases.make_task("cnn", True), recipe, world=world)
    before = world.reduced_bytes
    for _ in range(12):
        training.step()
    averages = communication is not None and communication.state == "averaged"
    tensors = averaged_tensors(training.model, training.optimizer, state=averages)
    counts = [b for n, b in training.model.named_buffers() if n.endswith("num_batches_tracked")]
    return {
        "counted": (world.reduced_bytes - before) / 12,
        "gradients": sum(p.numel() * 8 for p in training.model.parameters()),
        "statistics": sum(
            b.numel() * 8 for n, b in training.model.named_buffers() if n.endswith("pending")
        ),
        "averaged": sum(t.numel() * 8 for t in [*tensors, *counts]),
    }  # fmt: skip


def interrupted(network: str, recipe: Recipe, world: World) -> cases.Result:
    """Saved between two averagings, and gone on with by a new training."""
    first = Training(task_of(network, recipe), recipe, world=world)
    for _ in range(6):
        first.step()
    state = first.state_dict()
    written = world.from_first(state)  # as from the file that rank 0 writes
    second = Training(task_of(network, recipe), recipe, world=world)
    second.load_state_dict(written)
    return cases.plain(second, list(second))


def uninterrupted(network: str, recipe: Recipe, world: World) -> cases.Result:
    training = Training(task_of(network, recipe), recipe, world=world)
    for _ in range(6):
        training.step()
    return cases.plain(training, list(training))


def runs(folder: Path, world: World) -> dict[str, Any]:
    """A run that ends, and one that is interrupted between averagings; resumed alone, and right."""
    network, recipe = local_recipes()["sgd"]
    task = task_of(network, recipe)
    found: dict[str, Any] = {}
    for name in ("whole", "parts"):
        training = Training(task, recipe, world=world)
        run = create_run(training, folder / name)
        if name == "parts":
            for _ in range(6):  # it stops after the 7th, which nothing evaluates
                training.step()
            training.request_stop(Outcome(name="interrupted", reason="test"))
        train_to_end(training, run, progress=False)
        own = [p.detach().clone() for p in training.model.parameters()]
        found[f"{name}-weights"] = own
    try:
        Training(task, recipe, world=World(world.device)).load_state_dict(
            torch.load(next((folder / "parts" / "checkpoints").glob("*.pt")), weights_only=True)
        )
    except InputError as error:
        found["alone"] = str(error)
    found["interrupted"] = torch.load(folder / "parts" / "weights.pt", weights_only=True)
    world.barrier()
    resume(folder / "parts", task=task, progress=False)
    found["status"] = Run(folder / "parts").status.name
    return found


def jobs() -> dict[str, Callable[[World], Any]]:
    found: dict[str, Callable[[World], Any]] = {}
    for name, (network, recipe) in synchronous().items():
        found[f"each-{name}"] = partial(train, network, after_each(name, recipe))
    for name, (network, recipe) in local_recipes().items():
        found[f"local-{name}"] = partial(train, network, recipe)
        found[f"interrupted-{name}"] = partial(interrupted, network, recipe)
        found[f"uninterrupted-{name}"] = partial(uninterrupted, network, recipe)
    for name, (network, recipe) in rule_recipes().items():
        found[f"rule-{name}"] = partial(train, network, recipe)
    for every, warmup in ((4, 0), (4, WARMUP_UPDATES), (2, WARMUP_UPDATES)):
        found[f"hand-{every}-{warmup}"] = partial(by_hand, every, warmup)
        found[f"recipe-{every}-{warmup}"] = partial(by_recipe, every, warmup)
    for name, settings in (
        ("none", None),
        ("4", LocalUpdates(every=4)),
        ("3-averaged", LocalUpdates(every=3, state="averaged")),
    ):
        found[f"bytes-{name}"] = partial(counted_bytes, settings)
    return found


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs().items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    torch.save(runs(folder, world), folder / f"runs-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    cases.leave()
