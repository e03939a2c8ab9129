"""Carrying out a study: each trial is a run, begun, resumed or already there."""

from __future__ import annotations

import shutil
import time

from anybatch.study import Study, Trial
from anybatch.task import Task
from anybatch.training.loop import fit, resume

__all__ = ["run_study"]


def run_study(
    study: Study, task: Task, *, seconds: float | None = None, progress: bool = True
) -> bool:
    """Run every trial that has not ended, one after another, in this process.

    Args:
        study: may have been begun before; interrupted runs go on where they stopped.
        task: of the study.
        seconds: begin no further trial once they are spent, or once the longest trial of this
            call would not fit into what is left; None: no limit.
        progress: show a progress bar for each trial.

    Returns:
        Whether every trial has ended.

    Raises:
        InputError: bad input met by a trial.
        KeyboardInterrupt: after Ctrl-C, once the trial's Run has been saved.
    """
    started, longest = time.monotonic(), 0.0
    for trial in study.trials():
        if trial.has_ended:
            continue
        begun = time.monotonic()
        if seconds is not None and begun - started + longest >= seconds:
            return False
        _run_trial(trial, task, progress)
        longest = max(longest, time.monotonic() - begun)
    return True


def _run_trial(trial: Trial, task: Task, progress: bool) -> None:
    if trial.run is not None:
        resume(trial.path, task=task, progress=progress)
    else:
        shutil.rmtree(trial.path, ignore_errors=True)  # what a kill left before it was a run
        fit(task, trial.recipe, out=trial.path, progress=progress)
