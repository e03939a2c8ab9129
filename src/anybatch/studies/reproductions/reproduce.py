"""Carrying a reproduction out: trial after trial, here or in other processes, resumable anywhere.

until nothing is due:
    the next trial of each search, and final trials of arms whose lr is decided

What is to be done next is read from the disk alone, so that it can be stopped anywhere.
"""

from __future__ import annotations

import time
from pathlib import Path

from anybatch.progress import Activity
from anybatch.studies.reproductions.folder import Due, ReproductionFolder
from anybatch.studies.reproductions.trial import Job
from anybatch.studies.workers import Workers, opened_workers

__all__ = ["reproduce"]


def reproduce(
    folder: ReproductionFolder,
    *,
    data: Path | None = None,
    on: str = "local",
    seconds: float | None = None,
    progress: bool = False,
) -> bool:
    """Carry out what is left of a reproduction.

    Args:
        folder: of it; `ReproductionFolder.open` makes one.
        data: folder of data sets; None takes ANYBATCH_DATA, then ./data.
        on: "local" (this process), "local:2" (two spawned ones), "ray", "ray:8".
        seconds: stop, everything saved, once they are over; None: go on to the end.
        progress: show what is being trained.

    Returns:
        Whether nothing is left.

    Raises:
        InputError: the data are not there, or a trial meets bad input.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.

    Cost:
        The search's trials of each searched arm, and a trial of each arm and seed.
    """
    deadline = None if seconds is None else time.time() + seconds
    data_folder = None if data is None else str(data.resolve())
    with (
        opened_workers(Workers.parse(on), None) as carried_out,
        Activity(f"reproduce {folder.name}", shown=progress) as activity,
    ):
        while due := [_job(one, data_folder, deadline) for one in folder.due()]:
            activity.show(f"{len(due)} trials in this round")
            for number, job in enumerate(carried_out(due), start=1):
                place = job.path.relative_to(folder.path)
                activity.show(f"{place} done, {number} of {len(due)} trials of this round")
            if deadline is not None and time.time() >= deadline:
                return not any(True for _ in folder.due())
    return True


def _job(due: Due, data: str | None, deadline: float | None) -> Job:
    return Job(path=due.path, arm=due.arm, stage=due.stage, data=data, deadline=deadline)
