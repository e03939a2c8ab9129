"""What probes say, on probes made by hand whose answer follows from the stated rules."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from anybatch.measuring.lr_probes import Probe, ProbePlan, best_lr, best_probe, edge, next_probe

UPDATES = 30
PLAN = ProbePlan(
    guess=-4.0, lowest=-12.0, highest=4.0, num_updates=UPDATES, repeats=1, start=1.0, noise=0.0
)


def probe(octave: float, level: float, *, count: int = UPDATES, repeat: int = 0) -> Probe:
    """At the start for ten updates, at `level` from then on."""
    losses = [1.0] * 10 + [level] * (UPDATES - 10)
    return Probe(octave=octave, repeat=repeat, losses=tuple(losses[:count]))


def parabola(octaves: Sequence[float], bottom: float, curvature: float = 0.05) -> list[Probe]:
    return [probe(k, 0.2 + curvature * (k - bottom) ** 2) for k in octaves]


def octave_of(probes: Sequence[Probe], plan: ProbePlan = PLAN) -> float:
    value = best_lr(probes, plan).value
    assert value is not None
    return math.log2(value)


# --- the best ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octaves", [(-7, -6, -5, -4, -3), (-6, -5, -4.75), (-8, -5, -4), (-7, -5, -2)]
)
@pytest.mark.parametrize("bottom", [-5.3, -4.9])
def test_the_vertex_of_a_parabola_is_found_at_any_spacing(
    octaves: tuple[float, ...], bottom: float
) -> None:
    """The middle between the vertex and where the level below is 1 % of the drop worse."""
    probes = parabola(octaves, bottom)
    levels = {p.octave: p.losses[-1] for p in probes}
    best = min(levels, key=levels.__getitem__)
    below = max(k for k in levels if k < best)
    limit = levels[best] + 0.01 * (1.0 - levels[best])
    assert levels[below] > limit
    share = (limit - levels[best]) / (levels[below] - levels[best])
    assert octave_of(probes) == pytest.approx(0.5 * (bottom + best - share * (best - below)))


def test_below_a_cliff_the_best_is_the_lowest_itself() -> None:
    """Up to the one above that learned nothing the levels say nothing of a parabola."""
    below = [probe(-7, 0.9), probe(-6, 0.5), probe(-5, 0.2)]
    expected = -5.0 - 0.5 * (0.01 * 0.8) / (0.5 - 0.2)
    assert octave_of([*below, probe(-4, 1.0)]) == pytest.approx(expected)
    assert octave_of([*below, probe(-4, 0.99)]) < expected - 0.1


def test_how_far_above_the_start_a_probe_ends_plays_no_part() -> None:
    around = [probe(-6, 0.5), probe(-5, 0.2)]
    expected = octave_of([*around, probe(-4, 1.0)])
    for level in (1.5, 1e30, math.inf, math.nan):
        assert octave_of([*around, probe(-4, level)]) == pytest.approx(expected)


def test_a_probe_that_was_given_up_keeps_its_distance_to_the_best() -> None:
    best = Probe(octave=-5, repeat=0, losses=tuple(1.0 - n / UPDATES for n in range(UPDATES)))
    whole = replace(best, octave=-6, losses=tuple(loss + 0.3 for loss in best.losses))
    short = replace(best, octave=-4, losses=tuple(loss + 0.3 for loss in best.losses[:15]))
    full = replace(short, losses=tuple(loss + 0.3 for loss in best.losses))
    assert octave_of([whole, best, short]) == pytest.approx(octave_of([whole, best, full]))


def test_the_level_is_that_of_the_last_third() -> None:
    late = Probe(octave=-3, repeat=0, losses=tuple([1.0] * 18 + [0.1] * 12))
    early = Probe(octave=-4, repeat=0, losses=tuple([0.3] * 30))
    best = best_probe([early, late], 0, PLAN)
    assert best is late


def test_where_most_of_the_last_losses_are_not_finite_nothing_was_learned() -> None:
    losses = [1.0] * 10 + [0.1] * 10 + [math.nan, math.nan, math.nan, 0.1] * 2 + [math.nan] * 2
    mostly = Probe(octave=-4, repeat=0, losses=tuple(losses))
    assert best_probe([mostly], 0, PLAN) is None
    few = [0.1 if n % 3 else math.nan for n in range(20)]
    assert best_probe([replace(mostly, losses=tuple([1.0] * 10 + few))], 0, PLAN) is not None


def test_the_interval_is_two_thirds_of_an_octave_and_more_where_losses_are_noisy() -> None:
    quiet = best_lr(parabola(range(-8, -2), -5.0), PLAN)
    assert quiet.value is not None
    assert math.log2(quiet.value / quiet.low) == pytest.approx(0.7)
    assert math.log2(quiet.high / quiet.value) == pytest.approx(0.7)
    draws = random.Random(0)
    noisy = [
        replace(p, losses=tuple(loss + 0.2 * draws.gauss(0.0, 1.0) for loss in p.losses))
        for p in parabola(range(-8, -2), -5.0)
    ]
    found = best_lr(noisy, PLAN)
    assert math.log2(found.high / found.low) > 1.8


def test_the_best_at_a_border_has_no_bound_beyond_it() -> None:
    largest = best_lr(parabola(range(-8, -4), -5.0), PLAN)
    assert (largest.high, largest.reason) == (math.inf, "the largest lr that was tried is the best")
    least = best_lr(parabola(range(-5, -1), -5.0), PLAN)
    assert (least.low, least.reason) == (0.0, "the least lr that was tried is the best")


def test_noise_alone_is_not_the_best() -> None:
    for seed in range(50):
        draws = random.Random(seed)
        losses = tuple(1.0 + 0.3 * draws.gauss(0.0, 1.0) for _ in range(UPDATES))
        flat = Probe(octave=-4, repeat=0, losses=losses)
        assert best_probe([flat], 0, replace(PLAN, noise=0.3)) is None, seed


def test_a_second_octave_below_is_tried_where_the_first_is_as_good() -> None:
    plan = replace(PLAN, guess=-5.0)
    around = [probe(-5, 0.100), probe(-6, 0.105), probe(-4, 0.5)]
    assert next_probe(around, plan) == (-7.0, 0)
    around[1] = probe(-6, 0.15)
    assert next_probe([*around, probe(-3, 1.0)], plan) != (-7.0, 0)


def test_a_later_beginning_is_tried_around_the_best_of_the_first() -> None:
    plan = replace(PLAN, repeats=2, highest=-6.0)
    first = parabola(range(-12, -5), -8.0)
    assert next_probe(first, plan) == (-8.0, 1)


# --- the edge ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "noise", "low"),
    [
        (0.85, 0.0, -3),  # has lost more than 5 % of the best drop of 0.9
        (0.97, 0.0, -4),  # less
        (0.85, 0.01, -3),  # clear of the noise
        (0.85, 0.3, -4),  # not clear of it
    ],
)
def test_a_twentieth_of_the_best_drop_clear_of_the_noise_is_learning(
    level: float, noise: float, low: float
) -> None:
    draws = random.Random(1)
    probes = [
        replace(p, losses=tuple(loss + noise * draws.gauss(0.0, 1.0) for loss in p.losses))
        for p in (probe(-4, 0.1), probe(-3, level), probe(-2, 2.0))
    ]
    found = edge(probes, replace(PLAN, noise=noise))
    assert (found.low, found.high) == (2.0**low, 2.0 ** (low + 1))
    assert found.value == 2.0 ** (low + 0.5)


def test_the_edge_is_that_of_the_first_beginning() -> None:
    first = [probe(-4, 0.1), probe(-3, 0.2), probe(-2, 1.0)]
    later = [probe(-4, 0.1, repeat=1), probe(-3.5, 1.0, repeat=1), probe(-1, 0.1, repeat=1)]
    plan = replace(PLAN, repeats=2)
    assert edge([*later, *first], plan) == edge(first, PLAN)
