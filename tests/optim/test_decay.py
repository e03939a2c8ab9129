"""Conventions of weight decay: what each is in torch's, and how many updates a run counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anybatch.commands.recipe import conventions
from anybatch.course import Course, recipe_clock
from anybatch.cyclic_schedules import present_cycle
from anybatch.errors import InputError
from anybatch.optim.decay import (
    PeriodUpdates,
    count_updates,
    decay_norm_of,
    long_run_sgd_decay,
    normalized_decay,
    read_decay,
    restarts,
    stated_decay,
    torch_decay,
    write_decay,
)
from anybatch.planning.recipe import _optimizer as planned_optimizer
from anybatch.preview import preview
from anybatch.recipe import (
    AdamWSettings,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
    SGDWSettings,
)
from anybatch.records import StepRecord
from anybatch.schedules import (
    SGDR,
    Clock,
    Cosine,
    Linear,
    MultiStep,
    Position,
    Schedule,
    Warmup,
    epochs,
    fraction,
    resolve_schedule,
    updates,
)
from anybatch.task import Task
from anybatch.training.build import build_optimizer
from anybatch.training.hyperparameters import Hyperparameters
from anybatch.training.training import Training

CONVENTIONS = ("coupled", "lr-decoupled", "decoupled", "normalized")
POSITIVE = st.floats(1e-6, 1e3)


# --- conversions -----------------------------------------------------------------------------


def test_the_numbers_of_the_paper() -> None:
    # lambda = 0.05 sqrt(b / (B T)), b = 128, B = 50,000, T = 100; torch's is lambda / alpha
    num_updates = 50_000 * 100 / 128
    assert num_updates == 39062.5
    assert normalized_decay(0.05, num_updates) == pytest.approx(2.53e-4, rel=1e-3)
    assert torch_decay("normalized", 0.05, 1e-3, num_updates) == pytest.approx(0.253, rel=1e-3)
    assert normalized_decay(0.05, 3000) == pytest.approx(9.1e-4, rel=5e-3)  # full batch


def test_the_common_mistakes_are_other_numbers() -> None:
    batch, training_points, num_epochs, lr = 128, 50_000, 100, 1e-3
    right = normalized_decay(0.05, training_points * num_epochs / batch)
    b_for_its_root = 0.05 * batch / (training_points * num_epochs)
    # the root makes 197.6 of it: sqrt(39062.5)
    assert right / b_for_its_root == pytest.approx(197.642, rel=1e-5)
    total_batches = training_points * num_epochs // batch
    twice_the_batch = 0.05 * math.sqrt(batch / total_batches)
    assert twice_the_batch / right == pytest.approx(math.sqrt(batch), rel=1e-4)
    with_lr_again = lr * twice_the_batch
    assert with_lr_again / right == pytest.approx(lr * math.sqrt(batch), rel=1e-4)
    # the same as b / (B T) = 1 / n, whatever the split into batch and epochs
    assert right == pytest.approx(0.05 * math.sqrt(batch / (training_points * num_epochs)))


@given(decay=POSITIVE, lr=POSITIVE, num_updates=st.floats(1, 1e7))
def test_conversions_undo_each_other(decay: float, lr: float, num_updates: float) -> None:
    assert decay_norm_of(normalized_decay(decay, num_updates), num_updates) == pytest.approx(decay)
    for convention in CONVENTIONS:
        there = torch_decay(convention, decay, lr, num_updates)
        assert stated_decay(convention, there, lr, num_updates) == pytest.approx(decay)
    assert torch_decay("coupled", decay, lr) == torch_decay("lr-decoupled", decay, lr) == decay
    assert torch_decay("decoupled", decay, lr) == decay / lr


def test_values_out_of_bounds_are_refused() -> None:
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="must be >= 0"):
            normalized_decay(bad, 10)
        with pytest.raises(InputError, match="must be >= 0"):
            torch_decay("decoupled", bad, 0.1)
    for bad in (0.5, 0, math.nan, math.inf):
        with pytest.raises(InputError, match="num_updates must be >= 1"):
            normalized_decay(0.05, bad)
    with pytest.raises(InputError, match="num_updates must be given"):
        torch_decay("normalized", 0.05, 0.1)
    with pytest.raises(InputError, match="lr must be > 0 under decoupled weight decay"):
        torch_decay("decoupled", 0.05, 0.0)
    assert torch_decay("normalized", 0.0, 0.0) == 0.0  # no decay asks for nothing


def test_sgd_without_momentum_shrinks_by_the_same_and_with_it_in_the_long_run() -> None:
    assert long_run_sgd_decay(1e-3, lr=0.1, momentum=0.0) == pytest.approx(1e-2)
    lr, momentum, decay = 0.01, 0.9, 1e-4
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    coupled = long_run_sgd_decay(decay, lr, momentum)
    sgd = torch.optim.SGD([weight], lr=lr, momentum=momentum, weight_decay=coupled)
    kept = []
    for _ in range(2000):
        weight.grad = torch.zeros_like(weight)
        sgd.step()
        kept.append(weight.item())
    assert kept[-1] / kept[-1001] == pytest.approx((1 - decay) ** 1000, rel=2e-3)


# --- AdamW under the conventions -------------------------------------------------------------


def adamw_of_the_paper(gradients: list[float], etas: list[float], lam: float) -> list[float]:
    """Algorithm 2, line by line, in Python's doubles."""
    alpha, beta1, beta2, epsilon = 0.01, 0.9, 0.999, 1e-8
    theta, m, v, thetas = 1.0, 0.0, 0.0, []
    for t, (g, eta) in enumerate(zip(gradients, etas, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        theta = theta - eta * (alpha * m_hat / (math.sqrt(v_hat) + epsilon) + lam * theta)
        thetas.append(theta)
    return thetas


def adamw_of_a_recipe(
    gradients: list[float], settings: AdamWSettings, schedule: Schedule, total: int
) -> list[float]:
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    optimizer = build_optimizer(settings, model)
    clock = Clock(examples_per_epoch=total, batch_size=1, total_examples=total)
    values = Hyperparameters(optimizer, Schedules(lr=schedule), clock)
    thetas = []
    for update, gradient in enumerate(gradients):
        values.apply(clock.position(update))
        model.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        thetas.append(model.weight.item())
    return thetas


def test_three_steps_of_adamw_by_hand() -> None:
    # g = 2, -1, 4; eta = 1, 2/3, 1/3 (linear over 3 updates); alpha = 0.01, lambda = 0.03.
    # t=1: m^ = 2, v^ = 4: 1 - 1 (0.01 * 1 + 0.03 * 1) = 0.96
    # t=2: m = .9*.2 - .1 = .08, m^ = .08/.19 = 0.4210526; v = .999*.004 + .001 = .004996,
    #      v^ = .004996/.001999 = 2.4992496, root 1.5809015: 0.96 - 2/3 (0.01 * 0.2663371
    #      + 0.03 * 0.96) = 0.96 - 0.0017755807 - 0.0192 = 0.9390244193
    # t=3: m = .072 + .4 = .472, m^ = .472/.271 = 1.7416974; v = .004991004 + .016 = .020991004,
    #      v^ = .020991004/.002997001 = 7.0040030, root 2.6465077: 0.9390244193 - 1/3 (0.01 *
    #      0.6581116 + 0.03 * 0.9390244) = 0.9390244193 - 0.0021937053 - 0.0093902442 = 0.9274404698
    by_hand = [0.96, 0.9390244193, 0.9274404698]
    gradients, etas = [2.0, -1.0, 4.0], [1.0, 2 / 3, 1 / 3]
    paper = adamw_of_the_paper(gradients, etas, 0.03)
    assert paper == pytest.approx(by_hand, abs=2e-8)
    settings = AdamWSettings(lr=0.01, weight_decay=0.03, decay="decoupled")
    ours = adamw_of_a_recipe(gradients, settings, Linear(), 3)
    assert ours == pytest.approx(paper, rel=1e-14)
    normalized = AdamWSettings(lr=0.01, weight_decay=0.03 * math.sqrt(3), decay="normalized")
    assert adamw_of_a_recipe(gradients, normalized, Linear(), 3) == pytest.approx(paper, rel=1e-14)
    torchs = AdamWSettings(lr=0.01, weight_decay=3.0)
    assert adamw_of_a_recipe(gradients, torchs, Linear(), 3) == pytest.approx(paper, rel=1e-14)
    without = adamw_of_a_recipe(gradients, AdamWSettings(lr=0.01, weight_decay=0.03), Linear(), 3)
    assert without[0] == pytest.approx(1 - 0.01 - 0.01 * 0.03)  # torch's own: lr once more


def test_decoupled_decay_does_not_follow_lr_itself() -> None:
    for lr in (0.001, 0.1):
        settings = AdamWSettings(lr=lr, weight_decay=0.25, decay="decoupled")
        (after,) = adamw_of_a_recipe([0.0], settings, Linear(), 3)
        assert after == pytest.approx(0.75, rel=1e-14)


# --- the number of updates -------------------------------------------------------------------


def counts(recipe: Recipe, num_examples: int) -> tuple[PeriodUpdates, Course]:
    clock = recipe_clock(recipe, num_examples)
    course = Course.of(recipe, clock)
    return PeriodUpdates.of(resolve_schedule(recipe.schedules.lr, clock), course), course


def walked(course: Course) -> list[Position]:
    positions, seen = [], 0
    while seen < course.total_examples:
        size = course.size(seen, seen % (course.clock.examples_per_epoch or 1))
        positions.append(course.position(seen, size))
        seen += size
    return positions


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, "full"])
@pytest.mark.parametrize("duration", [epochs(3), epochs(2.25), updates(11)])
def test_updates_are_counted_as_they_are_taken(batch_size, duration) -> None:
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=batch_size, duration=duration)
    counted, course = counts(recipe, 100)
    assert counted.total == count_updates(course) == len(walked(course))


