"""What K-FAC brings: updates and processor seconds to the loss that tuned SGD reaches.

Every optimizer has the same number of tuning trainings on one seed. SGD's come first and fix the
target; then all are trained to it with three fresh seeds. The lr rises over the first updates: a
first run without this was thrown away, as the fastest lr of SGD and of K-FAC both diverged, or
nearly, on one of three seeds of the autoencoder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.kfac_benefit_arms import ARMS, Arm, arms_of
from benchmarks.kfac_benefit_problems import PROBLEMS, Problem, load_problem, problem_of
from benchmarks.kfac_benefit_runs import final_runs, seconds_per_update, target_of, tuned
from benchmarks.kfac_benefit_tables import benefit_table, benefit_verdict

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "kfac_benefit"
TITLE = "What K-FAC brings"
QUESTION = (
    "How many updates and processor seconds do SGD, AdamW, LARS, Muon and K-FAC, all tuned alike, "
    "need to the loss or error that tuned SGD with momentum reaches?"
)
PREDICTION = (
    "on the deep autoencoder K-FAC needs 0.3 x SGD's updates and 0.7 x its seconds; at batch 2,048 "
    "at most 0.75 x the updates of SGD on both networks (issue: at least 25 % fewer), but more "
    "seconds than SGD; at batch 256 between 0.6 x and 1 x the updates and more seconds; AdamW lies "
    "between SGD and K-FAC on the autoencoder and within 20 % of SGD elsewhere"
)

_SEEDS = (1, 2, 3)
_FIRST_ARMS = ("kfac", "sgd")


def trials() -> list[str]:
    """By problem: the target, K-FAC, SGD and the times; then the other arms of all problems."""
    first = [
        f"{problem.name}-{part}"
        for problem in PROBLEMS
        for part in ("target", *_FIRST_ARMS, "seconds")
    ]
    further = [
        f"{problem.name}-{arm.name}"
        for problem in PROBLEMS
        for arm in arms_of(problem)
        if arm.name not in _FIRST_ARMS
    ]
    return [*first, *further]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Fix a problem's target, take the times of its updates, or tune and train an arm.

    Args:
        key: one of `trials`.
        folder: keeps each finished training; the target's is looked for beside it.

    Raises:
        TrialSkippedError: the data are not under ANYBATCH_DATA.
    """
    name, _, part = key.rpartition("-")
    problem = problem_of(name)
    task = load_problem(problem, folder.parent / "photographs.pt")
    told: dict[str, Any] = {"problem": name, "part": part}
    if part == "seconds":
        return told | seconds_per_update(task, problem)
    aims = folder.parent / f"{name}-target"
    aims.mkdir(parents=True, exist_ok=True)
    sgd = target_of(aims, task, problem, _arm("sgd"))
    if part == "target":
        return told | sgd | {"problem_settings": dataclasses.asdict(problem)}
    return told | _arm_to_target(_arm(part), (folder, task, problem), sgd)


def _arm_to_target(
    arm: Arm, where: tuple[Path, Any, Problem], sgd: dict[str, Any]
) -> dict[str, Any]:
    folder, task, problem = where
    target = sgd["target"]
    chosen = sgd if arm.name == "sgd" else tuned(folder, task, problem, arm, target)
    runs = final_runs(folder, task, problem, arm, chosen, target=target, seeds=_SEEDS)
    return {**chosen, "target": target, "cap": 2 * problem.length, "runs": runs}


def _arm(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """K-FAC's updates and seconds beside SGD's, problem by problem.

    Args:
        results: key -> values of finished trials.
    """
    return benefit_verdict(results)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each problem and arm.

    Args:
        results: key -> values of finished trials.
    """
    return benefit_table(results)
