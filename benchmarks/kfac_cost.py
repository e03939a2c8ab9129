"""K-FAC's cost: an update beside SGD's, split by phase, beside other K-FACs and optimizers.

    python -m benchmarks.kfac_cost --rounds 2 --width 0.125 --batch-size 8 --side 8

All arms train a ResNet-18 of their own on the same images. They take turns update by update, in an
order that moves on by one each time, until each has been through its cycle: a round. Ratios are
taken within a round. A first cycle, on a few examples, is not timed: states are made there. Most
blocks are of SGD and our usual arms alone, so that there are more of them. Each block is a
process of its own: where its memory lies makes some per cent of difference to one arm or another.
Updates with new statistics or inverses are rare at the usual intervals, so plain updates, those
with statistics and those with inverses are timed apart and weighted by their shares. A peer is
measured where it is found (see `kfac_cost_arms`); one that cannot train is named with its error.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anybatch.kfac.blocks import find_blocks
from anybatch.models.resnet import resnet18
from anybatch.recipe_preconditioner import KFACSettings
from benchmarks.kfac_cost_arms import ARMS, Arm, Trainer
from benchmarks.kfac_cost_work import REFRESHES, image_sizes, predicted_ratio, predicted_work
from benchmarks.summaries import markdown_table, median_and_quartiles, median_interval

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "kfac_cost"
TITLE = "K-FAC: what an update costs"
QUESTION = (
    "How long does an update of ResNet-18 (32x32 images, batch 128, float32 on a CPU) with K-FAC "
    "take beside SGD's, where does the time go, how much memory does it need, and how do other "
    "K-FACs and optimizers do?"
)
PREDICTION = (
    "with statistics every 10 and inverses every 100 updates at most 1.3 x SGD, on 1 thread and on "
    "2, and faster than every other K-FAC at the same refresh"
)

_LIMIT, _OURS, _LIMITED = 1.3, "K-FAC", "10/100"
_BLOCKS, _ROUNDS = {"ours": 6, "all": 2}, 1
_WARM_BATCH_SIZE = 8

_Round = dict[str, list[list[float]]]


class Size(NamedTuple):
    """Of the training.

    Attributes:
        width: multiplier of the channels of ResNet-18.
        batch_size: examples of an update.
        side: of the images.
    """

    width: float = 1.0
    batch_size: int = 128
    side: int = 32


def trials() -> list[str]:
    """One key for each number of threads, choice of arms and block of rounds; one for memory."""
    blocks = [
        f"threads-{threads}-{arms}-{block}"
        for block in range(1, max(_BLOCKS.values()) + 1)
        for threads in (1, 2)
        for arms, number in _BLOCKS.items()
        if block <= number
    ]
    return [*blocks[:4], "memory", *blocks[4:]]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One block of rounds, or the memory of every arm.

    Args:
        key: one of `trials`.
        folder: not used.
    """
    if key == "memory":
        return measure_memory(Size())
    _, threads, which, _ = key.split("-")
    arms = [arm for arm in ARMS if which == "all" or arm.is_usual]
    return measure(_ROUNDS, int(threads), Size(), arms)


# --- measuring -----------------------------------------------------------------------------------


def measure(num_rounds: int, threads: int, size: Size, arms: Sequence[Arm]) -> dict[str, Any]:
    """Time every installed arm in turn.

    Args:
        num_rounds: cycles of updates, >= 1; an untimed one comes before.
        threads: of torch.
        size: of the training.
        arms: to choose from.
    """
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    trainers: dict[str, Callable[[], list[float]]] = {}
    refused = {}
    for arm in (arm for arm in arms if arm.is_installed):
        try:
            trainers[arm.name] = _warmed_up(arm, size)
        except Exception as error:  # a peer that cannot train must not cost the others
            if not arm.package:
                raise
            refused[arm.name] = _one_line(error)
    rounds = [_round([arm for arm in arms if arm.name in trainers], trainers)
              for _ in range(num_rounds)]  # fmt: skip
    return {
        "unit": "seconds of forward and backward, of preconditioning and of applying, by update",
        "size": size._asdict(),
        "threads": threads,
        "load_average_before": load,
        "predicted": _predicted(size),
        "refused": refused,
        "rounds": rounds,
    }


def _round(arms: Sequence[Arm], trainers: Mapping[str, Callable[[], list[float]]]) -> _Round:
    """A cycle of every arm, update by update."""
    taken: _Round = {arm.name: [] for arm in arms}
    for number in range(max(len(arm.kinds) for arm in arms)):
        first = number % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            if number < len(arm.kinds):
                gc.collect()  # nobody pays for another arm's garbage
                taken[arm.name].append(trainers[arm.name]())
    return taken


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else text[:157] + "..."


