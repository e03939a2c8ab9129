"""Schedules: values written by hand, laws of the closed forms, durations and the clock."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.commands.recipe import show_recipe
from anybatch.errors import InputError
from anybatch.recipe import Recipe, Schedules, SGDSettings
from anybatch.recipe_file import load_recipe
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.schedules import (
    SGDR,
    Clock,
    Constant,
    Cosine,
    Cyclic,
    DampingWarmup,
    DecayingMomentum,
    Duration,
    Exponential,
    Grid,
    Interval,
    InverseSquareRoot,
    Join,
    Levels,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Position,
    Schedule,
    Step,
    Unit,
    Warmup,
    WarmupStableDecay,
    epochs,
    examples,
    fraction,
    resolve_schedule,
    updates,
    value_at,
)

FACTORS = st.floats(0, 100, allow_nan=False)
PROGRESS = st.floats(0, 1)
FRACTIONS = st.floats(0.01, 0.99).map(fraction)
LONGER = st.floats(1.0, 3.0).map(lambda count: Duration(count, "fraction"))  # cut by the end
SHAPES = st.sampled_from(["cosine", "linear"])
PLAIN = (
    st.builds(Constant, value=FACTORS)
    | st.builds(Linear, start=FACTORS, end=FACTORS)
    | st.builds(Cosine, start=FACTORS, end=FACTORS)
    | st.builds(OneCycle, warmup=FRACTIONS, start=FACTORS, peak=FACTORS, end=FACTORS, shape=SHAPES)
)
SCHEDULES = PLAIN | st.builds(Warmup, duration=FRACTIONS, start=FACTORS, into=PLAIN)


MORE = (
    PLAIN
    | st.builds(
        Polynomial, power=st.floats(1, 10), start=FACTORS, end=FACTORS, length=FRACTIONS | LONGER
    )
    | st.builds(Exponential, factor=st.floats(0.01, 1), per=FRACTIONS)
    | st.builds(DecayingMomentum, momentum=st.floats(0, 0.99))
    | st.builds(DampingWarmup, duration=FRACTIONS, start=st.floats(1, 100))
    | st.builds(InverseSquareRoot, warmup=FRACTIONS, start=FACTORS)
    | st.builds(Step, every=FRACTIONS, factor=st.floats(0.1, 1.5))
    | st.builds(
        WarmupStableDecay,
        warmup=(st.just(0.0) | st.floats(0.01, 0.4)).map(fraction),
        decay=st.floats(0.01, 0.6).map(fraction),
        start=FACTORS,
        end=FACTORS,
        shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
    )
)
EDGES = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(
    lambda counts: tuple(map(fraction, sorted(counts)))
)
STEPPED = EDGES.flatmap(
    lambda edges: (
        st.builds(MultiStep, milestones=st.just(edges), factor=st.floats(0.1, 3))
        | st.builds(
            Levels,
            values=st.tuples(*[FACTORS] * (len(edges) + 1)),
            boundaries=st.just(edges),
        )
        | st.builds(Join, parts=st.tuples(*[MORE] * (len(edges) + 1)), boundaries=st.just(edges))
    )
)
KINDS = MORE | STEPPED
NESTED = KINDS | st.builds(Warmup, duration=FRACTIONS, start=FACTORS, into=KINDS)


def first_and_last(schedule: Schedule) -> tuple[float, float]:
    """What a schedule's own fields say about its two ends."""
    if isinstance(schedule, Constant):
        return schedule.value, schedule.value
    if isinstance(schedule, Warmup):
        return schedule.start, first_and_last(schedule.into)[1]
    return schedule.start, schedule.end


def levels(schedule: Schedule) -> list[float]:
    """The factors that a schedule is written with."""
    if isinstance(schedule, Constant):
        return [schedule.value]
    if isinstance(schedule, Warmup):
        return [schedule.start, *levels(schedule.into)]
    turn = [schedule.peak] if isinstance(schedule, OneCycle) else []
    return [schedule.start, schedule.end, *turn]


# --- closed forms --------------------------------------------------------------------------------