def test_updates_of_a_scheduled_batch_size_are_walked_through() -> None:
    growing = Schedules(batch_size=MultiStep(milestones=(epochs(1), epochs(2)), factor=2.0))
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=10, duration=epochs(3), schedules=growing
    )
    counted, course = counts(recipe, 100)
    assert counted.total == len(walked(course)) == 10 + 5 + 3
    assert counted.at(walked(course)[7]) == 18


def test_a_period_of_sgdr_counts_its_own_updates_uncut() -> None:
    lr = SGDR(first_cycle=epochs(2), cycle_growth=2.0)  # 2, 4, 8 epochs; the run ends in the third
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1),
        batch_size=10,
        duration=epochs(10),
        schedules=Schedules(lr=lr),
    )
    counted, course = counts(recipe, 100)
    lengths = [counted.at(position) for position in walked(course)]
    assert lengths == pytest.approx([20] * 20 + [40] * 40 + [80] * 40)
    warm = Warmup(duration=epochs(1), into=lr)
    counted, course = counts(
        Recipe(
            optimizer=SGDSettings(lr=0.1),
            batch_size=10,
            duration=epochs(7),
            schedules=Schedules(lr=warm),
        ),
        100,
    )
    lengths = [counted.at(position) for position in walked(course)]
    assert lengths == pytest.approx([20] * 30 + [40] * 40)
    assert restarts(warm)
    assert not restarts(Warmup(duration=epochs(1), into=Cosine()))


