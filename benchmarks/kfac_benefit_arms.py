"""The optimizers that are compared, and the settings of each that are tried, equally many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from anybatch import (
    AdamWSettings,
    InputError,
    LARSSettings,
    MuonSettings,
    Recipe,
    SGDSettings,
)
from anybatch.recipe import FixedRefresh, KFACSettings
from benchmarks.kfac_benefit_problems import Problem

__all__ = [
    "ARMS",
    "TRIALS_PER_ARM",
    "Arm",
    "Fisher",
    "Setting",
    "Tried",
    "arms_of",
    "best_of",
    "next_setting",
]

Fisher: TypeAlias = Literal["empirical", "sampled"]

# The stored trainings inverted in updates 1, 6, 11, ...: none in between at first.
_REFRESH = FixedRefresh(statistics_every=1, inverse_every=5, early_inverses=False)

TRIALS_PER_ARM = 6
"""Tuning trainings of every arm on every problem, all on one seed."""


class Setting(NamedTuple):
    """A point of an arm's grid.

    Attributes:
        power: lr is 2 to this whole power.
        place: which of the arm's second values.
    """

    power: int
    place: int


class Tried(NamedTuple):
    """A setting and what came of it.

    Attributes:
        setting: what was tried.
        updates: to the target; None: not reached.
        value: the lowest that was seen, infinite after a divergence.
    """

    setting: Setting
    updates: int | None
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One optimizer.

    Attributes:
        name: in keys and tables.
        second: what is tuned beside the lr.
        values: of it.
        centre: power of 2 of the lr to begin with, by task.
        place: value to begin with.
    """

    name: str
    second: str
    values: tuple[float, ...]
    centre: dict[str, int]
    place: int = 0

    def recipe(self, base: Recipe, setting: Setting, fisher: Fisher = "empirical") -> Recipe:
        """The recipe with this optimizer at these settings.

        Args:
            base: everything else.
            setting: lr and second value.
            fisher: that K-FAC measures.
        """
        lr, value = 2.0**setting.power, self.values[setting.place]
        match self.name:
            case "sgd":
                return dataclasses.replace(base, optimizer=SGDSettings(lr=lr, momentum=value))
            case "adamw":
                return dataclasses.replace(base, optimizer=AdamWSettings(lr=lr, beta2=value))
            case "lars":
                return dataclasses.replace(base, optimizer=LARSSettings(lr=lr, momentum=value))
            case "muon":
                return dataclasses.replace(base, optimizer=MuonSettings(lr=lr, adamw_lr=value))
            case "kfac":
                optimizer = SGDSettings(lr=lr, momentum=0.9)
                preconditioner = KFACSettings(damping=value, fisher=fisher, refresh=_REFRESH)
                return dataclasses.replace(base, optimizer=optimizer, preconditioner=preconditioner)
        raise InputError("arm", "must be one of the benchmark's", self.name)


ARMS = (
    Arm(
        name="sgd",
        second="momentum",
        values=(0.9, 0.97),
        centre={"autoencoder": 2, "cifar": -3, "mnist": -3},
    ),
    Arm(
        name="kfac",
        second="damping",
        values=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        centre={"autoencoder": -3, "cifar": -3, "mnist": -3},
        place=2,
    ),
    Arm(
        name="adamw",
        second="beta2",
        values=(0.999, 0.99),
        centre={"autoencoder": -9, "cifar": -8, "mnist": -8},
    ),
    Arm(
        name="lars",
        second="momentum",
        values=(0.9, 0.97),
        centre={"autoencoder": 3, "cifar": 3, "mnist": 3},
    ),
    Arm(
        name="muon",
        second="AdamW's lr",
        values=(1e-3, 4e-3),
        centre={"autoencoder": -6, "cifar": -6, "mnist": -6},
    ),
)


def arms_of(problem: Problem) -> list[Arm]:
    """The arms that can be told from the others on this problem, SGD first.

    Args:
        problem: ResNet-8 has no hidden linear layer, so that Muon would be AdamW.
    """
    return [arm for arm in ARMS if arm.name != "muon" or problem.task != "cifar"]


def best_of(tried: Sequence[Tried]) -> Tried:
    """The one that reached the target first, or else came lowest.

    Args:
        tried: at least one.

    Example:
        >>> near, far = Tried(Setting(0, 0), None, 0.2), Tried(Setting(1, 0), 80, 0.1)
        >>> best_of([near, far]).updates
        80
    """
    return min(tried, key=lambda one: (one.updates or math.inf, one.value))


def next_setting(arm: Arm, centre: int, tried: Sequence[Tried]) -> Setting:
    """Where to look next: around the best so far, the lr by 4, the second value, the lr by 2, by 8.

    Args:
        arm: whose grid it is.
        centre: power of 2 of the first lr.
        tried: what was tried so far.

    Example:
        >>> grid, first = ARMS[0], Tried(Setting(-3, 0), 100, 0.1)
        >>> next_setting(grid, -3, []), next_setting(grid, -3, [first])
        (Setting(power=-3, place=0), Setting(power=-1, place=0))
    """
    if not tried:
        return Setting(centre, arm.place)
    seen = {one.setting for one in tried}
    power, place = best_of(tried).setting
    for up, along in ((2, 0), (-2, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (3, 0), (-3, 0)):
        setting = Setting(power + up, place + along)
        if setting not in seen and 0 <= setting.place < len(arm.values):
            return setting
    raise InputError("tried", "must leave a neighbour of the best one", len(tried))
