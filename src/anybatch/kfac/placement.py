"""Placement: which rank inverts which factors, the longest first. Never imports torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anybatch.errors import InputError

__all__ = [
    "FactorCost",
    "Placement",
    "block_costs",
    "block_of",
    "factor_costs",
    "factor_owners",
    "place",
    "precondition_costs",
    "stage_table",
]


class Sized(Protocol):
    """What a cost is computed from: a `FactorShape`, or anything with its sizes."""

    @property
    def name(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def side(self) -> int: ...
    @property
    def diagonal(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Owners of units of work, and what each rank has to do.

    Attributes:
        owner: rank by unit.
        loads: cost by rank, 0 of an idle one.
    """

    owner: Mapping[str, int]
    loads: tuple[float, ...]

    @property
    def makespan(self) -> float:
        """The load of the busiest rank, which all others wait for."""
        return max(self.loads)

    @property
    def idle(self) -> int:
        """How many ranks own nothing."""
        return len(self.loads) - len(set(self.owner.values()))


def place(costs: Mapping[str, float], ranks: int) -> Placement:
    """Give every unit of work an owner: the longest first, each to the rank with the least load.

    The makespan is at most 4/3 - 1 / (3 ranks) of the best possible one. Ties go by the unit's name
    and to the lowest rank, so that every rank finds the same placement by itself.

    Args:
        costs: of each unit, finite and >= 0, in any one unit of measure.
        ranks: among which to divide, >= 1; some stay idle where there are fewer units.

    Raises:
        InputError: ranks below 1, or a cost that is negative or not finite.

    Example:
        >>> placed = place({"a": 3.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 2.0}, 2)
        >>> dict(placed.owner), placed.loads
        ({'a': 0, 'b': 1, 'c': 0, 'd': 1, 'e': 0}, (7.0, 5.0))

    Cost:
        Units * log(units) + units * log(ranks) comparisons.

    Reference:
        Graham (1969), Bounds on multiprocessing timing anomalies, theorem 2.
    """
    if ranks < 1:
        raise InputError("ranks", "must be >= 1", ranks)
    for unit, cost in costs.items():
        if not (math.isfinite(cost) and cost >= 0):
            raise InputError(f"the cost of {unit}", "must be finite and >= 0", cost)
    least = [(0.0, rank) for rank in range(ranks)]  # a heap as it is
    owner: dict[str, int] = {}
    for unit in sorted(costs, key=lambda unit: (-costs[unit], unit)):
        load, rank = least[0]
        owner[unit] = rank
        heapq.heapreplace(least, (load + costs[unit], rank))
    by_rank = sorted((rank, load) for load, rank in least)
    return Placement(owner, tuple(load for _, load in by_rank))


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorCost:
    """Seconds of one inversion of a factor: groups * (fixed + side^3 * each + bytes * each).

    A diagonal costs its entries in the place of side^3. By default the result is in multiply-adds,
    with bytes weighed as memory is against arithmetic on common machines.

    Attributes:
        fixed: for each matrix, >= 0.
        per_multiply_add: >= 0.
        per_byte: of the packed factor, >= 0: what the owner receives, sends and moves.

    Example:
        >>> from types import SimpleNamespace
        >>> shape = SimpleNamespace(name="fc.A", groups=2, side=10, diagonal=False)
        >>> FactorCost(fixed=1.0, per_byte=0.0).of(shape)
        2002.0
    """

    fixed: float = 0.0
    per_multiply_add: float = 1.0
    per_byte: float = 10.0

    def of(self, factor: Sized) -> float:
        """The cost of one factor."""
        side = factor.side
        entries = side if factor.diagonal else side * (side + 1) // 2
        multiply_adds = side if factor.diagonal else side**3
        each = self.fixed + self.per_multiply_add * multiply_adds + self.per_byte * 4 * entries
        return float(factor.groups * each)

    @classmethod
    def fitted(cls, sides: Sequence[int], seconds: Sequence[float]) -> FactorCost:
        """The line a + b side^3 through measured seconds, by least squares of relative errors.

        Args:
            sides: of dense matrices that were inverted, two different ones at least.
            seconds: that each took, > 0.

        Raises:
            InputError: fewer than two sides, or seconds that are not above 0.

        Example:
            >>> cost = FactorCost.fitted([100, 200, 400], [1.1e-3, 1.8e-3, 7.4e-3])
            >>> round(cost.fixed * 1e3, 3), round(cost.per_multiply_add * 1e9, 3)
            (1.0, 0.1)
        """
        if len(set(sides)) < 2 or len(sides) != len(seconds):
            raise InputError("sides", "must hold two or more, one for each time", list(sides))
        if not min(seconds) > 0:
            raise InputError("seconds", "must be > 0", min(seconds))
        times = np.asarray(seconds, dtype=np.float64)
        cubes = np.asarray(sides, dtype=np.float64) ** 3
        columns = np.stack([1.0 / times, cubes / times], axis=1)
        scale = columns.max(axis=0)
        fixed, each = np.linalg.lstsq(columns / scale, np.ones(len(times)), rcond=None)[0] / scale
        if fixed < 0 or each < 0:  # the one that is left, alone
            column = columns[:, 1] if fixed < 0 else columns[:, 0]
            alone = float(column.sum() / (column @ column))
            fixed, each = (0.0, alone) if fixed < 0 else (alone, 0.0)
        return cls(fixed=float(fixed), per_multiply_add=float(each), per_byte=0.0)


