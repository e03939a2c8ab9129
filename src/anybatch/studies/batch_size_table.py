"""A study of batch sizes as it stands on the disk: trials, and the table they add up to. No torch.

study.json                       what was asked; an arm for each batch size, once its lr is decided
tuning/batch-32/lr-0.1/          trials that the lr was chosen by
batch-32/seed-1/                 Runs of the table
sessions.json                    processes and threads, for each time that it was carried on
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, final

from anybatch.errors import InputError
from anybatch.recipe import Recipe, Target
from anybatch.recipe_mapping import recipe_from_mapping
from anybatch.records import EvalRecord, plain
from anybatch.run import Run, read_json
from anybatch.schedules import Duration
from anybatch.studies.batch_size_grid import LOOK_GROWTH, has_constant_schedules
from anybatch.studies.halving import History
from anybatch.study import Study, Trial

__all__ = [
    "KIND",
    "LOADING",
    "BatchSizeRow",
    "BatchSizeStudy",
    "Spread",
    "TrialOutcome",
    "batch_size_table",
]

KIND = "batch-size"
"""Of the study, in its study.json."""

LOADING = "loading.json"
"""File of a run: seconds that the loader alone takes for one of its updates."""

Outcome: TypeAlias = Literal[
    "reached", "not reached within the cap", "diverged", "under way", "left behind"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOutcome:
    """One training of the study.

    Attributes:
        batch_size: examples per update.
        lr: of the optimizer.
        seed: of the run.
        stage: "tuning", or "table" for the runs that count.
        outcome: how it ended; "left behind" in tuning, where others went on instead.
        updates: to the target, to the divergence, or trained so far.
        examples: seen until then.
        seconds: of training until then, loading included, evaluation left out.
        computing_seconds: the same without loading: less what the loader alone took for as many
            updates, timed before the run; None where it was not timed, as in tuning.
        resolution: updates between the evaluation that reached the target and the one before.
    """

    batch_size: int
    lr: float
    seed: int
    stage: Literal["tuning", "table"]
    outcome: Outcome
    updates: int
    examples: int
    seconds: float
    computing_seconds: float | None = None
    resolution: int | None = None


class Spread(NamedTuple):
    """Median and range over runs; infinite for those that did not reach the target."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSizeRow:
    """What the runs of one batch size add up to.

    A run that missed the target counts as longer than any other, so the median is infinite where
    half of them or more did: a median of the lucky ones would flatter.

    Attributes:
        batch_size: examples per update.
        lr: chosen or given; None while it is not decided.
        planned: runs that the study asks for.
        ended: of them.
        reached: ended runs that reached the target.
        diverged_at: update of each divergence, of ended runs.
        updates: to the target; None where no run has ended.
        examples: to the target.
        seconds: of training to the target, loading included.
        computing_seconds: the same without loading; None where it was not timed.
        note: what to know before this row is believed; may be empty.
    """

    batch_size: int
    lr: float | None
    planned: int
    ended: int = 0
    reached: int = 0
    diverged_at: tuple[int, ...] = ()
    updates: Spread | None = None
    examples: Spread | None = None
    seconds: Spread | None = None
    computing_seconds: Spread | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """Of the ended runs that reached the target; None where none has ended."""
        return self.reached / self.ended if self.ended else None


