"""K-FAC in a plan: tried beside SGD, recommended only where the measured time says so."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compose_cases import branches, measurements, plan_of, recipe_with, request_of, through_json
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.plan import Plan
from anybatch.planning import compose, procedure
from anybatch.planning.arithmetic import preconditioner_choice
from anybatch.planning.arithmetic.preconditioner_choice import (
    LogRatio,
    PreconditionerTrial,
    choose_preconditioner,
    long_run_seconds,
    ratio_of_seconds,
    ratio_of_updates,
)
from anybatch.planning.arms import arms_of, diverged_lrs, ratios_of
from anybatch.planning.branching import Branch, train_branches
from anybatch.planning.compose import Composer
from anybatch.planning.pilot import opened_pilot, pilot_recipe
from anybatch.planning.preconditioning import (
    REFUSED,
    TRIED,
    preconditioned,
    preconditioned_lrs,
    trial_of,
)
from anybatch.progress import Activity
from anybatch.recipe import AdamSettings, FixedRefresh, KFACSettings, LossSettings, SGDSettings
from anybatch.run import Run
from anybatch.world import World
from plan_tasks import FULL, RECIPE, planned, task_of, trained

# --- arithmetic ----------------------------------------------------------------------------------


def made(seconds: float, updates: float, error: float = 0.1) -> PreconditionerTrial:
    return PreconditionerTrial(
        batch_size=64,
        lr=0.1,
        seconds=LogRatio(value=math.log(seconds), error=0.03),
        updates=LogRatio(value=math.log(updates), error=error),
    )


@pytest.mark.parametrize(
    ("trial", "recommended"),
    [
        (made(1.2, 0.5), True),
        (made(1.0, 1.0, 0.0), False),
        (made(1.3, 0.9), False),
        (made(1.2, 0.75), False),  # 0.9 of the time, but who knows
        (made(1.2, 0.75, 0.01), True),
        (made(1.2, 0.5, 2.0), False),
    ],
)
def test_only_a_clear_gain_is_recommended(trial: PreconditionerTrial, recommended: bool) -> None:
    choice = choose_preconditioner(trial, np.ones(4000), np.full(4000, 1 / 4000))
    assert choice.recommended is recommended
    middle, low, high = choice.time
    expected = math.exp(trial.seconds.value + trial.updates.value)
    assert low < middle < high
    error = math.hypot(trial.seconds.error, trial.updates.error)
    assert middle == pytest.approx(expected, rel=0.06 * max(1.0, error / 0.1))
    assert math.log(high / low) == pytest.approx(2 * 1.2816 * error, rel=0.1)
    slower = float(np.mean(choice.seconds * choice.updates > 1.1))
    assert not recommended or slower < 0.2  # as for a move to another batch size


def test_a_gain_is_over_what_would_be_trained_with_otherwise() -> None:
    trial, weights = made(1.2, 0.6), np.full(1000, 1e-3)
    assert choose_preconditioner(trial, np.ones(1000), weights).recommended
    assert not choose_preconditioner(trial, np.full(1000, 1.4), weights).recommended


def test_weights_of_the_worlds_count() -> None:
    moved, weights = np.repeat([1.0, 9.0], 500), np.repeat([1.0, 0.0], 500) / 500
    assert choose_preconditioner(made(1.2, 0.5), moved, weights).recommended
    assert not choose_preconditioner(made(1.2, 0.5), moved, weights[::-1]).recommended


def test_a_long_run_has_its_own_shares_of_refreshes() -> None:
    """A branch of 60 updates inverts once, a run once in a hundred."""
    seconds = [1.0 + 0.5 * (n % 10 == 0) + 20.0 * (n % 100 == 0) for n in range(60)]
    found = long_run_seconds(seconds, statistics_every=10, inverse_every=100)
    assert found == pytest.approx(1.0 + 0.05 + 0.2)
    longer = seconds + seconds[:1] * 0 + [1.0 + 0.5 * (n % 10 == 0) for n in range(60, 101)]
    longer[100] = 11.5  # the first was slow anyhow
    found = long_run_seconds(longer, statistics_every=10, inverse_every=100)
    assert found == pytest.approx(1.0 + 0.05 + 0.1)
    assert long_run_seconds([9.0, 1.0, 1.1, 1.2, 9.0]) == pytest.approx(1.15)
    every = long_run_seconds([9.0, 1.0, 2.0, 1.0], statistics_every=1, inverse_every=2)
    assert every == pytest.approx(1.5)
    for short in ([], [1.0] * 10):
        with pytest.raises(InputError, match="every kind"):
            long_run_seconds(short, statistics_every=10, inverse_every=100)


def test_the_ratio_of_seconds_is_as_sure_as_the_branches_agree() -> None:
    close, apart = (
        ratio_of_seconds([1.2 * s, 1.2 / s, 1.2], [1.0 * s, 1.0 / s]) for s in (1.01, 1.3)
    )
    assert close.value == pytest.approx(math.log(1.2))
    assert apart.value == pytest.approx(math.log(1.2))
    assert 0.03 < close.error < 0.04
    assert apart.error > 0.2
    assert ratio_of_updates(0.3, 0.2).error == pytest.approx(0.25)
    assert ratio_of_updates(0.3, 0.2).value == 0.3


# --- from branches to a plan ---------------------------------------------------------------------


def with_trials(
    plain: Measurement,
    batch_size: int,
    rates: Mapping[float, float],
    *,
    slower: float = 1.2,
    lost: Sequence[float] = (),
    seeds: int = 2,
) -> Measurement:
    """Branches of K-FAC beside plain ones of 10 ms an update; those cost `slower` times as much."""
    tried = branches(
        {(batch_size, lr): rate for lr, rate in rates.items()},
        lost=tuple((batch_size, lr) for lr in lost),
        seeds=seeds,
    )

    def columns(measured: Measurement, flag: float, seconds: float) -> dict[str, Any]:
        updates = measured.samples["update"]
        own = {"preconditioned": (flag,) * len(updates)}
        return dict(measured.samples) | own | {"seconds": tuple(seconds * u for u in updates)}

    first, second = columns(plain, 0.0, 0.01), columns(tried, 1.0, 0.01 * slower)
    return replace(plain, samples={name: first[name] + second[name] for name in first})


SIZE = Composer(request_of(), measurements()).decision.choice.batch_size
AT_BEST = request_of(recipe_with(batch_size=SIZE))
PLAIN = branches({(SIZE, 0.2): 0.02, (SIZE, 0.4): 0.01, (4 * SIZE, 0.5): 0.03})


def reasons(plan: Plan) -> list[str]:
    return [r.sentence for r in plan.reasons if r.name == "preconditioner"]


def plan_with(measured: Measurement | None, request: Any = AT_BEST) -> Plan:
    given = measurements(branches=measured)
    return plan_of(request, given, procedure="full" if measured else "short")


def assert_replayed(plan: Plan, measured: Measurement) -> None:
    """The same again from disk."""
    given = measurements(branches=measured)
    again = {name: through_json(one) for name, one in given.items()}
    assert plan_of(plan.request, again, procedure=plan.procedure) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan


def test_a_clear_gain_is_the_plans_recipe_with_its_lr_and_its_numbers() -> None:
    measured = with_trials(PLAIN, SIZE, {0.1: 0.05, 0.03: 0.02}, slower=1.5)
    plan, before = plan_with(measured), plan_with(PLAIN)
    assert_replayed(plan, measured)
    # What was tried: without early inverses a short branch has updates that only measure.
    refresh = FixedRefresh(early_inverses=False)
    assert plan.recipe.preconditioner == KFACSettings(refresh=refresh)
    assert plan.recipe.optimizer.lr == 0.1
    assert before.recipe.preconditioner is None
    assert plan.batch_size == before.batch_size == SIZE
    (sentence,) = reasons(plan)
    assert plan.reasons[0].sentence == sentence
    assert sentence.startswith(f"K-FAC at batch size {SIZE:,} and lr 0.1: a step takes 1.50 x (")
    assert "the time: recommended" in sentence
    assert sum(reason.name == "lr" for reason in plan.reasons) == 1
    trial = trial_of(measured)
    assert trial is not None
    assert trial.updates.value == pytest.approx(math.log(0.4), abs=0.15)
    for name, ratio in (("updates", trial.updates), ("seconds", trial.seconds)):
        new, old = plan.predictions[name], before.predictions[name]
        assert new.value is not None
        assert old.value is not None
        factor = math.exp(ratio.value) if name == "updates" else math.exp(
            trial.updates.value + ratio.value
        )  # fmt: skip
        done = plan.pilot[name]
        assert new.value - done == pytest.approx(factor * (old.value - done), rel=0.15)
        wider = math.log((new.high - done) / (new.low - done))
        assert wider > math.log((old.high - done) / (old.low - done))
    excess = plan.predictions["excess_of_present"]
    assert excess.value == pytest.approx(1.0 / (1.5 * math.exp(trial.updates.value)) - 1.0, rel=0.1)
    assert plan.predictions["lr"].low == 0.0
    assert "scale of their own" in plan.predictions["lr"].reason
    assert plan.prices == before.prices


@pytest.mark.parametrize(
    ("rates", "slower", "words"),
    [
        ({0.1: 0.01, 0.03: 0.008}, 1.3, "not recommended"),  # a loss
        ({0.1: 0.024, 0.03: 0.01}, 1.1, "not recommended"),  # unclear
        ({0.1: 0.05, 0.03: 0.02}, 2.6, "not recommended"),  # fewer updates, but each takes long
    ],
)
def test_what_is_no_clear_gain_leaves_the_plan_as_it_was_but_for_a_reason(
    rates: dict[float, float], slower: float, words: str
) -> None:
    plan, before = plan_with(with_trials(PLAIN, SIZE, rates, slower=slower)), plan_with(PLAIN)
    (sentence,) = reasons(plan)
    assert words in sentence
    left = tuple(reason for reason in plan.reasons if reason.name != "preconditioner")
    changed = {"reasons": left, "would_change": before.would_change}
    assert replace(plan, **changed) == before


def test_an_unclear_gain_is_named_among_what_would_change_the_plan() -> None:
    unclear = plan_with(with_trials(PLAIN, SIZE, {0.1: 0.024}, slower=1.1))
    clearly_not = plan_with(with_trials(PLAIN, SIZE, {0.1: 0.005}, slower=1.5))
    told = ["longer branches: K-FAC" in " ".join(p.would_change) for p in (unclear, clearly_not)]
    assert told == [True, False]


def test_a_branch_that_diverged_is_never_recommended() -> None:
    one = with_trials(PLAIN, SIZE, {0.03: 0.05}, lost=[0.1])
    plan = plan_with(one)
    assert plan.recipe.preconditioner is not None
    assert plan.recipe.optimizer.lr == 0.03
    assert diverged_lrs(one, SIZE) == []  # of plain branches
    lost = with_trials(PLAIN, SIZE, {}, lost=[0.1, 0.03])
    both = plan_with(lost)
    assert_replayed(both, lost)
    assert both.recipe.preconditioner is None
    assert reasons(both) == ["K-FAC diverged at lr 0.03 and 0.1: not recommended"]
    assert both.recipe == plan_with(PLAIN).recipe


def test_branches_that_do_not_pair_say_nothing() -> None:
    measured = with_trials(PLAIN, SIZE, {0.1: 0.05}, seeds=1)
    assert trial_of(measured) is None
    plan = plan_with(measured)
    assert plan.recipe.preconditioner is None
    assert "a step takes 1.20 x (1.15 to 1.25); the branches do not tell" in reasons(plan)[0]
    short = {name: column[:8] + column[-8:] for name, column in measured.samples.items()}
    assert "too short" in reasons(plan_with(replace(measured, samples=short)))[0]
    alone = with_trials(branches({(4 * SIZE, 0.2): 0.02}), SIZE, {0.1: 0.05})
    assert trial_of(alone) is None


def test_preconditioned_rows_are_no_branches_of_the_optimizer() -> None:
    measured = with_trials(PLAIN, SIZE, {0.2: 0.5, 0.03: 0.4})  # an lr that a plain one has, too
    assert arms_of(measured) == arms_of(PLAIN)
    assert ratios_of(arms_of(measured)) == ratios_of(arms_of(PLAIN))
    assert set(arms_of(measured, preconditioned=True)) == {(SIZE, 0.2), (SIZE, 0.03)}
    assert arms_of(PLAIN, preconditioned=True) == {}


def test_a_measurement_without_the_new_columns_gives_the_plan_that_it_gave() -> None:
    plan = plan_with(PLAIN)
    assert_replayed(plan, PLAIN)
    assert reasons(plan) == []
    assert "K-FAC" not in " ".join(plan.would_change)
    assert Composer(AT_BEST, measurements(branches=PLAIN)).preconditioner is None


def test_a_gain_at_another_batch_size_must_beat_the_size_that_stays() -> None:
    """K-FAC is tried at the best size; where the present one stays, the plan moves with it."""
    composer = Composer(request_of(), measurements(branches=PLAIN))
    sizes = [size for size in composer.decision.near_optimal if size != SIZE]
    stays = request_of(recipe_with(batch_size=sizes[-1]))
    assert plan_with(PLAIN, stays).batch_size == sizes[-1]
    plan = plan_with(with_trials(PLAIN, SIZE, {0.1: 0.05}), stays)
    assert (plan.batch_size, plan.recipe.optimizer.lr) == (SIZE, 0.1)
    assert plan.recipe.preconditioner == TRIED
    assert f"the time is over that at {sizes[-1]:,} without it" in reasons(plan)[0]
    assert not any("the present batch size, " in r.sentence and "stays" in r.sentence
                   for r in plan.reasons)  # fmt: skip
    assert plan.predictions["batch_size"].value == SIZE
    weak = plan_with(with_trials(PLAIN, SIZE, {0.1: 0.02}), stays)
    assert weak.recipe == plan_with(PLAIN, stays).recipe


def test_without_branches_it_is_not_recommended_and_the_plan_says_why() -> None:
    plan = plan_with(None)
    assert plan.recipe.preconditioner is None
    (sentence,) = reasons(plan)
    assert sentence.startswith("K-FAC was not tried, as no branches were trained")
    assert any("K-FAC is tried" in line for line in plan.would_change)


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_with(optimizer=AdamSettings(lr=1e-3)),
        recipe_with(preconditioner=KFACSettings(damping=0.01)),
    ],
)
def test_it_is_no_matter_beside_adam_or_where_the_recipe_has_it(recipe: Any) -> None:
    request = request_of(recipe)
    plan = plan_with(None, request)
    assert reasons(plan) == []
    assert plan.recipe.preconditioner == recipe.preconditioner
    assert Composer(request, measurements()).preconditioned_arms() == []


def test_arms_are_at_the_best_size_with_lrs_of_their_own_scale() -> None:
    assert Composer(AT_BEST, measurements()).preconditioned_arms() == [(SIZE, 0.1), (SIZE, 0.03)]
    summed = recipe_with(loss=LossSettings(reduction="sum"), optimizer=SGDSettings(lr=1e-3))
    assert preconditioned_lrs(summed, 64) == pytest.approx(
        [0.1 / 64, 0.03 / 64], rel=1e-3
    )  # lr_sum = lr_mean / B


# --- the procedure -------------------------------------------------------------------------------


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "_NUM_DRAWS", 100)
    monkeypatch.setattr(procedure, "_MOST_SLOWER", math.inf)  # whatever else this machine does
    monkeypatch.setattr("gc.collect", lambda *generation: 0)


@pytest.mark.usefixtures("_few_draws")
def test_the_full_procedure_tries_it_and_says_what_it_found(tmp_path: Path) -> None:
    plan = planned(tmp_path / "plan", wanted=FULL)
    run = Run(tmp_path / "plan")
    measured = run.measurements()["branches"]
    names = ("preconditioned", "batch_size", "lr", "seed", "update", "seconds")
    rows = list(zip(*(measured.samples[name] for name in names), strict=True))
    tried = {row[1:4] for row in rows if row[0] == 1.0}
    size = {row[0] for row in tried}
    assert len(size) == 1
    assert {(lr, seed) for _, lr, seed in tried} == {
        (lr, seed) for lr in (0.1, 0.03) for seed in (0.0, 1.0)
    }
    assert len({row[2] for row in rows if row[0] == 0.0 and row[1] in size}) == 3
    for before, after in itertools.pairwise(rows):
        assert after[5] > before[5] or after[4] == 1.0
    assert all(0.0 < row[5] < measured.seconds for row in rows)
    assert REFUSED not in measured.settings
    (sentence,) = reasons(plan)
    assert "K-FAC" in sentence
    assert "recommended" in sentence
    again = Composer(plan.request, run.measurements(), interval_factor=plan.interval_factor)
    replayed = again.plan(procedure=plan.procedure, cost=plan.cost)
    assert replace(replayed, pilot=plan.pilot) == plan


@pytest.mark.usefixtures("_few_draws")
def test_a_run_goes_on_from_the_branch_that_tried_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditioner_choice, "SURE", 0.0)  # of two ratios, whatever they are
    monkeypatch.setattr(compose, "trial_of", lambda measured: measured and made(1.1, 0.5))
    monkeypatch.setattr(compose, "allowed_sizes", lambda request: [64])
    task = task_of()
    plan = planned(tmp_path / "plan", task, replace(RECIPE, batch_size=64), wanted=FULL,
                   target="accuracy>=0.999")  # fmt: skip
    assert plan.recipe.preconditioner == TRIED
    assert plan.recipe.optimizer.lr == 0.1
    run = Run(tmp_path / "plan")
    assert run.recipe.preconditioner == TRIED
    assert plan.pilot["updates"] > run.measurements()["pilot"].samples["update"][-1]
    plan = replace(plan, recipe=replace(plan.recipe, duration=replace(
        plan.recipe.duration, count=int(plan.pilot["examples"]) + 20 * 64)))  # fmt: skip
    followed = trained(plan, tmp_path / "run", task)
    assert followed.status.update > plan.pilot["updates"]
    assert all(math.isfinite(record.loss) for record in followed.steps())


class Bare(nn.Module):
    """Nothing that K-FAC covers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * Tensor([[1.0, -1.0]] * 6))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