def _warmed_up(arm: Arm, size: Size) -> Callable[[], list[float]]:
    """Takes an arm's next update and returns its `Parts`; a cycle on few examples is behind it."""
    torch.manual_seed(0)
    layout = torch.channels_last if arm.channels_last else torch.contiguous_format
    model = resnet18(width=size.width).to(memory_format=layout)
    if arm.frozen_norms:
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.requires_grad_(False)
    trainer: Trainer = arm.prepare(model)

    def take(batches: Iterator[tuple[Tensor, Tensor]]) -> list[float]:
        return [round(part, 6) for part in trainer(*next(batches))]

    few = _batches(size._replace(batch_size=min(_WARM_BATCH_SIZE, size.batch_size)), layout)
    for _ in arm.kinds:
        take(few)
    return partial(take, _batches(size, layout))


def _batches(size: Size, layout: torch.memory_format) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch_size, 3, size.side, size.side)
    while True:
        images = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
        yield images, torch.randint(10, (size.batch_size,), generator=generator)


def _predicted(size: Size) -> dict[str, float]:
    model = resnet18(width=size.width)
    sizes = image_sizes(model, torch.zeros(1, 3, size.side, size.side))
    blocks = find_blocks(model, KFACSettings()).blocks
    work = predicted_work(blocks, sizes, batch_size=size.batch_size)
    return {refresh: round(predicted_ratio(work, refresh), 3) for refresh in REFRESHES}


def measure_memory(size: Size) -> dict[str, Any]:
    """Peak memory of one cycle of every installed arm, each in a process of its own.

    Args:
        size: of the training.
    """
    peaks = {}
    for arm in (arm for arm in ARMS if arm.is_installed):
        options = [f"--{name.replace('_', '-')}={value}" for name, value in size._asdict().items()]
        command = [sys.executable, "-m", "benchmarks.kfac_cost", "--memory-of", arm.name, *options]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            peaks[arm.name] = int(done.stdout.split()[-1])
        elif not arm.package:
            raise RuntimeError(done.stderr)
    return {"unit": "bytes, resident at most", "size": size._asdict(), "peaks": peaks}


def _print_peak(name: str, size: Size) -> None:
    torch.set_num_threads(2)
    arm = next(arm for arm in ARMS if arm.name == name)
    update = _warmed_up(arm, size)
    for _ in arm.kinds:
        update()
    status = Path("/proc/self/status").read_text()  # ru_maxrss begins at that of the parent
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)


# --- reading -------------------------------------------------------------------------------------


def _seconds(arm: Arm, taken: _Round, refresh: str) -> float | None:
    """An update's mean seconds at a refresh, from one round; None where it has no such kind."""
    by_kind: dict[str, list[float]] = {}
    for kind, parts in zip(arm.kinds, taken[arm.name], strict=True):
        by_kind.setdefault(kind, []).append(sum(parts))
    means = {kind: statistics.fmean(values) for kind, values in by_kind.items()}
    if "any" in means:
        return means["any"]
    measured, inverted = REFRESHES[refresh]
    if "statistics" not in means and measured != inverted:
        return None
    heavy = means.get("statistics", 0.0) * (measured - inverted) + means["inversion"] * inverted
    after = min(measured, 1 - measured)  # an update right after each heavy one, where there is room
    return heavy + means["after"] * after + means["plain"] * (1 - measured - after)


def _ratios(rounds: Sequence[_Round], arm: Arm, refresh: str) -> list[float]:
    baseline = next(other for other in ARMS if other.name == arm.baseline)
    found = []
    for taken in rounds:
        if arm.name in taken and baseline.name in taken:
            seconds, other = _seconds(arm, taken, refresh), _seconds(baseline, taken, refresh)
            if seconds is not None and other is not None:
                found.append(seconds / other)
    return found


def _phases(rounds: Sequence[_Round], arm: Arm) -> list[float | None]:
    """Milliseconds of forward + backward, statistics, inversion, precondition and apply.

    The first and the last two are those of plain updates; statistics and inversion are what an
    update with them takes longer, wherever it is spent.
    """
    rows: dict[str, list[list[float]]] = {}
    for taken in (taken for taken in rounds if arm.name in taken):
        for kind, parts in zip(arm.kinds, taken[arm.name], strict=True):
            rows.setdefault(kind, []).append(parts)

    def total(kind: str) -> float | None:
        return statistics.median(map(sum, rows[kind])) if kind in rows else None

    plain = rows.get("plain") or rows["any"]
    passes, precondition, apply = (statistics.median(part) for part in zip(*plain, strict=True))
    without, measured, inverted = total("plain"), total("statistics"), total("inversion")
    statistics_, inversion = None, None
    if without is not None and inverted is not None:
        statistics_ = None if measured is None else measured - without
        inversion = inverted - (without if measured is None else measured)
    phases = (passes, statistics_, inversion, precondition, apply)
    return [None if phase is None else phase * 1e3 for phase in phases]