@final
class BatchSizeStudy:
    """A handle on the directory of a study of batch sizes.

    Args:
        path: of it; `study_batch_size` makes a new one.

    Raises:
        InputError: there is no such study, or it is damaged.

    Attributes:
        path: of the directory.
        study: the arms that are decided, and their runs.
        recipe: of the study: batch size and lr that the grid is made from, target, and the cap as
            its duration.
        target: as text, "accuracy >= 0.98".
        batch_sizes: ascending.
        fixed_lr: the same for all; None where it is tuned.
        num_examples: of the training split; None for a stream of unknown length.
    """

    def __init__(self, path: Path | str) -> None:
        self.study = Study(path)
        self.path = self.study.path
        about = self.study.about
        if about.get("kind") != KIND:
            raise InputError("study", "must be a study of batch sizes", str(path))
        try:
            self.recipe: Recipe = recipe_from_mapping(about["recipe"])
            self.target = str(about["target"])
            self.batch_sizes: tuple[int, ...] = tuple(about["batch_sizes"])
            self.fixed_lr: float | None = about["lr"]
            self.num_examples: int | None = about["num_examples"]
        except KeyError as error:
            raise InputError(str(self.path / "study.json"), f"must hold {error}") from None

    @staticmethod
    def is_at(path: Path | str) -> bool:
        """Whether the folder holds a study of batch sizes."""
        return Study.is_at(Path(path)) and Study(path).about.get("kind") == KIND

    # --- where things are --------------------------------------------------------------------

    @staticmethod
    def arm(batch_size: int) -> str:
        """Name of the arm of a batch size."""
        return f"batch-{batch_size}"

    def trials(self, batch_size: int) -> list[Trial]:
        """The trials of the table with this batch size; none while its lr is not decided."""
        return [trial for trial in self.study.trials() if trial.arm == self.arm(batch_size)]

    def tuning_path(self, batch_size: int, lr: float) -> Path:
        """Folder of a trial that the lr is chosen by."""
        return self.path / "tuning" / self.arm(batch_size) / f"lr-{lr:.6g}"

    def tuning_runs(self, batch_size: int) -> dict[float, Run]:
        """The runs that were begun to choose the lr, by lr."""
        folder = self.path / "tuning" / self.arm(batch_size)
        found = (Run(file.parent) for file in folder.glob("*/recipe.json"))
        return dict(sorted((run.recipe.optimizer.lr, run) for run in found))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Processes and threads of each session, oldest first."""
        path = self.path / "sessions.json"
        return list(read_json(path).get("sessions", [])) if path.exists() else []

    # --- what was seen -----------------------------------------------------------------------

    def history(self, run: Run) -> History:
        """What halving may know of a run; of one under way, the rounds before its present one."""
        status, duration = run.status, run.recipe.duration
        is_under_way = status.name not in ("finished", "target-missed", "diverged")
        is_under_way = is_under_way or (status.name == "target-missed" and _is_longer(run))
        sign = -1.0 if Target.parse(self.target).relation == ">=" else 1.0
        records = self._judged(run)
        return History(
            updates=_before(duration) if is_under_way else status.update,
            seen={r.update: (_number(sign * self._value(r)), _number(r.loss)) for r in records},
            reached=None if is_under_way else status.target_update,
            diverged=_divergence(run) if status.name == "diverged" else None,
        )

    def _judged(self, run: Run) -> list[EvalRecord]:
        split = self.recipe.stopping.target_on
        return [record for record in run.evals() if record.split == split]

    def _value(self, record: EvalRecord) -> float:
        return record.loss if Target.parse(self.target).quantity == "loss" else record.metric

    def outcomes(self, batch_size: int) -> list[TrialOutcome]:
        """Every training with this batch size that was begun, the tuning first."""
        tuning = [self._outcome(run, "tuning") for run in self.tuning_runs(batch_size).values()]
        runs = [trial.run for trial in self.trials(batch_size)]
        return tuning + [self._outcome(run, "table") for run in runs if run is not None]

    def _outcome(self, run: Run, stage: Literal["tuning", "table"]) -> TrialOutcome:
        status, recipe = run.status, run.recipe
        updates, count, resolution = status.update, status.examples, None
        seconds = status.seconds
        if status.target_update is not None:
            looks = [0, *(record.update for record in self._judged(run))]
            updates, seconds = status.target_update, status.target_seconds or 0.0
            resolution = updates - max(look for look in looks if look < updates)
            count = next(r.examples for r in self._judged(run) if r.update == updates)
        elif status.name == "diverged":
            updates = _divergence(run)
        loading = _seconds_of_loading(run)
        return TrialOutcome(
            batch_size=int(recipe.batch_size),
            lr=recipe.optimizer.lr,
            seed=recipe.seed,
            stage=stage,
            outcome=_told(run, stage),
            updates=updates,
            examples=count,
            seconds=seconds,
            computing_seconds=None if loading is None else max(0.0, seconds - updates * loading),
            resolution=resolution,
        )

    # --- what it adds up to ------------------------------------------------------------------

    def table(self) -> list[BatchSizeRow]:
        """One row for each batch size, ascending; see `batch_size_table`."""
        return [self._row(batch_size) for batch_size in self.batch_sizes]

    def _row(self, batch_size: int) -> BatchSizeRow:
        arm = self.study.arms.get(self.arm(batch_size))
        outcomes = [found for found in self.outcomes(batch_size) if found.stage == "table"]
        ended = [found for found in outcomes if found.outcome != "under way"]
        timed = all(found.computing_seconds is not None for found in ended)
        return BatchSizeRow(
            batch_size=batch_size,
            lr=None if arm is None else arm.optimizer.lr,
            planned=len(self.study.seeds),
            ended=len(ended),
            reached=sum(found.outcome == "reached" for found in ended),
            diverged_at=tuple(found.updates for found in ended if found.outcome == "diverged"),
            updates=_spread(ended, [found.updates for found in ended]),
            examples=_spread(ended, [found.examples for found in ended]),
            seconds=_spread(ended, [found.seconds for found in ended]),
            computing_seconds=_spread(ended, [found.computing_seconds or 0.0 for found in ended])
            if timed
            else None,
            note=self._note(batch_size, arm, ended),
        )

    def _note(self, batch_size: int, arm: Recipe | None, ended: Sequence[TrialOutcome]) -> str:
        """What makes a row less than it seems."""
        told = []
        tried = list(self.tuning_runs(batch_size))
        if arm is not None and len(tried) > 1 and arm.optimizer.lr in (tried[0], tried[-1]):
            end = "smallest" if arm.optimizer.lr == tried[0] else "largest"
            told.append(f"the lr is the {end} that was tried")
        coarse = [
            found.resolution / found.updates
            for found in ended
            if found.resolution is not None and found.resolution > 1
        ]
        if coarse and max(coarse) > 1.2 * LOOK_GROWTH:  # the last look overshoots by an update
            told.append(f"updates are known to {100 * max(coarse):.0f} % only")
        return "; ".join(told)

    @property
    def is_complete(self) -> bool:
        """Whether every run of the table has ended."""
        return all(row.ended == row.planned for row in self.table())

    def notes(self) -> list[str]:
        """What to know before the table is believed."""
        told = []
        if not has_constant_schedules(self.recipe):
            told.append(
                "the recipe's schedules stretch over the cap, not over the way to the target: "
                "batch sizes are compared at different points of them "
                "(--set schedules.lr.name=constant)"
            )
        told += [f"batch {row.batch_size}: {row.note}" for row in self.table() if row.note]
        return told

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for programs; infinity as text."""
        rows = [asdict(row) | {"share": row.share} for row in self.table()]
        trials = [asdict(found) for size in self.batch_sizes for found in self.outcomes(size)]
        values: dict[str, Any] = plain(
            {
                "study": str(self.path),
                "target": self.target,
                "target_on": self.recipe.stopping.target_on,
                "cap": str(self.recipe.duration),
                "complete": self.is_complete,
                "rows": [row | {n: _named(row[n]) for n in _SPREADS} for row in rows],
                "trials": trials,
                "notes": self.notes(),
                "sessions": self.sessions,
            }
        )
        return values


