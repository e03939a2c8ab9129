"""Updates still needed: exact where reached, honest on simulated curves, named where not known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic.learning_curve import (
    LearningCurve,
    reached_after,
    remaining,
    summary_of,
)
from anybatch.recipe_parts import Target

ACCURACY = Target.parse("0.95")


def curve(errors: Any, *, updates: Any = None, num_examples: int | None = 5000) -> LearningCurve:
    updates = [100.0 * (n + 1) for n in range(len(errors))] if updates is None else updates
    return LearningCurve(
        updates=tuple(map(float, updates)),
        metric=tuple(1.0 - float(error) for error in errors),
        loss=tuple(2.0 * float(error) for error in errors),
        direction="max",
        num_examples=num_examples,
    )


def power_law(slope: float, count: int = 20) -> list[float]:
    return [0.5 * (n + 1.0) ** -slope for n in range(count)]


def told(a_curve: LearningCurve, target: Target = ACCURACY, **settings: Any) -> Any:
    draws = remaining(a_curve, target, **settings)
    return summary_of(draws, curve=a_curve, target=target)


# --- known answers ------------------------------------------------------------------------------


def test_what_is_reached_is_known_exactly() -> None:
    found = curve([0.3, 0.04, 0.2])  # it falls back again; a training would have stopped
    draws = remaining(found, ACCURACY, num_draws=50)
    assert draws.tolist() == [200.0] * 50
    assert reached_after(found, ACCURACY) == 200.0
    summary = told(found)
    assert (summary.low, summary.median, summary.high) == (200.0, 200.0, 200.0)
    assert summary.reason.startswith("reached: ")


@pytest.mark.parametrize("slope", [0.5, 0.8])
def test_a_power_law_is_followed(slope: float) -> None:
    errors = power_law(slope)
    goal = errors[-1] / 1.6
    truth = 100.0 * (0.5 / goal) ** (1.0 / slope)
    summary = told(curve(errors, num_examples=None), Target("", ">=", 1.0 - goal))
    assert summary.low < truth < summary.high
    assert abs(math.log(summary.median / truth)) < 0.35
    assert summary.share_unreachable < 0.1


def test_a_steeper_curve_needs_less() -> None:
    slow, fast = (told(curve(power_law(slope))) for slope in (0.4, 0.7))
    assert fast.median < slow.median


def test_a_loss_is_a_distance_like_an_error() -> None:
    target = Target("loss", "<=", 0.1)
    found = curve(power_law(0.7), num_examples=None)
    assert reached_after(found, target) is None
    same = Target("", ">=", 0.95)
    assert remaining(found, target, seed=3).tolist() == pytest.approx(
        remaining(found, same, seed=3).tolist(), rel=1e-9
    )


def test_a_loss_below_zero_has_no_bound() -> None:
    losses = tuple(-3.0 + 2.0 * n**-0.5 for n in range(1, 21))
    found = LearningCurve(
        updates=tuple(100.0 * n for n in range(1, 21)),
        metric=losses,
        loss=losses,
        direction="min",
    )
    summary = summary_of(remaining(found, Target("loss", "", -2.65)))
    assert summary.low < 100.0 * (2.0 / 0.35) ** 2 < summary.high


def test_the_next_update_is_the_earliest() -> None:
    found = curve([0.3, 0.2, 0.1, 0.0501])
    draws = remaining(found, ACCURACY)
    assert draws.min() > 400.0
    assert np.median(draws) < 900.0


# --- what widens --------------------------------------------------------------------------------


def test_the_farther_the_less_is_known() -> None:
    found = curve(power_law(0.7))
    widths = []
    for goal in (0.05, 0.03, 0.015):
        summary = told(found, Target("", "", 1.0 - goal))
        widths.append(math.log(min(summary.high, 1e9) / summary.low))
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]


def test_fewer_evaluations_say_less() -> None:
    whole = told(curve(power_law(0.7)))
    few = told(curve(power_law(0.7)[-2:], updates=(1900, 2000)))
    assert whole.reason == ""
    assert few.reason.startswith("few-evaluations: 2")
    assert math.log(min(few.high, 1e9) / few.low) > 1.5 * math.log(whole.high / whole.low)
    assert told(curve([0.3])).reason.startswith("few-evaluations: 1")


@pytest.mark.parametrize("errors", [[0.9] * 10, [0.3, 0.4] * 5, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_a_curve_that_does_not_fall_is_named(errors: list[float]) -> None:
    summary = told(curve(errors))
    assert summary.reason.startswith("no-progress: ")
    assert summary.high > 20.0 * summary.low
    assert 0.05 < summary.share_unreachable < 0.9
    assert math.isfinite(summary.low)


def test_a_far_target_is_named() -> None:
    assert told(curve(np.linspace(0.9, 0.8, 10))).reason.startswith("far-target: ")


def test_a_floor_above_the_target_may_not_be_reached() -> None:
    errors = [0.2 + 0.3 * 0.7**n for n in range(30)]
    summary = told(curve(errors, num_examples=50_000))
    assert summary.share_unreachable > 0.5
    assert math.isinf(summary.median)
    assert summary.reason.startswith("may-not-be-reached: ")


def test_one_odd_evaluation_does_not_turn_the_curve() -> None:
    errors = power_law(0.7)
    plain = told(curve(errors))
    errors[14] = 0.45
    assert abs(math.log(told(curve(errors)).median / plain.median)) < 0.3


def test_few_examples_leave_more_open() -> None:
    widths = []
    for num_examples in (100, 100_000):
        summary = told(curve(power_law(0.7), num_examples=num_examples), Target("", "", 0.975))
        widths.append(math.log(min(summary.high, 1e9) / summary.low))
    assert widths[0] > widths[1]


# --- simulated trainings ------------------------------------------------------------------------


def simulated(rng: np.random.Generator) -> tuple[LearningCurve, Target, float]:
    """A third of the way in examples, errors of 5,000; slope, beginning, floor, curvature vary.

    What follows is steeper or flatter than what was seen, by a fifth or so.
    """
    slope = 0.6 * math.exp(0.4 * rng.standard_normal())
    beginning, end = rng.uniform(0, 40), rng.uniform(350, 650)
    floor = float(rng.choice([0.0, 0.2, 0.4]))
    bend = float(np.clip(0.04 + 0.05 * rng.standard_normal(), -0.1, 0.1))
    turn = math.exp(-0.05 + 0.2 * rng.standard_normal())
    last = math.log((end / 3.0 + beginning) / (20.0 + beginning))

    def distance(x: Any) -> Any:
        s = np.log((x + beginning) / (20.0 + beginning))
        s = np.minimum(s, last) + turn * np.maximum(0.0, s - last)
        return np.exp(-slope * (s - bend * s**2))

    def error(x: Any) -> Any:
        return 0.7 * ((1.0 - floor) * distance(x) + floor * distance(end))

    seen = np.arange(3.0, end / 3.0, end / 60.0)
    later = np.arange(seen[-1] + 4.0, 6000.0, 4.0)
    noisy = [rng.binomial(5000, np.clip(error(x), 0, 1)) / 5000 for x in (seen, later)]
    goal = float(error(end))
    hits = later[noisy[1] <= goal]
    hit = float(hits[0]) if len(hits) else math.inf
    return curve(noisy[0], updates=seen), Target("", ">=", 1.0 - goal), hit


def test_intervals_hold_on_simulated_curves() -> None:
    rng = np.random.default_rng(17)
    inside, widths = [], []
    while len(inside) < 50:
        found, target, truth = simulated(rng)
        if reached_after(found, target) is not None:
            continue
        summary = told(found, target, num_draws=500, seed=len(inside))
        inside.append(summary.low <= truth <= summary.high)
        widths.append(summary.high / summary.low)
    assert 0.7 <= np.mean(inside) <= 0.9
    assert np.median(widths) <= 3.0


# --- the same again, and bad input --------------------------------------------------------------


def test_the_seed_decides() -> None:
    found = curve(power_law(0.7))
    first = remaining(found, ACCURACY, num_draws=100, seed=1)
    assert first.tolist() == remaining(found, ACCURACY, num_draws=100, seed=1).tolist()
    assert first.tolist() != remaining(found, ACCURACY, num_draws=100, seed=2).tolist()
    assert first.shape == (100,)


def test_the_right_answers_of_all_examples_can_be_asked_for() -> None:
    draws = remaining(curve(power_law(0.9)), Target("", "", 1.0))
    assert np.isinf(draws).mean() > 0.2


def test_values_that_are_not_finite_are_left_out_but_at_the_end() -> None:
    errors = power_law(0.7)
    errors[3] = math.nan
    assert np.isfinite(np.median(remaining(curve(errors), ACCURACY)))
    with pytest.raises(InputError, match="must end with a finite value"):
        remaining(curve([0.5, 0.4, math.nan]), ACCURACY)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"updates": (1.0, 1.0)}, "must be > 0 and increase"),
        ({"updates": (0.0, 1.0)}, "must be > 0 and increase"),
        ({"loss": (1.0,)}, "must have columns of the same length"),
        ({"updates": (), "metric": (), "loss": ()}, "must hold at least one evaluation"),
    ],
)
def test_curves_that_are_none(changes: dict[str, Any], rule: str) -> None:
    whole: dict[str, Any] = {"updates": (1.0, 2.0), "metric": (0.1, 0.2), "loss": (1.0, 0.9)}
    with pytest.raises(InputError, match=rule):
        LearningCurve(direction="max", **(whole | changes))


def test_a_relation_against_the_direction_is_refused() -> None:
    with pytest.raises(InputError, match="must be >= where the maximum is the best"):
        remaining(curve([0.5]), Target("", "<=", 0.9))
    with pytest.raises(InputError, match="num_draws"):
        remaining(curve([0.5]), ACCURACY, num_draws=0)
