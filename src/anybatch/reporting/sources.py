"""What a report or a comparison is about: folders resolved into runs, each read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.plan import Plan, PlanOutcome
from anybatch.recipe import Recipe
from anybatch.records import EvalRecord, EventRecord, StepRecord
from anybatch.run import Run, Status, plan_outcome
from anybatch.study import Study

__all__ = ["Group", "Source", "Subject", "arm_runs", "read_groups", "task_name"]

Source = Run | Study | Path | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One run, as it was when it was read.

    Attributes:
        label: short name, unlike that of any other run of the report.
        path: of its folder.
        recipe: resolved.
        task: how it is made again.
        status: how it stands, or ended.
        steps: records of updates.
        evals: records of evaluations.
        events: what happened on the way.
        measurements: by kind.
        environments: one a session.
        plan: that was made here, or that the run follows; None without one.
        is_plan: whether the folder is the plan's; its recipe is then the planned one.
    """

    label: str
    path: Path
    recipe: Recipe
    task: Mapping[str, Any]
    status: Status
    steps: tuple[StepRecord, ...] = ()
    evals: tuple[EvalRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    environments: Sequence[Mapping[str, Any]] = ()
    plan: Plan | None = None
    is_plan: bool = False

    @classmethod
    def read(cls, run: Run, label: str) -> Subject:
        """Everything of a run that a report shows.

        Raises:
            InputError: a file of the run is damaged.
        """
        found = cls(
            label=label,
            path=run.path,
            recipe=run.recipe,
            task=run.task,
            status=run.status,
            steps=tuple(run.steps()),
            evals=tuple(run.evals()),
            events=tuple(run.events()),
            measurements=run.measurements(),
            environments=run.environments,
            plan=run.plan,
        )
        if found.plan is None or found._follows_plan:
            return found
        measured = found.measurements.items()
        ordered = dict(sorted(measured, key=lambda item: _place_in_plan(item[0])))
        return replace(found, recipe=found.plan.recipe, measurements=ordered, is_plan=True)

    @property
    def _follows_plan(self) -> bool:
        """Whether a run with a plan was trained by it; the pilot of a plan has no target."""
        begun = bool(self.steps or self.evals) or "throughput" not in self.measurements
        return begun and self.recipe.stopping.target is not None

    @property
    def is_measurement(self) -> bool:
        """Whether the folder holds measurements and no training but that of a plan's pilot."""
        return self.is_plan or (bool(self.measurements) and not self.steps and not self.evals)

    @property
    def outcome(self) -> PlanOutcome | None:
        """What the run took beside what its plan foretold; None without a plan or an end."""
        if self.plan is None or self.is_plan:
            return None
        return plan_outcome(self.plan, self.status)

    def evals_of(self, split: str) -> list[EvalRecord]:
        """The evaluations of a split, oldest first."""
        return [record for record in self.evals if record.split == split]

    def last_eval(self, split: str) -> EvalRecord | None:
        """The latest evaluation of a split, or None."""
        found = self.evals_of(split)
        return found[-1] if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that differ in nothing but the seed: an arm of a study, or a run alone.

    Attributes:
        label: short name, unlike that of any other group of the report.
        subjects: the runs, at least one unless none has been begun.
        planned: runs that were asked for.
        study: that it is an arm of; None for runs alone.
    """

    label: str
    subjects: tuple[Subject, ...]
    planned: int
    study: Study | None = None


def read_groups(sources: Iterable[Source]) -> list[Group]:
    """Read runs, studies and folders of runs, and put together what differs only in the seed.

    Raises:
        InputError: a place holds no run, or a damaged one, or is given twice.
    """
    groups: list[Group] = []
    loose: list[Run] = []
    seen: set[Path] = set()
    for source in sources:
        handle = _opened(source)
        where = _path(handle)
        if where.resolve() in seen:
            raise InputError("run", "must be given once", str(where))
        seen.add(where.resolve())
        if isinstance(handle, Study):
            groups += _study_groups(handle)
        else:
            loose += [handle] if isinstance(handle, Run) else _runs_below(handle)
    groups += _loose_groups(loose)
    if not groups:
        raise InputError("run", "must be given")
    return _with_unlike_labels(groups)


def arm_runs(source: Source) -> tuple[str, list[Run]]:
    """The label and the begun runs of one side of a comparison.

    Args:
        source: a run, a study of one arm, "STUDY:ARM", or a folder of runs.

    Raises:
        InputError: there is no such thing, or the arm must be named.
    """
    arm = ""
    if isinstance(source, str) and not Path(source).exists() and ":" in source:
        source, _, arm = source.rpartition(":")
    handle = _opened(source)
    where = _path(handle)
    if isinstance(handle, Run):
        return where.name, [handle]
    if not isinstance(handle, Study):
        return where.name, _runs_below(handle)
    known = ", ".join(handle.arms)
    if not arm and len(handle.arms) > 1:
        rule = f"must name one of its arms: {known}"
        raise InputError(str(where), rule, hint=f"{where}:{next(iter(handle.arms))}")
    arm = arm or next(iter(handle.arms))
    if arm not in handle.arms:
        raise InputError("arm", f"must be one of: {known}", arm)
    runs = [trial.run for trial in handle.trials() if trial.arm == arm]
    label = f"{where.name}:{arm}" if len(handle.arms) > 1 else where.name
    return label, [run for run in runs if run is not None]


_STAGES = ("throughput", "lr-range", "noise-scale", "pilot", "branches")


def _place_in_plan(name: str) -> tuple[int, str]:
    """Of a measurement, by name, among the stages of a plan."""
    kinds = [place for place, stage in enumerate(_STAGES) if name.startswith(stage)]
    return (kinds[0] if kinds else len(_STAGES)), name


def task_name(subject: Subject) -> str:
    """The task's name, or what to call one that was made by hand."""
    return str(subject.task.get("name") or "a task made by hand")


def _opened(source: Source) -> Run | Study | Path:
    if isinstance(source, Run | Study):
        return source
    path = Path(source)
    if Study.is_at(path):
        return Study(path)
    if (path / "recipe.json").is_file():
        return Run(path)
    if not path.is_dir() or not _runs_below(path):
        rule = "must be a folder with a run, a study, or folders of runs"
        raise InputError("run", rule, str(source))
    return path


def _path(handle: Run | Study | Path) -> Path:
    return handle if isinstance(handle, Path) else handle.path


def _runs_below(path: Path) -> list[Run]:
    return [Run(found.parent) for found in sorted(path.glob("*/recipe.json"))]


def _study_groups(study: Study) -> list[Group]:
    groups = []
    for arm in study.arms:
        trials = [trial for trial in study.trials() if trial.arm == arm]
        label = arm if len(study.arms) > 1 else study.path.resolve().name
        begun = [(trial, run) for trial in trials if (run := trial.run) is not None]
        subjects = [Subject.read(run, f"{label} seed {trial.seed}") for trial, run in begun]
        subjects_of_arm = tuple(subjects)
        groups.append(
            Group(label=label, subjects=subjects_of_arm, planned=len(trials), study=study)
        )
    if not groups:  # of an open-ended study, whose arms are yet to be decided
        groups.append(Group(label=study.path.resolve().name, subjects=(), planned=0, study=study))
    return groups


def _loose_groups(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same task and recipe together; measurements alone each by itself."""
    alike: dict[tuple[Any, ...], list[Subject]] = {}
    for run in runs:
        subject = Subject.read(run, run.path.resolve().name)
        recipe = replace(subject.recipe, seed=0, description="")
        name = subject.task.get("name")  # of tasks made by hand none is known to be another's
        apart = subject.path if subject.is_measurement or not name else name
        alike.setdefault((apart, repr(recipe)), []).append(subject)
    return [_loose_group(subjects) for subjects in alike.values()]


def _loose_group(subjects: list[Subject]) -> Group:
    label, more = subjects[0].label, len(subjects) - 1
    label = f"{label} and {more} more" if more else label
    return Group(label=label, subjects=tuple(subjects), planned=len(subjects))


def _with_unlike_labels(groups: list[Group]) -> list[Group]:
    """Labels that tell apart: those of two groups or runs that are the same get a number."""
    counts: dict[str, int] = {}

    def unlike(label: str) -> str:
        counts[label] = counts.get(label, 0) + 1
        return label if counts[label] == 1 else f"{label} ({counts[label]})"

    made = []
    for group in groups:
        label = unlike(group.label)
        lone = len(group.subjects) == 1 and group.subjects[0].label == group.label
        subjects = [
            replace(subject, label=label if lone else unlike(subject.label))
            for subject in group.subjects
        ]
        made.append(replace(group, label=label, subjects=tuple(subjects)))
    return made
