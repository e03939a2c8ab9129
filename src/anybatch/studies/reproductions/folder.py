"""The folder of a reproduction: what is there, and what is to be carried out next. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping, to_plain
from anybatch.run import read_json, write_json
from anybatch.studies.reproductions.parts import Arm, Experiment, SameLR, Searched
from anybatch.studies.reproductions.results import (
    OUTCOME,
    ArmResult,
    Results,
    TrialResult,
    Tried,
)
from anybatch.studies.reproductions.search import Score, best_power, lr_at, next_power
from anybatch.studies.reproductions.table import claim_named
from anybatch.study import Study

__all__ = ["KIND", "Due", "ReproductionFolder"]

KIND = "reproduction"
"""Of the study, in its study.json."""

_SEARCH_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A trial that can be carried out now.

    Attributes:
        path: of its folder.
        arm: with its lr and seed.
        stage: what it is for.
    """

    path: Path
    arm: Arm
    stage: Literal["range", "tuning", "final"]


@final
class ReproductionFolder:
    """A handle on the folder of a reproduction.

    Args:
        path: of it; `open` makes a new one or goes on with one.

    Raises:
        InputError: there is no reproduction at `path`.

    Attributes:
        path: of the folder.
        name: of the claim.
        quick: whether it has the size that says nothing.
        seeds: of the final trials.
        experiment: the arms.
    """

    def __init__(self, path: Path | str) -> None:
        self.study = Study(path)
        self.path, about = self.study.path, self.study.about
        if about.get("kind") != KIND:
            raise InputError("runs", "must be the folder of a reproduction", str(path))
        self.name, self.quick = str(about["name"]), bool(about["quick"])
        self.seeds = tuple(self.study.seeds)
        self.experiment: Experiment = claim_named(self.name).experiment(quick=self.quick)
        for arm, settings in _protocol(self.experiment).items():
            if not _is_as(about["protocol"].get(arm), settings):
                rule = f"must be as the protocol of {self.name} has it now"
                raise InputError(f"{path}: arm {arm}", rule, hint="take a new --runs folder")

    @classmethod
    def open(cls, path: Path, name: str, *, quick: bool, seeds: int) -> ReproductionFolder:
        """The folder of a reproduction, made if it is not there.

        Args:
            path: of it; if it is there, a reproduction of the same claim and size.
            name: of the claim.
            quick: whether it has the size that says nothing.
            seeds: final trials of each arm, >= 1; more than before adds some.

        Raises:
            InputError: unknown claim, or the folder holds something else.
        """
        experiment = claim_named(name).experiment(quick=quick)
        if seeds < 1:
            raise InputError("seeds", "must be >= 1", seeds)
        wanted = list(range(_SEARCH_SEED + 1, _SEARCH_SEED + 1 + seeds))
        if not Study.is_at(path):
            about = {"kind": KIND, "name": name, "quick": quick}
            about |= {"protocol": _protocol(experiment)}
            Study.create(path, {}, wanted, {"reproduction": name}, about=about)
        made = cls(path)
        if (made.name, made.quick) != (name, quick):
            rule = "must be of the same claim and size"
            raise InputError("runs", rule, f"{made.name}{', quick' * made.quick} in {path}")
        if len(made.seeds) < seeds:
            write_json(path / "study.json", read_json(path / "study.json") | {"seeds": wanted})
        return cls(path)

    # --- lr ----------------------------------------------------------------------------------

    def _range_path(self, name: str) -> Path:
        return self.path / "range" / name

    def _tuning_path(self, name: str, lr: float) -> Path:
        return self.path / "tuning" / name / f"lr-{lr:.6g}"

    def _range_values(self, name: str) -> dict[str, Any] | None:
        found = _outcome(self._range_path(name))
        return None if found is None else dict(found["values"])

    def _centre(self, name: str) -> float | None:
        """Where the search begins; None while a range test is to be taken first."""
        arm = self.experiment.arms[name]
        if arm.lr != Searched(around="range-test"):
            return arm.recipe.optimizer.lr
        values = self._range_values(name)
        if values is None:
            return None
        return float(f"{values.get('max_lr', arm.recipe.optimizer.lr):.3g}")

    def _trials_of(self, name: str) -> int:
        with_range = self.experiment.arms[name].lr == Searched(around="range-test")
        return max(1, self.experiment.search_trials - with_range)

    def _tried(self, name: str) -> dict[int, Score]:
        """Power of two -> score, of the trials of an arm's search that have ended."""
        centre, found = self._centre(name), dict[int, Score]()
        if centre is None:
            return found
        trials = self.experiment.search_trials
        for power in range(-trials, trials + 1):
            outcome = _outcome(self._tuning_path(name, lr_at(centre, power)))
            if outcome is not None:
                found[power] = _score(outcome)
        return found

    def lr_of(self, name: str) -> float | None:
        """The lr that an arm trains with; None while it is not decided."""
        arm = self.experiment.arms[name]
        if arm.lr is None:
            return arm.recipe.optimizer.lr
        if isinstance(arm.lr, SameLR):
            other = self.lr_of(arm.lr.arm)
            return None if other is None else lr_at(other * arm.lr.factor, 0)
        centre, tried = self._centre(name), self._tried(name)
        if centre is None or next_power(tried, self._trials_of(name)) is not None:
            return None
        return lr_at(centre, best_power(tried))

    # --- what is next ------------------------------------------------------------------------

    def due(self) -> Iterator[Due]:
        """Every trial that can be carried out now: searches first, then final trials by seed.

        A decided arm becomes an arm of the study on the way.
        """
        decided = {}
        for name, arm in self.experiment.arms.items():
            lr = self.lr_of(name)
            if lr is None:
                yield from self._search(name, arm)
                continue
            decided[name] = arm.with_lr(lr)
            if name not in self.study.arms:
                self.study.add_arm(name, decided[name].recipe)
        for seed in self.seeds:
            for name, arm in decided.items():
                path = self.path / name / f"seed-{seed}"
                if not (path / OUTCOME).exists():
                    yield Due(path=path, arm=_seeded(arm, seed), stage="final")

    def _search(self, name: str, arm: Arm) -> Iterator[Due]:
        """The next trial of an arm's search; none while it waits for another arm's."""
        if not isinstance(arm.lr, Searched):
            return
        centre = self._centre(name)
        if centre is None:
            yield Due(path=self._range_path(name), arm=_seeded(arm, _SEARCH_SEED), stage="range")
            return
        power = next_power(self._tried(name), self._trials_of(name))
        if power is not None:
            lr = lr_at(centre, power)
            trial = _seeded(arm.with_lr(lr), _SEARCH_SEED)
            yield Due(path=self._tuning_path(name, lr), arm=trial, stage="tuning")

    # --- what was found ----------------------------------------------------------------------

    def results(self) -> Results:
        """Everything that has been found so far."""
        arms = {name: self._arm_result(name) for name in self.experiment.arms}
        outcomes = [_read(path) for path in sorted(self.path.rglob(OUTCOME))]
        return Results(
            name=self.name,
            quick=self.quick,
            seeds=self.seeds,
            search_trials=self.experiment.search_trials,
            arms=arms,
            environment=outcomes[-1]["environment"] if outcomes else {},
            seconds=sum(float(outcome["seconds"]) for outcome in outcomes),
        )

    def _arm_result(self, name: str) -> ArmResult:
        arm, centre = self.experiment.arms[name], self._centre(name)
        finals = {s: _outcome(self.path / name / f"seed-{s}") for s in self.seeds}
        has_range = arm.lr == Searched(around="range-test")
        named = (self._range_values(name) or {}).get("max_lr") if has_range else None
        tried = sorted(self._tried(name).items()) if isinstance(arm.lr, Searched) else []
        return ArmResult(
            name=name,
            lr=self.lr_of(name),
            planned=len(self.seeds),
            trials=tuple(_trial(seed, found) for seed, found in finals.items() if found),
            tried=tuple(_as_tried(lr_at(centre or 0.0, power), score) for power, score in tried),
            range_lr=named,
            has_range=has_range,
            group=arm.group,
            place=arm.place,
        )


