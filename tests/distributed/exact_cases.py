"""Small smooth trainings whose result must not depend on how their batches are divided.

Shared by the tests of accumulation (one process) and of ranks, and by the script that torchrun
starts. Everything is float64 and smooth (tanh, GELU, averages), so rounding is not amplified.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from anybatch.recipe import (
    AdamWSettings,
    AdditiveNoise,
    Augmentation,
    ClipGlobalNorm,
    ComputeSettings,
    ExponentialAverage,
    LossSettings,
    Mixup,
    Recipe,
    RecordSettings,
    ReduceOnPlateauSettings,
    RunningMixup,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.records import TIME_FIELDS
from anybatch.schedules import Linear, OneCycle, epochs, examples, updates
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

Result = dict[str, Any]

NUM_CLASSES = 3
OPTIMIZERS = {
    "sgd": SGDSettings(lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": AdamWSettings(lr=3e-3, weight_decay=0.01),
}
COMPUTE = ComputeSettings(device="cpu", precision="fp64", evaluation_batch_size=8)


def leave() -> NoReturn:
    """End a rank whose work is done, without the interpreter's own end (see `cli.script`).

    A thread of gloo that still lets go of a tensor while Python ends aborts the process; on a busy
    machine it happens now and then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def smooth_mlp(normalized: bool) -> nn.Module:
    def norm(width: int) -> list[nn.Module]:
        return [nn.BatchNorm1d(width)] if normalized else []

    # No bias before BatchNorm: its gradient is zero but for rounding, which Adam would amplify.
    return nn.Sequential(
        nn.Linear(6, 16, bias=not normalized), *norm(16), nn.Tanh(),
        nn.Linear(16, 12, bias=not normalized), *norm(12), nn.GELU(),
        nn.Linear(12, NUM_CLASSES),
    )  # fmt: skip


def smooth_cnn(normalized: bool) -> nn.Module:
    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if normalized else []

    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=not normalized), *norm(4), nn.GELU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=not normalized), *norm(6), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, NUM_CLASSES),
    )  # fmt: skip


class WithUnusedHead(nn.Module):
    """A layer that no example passes through: it must stay as it was, also on several ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.network = smooth_mlp(False)
        self.head = nn.Linear(6, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(inputs)
        return outputs


NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "mlp": (smooth_mlp, (6,)),
    "cnn": (smooth_cnn, (1, 6, 6)),
    "unused-head": (lambda _: WithUnusedHead(), (6,)),
}


def examples_of(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    scores = inputs.flatten(1)[:, :NUM_CLASSES] + 0.3 * inputs.flatten(1)[:, -NUM_CLASSES:] ** 2
    return inputs, scores.argmax(1)


def make_task(network: str, normalized: bool, num_examples: int = 70) -> Task:
    """70 examples in batches of 16 leave a last batch of 6; 33 in batches of 8 to validate."""
    build, shape = NETWORKS[network]
    return Task(
        build_model=lambda: build(normalized),
        train=examples_of(shape, num_examples, seed=1),
        validation=examples_of(shape, 33, seed=2),
        name=network,
    )


def make_recipe(rule: str, ghost: int | None, **changes: Any) -> Recipe:
    recipe = Recipe(
        optimizer=OPTIMIZERS[rule],
        duration=updates(50),
        batch_size=16,
        ghost_batch_size=ghost,
        seed=3,
        stopping=Stopping(evaluate_every=epochs(3)),
        compute=COMPUTE,
        records=RecordSettings(log_every=7),
    )
    return replace(recipe, **changes)


def plain(training: Training, records: Any) -> Result:
    """What a training has come to, as plain values and float64 tensors."""
    every = [dataclasses.asdict(record) for record in records]
    flat = [record | record.get("values", {}) | {"values": None} for record in every]
    kept = [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in flat]
    module = training.model
    average = training.kept_model
    return {
        "weights": {k: v.detach().double().clone() for k, v in module.named_parameters()},
        "statistics": {
            k: v.double().clone() for k, v in module.state_dict().items() if "running" in k
        },
        "tracked": [int(v) for k, v in module.state_dict().items() if "tracked" in k],
        "average": {k: v.detach().double().clone() for k, v in average.named_parameters()},
        "records": kept,
    }


def train(network: str, recipe: Recipe, world: World, num_examples: int = 70) -> Result:
    task = make_task(network, recipe.ghost_batch_size is not None, num_examples)
    training = Training(task, recipe, world=world)
    return plain(training, list(training))


def relative_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |one| over all tensors together; 0 where there are none."""
    assert one.keys() == other.keys()
    if not one:
        return 0.0
    left, right = (torch.cat([v.flatten() for v in side.values()]) for side in (one, other))
    return float((left - right).norm() / left.norm())


