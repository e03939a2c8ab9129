"""Trainings whose loss couples a batch; and what every rank runs of them.

python -m torch.distributed.run --nproc-per-node=N coupled_cases.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import exact_cases as cases
import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.objectives import Metric
from anybatch.recipe import ClipGlobalNorm, ExponentialAverage, LossSettings, Recipe
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

CACHED = LossSettings(coupled="cached-outputs")


def supervised(outputs: Tensor, targets: Tensor) -> Tensor:
    """In-batch softmax: an example against all of the batch; its own class is positive."""
    embeddings = functional.normalize(outputs, dim=1)
    similarity = (embeddings @ embeddings.T).log_softmax(1)
    same = (targets[:, None] == targets).to(outputs.dtype)
    return -(similarity * same).sum() / same.sum()


def margin_softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Large-margin softmax (CosFace) against the classes' mean embeddings in the batch itself."""
    scale, margin = 4.0, 0.2
    embeddings = functional.normalize(outputs, dim=1)
    classes, own = targets.unique(return_inverse=True)
    members = functional.one_hot(own, len(classes)).to(outputs.dtype)
    centres = functional.normalize(members.T @ embeddings, dim=1)
    return functional.cross_entropy(scale * (embeddings @ centres.T - margin * members), own)


class TwoTowers(nn.Module):
    """Two views in; two embeddings, one temperature and whole numbers out, as a nest."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        self.tower = cases.smooth_mlp(normalized)
        self.other = nn.Linear(6, cases.NUM_CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, one: Tensor, other: Tensor) -> dict[str, Any]:
        embeddings = (self.tower(one), self.other(other))
        return {"views": embeddings, "scale": self.scale.exp(), "count": one.sign().long()}


def info_nce(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    """Each view finds its partner among all partners of the batch; weighted by the targets."""
    one, other = (functional.normalize(view, dim=1) for view in outputs["views"])
    logits = outputs["scale"] * one @ other.T
    losses = functional.cross_entropy(logits, torch.arange(len(one)), reduction="none")
    weights = 1.0 + targets.to(losses.dtype) + 0.1 * outputs["count"].to(losses.dtype).sum(1)
    return (weights * losses).mean()


def finds_partner(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    one, other = outputs["views"]
    return ((one @ other.T).argmax(1) == torch.arange(len(one))).to(torch.float32)


RETRIEVAL = Metric(name="retrieval", direction="max", per_example=finds_partner)


def views_of(count: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    inputs, labels = cases.examples_of((6,), count, seed)
    return list(zip(inputs, inputs.roll(1, 1), labels, strict=True))


def coupled_task(name: str, normalized: bool, num_examples: int = 70) -> Task:
    scope: Literal["batch"] = "batch"
    if name == "two-views":
        return Task(
            build_model=lambda: TwoTowers(normalized),
            train=views_of(num_examples, seed=1),
            validation=views_of(33, seed=2),
            loss=info_nce,
            metric=RETRIEVAL,
            loss_scope=scope,
        )
    loss = margin_softmax if name == "margin" else supervised
    network = "cnn" if name == "margin" else "mlp"
    task = cases.make_task(network, normalized, num_examples)
    return replace(task, loss=loss, loss_scope=scope)


def coupled_recipe(ghost: int | None, **changes: Any) -> Recipe:
    return cases.make_recipe("sgd", ghost, **{"duration": updates(12), "loss": CACHED} | changes)


def train(name: str, recipe: Recipe, world: World) -> cases.Result:
    task = coupled_task(name, recipe.ghost_batch_size is not None)
    training = Training(task, recipe, world=world)
    return cases.plain(training, list(training))


def coupled_cases() -> dict[str, tuple[str, Recipe]]:
    """By name: the task's and the undivided training."""
    found = {}
    for name in ("supervised", "margin", "two-views"):
        for ghost in (None, 4):
            found[f"{name}-{'ghosts' if ghost else 'plain'}"] = name, coupled_recipe(ghost)
    found["everything"] = (
        "supervised",
        coupled_recipe(
            4,
            loss=LossSettings(coupled="cached-outputs", reduction="sum"),
            gradient=(ClipGlobalNorm(max_norm=3.0),),
            averaging=ExponentialAverage(decay=0.9, every=2),
        ),
    )
    found["uneven"] = "two-views", coupled_recipe(4, batch_size=5)
    found["few"] = "two-views", coupled_recipe(4, batch_size=4)  # one rank without examples
    return found


def jobs() -> dict[str, Callable[[World], cases.Result]]:
    found: dict[str, Callable[[World], cases.Result]] = {}
    for name, (task, recipe) in coupled_cases().items():
        found[name] = partial(train, task, recipe)
        found[f"{name}-micro"] = partial(train, task, replace(recipe, micro_batch_size=4))
    return found


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs().items():
        torch.save(job(world), folder / f"{name}-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    cases.leave()
