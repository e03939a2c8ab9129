"""What every rank runs: LR range tests, one after the other, each Measurement into a file.

python -m torch.distributed.run --nproc-per-node=N measure_on_ranks.py MODE FOLDER
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import exact_cases as cases
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anybatch.measurement import Measurement
from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

SETTINGS = LRRangeSettings(start_lr=1e-3, end_lr=100.0, num_updates=30, probe_updates=10)
BAD_EXAMPLE = 21


class Rows(torch.utils.data.Dataset[Any]):
    """64 examples, of which one is no number: it lies in one rank's share of its batch alone."""

    def __init__(self) -> None:
        self.inputs, self.labels = cases.examples_of((6,), 64, seed=1)
        self.inputs[BAD_EXAMPLE] = math.nan

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


def learns() -> Measurement:
    recipe = cases.make_recipe("sgd", 4)
    return measure_lr_range(cases.make_task("mlp", normalized=True), recipe, settings=SETTINGS)


def diverges_early() -> Measurement:
    """The ramp reaches lr 10,000; its loss blows up long before."""
    settings = replace(SETTINGS, start_lr=0.1, end_lr=1e4, repeats=2)
    inputs, labels = cases.examples_of((6,), 70, seed=1)
    data = inputs, 10.0 * inputs[:, :1] + labels[:, None]
    task = Task(build_model=lambda: nn.Linear(6, 1), train=data, validation=data, kind="regression")
    return measure_lr_range(task, cases.make_recipe("sgd", None), settings=settings)


def bad_example() -> Measurement:
    task = Task(
        build_model=lambda: cases.smooth_mlp(False),
        train=Rows(),
        validation=cases.examples_of((6,), 33, seed=2),
    )
    return measure_lr_range(task, cases.make_recipe("sgd", None), settings=SETTINGS)


def under_way() -> Measurement:
    """On a training, which then goes on as if nothing had been measured."""
    training = Training(cases.make_task("mlp", normalized=False), cases.make_recipe("adamw", None))
    training.step()
    before = [p.detach().clone() for p in training.model.parameters()]
    measured = measure_lr_range(training, settings=SETTINGS)
    assert all(map(torch.equal, before, training.model.parameters()))
    training.world.close()
    return measured


def own_loop() -> Measurement:
    """A loop with a wrapper of its own; on rank 1 the losses are 100 times those of rank 0."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    inputs = torch.eye(4, dtype=torch.float64).repeat(2, 1)
    inputs[4:] *= 10.0
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(4, 1).double()
    if size > 1:
        inputs = inputs.chunk(size)[dist.get_rank()]
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own_losses = []

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        own_losses.append(float(loss.detach()))
        return loss

    measured = measure_lr_range(step=step, optimizer=optimizer, restore=[model], settings=SETTINGS)
    if size > 1:
        firsts: list[Any] = [None] * size
        dist.all_gather_object(firsts, own_losses)
        assert firsts[0] != firsts[1], "the ranks must disagree for this to show anything"
        assert len(firsts[0]) == len(firsts[1]) == len(measured.samples["loss"])
    return measured


CASES: dict[str, Callable[[], Measurement]] = {
    "learns": learns,
    "diverges early": diverges_early,
    "bad example": bad_example,
    "under way": under_way,
    "own loop": own_loop,
}


def keep(folder: Path, name: str, measured: Measurement) -> None:
    text = json.dumps(measured.to_dict(), allow_nan=False)
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(text)


def in_an_own_group(folder: Path) -> None:
    """Every case within a group that this script makes, which nobody else may close."""
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        keep(folder, name, case())
        assert dist.is_initialized(), "somebody else's group was closed"
    dist.barrier()
    dist.destroy_process_group()


def without_group(folder: Path) -> None:
    """Measurements and worlds, each of which makes its group and leaves it."""
    for _ in range(8):
        World.from_environment("cpu").close()
    for name in ("first", "second", "third"):
        keep(folder, name, learns())
        assert not dist.is_initialized()


if __name__ == "__main__":
    {"own-group": in_an_own_group, "no-group": without_group}[sys.argv[1]](Path(sys.argv[2]))
    cases.leave()
