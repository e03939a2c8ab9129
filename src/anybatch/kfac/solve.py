"""Damped inverses that never fail: whatever comes in, no NaN goes on to the weights.

Ordinarily a factor costs one Cholesky decomposition and the inverse of its root: half as much as a
general inverse. What came out is tried on one vector. A matrix for which that goes wrong climbs a
ladder of ever safer ways, and its name is counted with the rung that it came to:

    symmetrized   (X + X^T) / 2 in the place of the lower triangle
    damped        a damping of at least rounding, 10 and then 100 times as large
    fp64          the same in float64
    eigen         by eigenvalues in float64, at its own damping; negative ones count as zero
    diagonal      the inverse of the damped diagonal alone
    none          no inverse: the statistic is not finite, or it and its damping are zero
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from anybatch.errors import InputError

__all__ = [
    "EventCounts",
    "Reason",
    "Rung",
    "SolveEvent",
    "Solver",
    "damped_inverse",
    "damped_inverses",
]

Solver: TypeAlias = Literal["cholesky", "eigen"]
Rung: TypeAlias = Literal["symmetrized", "damped", "fp64", "eigen", "diagonal", "none"]
Reason: TypeAlias = Literal["not-definite", "inaccurate", "not-finite"]

LARGEST_ERROR = 0.1  # |M (X v) - v| / |v| of a useful inverse X; float32 is there at condition 1e7
LARGEST_BATCHED_SIDE = 256  # larger ones are inverted one by one: nothing to gain, memory to lose
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

    Example:
        >>> counts = EventCounts()
        >>> counts.add(SolveEvent("0.A", "damped", 10.0, "not-definite"))
        >>> counts.state_dict(), counts.total
        ({'0.A': {'damped': 1}}, 1)
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def add(self, event: SolveEvent) -> None:
        """Count one more event."""
        self.merge({event.name: {event.rung: 1}})

    def merge(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add another rank's `state_dict`."""
        for name, rungs in counts.items():
            mine = self._counts.setdefault(name, {})
            for rung, count in rungs.items():
                mine[rung] = mine.get(rung, 0) + count

    @property
    def total(self) -> int:
        """Events so far."""
        return sum(count for rungs in self._counts.values() for count in rungs.values())

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Events by name and rung, as plain values."""
        return {name: dict(rungs) for name, rungs in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Remember what `state_dict` returned, and nothing else."""
        self._counts = {}
        self.merge(state)


def damped_inverse(
    statistic: Tensor, damping: float | Tensor, *, solver: Solver = "cholesky", name: str
) -> tuple[Tensor | None, SolveEvent | None]:
    """(X + damping I)^-1 of one factor; see `damped_inverses`.

    Example:
        >>> damped_inverse(torch.ones(1, 1, 1), 1.0, name="0.A")
        (tensor([[[0.5000]]]), None)
    """
    return damped_inverses([(name, statistic, damping)], solver=solver)[0]


@torch.no_grad()
def damped_inverses(
    factors: Sequence[tuple[str, Tensor, float | Tensor]], *, solver: Solver = "cholesky"
) -> list[tuple[Tensor | None, SolveEvent | None]]:
    """(X + damping I)^-1 of many factors, never a NaN, and what went wrong.

    An inverse counts as good when it has a positive diagonal and |M (X v) - v| < |v| / 10 for a
    fixed vector v; other matrices climb the module's ladder. Sides of 1 and 2 take the adjugate.

    Args:
        factors: of each its name; the statistic X, symmetric (groups, side, side), or
            (groups, side) where only the diagonal is kept; what is added to its diagonal, >= 0: a
            number, 0-dim or (groups,). All on one device. X is never written to.
        solver: "cholesky", or "eigen": eigenvalues below zero count as zero, at about ten times
            the cost.

    Returns:
        For each factor: the inverse, exactly symmetric, in float32 or, for a float64 statistic, in
        float64, or None where a statistic is not finite or nothing but zero; and None or the event.

    Raises:
        InputError: a statistic of another shape.

    Cost:
        side^3 multiply-adds a matrix; two further copies of the largest one. Matrices of equal side
        up to 256 are inverted in one call. The host waits once for all (with "eigen" on a GPU
        torch waits in each decomposition), and again only where a factor climbs.

    Example:
        >>> flat = torch.ones(1, 3, 3)  # of rank one
        >>> [(inverse, event)] = damped_inverses([("0.A", flat, 0.5)])
        >>> torch.allclose(inverse[0] @ (flat[0] + 0.5 * torch.eye(3)), torch.eye(3), atol=1e-6)
        True

    Reference:
        Higham (2002), Accuracy and stability of numerical algorithms, chapters 10 and 14.
    """
    jobs = [_job(*factor) for factor in factors]
    if not jobs:
        return []
    with torch.autocast(jobs[0].statistic.device.type, enabled=False):
        tried = _first_tries(jobs, solver)
        verdicts = torch.cat([verdict for _, verdict in tried]).tolist()  # the one synchronization
        results: list[tuple[Tensor | None, SolveEvent | None]] = []
        for job, (inverse, verdict) in zip(jobs, tried, strict=True):
            mine, verdicts = verdicts[: len(verdict)], verdicts[len(verdict) :]
            bad = [group for group, value in enumerate(mine) if value]
            if bad:
                results.append(_climb(job, inverse, bad, _REASONS[mine[bad[0]] - 1], solver))
            else:
                results.append((inverse, None))
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    name: str
    statistic: Tensor
    damping: Tensor  # (groups,)