def block_of(factor: str) -> str:
    """The name of the block that a factor belongs to.

    Example:
        >>> block_of("layers.0.A")
        'layers.0'
    """
    return factor.rpartition(".")[0]


def factor_costs(factors: Iterable[Sized], cost: FactorCost | None = None) -> dict[str, float]:
    """The cost of inverting each factor once: units for A and G apart.

    Args:
        factors: all of a model.
        cost: measured; None: counted.
    """
    cost = cost or FactorCost()
    return {factor.name: cost.of(factor) for factor in factors}


def precondition_costs(
    factors: Iterable[Sized], cost: FactorCost | None = None
) -> dict[str, float]:
    """The cost of preconditioning each block's gradient once, by block.

    groups * outputs * inputs * (outputs + inputs) multiply-adds; a diagonal counts 1 for its side.

    Args:
        factors: all of a model.
        cost: whose `per_multiply_add` counts; None: 1.
    """
    each = (cost or FactorCost()).per_multiply_add
    sides: dict[str, list[Sized]] = {}
    for factor in factors:
        sides.setdefault(block_of(factor.name), []).append(factor)
    costs = {}
    for block, pair in sides.items():
        elements = math.prod(factor.side for factor in pair)
        products = sum(1 if factor.diagonal else factor.side for factor in pair)
        costs[block] = float(pair[0].groups * elements * products * each)
    return costs


def block_costs(
    factors: Iterable[Sized], cost: FactorCost | None = None, *, inverse_every: float = 1.0
) -> dict[str, float]:
    """The cost of each whole block between two inversions: invert once, precondition every update.

    Args:
        factors: all of a model.
        cost: measured; None: counted.
        inverse_every: updates from one inversion to the next, >= 1.

    Raises:
        InputError: inverse_every below 1.
    """
    if not inverse_every >= 1:
        raise InputError("inverse_every", "must be >= 1 update", inverse_every)
    factors = list(factors)
    costs = {
        block: each * inverse_every for block, each in precondition_costs(factors, cost).items()
    }
    for name, each in factor_costs(factors, cost).items():
        costs[block_of(name)] += each
    return costs


def factor_owners(factors: Iterable[Sized], placement: Placement) -> dict[str, int]:
    """The owner of every factor, whether factors or whole blocks were placed.

    Args:
        factors: all of a model.
        placement: of factors or of blocks, by their names.
    """
    owner = placement.owner
    return {f.name: owner[f.name if f.name in owner else block_of(f.name)] for f in factors}


def stage_table(
    stages: Mapping[str, Mapping[str, float]], placement: Placement, *, most: int = 16
) -> str:
    """What each rank has to do in each stage, as text; the busiest first, idle ones only counted.

    Args:
        stages: costs by stage and unit of the placement (a unit may be missing).
        placement: of the units.
        most: ranks that are shown.

    Example:
        >>> costs = {"a": 3.0, "b": 2.0}
        >>> print(stage_table({"inversion": costs}, place(costs, 3)))
        rank  units  inversion
           0      1          3
           1      1          2
        idle      0          0
        mean             1.667
        1 of 3 ranks idle; busiest / mean 1.8
    """
    ranks = len(placement.loads)
    units = [0] * ranks
    loads = {stage: [0.0] * ranks for stage in stages}
    for unit, rank in placement.owner.items():
        units[rank] += 1
        for stage, costs in stages.items():
            loads[stage][rank] += costs.get(unit, 0.0)
    busy = [rank for rank in range(ranks) if units[rank]]
    busy.sort(key=lambda rank: (-placement.loads[rank], rank))
    rows = [["rank", "units", *stages]]
    for rank in busy[:most]:
        rows.append([str(rank), str(units[rank]), *(f"{loads[s][rank]:.4g}" for s in stages)])
    if busy[most:]:
        rows.append([f"+{len(busy[most:])}", *("..." for _ in rows[0][1:])])
    if placement.idle:
        rows.append(["idle", *("0" for _ in rows[0][1:])])
    rows.append(["mean", "", *(f"{sum(loads[s]) / ranks:.4g}" for s in stages)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    mean = sum(placement.loads) / ranks
    ratio = placement.makespan / mean if mean else 1.0
    last = f"{placement.idle} of {ranks} ranks idle; busiest / mean {ratio:.4g}"
    return "\n".join([*lines, last])
