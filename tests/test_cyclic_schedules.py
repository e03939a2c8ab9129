"""One cycle, triangular cycles and warm restarts: values by hand, restarts, bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.errors import InputError
from anybatch.schedules import (
    SGDR,
    Clock,
    Cyclic,
    OneCycle,
    Schedule,
    Warmup,
    epochs,
    examples,
    fraction,
    inverse_momentum,
    resolve_schedule,
)

FACTORS = st.floats(0, 10)
FRACTIONS = st.floats(0.01, 1).map(fraction)
ONE_CYCLES = st.builds(
    OneCycle,
    warmup=st.just(fraction(0)) | FRACTIONS,
    down=st.none() | FRACTIONS,
    start=FACTORS,
    peak=FACTORS,
    end=FACTORS,
    shape=st.sampled_from(["cosine", "linear"]),
)
CYCLICS = st.sampled_from(
    [("triangular", None), ("triangular2", None), ("exp_range", 0.7)]
).flatmap(
    lambda mode: st.builds(
        Cyclic,
        up=FRACTIONS,
        down=st.none() | FRACTIONS,
        mode=st.just(mode[0]),
        decay=st.just(None) if mode[1] is None else st.floats(0.001, 1),
        start=FACTORS,
        peak=FACTORS,
    )
)
SGDRS = st.builds(
    SGDR,
    first_cycle=FRACTIONS,
    cycle_growth=st.just(1.0) | st.floats(1, 5),
    peak_decay=st.floats(0.1, 1),
    start=FACTORS,
    end=FACTORS,
)
CYCLES = ONE_CYCLES | CYCLICS | SGDRS

BY_HAND = [
    # The paper's: straight up, straight down, then annihilation.
    (
        OneCycle(warmup=fraction(0.45), down=fraction(0.45), start=0.1, end=0.001, shape="linear"),
        {0.0: 0.1, 0.225: 0.55, 0.45: 1.0, 0.675: 0.55, 0.9: 0.1, 0.95: 0.0505, 1.0: 0.001},
    ),
    (
        OneCycle(warmup=fraction(0.2), down=fraction(0.4), start=0.5, end=0.0),
        {0.0: 0.5, 0.1: 0.75, 0.2: 1.0, 0.4: 0.75, 0.6: 0.5, 0.8: 0.25, 1.0: 0.0},
    ),
    # Three phases that fill the run with two: no time is left for the third.
    (
        OneCycle(warmup=fraction(0.5), down=fraction(0.5), start=0.5, end=0.0, shape="linear"),
        {0.0: 0.5, 0.5: 1.0, 0.75: 0.75, 1.0: 0.5},
    ),
    # ... and that the run's end cuts.
    (
        OneCycle(warmup=fraction(0.5), down=fraction(1.0), start=0.0, end=0.0, shape="linear"),
        {0.0: 0.0, 0.5: 1.0, 0.75: 0.75, 1.0: 0.5},
    ),
    (
        Cyclic(up=fraction(0.1), down=fraction(0.3), start=0.2),
        {0.0: 0.2, 0.05: 0.6, 0.1: 1.0, 0.25: 0.6, 0.4: 0.2, 0.45: 0.6, 0.9: 1.0, 1.0: 0.733333},
    ),
    (
        Cyclic(up=fraction(0.125), mode="triangular2", start=0.0),
        {0.0: 0.0, 0.125: 1.0, 0.25: 0.0, 0.375: 0.5, 0.625: 0.25, 0.875: 0.125, 1.0: 0.0},
    ),
    (
        Cyclic(up=fraction(0.25), mode="exp_range", decay=0.25, start=0.0),
        {0.0: 0.0, 0.25: 0.5, 0.5: 0.0, 0.75: 0.125, 1.0: 0.0},
    ),
    (
        SGDR(first_cycle=fraction(0.25)),
        {0.0: 1.0, 0.125: 0.5, 0.25: 1.0, 0.5: 1.0, 0.875: 0.5, 1.0: 0.0},
    ),
    # 1 + 1.5 + 2.25 = 4.75 first cycles fill the run.
    (
        SGDR(first_cycle=fraction(1 / 4.75), cycle_growth=1.5, peak_decay=0.5, end=0.2),
        {0.0: 1.0, 0.5 / 4.75: 0.6, 1 / 4.75: 0.6, 1.75 / 4.75: 0.4, 2.5 / 4.75: 0.4, 1.0: 0.2},
    ),
    # The run's end cuts the only cycle.
    (SGDR(first_cycle=fraction(1), cycle_growth=2.0), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
]


@pytest.mark.parametrize(("schedule", "values"), BY_HAND)
def test_a_cycle_takes_the_values_computed_by_hand(
    schedule: Schedule, values: dict[float, float]
) -> None:
    for progress, value in values.items():
        assert schedule(progress) == pytest.approx(value, rel=1e-6, abs=1e-9), progress


@settings(max_examples=200, deadline=None)
@given(CYCLES, st.floats(-3, 3))
def test_progress_outside_of_the_run_is_clamped(schedule: Schedule, progress: float) -> None:
    assert schedule(progress) == schedule(min(1.0, max(0.0, progress)))


@settings(max_examples=300, deadline=None)
@given(CYCLES, st.floats(0, 1))
def test_every_value_lies_within_the_bounds(schedule: Schedule, progress: float) -> None:
    low, high = schedule.bounds()
    assert low - 1e-9 <= schedule(progress) <= high + 1e-9


@settings(max_examples=60, deadline=None)
@given(CYCLES)
def test_the_bounds_are_met_or_approached(schedule: Schedule) -> None:
    values = [schedule(n / 2000) for n in range(2001)]
    if isinstance(schedule, OneCycle):
        turn = schedule.warmup.count
        bottom = turn + (schedule.down.count if schedule.down else 0.0)
        values += [schedule(turn), schedule(bottom)]
    low, high = schedule.bounds()
    slack = 0.05 * (high - low)  # the shortest cycles are 20 points long
    assert min(values) <= low + slack
    assert max(values) >= high - slack


@settings(max_examples=200, deadline=None)
@given(ONE_CYCLES | CYCLICS, st.floats(0, 1 - 1e-6))
def test_all_but_warm_restarts_are_continuous(schedule: Schedule, progress: float) -> None:
    phases = [0.01]
    if isinstance(schedule, OneCycle):
        up, down = schedule.warmup.count, schedule.down.count if schedule.down else 0.0
        phases += [length for length in (up, abs(1.0 - up), abs(1.0 - up - down)) if length > 1e-10]
    step = min(phases) * 1e-3
    jump = abs(schedule(progress + step) - schedule(progress))
    assert jump <= 0.5  # a twentieth of the largest height


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 10**6),
    st.integers(1, 2000),
    st.just(1.0) | st.floats(1, 3),
    st.integers(0, 10**5),
)
def test_the_value_at_a_restart_is_the_new_peak_whatever_the_rounding(
    first: int, cycles: int, growth: float, warmup: int
) -> None:
    if growth == 1.0:
        begins = [first * number for number in range(cycles + 1)]
    else:
        begins = [round(first * 2**number) - first for number in range(min(cycles, 12) + 1)]
        growth = 2.0
    total = warmup + begins[-1] + first // 2 + 1
    sgdr = SGDR(first_cycle=examples(first), cycle_growth=growth, peak_decay=0.999, end=0.25)
    written = Warmup(duration=examples(warmup), into=sgdr, start=1.0)
    resolved = resolve_schedule(written, Clock(None, 1, total))
    for number in (0, 1, 2, len(begins) // 2, len(begins) - 1):
        if number < len(begins) and begins[number] + warmup < total:
            peak = 0.25 + 0.75 * 0.999**number
            assert resolved((warmup + begins[number]) / total) == pytest.approx(peak, rel=1e-9)
    if first >= 100:  # just before a restart the cycle is at its end
        before = resolved((warmup + first - 1) / total)
        assert before == pytest.approx(0.25, abs=1e-3)


def test_growth_near_1_is_the_limit_of_equal_cycles() -> None:
    same = SGDR(first_cycle=fraction(0.1))
    near = SGDR(first_cycle=fraction(0.1), cycle_growth=1.0 + 1e-13)
    for n in range(1000):
        progress = (n + 0.5) / 1000
        assert near(progress) == pytest.approx(same(progress), abs=1e-9)


def test_a_cycle_that_ends_with_the_run_does_not_restart_at_its_end() -> None:
    for count in (1, 3, 7, 10, 49, 1000):
        assert SGDR(first_cycle=fraction(1 / count), end=0.125)(1.0) == 0.125
    sgdr = SGDR(first_cycle=epochs(1), cycle_growth=2.0)  # 1 + 2 + 4 epochs
    assert resolve_schedule(sgdr, Clock(97, 10, 7 * 97))(1.0) == 0.0


def test_a_cycle_longer_than_the_run_is_cut_and_not_shortened() -> None:
    clock = Clock(100, 10, 1000)
    sgdr = resolve_schedule(SGDR(first_cycle=epochs(20)), clock)
    assert sgdr(1.0) == pytest.approx(0.5)
    assert sgdr.bounds() == (pytest.approx(0.5), 1.0)
    cyclic = resolve_schedule(Cyclic(up=epochs(20), start=0.0), clock)
    assert cyclic(1.0) == pytest.approx(0.5)
    assert cyclic.bounds() == (0.0, pytest.approx(0.5))


def test_a_height_that_shrinks_fast_turns_before_the_triangle_does() -> None:
    cyclic = Cyclic(up=fraction(0.5), mode="exp_range", decay=0.01, start=0.0)
    values = [cyclic(n / 10_000) for n in range(10_001)]
    assert cyclic.bounds() == (0.0, pytest.approx(max(values), rel=1e-6))
    assert max(values) > cyclic(0.5)


# --- momentum ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 0.6), st.floats(0, 1), st.floats(0.1, 1))
def test_momentum_runs_against_the_learning_rate(
    warmup: float, progress: float, lowest: float
) -> None:
    cycles = (
        OneCycle(warmup=fraction(warmup), start=0.0, end=0.0),
        OneCycle(warmup=fraction(warmup), down=fraction(0.3), start=0.0, end=0.0, shape="linear"),
        Cyclic(up=fraction(warmup), down=fraction(0.2), mode="triangular2", start=0.0),
        Cyclic(up=fraction(warmup), mode="exp_range", decay=0.3, start=0.0),
    )
    for cycle in cycles:
        momentum = inverse_momentum(cycle, lowest=lowest)
        share = cycle(progress)  # from 0 to 1 as the learning rate rises
        assert momentum(progress) == pytest.approx(1.0 - (1.0 - lowest) * share)


def test_momentum_stays_up_while_the_learning_rate_is_annihilated() -> None:
    cycle = OneCycle(warmup=fraction(0.4), down=fraction(0.4), start=0.1, end=0.001)
    momentum = inverse_momentum(cycle, lowest=0.85 / 0.95)
    assert [momentum(p) for p in (0.0, 0.4, 0.8, 0.9, 1.0)] == [1.0, 0.85 / 0.95, 1.0, 1.0, 1.0]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneCycle(down=fraction(0)), "down must be > 0, got 0 fraction"),
        (lambda: OneCycle(shape="cos"), "shape must be one of: cosine, linear, got cos"),
        (lambda: OneCycle(peak=math.nan), "peak must be >= 0 and finite"),
        (lambda: Cyclic(up=epochs(0)), "up must be > 0"),
        (lambda: Cyclic(up=epochs(1), down=epochs(0)), "down must be > 0"),
        (
            lambda: Cyclic(up=epochs(1), mode="triangle"),
            "mode must be one of: triangular, triangul",
        ),
        (lambda: Cyclic(up=epochs(1), decay=0.5), "decay must come with exp_range, and only there"),
        (lambda: Cyclic(up=epochs(1), mode="exp_range"), "decay must come with exp_range"),
        (
            lambda: Cyclic(up=epochs(1), mode="exp_range", decay=1.5),
            "decay must be in (0, 1], got 1.5",
        ),
        (lambda: SGDR(first_cycle=epochs(0)), "first_cycle must be > 0"),
        (
            lambda: SGDR(first_cycle=epochs(1), cycle_growth=0.5),
            "cycle_growth must be in [1, 1000]",
        ),
        (
            lambda: SGDR(first_cycle=epochs(1), peak_decay=0.0),
            "peak_decay must be in (0, 1], got 0",
        ),
        (lambda: inverse_momentum(OneCycle(), lowest=1.2), "lowest must be in (0, 1], got 1.2"),
    ],
)
def test_what_makes_no_cycle_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()
