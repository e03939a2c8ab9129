"""Refresh: intervals by hand, the Fibonacci rule, and going on in the middle of an interval."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.refresh import (
    AdaptiveRefreshController,
    Due,
    FixedRefreshPlan,
    History,
    RefreshPlan,
    relative_change,
)
from anybatch.recipe_preconditioner import AdaptiveRefresh, FixedRefresh

Changes = dict[str, tuple[float, float]]
NAMES = ["0.A", "0.G"]
NEW = (math.inf, math.inf)  # of a value that has no others before it
ALIKE, JUMP, LIKE_LAST_ALONE = (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)


def updates_of(plan: RefreshPlan, count: int, factor: float = 1.0) -> tuple[list[int], list[int]]:
    """In which updates something is measured, and in which inverted."""
    measured, inverted = [], []
    for update in range(count):
        due = plan.due(update, factor)
        measured += [update] if due.statistics else []
        inverted += [update] if due.inverses else []
        plan.observe(update, due)
    return measured, inverted


def intervals(values: list[Tensor], rule: AdaptiveRefresh, count: int) -> list[int]:
    """Updates between the refreshes of one factor that has these values in its updates."""
    refresh, history, refreshed = AdaptiveRefreshController(rule, ["x"]), History(), []
    for update in range(count):
        due = refresh.due(update)
        changes: Changes = {}
        if due:
            first, second = history.take(values[min(update, len(values) - 1)])
            changes = {"x": (float(first), float(second))}
            refreshed.append(update)
        refresh.observe(update, due, changes)
    return [late - early for early, late in itertools.pairwise(refreshed)]


def late(*, statistics_every: int, inverse_every: int) -> FixedRefresh:
    """Intervals without early inverses."""
    return FixedRefresh(
        statistics_every=statistics_every, inverse_every=inverse_every, early_inverses=False
    )


# --- fixed ---------------------------------------------------------------------------------------


def test_fixed_intervals_by_hand() -> None:
    plan = FixedRefreshPlan(late(statistics_every=3, inverse_every=6), NAMES)
    assert updates_of(plan, 14) == ([0, 3, 6, 9, 12], [0, 6, 12])
    assert plan.counts.updates == 14
    assert plan.counts.statistics == {"0.A": 5, "0.G": 5}
    assert plan.counts.saved_statistics() == {"0.A": 9, "0.G": 9}
    assert plan.counts.saved_inverses() == {"0.A": 11, "0.G": 11}


@pytest.mark.parametrize(
    ("factor", "measured", "inverted"),
    [
        (1.0, [0, 2, 4, 6, 8, 10, 12], [0, 6, 12]),
        (1.7, [0, 3, 6, 9, 12], [0, 9]),  # 3.4 is 3, and 9 is three times that
        (0.5, list(range(14)), [0, 3, 6, 9, 12]),
        (0.0, list(range(14)), [0, 3, 6, 9, 12]),  # never below 1
    ],
)
def test_a_factor_multiplies_both_intervals(
    factor: float, measured: list[int], inverted: list[int]
) -> None:
    plan = FixedRefreshPlan(late(statistics_every=2, inverse_every=6), NAMES)
    assert updates_of(plan, 14, factor) == (measured, inverted)


def test_a_changed_factor_counts_from_the_last_refresh() -> None:
    plan = FixedRefreshPlan(late(statistics_every=4, inverse_every=8), NAMES)
    everything, statistics = Due(frozenset(NAMES), frozenset(NAMES)), Due(frozenset(NAMES))
    updates_of(plan, 6)  # measured in 0 and 4, inverted in 0
    assert not plan.due(6)
    assert plan.due(6, 0.5) == everything
    plan.observe(6, everything)
    assert not plan.due(9)
    assert plan.due(10) == statistics
    plan.observe(10, statistics)
    assert not plan.due(13)
    assert not plan.due(13, 0.9)  # an inversion, for which it is time, waits for new statistics
    assert plan.due(14) == everything


def test_the_first_interval_is_inverted_at_every_measurement() -> None:
    plan = FixedRefreshPlan(FixedRefresh(statistics_every=10, inverse_every=100), NAMES)
    _, inverted = updates_of(plan, 310)
    assert inverted == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 300]
    assert plan.counts.saved_inverses() == {"0.A": 297, "0.G": 297}
    assert plan.counts.statistics == {"0.A": 31, "0.G": 31}
    _, steady = updates_of(
        FixedRefreshPlan(late(statistics_every=10, inverse_every=100), NAMES), 310
    )
    assert steady == [0, 100, 200, 300]


@pytest.mark.parametrize(
    ("factor", "inverted"),
    [(1.0, [0, 2, 4, 6, 12, 18]), (1.7, [0, 3, 6, 9, 18]), (0.5, [0, 1, 2, 3, 6, 9, 12, 15, 18])],
)
def test_a_factor_multiplies_the_first_interval_too(factor: float, inverted: list[int]) -> None:
    plan = FixedRefreshPlan(FixedRefresh(statistics_every=2, inverse_every=6), NAMES)
    assert updates_of(plan, 20, factor)[1] == inverted


def test_inverses_are_no_longer_early_when_a_factor_grows() -> None:
    plan = FixedRefreshPlan(FixedRefresh(statistics_every=2, inverse_every=6), NAMES)
    updates_of(plan, 8)  # inverted in 0, 2, 4 and 6
    everything = frozenset(NAMES)
    assert plan.due(8) == Due(everything)
    assert plan.due(10, 2.0) == Due(everything)
    assert not plan.due(9, 2.0)
    assert plan.due(18, 2.0) == Due(everything, everything)


def test_a_state_of_before_early_inverses_goes_on_without_them() -> None:
    plan = FixedRefreshPlan(late(statistics_every=2, inverse_every=6), NAMES)
    updates_of(plan, 2)
    state = plan.state_dict()
    del state["is_early"]
    later = FixedRefreshPlan(FixedRefresh(statistics_every=2, inverse_every=6), NAMES)
    later.load_state_dict(state)
    assert later.due(2) == Due(frozenset(NAMES))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.floats(0, 4), min_size=1, max_size=60),
)
def test_inverses_are_made_of_new_statistics_and_intervals_are_at_least_one(
    every: int, ratio: int, factors: list[float]
) -> None:
    plan = FixedRefreshPlan(
        FixedRefresh(statistics_every=every, inverse_every=every * ratio), NAMES
    )
    without = FixedRefreshPlan(late(statistics_every=every, inverse_every=every * ratio), NAMES)
    last = None
    for update, factor in enumerate(factors):
        due = plan.due(update, factor)
        assert due.inverses <= due.statistics
        steady = Due(due.statistics) if due.early else due
        assert steady == without.due(update, factor)  # later inversions come when they would
        without.observe(update, steady)
        if due and last is not None:
            assert update - last >= max(1, round(every * factor))
        last = update if due else last
        plan.observe(update, due)
    assert plan.counts.statistics["0.A"] >= plan.counts.inverses["0.A"] >= 1


def test_an_update_that_fell_through_leaves_everything_due() -> None:
    plan = FixedRefreshPlan(FixedRefresh(statistics_every=5, inverse_every=5), NAMES)
    adaptive = AdaptiveRefreshController(AdaptiveRefresh(), NAMES)
    for each in (plan, adaptive):
        assert each.due(0) == each.due(0) == Due(frozenset(NAMES), frozenset(NAMES))
        each.observe(0, Due())  # skipped
        assert each.due(1) == Due(frozenset(NAMES), frozenset(NAMES))
        assert each.counts.saved_statistics() == {"0.A": 1, "0.G": 1}


# --- adaptive ------------------------------------------------------------------------------------


def test_a_constant_statistic_is_refreshed_after_fibonaccis_numbers() -> None:
    constant = [torch.tensor([[2.0, 3.0]])]
    assert intervals(constant, AdaptiveRefresh(), 100) == [1, 1, 2, 3, 5, 8, 13, 21, 34]


def test_so_is_one_of_zeros() -> None:
    assert intervals([torch.zeros(1, 2, 2)], AdaptiveRefresh(), 13) == [1, 1, 2, 3, 5]


def test_a_jump_halves_the_interval_and_the_value_before_it_keeps_it_once() -> None:
    # Refreshed in 0, 1, 2, 4, 7, 12, 20; in 12 everything is ten times as large.
    values = [torch.ones(1, 3)] * 8 + [10 * torch.ones(1, 3)]
    # 5 / 2 = 2 in the place of 8; then like X1 alone: 2; then 2 + 2, 4 + 2, 6 + 4.
    assert intervals(values, AdaptiveRefresh(), 40) == [1, 1, 2, 3, 5, 2, 2, 4, 6, 10]


def test_the_rule_by_hand() -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(similarity=0.1), ["x"])
    update, seen = 0, []
    answers = [NEW, (0.05, math.inf), ALIKE, ALIKE, ALIKE, LIKE_LAST_ALONE, JUMP, JUMP, JUMP, JUMP]
    for changes in [*answers, (0.1, 0.0), (math.nan, math.nan), (0.0999, 0.0999)]:
        assert refresh.due(update) == Due(frozenset("x"), frozenset("x"))
        refresh.observe(update, refresh.due(update), {"x": changes})
        interval = next(n for n in itertools.count(1) if refresh.due(update + n))
        seen.append(interval)
        update += interval
    # 0.1 is not below 0.1; NaN is like nothing.
    assert seen == [1, 1, 2, 3, 5, 5, 2, 1, 1, 1, 1, 1, 2]


def test_like_the_last_but_one_alone_is_unlike() -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(), ["x"])
    for update, changes in ((0, NEW), (1, ALIKE), (2, ALIKE), (4, ALIKE), (7, (1.0, 0.0))):
        refresh.observe(update, refresh.due(update), {"x": changes})
    assert not refresh.due(7)
    assert refresh.due(8)  # 3 / 2 = 1


def test_an_interval_counts_from_the_update_that_was_made() -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(), ["x"])
    for update in (0, 1, 2):
        refresh.observe(update, refresh.due(update), {"x": ALIKE})  # 1, 1 and 2
    for update in (3, 4, 5):  # the one of 4 falls through, and that of 5
        refresh.observe(update, Due())
    refresh.observe(6, refresh.due(6), {"x": ALIKE})  # 3
    assert [update for update in range(6, 11) if refresh.due(update)] == [9, 10]


@pytest.mark.parametrize("longest", [1, 2, 4, 100])
def test_no_interval_is_longer_than_the_longest(longest: int) -> None:
    found = intervals([torch.ones(1, 1)], AdaptiveRefresh(longest=longest), 60)
    assert max(found) == min(longest, 21)
    assert found[-1] == max(found) or longest == 100


def test_factors_have_intervals_of_their_own_and_are_inverted_when_measured() -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(), NAMES)
    seen: dict[str, list[int]] = {name: [] for name in NAMES}
    for update in range(8):
        due = refresh.due(update)
        assert due.inverses == due.statistics
        for name in due.statistics:
            seen[name].append(update)
        each = {"0.A": ALIKE if update else NEW, "0.G": JUMP}
        refresh.observe(update, due, {name: each[name] for name in due.statistics})
    assert seen == {"0.A": [0, 1, 2, 4, 7], "0.G": [0, 1, 2, 3, 4, 5, 6, 7]}
    assert refresh.counts.statistics == refresh.counts.inverses == {"0.A": 5, "0.G": 8}
    assert refresh.counts.saved_inverses() == {"0.A": 3, "0.G": 0}


CHANGE = st.floats(0, 1) | st.just(math.inf) | st.just(math.nan)
RULES = st.builds(
    AdaptiveRefresh,
    similarity=st.floats(0, 1),
    longest=st.none() | st.integers(1, 20),
)


@settings(max_examples=100, deadline=None)
@given(RULES, st.lists(st.tuples(CHANGE, CHANGE), min_size=1, max_size=80))
def test_adaptive_intervals_are_whole_at_least_one_and_at_most_twice_the_last(
    rule: AdaptiveRefresh, answers: list[tuple[float, float]]
) -> None:
    refresh, last, before = AdaptiveRefreshController(rule, ["x"]), 0, 1
    for update, answer in enumerate(answers):
        due = refresh.due(update)
        refresh.observe(update, due, dict.fromkeys(due.statistics, answer))
        if due and update:
            assert update - last >= 1
            assert rule.longest is None or update - last <= rule.longest
        if due:
            last, before = update, max(before, update - last)
            row = refresh.state_dict()["intervals"]["x"]
            assert 1 <= row[0] == row[2] - update


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(CHANGE, CHANGE), min_size=1, max_size=40))
def test_similarity_zero_refreshes_in_every_update(answers: list[tuple[float, float]]) -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(similarity=0.0), NAMES)
    dense = FixedRefreshPlan(FixedRefresh(statistics_every=1, inverse_every=1), NAMES)
    for update, answer in enumerate(answers):
        assert refresh.due(update) == dense.due(update) == Due(frozenset(NAMES), frozenset(NAMES))
        refresh.observe(update, refresh.due(update), dict.fromkeys(NAMES, answer))
        dense.observe(update, dense.due(update))
    assert refresh.counts.state_dict() == dense.counts.state_dict()


def test_what_cannot_be_decided_is_refused() -> None:
    refresh = AdaptiveRefreshController(AdaptiveRefresh(), NAMES)
    with pytest.raises(InputError, match=r"factor 0\.A must come with its relative changes"):
        refresh.observe(0, refresh.due(0), {"0.G": NEW})
    with pytest.raises(InputError, match="factor of an adaptive refresh must be 1, got 2"):
        refresh.due(0, 2.0)


# --- state ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(0, 40), st.booleans())
def test_a_state_taken_in_any_update_goes_on_the_same(
    data: st.DataObject, cut: int, is_adaptive: bool
) -> None:
    def made() -> RefreshPlan:
        if is_adaptive:
            return AdaptiveRefreshController(AdaptiveRefresh(longest=13), NAMES)
        return FixedRefreshPlan(FixedRefresh(statistics_every=3, inverse_every=12), NAMES)

    answers = data.draw(
        st.lists(st.sampled_from([ALIKE, JUMP, LIKE_LAST_ALONE]), min_size=60, max_size=60)
    )
    plan, dues = made(), []
    for update, answer in enumerate(answers):
        if update == cut:
            state = json.loads(json.dumps(plan.state_dict()))
            plan.observe(update, plan.due(update), dict.fromkeys(NAMES, JUMP))  # of no effect on it
            plan = made()
            plan.load_state_dict(state)
        dues.append(plan.due(update))
        plan.observe(update, dues[-1], dict.fromkeys(dues[-1].statistics, answer))
    whole, expected = made(), []
    for update, answer in enumerate(answers):
        expected.append(whole.due(update))
        whole.observe(update, expected[-1], dict.fromkeys(expected[-1].statistics, answer))
    assert dues == expected
    assert plan.state_dict() == whole.state_dict()


@pytest.mark.parametrize("names", [["0.A"], ["0.A", "0.G", "1.A"], ["0.A", "2.G"]])
def test_a_state_of_other_factors_is_refused(names: list[str]) -> None:
    fixed = FixedRefreshPlan(FixedRefresh(), names).state_dict()
    adaptive = AdaptiveRefreshController(AdaptiveRefresh(), names).state_dict()
    with pytest.raises(InputError, match="must be a factor of the model and of the state"):
        FixedRefreshPlan(FixedRefresh(), NAMES).load_state_dict(fixed)
    with pytest.raises(InputError, match="must be a factor of the model and of the state"):
        AdaptiveRefreshController(AdaptiveRefresh(), NAMES).load_state_dict(adaptive)


# --- what they are told --------------------------------------------------------------------------


def test_relative_change_by_hand() -> None:
    old, new = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]), torch.tensor([[[3.0, 1.5], [2.0, 4.0]]])
    assert float(relative_change(new, old)) == 0.5
    assert float(relative_change(new, new)) == 0.0
    zero = torch.zeros_like(old)
    assert float(relative_change(zero, zero)) == 0.0
    assert float(relative_change(zero, old)) == 1.0
    assert float(relative_change(old, zero)) == math.inf


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_relative_change_does_not_overflow(scale: float) -> None:
    old = torch.full((1, 4), scale)
    assert float(relative_change(1.25 * old, old)) == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_like_nothing(bad: float) -> None:
    good, broken = torch.ones(1, 2), torch.tensor([[1.0, bad]])
    for new, old in ((good, broken), (broken, good), (broken, broken)):
        assert not float(relative_change(new, old)) < 1e300


def test_a_history_compares_with_the_last_two_and_keeps_them_through_its_state() -> None:
    history, values = History(), [torch.full((1, 2), value) for value in (1.0, 2.0, 4.0, 5.0)]
    found = [float(change) for value in values[:3] for change in history.take(value)]
    assert found == pytest.approx([math.inf, math.inf, 1.0, math.inf, 1.0, 3.0])
    state = history.state_dict()
    assert state["last"] is values[2]  # no copy
    again = History()
    again.load_state_dict(state, device=torch.device("cpu"))
    values[2].zero_()  # of no effect on what was loaded
    assert [float(change) for change in again.take(values[3])] == pytest.approx([0.25, 1.5])
    empty = History()
    empty.load_state_dict(History().state_dict())
    assert tuple(map(float, empty.take(values[3]))) == (math.inf, math.inf)
