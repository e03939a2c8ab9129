"""What follows from stored measurements: the same plan again, and never a bare number."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from compose_cases import (
    LANGUAGE,
    PRESENT,
    REGRESSION,
    branches,
    lr_range,
    measurements,
    pilot,
    plan_of,
    recipe_with,
    request_of,
    through_json,
)
from planning_cases import ALL_REDUCE, noise_scale, throughput

from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.plan import Plan
from anybatch.planning.arithmetic.lr_rules import carried_lr
from anybatch.planning.compose import Composer
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    LossSettings,
    MuonSettings,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.schedules import Cosine, OneCycle, epochs, examples, updates

WHOLE = measurements()


def assert_never_bare(plan: Plan) -> None:
    """Every number has an interval about it, and whatever is not known a reason."""
    named = dict(plan.predictions)
    for price in plan.prices:
        at = f"{price.batch_size} x {price.ranks}"
        named |= {f"{n} {at}": getattr(price, n) for n in ("updates", "seconds", "device_hours")}
    for name, estimate in named.items():
        if estimate.value is None:
            assert estimate.reason, name
            continue
        assert math.isfinite(estimate.value), name
        assert estimate.low <= estimate.value <= estimate.high, name
        assert 0.5 < estimate.level < 1.0, name
        if estimate.low == -math.inf or estimate.high == math.inf:
            assert estimate.reason or name.startswith(("updates", "examples", "seconds", "device"))


def assert_trainable(plan: Plan) -> None:
    """Whole updates, a length beyond the pilot, and some twenty looks or more on the way."""
    recipe, request = plan.recipe, plan.request
    clock = recipe_clock(recipe, request.num_examples)
    assert clock.total_examples is not None
    assert clock.total_examples > plan.pilot.get("examples", 0)
    assert 1 <= recipe.batch_size <= request.num_examples
    every = recipe.stopping.evaluate_every
    assert every.unit == "examples"
    assert every.count % recipe.batch_size == 0
    assert every.count >= 1
    assert every.count <= max(clock.total_examples / 20, recipe.batch_size)
    assert every.count >= min(clock.total_examples / 500, recipe.batch_size)
    if (
        plan.predictions["examples"].value is None
        and clock.total_examples > 100 * recipe.batch_size
    ):
        assert 20 <= clock.total_examples / every.count <= 80
    assert recipe.stopping.target is not None
    assert str(recipe.stopping.target) == request.target
    if recipe.ghost_batch_size and recipe.micro_batch_size:
        assert recipe.micro_batch_size % recipe.ghost_batch_size == 0


# --- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_the_same_plan_from_disk_bit_for_bit(order: Any) -> None:
    given = measurements(
        branches=branches({(256, 0.4): 0.02, (128, 0.3): 0.02}),
        throughput=replace(
            throughput(scatter=0.05),
            findings=(Finding(name="noisy-clock", sentence="noisy"),),
        ),
        pilot=replace(pilot(), findings=(Finding(name="noisy-clock", sentence="another"),)),
    )
    plan = plan_of(given=given, procedure="full", cost={"throughput": 1.0, "pilot": 2.5})
    read = {name: through_json(given[name]) for name in order(given)}  # as a folder lists them
    again = plan_of(given=read, procedure="full", cost={"throughput": 1.0, "pilot": 2.5})
    assert again == plan
    text = json.dumps(plan.to_dict(), allow_nan=False)
    assert Plan.from_dict(json.loads(text)) == plan
    assert json.dumps(again.to_dict()) == text


def test_another_seed_or_another_sample_gives_another_plan() -> None:
    plan = plan_of()
    assert plan_of(request_of(seed=1)).predictions != plan.predictions
    other = measurements(noise_scale_2=noise_scale(after_updates=300, trace=6000.0, seed=2))
    assert plan_of(given=other).predictions != plan.predictions


# --- never a bare number -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing",
    [
        ["pilot"],
        ["noise-scale-1"],
        ["noise-scale-1", "noise-scale-2"],
        ["lr-range"],
        ["pilot", "noise-scale-1", "noise-scale-2"],
        ["lr-range", "pilot", "noise-scale-1", "noise-scale-2"],
    ],
)
def test_missing_stages_give_a_plan_with_reasons(missing: list[str]) -> None:
    given = {name: measured for name, measured in WHOLE.items() if name not in missing}
    plan = plan_of(given=given, partial="ended by Ctrl-C during the pilot")
    assert_never_bare(plan)
    assert_trainable(plan)
    assert plan.lines()[0] == "partial: ended by Ctrl-C during the pilot"
    if "pilot" in missing:
        assert plan.predictions["seconds"].value is None
        assert plan.findings[0].name == "no-pilot"
        assert plan.pilot == {}
    if "lr-range" in missing:
        assert "carried" in plan.predictions["lr"].reason
        assert math.isinf(plan.predictions["lr"].high)
    if {"noise-scale-1", "noise-scale-2"} <= set(missing):
        spread = plan.predictions["critical_batch_size"]
        assert spread.high / spread.low > 20.0
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan


def test_without_a_throughput_there_is_nothing_to_say() -> None:
    with pytest.raises(InputError, match="must hold a throughput"):
        Composer(request_of(), {"pilot": pilot()})


def test_a_range_test_that_found_nothing_carries_the_present_lr() -> None:
    plan = plan_of(given=measurements(lr_range=lr_range(None, edge=None), pilot=pilot(lr=0.05)))
    assert_never_bare(plan)
    lr = next(reason for reason in plan.reasons if reason.name == "lr")
    assert "the range test gave none, so the present lr was carried" in lr.sentence
    assert plan.predictions["lr"].low == 0.0


def test_a_pilot_that_diverged_foretells_nothing_and_its_lr_is_not_used() -> None:
    lost = pilot(diverged=True, lr=0.2)
    plan = plan_of(given=measurements(pilot=lost))
    assert_never_bare(plan)
    assert_trainable(plan)
    assert plan.predictions["seconds"].value is None
    assert plan.pilot == {}
    assert plan.findings[0].name == "pilot-diverged"
    assert "target-far" not in [f.name for f in plan.findings]
    assert Composer(request_of(), measurements(pilot=lost)).pilot_lr(32) == 0.05
    words = next(reason.sentence for reason in plan.reasons if reason.name == "lr")
    assert "where the pilot diverged, so 0.05 was taken" in words


def test_a_pilot_that_learned_at_a_lower_lr_sets_the_lr_and_says_so() -> None:
    given = measurements(pilot=pilot(lr=0.05))
    plan, higher = plan_of(given=given), plan_of()
    assert plan.batch_size == higher.batch_size
    assert plan.recipe.optimizer.lr == pytest.approx(higher.recipe.optimizer.lr / 4, rel=1e-3)
    found = next(f for f in plan.findings if f.name == "pilot-diverged")
    assert found.sentence == "the pilot diverged at lr 0.2 and learned at 0.05"
    assert "pilot-diverged" not in [f.name for f in higher.findings]
    assert plan.predictions["seconds"].value is not None


def test_a_target_that_the_pilot_has_met_needs_no_more_than_a_confirmation() -> None:
    plan = plan_of(request_of(target="accuracy>=0.5"))
    assert_never_bare(plan)
    assert_trainable(plan)
    updates_, trained = plan.predictions["updates"], plan.pilot["updates"]
    assert updates_.value is not None
    assert trained <= updates_.low <= updates_.value < 1.2 * trained


def test_a_target_out_of_reach_has_no_number_but_a_reason() -> None:
    flat = pilot(slope=0.02, distance=0.5)
    plan = plan_of(request_of(target="accuracy>=0.999"), measurements(pilot=flat))
    assert_never_bare(plan)
    assert_trainable(plan)
    for name in ("updates", "examples", "seconds", "seconds_of_present"):
        assert plan.predictions[name].value is None
        assert "not reached in" in plan.predictions[name].reason
    assert plan.findings[0].name == "target-far"
    assert plan.findings[0].advice
    assert any("not known" in line or "at least" in line for line in plan.lines())


@pytest.mark.parametrize(
    ("facts", "direction"),
    [(REGRESSION, "min"), (LANGUAGE, "max"), ({"target": "loss<=0.25"}, "max")],
)
def test_other_kinds_of_task_and_target(facts: dict[str, Any], direction: str) -> None:
    plan = plan_of(request_of(**facts), measurements(pilot=pilot(direction=direction)))
    assert_never_bare(plan)
    assert_trainable(plan)
    assert plan.predictions["seconds"].value is not None
    quantity, _, value = facts["target"].partition("<=")
    harder = {"target": f"{quantity}<={0.8 * float(value):g}"}
    later = plan_of(request_of(**facts | harder), measurements(pilot=pilot(direction=direction)))
    assert later.predictions["updates"].value > plan.predictions["updates"].value


def test_a_metric_that_is_no_number_does_not_stop_a_plan_for_the_loss() -> None:
    looked = pilot()
    samples = dict(looked.samples) | {"metric": (math.nan,) * len(looked.samples["metric"])}
    given = measurements(pilot=replace(looked, samples=samples))
    plan = plan_of(request_of(target="loss<=0.2"), given)
    assert plan.predictions["seconds"].value is not None
    about_it = plan_of(request_of(), given)
    assert_never_bare(about_it)
    assert about_it.predictions["seconds"].value is None


def test_a_signal_that_was_not_resolved_is_wide_and_never_a_bare_number() -> None:
    weak = {f"noise_scale_{n}": noise_scale(signal=-0.1, scatter=1.0, seed=n) for n in (1, 2)}
    plan = plan_of(given=measurements(**weak))
    assert_never_bare(plan)
    clear, vague = (p.predictions["critical_batch_size"] for p in (plan_of(), plan))
    assert vague.high / vague.low > clear.high / clear.low


# --- the batch size ------------------------------------------------------------------------------


def test_sizes_are_all_that_suit_the_hardware_however_large_the_set() -> None:
    """A grid that is too thin would leave out most of the large ones."""
    sizes = Composer(request_of(), WHOLE).sizes
    powers = [2**k for k in range(16) if 2**k <= 50_000]
    assert set(powers) <= set(sizes)
    assert {3 * 2**k for k in range(14)} <= set(sizes)
    ratios = np.array(sizes[1:]) / np.array(sizes[:-1])
    assert ratios.max() <= 2.0


@pytest.mark.parametrize("ghost", [None, 16, 48])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("num_examples", [1, 7, 200, 50_000])
def test_sizes_are_whole_ghosts_on_each_rank_within_the_set(
    ghost: int | None, ranks: int, num_examples: int
) -> None:
    present = min(96 * ranks, num_examples)
    recipe = recipe_with(batch_size=present, ghost_batch_size=ghost)
    request = request_of(recipe, num_examples=num_examples, ranks=ranks)
    given = {"throughput": throughput(world_size=ranks)}
    for size in set(Composer(request, given).sizes) - {present}:
        assert 1 <= size <= num_examples
        assert size % ranks == 0
        if ghost is not None and (ranks > 1 or size > ghost):
            assert size % (ghost * ranks) == 0


def test_the_plan_moves_only_where_it_gains_and_what_it_says_agrees() -> None:
    small = plan_of(request_of(recipe_with(batch_size=2)))
    assert small.batch_size > 8
    assert small.batch_size in small.near_optimal
    excess = small.predictions["excess_of_present"]
    assert excess.value is not None
    assert excess.value > 0.05
    assert any("your batch size 2" in line for line in small.lines())
    assert small.predictions["seconds_of_present"].value > small.predictions["seconds"].value

    near = small.near_optimal[-1]
    stays = plan_of(request_of(recipe_with(batch_size=near)))
    assert stays.batch_size == near
    assert not any("your batch size" in line for line in stays.lines())
    assert stays.recipe.batch_size == near
    first, proposed = stays.reasons[0].sentence, stays.reasons[1].sentence
    assert first.startswith(f"the present batch size, {near:,}, stays: it is among the fastest")
    assert f"batch size {near:,} " not in proposed  # what the sentence before explains


def test_the_whole_set_as_the_present_batch() -> None:
    full = recipe_with(batch_size="full", duration=epochs(300))
    plan = plan_of(request_of(full))
    assert_never_bare(plan)
    assert_trainable(plan)
    assert plan.request.present_batch_size == 50_000
    assert plan.batch_size < 50_000
    assert any("linear rule is not used" in reason.sentence for reason in plan.reasons)


def test_ranks_are_priced_where_the_all_reduce_was_measured() -> None:
    given = measurements(throughput=throughput(world_size=2, all_reduce=ALL_REDUCE))
    plan = plan_of(request_of(ranks=2), given)
    assert_never_bare(plan)
    assert {price.ranks for price in plan.prices} == {1, 2, 8, 64}
    assert plan.batch_size % 2 == 0
    for price in plan.prices:
        hours = price.device_hours.value
        if price.seconds.value is not None and hours is not None:
            assert hours == pytest.approx(price.seconds.value * price.ranks / 3600.0)


def test_what_memory_cannot_hold_goes_in_parts_of_whole_ghosts() -> None:
    recipe = recipe_with(batch_size=256, ghost_batch_size=16)
    noises = {f"noise_scale_{n}": noise_scale(trace=1e5, scatter=0.1, seed=n) for n in (1, 2)}
    given = measurements(throughput=throughput(per_example=1e-5, largest=50), **noises)
    plan = plan_of(request_of(recipe), given)
    assert plan.batch_size > 50
    assert plan.recipe.micro_batch_size == 48
    assert plan.recipe.ghost_batch_size == 16
    assert_trainable(plan)


def test_a_ghost_larger_than_the_batch_is_left_out_on_one_rank() -> None:
    given = measurements(throughput=throughput(fixed=1e-5, per_example=1e-3))
    plan = plan_of(request_of(recipe_with(ghost_batch_size=128)), given)
    assert plan.batch_size < 128
    assert plan.recipe.ghost_batch_size is None


# --- the recipe ----------------------------------------------------------------------------------


def test_the_lr_is_carried_from_the_pilot_and_the_decay_kept_for_each_example() -> None:
    composer = Composer(request_of(), WHOLE)
    plan = composer.plan(procedure="short", cost={})
    critical = plan.predictions["critical_batch_size"].value
    assert critical is not None
    wanted = carried_lr("noise-scale", 0.2, 32, plan.batch_size, noise_scale=critical)
    lr = plan.recipe.optimizer.lr
    assert lr == pytest.approx(wanted, rel=1e-3)
    before = 0.1 * 5e-4 / 128
    assert lr * plan.recipe.optimizer.weight_decay / plan.batch_size == pytest.approx(
        before, rel=1e-3
    )
    estimate = plan.predictions["lr"]
    assert estimate.low == pytest.approx(0.5 * lr, rel=1e-3)
    assert estimate.high == pytest.approx(2.0 * lr, rel=1e-3)


def test_a_summed_loss_divides_the_lr_by_the_batch_size() -> None:
    mean = plan_of()
    recipe = recipe_with(loss=LossSettings(reduction="sum"), optimizer=SGDSettings(lr=0.1 / 128))
    given = measurements(lr_range=lr_range(0.2 / 32), pilot=pilot(lr=0.2 / 32))
    summed = plan_of(request_of(recipe), given)
    assert summed.batch_size == mean.batch_size != 32
    assert summed.recipe.optimizer.lr * summed.batch_size == pytest.approx(
        mean.recipe.optimizer.lr, rel=1e-3
    )
    words = next(reason.sentence for reason in summed.reasons if reason.name == "lr")
    assert "divided by B as the loss is summed" in words
    adam = [
        plan_of(request_of(recipe_with(optimizer=AdamSettings(lr=1e-3), loss=loss)))
        for loss in (LossSettings(), LossSettings(reduction="sum"))
    ]
    assert adam[0].recipe.optimizer == adam[1].recipe.optimizer  # which divides by the gradient


def test_adamw_keeps_its_decay_for_each_example_and_adam_its_setting() -> None:
    for settings in (
        AdamWSettings(lr=1e-3, weight_decay=0.1),
        MuonSettings(lr=0.02, weight_decay=0.1),
    ):
        plan = plan_of(request_of(recipe_with(optimizer=settings)))
        optimizer: Any = plan.recipe.optimizer
        kept = optimizer.lr * optimizer.weight_decay / plan.batch_size
        assert kept == pytest.approx(settings.lr * 0.1 / 128, rel=2e-3)
    coupled = AdamSettings(lr=1e-3, weight_decay=0.1)
    optimizer = plan_of(request_of(recipe_with(optimizer=coupled))).recipe.optimizer
    assert optimizer.weight_decay == 0.1


def test_muons_other_lr_keeps_its_ratio() -> None:
    plan = plan_of(request_of(recipe_with(optimizer=MuonSettings(lr=0.02, adamw_lr=3e-4))))
    optimizer: Any = plan.recipe.optimizer
    assert optimizer.adamw_lr / optimizer.lr == pytest.approx(3e-4 / 0.02, rel=2e-3)
    assert optimizer.lr > 0.02


def test_other_schedules_of_the_present_recipe_are_not_carried_into_a_run_without_end() -> None:
    schedules = Schedules(lr=OneCycle(), momentum=Cosine(), weight_decay=Cosine())
    plan = plan_of(request_of(recipe_with(schedules=schedules)))
    assert plan.recipe.schedules.momentum == Schedules().momentum
    assert plan.recipe.schedules.weight_decay == Schedules().weight_decay
    assert plan.recipe.schedules.batch_size == Schedules().batch_size


def test_patience_and_plateau_reach_over_as_many_examples_as_before() -> None:
    for every in (epochs(1), updates(391)):
        stopping = Stopping(evaluate_every=every, patience=3)
        plateau = ReduceOnPlateauSettings(watch="metric", factor=0.5, patience=2, cooldown=1)
        plan = plan_of(request_of(recipe_with(stopping=stopping, plateau=plateau)))
        distance = plan.recipe.stopping.evaluate_every.count
        assert distance < 50_000
        assert plan.recipe.stopping.patience is not None
        assert plan.recipe.plateau is not None
        for found, before in (
            (plan.recipe.stopping.patience, 3),
            (plan.recipe.plateau.patience, 2),
            (plan.recipe.plateau.cooldown, 1),
        ):
            assert before * 50_000 <= found * distance < before * 50_000 + 2 * distance
        assert (plan.recipe.plateau.watch, plan.recipe.plateau.factor) == ("metric", 0.5)


def test_the_run_gives_up_well_beyond_the_prediction() -> None:
    plan = plan_of()
    predicted = plan.predictions["examples"]
    assert predicted.value is not None
    assert plan.recipe.duration.unit == "examples"
    assert 1.2 * predicted.high <= plan.recipe.duration.count <= 10.0 * predicted.high
    every = plan.recipe.stopping.evaluate_every.count
    assert 20 <= predicted.value / every <= 80
    assert_trainable(plan)


# --- branches ------------------------------------------------------------------------------------


def test_branches_have_sizes_that_suit_and_lrs_as_a_recipe_writes_them() -> None:
    for present in (2, 96, 128, 4096, 50_000):
        recipe = recipe_with(batch_size=present, ghost_batch_size=2)
        composer = Composer(request_of(recipe), WHOLE)
        arms = composer.branch_arms()
        best = composer.decision.choice.batch_size
        by_size: dict[int, list[float]] = {}
        for size, lr in arms:
            by_size.setdefault(size, []).append(lr)
            assert float(f"{lr:.4g}") == lr  # so that a branch can be found in the plan again
        assert set(by_size) <= set(composer.sizes)
        assert [len(lrs) for size, lrs in by_size.items() if size == best] == [3]
        assert all(len(lrs) == 1 for size, lrs in by_size.items() if size != best)
        assert present in by_size
        assert len(by_size) >= 2


def test_branches_of_a_tiny_set_stay_inside_of_it() -> None:
    for num_examples in (1, 2, 5, 40):
        request = request_of(recipe_with(batch_size=1), num_examples=num_examples)
        arms = Composer(request, WHOLE).branch_arms()
        assert all(1 <= size <= num_examples for size, _ in arms)


def test_the_lr_of_the_best_branch_is_taken_and_a_diverged_one_never() -> None:
    composer = Composer(request_of(), WHOLE)
    best = composer.decision.choice.batch_size
    low, middle, high = (lr for size, lr in composer.branch_arms() if size == best)
    given = measurements(branches=branches({(best, low): 0.03, (best, middle): 0.01},
                                           lost=((best, high),)))  # fmt: skip
    plan = plan_of(given=given, procedure="full")
    assert plan.batch_size == best
    assert plan.recipe.optimizer.lr == low
    assert "ended best" in next(r.sentence for r in plan.reasons if r.name == "lr")
    assert_never_bare(plan)

    all_lost = measurements(branches=branches({}, lost=tuple((best, lr) for lr in (low, middle))))
    again = Composer(request_of(), all_lost)
    assert again.lr_at(best) == pytest.approx(0.5 * low)


def test_measured_ratios_narrow_the_critical_batch_size() -> None:
    rates = {(32, 0.2): 0.02, (512, 0.4): 0.04}
    before, after = plan_of(), plan_of(given=measurements(branches=branches(rates)))
    wide, narrow = (p.predictions["critical_batch_size"] for p in (before, after))
    assert narrow.high / narrow.low < wide.high / wide.low


# --- what the stages say -------------------------------------------------------------------------


def test_findings_of_all_stages_are_told_once_each() -> None:
    def finding(name: str, sentence: str = "seen") -> Finding:
        return Finding(name=name, sentence=sentence, advice="look")

    given: dict[str, Measurement] = measurements(
        throughput=replace(throughput(), findings=(finding("loader-bound"),)),
        noise_scale_1=replace(noise_scale(seed=1), findings=(finding("ghost-unit", "first"),)),
        noise_scale_2=replace(noise_scale(seed=2), findings=(finding("ghost-unit", "second"),)),
    )
    plan = plan_of(given=given)
    assert [f.name for f in plan.findings] == ["loader-bound", "ghost-unit"]
    assert plan.findings[1].sentence == "first"


def test_a_ledger_that_was_wrong_widens_the_intervals() -> None:
    def spread(factor: float) -> float:
        composer = Composer(request_of(), WHOLE, interval_factor=factor)
        estimate: Estimate = composer.predictions["updates"]
        return estimate.high / estimate.low

    assert spread(1.0) < spread(2.0) < spread(4.0)


def test_the_present_recipe_in_other_units_of_length_gives_the_same_plan() -> None:
    plans = [
        plan_of(request_of(replace(PRESENT, duration=duration)))
        for duration in (epochs(10), examples(500_000), updates(3910))
    ]
    assert plans[0].recipe == plans[1].recipe == plans[2].recipe
