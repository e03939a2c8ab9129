"""Training to a target, counted in updates, and the seconds of an update, timed side by side.

Updates to a target do not depend on how busy the machine is; seconds do. So they are told apart:
`train_to_target` counts, `step_seconds` times all that is to be compared in turns, and
seconds to the target = updates x seconds of an update.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anybatch import Recipe, Task, Training
from anybatch.durations import updates as in_updates
from anybatch.records import EvalRecord
from anybatch.run import write_atomically

__all__ = ["at", "seconds_between", "step_seconds", "train_to_target"]

_WITHOUT_END = in_updates(10**7)
_COARSE, _FINE = 1.15, 1.05  # distance of evaluations, as a factor on the updates
_SECONDS_A_TURN = 0.2
_EXAMPLES_A_TURN = 2048  # resident sources gather as many at once


def at(recipe: Recipe, *, batch_size: int, lr: float, seed: int) -> Recipe:
    """The recipe at another batch size, lr and seed, without an end of its own.

    Args:
        recipe: whose schedule is constant, or in examples.
        batch_size: examples of an update.
        lr: of the optimizer.
        seed: of the run.
    """
    optimizer = dataclasses.replace(recipe.optimizer, lr=lr)
    return dataclasses.replace(
        recipe, batch_size=batch_size, optimizer=optimizer, seed=seed, duration=_WITHOUT_END
    )


# --- counting -----------------------------------------------------------------------------------


def train_to_target(
    task: Task, recipe: Recipe, *, most_updates: int, scale_updates: float, state: Path | None
) -> dict[str, Any]:
    """Train until the target is reached, the loss is not finite, or as long as allowed.

    Evaluated at every 5 % more updates (every 15 % below 0.3 `scale_updates`, not before 0.08 of
    them), and at the end; the first evaluation that reaches the target counts.

    Args:
        task: whose validation split is watched.
        recipe: with a target.
        most_updates: of this training in all, those of earlier calls included.
        scale_updates: about what the target needs; places the evaluations.
        state: file that keeps the training, from which a later call goes on; None keeps nothing.

    Returns:
        "evaluations" as [update, loss, metric], "trained" updates, "reached" (the update, or
        None), "diverged" (the update at which that was seen, or None), and the "wall_seconds" and
        "cpu_seconds" of the updates alone.
    """
    with Training(task, recipe) as training:
        curve = _restored(training, state)
        training.one_step.train_mode()
        while not _is_over(curve, most_updates, training):
            _step_until(training, _next_stop(curve, most_updates, scale_updates), curve)
            _note(curve, training.evaluate("validation"), training)
        if state is not None:
            kept = {"training": training.state_dict(), "curve": curve}
            write_atomically(state, lambda file: torch.save(kept, file))
    return curve


def _restored(training: Training, state: Path | None) -> dict[str, Any]:
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=False)
        training.load_state_dict(kept["training"])
        curve: dict[str, Any] = kept["curve"]
        return curve
    return {
        "evaluations": [],
        "trained": 0,
        "reached": None,
        "diverged": None,
        "wall_seconds": 0.0,
        "cpu_seconds": 0.0,
    }


def _is_over(curve: dict[str, Any], most_updates: int, training: Training) -> bool:
    ended = curve["reached"] is not None or curve["diverged"] is not None
    at_end = training.feed.examples >= training.feed.total_examples
    return ended or at_end or curve["trained"] >= most_updates


def _next_stop(curve: dict[str, Any], most_updates: int, scale_updates: float) -> int:
    trained: int = curve["trained"]
    factor = _COARSE if trained < 0.3 * scale_updates else _FINE
    wanted = max(trained + 1, math.ceil(factor * trained), math.ceil(0.08 * scale_updates))
    return min(wanted, most_updates)


def _step_until(training: Training, stop: int, curve: dict[str, Any]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    while training.updates < stop and training.feed.examples < training.feed.total_examples:
        training.step()
    curve["wall_seconds"] += time.perf_counter() - wall
    curve["cpu_seconds"] += time.process_time() - cpu
    curve["trained"] = training.updates


def _note(curve: dict[str, Any], record: EvalRecord, training: Training) -> None:
    curve["evaluations"].append([record.update, _plain(record.loss), _plain(record.metric)])
    if not math.isfinite(record.loss):
        curve["diverged"] = record.update
    elif training.target is not None and training.target.is_reached(record):
        curve["reached"] = record.update


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


# --- timing -------------------------------------------------------------------------------------


def step_seconds(
    task: Task, recipes: Mapping[str, Recipe], *, rounds: int = 7
) -> dict[str, dict[str, float]]:
    """Seconds of an update with each recipe, taken in turns, so that all see the same machine.

    A turn is about 0.2 s of updates, and at least 2,048 examples, with all that an update needs:
    gathering the batch, forward, backward, update; no record, no evaluation.

    Args:
        task: of all.
        recipes: key -> recipe.
        rounds: turns of each, >= 3.

    Returns:
        key -> medians of "wall_seconds" and "cpu_seconds", the least "fastest_seconds" of the wall
        clock, and "turns". With one thread and a quiet machine wall and CPU are the same.
    """
    trainings = {key: Training(task, recipe) for key, recipe in recipes.items()}
    try:
        counts = {key: _updates_a_turn(training) for key, training in trainings.items()}
        taken: dict[str, list[tuple[float, float]]] = {key: [] for key in recipes}
        for _ in range(rounds):
            for key, training in trainings.items():
                taken[key].append(_timed(training, counts[key]))
    finally:
        for training in reversed(trainings.values()):
            training.__exit__(None, None, None)
    return {key: _medians(turns) for key, turns in taken.items()}


def _updates_a_turn(training: Training) -> int:
    """After some updates to warm up."""
    training.one_step.train_mode()
    seconds, _ = min(_timed(training, 2) for _ in range(3))
    size = training.recipe.batch_size
    for_examples = 1 if size == "full" else math.ceil(_EXAMPLES_A_TURN / size)
    return max(1, round(_SECONDS_A_TURN / seconds), min(for_examples, round(1 / seconds)))


def _timed(training: Training, num_updates: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_updates):
        training.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall / num_updates, cpu / num_updates


def _medians(turns: Sequence[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*turns, strict=True)
    return {
        "wall_seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "fastest_seconds": min(wall),
        "turns": len(turns),
    }


def seconds_between(known: Mapping[int, float], batch_size: int) -> float:
    """Seconds of an update at a batch size between those that were timed.

    Straight lines between neighbours; beyond the last by its line to its neighbour, at least in
    proportion to the batch size; below the first as the first.

    Args:
        known: batch size -> seconds, of at least two.
        batch_size: any.

    Example:
        >>> seconds_between({8: 1.0, 32: 2.5}, 16), seconds_between({8: 1.0, 32: 2.5}, 64)
        (1.5, 5.0)
    """
    sizes = sorted(known)
    if batch_size <= sizes[0]:
        return known[sizes[0]]
    upper = next((size for size in sizes if size >= batch_size), sizes[-1])
    lower = sizes[sizes.index(upper) - 1]
    slope = (known[upper] - known[lower]) / (upper - lower)
    line = known[lower] + slope * (batch_size - lower)
    if batch_size <= upper:
        return line
    return max(line, known[upper] * batch_size / upper)
