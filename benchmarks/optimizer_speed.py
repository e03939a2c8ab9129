"""Optimizer speed: milliseconds per step on ResNet-18's parameters, beside torch and peers.

    python -m benchmarks.optimizer_speed --rounds 20 --threads 1

All arms share the weights and the gradients, which are written anew before every step, as a
backward pass does. They take turns, one step each a round, in an order that moves on by one every
round; ratios are taken within a round. Peers are measured where they are installed
(`pip install --no-deps timm pytorch_optimizer`), as they are by default and tensor by tensor.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.models.resnet import resnet18
from benchmarks.optimizer_speed_arms import (
    ADAM_DECAY,
    ARMS,
    LAMB_ARM,
    LARS_ARM,
    SGD_DECAY,
    Arm,
)
from benchmarks.summaries import markdown_table, median_and_quartiles, median_interval

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "optimizer_speed"
TITLE = "Optimizer steps beside torch and peers"
QUESTION = (
    "How many milliseconds does a step over the 62 tensors and 11.2 million numbers of ResNet-18 "
    "take on a CPU, beside the default loop of torch's SGD and AdamW and beside the LARS and LAMB "
    "of timm and pytorch_optimizer?"
)
PREDICTION = (
    "With weight decay SGDW takes 0.8 x torch's SGD (limit 1.1), LARS 0.9 x (limit 1.5), and LAMB "
    "0.5 x torch's AdamW (limit 1.3), on 1 thread and on 2; without decay, which torch copies the "
    "gradient for, SGDW 1.1 x and LARS 1.4 x; peers take 1.5 to 4 times as long as ours"
)

_BLOCKS, _ROUNDS_PER_BLOCK = 3, 15
_PACKAGES = {"timm": "timm", "pytorch_optimizer": "pytorch-optimizer"}

_Rounds = list[dict[str, float]]


def trials() -> list[str]:
    """One key for each number of threads and block of rounds."""
    blocks = range(1, _BLOCKS + 1)
    return [f"threads-{threads}-block-{block}" for block in blocks for threads in (1, 2)]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One block of rounds.

    Args:
        key: one of `trials`.
        folder: not used.
    """
    return measure(_ROUNDS_PER_BLOCK, int(key.split("-")[1]))


def measure(num_rounds: int, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Time every installed arm in turn.

    Args:
        num_rounds: how often, >= 1; two untimed rounds come before.
        threads: of torch.
        device: where the parameters lie.
    """
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    torch.manual_seed(0)
    parameters = list(resnet18().to(device).parameters())
    gradients = [torch.randn_like(parameter) * 0.01 for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    arms = [arm for arm in ARMS if arm.is_installed]
    optimizers = {arm.name: arm.build(parameters) for arm in arms}
    rounds: _Rounds = []
    for number in range(num_rounds + 2):
        first = number % len(arms)
        taken = {
            arm.name: _milliseconds(optimizers[arm.name], parameters, gradients)
            for arm in (*arms[first:], *arms[:first])
        }
        if number >= 2:
            rounds.append(taken)
    packages = [name for name in _PACKAGES if any(arm.package == name for arm in arms)]
    return {
        "unit": "milliseconds per step",
        "threads": threads,
        "load_average_before": load,
        "versions": {name: importlib.metadata.version(_PACKAGES[name]) for name in packages},
        "rounds": rounds,
    }


def _milliseconds(
    optimizer: Any, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> float:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(gradient)  # some peers use it as their memory
    gc.collect()  # nobody pays for another arm's garbage
    _finish(parameters)
    started = time.perf_counter()
    optimizer.step()
    _finish(parameters)
    return round((time.perf_counter() - started) * 1e3, 4)


def _finish(parameters: Sequence[nn.Parameter]) -> None:
    if parameters[0].is_cuda:
        torch.cuda.synchronize()


def _by_threads(results: dict[str, dict[str, Any]]) -> dict[int, _Rounds]:
    found: dict[int, _Rounds] = {}
    for values in results.values():
        found.setdefault(values["threads"], []).extend(values["rounds"])
    return dict(sorted(found.items()))


def _ratios(rounds: _Rounds, name: str, other: str) -> list[float]:
    return [taken[name] / taken[other] for taken in rounds if name in taken and other in taken]


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Whether the limits hold, and how much longer the quickest peer takes.

    Args:
        results: key -> values of finished trials.
    """
    parts = []
    for threads, rounds in _by_threads(results).items():
        said = []
        for arm in ARMS:
            if arm.limit is None:
                continue
            ratios = _ratios(rounds, arm.name, arm.baseline)
            median, (low, high) = median_and_quartiles(ratios)[0], median_interval(ratios)
            held = "holds" if high <= arm.limit else "open" if low <= arm.limit else "fails"
            said.append(f"{arm.name.split()[1]} {held} at {median:.2f} x ({low:.2f} to {high:.2f})")
        said += [text for name in (LARS_ARM, LAMB_ARM) if (text := _peers(rounds, name))]
        parts.append(f"{threads} thread{'s' * (threads > 1)}: {', '.join(said)}")
    return "; ".join(parts)


def _peers(rounds: _Rounds, name: str) -> str:
    """How long the quickest peer's step takes beside ours; "" where none was measured."""
    rule = name.split()[1]
    medians = [
        (median_and_quartiles(ratios)[0], arm.name)
        for arm in ARMS
        if arm.package and rule in arm.name and (ratios := _ratios(rounds, arm.name, name))
    ]
    return f"{min(medians)[1]} {min(medians)[0]:.2f} x {name}" if medians else ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Median and quartiles of the time, and of the ratio within a round.

    Args:
        results: key -> values of finished trials.
    """
    header = ["optimizer", "threads", "n", "ms per step", "quartiles", "ratio", "95 %", "to"]
    rows = [
        _row(arm, threads, rounds)
        for threads, rounds in _by_threads(results).items()
        for arm in ARMS
        if any(arm.name in taken for taken in rounds)
    ]
    load = max(values["load_average_before"] for values in results.values())
    versions = {name: v for values in results.values() for name, v in values["versions"].items()}
    notes = [
        "n rounds; medians and quartiles; 95 %: interval of the median ratio within a round, by",
        f"order statistics. Momentum 0.9, weight decay {SGD_DECAY:g} (SGD's",
        f"family) and {ADAM_DECAY:g} (Adam's); float32; torch's default is its loop",
        "over tensors, as are peers marked `each`.",
        f"Load of the machine before a block at most {load:.2f}.",
    ]
    if versions:
        notes.append("Peers: " + ", ".join(f"{n} {v}" for n, v in sorted(versions.items())) + ".")
    return markdown_table(header, rows) + "\n\n" + " ".join(notes)


def _row(arm: Arm, threads: int, rounds: _Rounds) -> list[str]:
    times = [taken[arm.name] for taken in rounds if arm.name in taken]
    time_, low, high = median_and_quartiles(times)
    ratios = _ratios(rounds, arm.name, arm.baseline)
    return [
        arm.name,
        str(threads),
        str(len(times)),
        f"{time_:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{median_and_quartiles(ratios)[0]:.3f}",
        "{:.3f} to {:.3f}".format(*median_interval(ratios)),
        "" if arm.name == arm.baseline else arm.baseline,
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of every arm")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu", help='or "cuda"')
    options = parser.parse_args()
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads must be >= 1")
    results = {"all": measure(options.rounds, options.threads, options.device)}
    print(table(results), verdict(results), sep="\n\n")


if __name__ == "__main__":
    main()
