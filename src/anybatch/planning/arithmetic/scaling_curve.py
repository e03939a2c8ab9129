"""Seconds per update, and to the target, of each method on any number of ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.planning.arithmetic.cluster_link import Link
from anybatch.planning.arithmetic.cluster_model import (
    StageSeconds,
    Work,
    kfac_stages,
    local_sgd_stages,
    synchronous_stages,
)
from anybatch.planning.arithmetic.updates_model import UpdatesCurve

__all__ = [
    "METHODS",
    "KnownUpdates",
    "Method",
    "Prediction",
    "ScalingRequest",
    "break_even",
    "predict_scaling",
]

Method: TypeAlias = Literal["sgd", "lars", "local-sgd", "kfac"]
METHODS: tuple[Method, ...] = ("sgd", "lars", "local-sgd", "kfac")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownUpdates:
    """Measured updates to a target against the batch size, as a curve.

    Attributes:
        curve: fitted to them.
        smallest: batch size that was trained with.
        largest: batch size that was trained with; beyond it the curve is a guess.
        target: that they reached, in words.
    """

    curve: UpdatesCurve
    smallest: float
    largest: float
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRequest:
    """What is to be predicted.

    Attributes:
        ranks: numbers of processes, each >= 1.
        batch_size: B, global, the same on any number of ranks; None where each rank has its own.
        batch_size_per_rank: b, so that B = b R; None where B is given.
        local_every: H, updates of local SGD between two averagings, >= 1.

    Raises:
        InputError: no ranks, numbers below 1, both batch sizes or none.
    """

    ranks: tuple[int, ...]
    batch_size: int | None = None
    batch_size_per_rank: int | None = None
    local_every: int = 16

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            rule = "must be numbers of ranks, each >= 1"
            raise InputError("ranks", rule, list(self.ranks), hint="--ranks 1,8,64,1024")
        if (self.batch_size is None) == (self.batch_size_per_rank is None):
            raise InputError("batch_size", "must be given of all ranks, or of each, not both")
        for name in ("batch_size", "batch_size_per_rank", "local_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, "must be >= 1", value)

    def batch_size_on(self, ranks: int) -> int:
        """B, of all ranks."""
        if self.batch_size is not None:
            return self.batch_size
        assert self.batch_size_per_rank is not None
        return self.batch_size_per_rank * ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One method on so many ranks.

    Attributes:
        method: of training.
        ranks: R.
        batch_size: B, global.
        stages: seconds of one update.
        updates: to the target at B; None where none were measured with this method.
        extrapolated: whether B lies outside of the sizes that `updates` were measured at.
    """

    method: Method
    ranks: int
    batch_size: int
    stages: StageSeconds
    updates: float | None = None
    extrapolated: bool = False

    @property
    def seconds_to_target(self) -> float | None:
        """Updates times seconds of an update; evaluation left out."""
        return None if self.updates is None else self.updates * self.stages.total

    def to_dict(self) -> dict[str, Any]:
        """Plain values: every stage, their sum, updates and seconds to the target."""
        values = dataclasses.asdict(self)
        return values | {
            "seconds_per_update": self.stages.total,
            "seconds_to_target": self.seconds_to_target,
        }


def predict_scaling(
    work: Work,
    link: Link,
    request: ScalingRequest,
    *,
    updates: Mapping[str, KnownUpdates] | None = None,
) -> list[Prediction]:
    """Every method that was measured on every number of ranks, methods first.

    Ranks of which some would have no example are left out.

    Args:
        work: measured on one rank.
        link: between ranks.
        request: what is asked.
        updates: by method, where they were measured.

    Raises:
        InputError: no number of ranks with an example for each.
    """
    able = [r for r in dict.fromkeys(request.ranks) if request.batch_size_on(r) >= r]
    if not able:
        hint = "give --batch-size-per-rank, or a larger batch_size"
        rule = "must leave an example for each rank"
        raise InputError("batch_size", rule, request.batch_size, hint=hint)
    found = []
    for method in METHODS:
        if method == "kfac" and work.kfac is None:
            continue
        known = (updates or {}).get(method)
        for ranks in able:
            size = request.batch_size_on(ranks)
            found.append(
                Prediction(
                    method=method,
                    ranks=ranks,
                    batch_size=size,
                    stages=_stages(method, work, link, request, ranks),
                    updates=None if known is None else float(known.curve.updates(size)),
                    extrapolated=known is not None and not known.smallest <= size <= known.largest,
                )
            )
    return found


def _stages(
    method: Method, work: Work, link: Link, request: ScalingRequest, ranks: int
) -> StageSeconds:
    size = request.batch_size_on(ranks)
    if method == "local-sgd":
        every = request.local_every
        return local_sgd_stages(work, link, every=every, batch_size=size, ranks=ranks)
    if method == "kfac":
        return kfac_stages(work, link, batch_size=size, ranks=ranks)
    return synchronous_stages(work, link, optimizer=method, batch_size=size, ranks=ranks)


def break_even(predictions: Sequence[Prediction], method: Method) -> dict[int, float]:
    """Share of SGD's updates below which a method is quicker to a target, by number of ranks.

    Seconds of SGD's update over those of the method's: 0.8 says that it must save a fifth.

    Args:
        predictions: of both.
        method: other than SGD.
    """
    seconds = {(p.method, p.ranks): p.stages.total for p in predictions}
    return {
        ranks: seconds["sgd", ranks] / total
        for (name, ranks), total in seconds.items()
        if name == method and ("sgd", ranks) in seconds and total > 0.0
    }
