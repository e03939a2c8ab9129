"""Seconds of one update on R ranks, stage by stage, from what one rank was measured to take.

b = ceil(B / R)         examples of a rank; forward, backward, loading: the measured curve t(b)
traffic                 all-reduce, ReduceScatterV and AllGatherV by alpha and beta (`cluster_link`)
inversion               what it adds to the busiest rank, divided by the updates between two

Nothing here knows of congestion, of nodes whose inner links are faster, or of a slow rank that the
others wait for: what is predicted is a network that stays as good as it is between two ranks.

Reference: Osawa et al. 2019, "Large-scale distributed second-order optimization using
Kronecker-factored approximate curvature for deep convolutional neural networks", for the stages.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from anybatch.errors import InputError
from anybatch.kfac.placement import place
from anybatch.planning.arithmetic.cluster_link import Link
from anybatch.planning.arithmetic.time_model import TimeDraws

__all__ = [
    "KFACWork",
    "Owned",
    "StageSeconds",
    "Work",
    "kfac_stages",
    "local_sgd_stages",
    "shares_of_ranks",
    "synchronous_stages",
]

Placement: TypeAlias = Literal["longest-first", "by-name"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Owned:
    """What one rank does for all with a block: a layer, or one factor of it.

    Attributes:
        name: of the block.
        inversion_seconds: of its damped inverses.
        precondition_seconds: of its gradient; 0 where every rank preconditions for itself.
        statistic_bytes: packed, as they travel to the owner.
        gathered_bytes: that the owner sends to all: the preconditioned gradient, or inverses.
    """

    name: str
    inversion_seconds: float
    precondition_seconds: float
    statistic_bytes: float
    gathered_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KFACWork:
    """What K-FAC adds to an update.

    Attributes:
        owned: blocks that are placed on ranks.
        statistics_fixed_seconds: of measuring them, that no example adds to.
        statistics_seconds_per_example: of measuring them.
        statistics_every: updates between two measurements of the statistics, >= 1.
        inverse_every: updates between two inversions, >= 1.
        distribution: whether preconditioned gradients travel in every update, or inverses after
            each inversion.
        everywhere_seconds: of what every rank does in every update beside its own blocks:
            gradients as matrices, bounded and written back, hooks.
        taking_apart_seconds: of what came from other ranks, where there are any.
        collection_seconds: of taking new statistics in, beside the sums over examples.
        placement: "longest-first" by the seconds from one inversion to the next; "by-name": runs of
            equally many, as the authors' release has them.
    """

    owned: tuple[Owned, ...]
    statistics_fixed_seconds: float
    statistics_seconds_per_example: float
    statistics_every: float = 1.0
    inverse_every: float = 1.0
    distribution: Literal["gradients", "inverses"] = "gradients"
    everywhere_seconds: float = 0.0
    taking_apart_seconds: float = 0.0
    collection_seconds: float = 0.0
    placement: Placement = "longest-first"


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What one rank was measured to take.

    Attributes:
        time: the curve t(b) of one update's seconds, a single draw.
        forward_share: of forward and backward together, in [0, 1].
        gradient_bytes: that ranks sum in every update.
        averaged_bytes: of weights and buffers, that local updates average.
        apply_seconds: of the optimizer's own part, by its name: "sgd", "lars".
        kfac: None where it was not measured.
    """

    time: TimeDraws
    forward_share: float
    gradient_bytes: float
    averaged_bytes: float
    apply_seconds: Mapping[str, float]
    kfac: KFACWork | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """Seconds of the stages of one update, means over updates, none beside another.

    Attributes:
        loading: of the examples, as far as computing does not hide it.
        forward: of this rank's examples, all passes.
        backward: likewise.
        gradient_traffic: the gradient's sum, as far as the backward pass does not hide it; of
            local updates the averaging of weights.
        statistics: of K-FAC, from this rank's examples, taken in.
        statistics_traffic: to the ranks that own the blocks.
        inversion: what it adds to the busiest rank.
        precondition: on the busiest rank without it, and what every rank does with the results.
        gathering: of preconditioned gradients, or of inverses.
        apply: of the optimizer.
    """

    loading: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    gradient_traffic: float = 0.0
    statistics: float = 0.0
    statistics_traffic: float = 0.0
    inversion: float = 0.0
    precondition: float = 0.0
    gathering: float = 0.0
    apply: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the update."""
        return float(sum(dataclasses.astuple(self)))


def synchronous_stages(
    work: Work, link: Link, *, optimizer: str, batch_size: int, ranks: int
) -> StageSeconds:
    """An update whose gradient every rank gets: SGD, LARS.

    Args:
        work: measured.
        link: between ranks.
        optimizer: whose part `work.apply_seconds` has.
        batch_size: B, global, >= 1.
        ranks: R, >= 1; of more ranks than examples some have none.

    Raises:
        InputError: sizes or ranks below 1, an optimizer that was not measured.

    Example:
        >>> time = TimeDraws(knots=np.array([1.0, 101.0]), seconds=np.array([[0.01, 0.11]]),
        ...     optimizer_seconds=0.001, loading_seconds_per_example=np.zeros(1))
        >>> work = Work(time=time, forward_share=0.25, gradient_bytes=4e6, averaged_bytes=4e6,
        ...     apply_seconds={"sgd": 0.001})
        >>> link = Link(latency_seconds=1e-4, seconds_per_byte=1e-9)
        >>> found = synchronous_stages(work, link, optimizer="sgd", batch_size=202, ranks=2)
        >>> round(found.forward + found.backward, 6), round(found.gradient_traffic, 6)
        (0.109, 0.0042)
    """
    if ranks < 1:
        raise InputError("ranks", "must be >= 1", ranks)
    if optimizer not in work.apply_seconds:
        hint = f"measured: {', '.join(work.apply_seconds)}"
        raise InputError("optimizer", "must be one whose part was measured", optimizer, hint=hint)
    time = work.time
    examples = math.ceil(batch_size / ranks)
    unloaded = dataclasses.replace(time, loading_seconds_per_example=np.zeros(1))
    computing = float(unloaded.seconds_per_update(examples)[0, 0])
    loading = float(time.seconds_per_update(examples)[0, 0]) - computing
    passes = max(computing - time.optimizer_seconds, 0.0)
    backward = (1.0 - work.forward_share) * passes
    traffic = link.all_reduce_seconds(work.gradient_bytes, ranks)
    num_passes = math.ceil(examples / (time.largest_micro_batch or examples))
    return StageSeconds(
        loading=loading,
        forward=work.forward_share * passes,
        backward=backward,
        gradient_traffic=max(traffic - link.overlap * backward / num_passes, 0.0),
        apply=work.apply_seconds[optimizer],
    )


def local_sgd_stages(
    work: Work, link: Link, *, every: int, batch_size: int, ranks: int
) -> StageSeconds:
    """An update of local SGD: weights are averaged every so many updates, gradients never.

    Args:
        work: measured.
        link: between ranks.
        every: H, updates between two averagings, >= 1.
        batch_size: B, of all ranks' updates together.
        ranks: R.

    Raises:
        InputError: as `synchronous_stages`; H below 1.
    """
    if every < 1:
        raise InputError("every", "must be >= 1 update", every)
    alone = synchronous_stages(work, link, optimizer="sgd", batch_size=batch_size, ranks=ranks)
    averaging = link.all_reduce_seconds(work.averaged_bytes, ranks) / every
    return dataclasses.replace(alone, gradient_traffic=averaging)


def kfac_stages(work: Work, link: Link, *, batch_size: int, ranks: int) -> StageSeconds:
    """An update of K-FAC with SGD: what refreshes cost is divided by the updates between them.

    The gradient is summed on every rank, as for SGD; statistics go to their owners, who invert
    and precondition, and send what they have made.

    Args:
        work: measured, with K-FAC.
        link: between ranks.
        batch_size: B, global.
        ranks: R; more ranks than blocks leave some without any.

    Raises:
        InputError: as `synchronous_stages`; K-FAC was not measured.
    """
    kfac = work.kfac
    if kfac is None:
        raise InputError("kfac", "must have been measured")
    plain = synchronous_stages(work, link, optimizer="sgd", batch_size=batch_size, ranks=ranks)
    shares = shares_of_ranks(kfac, ranks)
    examples = math.ceil(batch_size / ranks)
    statistics = kfac.statistics_fixed_seconds + kfac.statistics_seconds_per_example * examples
    gathering = link.scatter_seconds([share.gathered_bytes for share in shares], ranks)
    gathers = 1.0 if kfac.distribution == "gradients" else kfac.inverse_every
    own = max((share.precondition_seconds for share in shares), default=0.0)
    both = (share.inversion_seconds + share.precondition_seconds for share in shares)
    inversion = max(both, default=0.0) - own  # ranks meet after both
    apart = kfac.taking_apart_seconds if ranks > 1 else 0.0
    return dataclasses.replace(
        plain,
        statistics=(statistics + kfac.collection_seconds) / kfac.statistics_every,
        statistics_traffic=link.scatter_seconds([share.statistic_bytes for share in shares], ranks)
        / kfac.statistics_every,
        inversion=inversion / kfac.inverse_every,
        precondition=own + kfac.everywhere_seconds + apart,
        gathering=gathering / gathers,
    )


def shares_of_ranks(kfac: KFACWork, ranks: int) -> list[Owned]:
    """What each rank that owns a block has to do, summed over its blocks.

    Args:
        kfac: its blocks and how they are placed.
        ranks: R, >= 1.

    Returns:
        One for each rank with a block, named by its number.
    """
    by_name = {block.name: block for block in kfac.owned}
    if kfac.placement == "by-name":
        parts = np.array_split(np.array(sorted(by_name)), ranks)
        owner = {str(name): rank for rank, part in enumerate(parts) for name in part}
    else:
        every = kfac.inverse_every
        costs = {
            name: block.inversion_seconds + every * block.precondition_seconds
            for name, block in by_name.items()
        }
        owner = dict(place(costs, ranks).owner)
    of_rank: dict[int, list[Owned]] = {}
    for name, rank in owner.items():
        of_rank.setdefault(rank, []).append(by_name[name])
    return [
        Owned(
            name=str(rank),
            inversion_seconds=sum(block.inversion_seconds for block in blocks),
            precondition_seconds=sum(block.precondition_seconds for block in blocks),
            statistic_bytes=sum(block.statistic_bytes for block in blocks),
            gathered_bytes=sum(block.gathered_bytes for block in blocks),
        )
        for rank, blocks in sorted(of_rank.items())
    ]
