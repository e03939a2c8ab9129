"""Full-batch step: time beside a bare accumulation loop, with and without penalty; memory.

    python -m benchmarks.full_batch_step --rounds 12 --json step.json
    python -m benchmarks.full_batch_step --memory 50000 --penalty

Arms take turns, one update each a round, in an order that moves on by one every round. The ratio is
taken within a round. Rounds run in a process whose allocator keeps its memory: glibc gives large
buffers back at once, and a third of an update went into getting them again, as luck had it. The
peak memory is that of a fresh process with glibc's own settings, so each size is one of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.data.augmentation import Normalization
from anybatch.data.resident import ResidentSource
from anybatch.models.resnet_small import ResNet8
from anybatch.recipe import (
    BlockSettings,
    ComputeSettings,
    GradientPenalty,
    Recipe,
    RecordSettings,
    SGDSettings,
    Stopping,
)
from anybatch.run import read_json, write_json
from anybatch.schedules import epochs
from anybatch.task import Task
from anybatch.training.training import Training
from benchmarks.summaries import markdown_table, median_and_quartiles, median_interval

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "full_batch_step"
TITLE = "Full-batch step"
QUESTION = (
    "How long does a full-batch update of a ResNet-8 on 512 images of 32x32 take, in passes of "
    "128 (one thread, float32), beside a bare accumulation loop over the same tensors; what does "
    "the penalty on blocks of 128 add; and does the memory grow with the set?"
)
PREDICTION = (
    "without penalty at most 1.03 x the bare loop, with forward differences at most 2.1 x without; "
    "the peak memory beside the data is within 5 % from 5,000 to 50,000 images, with penalty too"
)

_BARE, _OURS = "bare loop", "anybatch"
_BLOCKED, _PENALIZED = "anybatch, blocks", "anybatch, penalty"
_IMAGES, _PASS = 512, 128
_LR, _MOMENTUM, _DECAY = 0.01, 0.9, 5e-4
_NEVER = epochs(1_000_000)
_STEP_LIMIT, _PENALTY_LIMIT, _MEMORY_LIMIT = 1.03, 2.1, 1.05
_TIME_TRIALS, _ROUNDS_PER_TRIAL = 3, 40
_MEMORY_SIZES = (5_000, 15_000, 50_000)
_KEEPING_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}

_Rounds = list[dict[str, float]]


def trials() -> list[str]:
    """Keys of the trials: rounds of updates, and sizes of the set without and with penalty."""
    times = [f"rounds-{number}" for number in range(1, _TIME_TRIALS + 1)]
    plain = [f"memory-{count}" for count in _MEMORY_SIZES]
    return [*times, *plain, *(f"{key}-penalty" for key in plain)]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Some rounds of updates, or the memory of one process.

    Args:
        key: one of `trials`.
        folder: for what a process hands over.
    """
    handed = folder.resolve() / "values.json"
    command = [sys.executable, "-m", "benchmarks.full_batch_step", "--json", str(handed)]
    environment = dict(os.environ)
    if key.startswith("rounds"):
        command += ["--rounds", str(_ROUNDS_PER_TRIAL)]
        environment |= _KEEPING_MEMORY
    else:
        _, count, *penalty = key.split("-")
        command += ["--memory", count, *(["--penalty"] * len(penalty))]
    root, silent = Path(__file__).parents[1], subprocess.DEVNULL
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=silent)
    values: dict[str, Any] = read_json(handed)
    return values


# --- time --------------------------------------------------------------------------------------


def measure(num_rounds: int) -> dict[str, Any]:
    """Time every arm in turn.

    Args:
        num_rounds: how often, >= 1; an untimed round comes before.
    """
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (_IMAGES,), generator=generator)
    penalty = GradientPenalty(coefficient=0.0625, unit="lr")
    arms: dict[str, Callable[[], None]] = {
        _BARE: _bare_loop(images, labels),
        _OURS: _trained(images, labels, None),
        _BLOCKED: _trained(images, labels, BlockSettings(size=_PASS)),
        _PENALIZED: _trained(images, labels, BlockSettings(size=_PASS, penalty=penalty)),
    }
    for step in arms.values():
        step()
    rounds: _Rounds = []
    names = list(arms)
    for number in range(num_rounds):
        first = number % len(names)
        taken = {}
        for name in [*names[first:], *names[:first]]:
            gc.collect()  # nobody pays for another arm's garbage
            started = time.process_time()  # of the one thread: others share the machine
            arms[name]()
            taken[name] = round(time.process_time() - started, 6)
        rounds.append(taken)
    return {"unit": "processor seconds per update", "load_average_before": load, "rounds": rounds}


