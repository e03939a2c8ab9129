"""Damped inverses that never fail: whatever comes in, no NaN goes on to the weights.

Ordinarily a factor costs one Cholesky decomposition and the inverse of its root: half as much as a
general inverse. What came out is tried on one vector (`solvers`). A matrix for which that goes
wrong climbs a ladder of ever safer ways (`ladder`), and its name is counted with the rung that it
came to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.ladder import EventCounts, Job, Reason, Rung, SolveEvent, climb
from anybatch.kfac.solvers import Solver, attempt

__all__ = [
    "LARGEST_BATCHED_SIDE",
    "EventCounts",
    "Reason",
    "Rung",
    "SolveEvent",
    "Solver",
    "damped_inverse",
    "damped_inverses",
]

LARGEST_BATCHED_SIDE = 256  # larger ones are inverted one by one: nothing to gain, memory to lose


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
    fixed vector v; other matrices climb the ladder. Sides of 1 and 2 take the adjugate.

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
            if any(mine):
                results.append(climb(job, inverse, mine, solver))
            else:
                results.append((inverse, None))
    return results


def _job(name: str, statistic: Tensor, damping: float | Tensor) -> Job:
    shape = tuple(statistic.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[1] == shape[2])):
        raise InputError(
            f"statistic {name}", "must be (groups, side, side) or (groups, side)", shape
        )
    dtype = torch.promote_types(statistic.dtype, torch.float32)
    added = torch.as_tensor(damping, dtype=dtype, device=statistic.device)
    return Job(name, statistic.to(dtype), added.expand(shape[0]))


def _first_tries(jobs: Sequence[Job], solver: Solver) -> list[tuple[Tensor, Tensor]]:
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
            tried[indices[0]] = attempt(job.statistic, job.damping, solver)
            continue
        inverse, verdict = attempt(
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