BY_HAND = [
    (Constant(), {0.0: 1.0, 0.7: 1.0, 1.0: 1.0}),
    (Constant(value=0.3), {0.0: 0.3, 1.0: 0.3}),
    (Linear(), {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
    (Linear(start=0.25, end=1.0), {0.0: 0.25, 0.5: 0.625, 1.0: 1.0}),
    (Cosine(), {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
    (Cosine(start=2.0, end=1.0), {0.0: 2.0, 0.5: 1.5, 2 / 3: 1.25, 1.0: 1.0}),
    (
        OneCycle(warmup=fraction(0.2), start=0.1, end=0.0, shape="linear"),
        {0.0: 0.1, 0.1: 0.55, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0},
    ),
    (OneCycle(), {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 0.65: 0.500002, 1.0: 4e-6}),
    (OneCycle(start=1, peak=0.85 / 0.95, end=1), {0.0: 1.0, 0.3: 0.85 / 0.95, 1.0: 1.0}),
    (OneCycle(warmup=fraction(0)), {0.0: 1.0, 1.0: 4e-6}),
    (Warmup(duration=fraction(0.1)), {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 1.0: 1.0}),
    (
        Warmup(duration=fraction(0.5), start=0.2, into=Cosine(start=1.0, end=0.0)),
        {0.0: 0.2, 0.25: 0.6, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0},
    ),
    (Warmup(duration=fraction(0), into=Linear()), {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
    (Warmup(duration=fraction(1)), {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
    (Polynomial(power=4.0, start=2.0, end=1.0), {0.0: 2.0, 0.5: 1.0625, 1.0: 1.0}),
    (Polynomial(power=0.5), {0.0: 1.0, 0.75: 0.5, 0.9375: 0.25, 1.0: 0.0}),
    (Polynomial(power=3.0, length=fraction(0.5)), {0.0: 1.0, 0.25: 0.125, 0.5: 0.0, 1.0: 0.0}),
    (Polynomial(power=3.0, end=0.2, length=Duration(2.0, "fraction")), {0.0: 1.0, 1.0: 0.3}),
    (Exponential(factor=0.25), {0.0: 1.0, 0.5: 0.5, 1.0: 0.25}),
    (Exponential(factor=0.5, per=fraction(0.1)), {0.0: 1.0, 0.3: 0.125, 1.0: 0.5**10}),
    (DecayingMomentum(momentum=0.0), {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
    # 0.9 -> 9 (1 - p) = m / (1 - m): 6 -> 6 / 7, 3 -> 3 / 4, 1 -> 1 / 2.
    (
        DecayingMomentum(momentum=0.9),
        {0.0: 1.0, 1 / 3: 6 / 7 / 0.9, 2 / 3: 0.75 / 0.9, 8 / 9: 0.5 / 0.9, 1.0: 0.0},
    ),
    (
        DampingWarmup(duration=fraction(0.2), start=10.0),
        {0.0: 10.0, 0.1: 1 + 9 / math.e, 0.2: 1 + 9 / math.e**2, 1.0: 1 + 9 * math.exp(-10)},
    ),
    (DampingWarmup(duration=fraction(0.5), start=1.0), {0.0: 1.0, 0.3: 1.0, 1.0: 1.0}),
    (InverseSquareRoot(warmup=fraction(0.04)), {0.0: 0.0, 0.01: 0.25, 0.04: 1.0, 1.0: 0.2}),
    (InverseSquareRoot(warmup=fraction(0.25), start=1.0), {0.0: 1.0, 0.2: 1.0, 1.0: 0.5}),
    (Step(every=fraction(0.3)), {0.0: 1.0, 0.29: 1.0, 0.3: 0.1, 0.6: 0.01, 0.9: 0.001, 1.0: 1e-3}),
    (
        MultiStep(milestones=(fraction(0.5), fraction(0.75)), factor=5.0),
        {0.0: 1.0, 0.4999: 1.0, 0.5: 5.0, 0.7499: 5.0, 0.75: 25.0, 1.0: 25.0},
    ),
    (MultiStep(milestones=()), {0.0: 1.0, 1.0: 1.0}),
    # A slow start in levels: half of the lr for 40 of 90 epochs, then 30, 15 and 5 more.
    (
        Levels(
            values=(0.5, 0.075, 0.01, 0.001),
            boundaries=(fraction(40 / 90), fraction(70 / 90), fraction(85 / 90)),
        ),
        {0.0: 0.5, 39.9 / 90: 0.5, 40 / 90: 0.075, 70 / 90: 0.01, 85 / 90: 0.001, 1.0: 0.001},
    ),
    (
        WarmupStableDecay(warmup=fraction(0.1), decay=fraction(0.2), start=0.5, end=0.1),
        {0.0: 0.5, 0.05: 0.75, 0.1: 1.0, 0.8: 1.0, 0.9: 0.55, 1.0: 0.1},
    ),
    (
        WarmupStableDecay(warmup=fraction(0), decay=fraction(0.4), shape="cosine"),
        {0.0: 1.0, 0.6: 1.0, 0.8: 0.5, 1.0: 0.0},
    ),
    (
        WarmupStableDecay(warmup=fraction(0), decay=fraction(1), shape="1-sqrt", end=0.2),
        {0.0: 1.0, 0.25: 0.6, 1.0: 0.2},
    ),
    (
        Join(
            parts=(Linear(start=0.0, end=1.0), Constant(value=0.5), Cosine()),
            boundaries=(fraction(0.2), fraction(0.6)),
        ),
        {0.0: 0.0, 0.1: 0.5, 0.2: 0.5, 0.59: 0.5, 0.6: 1.0, 0.8: 0.5, 1.0: 0.0},
    ),
]


@pytest.mark.parametrize(("schedule", "values"), BY_HAND)
def test_a_schedule_takes_the_values_computed_by_hand(
    schedule: Schedule, values: dict[float, float]
) -> None:
    for progress, value in values.items():
        assert schedule(progress) == pytest.approx(value, rel=1e-12, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(NESTED, st.floats(-5, 5))
def test_progress_outside_of_the_run_is_clamped(schedule: Schedule, progress: float) -> None:
    assert schedule(progress) == schedule(min(1.0, max(0.0, progress)))


@settings(max_examples=200, deadline=None)
@given(SCHEDULES)
def test_both_ends_are_met_exactly(schedule: Schedule) -> None:
    assert (schedule(0.0), schedule(1.0)) == first_and_last(schedule)


@settings(max_examples=200, deadline=None)
@given(SCHEDULES, PROGRESS)
def test_a_schedule_stays_between_its_levels(schedule: Schedule, progress: float) -> None:
    low, high = min(levels(schedule)), max(levels(schedule))
    assert low - 1e-9 <= schedule(progress) <= high + 1e-9


@settings(max_examples=300, deadline=None)
@given(NESTED, st.lists(PROGRESS, min_size=1, max_size=20))
def test_every_value_lies_within_the_bounds_that_a_schedule_states(
    schedule: Schedule, progress: list[float]
) -> None:
    low, high = schedule.bounds()
    slack = 1e-9 * (1.0 + high)
    for value in map(schedule, progress):
        assert low - slack <= value <= high + slack


@settings(max_examples=200, deadline=None)
@given(NESTED)
def test_the_bounds_are_no_wider_than_they_need_be(schedule: Schedule) -> None:
    edges = {0.0, 1.0, *corners(schedule, 0.0, 1.0)}
    near = {min(1.0, max(0.0, edge + shift)) for edge in edges for shift in (-1e-9, 0, 1e-9)}
    values = [schedule(progress) for progress in near]
    low, high = schedule.bounds()
    slack = 1e-4 * (1.0 + high)  # a steep start, as of a root, is not met in 1e-9
    assert min(values) <= low + slack
    assert max(values) >= high - slack


def corners(schedule: Schedule, begin: float, end: float) -> set[float]:
    """Where a schedule stretched over a piece of the run may turn or jump."""
    found = {begin, end}
    if isinstance(schedule, Warmup):
        turn = begin + (end - begin) * schedule.duration.count
        return found | corners(schedule.into, turn, end)
    if isinstance(schedule, Join):
        edges = [begin + (end - begin) * edge.count for edge in schedule.boundaries]
        pieces = zip(schedule.parts, [begin, *edges], [*edges, end], strict=True)
        return found.union(*(corners(*piece) for piece in pieces))
    if isinstance(schedule, (OneCycle, InverseSquareRoot, WarmupStableDecay)):
        found.add(begin + (end - begin) * schedule.warmup.count)
    if isinstance(schedule, WarmupStableDecay):
        found.add(end - (end - begin) * schedule.decay.count)
    if isinstance(schedule, Levels):
        found |= {begin + (end - begin) * edge.count for edge in schedule.boundaries}
    return found


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 10**7), st.integers(2, 40))
def test_a_boundary_falls_on_its_example_whatever_the_rounding(
    data: st.DataObject, total: int, pieces: int
) -> None:
    boundary = data.draw(st.integers(1, total - 1))
    warmup = data.draw(st.integers(0, boundary - 1))
    clock = Clock(None, 1, total)
    step = MultiStep(milestones=(examples(boundary - warmup),), factor=0.5)
    for written in (
        Warmup(duration=examples(warmup), start=1.0, into=step),
        Join(parts=(Constant(), Constant(value=0.5)), boundaries=(examples(boundary),)),
        Levels(values=(1.0, 0.5), boundaries=(examples(boundary),)),
    ):
        resolved = resolve_schedule(written, clock)
        assert resolved((boundary - 1) / total) == 1.0
        assert resolved(boundary / total) == 0.5
    every = max(1, total // pieces)
    for count in range(1, min(total // every, 50)):
        resolved = resolve_schedule(Step(every=examples(every), factor=0.5), clock)
        assert resolved((count * every - 1) / total) == 0.5 ** (count - 1)
        assert resolved(count * every / total) == 0.5**count or count * every == total


@settings(max_examples=200, deadline=None)
@given(
    MORE.filter(lambda schedule: not isinstance(schedule, Step)),
    st.floats(0, 1 - 1e-7),
)
def test_kinds_without_steps_are_continuous(schedule: Schedule, progress: float) -> None:
    low, high = schedule.bounds()
    jump = abs(schedule(progress + 1e-7) - schedule(progress))
    assert jump <= 5e-3 * (high - low) + 1e-12  # roots are steep, a hundredth of the run is not


@settings(max_examples=100, deadline=None)
@given(PLAIN, st.floats(0.01, 0.99), st.floats(0, 1))
def test_warmup_has_no_jump_and_stretches_what_follows_over_the_rest(
    into: Schedule, turn: float, progress: float
) -> None:
    warmup = Warmup(duration=fraction(turn), into=into)
    assert warmup(turn) == into(0.0)
    assert warmup(turn * (1 - 1e-12)) == pytest.approx(into(0.0), rel=1e-6, abs=1e-6)
    assert warmup(turn + (1 - turn) * progress) == pytest.approx(into(progress), rel=1e-6, abs=1e-6)


def test_one_cycle_meets_its_peak_exactly_at_the_turn() -> None:
    for turn in (0.1, 0.3, 0.7):
        cycle = OneCycle(warmup=fraction(turn), peak=1.25)
        assert cycle(turn) == 1.25
        assert cycle(turn * (1 - 1e-9)) == pytest.approx(1.25)
        assert cycle(turn * (1 + 1e-9)) == pytest.approx(1.25)


@pytest.mark.parametrize(("schedule", "values"), BY_HAND)
def test_before_the_beginning_and_after_the_end_the_ends_hold(
    schedule: Schedule, values: dict[float, float]
) -> None:
    assert schedule(-1.0) == schedule(0.0) == pytest.approx(values[0.0])
    assert schedule(2.0) == schedule(1.0) == pytest.approx(values[1.0])


@pytest.mark.parametrize("start", [1.0, 10.0, 1e4])
def test_the_warmup_of_the_damping_is_the_published_recurrence_in_small_updates(
    start: float,
) -> None:
    num_warmup, num_updates = 2000, 5000
    alpha = 2 * math.log10(start) / num_warmup
    warmup = DampingWarmup(duration=fraction(num_warmup / num_updates), start=start)
    damping = start
    for update in range(num_updates):
        above = warmup(update / num_updates) - damping
        assert -1e-9 * start <= above <= 0.19 * alpha * (start - 1) + 1e-9
        damping = (1 - alpha) * damping + alpha


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_factor_below_zero_or_not_finite_is_refused(value: float) -> None:
    for make in (
        lambda: Constant(value=value),
        lambda: Linear(end=value),
        lambda: Cosine(start=value),
        lambda: OneCycle(peak=value),
        lambda: Warmup(duration=epochs(1), start=value),
        lambda: Polynomial(start=value),
        lambda: InverseSquareRoot(warmup=epochs(1), start=value),
        lambda: Levels(values=(value,)),
        lambda: WarmupStableDecay(warmup=epochs(1), decay=epochs(1), end=value),
    ):
        with pytest.raises(InputError, match="must be >= 0 and finite"):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Polynomial(power=0.0), "power must be > 0 and finite, got 0.0"),
        (lambda: DecayingMomentum(momentum=1.0), "momentum must be in [0, 1), got 1.0"),
        (
            lambda: DampingWarmup(duration=epochs(1), start=0.5),
            "start must be >= 1 and finite, got 0.5",
        ),
        (
            lambda: DampingWarmup(duration=epochs(0), start=2.0),
            "duration must be > 0, got 0 epochs",
        ),
        (lambda: Exponential(factor=0.0), "factor must be in (0, 1], got 0.0"),
        (lambda: Exponential(factor=0.5, per=epochs(0)), "per must be > 0, got 0 epochs"),
        (lambda: Step(every=updates(0)), "every must be > 0, got 0 updates"),
        (lambda: Step(every=epochs(1), factor=0.0), "factor must be > 0 and finite, got 0.0"),
        (lambda: Step(every=fraction(1e-3), factor=3.0), "factor must stay finite after 999 steps"),
        (
            lambda: MultiStep(milestones=(epochs(3), epochs(2))),
            "milestones must increase, got 3 ep",
        ),
        (
            lambda: Levels(values=(1.0,), boundaries=(epochs(2),)),
            "values must be one more than the",
        ),
        (lambda: Join(parts=(), boundaries=()), "parts must be one more than the 0 boundaries"),
        (lambda: InverseSquareRoot(warmup=epochs(0)), "warmup must be > 0, got 0 epochs"),
        (
            lambda: WarmupStableDecay(warmup=fraction(0.5), decay=fraction(0.6)),
            "warmup + decay must be at most the whole run, got 1.1",
        ),
        (
            lambda: WarmupStableDecay(warmup=epochs(1), decay=epochs(1), shape="steep"),
            "shape must be one of: linear, cosine, 1-sqrt, got steep",
        ),
    ],
)
def test_what_makes_no_schedule_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (Step(every=epochs(0.001)), "step every must be > 0, got 0 fraction"),
        (
            WarmupStableDecay(warmup=epochs(6), decay=epochs(5)),
            "warmup-stable-decay warmup + decay must be at most the whole run, got 1.1",
        ),
        (MultiStep(milestones=(epochs(3), updates(20))), "multistep milestones must increase"),
        (
            Warmup(duration=epochs(1), into=MultiStep(milestones=(updates(5), epochs(0.5)))),
            "multistep milestones must increase",
        ),
    ],
)
def test_what_shows_only_when_resolved_is_refused_then(written: Schedule, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        resolve_schedule(written, Clock(100, 10, 1000))


def test_a_length_beyond_the_run_is_cut_and_not_shortened() -> None:
    clock = Clock(100, 10, 1000)  # ten epochs
    half = resolve_schedule(Exponential(factor=0.25, per=epochs(20)), clock)
    assert half(1.0) == pytest.approx(0.5)
    assert resolve_schedule(Step(every=epochs(20)), clock)(1.0) == 1.0
    rise = resolve_schedule(InverseSquareRoot(warmup=epochs(20)), clock)
    assert rise(1.0) == pytest.approx(0.5)
    join = Join(parts=(Linear(start=0.0, end=1.0), Constant()), boundaries=(epochs(20),))
    assert resolve_schedule(join, clock)(1.0) == pytest.approx(0.5)
    levels = Levels(values=(1.0, 0.5, 0.1), boundaries=(epochs(5), epochs(15)))
    assert resolve_schedule(levels, clock).bounds() == (0.5, 1.0)


# --- durations -----------------------------------------------------------------------------------

WHOLE = st.integers(0, 10**15)
DURATIONS = (
    st.builds(Duration, st.floats(0, 1e300), st.just("epochs"))
    | st.builds(Duration, st.floats(0, 1), st.just("fraction"))
    | st.builds(Duration, WHOLE.map(float), st.sampled_from(["updates", "examples"]))
)


@settings(max_examples=300, deadline=None)
@given(DURATIONS)
def test_a_duration_survives_the_way_through_text(duration: Duration) -> None:
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("5 epochs", epochs(5)),
        ("1 epoch", epochs(1)),
        ("5epochs", epochs(5)),
        ("0.5 epochs", epochs(0.5)),
        ("1 update", updates(1)),
        (" 2e3  updates ", updates(2000)),
        ("4096 examples", examples(4096)),
        ("1_000 examples", examples(1000)),
        ("0.3 fraction", fraction(0.3)),
    ],
)
def test_durations_are_read_as_written(text: str, duration: Duration) -> None:
    assert Duration.parse(text) == duration


def test_durations_are_written_in_the_shortest_way_that_is_exact() -> None:
    assert str(epochs(5)) == "5 epochs"
    assert str(epochs(0.1)) == "0.1 epochs"
    assert str(fraction(1 / 3)) == "0.3333333333333333 fraction"
    assert str(examples(1_234_567_890_123)) == "1234567890123 examples"


NO_DURATIONS = """5|epochs|5weeks|5 weeks|five epochs|-1 epochs|1.5 updates|0.5 examples
1.1 fraction|nan epochs|inf epochs|1e999 epochs|1.2.3 epochs|5 epochs 3|"""


@pytest.mark.parametrize("text", NO_DURATIONS.replace("\n", "|").split("|"))
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="duration"):
        Duration.parse(text)


def test_every_unit_has_its_function() -> None:
    made = [epochs(1), updates(1), examples(1), fraction(1)]
    assert {duration.unit for duration in made} == set(get_args(Unit))


# --- the clock -----------------------------------------------------------------------------------


def test_updates_are_counted_with_the_short_last_update_of_each_epoch() -> None:
    clock = Clock(examples_per_epoch=100, batch_size=32)  # 32 + 32 + 32 + 4
    lengths = [clock.examples(updates(count)) for count in range(10)]
    assert lengths == [0, 32, 64, 96, 100, 132, 164, 196, 200, 232]


def test_updates_of_a_stream_are_all_of_the_batch_size() -> None:
    assert Clock(examples_per_epoch=None, batch_size=32).examples(updates(7)) == 224


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 500))
def test_updates_equal_a_walk_through_the_epochs(size: int, batch_size: int, count: int) -> None:
    batch_size = min(batch_size, size)
    seen = offset = 0
    for _ in range(count):
        taken = min(batch_size, size - offset)
        seen, offset = seen + taken, (offset + taken) % size
    assert Clock(examples_per_epoch=size, batch_size=batch_size).examples(updates(count)) == seen


def test_epochs_and_fractions_round_to_whole_examples() -> None:
    clock = Clock(examples_per_epoch=101, batch_size=8, total_examples=1001)
    assert clock.examples(epochs(2)) == 202
    assert clock.examples(epochs(0.3)) == 30
    assert clock.examples(fraction(0.25)) == 250
    assert clock.examples(examples(77)) == 77


@pytest.mark.parametrize(
    ("clock", "duration", "message"),
    [
        (Clock(None, 8, 100), epochs(1), "must be in examples or updates"),
        (Clock(100, None, 100), updates(1), "must not be in updates while the batch size"),
        (Clock(100, 8), fraction(0.5), "must not be a fraction of itself"),
    ],
)
def test_a_duration_that_the_clock_cannot_tell_is_refused(
    clock: Clock, duration: Duration, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        clock.examples(duration)


def test_a_warm_up_longer_than_the_run_takes_the_whole_run() -> None:
    resolved = resolve_schedule(Warmup(duration=epochs(5), into=Linear()), Clock(100, 10, 200))
    assert [resolved(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    cycle = resolve_schedule(OneCycle(warmup=epochs(5), start=0.0), Clock(100, 10, 200))
    assert cycle(0.5) == pytest.approx(0.5)
    assert cycle(1.0) == 1.0


def test_the_last_updates_size_is_what_is_left_of_its_epoch() -> None:
    assert Clock(100, 32, 200).last_size == 4  # 32 + 32 + 32 + 4, twice
    assert Clock(100, 32, 150).last_size == 18  # 100, then 32 + 18
    assert Clock(100, 25, 200).last_size == 25
    assert Clock(None, 32, 100).last_size == 4
    assert Clock(100, None, 200).last_size is None


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 200))
def test_positions_are_a_walk_through_the_run(size: int, batch_size: int, total: int) -> None:
    clock = Clock(size, min(batch_size, size), total)
    seen, update = 0, 0
    while seen < total:
        position = clock.position(update)
        taken = min(min(batch_size, size), size - seen % size, total - seen)
        assert position == Position(seen, taken, total, clock.last_size or 0)
        seen, update = seen + taken, update + 1
    assert position.size == clock.last_size
    assert clock.position(update) == Position(total, 0, total, clock.last_size or 0)


# --- grids ---------------------------------------------------------------------------------------

TEN = Clock(examples_per_epoch=20, batch_size=4, total_examples=40)


def on_grid(schedule: Schedule, clock: Clock = TEN, num_updates: int = 10) -> list[float]:
    resolved = resolve_schedule(schedule, clock)
    return [value_at(resolved, clock.position(t)) for t in range(num_updates)]


def test_each_grid_is_what_its_name_says() -> None:
    rise = {grid: Linear(start=0.0, end=1.0, grid=grid) for grid in get_args(Grid)}
    assert on_grid(Linear(start=0.0, end=1.0)) == on_grid(rise["t/T"])
    assert on_grid(rise["t/T"]) == [t / 10 for t in range(10)]
    assert on_grid(rise["(t+1)/T"]) == [(t + 1) / 10 for t in range(10)]
    assert on_grid(rise["t/(T-1)"]) == [t / 9 for t in range(10)]
    for schedule in rise.values():  # past the end, the last value
        assert on_grid(schedule, num_updates=13)[10:] == [1.0, 1.0, 1.0]


def test_the_ends_of_a_run_with_short_batches_are_met_on_every_grid() -> None:
    clock = Clock(examples_per_epoch=100, batch_size=32, total_examples=200)
    first_last = {
        grid: on_grid(Linear(start=0.0, end=1.0, grid=grid), clock, 8)[:: 8 - 1]
        for grid in get_args(Grid)
    }
    assert first_last == {"t/T": [0, 0.98], "(t+1)/T": [0.16, 1], "t/(T-1)": [0, 1]}


def test_a_run_of_one_update_stands_at_the_beginning() -> None:
    clock = Clock(None, 4, 4)
    assert on_grid(Linear(grid="t/(T-1)"), clock, 2) == [1.0, 0.0]


def test_a_boundary_in_epochs_falls_on_its_update_on_every_grid() -> None:
    for grid, update in (("t/T", 5), ("t/(T-1)", 5), ("(t+1)/T", 4)):  # 4 ends with the epoch
        values = on_grid(Step(every=epochs(1), factor=0.5, grid=grid))
        assert values == [1.0] * update + [0.5] * (10 - update)


def test_a_nested_schedule_takes_the_outermost_grid() -> None:
    for grid in get_args(Grid):
        plain = Warmup(duration=updates(2), into=Cosine(), grid=grid)
        named = Warmup(duration=updates(2), into=Cosine(grid=grid), grid=grid)
        assert on_grid(plain) == on_grid(named)
    assert on_grid(plain) != on_grid(Warmup(duration=updates(2), into=Cosine()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmup(duration=epochs(1), into=Linear(grid="(t+1)/T")), "into.grid"),
        (
            lambda: Join(
                parts=(Constant(), Linear(grid="t/T")), boundaries=(epochs(1),), grid="t/(T-1)"
            ),
            "parts.1.grid must be left out, or t/(T-1) as of the join around it, got t/T",
        ),
        (
            lambda: Join(
                parts=(Warmup(duration=epochs(1), into=Linear(grid="t/T")),),
                boundaries=(),
                grid="(t+1)/T",
            ),
            "parts.0.into.grid",
        ),
        (lambda: Linear(grid="T/t"), "grid must be one of: t/T, (t+1)/T, t/(T-1), got T/t"),
        (lambda: Schedules(batch_size=Linear(grid="t/(T-1)")), "batch_size.grid must be t/T"),
    ],
)
def test_another_grid_inside_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_the_last_update_must_be_known_for_the_grid_that_meets_both_ends() -> None:
    with pytest.raises(
        InputError, match="linear grid must not be t/\\(T-1\\) while the batch size"
    ):
        resolve_schedule(Linear(grid="t/(T-1)"), Clock(100, None, 1000))


def test_an_interval_in_updates_counts_updates_and_any_other_counts_examples() -> None:
    scheduled = Clock(examples_per_epoch=100, batch_size=None, total_examples=1000)
    assert scheduled.interval(updates(3)) == Interval(length=3, counts="updates")
    assert scheduled.interval(epochs(2)) == Interval(length=200, counts="examples")
    assert scheduled.interval(epochs(0.001)) == Interval(length=1, counts="examples")
    assert scheduled.interval(fraction(0.25)) == Interval(length=250, counts="examples")
    with pytest.raises(InputError, match="must be in examples or updates"):
        Clock(None, 8).interval(epochs(1))


@settings(max_examples=200, deadline=None)
@given(SCHEDULES, st.integers(1, 50), st.integers(1, 20), st.integers(1, 20), PROGRESS)
def test_a_resolved_schedule_does_not_depend_on_the_unit(
    into: Schedule, batch_size: int, updates_per_epoch: int, num_epochs: int, progress: float
) -> None:
    size = batch_size * updates_per_epoch
    clock = Clock(size, batch_size, size * (num_epochs + 3))
    total = clock.total_examples or 0
    same = [
        epochs(num_epochs),
        updates(updates_per_epoch * num_epochs),
        examples(size * num_epochs),
        fraction(size * num_epochs / total),
    ]
    values = {
        resolve_schedule(Warmup(duration=duration, into=into), clock)(progress) for duration in same
    }
    assert len(values) == 1


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 5, 10, 20, 50, 100]), PROGRESS)
def test_a_schedule_keeps_its_shape_at_another_batch_size(batch_size: int, progress: float) -> None:
    written = Warmup(duration=epochs(2), into=OneCycle(warmup=fraction(0.4)))
    at_ten = resolve_schedule(written, Clock(100, 10, 1000))
    assert resolve_schedule(written, Clock(100, batch_size, 1000))(progress) == at_ten(progress)


