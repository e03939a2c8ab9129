"""Preview: what the schedules of a recipe will do, update by update, before any training."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from anybatch.course import Course, check_momentum, recipe_clock
from anybatch.errors import InputError
from anybatch.recipe import AdamSettings, AdamWSettings, LAMBSettings, OptimizerSettings, Recipe
from anybatch.scaling import scaled_recipe
from anybatch.schedules import resolve_schedule, value_at

__all__ = ["PreviewRow", "outline", "plateau_sentence", "preview"]

_MOST_CORNERS = 60
_MOST_STAIRS = 12  # more of them are the roundings of a slope
_SEEN_DEVIATION = 0.01  # of a column's range: what a line through the rows may miss


class PreviewRow(NamedTuple):
    """One update, as its StepRecord will have it.

    Attributes:
        update: counted from 1.
        examples: seen after it.
        epoch: passes over the training data after it, as a decimal.
        lr: of the first parameter group.
        momentum: of the first group (Adam: beta1).
        weight_decay: of the first group.
        batch_size: examples of the update, over all ranks.
    """

    update: int
    examples: int
    epoch: float
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int


def preview(recipe: Recipe, examples_per_epoch: int) -> tuple[PreviewRow, ...]:
    """Every update of the recipe's run on a training split of this size.

    What reacts to measured values (target, patience, plateau) is left out.

    Args:
        recipe: of the run.
        examples_per_epoch: of the training split, validation left out, >= 1.

    Raises:
        InputError: recipe and number of examples do not fit together.

    Example:
        >>> from anybatch.recipe import Schedules, SGDSettings
        >>> from anybatch.schedules import Linear, epochs
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.5), batch_size=4, duration=epochs(1),
        ...     schedules=Schedules(lr=Linear()))
        >>> [(row.examples, row.lr, row.batch_size) for row in preview(recipe, 10)]
        [(4, 0.5, 4), (8, 0.3, 4), (10, 0.09999999999999998, 2)]
    """
    if examples_per_epoch < 1:
        raise InputError("examples_per_epoch", "must be >= 1", examples_per_epoch)
    clock = recipe_clock(recipe, examples_per_epoch)
    examples_per_epoch = clock.examples_per_epoch or examples_per_epoch  # with fixed copies
    course, schedules = Course.of(recipe, clock), recipe.schedules
    lr = resolve_schedule(schedules.lr, clock)
    momentum = resolve_schedule(schedules.momentum, clock)
    weight_decay = resolve_schedule(schedules.weight_decay, clock)
    optimizer = scaled_recipe(recipe, clock.examples_per_epoch).optimizer
    check_momentum(_momentum(optimizer), momentum)
    rows: list[PreviewRow] = []
    seen = 0
    while seen < course.total_examples:
        size = course.size(seen, seen % examples_per_epoch)
        position = course.position(seen, size)
        seen += size
        epoch, offset = divmod(seen, examples_per_epoch)
        row = PreviewRow(
            update=len(rows) + 1,
            examples=seen,
            epoch=epoch + offset / examples_per_epoch,
            lr=optimizer.lr * value_at(lr, position),
            momentum=_momentum(optimizer) * value_at(momentum, position),
            weight_decay=optimizer.weight_decay * value_at(weight_decay, position),
            batch_size=size,
        )
        rows.append(row)
    return tuple(rows)


def plateau_sentence(recipe: Recipe, examples_per_epoch: int, rows: Sequence[PreviewRow]) -> str:
    """What the recipe's plateau may do to the previewed lr, in words; "" without one.

    Args:
        recipe: of the run.
        examples_per_epoch: of the training split.
        rows: of its preview.

    Raises:
        InputError: `begin_after` or the distance between evaluations cannot be told.
    """
    plateau = recipe.plateau
    if plateau is None:
        return ""
    clock = recipe_clock(recipe, examples_per_epoch)
    every, begin = (
        clock.interval(recipe.stopping.evaluate_every),
        clock.examples(plateau.begin_after),
    )
    passed = [every.times(updates=row.update, examples=row.examples) for row in rows[:-1]]
    due = [late != early for early, late in itertools.pairwise([0, *passed])]
    looked_at = sum(d and row.examples >= begin for d, row in zip(due, rows[:-1], strict=True))
    needed = plateau.patience + 2  # one sets the best, the others do not improve on it
    if looked_at < needed:
        return (
            f"plateau: can never reduce the lr; it takes {needed} evaluations before the end, "
            f"and there are {looked_at}"
        )
    return f"plateau: each reduction multiplies the lr by {plateau.factor:g} from there on"


def _momentum(optimizer: OptimizerSettings) -> float:
    if isinstance(optimizer, (AdamSettings, AdamWSettings, LAMBSettings)):
        return optimizer.beta1
    return optimizer.momentum


# --- the few rows that show the shape --------------------------------------------------------


def outline(rows: Sequence[PreviewRow], count: int = 20) -> list[PreviewRow]:
    """The rows that show the shape: ends, corners, bends, and evenly some of the rest.

    Corners are the updates at which lr, momentum, weight decay or batch size change direction: the
    end of a warm-up, peaks, both sides of a restart. All of them are taken, up to 60.

    Args:
        rows: of a preview.
        count: how many are wanted, corners included.

    Example:
        >>> from anybatch.recipe import Schedules, SGDSettings
        >>> from anybatch.schedules import Linear, Warmup, epochs
        >>> recipe = Recipe(optimizer=SGDSettings(lr=1.0), batch_size=1, duration=epochs(1),
        ...     schedules=Schedules(lr=Warmup(duration=epochs(0.25), into=Linear())))
        >>> [(row.update, round(row.lr, 3)) for row in outline(preview(recipe, 80), 3)]
        [(1, 0.0), (21, 1.0), (80, 0.017)]
    """
    columns = _columns(rows)
    *smooth, sizes = columns
    stairs = _corners(sizes)
    if len(stairs) <= _MOST_STAIRS:
        smooth.append(sizes)
    else:
        stairs = _turns(sizes)
    corners = sorted({index for column in smooth for index in _corners(column)}.union(stairs))
    if len(corners) > _MOST_CORNERS:  # a shape too rich for a table: evenly some of them
        steps = len(corners) / _MOST_CORNERS
        corners = [corners[int(n * steps)] for n in range(_MOST_CORNERS)]
    chosen = sorted({0, *corners, len(rows) - 1})
    chosen = _with_bends(smooth, chosen, count)
    return [rows[index] for index in _with_the_widest_gaps_halved(chosen, count)]


def _columns(rows: Sequence[PreviewRow]) -> list[list[float]]:
    """The columns as shares of their range, batch size last; what epochs leave over is none."""
    sizes = [float(row.batch_size) for row in rows]
    for index in range(1, len(rows)):
        if rows[index].epoch == int(rows[index].epoch) or index == len(rows) - 1:
            sizes[index] = sizes[index - 1]  # of an update that takes what is left
    plain = ([row.lr for row in rows], [row.momentum for row in rows])
    columns = [*plain, [row.weight_decay for row in rows], sizes]
    ranges = [(min(column), max(column)) for column in columns]
    return [
        [(value - low) / (high - low) for value in column]
        if high - low > 1e-12 * high
        else [0.0] * len(rows)
        for column, (low, high) in zip(columns, ranges, strict=True)
    ]


def _corners(column: Sequence[float]) -> list[int]:
    """Where a column begins to rise, to fall, or to stay; where it turns, if these are many."""
    directions = [_sign(late - early) for early, late in itertools.pairwise(column)]
    corners = [i + 1 for i, (a, b) in enumerate(itertools.pairwise(directions)) if a != b]
    return corners if len(corners) <= _MOST_CORNERS else _turns(column)


def _turns(column: Sequence[float]) -> list[int]:
    """Where a column that rose last begins to fall, or the other way round."""
    directions = [_sign(late - early) for early, late in itertools.pairwise(column)]
    moves = [(i, direction) for i, direction in enumerate(directions) if direction != 0]
    return [late for (_, a), (late, b) in itertools.pairwise(moves) if a != b]


def _sign(difference: float) -> int:
    return 0 if abs(difference) < 1e-12 else 1 if difference > 0 else -1


def _with_bends(columns: Sequence[Sequence[float]], chosen: list[int], count: int) -> list[int]:
    """Add, one after another, the row that lines through the chosen ones miss by most."""
    heap = [_worst(columns, a, b) for a, b in itertools.pairwise(chosen)]
    heapq.heapify(heap)
    kept = list(chosen)
    while heap and len(kept) < count:
        negative, index, first, last = heapq.heappop(heap)
        if -negative <= _SEEN_DEVIATION:
            break
        kept.append(index)
        heapq.heappush(heap, _worst(columns, first, index))
        heapq.heappush(heap, _worst(columns, index, last))
    return sorted(kept)


def _worst(
    columns: Sequence[Sequence[float]], first: int, last: int
) -> tuple[float, int, int, int]:
    """Minus the largest deviation from the line between two rows, and where it is."""
    worst, place = 0.0, first
    for column in columns:
        slope = (column[last] - column[first]) / max(1, last - first)
        for index in range(first + 1, last):
            deviation = abs(column[index] - column[first] - slope * (index - first))
            if deviation > worst:
                worst, place = deviation, index
    return -worst, place, first, last


def _with_the_widest_gaps_halved(chosen: list[int], count: int) -> list[int]:
    gaps = [(early - late, early, late) for early, late in itertools.pairwise(chosen)]
    heapq.heapify(gaps)
    kept = list(chosen)
    while gaps and len(kept) < count:
        _, early, late = heapq.heappop(gaps)
        if late - early < 2:
            break
        middle = (early + late) // 2
        kept.append(middle)
        for pair in ((early, middle), (middle, late)):
            heapq.heappush(gaps, (pair[0] - pair[1], *pair))
    return sorted(kept)