def test_a_period_of_sgdr_under_a_scheduled_batch_size() -> None:
    schedules = Schedules(
        lr=SGDR(first_cycle=epochs(1), cycle_growth=2.0),
        batch_size=MultiStep(milestones=(epochs(1),), factor=2.0),
    )
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=10, duration=epochs(2), schedules=schedules
    )
    counted, course = counts(recipe, 100)
    # 10 updates, then 5 in the one epoch of two that the run comes to: 10 of the whole period
    lengths = [counted.at(position) for position in walked(course)]
    assert lengths == pytest.approx([10] * 15)


def test_present_cycle_is_what_the_schedule_does() -> None:
    sgdr = SGDR(first_cycle=fraction(0.1), cycle_growth=1.5, end=0.25)
    for begin, end in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.475)):
        for share in (0.0, 0.3, 0.99):
            cycle = present_cycle(sgdr, begin + share * (end - begin))
            assert cycle == pytest.approx((begin, end))
        assert sgdr(begin) == 1.0
    assert present_cycle(sgdr, 1.0)[1] > 1.0
    whole = SGDR(first_cycle=fraction(0.5))
    assert present_cycle(whole, 1.0) == (0.5, 1.0)  # a cycle that ends with the run is not over


def test_the_grid_of_whole_shares_counts_the_updates_between_its_ends() -> None:
    lr = SGDR(first_cycle=fraction(0.5), grid="t/(T-1)")
    clock = Clock(examples_per_epoch=11, batch_size=1, total_examples=11)
    counted = PeriodUpdates.of(resolve_schedule(lr, clock), Course(clock, 1.0, Linear()))
    assert counted.at(clock.position(0)) == pytest.approx(5.0)


# --- Hyperparameters -------------------------------------------------------------------------