def _job(name: str, statistic: Tensor, damping: float | Tensor) -> _Job:
    shape = tuple(statistic.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[1] == shape[2])):
        raise InputError(
            f"statistic {name}", "must be (groups, side, side) or (groups, side)", shape
        )
    dtype = torch.promote_types(statistic.dtype, torch.float32)
    added = torch.as_tensor(damping, dtype=dtype, device=statistic.device)
    return _Job(name, statistic.to(dtype), added.expand(shape[0]))


def _first_tries(jobs: Sequence[_Job], solver: Solver) -> list[tuple[Tensor, Tensor]]:
    """Inverse and verdicts, (groups,), of every job; equal sides together."""
    together: dict[object, list[int]] = {}
    for index, job in enumerate(jobs):
        shape = job.statistic.shape[1:]
        alone = len(shape) == 2 and shape[0] > LARGEST_BATCHED_SIDE
        together.setdefault((shape, job.statistic.dtype, index if alone else -1), []).append(index)
    tried: dict[int, tuple[Tensor, Tensor]] = {}
    for indices in together.values():
        if len(indices) == 1:
            job = jobs[indices[0]]
            tried[indices[0]] = _attempt(job.statistic, job.damping, solver)
            continue
        inverse, verdict = _attempt(
            torch.cat([jobs[index].statistic for index in indices]),
            torch.cat([jobs[index].damping for index in indices]),
            solver,
        )
        groups = [len(jobs[index].damping) for index in indices]
        # Copies: a factor must not keep the whole batch in memory.
        parts = [part.clone() for part in torch.split(inverse, groups)]
        tried.update(
            zip(indices, zip(parts, torch.split(verdict, groups), strict=True), strict=True)
        )
    return [tried[index] for index in range(len(jobs))]


# --- one way each: inverse (groups, ...), verdicts (groups,): 0 good, 1 not definite, 2 inaccurate


