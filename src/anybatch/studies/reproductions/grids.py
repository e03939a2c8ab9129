"""Arithmetic of grids of settings: where the best lies, and whether two settings act apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from anybatch.studies.reproductions.results import ArmResult

__all__ = ["additive_share", "best_place", "grid_values", "slope"]


def grid_values(
    arms: Sequence[ArmResult], quantity: str, seed: int | None = None
) -> dict[tuple[float, ...], float]:
    """Place -> value of a seed, or the mean over seeds; 0 where a cell diverged.

    Args:
        arms: of one grid.
        quantity: of the trials, more being better and none below 0.
        seed: None for the mean over the seeds that have the quantity.
    """
    found = {}
    for arm in arms:
        values = arm.values(quantity)
        kept = list(values.values()) if seed is None else [values[seed]] if seed in values else []
        found[arm.place] = statistics.fmean(kept) if kept else 0.0
    return found


def additive_share(values: Mapping[tuple[float, ...], float]) -> float:
    """Share of a grid's variance that row and column explain one by one; 1 where all are equal.

    1 - sum (v_ij - r_i - c_j + m)^2 / sum (v_ij - m)^2, with means of rows, columns and all.

    Args:
        values: (row, column) -> value, of a whole grid.

    Example:
        >>> additive_share({(r, c): r + 2 * c for r in (0.0, 1.0) for c in (0.0, 1.0)})
        1.0
        >>> additive_share({(0.0, 0.0): 1.0, (0.0, 1.0): 0.0, (1.0, 0.0): 0.0, (1.0, 1.0): 1.0})
        0.0
    """
    mean = statistics.fmean(values.values())
    rows, columns = _means(values, 0), _means(values, 1)
    rest = sum((v - rows[p[0]] - columns[p[1]] + mean) ** 2 for p, v in values.items())
    whole = sum((v - mean) ** 2 for v in values.values())
    return 1.0 - rest / whole if whole > 0.0 else 1.0


def _means(values: Mapping[tuple[float, ...], float], axis: int) -> dict[float, float]:
    keys = {place[axis] for place in values}
    return {k: statistics.fmean(v for p, v in values.items() if p[axis] == k) for k in keys}


def best_place(values: Mapping[float, float]) -> float:
    """Where a curve is highest: the vertex of the parabola through its best point and both beside.

    At an end of the curve, that end; of several equally high points, the middle one.

    Args:
        values: place -> height, places at equal distances.

    Example:
        >>> best_place({0.0: 1.0, 1.0: 3.0, 2.0: 3.0})
        1.5
        >>> best_place({0.0: 1.0, 1.0: 2.0})
        1.0
    """
    places = sorted(values)
    highest = max(values.values())
    best = [number for number, place in enumerate(places) if values[place] == highest]
    middle = best[len(best) // 2] if len(best) % 2 else best[len(best) // 2 - 1]
    if len(best) > 2 or not 0 < middle < len(places) - 1:
        return places[middle]
    left, centre, right = (values[places[middle + step]] for step in (-1, 0, 1))
    bend = left - 2.0 * centre + right
    shift = 0.5 * (left - right) / bend if bend < 0.0 else 0.0
    return places[middle] + shift * (places[middle + 1] - places[middle])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line; nan where all lie above each other.

    Example:
        >>> slope([(0.0, 1.0), (1.0, 0.5), (2.0, 0.0)])
        -0.5
    """
    x0, y0 = (statistics.fmean(point[axis] for point in points) for axis in (0, 1))
    width = sum((x - x0) ** 2 for x, _ in points)
    return sum((x - x0) * (y - y0) for x, y in points) / width if width > 0.0 else math.nan