def assert_same(result: Result, expected: Result, tolerance: float = 1e-12) -> None:
    """Weights, running statistics, averaged weights and every number of every record."""
    for part in ("weights", "statistics", "average"):
        assert relative_difference(result[part], expected[part]) <= tolerance, part
    assert result["tracked"] == expected["tracked"]
    assert len(result["records"]) == len(expected["records"])
    for record, other in zip(result["records"], expected["records"], strict=True):
        assert record.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, float):
                assert abs(record[key] - value) <= tolerance * abs(value), (key, record, other)
            else:
                assert record[key] == value, (key, record, other)


# --- cases: a name, the undivided training, and how each rank divides its share of it ----------


def base_cases() -> Iterator[tuple[str, str, Recipe]]:
    """Both networks x both optimizers x with and without BatchNorm (ghosts of 4)."""
    for network in ("mlp", "cnn"):
        for optimizer in OPTIMIZERS:
            for ghost in (None, 4):
                name = f"{network}-{optimizer}-{'ghosts' if ghost else 'plain'}"
                yield name, network, make_recipe(optimizer, ghost)


def mixed_cases() -> Iterator[tuple[str, str, Recipe]]:
    """Mixup within ghosts, running mixup by places; noise on the gradient, and clipping."""
    for name, network, ghost, mixing in (
        ("mixup-ghosts", "cnn", 4, Mixup(alpha=1.0)),
        ("running-mixup-ghosts", "cnn", 4, RunningMixup()),
        ("running-mixup-plain", "mlp", None, RunningMixup()),
    ):
        yield name, network, make_recipe(
            "sgd", ghost,
            augmentation=Augmentation(mixing=mixing),
            gradient=(AdditiveNoise(std=0.01), ClipGlobalNorm(max_norm=0.5)),
            loss=LossSettings(label_smoothing=0.1),
        )  # fmt: skip


def everything() -> Recipe:
    """Clipping, averaging, smoothing, a growing batch, one cycle, summed losses, plateau."""
    return make_recipe(
        "sgd",
        4,
        optimizer=SGDSettings(lr=0.004, momentum=0.9, nesterov=True, weight_decay=0.01),
        duration=epochs(9),
        schedules=Schedules(lr=OneCycle(), batch_size=Linear(start=0.5, end=2.0)),
        gradient=(ClipGlobalNorm(max_norm=3.0),),
        loss=LossSettings(reduction="sum", label_smoothing=0.1),
        averaging=ExponentialAverage(decay=0.9, every=2),
        plateau=ReduceOnPlateauSettings(patience=0, threshold=0.9, factor=0.5),
    )


def few_examples_cases() -> Iterator[tuple[str, str, Recipe]]:
    """Batches of 3: on 4 ranks, and under ghosts of 2 and 4, some rank has no example."""
    short = {"batch_size": 3, "duration": updates(12)}
    for name, network, ghost in (
        ("three-plain-mlp", "mlp", None),
        ("three-plain-cnn", "cnn", None),
        ("three-unused-head", "unused-head", None),
        ("three-ghosts-of-1", "cnn", 1),  # statistics over one example's pixels
        ("three-ghosts-of-2", "mlp", 2),  # the second ghost has one value per channel
        ("three-ghosts-of-4", "cnn", 4),  # one ghost: one rank has all of it
    ):
        yield name, network, make_recipe("sgd", ghost, **short)


def interrupted(world: World, from_world: World | None = None) -> Result:
    """Stops in the middle of an epoch and of a log window, is saved, and goes on elsewhere.

    Args:
        world: that the second session runs on.
        from_world: that the first session runs on; None: the same.
    """
    recipe = make_recipe("adamw", 4, averaging=ExponentialAverage(decay=0.9))
    task = make_task("cnn", normalized=True)
    first = Training(task, recipe, world=from_world or world)
    for _ in range(3):
        first.step()
    second = Training(task, recipe, world=world)
    second.load_state_dict(first.state_dict())
    return plain(second, list(second))


def uninterrupted(world: World) -> Result:
    return train("cnn", make_recipe("adamw", 4, averaging=ExponentialAverage(decay=0.9)), world)


def one_example_validation(world: World) -> Result:
    """Fewer batches to evaluate than ranks: one rank adds nothing."""
    _, shape = NETWORKS["mlp"]
    task = Task(
        build_model=lambda: smooth_mlp(False),
        train=examples_of(shape, 40, seed=1),
        validation=examples_of(shape, 5, seed=2),
        test=examples_of(shape, 9, seed=4),
    )
    recipe = make_recipe("sgd", None, duration=examples(40))
    training = Training(task, recipe, world=world)
    return plain(training, list(training))