def test_a_nested_duration_counts_from_the_beginning_of_its_piece() -> None:
    written = Warmup(duration=epochs(1), start=0.1, into=OneCycle(warmup=updates(20), peak=2.0))
    resolved = resolve_schedule(written, Clock(100, 10, 1000))
    assert resolved == Warmup(
        duration=fraction(0.1), start=0.1, into=OneCycle(warmup=fraction(200 / 900), peak=2.0)
    )


def test_an_unresolved_schedule_cannot_be_evaluated() -> None:
    with pytest.raises(InputError, match="use resolve_schedule"):
        Warmup(duration=epochs(1))(0.5)


def test_an_error_while_resolving_names_the_schedule_and_its_field() -> None:
    with pytest.raises(InputError, match="one-cycle warmup must not be in updates"):
        resolve_schedule(OneCycle(warmup=updates(5)), Clock(100, None, 1000))


# --- in recipes ----------------------------------------------------------------------------------

EVERY_KIND: list[Schedule] = [
    Constant(value=0.5),
    Linear(start=0.1, end=1.0, grid="(t+1)/T"),
    Cosine(end=1 / 3),
    OneCycle(warmup=epochs(2), down=epochs(3), grid="t/(T-1)"),
    Warmup(duration=updates(5), into=Warmup(duration=epochs(1), into=Linear())),
    Polynomial(power=1.5, length=epochs(14)),
    Exponential(factor=0.9, per=epochs(1)),
    DecayingMomentum(momentum=0.9),
    DampingWarmup(duration=epochs(1), start=50.0),
    InverseSquareRoot(warmup=updates(20)),
    Step(every=epochs(0.5)),
    MultiStep(milestones=(epochs(3), updates(90)), factor=2.0),
    Levels(values=(1.0, 0.5), boundaries=(examples(77),)),
    Cyclic(up=epochs(1), mode="exp_range", decay=0.9),
    SGDR(first_cycle=epochs(2), cycle_growth=1.5, peak_decay=0.5),
    WarmupStableDecay(warmup=epochs(1), decay=fraction(0.2), shape="1-sqrt"),
    Join(parts=(Linear(), Step(every=epochs(1))), boundaries=(epochs(4),)),
]