def decays_over(
    optimizer: SGDWSettings | AdamWSettings, schedules: Schedules, total: int
) -> list[float]:
    """What a weight of 1 loses in each update without a gradient."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    built = build_optimizer(optimizer, model)
    clock = Clock(examples_per_epoch=total, batch_size=1, total_examples=total)
    values = Hyperparameters(built, schedules, clock)
    lost = []
    for update in range(total):
        torch.nn.init.ones_(model.weight)
        values.apply(clock.position(update))
        model.weight.grad = torch.zeros_like(model.weight)
        built.step()
        assert values.current()["weight_decay"] == pytest.approx(optimizer.weight_decay)
        lost.append(1.0 - model.weight.item())
    return lost


@pytest.mark.parametrize("kind", [SGDWSettings, AdamWSettings])
def test_normalized_decay_follows_the_present_restart(kind) -> None:
    settings = kind(lr=0.5, weight_decay=0.6, decay="normalized")
    sgdr = SGDR(first_cycle=updates(2), cycle_growth=2.0)
    lost = decays_over(settings, Schedules(lr=sgdr), 6)
    quarter = 0.5 + 0.5 * math.sqrt(0.5)  # (1 + cos(pi / 4)) / 2
    etas = [1.0, 0.5, 1.0, quarter, 0.5, 1.0 - quarter]
    norms = [0.6 / math.sqrt(2)] * 2 + [0.6 / 2] * 4
    assert lost == pytest.approx([eta * norm for eta, norm in zip(etas, norms, strict=True)])
    constant = decays_over(settings, Schedules(), 9)
    assert constant == pytest.approx([0.2] * 9)  # 0.6 / sqrt(9)


@pytest.mark.parametrize("kind", [SGDWSettings, AdamWSettings])
@pytest.mark.parametrize("decay", ["decoupled", "normalized"])
def test_plateaus_and_fixed_lrs_are_part_of_eta(kind, decay) -> None:
    model = torch.nn.Linear(1, 1, bias=False).double()
    built = build_optimizer(kind(lr=0.5, weight_decay=0.3, decay=decay), model)
    clock = Clock(examples_per_epoch=9, batch_size=1, total_examples=9)
    values = Hyperparameters(built, Schedules(lr=Linear()), clock)
    whole = 0.3 if decay == "decoupled" else 0.1

    def lost(update: int) -> float:
        torch.nn.init.ones_(model.weight)
        values.apply(clock.position(update))
        model.weight.grad = torch.zeros_like(model.weight)
        built.step()
        return 1.0 - model.weight.item()

    assert lost(3) == pytest.approx(whole * 2 / 3)
    values.lr_factor = 0.5
    assert lost(3) == pytest.approx(whole / 3)
    values.fixed_lr = 0.1
    assert lost(3) == pytest.approx(whole * 0.2)
    values.fixed_lr = 0.0
    assert lost(3) == 0.0
    values.fixed_lr, values.lr_factor = None, 1.0
    assert lost(0) == pytest.approx(whole)


@pytest.mark.parametrize("kind", [SGDWSettings, AdamWSettings])
def test_a_longer_run_and_another_training_take_their_own_numbers(kind) -> None:
    model = torch.nn.Linear(1, 1, bias=False).double()

    def built(decay: str, lr: float, total: int):
        settings = kind(lr=lr, weight_decay=0.6, decay=decay)
        optimizer = build_optimizer(settings, model)
        clock = Clock(examples_per_epoch=total, batch_size=1, total_examples=total)
        return optimizer, Hyperparameters(optimizer, Schedules(), clock), clock

    def lost(optimizer) -> float:
        torch.nn.init.ones_(model.weight)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        return 1.0 - model.weight.item()

    old, values, clock = built("normalized", 0.5, 9)
    values.apply(clock.position(0))
    assert lost(old) == pytest.approx(0.2)
    state = old.state_dict()
    for decay, lr, total, expected in (
        ("normalized", 0.5, 36, 0.1),  # the same run, extended
        ("normalized", 0.25, 4, 0.3),  # begin_from: another lr, another length
        ("decoupled", 0.25, 4, 0.6),  # and another convention
    ):
        new, values, clock = built(decay, lr, total)
        new.load_state_dict(state)
        if lr != 0.5:
            values.restore_settings()
        values.apply(clock.position(1))
        assert lost(new) == pytest.approx(expected)


def test_without_its_updates_a_normalized_decay_never_acts_silently() -> None:
    model = torch.nn.Linear(1, 1)
    model(torch.ones(1)).backward()
    sgdw = build_optimizer(SGDWSettings(lr=0.1, weight_decay=0.05, decay="normalized"), model)
    with pytest.raises(InputError, match="num_updates must be given"):
        sgdw.step()
    adamw = build_optimizer(AdamWSettings(lr=0.1, weight_decay=0.05, decay="normalized"), model)
    clock = Clock(examples_per_epoch=100, batch_size=None, total_examples=100)
    with pytest.raises(InputError, match="must be told by a course where a normalized decay"):
        Hyperparameters(adamw, Schedules(), clock)
    adamw.step()
    assert torch.isnan(model.weight).all()


def test_groups_without_a_convention_are_plain_numbers() -> None:
    group: dict[str, object] = {"weight_decay": 0.5}
    write_decay(group, 0.25, None)
    assert group == {"weight_decay": 0.25}
    assert read_decay(group) == 0.25
    assert read_decay({}) == 0.0


# --- plans and words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SGDSettings(lr=0.1, weight_decay=5e-4), 1e-3),  # lr wd / B: 4 / 2
        (SGDWSettings(lr=0.1, weight_decay=5e-4, decay="coupled"), 1e-3),
        (SGDWSettings(lr=0.1, weight_decay=5e-4), 2e-3),  # of an update: as many examples
        (SGDWSettings(lr=0.1, weight_decay=0.05, decay="normalized"), 0.05),
        (AdamWSettings(lr=0.1, weight_decay=0.1), 0.2),
        (AdamWSettings(lr=0.1, weight_decay=0.1, decay="decoupled"), 0.4),
        (AdamWSettings(lr=0.1, weight_decay=0.05, decay="normalized"), 0.05),
    ],
)
def test_a_plan_carries_the_decay_by_its_convention(settings, expected: float) -> None:
    planned = planned_optimizer(settings, 32, 128, 0.2)
    assert (planned.lr, planned.weight_decay) == (0.2, pytest.approx(expected))


def test_recipes_say_what_their_decay_is_elsewhere() -> None:
    def said(optimizer, **changes) -> str:
        return "; ".join(conventions(Recipe(optimizer=optimizer, **changes))[1:])

    adamw = AdamWSettings(lr=1e-3, weight_decay=0.05, decay="normalized")
    told = said(adamw, duration=updates(40_000))
    assert "n = 40000 updates" in told
    assert "weight_decay 0.00025;" in told
    assert told.endswith("torch's AdamW does the same with weight_decay 0.25")
    assert said(adamw).endswith("torch's AdamW does the same with weight_decay 50 / sqrt(n)")
    restarting = Schedules(lr=SGDR(first_cycle=updates(100)))
    assert said(adamw, duration=updates(400), schedules=restarting).endswith("50 / sqrt(n)")
    plain = AdamWSettings(lr=1e-3, weight_decay=0.25)
    assert said(plain) == 'decay = "decoupled" does the same with weight_decay 0.00025'
    decoupled = AdamWSettings(lr=1e-3, weight_decay=2.5e-4, decay="decoupled")
    assert said(decoupled) == "torch's AdamW does the same with weight_decay 0.25"
    sgdw = SGDWSettings(lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert said(sgdw) == "torch's SGD shrinks as much in the long run with weight_decay 0.0005"
    sgd = SGDSettings(lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert said(sgd).endswith("SGDW shrinks as much with decoupled weight_decay 0.0005")
    assert said(SGDSettings(lr=0.1)) == ""


def test_the_laws_of_these_conversions_are_of_tensors_too() -> None:
    """The factor that torch's AdamW applies is the paper's, for any schedule factor."""
    weight: Tensor = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    lam, alpha = 3e-3, 0.02
    adamw = torch.optim.AdamW([weight], lr=alpha, weight_decay=torch_decay("decoupled", lam, alpha))
    expected = 2.0
    for eta in (1.0, 0.37, 0.0, 0.81):
        adamw.param_groups[0]["lr"] = eta * alpha
        weight.grad = torch.zeros_like(weight)
        adamw.step()
        expected *= 1.0 - eta * lam
    assert weight.tolist() == pytest.approx([expected] * 3, rel=1e-14)


@pytest.mark.parametrize("kind", [SGDWSettings, AdamWSettings])
def test_records_and_preview_show_the_stated_decay(kind) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    task = Task(build_model=lambda: torch.nn.Linear(3, 2), train=(inputs, torch.arange(40) % 2))
    recipe = Recipe(
        optimizer=kind(lr=0.01, weight_decay=0.05, decay="normalized"),
        batch_size=8,
        duration=epochs(2),
        schedules=Schedules(lr=SGDR(first_cycle=updates(3)), weight_decay=Linear(end=0.5)),
        records=RecordSettings(log_every=1),
    )
    with Training(task, recipe) as training:
        records = [record for record in training if isinstance(record, StepRecord)]
    rows = preview(recipe, records[-1].examples // 2)
    assert len(rows) == len(records) > 6
    for row, record in zip(rows, records, strict=True):
        assert (row.lr, row.weight_decay) == (record.lr, record.weight_decay)