def _attempt(statistic: Tensor, damping: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    if statistic.dim() == 2:
        return _by_entries(statistic, damping)
    if statistic.shape[-1] <= 2:
        return _by_adjugate(statistic, damping)
    if solver == "cholesky":
        return _by_cholesky(statistic, damping)
    return _by_eigenvalues(statistic, damping)


def _by_entries(diagonal: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Of a diagonal (groups, side)."""
    damped = diagonal + damping[:, None]
    inverse = damped.reciprocal()
    good = (diagonal >= 0) & torch.isfinite(damped) & torch.isfinite(inverse)
    return inverse, 1 - good.all(dim=-1).to(torch.uint8)


def _by_adjugate(statistic: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Of sides 1 and 2, in float64, which holds products of float32 numbers exactly."""
    matrix = _damped(statistic.double(), damping.double())
    if matrix.shape[-1] < 2:
        inverse, definite = matrix.reciprocal(), (matrix > 0).flatten(1).all(dim=-1)
    else:
        first, beside, last = matrix[:, 0, 0], matrix[:, 1, 0], matrix[:, 1, 1]
        determinant = first * last - beside.square()
        adjugate = torch.stack([last, -beside, -beside, first], dim=-1).view(-1, 2, 2)
        inverse = adjugate / determinant[:, None, None]
        definite = (determinant > 0) & (first > 0)
    inverse = inverse.to(statistic.dtype)
    answer = _times(inverse.double(), _probe(matrix))
    return inverse, _verdict(inverse, _times(matrix, answer), definite)


def _by_cholesky(statistic: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    matrix = _damped(statistic, damping)
    root, failed = torch.linalg.cholesky_ex(matrix)
    if matrix.is_cuda:
        # cholesky_inverse would make the host wait, and is this solve inside.
        inverse = torch.cholesky_solve(torch.eye(matrix.shape[-1]).to(matrix), root)
        inverse = (inverse + inverse.mT) / 2
    else:
        if failed.any():  # an unfinished root would raise
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
            root = torch.where((failed == 0)[:, None, None], root, eye)
        inverse = torch.cholesky_inverse(root)  # both triangles of one computation: symmetric
    answer = _times(inverse, _probe(matrix))
    return inverse, _verdict(inverse, _times(matrix, answer), failed == 0)


def _by_eigenvalues(
    statistic: Tensor, damping: Tensor, smallest: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Eigenvalues below zero count as zero; damped ones are at least `smallest` of the largest."""
    eye = torch.eye(statistic.shape[-1], dtype=statistic.dtype, device=statistic.device)
    finite = torch.isfinite(statistic).flatten(1).all(dim=-1)
    try:
        values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], statistic, eye))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it did not converge
        return torch.zeros_like(statistic), torch.ones_like(finite, dtype=torch.uint8)
    damped = values.clamp_min(0.0) + damping[:, None]
    damped = damped.maximum(smallest * damped[:, -1:])
    root = vectors * damped.rsqrt()[:, None, :]
    wide = root.double() if root.is_cuda else root  # whatever precision products are set to
    inverse = (wide @ wide.mT).to(statistic.dtype)
    inverse = (inverse + inverse.mT) / 2
    answer = _times(inverse, _probe(statistic))
    raised = (damped - values) * _times(vectors.mT, answer)
    image = _times(statistic, answer) + _times(vectors, raised)
    return inverse, _verdict(inverse, image, finite & torch.isfinite(damping))


def _damped(statistic: Tensor, damping: Tensor) -> Tensor:
    matrix = statistic.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    return matrix


def _probe(matrix: Tensor) -> Tensor:
    """A fixed vector of all frequencies, (1, side): cos(sqrt(2) pi i^2)."""
    index = torch.arange(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    return torch.cos(math.sqrt(2.0) * math.pi * index.square()).to(matrix.dtype)[None]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(groups, n, n) times (groups or 1, n): never in the reduced precision of a GPU's products."""
    if len(matrix) == 1:
        return torch.mv(matrix[0], vector[0])[None]
    return (matrix * vector[:, None, :]).sum(dim=-1)


def _verdict(inverse: Tensor, image: Tensor, definite: Tensor) -> Tensor:
    """Of an inverse and what M X makes of the probe."""
    probe = _probe(image)
    error = torch.linalg.vector_norm(image - probe, dim=-1) / torch.linalg.vector_norm(probe)
    positive = (inverse.diagonal(dim1=-2, dim2=-1) > 0).all(dim=-1)
    good = positive & (error < LARGEST_ERROR)  # not of a NaN
    return torch.where(definite, 2 * (~good).to(torch.uint8), 1)


# --- the ladder: rare, so the host may wait ------------------------------------------------------


def _climb(
    job: _Job, inverse: Tensor, bad: list[int], reason: Reason, solver: Solver
) -> tuple[Tensor | None, SolveEvent]:
    """Better inverses into the places of the bad ones."""
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
        inverse, verdict = _by_entries(diagonal.clamp_min(0.0), damping)
        return (torch.diag_embed(inverse) if matrix else inverse), verdict
    if rung == "fp64":
        wide, wide_damping = statistic.double(), damping.double()
        inverse, verdict = _attempt(wide, wide_damping, solver)
        inverse = inverse.to(dtype)  # as it will be used: rounding may be what spoils it
        answer = _times(inverse.double(), _probe(wide))
        image = _times(_damped(wide, wide_damping), answer)
        return inverse, _verdict(inverse, image, verdict == 0)
    if rung == "eigen":
        smallest = _SMALLEST_EIGENVALUE * torch.finfo(dtype).eps
        inverse, verdict = _by_eigenvalues(statistic.double(), damping.double(), smallest)
        return inverse.to(dtype), verdict
    return _attempt(statistic, damping, solver)


def _raised(statistic: Tensor, damping: Tensor, factor: float) -> Tensor:
    """A larger damping, (groups,): at least that many times what rounding makes of the diagonal."""
    diagonal = statistic.diagonal(dim1=-2, dim2=-1)
    rounding = torch.finfo(statistic.dtype).eps * diagonal.mean(dim=-1).abs()
    return factor * damping.maximum(rounding)