def test_every_kind_is_in_the_list() -> None:
    assert {type(schedule) for schedule in EVERY_KIND} == set(get_args(Schedule))
    assert len({kind.name for kind in get_args(Schedule)}) == len(get_args(Schedule))


@pytest.mark.parametrize("schedule", EVERY_KIND, ids=lambda schedule: schedule.name)
def test_every_kind_survives_the_way_through_a_file_and_through_show(
    schedule: Schedule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1, momentum=0.9),
        schedules=Schedules(lr=schedule, momentum=schedule, weight_decay=schedule),
    )
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe_to_mapping(recipe)))
    assert load_recipe(str(path)) == recipe
    show_recipe(str(path), (), as_json=False)
    assert recipe_from_mapping(tomllib.loads(capsys.readouterr().out)) == recipe


@pytest.mark.parametrize("schedule", EVERY_KIND, ids=lambda schedule: schedule.name)
def test_every_kind_is_finite_and_pure_once_resolved(schedule: Schedule) -> None:
    clock = Clock(100, 10, 1000)
    resolved = resolve_schedule(schedule, clock)
    values = [value_at(resolved, clock.position(t)) for t in range(103)]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert [value_at(resolved, clock.position(t)) for t in reversed(range(103))] == values[::-1]
    assert resolve_schedule(resolved, clock) == resolved
