"""The ladder: ever safer ways for a matrix whose ordinary inverse is of no use.

symmetrized   (X + X^T) / 2 in the place of the lower triangle
damped        a damping of at least rounding, 10 and then 100 times as large
fp64          the same in float64
eigen         by eigenvalues in float64, at its own damping; negative ones count as zero
diagonal      the inverse of the damped diagonal alone
none          no inverse: the statistic is not finite, or it and its damping are zero
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from anybatch.kfac.solvers import Solver, attempt, attempt_in_float64, by_eigenvalues, by_entries

__all__ = ["EventCounts", "Job", "Reason", "Rung", "SolveEvent", "climb"]

Rung: TypeAlias = Literal["symmetrized", "damped", "fp64", "eigen", "diagonal", "none"]
Reason: TypeAlias = Literal["not-definite", "inaccurate", "not-finite"]

_SMALLEST_EIGENVALUE = 32.0  # times rounding times the largest: what the inverse can hold

_LADDER: tuple[tuple[Rung, float], ...] = (
    ("symmetrized", 1.0),
    ("damped", 10.0),
    ("damped", 100.0),
    ("fp64", 100.0),
    ("eigen", 1.0),
    ("diagonal", 1.0),
)
_REASONS: tuple[Reason, ...] = ("not-definite", "inaccurate")  # of the verdicts 1 and 2; 0 is good


@dataclass(frozen=True, slots=True)
class SolveEvent:
    """An inversion that did not go the ordinary way.

    Attributes:
        name: of the factor.
        rung: that the worst of its matrices came to.
        damping_factor: by which that rung multiplied the damping, at most.
        reason: why the ordinary way did not do.
    """

    name: str
    rung: Rung
    damping_factor: float
    reason: Reason


@final
class EventCounts:
    """How often which factor came to which rung.

    Two events are met on the device, where nothing waits for them: a measurement of a factor that
    is not finite is "ignored"; a "step" whose length is not, or that has no inverse, is "dropped".

    Example:
        >>> counts = EventCounts()
        >>> counts.add(SolveEvent("0.A", "damped", 10.0, "not-definite"))
        >>> counts.state_dict(), counts.total
        ({'0.A': {'damped': 1}}, 1)
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._on_device: dict[tuple[str, str], Tensor] = {}  # not yet among the counts

    def add(self, event: SolveEvent) -> None:
        """Count one more event."""
        self.merge({event.name: {event.rung: 1}})

    def add_if(self, name: str, what: str, happened: Tensor) -> None:
        """Count one more event if it happened, which the host asks when the counts are read.

        Args:
            name: of the factor, or "step".
            what: happened to it.
            happened: 0-dim, true or false.
        """
        count = self._on_device.setdefault(
            (name, what), torch.zeros_like(happened, dtype=torch.int64)
        )
        count += happened

    def _settle(self) -> None:
        """Read what the device has counted; one synchronization, where there is something."""
        if not self._on_device:
            return
        found = torch.stack(list(self._on_device.values())).tolist()
        names, self._on_device = list(self._on_device), {}
        for (name, what), count in zip(names, found, strict=True):
            if count:
                self.merge({name: {what: count}})

    def merge(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add another rank's `state_dict`."""
        for name, rungs in counts.items():
            mine = self._counts.setdefault(name, {})
            for rung, count in rungs.items():
                mine[rung] = mine.get(rung, 0) + count

    @property
    def total(self) -> int:
        """Events so far."""
        self._settle()
        return sum(count for rungs in self._counts.values() for count in rungs.values())

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Events by name and rung, as plain values."""
        self._settle()
        return {name: dict(rungs) for name, rungs in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Remember what `state_dict` returned, and nothing else."""
        self._counts, self._on_device = {}, {}
        self.merge(state)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A factor that is to be inverted.

    Attributes:
        name: of the factor.
        statistic: (groups, side, side), or (groups, side) where only the diagonal is kept.
        damping: (groups,).
    """

    name: str
    statistic: Tensor
    damping: Tensor


def climb(
    job: Job, inverse: Tensor, verdicts: Sequence[int], solver: Solver
) -> tuple[Tensor | None, SolveEvent]:
    """Better inverses into the places of the bad ones; rare, so the host may wait.

    Args:
        job: that did not go the ordinary way.
        inverse: what the ordinary way made of it; is written to.
        verdicts: of its matrices, of which at least one is bad.
        solver: that was asked for.
    """
    bad = [group for group, value in enumerate(verdicts) if value]
    reason = _REASONS[verdicts[bad[0]] - 1]
    if not (torch.isfinite(job.statistic).all() and torch.isfinite(job.damping).all()):
        return None, SolveEvent(job.name, "none", 1.0, "not-finite")
    left = torch.tensor(bad, device=inverse.device)
    statistic, damping = job.statistic[left], job.damping[left]
    if statistic.dim() == 3:
        statistic = statistic / 2 + statistic.mT / 2
    for rung, factor in _LADDER if statistic.dim() == 3 else _LADDER[-1:]:
        used = _raised(statistic, damping, factor) if factor > 1.0 else damping
        better, verdict = _on_rung(rung, statistic, used, solver)
        good = verdict == 0
        inverse[left[good]] = better[good]
        if good.all():
            multiplied = float((used / damping).max()) if factor > 1.0 else 1.0
            return inverse, SolveEvent(job.name, rung, multiplied, reason)
        left, statistic, damping = left[~good], statistic[~good], damping[~good]
    return None, SolveEvent(job.name, "none", 1.0, reason)


def _on_rung(
    rung: Rung, statistic: Tensor, damping: Tensor, solver: Solver
) -> tuple[Tensor, Tensor]:
    """One way up the ladder for symmetric matrices; the inverse in their own precision."""
    dtype = statistic.dtype
    if rung == "diagonal":
        matrix = statistic.dim() == 3
        diagonal = statistic.diagonal(dim1=-2, dim2=-1) if matrix else statistic
        inverse, verdict = by_entries(diagonal.clamp_min(0.0), damping)
        return (torch.diag_embed(inverse) if matrix else inverse), verdict
    if rung == "fp64":
        return attempt_in_float64(statistic, damping, solver)
    if rung == "eigen":
        smallest = _SMALLEST_EIGENVALUE * torch.finfo(dtype).eps
        inverse, verdict = by_eigenvalues(statistic.double(), damping.double(), smallest)
        return inverse.to(dtype), verdict
    return attempt(statistic, damping, solver)


def _raised(statistic: Tensor, damping: Tensor, factor: float) -> Tensor:
    """A larger damping, (groups,): at least that many times what rounding makes of the diagonal."""
    diagonal = statistic.diagonal(dim1=-2, dim2=-1)
    rounding = torch.finfo(statistic.dtype).eps * diagonal.mean(dim=-1).abs()
    return factor * damping.maximum(rounding)