def _bare_loop(images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Accumulation as one would write it, over tensors that are ready for the network."""
    torch.manual_seed(0)
    model = ResNet8(3, 10)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        for start in range(0, _IMAGES, _PASS):
            part = slice(start, start + _PASS)
            loss = nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum")
            (loss / _IMAGES).backward()
        optimizer.step()

    return step


def _trained(images: Tensor, labels: Tensor, blocks: BlockSettings | None) -> Callable[[], None]:
    source = ResidentSource.from_arrays(images, labels)
    task = Task(
        build_model=lambda: ResNet8(3, 10), train=source, validation=source.subset(torch.arange(8))
    )
    return Training(task, _recipe(blocks)).step


def _recipe(blocks: BlockSettings | None) -> Recipe:
    return Recipe(
        optimizer=SGDSettings(lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY),
        duration=epochs(1_000_000),
        batch_size="full",
        micro_batch_size=_PASS,
        ghost_batch_size=_PASS,
        order="fixed",
        blocks=blocks,
        stopping=Stopping(evaluate_every=_NEVER),
        records=RecordSettings(checkpoint_every=_NEVER),
        compute=ComputeSettings(device="cpu", threads=1),
    )


# --- memory ------------------------------------------------------------------------------------


def peak_memory(num_examples: int, *, penalty: bool) -> dict[str, Any]:
    """Peak resident memory of this process after two full-batch updates, beside the data.

    Args:
        num_examples: random colour images of 32x32 pixels, held as uint8.
        penalty: on blocks of one pass, by forward differences.
    """
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (num_examples, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(10, (num_examples,))
    scale = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    source = ResidentSource.from_arrays(images, labels, normalization=scale)
    task = Task(build_model=_small_network, train=source, validation=source.subset(labels[:1] * 0))
    blocks = BlockSettings(size=_PASS, penalty=GradientPenalty()) if penalty else None
    training = Training(task, _recipe(blocks))
    for _ in range(2):
        training.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    data = sum(tensor.numel() * tensor.element_size() for tensor in (images, labels))
    return {
        "num_examples": num_examples,
        "penalty": penalty,
        "data_mib": round(data / 2**20, 2),
        "peak_mib_without_data": round((peak - data) / 2**20, 2),
    }


def _small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


# --- what it says ------------------------------------------------------------------------------


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Whether the three limits hold, with their figures.

    Args:
        results: key -> values of finished trials.
    """
    rounds, sentences = _all_rounds(results), []
    for name, other, limit in ((_OURS, _BARE, _STEP_LIMIT), (_PENALIZED, _OURS, _PENALTY_LIMIT)):
        ratios = _ratios(rounds, name, other)
        if ratios:
            middle, (low, high) = median_and_quartiles(ratios)[0], median_interval(ratios)
            held = "holds" if high <= limit else "not decided" if low <= limit else "does not hold"
            ratio = f"{middle:.3f} x {other} ({low:.3f} to {high:.3f})"
            sentences.append(f"{name} {ratio}, limit {limit:g}: {held}")
    for penalty in (False, True):
        peaks = [v["peak_mib_without_data"] for v in _memory(results) if v["penalty"] == penalty]
        if len(peaks) == len(_MEMORY_SIZES):
            growth = max(peaks) / min(peaks)
            held = "holds" if growth <= _MEMORY_LIMIT else "does not hold"
            what = "with penalty" if penalty else "without penalty"
            sentences.append(f"memory {what} within {growth - 1:.1%}: {held}")
    return "; ".join(sentences)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Seconds per update and ratios within a round; peak memory by size of the set.

    Args:
        results: key -> values of finished trials.
    """
    rounds, parts = _all_rounds(results), []
    if rounds:
        header = ["arm", "n", "s per update", "quartiles", "to bare", "95 %", "to anybatch", "95 %"]
        rows = [_row(name, rounds) for name in (_BARE, _OURS, _BLOCKED, _PENALIZED)]
        load = max(v["load_average_before"] for v in results.values() if "rounds" in v)
        note = (
            "n rounds of one update of each arm; seconds of the one thread's processor; medians, "
            "ratios within a round with the interval of their median by order statistics. Memory "
            "is kept between updates (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_). "
            f"Load of the machine before at most {load:.2f}."
        )
        parts += [markdown_table(header, rows), note]
    if _memory(results):
        header = ["images", "data, MiB", "peak beside the data, MiB", "with penalty, MiB"]
        parts.append(markdown_table(header, _memory_rows(results)))
    return "\n\n".join(parts)


def _row(name: str, rounds: _Rounds) -> list[str]:
    time_, low, high = median_and_quartiles([taken[name] for taken in rounds])
    cells = [name, str(len(rounds)), f"{time_:.3f}", f"{low:.3f} to {high:.3f}"]
    for other in (_BARE, _OURS):
        ratios = _ratios(rounds, name, other)
        cells.append(f"{median_and_quartiles(ratios)[0]:.3f}")
        cells.append("{:.3f} to {:.3f}".format(*median_interval(ratios)))
    return cells


def _memory_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for count in _MEMORY_SIZES:
        found = {v["penalty"]: v for v in _memory(results) if v["num_examples"] == count}
        if found:
            data = next(iter(found.values()))["data_mib"]
            peaks = [
                f"{found[penalty]['peak_mib_without_data']:.1f}" if penalty in found else ""
                for penalty in (False, True)
            ]
            rows.append([f"{count:,}", f"{data:.1f}", *peaks])
    return rows


def _memory(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [values for values in results.values() if "peak_mib_without_data" in values]


def _all_rounds(results: dict[str, dict[str, Any]]) -> _Rounds:
    return [taken for values in results.values() for taken in values.get("rounds", [])]


def _ratios(rounds: _Rounds, name: str, other: str) -> list[float]:
    return [taken[name] / taken[other] for taken in rounds]


def main() -> None:
    """Measure times and print the table, or print the memory of one size as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of every arm")
    parser.add_argument("--json", type=Path, help="file to write the raw figures to")
    parser.add_argument("--memory", type=int, metavar="N", help="of N images, in this process")
    parser.add_argument("--penalty", action="store_true", help="with --memory")
    options = parser.parse_args()
    if options.memory is not None:
        values = peak_memory(options.memory, penalty=options.penalty)
        print(json.dumps(values))
    elif options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    else:
        values = measure(options.rounds)
        results = {"all": values}
        print(table(results), verdict(results), sep="\n\n")
    if options.json is not None:
        write_json(options.json, values)


if __name__ == "__main__":
    main()
