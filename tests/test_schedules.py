"""Schedules: values written by hand, laws of the closed forms, durations and the clock."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.errors import InputError
from anybatch.schedules import (
    Clock,
    Constant,
    Cosine,
    Duration,
    Interval,
    Linear,
    OneCycle,
    Schedule,
    Unit,
    Warmup,
    epochs,
    examples,
    fraction,
    resolve_schedule,
    updates,
)

FACTORS = st.floats(0, 100, allow_nan=False)
PROGRESS = st.floats(0, 1)
FRACTIONS = st.floats(0.01, 0.99).map(fraction)
SHAPES = st.sampled_from(["cosine", "linear"])
PLAIN = (
    st.builds(Constant, value=FACTORS)
    | st.builds(Linear, start=FACTORS, end=FACTORS)
    | st.builds(Cosine, start=FACTORS, end=FACTORS)
    | st.builds(OneCycle, warmup=FRACTIONS, start=FACTORS, peak=FACTORS, end=FACTORS, shape=SHAPES)
)
SCHEDULES = PLAIN | st.builds(Warmup, duration=FRACTIONS, start=FACTORS, into=PLAIN)


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
]


@pytest.mark.parametrize(("schedule", "values"), BY_HAND)
def test_a_schedule_takes_the_values_computed_by_hand(
    schedule: Schedule, values: dict[float, float]
) -> None:
    for progress, value in values.items():
        assert schedule(progress) == pytest.approx(value, rel=1e-12, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(SCHEDULES, st.floats(-5, 5))
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


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_factor_below_zero_or_not_finite_is_refused(value: float) -> None:
    for make in (
        lambda: Constant(value=value),
        lambda: Linear(end=value),
        lambda: Cosine(start=value),
        lambda: OneCycle(peak=value),
        lambda: Warmup(duration=epochs(1), start=value),
    ):
        with pytest.raises(InputError, match="must be >= 0 and finite"):
            make()


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


def test_a_duration_longer_than_the_run_is_the_whole_run() -> None:
    assert Clock(100, 10, 200).fraction(epochs(5)) == 1.0


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


def test_resolving_reaches_nested_schedules_and_changes_nothing_else() -> None:
    written = Warmup(duration=epochs(1), start=0.1, into=OneCycle(warmup=updates(20), peak=2.0))
    resolved = resolve_schedule(written, Clock(100, 10, 1000))
    assert resolved == Warmup(
        duration=fraction(0.1), start=0.1, into=OneCycle(warmup=fraction(0.2), peak=2.0)
    )


def test_an_unresolved_schedule_cannot_be_evaluated() -> None:
    with pytest.raises(InputError, match="use resolve_schedule"):
        Warmup(duration=epochs(1))(0.5)


def test_an_error_while_resolving_names_the_schedule_and_its_field() -> None:
    with pytest.raises(InputError, match="one-cycle warmup must not be in updates"):
        resolve_schedule(OneCycle(warmup=updates(5)), Clock(100, None, 1000))
