"""Study: arms x seeds, a directory of Runs and the table that they add up to. Needs no torch.

study.json              arms with their recipes, seeds, task, what kind of study it is
ARM/seed-0/, ...        one Run each
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from anybatch.drawing import html_table
from anybatch.errors import ExitCode, InputError
from anybatch.recipe import Recipe
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.run import SCHEMA, Run, new_folder, read_json, write_json

__all__ = ["ArmSummary", "Study", "Trial"]

_ENDED = ("finished", "target-missed", "diverged")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One arm with one seed.

    Attributes:
        arm: name of the arm.
        seed: of the run.
        path: of its Run, which may not exist yet.
        recipe: of the arm, with this seed.
    """

    arm: str
    seed: int
    path: Path
    recipe: Recipe

    @property
    def run(self) -> Run | None:
        """The Run, or None while it has not been begun."""
        return Run(self.path) if (self.path / "recipe.json").exists() else None

    @property
    def has_ended(self) -> bool:
        """Whether the run came to an end of its own."""
        run = self.run
        return run is not None and run.status.name in _ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """What the ended runs of an arm add up to.

    Attributes:
        arm: name of the arm.
        n: ended runs, diverged ones included.
        planned: runs that the study asks for.
        metric_name: of the values below.
        split: that they were measured on: test where there is one, else validation.
        mean: over the runs that did not diverge; None where there are none.
        standard_deviation: of one run, with n - 1; None below two runs.
        lowest: of the runs.
        highest: of the runs.
        reached: runs that reached the target; None without a target.
        diverged: runs that diverged.
        mean_seconds: of training, to the target for runs that reached it.
    """

    arm: str
    n: int
    planned: int
    metric_name: str
    split: str
    mean: float | None
    standard_deviation: float | None
    lowest: float | None
    highest: float | None
    reached: int | None
    diverged: int
    mean_seconds: float | None


@final
class Study:
    """A handle on a study's directory.

    Args:
        path: the directory; `Study.create` makes a new one.

    Raises:
        InputError: there is no study at `path`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.is_at(self.path):
            raise InputError("study", "must be a folder with a study.json", str(path))
        values = read_json(self.path / "study.json")
        for key, kind in (("seeds", list), ("task", dict), ("arms", dict)):
            if not isinstance(values.get(key), kind):
                raise InputError(str(self.path / "study.json"), f"must hold {key}", values.get(key))
        self.seeds: list[int] = values["seeds"]
        self.task: dict[str, Any] = values["task"]
        self.about: dict[str, Any] = values.get("about") or {}
        self.arms = {name: recipe_from_mapping(r) for name, r in values["arms"].items()}

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether the folder holds a study."""
        return (path / "study.json").is_file()

    @classmethod
    def create(
        cls,
        path: Path | str,
        arms: Mapping[str, Recipe],
        seeds: Sequence[int],
        task: dict[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
    ) -> Study:
        """Make a new study's directory.

        Args:
            path: a folder that does not exist or is empty.
            arms: recipes by name, which is also that of a folder; their seeds are replaced.
            seeds: one run each for every arm; all different.
            task: how the task is made again, plain values.
            about: what kind of study it is, plain values; such a study may begin without arms,
                which `add_arm` then adds.

        Raises:
            InputError: no arms or seeds, seeds that repeat, a name that is a path, or the folder
                holds something.
        """
        path = Path(path)
        if not (arms or about) or not seeds:
            raise InputError("study", "must have at least one arm and one seed")
        if len(set(seeds)) != len(seeds):
            raise InputError("seeds", "must all be different", list(seeds))
        for name in arms:
            _require_folder_name(name)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            hint = f"--resume {path} continues it" if cls.is_at(path) else ""
            raise InputError("out", "must be a new or empty folder", str(path), hint=hint)
        mappings = {name: recipe_to_mapping(recipe) for name, recipe in arms.items()}
        values = {"schema": SCHEMA, "arms": mappings, "seeds": list(seeds), "task": task}
        values |= {"about": dict(about)} if about else {}
        with new_folder(path):
            write_json(path / "study.json", values)
        return cls(path)

    def add_arm(self, name: str, recipe: Recipe) -> None:
        """Add an arm that was decided on while the study went on.

        Args:
            name: as in `create`, not yet an arm's.
            recipe: its seed is replaced.

        Raises:
            InputError: a name that is a path or an arm's already, or a place that is not writable.
        """
        _require_folder_name(name)
        if name in self.arms:
            raise InputError("arm", "must be a new one", repr(name))
        values = read_json(self.path / "study.json")
        values["arms"][name] = recipe_to_mapping(recipe)
        write_json(self.path / "study.json", values)
        self.arms[name] = recipe

    def trials(self) -> list[Trial]:
        """Every arm with every seed, seed by seed, so that a partial study compares arms fairly."""
        return [
            Trial(
                arm=name,
                seed=seed,
                path=self.path / name / f"seed-{seed}",
                recipe=replace(recipe, seed=seed),
            )
            for seed in self.seeds
            for name, recipe in self.arms.items()
        ]

    def summaries(self) -> list[ArmSummary]:
        """One row for each arm."""
        return [self._summary(name) for name in self.arms]

    def _summary(self, arm: str) -> ArmSummary:
        trials = [trial for trial in self.trials() if trial.arm == arm]
        runs = [trial.run for trial in trials if trial.has_ended]
        sound = [run for run in runs if run is not None and run.status.name != "diverged"]
        split = "test" if any(run.last_eval("test") for run in sound) else "validation"
        evals = [found for run in sound if (found := run.last_eval(split)) is not None]
        values = [record.metric for record in evals]
        seconds = [run.status.target_seconds or run.status.seconds for run in sound]
        has_target = self.arms[arm].stopping.target is not None
        return ArmSummary(
            arm=arm,
            n=len(runs),
            planned=len(trials),
            metric_name=evals[0].metric_name if evals else "",
            split=split,
            mean=statistics.fmean(values) if values else None,
            standard_deviation=statistics.stdev(values) if len(values) > 1 else None,
            lowest=min(values, default=None),
            highest=max(values, default=None),
            reached=sum(run.status.target_update is not None for run in sound)
            if has_target
            else None,
            diverged=len(runs) - len(sound),
            mean_seconds=statistics.fmean(seconds) if seconds else None,
        )

    def _repr_html_(self) -> str:
        """Mean and spread of each arm, for notebooks."""
        rows = {}
        for row in self.summaries():
            values = "no value yet" if row.mean is None else f"{row.mean:.4f}"
            if row.standard_deviation is not None:
                values += f" (standard deviation {row.standard_deviation:.4f})"
            what = f"{row.split} {row.metric_name} ".lstrip() if row.metric_name else ""
            rows[row.arm] = f"{what}{values}, {row.n} of {row.planned} runs"
        return html_table(self.path.name, rows)

    def to_dict(self) -> dict[str, Any]:
        """Path, summaries and runs as plain values, for programs."""
        runs = [trial.run for trial in self.trials()]
        return {
            "study": str(self.path),
            "arms": [asdict(summary) for summary in self.summaries()],
            "runs": [run.to_dict() for run in runs if run is not None],
        }

    @property
    def exit_code(self) -> int:
        """The worst of the runs' exit codes: diverged, then target missed, then 0."""
        codes = [int(run.status.exit_code) for trial in self.trials() if (run := trial.run)]
        return max(codes, default=int(ExitCode.OK))


def _require_folder_name(name: str) -> None:
    if Path(name).name != name or name in ("", ".."):
        raise InputError("arm", "must be a plain folder name", repr(name))
