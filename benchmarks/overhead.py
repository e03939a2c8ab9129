"""Overhead: microseconds per step of a small network, driven by anybatch and by its peers.

    python -m benchmarks.overhead --rounds 60 --json overhead.json

Arms take turns, one call each a round, in an order that moves on by one every round, so that a
machine that slows down slows all of them. The ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anybatch.run import write_json
from benchmarks.overhead_arms import ARMS, BARE, Arm, Setup
from benchmarks.summaries import markdown_table, median_and_quartiles, median_interval

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "overhead"
TITLE = "Overhead per step"
QUESTION = (
    "How many microseconds does a step of a 2-layer network (784-100-10, batch 32, one thread, SGD "
    "with momentum) take, in a bare PyTorch loop over tensors in memory, in anybatch, and in its "
    "peers?"
)
PREDICTION = (
    "anybatch takes at most 1.05 x the bare loop (a first trial gave 0.92); a DataLoader about "
    "1.4 x, ignite 1.6 x, accelerate 2.0 x, Lightning 2.6 x"
)

_LIMIT = 1.05
_OURS = "anybatch Training"
_BLOCKS, _ROUNDS_PER_BLOCK = 3, 40
_PACKAGES = {"ignite": "pytorch-ignite", "accelerate": "accelerate", "lightning": "lightning"}

_Rounds = list[dict[str, float]]


def trials() -> list[str]:
    """One key for each block of rounds."""
    return [f"block-{number}" for number in range(1, _BLOCKS + 1)]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One block of rounds.

    Args:
        key: one of `trials`.
        folder: not used; what arms write goes to a temporary place.
    """
    return measure(_ROUNDS_PER_BLOCK)


def measure(num_rounds: int) -> dict[str, Any]:
    """Time every installed arm in turn.

    Args:
        num_rounds: how often, >= 1; an untimed round comes before.
    """
    torch.set_num_threads(1)
    arms = [arm for arm in ARMS if arm.is_installed]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup.create(Path(folder))
        timings = {arm.name: arm.prepare(setup) for arm in arms}
        for timing in timings.values():
            timing()
        rounds: _Rounds = []
        for number in range(num_rounds):
            names = [arm.name for arm in _rotated(arms, number)]
            taken = {}
            for name in names:
                gc.collect()  # nobody pays for another arm's garbage
                taken[name] = round(timings[name]() / setup.num_steps * 1e6, 3)
            rounds.append(taken)
    return {
        "unit": "microseconds per step",
        "steps_per_measurement": setup.num_steps,
        "load_average_before": load,
        "versions": _versions(arms),
        "rounds": rounds,
    }


def _rotated(arms: Sequence[Arm], number: int) -> list[Arm]:
    first = number % len(arms)
    return [*arms[first:], *arms[:first]]


def _versions(arms: Sequence[Arm]) -> dict[str, str]:
    packages = [_PACKAGES[arm.module] for arm in arms if arm.module]
    return {package: importlib.metadata.version(package) for package in packages}


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Whether the limit holds, with the ratios of all arms.

    Args:
        results: key -> values of finished trials.
    """
    rounds = _all_rounds(results)
    ours = _ratios(rounds, _OURS)
    median, (low, high) = median_and_quartiles(ours)[0], median_interval(ours)
    held = "holds" if high <= _LIMIT else "not decided" if low <= _LIMIT else "does not hold"
    others = [
        f"{arm.name} {median_and_quartiles(_ratios(rounds, arm.name))[0]:.2f} x"
        for arm in ARMS
        if arm.name not in (BARE, _OURS) and _ratios(rounds, arm.name)
    ]
    ratio = f"{median:.2f} x ({low:.2f} to {high:.2f})"
    return f"{held}: anybatch takes {ratio} the bare loop; {', '.join(others)}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Median and quartiles of the time and of the ratio within a round.

    Args:
        results: key -> values of finished trials.
    """
    rounds = _all_rounds(results)
    header = ["arm", "n", "us per step", "quartiles", "ratio to bare", "quartiles", "95 %"]
    text = markdown_table(header, [_row(arm, rounds) for arm in ARMS])
    versions = {name: v for values in results.values() for name, v in values["versions"].items()}
    steps = next(iter(results.values()))["steps_per_measurement"]
    load = max(values["load_average_before"] for values in results.values())
    notes = [
        f"n rounds of {steps} steps; medians and quartiles, the ratio within a round; 95 %:",
        "interval of the ratio's median by order statistics.",
        f"Load of the machine before a block at most {load:.2f}.",
        "anybatch uses torch's fused SGD and gathers batches ahead; a bare loop could too.",
    ]
    if versions:
        notes.append("Peers: " + ", ".join(f"{n} {v}" for n, v in sorted(versions.items())) + ".")
    return text + "\n\n" + " ".join(notes)


def _row(arm: Arm, rounds: _Rounds) -> list[str]:
    times = [taken[arm.name] for taken in rounds if arm.name in taken]
    if not times:
        return [arm.name, "0", "not installed", "", "", "", ""]
    time, low, high = median_and_quartiles(times)
    ratios = _ratios(rounds, arm.name)
    ratio, *quartiles = median_and_quartiles(ratios)
    return [
        arm.name,
        str(len(times)),
        f"{time:.0f}",
        f"{low:.0f} to {high:.0f}",
        f"{ratio:.3f}",
        "{:.3f} to {:.3f}".format(*quartiles),
        "{:.3f} to {:.3f}".format(*median_interval(ratios)),
    ]


def _all_rounds(results: dict[str, dict[str, Any]]) -> _Rounds:
    return [taken for values in results.values() for taken in values["rounds"]]


def _ratios(rounds: _Rounds, name: str) -> list[float]:
    return [taken[name] / taken[BARE] for taken in rounds if name in taken]


def main() -> None:
    """Measure, print the table, and write the raw figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="turns of every arm")
    parser.add_argument("--json", type=Path, help="file to write the raw figures to")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    values = measure(options.rounds)
    results = {"all": values}
    print(table(results), verdict(results), sep="\n\n")
    if options.json is not None:
        write_json(options.json, values)


if __name__ == "__main__":
    main()