@pytest.mark.usefixtures("_few_draws")
def test_a_model_that_cannot_have_it_is_planned_all_the_same(tmp_path: Path) -> None:
    plan = planned(tmp_path / "plan", task_of(build_model=Bare), wanted=FULL)
    (sentence,) = reasons(plan)
    assert sentence.startswith("K-FAC could not be tried: model must hold a layer")
    assert plan.recipe.preconditioner is None


@pytest.mark.usefixtures("_few_draws")
def test_a_recipe_that_has_it_is_planned_with_it(tmp_path: Path) -> None:
    recipe = replace(RECIPE, preconditioner=KFACSettings(damping=0.01))
    plan = planned(tmp_path / "plan", task_of(), recipe, wanted=FULL)
    assert plan.recipe.preconditioner == recipe.preconditioner
    assert reasons(plan) == []
    flags = Run(tmp_path / "plan").measurements()["branches"].samples["preconditioned"]
    assert set(flags) == {0.0}


def branched(*asked: Branch, momentum: float = 1.0) -> tuple[Measurement, list[Any]]:
    """From the state of a short pilot, whose momentum is multiplied."""
    world, task = World.from_environment("cpu"), task_of()
    with opened_pilot(task, pilot_recipe(RECIPE, 16, 0.05), world=world) as pilot:
        pilot.train(seconds=math.inf, most_updates=10)
        state = copy.deepcopy(pilot.training.state_dict())
    for buffers in state["step"]["optimizer"]["state"].values():
        buffers["momentum_buffer"].mul_(momentum)
    return train_branches(task, RECIPE, state, asked, num_seeds=2, world=world,
                          activity=Activity("branches", shown=False))  # fmt: skip


