"""The search by short trainings at constant lr: it ends, repeats nothing and finds known edges."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.measurement import Estimate
from anybatch.measuring.lr_probes import (
    Probe,
    ProbePlan,
    best_lr,
    best_probe,
    edge,
    next_probe,
    should_give_up,
)

Losses = Callable[[float, int], Sequence[float]]  # (octave, repeat) -> as many as are asked for

UPDATES = 30
MOST_PROBES = 20  # of the first beginning; a later one looks around the best alone
MOST_OF_LATER = 12
PLAN = ProbePlan(
    guess=-4.0, lowest=-12.0, highest=4.0, num_updates=UPDATES, repeats=1, start=1.0, noise=0.0
)


def search(losses: Losses, plan: ProbePlan) -> list[Probe]:
    """What `measure_lr_range` does, on losses that are known beforehand."""
    probes: list[Probe] = []
    wanted = next_probe(probes, plan)
    while wanted is not None:
        octave, repeat = wanted
        assert wanted not in {(p.octave, p.repeat) for p in probes}, "asked for the same again"
        best = best_probe(probes, repeat, plan)
        all_losses, seen = losses(octave, repeat), []
        for loss in all_losses[: plan.num_updates]:
            seen.append(loss)
            if should_give_up(seen, best, plan):
                break
        probes.append(Probe(octave=octave, repeat=repeat, losses=tuple(seen)))
        assert len(probes) <= MOST_PROBES + MOST_OF_LATER * (plan.repeats - 1), "does not end"
        wanted = next_probe(probes, plan)
    return probes


def descent(curvatures: Sequence[float], start: float = 1.0, noise: float = 0.0) -> Losses:
    """Gradient descent on sum h w^2 / 2 from a loss of `start`: it diverges above lr 2 / max h."""

    def losses(octave: float, repeat: int) -> list[float]:
        draws = random.Random(f"{octave} {repeat}")
        share = start / len(curvatures)
        found = []
        for update in range(UPDATES):
            exact = sum(share * _power(1.0 - 2.0**octave * h, 2 * update) for h in curvatures)
            found.append(exact + noise * draws.gauss(0.0, 1.0))
        return found

    return losses


def _power(factor: float, exponent: int) -> float:
    try:
        return factor**exponent
    except OverflowError:
        return math.inf


def valley(best: float, steepness: float = 0.2, top: float = math.inf) -> Losses:
    """Levels with one minimum, reached at once, below the start up to `top`; above it they rise."""

    def losses(octave: float, repeat: int) -> list[float]:
        if octave > top:
            return [1.0 + 9.0 * update for update in range(UPDATES)]
        level = 1.0 - 1.0 / (1.0 + steepness * (octave - best) ** 2)
        return [1.0] + [level] * (UPDATES - 1)

    return losses


def value(estimate: Estimate) -> float:
    assert estimate.value is not None, estimate
    return estimate.value


# --- known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0.5, 3.0, 40.0, 700.0])
@pytest.mark.parametrize("off", [-3.3, 0.0, 2.4])  # octaves by which the ramp's guess is wrong
def test_the_edge_of_gradient_descent_is_found_within_a_quarter_of_an_octave(
    largest: float, off: float
) -> None:
    truth = math.log2(2.0 / largest)
    plan = replace(PLAN, guess=truth - 1.0 + off, lowest=truth - 9.0, highest=truth + 6.0)
    probes = search(descent([largest, largest / 3, largest / 30]), plan)
    found = edge(probes, plan)
    assert abs(math.log2(value(found)) - truth) <= 0.25
    assert found.low <= 2.0**truth <= found.high
    assert math.log2(found.high / found.low) <= 0.25 + 1e-9
    assert value(best_lr(probes, plan)) < found.high


@pytest.mark.parametrize("best", [-9.7, -6.0, -4.5, -1.2, 1.3])
def test_the_best_of_a_valley_is_its_bottom(best: float) -> None:
    """Less the half of what is as good below: 2 % of the drop is 0.32 octaves here."""
    plan = replace(PLAN, lowest=-14.0)
    found = best_lr(search(valley(best), plan), plan)
    assert best - 0.5 <= math.log2(value(found)) <= best + 0.1


def test_a_valley_above_one_that_is_nearly_as_good_is_found() -> None:
    levels = {-5.0: 0.6, -4.0: 0.5, -3.0: 0.505, -2.0: 0.3}

    def losses(octave: float, repeat: int) -> list[float]:
        return [1.0] + [levels.get(octave, 1.1)] * (UPDATES - 1)

    plan = replace(PLAN, edge_within=0.0)
    best = best_probe(search(losses, plan), 0, plan)
    assert best is not None
    assert best.octave == -2.0
    levels[-3.0] = 0.52  # clearly worse than the best: enough is known
    assert -2.0 not in {p.octave for p in search(losses, plan)}


def test_both_sides_of_the_best_octave_are_tried() -> None:
    plan = replace(PLAN, repeats=2)
    probes = search(valley(-7.2), plan)
    for repeat in (0, 1):
        tried = {p.octave for p in probes if p.repeat == repeat}
        best = best_probe(probes, repeat, plan)
        assert best is not None
        assert best.octave == -7.0
        assert {-8.0, -7.0, -6.0} <= tried


def test_where_all_are_as_good_the_least_of_them_counts() -> None:
    def flat(octave: float, repeat: int) -> list[float]:
        level = 0.1 if -6.0 <= octave <= -2.0 else 0.9
        return [1.0] + [level] * (UPDATES - 1)

    found = best_lr(search(flat, PLAN), PLAN)
    assert math.log2(value(found)) < -4.0


def test_the_guess_alone_is_asked_for_first_and_kept_inside_of_the_bounds() -> None:
    assert next_probe([], PLAN) == (-4.0, 0)
    assert next_probe([], replace(PLAN, guess=99.0)) == (4.0, 0)
    assert next_probe([], replace(PLAN, guess=-99.0, lowest=-7.5)) == (-7.0, 0)


@pytest.mark.parametrize("truth", [-1.1, -3.1])  # far above the best, and beside it
def test_the_edge_is_left_out_where_it_limits_nothing(truth: float) -> None:
    plan = replace(PLAN, edge_within=0.5)
    whole, short = (search(valley(-4.1, top=truth), given) for given in (PLAN, plan))
    assert best_lr(short, plan) == best_lr(whole, PLAN)
    if truth < -3.0:
        assert short == whole
        return
    assert short == whole[: len(short)]
    assert {p.octave for p in short} == {-5.0, -4.0, -3.0, -7.0}
    found = edge(short, plan)
    assert (found.value, found.low, found.high) == (None, 2.0**-3.0, math.inf)
    assert found.low <= value(edge(whole, PLAN))


# --- nothing to find -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.0, 5.0, 1e30])
def test_where_nothing_learns_there_is_no_value_but_a_reason(loss: float) -> None:
    probes = search(lambda octave, repeat: [1.0] + [loss] * UPDATES, replace(PLAN, repeats=2))
    for estimate in (edge(probes, PLAN), best_lr(probes, PLAN)):
        assert estimate.value is None
        assert "no constant learning rate" in estimate.reason
    assert min(p.octave for p in probes) >= PLAN.lowest


def test_where_none_diverges_the_edge_is_at_least_the_largest() -> None:
    probes = search(lambda octave, repeat: [0.5**n for n in range(UPDATES)], PLAN)
    found = edge(probes, PLAN)
    assert found.value is None
    assert (found.low, found.high) == (2.0**PLAN.highest, math.inf)
    assert "still learns" in found.reason
    assert best_lr(probes, PLAN).value is not None


@pytest.mark.parametrize("best", [-300.0, 300.0])
def test_however_far_away_the_best_is_it_ends_soon(best: float) -> None:
    plan = replace(PLAN, lowest=-400.0, highest=400.0)
    hopeless = search(lambda octave, repeat: [math.nan] * UPDATES, plan)
    assert len(hopeless) <= 12
    for repeats in (1, 2):
        # Above the best: nothing diverges, so the search goes up from it as far as it may.
        probes = search(valley(best, top=0.0), replace(plan, repeats=repeats))
        assert len(probes) <= MOST_PROBES + MOST_OF_LATER * (repeats - 1)


# --- giving up -----------------------------------------------------------------------------------


def test_one_loss_that_is_not_finite_is_forgiven_and_three_are_not() -> None:
    best = Probe(octave=-4.0, repeat=0, losses=tuple(0.9**n for n in range(UPDATES)))
    good = [0.9**n for n in range(10)]
    assert not should_give_up([*good, math.nan], best, PLAN)
    assert not should_give_up([*good, math.nan, math.inf], best, PLAN)
    assert should_give_up([*good, math.nan, math.inf, math.nan], best, PLAN)


def test_what_is_far_behind_is_given_up_and_what_is_near_is_not() -> None:
    best = Probe(octave=-4.0, repeat=0, losses=tuple(0.9**n for n in range(UPDATES)))
    assert should_give_up([1.0] * 15, best, PLAN)
    assert not should_give_up([1.0] * 10, best, PLAN)  # momentum takes its time
    assert not should_give_up([0.93**n for n in range(15)], best, PLAN)
    assert not should_give_up([1.0] * 15, None, PLAN)
    assert not should_give_up([1.0] * 15, best, replace(PLAN, noise=1.0))


def test_what_is_catching_up_is_not_given_up() -> None:
    """As with momentum near the edge: late, and the best in the end."""
    best = Probe(octave=-4.0, repeat=0, losses=tuple(0.9**n for n in range(UPDATES)))
    assert should_give_up([1.0] * 10 + [0.73] * 5, best, PLAN)
    assert not should_give_up([1.0] * 12 + [0.55] * 3, best, PLAN)  # the same mean of the last 5


def test_a_probe_that_was_given_up_is_not_the_best() -> None:
    short = Probe(octave=-3.0, repeat=0, losses=(1.0, 0.0, 0.0, 0.0, 0.0))
    whole = Probe(octave=-4.0, repeat=0, losses=tuple([1.0] + [0.4] * (UPDATES - 1)))
    assert best_probe([short], 0, PLAN) is None
    assert best_probe([short, whole], 0, PLAN) is whole
    assert best_probe([whole], 1, PLAN) is None


def test_a_rise_at_once_leaves_the_losses_out_that_it_would_have_seen() -> None:
    plan = replace(PLAN, guess=3.0)
    probes = search(descent([10.0]), plan)
    risen = [p for p in probes if 2.0**p.octave > 0.4]
    assert risen
    assert all(len(p.losses) < UPDATES for p in risen)


# --- laws on random trainings --------------------------------------------------------------------


@st.composite
def trainings(draw: st.DrawFn) -> tuple[Losses, ProbePlan]:
    """Any levels at all for each octave; noise, divergence and bad batches as they come."""
    plan = replace(
        PLAN,
        guess=draw(st.floats(-14.0, 5.0)),
        repeats=draw(st.integers(1, 3)),
        noise=draw(st.sampled_from([0.0, 0.01, 0.3])),
        start=draw(st.sampled_from([1.0, -1.0, 0.0, 1e-6, 1e6])),
    )
    kinds = ["falls", "falls", "flat", "rises", "nan"]
    drop = draw(st.sampled_from([1.0, 1e-3, 1e3])) * max(1e-6, abs(plan.start))
    of_octave = {
        k: (draw(st.sampled_from(kinds)), draw(st.floats(0.0, 1.0))) for k in range(-15, 6)
    }
    bad_batches = draw(st.booleans())

    def losses(octave: float, repeat: int) -> list[float]:
        kind, share = of_octave[math.floor(octave)]
        draws = random.Random(f"{octave} {repeat}")
        found = []
        for update in range(UPDATES):
            done = update / UPDATES
            change = {"falls": -share * done, "flat": 0.0, "rises": 9.0 * done**2, "nan": math.nan}
            noise = plan.noise * drop * draws.gauss(0.0, 1.0)
            found.append(plan.start + change[kind] * drop + noise)
        if bad_batches:
            found[draws.randrange(UPDATES)] = math.nan
        return found

    return losses, replace(plan, noise=plan.noise * drop)


@settings(max_examples=80, deadline=None)
@given(trainings(), st.randoms(use_true_random=False))
def test_every_search_ends_stays_inside_and_is_a_function_of_its_probes(
    training: tuple[Losses, ProbePlan], order: random.Random
) -> None:
    losses, plan = training
    probes = search(losses, plan)
    octaves = [p.octave for p in probes]
    assert min(octaves) >= plan.lowest
    assert max(octaves) <= plan.highest
    assert {p.repeat for p in probes} <= set(range(plan.repeats))

    found = edge(probes, plan), best_lr(probes, plan)
    again = probes.copy()
    order.shuffle(again)
    assert next_probe(again, plan) is None
    assert (edge(again, plan), best_lr(again, plan)) == found

    for estimate in found:
        assert estimate.value is not None or estimate.reason
        assert estimate.low <= (estimate.value or estimate.low) <= estimate.high
        if estimate.value is not None:
            assert 2.0**plan.lowest <= estimate.value <= 2.0**plan.highest
    best = best_probe(probes, 0, plan)
    assert (best is None) == (found[1].value is None) == (found[0].reason.startswith("no const"))
    assert best is None or len(best.losses) == plan.num_updates


@settings(max_examples=30, deadline=None)
@given(trainings())
def test_an_interrupted_search_goes_on_where_it_was(training: tuple[Losses, ProbePlan]) -> None:
    losses, plan = training
    probes = search(losses, plan)
    for count, probe in enumerate(probes):
        assert next_probe(probes[:count][::-1], plan) == (probe.octave, probe.repeat)


@settings(max_examples=80, deadline=None)
@given(
    best=st.floats(-11.0, 3.0),
    steepness=st.floats(0.02, 2.0),
    edge_above=st.floats(0.3, 4.0),
    off=st.floats(-7.0, 7.0),
)
def test_one_valley_is_enclosed_and_max_lr_is_not_above_the_edge(
    best: float, steepness: float, edge_above: float, off: float
) -> None:
    plan = replace(PLAN, guess=best + off, lowest=-14.0, highest=8.0)
    probes = search(valley(best, steepness, best + edge_above), plan)
    tried = {p.octave for p in probes}
    lowest = best_probe(probes, 0, plan)
    assert lowest is not None
    nearest = [k for k in range(-14, 9) if k <= best + edge_above]
    assert abs(lowest.octave - best) <= min(abs(k - best) for k in nearest) + 1e-9
    assert {lowest.octave - 1.0, lowest.octave + 1.0} <= tried
    top, limit = best_lr(probes, plan), edge(probes, plan)
    assert limit.value is None or value(top) <= value(limit)


def test_one_given_up_early_is_not_as_good_as_a_winner_that_started_slowly() -> None:
    """It was behind another at that time; that it was not behind the later winner tells nothing."""
    steady = tuple(1.0 - 0.02 * n for n in range(UPDATES))
    winner = (*[1.0] * 12, *[1.0 - 0.055 * (n - 11) for n in range(12, UPDATES)])
    hardly = tuple(1.0 - 0.003 * n for n in range(10))
    probes = [
        Probe(octave=-6.0, repeat=0, losses=steady),
        Probe(octave=-9.0, repeat=0, losses=hardly),
        Probe(octave=-3.0, repeat=0, losses=winner),
        Probe(octave=-2.0, repeat=0, losses=(1.0, 9.0, 9e3, math.nan)),
    ]
    found = best_lr(probes, PLAN)
    assert found.value is not None
    assert 2.0**-4 <= found.value <= 2.0**-2
