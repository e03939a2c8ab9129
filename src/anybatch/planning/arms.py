"""What branches say: measured ratios of updates, and the lr that did best at a batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.branches import BranchLosses, log_ratio_of_updates
from anybatch.planning.arithmetic.posterior import RatioObservation

__all__ = ["Arms", "arms_of", "best_lr", "diverged_lrs", "neighbour", "ratios_of", "seconds_of"]

Arms: TypeAlias = Mapping[tuple[int, float], BranchLosses]
"""By batch size and lr."""

_FEWEST_UPDATES = 12


def arms_of(branches: Measurement | None, *, preconditioned: bool = False) -> Arms:
    """The branches by batch size and lr; diverged and very short ones are left out.

    Args:
        branches: the measurement; None has none.
        preconditioned: those with a preconditioner, else those without.
    """
    arms = {}
    for (size, lr), by_seed in _series(branches, "loss", preconditioned).items():
        length = min(map(len, by_seed))
        losses = tuple(tuple(values[:length]) for values in by_seed)
        if length >= _FEWEST_UPDATES and np.isfinite(losses).all():
            arms[size, lr] = BranchLosses(batch_size=size, losses=losses)
    return arms


def seconds_of(
    branches: Measurement, arm: tuple[int, float], *, preconditioned: bool = False
) -> list[list[float]]:
    """Seconds of each update, in order, by data order.

    Args:
        branches: the measurement, which has timed them.
        arm: batch size and lr.
        preconditioned: whether the arm has a preconditioner.
    """
    by_seed = _series(branches, "seconds", preconditioned)[arm]
    return [np.diff(seconds, prepend=0.0).tolist() for seconds in by_seed]


def _series(
    branches: Measurement | None, column: str, preconditioned: bool
) -> dict[tuple[int, float], list[list[float]]]:
    """A column by batch size and lr, then by data order."""
    found: dict[tuple[int, float], dict[float, list[float]]] = {}
    for size, lr, seed, value in _rows(branches, column, preconditioned):
        found.setdefault((int(size), lr), {}).setdefault(seed, []).append(value)
    return {arm: list(by_seed.values()) for arm, by_seed in found.items()}


def _rows(
    branches: Measurement | None, column: str, preconditioned: bool
) -> Iterator[tuple[float, float, float, float]]:
    """Batch size, lr, data order and a column of the branches with or without a preconditioner."""
    if branches is None:
        return
    samples = branches.samples
    names = ("batch_size", "lr", "seed", column)
    plain = (0.0,) * len(samples["lr"])  # all were, before any was tried
    flags = samples.get("preconditioned", plain)
    for flag, *row in zip(flags, *(samples[name] for name in names), strict=True):
        if bool(flag) == preconditioned:
            size, lr, seed, value = row
            yield size, lr, seed, value


def ratios_of(arms: Arms) -> list[RatioObservation]:
    """Measured ratios of updates between different batch sizes, each at its best lr.

    Args:
        arms: of one checkpoint.
    """
    best = {size: arms[size, best_lr(arms, size)] for size in sorted({size for size, _ in arms})}
    smallest, *larger = best or [0]
    found = []
    for size in larger:
        ratio, error = log_ratio_of_updates(best[size], best[smallest])
        if math.isfinite(error):
            found.append(
                RatioObservation(
                    batch_size=size,
                    reference_batch_size=smallest,
                    log_ratio=ratio,
                    standard_error=error,
                )
            )
    return found


def best_lr(arms: Arms, batch_size: int) -> float:
    """The lr whose last third of losses has the least mean at this batch size.

    Args:
        arms: with one or more of this size.
        batch_size: global.
    """
    ends = {lr: _end_of(losses) for (size, lr), losses in arms.items() if size == batch_size}
    return min(ends, key=ends.__getitem__)


def _end_of(losses: BranchLosses) -> float:
    last = max(1, len(losses.losses[0]) // 3)
    return float(np.mean([series[-last:] for series in losses.losses]))


def diverged_lrs(
    branches: Measurement | None, batch_size: int, *, preconditioned: bool = False
) -> list[float]:
    """Learning rates of the branches of this size that diverged.

    Args:
        branches: the measurement; None has none.
        batch_size: global.
        preconditioned: those with a preconditioner, else those without.
    """
    rows = _rows(branches, "loss", preconditioned)
    return [lr for size, lr, _, loss in rows if size == batch_size and not math.isfinite(loss)]


def neighbour(sizes: Sequence[int], batch_size: int, num_examples: int) -> int | None:
    """The size next to four times this one, or to a quarter where a quarter of the set is less.

    Args:
        sizes: to choose from.
        batch_size: that it is to be compared with.
        num_examples: of the training set.

    Example:
        >>> sizes = [1, 2, 4, 8, 16, 32, 64, 128]
        >>> neighbour(sizes, 16, 1000), neighbour(sizes, 16, 200), neighbour(sizes, 1, 3)
        (64, 4, None)
    """
    most = num_examples // 4
    above = [size for size in sizes if 2 * batch_size < size <= most]
    below = [size for size in sizes if 2 * size < batch_size]
    if above and 4 * batch_size <= most:
        return min(above, key=lambda size: abs(math.log(size / (4 * batch_size))))
    return min(below, key=lambda size: abs(math.log(4 * size / batch_size)), default=None)