def trial(**changed: Any) -> Branch:
    recipe = preconditioned(pilot_recipe(RECIPE, 16, 0.1, log_every=1))
    return replace(Branch(recipe=recipe, num_updates=14, is_trial=True), **changed)


def test_a_trial_begins_without_the_momentum_of_plain_gradients() -> None:
    """Which its lr, on a scale of its own, would make anything of."""
    plain = Branch(recipe=pilot_recipe(RECIPE, 16, 0.1, log_every=1), num_updates=14)
    measured, ends = branched(trial(), plain, momentum=1e6)
    losses = zip(measured.samples["preconditioned"], measured.samples["loss"], strict=True)
    assert max(loss for flag, loss in losses if flag) < 1.0
    assert max(measured.samples["loss"]) > 1e3  # of the plain one
    assert ends[0].branch.is_trial
    assert ends[0].state["step"]["preconditioner"]["updates"] == 14


def test_a_trial_that_takes_far_longer_is_not_gone_on_with() -> None:
    plain = Branch(recipe=pilot_recipe(RECIPE, 16, 0.1, log_every=1), num_updates=14)
    measured, _ = branched(trial(most_seconds=1e-9), plain, trial())
    flags = measured.samples["preconditioned"]
    assert flags.count(1.0) == 1  # an update, then nothing of the second trial and seed
    assert flags.count(0.0) == 28
    assert measured.settings[REFUSED].startswith("1 updates took ")
    assert trial_of(measured) is None
    slow = plan_with(replace(PLAIN, settings={REFUSED: measured.settings[REFUSED]}))
    assert reasons(slow)[0].startswith("K-FAC could not be tried: 1 updates took")