def _seeded(arm: Arm, seed: int) -> Arm:
    return replace(arm, recipe=replace(arm.recipe, seed=seed))


def _outcome(path: Path) -> dict[str, Any] | None:
    return _read(path / OUTCOME) if (path / OUTCOME).exists() else None


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    for key in ("outcome", "values", "series", "seconds", "environment"):
        if key not in values:
            raise InputError(str(path), f"must hold {key}")
    return values


def _score(outcome: Mapping[str, Any]) -> Score:
    values = outcome["values"]
    if outcome["outcome"] == "diverged" or "validation_accuracy" not in values:
        return Score(diverged=True)
    return Score(False, 1.0 - values["validation_accuracy"], values["validation_loss"])


def _as_tried(lr: float, score: Score) -> Tried:
    return Tried(
        lr=lr, diverged=score.diverged, accuracy=None if score.diverged else 1.0 - score.error
    )


def _trial(seed: int, outcome: Mapping[str, Any]) -> TrialResult:
    series = {name: tuple(values) for name, values in outcome["series"].items()}
    values, ended = outcome["values"], outcome["outcome"]
    return TrialResult(seed=seed, outcome=ended, values=values, series=series)


def _protocol(experiment: Experiment) -> dict[str, Any]:
    """What the trials of each arm depend on, as plain values."""
    return {
        name: {
            "recipe": _without_seed(arm.recipe),
            "problem": asdict(arm.problem),
            "lr": to_plain(arm.lr) | {"kind": type(arm.lr).__name__} if arm.lr else None,
            "procedure": to_plain(arm.procedure),
            "search_trials": experiment.search_trials,
        }
        for name, arm in experiment.arms.items()
    }


def _is_as(stored: Any, settings: dict[str, Any]) -> bool:
    """Whether a stored arm is the present one; settings that came later count by their defaults."""
    if not isinstance(stored, dict):
        return False
    try:
        recipe = _without_seed(recipe_from_mapping(stored["recipe"]))
    except InputError:  # of a setting that is no more
        return False
    return stored | {"recipe": recipe} == settings


def _without_seed(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe_to_mapping(recipe).items() if k != "seed"}
