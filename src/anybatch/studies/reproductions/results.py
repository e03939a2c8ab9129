"""What a reproduction has found: from its folder, or from the JSON beside its page. No torch.

ARM/seed-1/outcome.json              final trials
tuning/ARM/lr-0.1/outcome.json       trials that the lr was searched by
range/ARM/outcome.json               LR range tests
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from anybatch.errors import InputError
from anybatch.records import plain

__all__ = ["OUTCOME", "ArmResult", "Results", "TrialResult", "Tried"]

OUTCOME = "outcome.json"
"""File of a trial that has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """A final trial.

    Attributes:
        seed: of it.
        outcome: how it ended.
        values: by name; none of a diverged one.
        series: along the way, by name.
    """

    seed: int
    outcome: Literal["finished", "diverged"]
    values: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def value(self, quantity: str) -> float | None:
        """A value by name, or the K-th of a series by "NAME_at_K"; None where there is none."""
        name, _, place = quantity.partition("_at_")
        looks = self.series.get(name, ())
        if place.isdigit() and 1 <= int(place) <= len(looks):
            return looks[int(place) - 1]
        return self.values.get(quantity)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A trial of the search.

    Attributes:
        lr: that it had.
        diverged: whether it did.
        accuracy: on validation; None where it diverged.
    """

    lr: float
    diverged: bool
    accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What is known of an arm.

    Attributes:
        name: of the arm.
        lr: that it trains with; None while it is not decided.
        planned: final trials.
        trials: of them, those that have ended, by seed.
        tried: trials of the search, ascending.
        range_lr: that an LR range test named; None where there was none, or it named none.
        has_range: whether the search begins with a range test.
        group: of a grid.
        place: in the grid.
    """

    name: str
    lr: float | None
    planned: int
    trials: tuple[TrialResult, ...] = ()
    tried: tuple[Tried, ...] = ()
    range_lr: float | None = None
    has_range: bool = False
    group: str = ""
    place: tuple[float, ...] = ()

    @property
    def diverged(self) -> int:
        """Final trials that diverged."""
        return sum(trial.outcome == "diverged" for trial in self.trials)

    def values(self, quantity: str) -> dict[int, float]:
        """Seed -> value, of the trials that have it."""
        found = {trial.seed: trial.value(quantity) for trial in self.trials}
        return {s: v for s, v in found.items() if v is not None and math.isfinite(v)}

    def mean(self, quantity: str) -> float | None:
        """Mean over seeds; None where no trial has the quantity."""
        values = self.values(quantity).values()
        return statistics.fmean(values) if values else None

    @property
    def edge(self) -> str:
        """Which end of what was tried the lr found is: "smallest" or "largest"; "" for neither."""
        if self.lr is None or len(self.tried) < 2:
            return ""
        ends = {self.tried[0].lr: "smallest", self.tried[-1].lr: "largest"}
        return ends.get(self.lr, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that a reproduction has found so far.

    Attributes:
        name: of the claim.
        quick: whether it was run at the size that says nothing.
        seeds: of the final trials.
        search_trials: of each searched arm.
        arms: by name.
        environment: versions and hardware of the trials.
        seconds: that all trials took together.
    """

    name: str
    quick: bool
    seeds: tuple[int, ...]
    search_trials: int
    arms: Mapping[str, ArmResult]
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def missing(self) -> list[str]:
        """What has not been trained, in words; empty where the results are complete."""
        told = []
        for arm in self.arms.values():
            if arm.lr is None:
                told.append(f"{arm.name}: the search for its lr and {arm.planned} trials")
            elif len(arm.trials) < arm.planned:
                told.append(f"{arm.name}: {arm.planned - len(arm.trials)} of {arm.planned} trials")
        return told

    def group(self, name: str) -> list[ArmResult]:
        """The arms of a grid."""
        return [arm for arm in self.arms.values() if arm.group == name]

    def mean(self, arm: str, quantity: str) -> float:
        """Mean of an arm's quantity over seeds; nan where there is none."""
        found = self.arms[arm].mean(quantity)
        return math.nan if found is None else found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes the same results."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """What `to_dict` returned.

        Raises:
            InputError: it holds something else.
        """
        from cattrs import Converter

        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            found: Results = Converter().structure(known, cls)
        except (ExceptionGroup, KeyError, TypeError, ValueError) as error:
            raise InputError("results", "must be those of a reproduction", str(error)) from None
        return found

    @staticmethod
    def outcome_at(path: Path) -> Path:
        """The file that tells how the trial at `path` ended, which may not be there."""
        return path / OUTCOME
