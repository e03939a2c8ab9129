"""lr of each update under Accelerate: prepared, and as if there were two processes."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from unittest import mock

import accelerate_schedule
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from torch import nn

import anybatch as ab


def prepared(num_processes: int, split_batches: bool, count: int = 16) -> list[float]:
    """A scheduler given to `prepare`, stepped after each of `count` updates."""
    AcceleratorState._reset_state(True)
    configuration = DataLoaderConfiguration(split_batches=split_batches)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    schedule = ab.Warmup(duration=ab.updates(4), into=ab.Cosine())
    scheduler = ab.schedule_as_lr_scheduler(schedule, optimizer, total_updates=16)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    lrs = []
    as_if = SimpleNamespace(num_processes=num_processes)  # what the wrapper asks for
    with mock.patch("accelerate.scheduler.AcceleratorState", return_value=as_if):
        for _ in range(count):
            accelerator.backward(model(torch.randn(4, 8)).square().mean())
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return lrs


if __name__ == "__main__":
    results = {
        "example": accelerate_schedule.main(),
        "prepared": prepared(1, split_batches=False),
        "prepared, past the end": prepared(1, split_batches=False, count=20),
        "prepared, two processes": prepared(2, split_batches=False),
        "prepared, two processes, split batches": prepared(2, split_batches=True),
    }
    sys.stdout.write("\n" + json.dumps(results) + "\n")
