"""Two ranks see what one sees: the same parts, the same pairs, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = '''
"""Measure on this rank, by the package's step and in a loop of one's own; write what was found."""
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from anybatch.errors import InputError
from anybatch.measuring.noise_monitor import NoiseScaleMonitor
from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale
from anybatch.recipe import ComputeSettings, Recipe, SGDSettings
from anybatch.schedules import updates
from anybatch.task import Task

rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
labels = torch.arange(150) % 2
inputs = torch.randn(150, 5, generator=generator) + labels[:, None]
found = {}
for name, middle in (("plain", nn.Tanh), ("ghosts", lambda: nn.BatchNorm1d(6))):
    task = Task(
        build_model=lambda middle=middle: nn.Sequential(nn.Linear(5, 6), middle(), nn.Linear(6, 2)),
        train=(inputs, labels), validation=(inputs, labels),
    )
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=16, duration=updates(9), ghost_batch_size=8,
        compute=ComputeSettings(precision="fp64", device="cpu"),
    )
    settings = NoiseScaleSettings(parts_per_probe=8, min_probes=4, max_probes=5, train_updates=2)
    measured = measure_noise_scale(task, recipe, settings=settings)
    found[name] = {key: list(column) for key, column in measured.samples.items()}

if size > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Linear(5, 1).double()
for refused in ("no wrapper",) * (size > 1):
    try:
        NoiseScaleMonitor(model)
        found["refused"] = ""
    except InputError as error:
        found["refused"] = str(error)
wrapped = DistributedDataParallel(model) if size > 1 else model
monitor = NoiseScaleMonitor(wrapped, every=1)
for batch in inputs.double().split(30):
    model.zero_grad()
    shares = batch.split(15)
    for share in shares[rank : rank + 1] if size > 1 else shares:
        with monitor.part(len(share)):
            loss = (wrapped(share) - share.sum(1, keepdim=True)).square().mean()
            (loss if size > 1 else 0.5 * loss).backward()
    monitor.update()
samples = monitor.measurement().samples
found["monitor"] = {key: list(column) for key, column in samples.items()}
split = NoiseScaleMonitor(wrapped, every=1)
for batch in inputs.double().split(30):
    model.zero_grad()
    own = batch.split(15)[rank] if size > 1 else batch
    for share, weight in split.split(own, 2 if size > 1 else 4):
        (weight * (wrapped(share) - share.sum(1, keepdim=True)).square().mean()).backward()
    split.update()
found["split parts"] = list(split.measurement().samples["parts"])
with open(f"{sys.argv[1]}/{size}-{rank}.json", "w") as file:
    json.dump(found, file)
if size > 1:
    dist.barrier()
    dist.destroy_process_group()
os._exit(0)
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one rank and each of two ranks found, by "size-rank"."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "noise_on_ranks.py"
    script.write_text(SCRIPT)
    torchrun = [
        "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
        "--nproc-per-node=2",
    ]  # fmt: skip
    for arguments in ([], torchrun):
        result = subprocess.run(
            [sys.executable, *arguments, str(script), str(folder)],
            capture_output=True, text=True, timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-4000:]
    return {path.stem: json.loads(Path(path).read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("name", ["plain", "ghosts", "monitor"])
def test_two_ranks_see_the_pairs_of_one(found: dict[str, Any], name: str) -> None:
    one, first, second = (found[key][name] for key in ("1-0", "2-0", "2-1"))
    assert first == second
    assert one.keys() == first.keys()
    assert len(one["probe"]) >= 4
    for column, values in one.items():
        assert first[column] == pytest.approx(values, rel=1e-9), column


def test_the_ranks_of_a_wrapper_are_parts_and_without_it_the_monitor_refuses(
    found: dict[str, Any],
) -> None:
    assert set(found["2-0"]["monitor"]["parts"]) == {2.0}
    assert set(found["2-0"]["split parts"]) == set(found["1-0"]["split parts"]) == {4.0}
    assert "must be wrapped in DistributedDataParallel" in found["2-1"]["refused"]
