"""Stages of an update on many ranks, by hand: traffic, inversions, refreshes, placement."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from cluster_cases import ALPHA, BETA, GRADIENT, LINK, block, kfac_work, stage_times, work
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import throughput

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.planning.arithmetic.cluster_link import Link, measured_link
from anybatch.planning.arithmetic.cluster_model import (
    StageSeconds,
    kfac_stages,
    local_sgd_stages,
    shares_of_ranks,
    synchronous_stages,
)
from anybatch.planning.arithmetic.cluster_work import work_of

near = pytest.approx


# --- links ---------------------------------------------------------------------------------------


def test_an_all_reduce_has_two_latencies_a_hop_and_nearly_twice_its_bytes() -> None:
    for ranks, hops in ((2, 1), (3, 2), (8, 3), (1024, 10)):
        expected = 2 * hops * ALPHA + 2 * (ranks - 1) / ranks * 4e6 * BETA
        assert LINK.all_reduce_seconds(4e6, ranks) == near(expected)
    ring = dataclasses.replace(LINK, hops="ring")
    assert ring.all_reduce_seconds(0.0, 8) == near(14 * ALPHA)
    assert LINK.all_reduce_seconds(4e6, 1) == 0.0


def test_a_large_gradient_travels_in_messages_that_each_wait() -> None:
    still = dataclasses.replace(LINK, seconds_per_byte=0.0)
    assert still.all_reduce_seconds(25 * 2**20, 2) == near(2 * ALPHA)
    assert still.all_reduce_seconds(25 * 2**20 + 1, 2) == near(4 * ALPHA)


def test_unequal_shares_are_padded_until_an_all_reduce_is_cheaper() -> None:
    still = dataclasses.replace(LINK, latency_seconds=0.0, seconds_per_byte=1.0)
    assert still.scatter_seconds([6.0, 4.0], 2) == 6.0  # padded; the all-reduce would be 10
    assert still.scatter_seconds([6.0, 4.0], 8) == 17.5  # padded: 42
    always = dataclasses.replace(still, shares="all-reduce")
    assert always.scatter_seconds([6.0, 4.0], 2) == 10.0
    assert still.scatter_seconds([6.0, 4.0], 1) == 0.0
    assert LINK.scatter_seconds([], 8) == 0.0


@given(
    st.lists(st.floats(1.0, 1e9), min_size=1, max_size=20),
    st.integers(2, 4096),
    st.floats(0.0, 1e-3),
)
def test_shares_never_cost_less_than_their_bytes_nor_more_than_an_all_reduce(
    shares: list[float], ranks: int, alpha: float
) -> None:
    link = Link(latency_seconds=alpha, seconds_per_byte=BETA)
    seconds = link.scatter_seconds(shares[:ranks], ranks)
    total = sum(shares[:ranks])
    assert seconds >= (ranks - 1) / ranks * total * BETA * (1 - 1e-12)
    most = 2 * (ranks - 1) / ranks * total * BETA + 2 * math.ceil(math.log2(ranks)) * alpha
    assert seconds <= most * (1 + 1e-12)


def test_a_measured_link_gives_its_own_measurement_back() -> None:
    values = {"latency_seconds": 6e-4, "seconds_per_byte": 3e-9, "bytes": 4e6}
    link = measured_link(throughput(all_reduce=values, world_size=4))
    assert link is not None
    assert link.all_reduce_seconds(1e6, 4) == near(6e-4 + 3e-9 * 1e6)
    assert measured_link(throughput(all_reduce=None, world_size=1)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_seconds": -1.0}, "latency_seconds must be >= 0 and finite"),
        ({"seconds_per_byte": math.nan}, "seconds_per_byte must be >= 0 and finite"),
        ({"overlap": 1.5}, r"overlap must be in \[0, 1\]"),
    ],
)
def test_a_link_out_of_bounds_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LINK, **changes)


# --- first-order methods -------------------------------------------------------------------------


def test_sgd_by_hand() -> None:
    found = synchronous_stages(work(), LINK, optimizer="sgd", batch_size=101, ranks=2)
    passes = 0.010 + 51 * 0.001 - 0.002  # of ceil(101 / 2) examples
    assert found.forward == near(0.25 * passes)
    assert found.backward == near(0.75 * passes)
    assert found.gradient_traffic == near(2 * ALPHA + GRADIENT * BETA)
    assert found.apply == 0.001
    assert found.total == near(passes + 2 * ALPHA + GRADIENT * BETA + 0.001)
    lars = synchronous_stages(work(), LINK, optimizer="lars", batch_size=101, ranks=2)
    assert lars.total - found.total == near(0.002)


def test_one_rank_sends_nothing() -> None:
    found = kfac_stages(work(kfac=kfac_work(block("a"))), LINK, batch_size=8, ranks=1)
    assert (found.gradient_traffic, found.statistics_traffic, found.gathering) == (0.0, 0.0, 0.0)


def test_loading_is_added_or_hidden() -> None:
    slow = {"loading_seconds_per_example": np.array([0.002])}
    found = synchronous_stages(work(**slow), LINK, optimizer="sgd", batch_size=10, ranks=1)
    assert found.loading == near(0.020)
    hidden = work(**slow, is_loading_overlapped=True)
    found = synchronous_stages(hidden, LINK, optimizer="sgd", batch_size=10, ranks=1)
    assert found.loading == near(0.0)


def test_overlap_hides_traffic_behind_the_last_backward_pass_alone() -> None:
    link = dataclasses.replace(LINK, overlap=0.5, seconds_per_byte=1e-8)
    traffic = 2 * ALPHA + GRADIENT * 1e-8
    for largest, passes in ((None, 1), (20, 4)):
        found = synchronous_stages(
            work(largest_micro_batch=largest), link, optimizer="sgd", batch_size=160, ranks=2
        )
        hidden = 0.5 * found.backward / passes
        assert found.gradient_traffic == near(max(traffic - hidden, 0.0))
    assert found.gradient_traffic > 0.0


def test_local_sgd_averages_weights_now_and_then() -> None:
    found = local_sgd_stages(work(), LINK, every=8, batch_size=64, ranks=4)
    once = 4 * ALPHA + 1.5 * 1.5 * GRADIENT * BETA
    assert found.gradient_traffic == near(once / 8)
    sgd = synchronous_stages(work(), LINK, optimizer="sgd", batch_size=64, ranks=4)
    assert dataclasses.replace(found, gradient_traffic=sgd.gradient_traffic) == sgd


# --- K-FAC ---------------------------------------------------------------------------------------


def test_kfac_by_hand() -> None:
    kfac = kfac_work(*(block(name) for name in "abcd"), statistics_every=2, inverse_every=4)
    found = kfac_stages(work(kfac=kfac), LINK, batch_size=100, ranks=2)
    plain = synchronous_stages(work(), LINK, optimizer="sgd", batch_size=100, ranks=2)
    assert found.statistics == near((0.001 + 50 * 1e-4) / 2)
    assert found.statistics_traffic == near((ALPHA + 2000 * BETA) / 2)  # two blocks a rank
    assert found.inversion == near(2.0 / 4)
    assert found.precondition == near(0.2)
    assert found.gathering == near(ALPHA + 200 * BETA)
    own = ("statistics", "statistics_traffic", "inversion", "precondition", "gathering")
    assert dataclasses.replace(found, **dict.fromkeys(own, 0.0)) == plain


def test_what_every_rank_does_is_added_and_only_many_take_apart() -> None:
    beside = {"everywhere_seconds": 0.3, "taking_apart_seconds": 0.04, "collection_seconds": 0.005}
    blocks = [block(name) for name in "ab"]
    for ranks, apart in ((1, 0.0), (2, 0.04)):
        bare, found = (
            kfac_stages(work(kfac=kfac), LINK, batch_size=8, ranks=ranks)
            for kfac in (
                kfac_work(*blocks, statistics_every=10),
                kfac_work(*blocks, statistics_every=10, **beside),
            )
        )
        assert found.precondition - bare.precondition == near(0.3 + apart)
        assert found.statistics - bare.statistics == near(0.0005)
        assert found.total - bare.total == near(0.3005 + apart)


def test_ranks_beyond_the_blocks_gain_nothing_in_inversion() -> None:
    kfac = kfac_work(*(block(name, size) for name, size in zip("abcd", (8, 4, 2, 1), strict=True)))
    seconds = [
        kfac_stages(work(kfac=kfac), LINK, batch_size=1024, ranks=ranks).inversion
        for ranks in (1, 2, 4, 64)
    ]
    assert seconds == near([15.0, 8.0, 8.0, 8.0])


def test_blocks_by_name_are_worse_than_longest_first() -> None:
    blocks = [block(name, size) for name, size in zip("abcd", (1, 1, 5, 5), strict=True)]
    by_name = kfac_work(*blocks, placement="by-name")
    longest = kfac_work(*blocks)
    busiest = [max(s.inversion_seconds for s in shares_of_ranks(k, 2)) for k in (by_name, longest)]
    assert busiest == [10.0, 6.0]


def test_longest_first_counts_what_is_done_between_two_inversions() -> None:
    # Inverting "a" is long and rare; preconditioning of the others comes in every update.
    blocks = [block("a", 3.0, precondition_seconds=0.0)]
    blocks += [block(name, 1.0, precondition_seconds=1.0) for name in "bc"]
    shares = shares_of_ranks(kfac_work(*blocks, inverse_every=100), 2)
    assert max(share.precondition_seconds for share in shares) == 1.0


def test_inverses_are_gathered_after_an_inversion_alone() -> None:
    parts = {"precondition_seconds": 0.0}
    blocks = [block(name, **parts) for name in ("a.A", "a.G")]
    kfac = kfac_work(*blocks, distribution="inverses", inverse_every=5, everywhere_seconds=0.3)
    found = kfac_stages(work(kfac=kfac), LINK, batch_size=8, ranks=2)
    assert found.gathering == near((ALPHA + 100 * BETA) / 5)
    assert found.precondition == near(0.3)


@given(
    st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=12),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_inversion_lies_between_the_mean_and_the_longest_beside_it(
    seconds: list[float], ranks: int, every: int
) -> None:
    blocks = [block(f"{n}", s, precondition_seconds=0.0) for n, s in enumerate(seconds)]
    kfac = kfac_work(*blocks, inverse_every=every)
    found = kfac_stages(work(kfac=kfac), LINK, batch_size=64, ranks=ranks).inversion * every
    least = max(sum(seconds) / ranks, max(seconds))
    assert least * (1 - 1e-9) <= found <= (sum(seconds) / ranks + max(seconds)) * (1 + 1e-9)


def test_a_total_is_the_sum_of_all_stages() -> None:
    names = [field.name for field in dataclasses.fields(StageSeconds)]
    values = {name: float(2**number) for number, name in enumerate(names)}
    assert StageSeconds(**values).total == 2.0 ** len(names) - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synchronous_stages(work(), LINK, optimizer="sgd", batch_size=8, ranks=0), "ranks"),
        (lambda: synchronous_stages(work(), LINK, optimizer="adam", batch_size=8, ranks=1),
         "measured: sgd, lars"),
        (lambda: local_sgd_stages(work(), LINK, every=0, batch_size=8, ranks=1), "every"),
        (lambda: kfac_stages(work(), LINK, batch_size=8, ranks=1), "kfac must have been measured"),
    ],
)  # fmt: skip
def test_what_cannot_be_foretold_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# --- from measurements ---------------------------------------------------------------------------


def test_work_is_what_was_measured() -> None:
    found = work_of(throughput(), stage_times())
    assert (found.gradient_bytes, found.averaged_bytes) == (480.0, 500.0)
    assert found.apply_seconds == {"sgd": 0.001, "lars": 0.003}
    assert found.forward_share == near(0.3 / 0.8)
    kfac = found.kfac
    assert kfac is not None
    assert (kfac.statistics_every, kfac.inverse_every) == (10, 100)
    assert kfac.statistics_fixed_seconds == near(0.001)  # half of the batch
    assert kfac.statistics_seconds_per_example == near(2e-4)
    first, second = kfac.owned
    assert (first.name, second.name) == ("a", "b")
    assert first.inversion_seconds == near(2.5)  # medians
    assert first.precondition_seconds == near(0.2)
    assert first.statistic_bytes == 2 * 62
    assert first.gathered_bytes == 400
    assert kfac.everywhere_seconds == near(0.4 - 0.2 - 0.05)  # a step but for its blocks
    assert kfac.taking_apart_seconds == near(0.02)
    assert kfac.collection_seconds == near(0.003)


def test_work_of_an_older_measurement_has_the_blocks_alone() -> None:
    stages = stage_times()
    new = ("step_seconds", "collection_seconds", "taking_apart_seconds")
    known = {name: value for name, value in stages.estimates.items() if name not in new}
    kfac = work_of(throughput(), dataclasses.replace(stages, estimates=known)).kfac
    assert kfac is not None
    parts = (kfac.everywhere_seconds, kfac.taking_apart_seconds, kfac.collection_seconds)
    assert parts == (0.0, 0.0, 0.0)


def test_a_step_that_took_less_than_its_blocks_adds_nothing() -> None:
    stages = stage_times()
    known = dict(stages.estimates) | {"step_seconds": Estimate(value=0.1, low=0.1, high=0.1)}
    kfac = work_of(throughput(), dataclasses.replace(stages, estimates=known)).kfac
    assert kfac is not None
    assert kfac.everywhere_seconds == 0.0


def test_where_inverses_travel_factors_are_placed_apart() -> None:
    kfac = work_of(throughput(), stage_times(distribution="inverses", wire="fp32")).kfac
    assert kfac is not None
    assert [part.name for part in kfac.owned] == ["a.A", "a.G", "b.F"]
    assert [part.gathered_bytes for part in kfac.owned] == [220, 28, 24]
    assert [part.precondition_seconds for part in kfac.owned] == [0.0] * 3
    assert kfac.everywhere_seconds == near(0.4)
    assert kfac.taking_apart_seconds == 0.0  # inverses are, after an inversion


def test_work_of_another_measurement_is_refused() -> None:
    with pytest.raises(InputError, match="must be of kind stage-times, got throughput"):
        work_of(throughput(), throughput())
