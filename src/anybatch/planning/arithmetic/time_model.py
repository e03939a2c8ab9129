"""Seconds of one update against its batch size, with the scatter of the timings.

t(b) piecewise linear in the examples b of one pass on one rank, through measured knots
b above what memory holds: full passes and a rest, the optimizer's part once
ranks: b = ceil(B / ranks), and an all-reduce of the gradient beside it
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Measurement
from anybatch.measuring.step_time import half_rate_size, medians_by_round

__all__ = ["AllReduce", "TimeDraws", "TimeModel"]

_Array = NDArray[np.float64]

_TWO_SIDED_95 = 1.96
_LEAST_GROWTH = 0.25  # seconds per example beyond what was timed, over their average up to there
_BUCKET_BYTES = 25 * 2**20  # the most of a gradient that travels in one message


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduce:
    """A measured alpha-beta model of summing the gradient over ranks.

    Attributes:
        latency_seconds: alpha, of the whole gradient's sum, all its messages together.
        seconds_per_byte: beta, of one link: 1 / bandwidth.
        num_bytes: of the gradient.
    """

    latency_seconds: float
    seconds_per_byte: float
    num_bytes: float

    def seconds(self, ranks: int) -> float:
        """Seconds of the ring: alpha + beta * bytes * 2 (R - 1) / R, what each rank sends.

        Nothing is taken off for sums that run while backward still does: an upper bound.

        Args:
            ranks: R, >= 1; one rank sums nothing.

        Example:
            >>> ring = AllReduce(latency_seconds=1e-3, seconds_per_byte=1e-9, num_bytes=4e6)
            >>> [round(1000 * ring.seconds(ranks), 2) for ranks in (1, 2, 4)]
            [0.0, 5.0, 7.0]
        """
        if ranks == 1:
            return 0.0
        sent = 2.0 * (ranks - 1) / ranks * self.num_bytes
        return self.latency_seconds + self.seconds_per_byte * sent


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeDraws:
    """Curves of seconds per update that the timings allow, one in a row.

    Attributes:
        knots: (knots,) examples of one pass, ascending.
        seconds: (draws, knots), > 0: forward, backward and optimizer.
        optimizer_seconds: of one update, the part that passes share.
        loading_seconds_per_example: (draws,), >= 0.
        is_loading_overlapped: whether loading runs beside computing.
        largest_micro_batch: examples that one pass may hold, for memory or because the recipe
            says so; None where no limit was met.
        all_reduce: of the gradient; None where it was not measured.
        measured_ranks: that were timed; their all-reduce is part of `seconds`.
    """

    knots: _Array
    seconds: _Array
    optimizer_seconds: float
    loading_seconds_per_example: _Array
    is_loading_overlapped: bool = False
    largest_micro_batch: int | None = None
    all_reduce: AllReduce | None = None
    measured_ranks: int = 1

    def seconds_per_update(self, batch_sizes: ArrayLike, *, ranks: int = 1) -> _Array:
        """Seconds of one update, (draws, sizes).

        A rank's part is b = ceil(B / ranks). Where b is more than memory holds, it goes in full
        passes and a rest: each costs t less the optimizer's part, which is added once, and so is
        the all-reduce. On as many ranks as were timed its seconds are those of the timings; on
        others the difference of the model's is added, and at most half of a time taken off. Loading
        is added, or where it is overlapped the slower of the two counts.

        Args:
            batch_sizes: B, (sizes,), global, >= 1.
            ranks: that share a batch.

        Raises:
            InputError: sizes or ranks below 1, or other ranks than were timed where no all-reduce
                was measured.
        """
        sizes = np.atleast_1d(np.asarray(batch_sizes, dtype=np.float64))
        if not (sizes >= 1.0).all():
            raise InputError("batch_sizes", "must be >= 1", sizes.tolist())
        if ranks < 1:
            raise InputError("ranks", "must be >= 1", ranks)
        if ranks != self.measured_ranks and self.all_reduce is None:
            hint = "measure the throughput with torchrun on the ranks that will train"
            raise InputError("ranks", "need a measured all-reduce", ranks, hint=hint)
        per_rank = np.ceil(sizes / ranks) if ranks > 1 else sizes
        computing = self._computing(per_rank)
        loading = self.loading_seconds_per_example[:, None] * per_rank
        if ranks != self.measured_ranks:
            more = self._all_reduce_seconds(ranks) - self._all_reduce_seconds(self.measured_ranks)
            computing = np.maximum(computing + more, 0.5 * computing)
        return np.maximum(computing, loading) if self.is_loading_overlapped else computing + loading

    @property
    def half_batch_size(self) -> float:
        """B_half, examples: half of the examples per second of a huge pass; of the median curve."""
        knots = np.stack([self.knots, np.median(self.seconds, axis=0)], axis=1).tolist()
        return half_rate_size({"kind": "piecewise", "knots": knots})

    def frozen(self) -> TimeDraws:
        """The same number of draws, all at the median."""
        seconds = np.broadcast_to(np.median(self.seconds, axis=0), self.seconds.shape)
        loading = np.full_like(
            self.loading_seconds_per_example, np.median(self.loading_seconds_per_example)
        )
        return self._with(seconds, loading)

    def _with(self, seconds: _Array, loading: _Array) -> TimeDraws:
        return dataclasses.replace(self, seconds=seconds, loading_seconds_per_example=loading)

    def _all_reduce_seconds(self, ranks: int) -> float:
        return self.all_reduce.seconds(ranks) if self.all_reduce is not None else 0.0

    def _computing(self, examples: _Array) -> _Array:
        largest = self.largest_micro_batch
        if largest is None or (examples <= largest).all():
            return self._pass(examples)
        full = np.ceil(examples / largest) - 1.0  # passes before the last one
        rest = examples - full * largest
        once = self.optimizer_seconds + self._all_reduce_seconds(self.measured_ranks)
        one_full = np.maximum(self._pass(np.array([float(largest)])) - once, 0.0)
        return self._pass(rest) + full * one_full

    def _pass(self, examples: _Array) -> _Array:
        """t(b), (draws, sizes): linear between knots and beyond them.

        Below the first knot never less than in proportion to it; above the last the further
        examples cost at least a quarter of what those up to it cost on average: no scatter of a
        few timings makes larger batches free.
        """
        line = self.seconds @ _hats(self.knots, examples).T
        first, last = self.seconds[:, :1], self.seconds[:, -1:]
        below = np.maximum(line, first * examples / self.knots[0])
        beyond = np.maximum(examples / self.knots[-1] - 1.0, 0.0)
        above = np.maximum(line, last * (1.0 + _LEAST_GROWTH * beyond))
        is_below, is_above = examples < self.knots[0], examples > self.knots[-1]
        return np.where(is_below, below, np.where(is_above, above, line))


def _hats(knots: _Array, places: _Array) -> _Array:
    """Weights of the knots, (places, knots): of linear interpolation, ends carried on."""
    left = np.clip(np.searchsorted(knots, places, side="right") - 1, 0, len(knots) - 2)
    share = (places - knots[left]) / (knots[left + 1] - knots[left])
    weights = np.zeros((len(places), len(knots)))
    rows = np.arange(len(places))
    weights[rows, left] = 1.0 - share
    weights[rows, left + 1] = share
    return weights


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeModel:
    """The measured curve of seconds per update, and the timings it came from.

    Attributes:
        best: the one curve of the measurement, a single draw.
        timed: (rounds, sizes) median seconds of an update in each round; nan where none was timed.
        sizes: (sizes,) examples of the timed updates, ascending.
        loading_log_spread: standard deviation of the natural log of the loading time.
    """

    best: TimeDraws
    timed: _Array
    sizes: _Array
    loading_log_spread: float = 0.0

    @classmethod
    def from_measurement(cls, measurement: Measurement) -> TimeModel:
        """The model that a "throughput" measurement holds.

        Args:
            measurement: of kind "throughput", fresh or from disk.

        Raises:
            InputError: another kind, or fewer than two knots.
        """
        if measurement.kind != "throughput":
            raise InputError("measurement", "must be of kind throughput", measurement.kind)
        fit = measurement.settings["fit"]
        knots = np.asarray(fit["knots"], dtype=np.float64).reshape(-1, 2)
        is_rising = (np.diff(knots[:, 0]) > 0.0).all()
        if len(knots) < 2 or not is_rising or not (knots > 0.0).all():
            rule = "must be two knots or more, of rising batch sizes, > 0, and seconds > 0"
            raise InputError("throughput", rule, fit["knots"])
        columns, ranks = measurement.samples, int(measurement.settings.get("world_size") or 1)
        loading = measurement.estimates.get("loading_seconds_per_example")
        largest = measurement.estimates.get("largest_micro_batch")
        optimizer = np.asarray(columns.get("optimizer_seconds", ()), dtype=np.float64)
        optimizer = optimizer[np.isfinite(optimizer)]
        best = TimeDraws(
            knots=knots[:, 0],
            seconds=knots[None, :, 1],
            optimizer_seconds=float(np.median(optimizer)) if len(optimizer) else 0.0,
            loading_seconds_per_example=np.array([_value(loading)]),
            is_loading_overlapped=int(measurement.settings.get("num_workers") or 0) > 0,
            largest_micro_batch=_limit(largest, measurement.settings.get("micro_batch_size")),
            all_reduce=_all_reduce(measurement.settings.get("all_reduce"), ranks),
            measured_ranks=ranks,
        )
        sizes, timed = _timed(columns)
        return cls(best=best, timed=timed, sizes=sizes, loading_log_spread=_log_spread(loading))

    @property
    def half_batch_size(self) -> float:
        """B_half, examples: half of the examples per second of a huge pass; inf where none is."""
        return self.best.half_batch_size

    def seconds_per_update(self, batch_size: ArrayLike, *, ranks: int = 1) -> _Array:
        """Seconds of one update, of the shape of `batch_size`.

        Args:
            batch_size: B, global, >= 1.
            ranks: that share a batch.

        Raises:
            InputError: as `TimeDraws.seconds_per_update`.
        """
        seconds = self.best.seconds_per_update(np.ravel(batch_size), ranks=ranks)
        return np.asarray(seconds[0].reshape(np.shape(batch_size)))

    def draws(self, num_draws: int, rng: np.random.Generator) -> TimeDraws:
        """Curves refitted to rounds of the timing drawn with replacement.

        Each draw takes the median of its rounds at each size and moves the knots by what a least
        squares fit of the relative differences says; so the measured curve is their centre.

        Args:
            num_draws: how many.
            rng: that draws.
        """
        best = self.best
        moves = _moves(self, num_draws, rng)
        seconds = np.maximum(best.seconds + moves, 0.05 * best.seconds)
        noise = np.exp(self.loading_log_spread * rng.standard_normal(num_draws))
        return best._with(seconds, best.loading_seconds_per_example * noise)


def _moves(model: TimeModel, num_draws: int, rng: np.random.Generator) -> _Array:
    """(draws, knots) seconds to add to the knots."""
    knots = model.best.knots
    num_rounds = len(model.timed)
    if num_rounds < 2:
        return np.zeros((num_draws, len(knots)))
    middle = np.nanmedian(model.timed, axis=0)
    drawn = model.timed[rng.integers(num_rounds, size=(num_draws, num_rounds))]
    away = _nan_median(drawn) / middle - 1.0
    weights = np.isfinite(away).astype(np.float64)
    # Unknowns are relative moves of the knots; a little ridge holds those no timing tells of.
    slopes = _hats(knots, model.sizes) * model.best.seconds / middle[:, None]
    normal = np.einsum("ds,sk,sl->dkl", weights, slopes, slopes) + 1e-3 * np.eye(len(knots))
    wanted = np.einsum("ds,sk->dk", np.where(weights > 0.0, away, 0.0), slopes)
    relative = np.linalg.solve(normal, wanted[:, :, None])[:, :, 0]
    return np.asarray(relative * model.best.seconds)


def _nan_median(values: _Array) -> _Array:
    """Median over the second axis of what is finite; nan where nothing is."""
    ordered = np.sort(values, axis=1)  # nan comes last
    counts = np.isfinite(values).sum(axis=1)
    lower = np.maximum(counts - 1, 0) // 2
    upper = np.minimum(counts // 2, values.shape[1] - 1)
    picked = [np.take_along_axis(ordered, p[:, None, :], axis=1)[:, 0] for p in (lower, upper)]
    return np.where(counts > 0, 0.5 * (picked[0] + picked[1]), np.nan)


def _timed(columns: Mapping[str, Sequence[float]]) -> tuple[_Array, _Array]:
    """Sizes, and (rounds, sizes) medians of their seconds per update."""
    sizes, rounds, seconds = (
        np.asarray(columns[name], dtype=np.float64)
        for name in ("batch_size", "round", "update_seconds")
    )
    usable = np.isfinite(seconds) & (seconds > 0.0)
    different, medians = medians_by_round(sizes[usable], rounds[usable], seconds[usable])
    return different, medians.T


def _value(estimate: Estimate | None) -> float:
    """0 where there is none: a resident set loads nothing."""
    return 0.0 if estimate is None or estimate.value is None else max(float(estimate.value), 0.0)


def _limit(largest: Estimate | None, micro_batch_size: int | None) -> int | None:
    """The smaller of what memory holds and what the recipe asks for."""
    limits = [] if micro_batch_size is None else [int(micro_batch_size)]
    if largest is not None and largest.value is not None:
        limits.append(max(int(largest.value), 1))
    return min(limits, default=None)


def _log_spread(estimate: Estimate | None) -> float:
    """Of the natural log, from a 95 % interval; 0 where it has no two positive ends."""
    if estimate is None or not 0.0 < estimate.low <= estimate.high < math.inf:
        return 0.0
    return (math.log(estimate.high) - math.log(estimate.low)) / (2.0 * _TWO_SIDED_95)


def _all_reduce(values: Mapping[str, Any] | None, ranks: int) -> AllReduce | None:
    """The model of the link: what was measured on R ranks holds 2 (R - 1) / R of it per byte."""
    if values is None:
        return None
    sent = 2.0 * (ranks - 1) / ranks if ranks > 1 else 1.0
    messages = max(math.ceil(float(values["bytes"]) / _BUCKET_BYTES), 1)
    return AllReduce(
        latency_seconds=float(values["latency_seconds"]) * messages,
        seconds_per_byte=float(values["seconds_per_byte"]) / sent,
        num_bytes=float(values["bytes"]),
    )
