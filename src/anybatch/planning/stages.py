"""What each stage of planning may cost, and where the pilot trains: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from anybatch.plan import PlanRequest
from anybatch.planning.arithmetic.sizes import batch_size_grid, friendly
from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.arithmetic.updates_model import relative_updates

__all__ = ["Budget", "allowed_sizes", "budget_of", "pilot_batch_size", "ramp_and_probe_updates"]

FEWEST_UPDATES = 2000
"""Of the present recipe, below which the procedure is the short one."""

_SHORT_SHARE = 0.3  # of the seconds of a run that is too short for a share of 5 %
_SHORT_SECONDS = (5.0, 18.0)  # least and most of the short procedure: 30 % of a minute
_LEAST_FULL = 60.0  # seconds that a full procedure needs to say more than the short one

_RAMP_SHARE = 0.85  # of a ramp's updates that are taken before its loss blows up
_USUAL_PROBES = {"full": 11.0, "short": 6.0}  # short trainings of a range test, and going back
_PROBE_UPDATES = (12, 36, 110)  # least; that tell something; most
_SHARE_TO_TELL = 1.0 / 25.0  # of a run's updates, at most, for that
_SQUARED_UPDATES_SECONDS = 24.0  # of a short training in the short procedure: 69 of 5 ms each


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Seconds for each stage.

    Attributes:
        procedure: "full" trains branches at several batch sizes, "short" does not.
        throughput: timing of updates.
        lr_range: of the range test.
        pilot: of training the pilot, which is part of the run.
        noise: of each noise-scale measurement.
        branches: of all branches; 0 in the short procedure.
        fewest_probe_updates: of a short training of the range test, whatever its seconds.
    """

    procedure: Literal["full", "short"]
    throughput: float
    lr_range: float
    pilot: float
    noise: float
    branches: float
    fewest_probe_updates: int = 12

    @property
    def measuring(self) -> float:
        """Seconds of all stages but the pilot."""
        return self.throughput + self.lr_range + self.noise + self.branches


def budget_of(present_seconds: float, present_updates: float, share: float) -> Budget:
    """Divide what measuring may cost among the stages.

    A run of a minute cannot be measured in 5 % of it: below 2,000 updates, or where the share is
    less than a minute, the short procedure takes up to 30 % of the run, from 5 to 18 seconds, a
    quarter of which is left to building models and to evaluations. Its stages end before, once they
    know enough.

    Args:
        present_seconds: that the present recipe would train.
        present_updates: that it would take.
        share: of its seconds, in (0, 1].

    Example:
        >>> budget_of(60.0, 5000, 0.05).procedure, round(budget_of(60.0, 5000, 0.05).measuring, 1)
        ('short', 13.5)
        >>> budget_of(36000.0, 90000, 0.05).procedure
        'full'
    """
    seconds = share * present_seconds
    few, enough, _ = _PROBE_UPDATES
    fewest = min(enough, max(few, int(_SHARE_TO_TELL * present_updates)))
    if present_updates < FEWEST_UPDATES or seconds < _LEAST_FULL:
        least, most = _SHORT_SECONDS
        seconds = max(seconds, min(most, max(least, _SHORT_SHARE * present_seconds)))
        return Budget(
            procedure="short",
            throughput=0.15 * seconds,
            lr_range=0.35 * seconds,
            pilot=0.6 * seconds,
            noise=0.25 * seconds,
            branches=0.0,
            fewest_probe_updates=fewest,
        )
    return Budget(
        procedure="full",
        throughput=min(20.0, 0.1 * seconds),
        lr_range=0.3 * seconds,
        pilot=0.6 * seconds,
        noise=0.1 * seconds,
        branches=0.4 * seconds,
        fewest_probe_updates=fewest,
    )


def allowed_sizes(request: PlanRequest) -> list[int]:
    """Batch sizes that suit the hardware and the set, ascending; may be none.

    Whole ghosts on each rank; on one rank also fewer examples than a ghost.

    Args:
        request: with the number of examples, the ghost, the ranks and the device.
    """
    total, ranks = request.num_examples, request.ranks
    ghost = request.recipe.ghost_batch_size or 1
    found = set[int]()
    for unit in {1, ghost} if ranks == 1 else {ghost}:
        if total < unit * ranks:
            continue
        grid = batch_size_grid(ranks=ranks, ghost=unit, set_size=total)
        suited = friendly(grid, device=request.device, ranks=ranks, ghost=unit, set_size=total)
        found |= {int(size) for size in suited if size < ghost or size % ghost == 0}
    return sorted(found)


def pilot_batch_size(
    time_model: TimeModel, sizes: list[int], critical_batch_size: float, *, ranks: int = 1
) -> int:
    """Where the pilot trains: least time under what is known of critical batch sizes in general.

    Args:
        time_model: of the machine.
        sizes: to choose from, ascending.
        critical_batch_size: usual one, in examples.
        ranks: that train together.
    """
    sizes_array = np.asarray(sizes, dtype=float)
    seconds = time_model.seconds_per_update(sizes_array, ranks=ranks)
    return int(sizes[int(np.argmin(seconds * relative_updates(sizes_array, critical_batch_size)))])


def ramp_and_probe_updates(budget: Budget, seconds_per_update: float) -> tuple[int, int]:
    """Updates of a ramp and of a short training that a range test can afford.

    The short procedure leaves the edge out where it does not matter, and spends less than it may:
    the cost of a short training of n updates is n t, and what it cannot tell of a long one falls
    like 1 / n, so that n ~ 1 / sqrt(t) has the least sum. Below 36 updates momentum has hardly
    begun to act: no fewer, unless that is more than 4 % of the run.

    Args:
        budget: with the procedure, and the seconds of the whole test.
        seconds_per_update: at its batch size.

    Example:
        >>> budget = budget_of(60.0, 5000, 0.05)
        >>> round(budget.lr_range, 2), ramp_and_probe_updates(budget, 0.02)
        (6.3, (40, 36))
    """
    affordable = budget.lr_range / max(seconds_per_update, 1e-9)
    fewest, most = budget.fewest_probe_updates, _PROBE_UPDATES[-1]
    if budget.procedure == "short":
        most = min(most, int((_SQUARED_UPDATES_SECONDS / max(seconds_per_update, 1e-9)) ** 0.5))
    probe = round((affordable - _RAMP_SHARE * 60) / _USUAL_PROBES[budget.procedure])
    probe = max(fewest, min(most, probe))
    return min(100, max(40, probe)), probe
