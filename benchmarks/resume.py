"""Resume: trainings killed with SIGKILL and resumed end as if nothing had happened."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anybatch import (
    AdamWSettings,
    Augmentation,
    ClipGlobalNorm,
    ComputeSettings,
    ModelSettings,
    Recipe,
    RecordSettings,
    Schedules,
)
from anybatch.recipe import ExponentialAverage
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.run import Run, write_json
from anybatch.schedules import Linear, OneCycle, epochs, examples
from benchmarks.interruptions import Kill, Session, compare, kill_once, run_to_end
from benchmarks.summaries import markdown_table, mean_and_spread

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "resume"
TITLE = "Resume after kill -9"
QUESTION = (
    "Does a training that is killed with SIGKILL, at a random moment or in the middle of writing a "
    "checkpoint, and then resumed, end with the same weights and the same records as one that was "
    "never interrupted?"
)
PREDICTION = (
    "20 of 20 kills leave no trace: weights identical byte for byte, records identical but for "
    "times"
)

_SEEDS = (0, 1, 2, 3, 4)
_WRITE = "a checkpoint write"


def trials() -> list[str]:
    """One key for each seed, of four kills each."""
    return [f"seed-{seed}" for seed in _SEEDS]


def recipe_of(seed: int, num_epochs: float = 40) -> Recipe:
    """A training with every kind of state, and a checkpoint every few updates.

    BatchNorm, Adam's averages, averaged weights, scheduled lr, momentum and batch size, random
    augmentation.

    Args:
        seed: of the run.
        num_epochs: its length.
    """
    momentum = OneCycle(start=1.0, peak=0.9, end=1.0)
    return Recipe(
        optimizer=AdamWSettings(lr=0.003),
        duration=epochs(num_epochs),
        batch_size=32,
        seed=seed,
        model=ModelSettings(name="resnet8", width=0.5),
        schedules=Schedules(
            lr=OneCycle(), momentum=momentum, batch_size=Linear(start=1.0, end=2.0)
        ),
        gradient=(ClipGlobalNorm(max_norm=1.0),),
        augmentation=Augmentation(crop_padding=1),
        averaging=ExponentialAverage(decay=0.99),
        compute=ComputeSettings(device="cpu", threads=1),
        records=RecordSettings(log_every=3, checkpoint_every=examples(64)),
    )


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One uninterrupted training and three that are killed four times in all.

    Args:
        key: one of `trials`.
        folder: for the runs; emptied first.
    """
    return interrupt(recipe_of(int(key.removeprefix("seed-"))), folder)


def interrupt(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train one recipe without and with kills, and compare.

    Args:
        recipe: for the digits.
        folder: for the runs; emptied first.
    """
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(folder / "recipe.json", recipe_to_mapping(recipe))
    draw = random.Random(recipe.seed)
    reference = _session(folder, "reference")
    seconds = run_to_end(reference)
    plans = {"once": (False,), "twice": (False, False), "in-a-write": (True,)}
    runs = {}
    for name, kinds in plans.items():
        session = _session(folder, name)
        kills: list[Kill] = []
        for inside_a_write in kinds:
            longest = 0.9 * (seconds - sum(kill.seconds for kill in kills))
            kills.append(kill_once(session, draw, longest=longest, inside_a_write=inside_a_write))
        run_to_end(session)
        runs[name] = {
            "kills": [dataclasses.asdict(kill) for kill in kills],
            "identical": compare(reference.path, session.path),
        }
    updates = Run(reference.path).status.update
    return {"reference_seconds": round(seconds, 3), "reference_updates": updates, "runs": runs}


def _session(folder: Path, name: str) -> Session:
    arguments = ("digits", "--recipe", str(folder / "recipe.json"))
    return Session(arguments=arguments, path=folder / name, log=folder / f"{name}.log")


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """How many kills left no trace.

    Args:
        results: key -> values of finished trials.
    """
    runs = _runs(results)
    total = sum(len(run["kills"]) for run in runs)
    clean = sum(len(run["kills"]) for run in runs if all(run["identical"].values()))
    inside = sum(kill["half_written"] for run in runs for kill in run["kills"])
    held = "holds" if clean == total else "does not hold"
    return f"{held}: {clean} of {total} kills left no trace, {inside} of them inside a write"


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each kind of interruption.

    Args:
        results: key -> values of finished trials.
    """
    runs = _runs(results)
    groups = {
        "killed once, any moment": [r for r in runs if len(r["kills"]) == 1 and not _waited(r)],
        "killed twice, any moment": [r for r in runs if len(r["kills"]) == 2],
        "killed inside a checkpoint write": [r for r in runs if _waited(r)],
        "all": runs,
    }
    header = [
        "interruption", "trainings", "kills", "half-written file left", "resumed from update",
        "same weights", "same records",
    ]  # fmt: skip
    text = markdown_table(header, [_row(name, group) for name, group in groups.items()])
    updates = [float(values["reference_updates"]) for values in results.values()]
    seconds = [values["reference_seconds"] for values in results.values()]
    note = (
        f"n = {len(results)} seeds. Without a kill: {mean_and_spread(updates, 0)} updates in "
        f"{mean_and_spread(seconds, 1)} s, a checkpoint about every third update; resnet8 with "
        "BatchNorm, AdamW, clipping, averaged weights, scheduled lr, momentum and batch size, "
        "random crops. Update: mean ± standard deviation (range)."
    )
    return text + "\n\n" + note


def _row(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    kills = [kill for run in runs for kill in run["kills"]]
    same = [run["identical"] for run in runs]
    records = [one["steps"] and one["evals"] and one["status"] for one in same]
    return [
        name,
        str(len(runs)),
        str(len(kills)),
        str(sum(kill["half_written"] for kill in kills)),
        mean_and_spread([float(kill["checkpoint_update"]) for kill in kills], 0),
        f"{sum(one['weights'] for one in same)} of {len(same)}",
        f"{sum(records)} of {len(records)}",
    ]


def _runs(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for values in results.values() for run in values["runs"].values()]


def _waited(run: dict[str, Any]) -> bool:
    return any(kill["during"] == _WRITE for kill in run["kills"])
