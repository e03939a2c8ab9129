"""Trainings to a target, the search of settings, and the processor time of an update."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anybatch import Recipe, RecordSettings, Stopping, Task, Training, updates
from anybatch.records import StepRecord
from anybatch.run import read_json, write_json
from anybatch.training.evaluation import evaluate
from benchmarks.critical_batch_reach import evaluation_points
from benchmarks.kfac_benefit_arms import (
    TRIALS_PER_ARM,
    Arm,
    Setting,
    Tried,
    arms_of,
    best_of,
    next_setting,
)
from benchmarks.kfac_benefit_problems import Problem, base_recipe

__all__ = ["final_runs", "seconds_per_update", "target_of", "train_to", "tuned"]

_TUNING_SEED = 100
_LOSER = 1.5
_BLOWN_UP = 10.0
_TARGET_SHARE = 0.75
_ROUNDS, _TURN = 5, 5  # a turn holds whole periods of K-FAC's refresh


def train_to(task: Task, recipe: Recipe, *, target: float, first: int, cap: int) -> dict[str, Any]:
    """Train until the validation value is at most the target, or to the cap.

    The value is the mean loss of a regression, the share of wrong examples of a classification.

    Args:
        task: what is learned.
        recipe: its duration and intervals are replaced.
        target: to be reached.
        first: update of the first evaluation; further ones stand 5 % apart.
        cap: updates at most.

    Returns:
        `updates` at which it was reached or None, `status` ("reached", "cap" or "diverged": the
        loss is not finite or 10 times its first value), `evaluations` as [update, value],
        `processor_seconds` of the whole training.
    """
    recipe = dataclasses.replace(
        recipe,
        duration=updates(cap),
        records=RecordSettings(log_every=1),
        stopping=Stopping(evaluate_every=updates(cap)),
    )
    evaluations: list[list[float]] = []
    points = evaluation_points(first, cap)
    point, status, initial = next(points), "cap", math.inf
    started = time.process_time()
    with Training(task, recipe) as training:
        for record in training:
            if not isinstance(record, StepRecord):
                break
            initial = record.loss if record.update == 1 else initial
            if not record.loss <= _BLOWN_UP * initial:
                status = "diverged"
                break
            if record.update < point:
                continue
            evaluations.append([record.update, _value(training)])
            if evaluations[-1][1] <= target:
                status = "reached"
            if status == "reached" or record.update >= cap:
                break
            point = next(p for p in points if p > record.update)
    return {
        "updates": evaluations[-1][0] if status == "reached" else None,
        "status": status,
        "evaluations": evaluations,
        "processor_seconds": round(time.process_time() - started, 2),
    }


def _value(training: Training) -> float:
    objectives = (training.one_step.plain_loss, training.task.judge)
    source, compute = training.task.source("validation"), training.recipe.compute
    loss, metric = evaluate(training.kept_model, source, objectives, compute, training.world)
    value = loss if training.task.kind == "regression" else 1.0 - metric
    return round(value, 6) if math.isfinite(value) else 1e9


def _kept(path: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a training told, kept in a file, so that an ended session is gone on with."""
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    told = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    return told


# --- tuning -------------------------------------------------------------------------------------


def target_of(folder: Path, task: Task, problem: Problem, arm: Arm) -> dict[str, Any]:
    """Tune SGD by the lowest value; the target is what its best training reached at 3/4 of it.

    Args:
        folder: keeps each training.
        task: what is learned.
        problem: with its length.
        arm: SGD's.

    Returns:
        `target`, and what `tuned` tells.
    """
    path = folder / "target.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    trainings: list[dict[str, Any]] = []
    tried: list[Tried] = []
    for _ in range(TRIALS_PER_ARM):
        setting = next_setting(arm, arm.centre[problem.task], tried)
        trainings.append(_tune(folder, task, problem, arm, setting, -math.inf, problem.length))
        tried.append(Tried(setting, None, _lowest(trainings[-1])))
    until = _TARGET_SHARE * problem.length
    target = min(
        value
        for training in trainings
        if training["status"] != "diverged"
        for update, value in training["evaluations"]
        if update <= until
    )
    for training in trainings:
        reached = (update for update, value in training["evaluations"] if value <= target)
        training["updates"] = next(reached, None)
    tried = [
        Tried(one.setting, training["updates"], one.value)
        for one, training in zip(tried, trainings, strict=True)
    ]
    told = {"target": target, **_chosen(arm, tried), "tuning": trainings}
    write_json(path, told)
    return told