def _by_threads(results: dict[str, dict[str, Any]]) -> dict[int, list[_Round]]:
    found: dict[int, list[_Round]] = {}
    for values in results.values():
        if "rounds" in values:
            found.setdefault(values["threads"], []).extend(values["rounds"])
    return dict(sorted(found.items()))


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Whether the limit holds, and how much longer the quickest other K-FAC takes.

    Args:
        results: key -> values of finished trials.
    """
    ours = next(arm for arm in ARMS if arm.name == _OURS)
    parts = []
    for threads, rounds in _by_threads(results).items():
        ratios = _ratios(rounds, ours, _LIMITED)
        median, (low, high) = statistics.median(ratios), median_interval(ratios)
        held = "holds" if high <= _LIMIT else "open" if low <= _LIMIT else "fails"
        text = f"{held} at {median:.2f} x ({low:.2f} to {high:.2f})"
        for mine in (arm for arm in ARMS if arm.is_usual and arm.kinds == ours.kinds):
            text += _quickest_peer(rounds, mine)
        parts.append(f"{threads} thread{'s' * (threads > 1)}: {text}")
    return "; ".join(parts) or "not measured yet"


def _quickest_peer(rounds: Sequence[_Round], mine: Arm) -> str:
    """How long the quickest K-FAC of the same layout and layers takes beside one of ours."""
    found = []
    for arm in (arm for arm in ARMS if arm.package and arm.baseline == mine.baseline):
        pairs = [
            (_seconds(arm, taken, _LIMITED), _seconds(mine, taken, _LIMITED))
            for taken in rounds
            if arm.kinds == mine.kinds and arm.name in taken and mine.name in taken
        ]
        ratios = [other / own for other, own in pairs if other is not None and own is not None]
        if ratios:
            found.append((statistics.median(ratios), arm.name))
    return f", {min(found)[1]} {min(found)[0]:.2f} x {mine.name}" if found else ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Phases in milliseconds, ratios to SGD at three refreshes, peak memory.

    Args:
        results: key -> values of finished trials.
    """
    peaks = results.get("memory", {}).get("peaks", {})
    header = ["arm", "threads", "n", "forward + backward", "statistics", "inversion"]
    header += ["precondition", "apply", *REFRESHES, "peak MiB"]
    rows = [
        _row(arm, threads, rounds, peaks)
        for threads, rounds in _by_threads(results).items()
        for arm in ARMS
        if any(arm.name in taken for taken in rounds)
    ]
    timed = [values for values in results.values() if "rounds" in values]
    notes = [
        "n rounds of 4 to 10 updates, a whole cycle; medians in milliseconds, and ratios to SGD",
        "of the same layout and layers in a round (quartiles at 10/100): statistics / inverses",
        "every so many updates, from the kinds of updates by their shares; optimizers have one",
        "ratio. Statistics and inversion: what an update with them takes longer. Ours covers the",
        "norms too; kfac-pytorch, ASDL and SINGD cover linear layers and convolutions here, so",
        "equal layers are those with frozen norms. SINGD makes both anew at once. Adaptive: the",
        "mean over updates 9 to 16 of a training.",
    ]
    if timed:
        predicted = ", ".join(f"{value:.2f} at {r}" for r, value in timed[0]["predicted"].items())
        notes.append(f"Predicted from multiply-adds alone: {predicted}.")
        load = max(values["load_average_before"] for values in timed)
        notes.append(f"Load of the machine before a block at most {load:.2f}.")
    refused = {name: error for values in timed for name, error in values["refused"].items()}
    notes += [f"{name} cannot train: `{error}`." for name, error in sorted(refused.items())]
    return markdown_table(header, rows) + "\n\n" + " ".join(notes)


def _row(arm: Arm, threads: int, rounds: Sequence[_Round], peaks: dict[str, int]) -> list[str]:
    phases = ["" if phase is None else f"{phase:.1f}" for phase in _phases(rounds, arm)]
    count = sum(arm.name in taken for taken in rounds)
    ratios = []
    for refresh in REFRESHES:
        found = _ratios(rounds, arm, refresh)
        one_ratio = arm.kinds[0] == "any" and refresh != _LIMITED
        if not found or one_ratio:
            ratios.append("")
            continue
        middle, low, high = median_and_quartiles(found)
        spread = f" ({low:.2f} to {high:.2f})" if refresh == _LIMITED and count > 1 else ""
        ratios.append(f"{middle:.2f}{spread}")
    peak = f"{peaks[arm.name] / 2**20:.0f}" if arm.name in peaks else ""
    return [arm.name, str(threads), str(count), *phases, *ratios, peak]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--memory", action="store_true", help="measure the memory too")
    parser.add_argument("--memory-of", metavar="ARM", help="only print the peak memory of an arm")
    options = parser.parse_args()
    size = Size(options.width, options.batch_size, options.side)
    if options.memory_of:
        _print_peak(options.memory_of, size)
        return
    results = {"now": measure(options.rounds, options.threads, size, ARMS)}
    if options.memory:
        results["memory"] = measure_memory(size)
    print(table(results) + "\n\n" + verdict(results))


if __name__ == "__main__":
    main()