_SPREADS = ("updates", "examples", "seconds", "computing_seconds")


def _named(spread: Sequence[float] | None) -> dict[str, float] | None:
    return None if spread is None else Spread(*spread)._asdict()


def batch_size_table(path: Path | str) -> list[BatchSizeRow]:
    """The table of a study of batch sizes, from its folder alone; also of one under way.

    Args:
        path: of the study.

    Returns:
        One row for each batch size, ascending.

    Raises:
        InputError: there is no such study, or it is damaged.
    """
    return BatchSizeStudy(path).table()


def _before(duration: Duration) -> int:
    """Updates of which a run is known that has not come to the end of this duration."""
    return int(duration.count) - 1 if duration.unit == "updates" else 0


def _is_longer(run: Run) -> bool:
    """Whether a run was lengthened and then killed before it was noted that it goes on."""
    duration = run.recipe.duration
    return duration.unit == "updates" and run.status.update < duration.count


def _told(run: Run, stage: str) -> Outcome:
    status = run.status
    if status.name == "diverged":
        return "diverged"
    if status.target_update is not None:
        return "reached"
    if status.name not in ("finished", "target-missed"):
        return "under way"
    return "not reached within the cap" if stage == "table" else "left behind"


def _divergence(run: Run) -> int:
    """The update at which the loss was no number: told by the reason, the log being coarser."""
    status = run.status
    found = re.search(r"at update (\d+)", status.reason)
    return int(found.group(1)) if found else status.update


def _seconds_of_loading(run: Run) -> float | None:
    path = run.path / LOADING
    seconds = read_json(path).get("seconds_per_update") if path.exists() else None
    return float(seconds) if seconds is not None else None


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _spread(ended: Sequence[TrialOutcome], values: Sequence[float]) -> Spread | None:
    """Median and range, a run that missed the target counting as infinite."""
    if not ended:
        return None
    counted = [
        float(value) if found.outcome == "reached" else math.inf
        for found, value in zip(ended, values, strict=True)
    ]
    return Spread(statistics.median(counted), min(counted), max(counted))