def tuned(folder: Path, task: Task, problem: Problem, arm: Arm, target: float) -> dict[str, Any]:
    """The settings of an arm that need fewest updates to the target.

    A training ends once it has taken 1.5 times the updates of the best one so far.

    Args:
        folder: keeps each training.
        task: what is learned.
        problem: with its length, the cap of every training.
        arm: what is tuned.
        target: to be reached.

    Returns:
        `power` and `place` of the setting, `lr`, `second`, and `tuning`: each training.
    """
    trainings: list[dict[str, Any]] = []
    tried: list[Tried] = []
    for _ in range(TRIALS_PER_ARM):
        setting = next_setting(arm, arm.centre[problem.task], tried)
        best = min((one.updates for one in tried if one.updates), default=problem.length)
        cap = min(problem.length, math.ceil(_LOSER * best))
        told = _tune(folder, task, problem, arm, setting, target, cap)
        trainings.append(told)
        tried.append(Tried(setting, told["updates"], _lowest(told)))
    return {**_chosen(arm, tried), "tuning": trainings}


def _tune(
    folder: Path,
    task: Task,
    problem: Problem,
    arm: Arm,
    setting: Setting,
    target: float,
    cap: int,
) -> dict[str, Any]:
    recipe = arm.recipe(base_recipe(problem), setting, problem.fisher)
    recipe = dataclasses.replace(recipe, seed=_TUNING_SEED)
    run = functools.partial(train_to, task, recipe, target=target, first=problem.first, cap=cap)
    told = _kept(folder / f"tune_{setting.power}_{setting.place}.json", run)
    return {"lr": 2.0**setting.power, "second": arm.values[setting.place], **told}


def _lowest(told: dict[str, Any]) -> float:
    if told["status"] == "diverged":
        return math.inf
    return min((value for _, value in told["evaluations"]), default=math.inf)


def _chosen(arm: Arm, tried: list[Tried]) -> dict[str, Any]:
    power, place = best_of(tried).setting
    return {"power": power, "place": place, "lr": 2.0**power, "second": arm.values[place]}


# --- what is reported ---------------------------------------------------------------------------


def final_runs(
    folder: Path,
    task: Task,
    problem: Problem,
    arm: Arm,
    chosen: dict[str, Any],
    *,
    target: float,
    seeds: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Trainings to the target with fresh seeds, at most twice SGD's tuning length.

    Args:
        folder: keeps each training.
        task: what is learned.
        problem: with its length.
        arm: what is trained with.
        chosen: the setting, by `power` and `place`.
        target: to be reached.
        seeds: other ones than that of the tuning.
    """
    setting = Setting(chosen["power"], chosen["place"])
    recipe = arm.recipe(base_recipe(problem), setting, problem.fisher)
    told = []
    for seed in seeds:
        run = functools.partial(
            train_to,
            task,
            dataclasses.replace(recipe, seed=seed),
            target=target,
            first=problem.first,
            cap=2 * problem.length,
        )
        told.append({"seed": seed, **_kept(folder / f"final_{seed}.json", run)})
    return told


def seconds_per_update(task: Task, problem: Problem) -> dict[str, Any]:
    """Processor seconds of an update of every arm, in turns of 5 updates, 5 rounds.

    K-FAC's turn holds its inversion once and its statistics 5 times, as its trainings do.

    Args:
        task: what is learned.
        problem: that is trained.

    Returns:
        `rounds`: arm -> seconds of an update, in each; `medians`.
    """
    arms = arms_of(problem)
    trainings = {}
    for arm in arms:
        setting = Setting(-20, arm.place)  # moves next to nothing
        recipe = arm.recipe(base_recipe(problem), setting, problem.fisher)
        trainings[arm.name] = Training(task, dataclasses.replace(recipe, duration=updates(10_000)))
    rounds: list[dict[str, float]] = []
    for number in range(_ROUNDS + 1):
        place = number % len(arms)
        taken = {}
        for arm in (*arms[place:], *arms[:place]):
            training = trainings[arm.name]
            training.one_step.train_mode()
            torch.set_num_threads(1)
            started = time.process_time()
            for _ in range(_TURN):
                training.step()
            taken[arm.name] = round((time.process_time() - started) / _TURN, 5)
        if number:
            rounds.append(taken)
    medians = {arm.name: statistics.median(taken[arm.name] for taken in rounds) for arm in arms}
    return {"rounds": rounds, "medians": medians}
