"""Learning-rate rules: closed forms, invariances, refusals, published tables, the check."""

from __future__ import annotations

import math

import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic.lr_rules import (
    LR_RULES,
    AdamAverages,
    LRRule,
    carried_adam_averages,
    carried_lr,
    carried_weight_decay,
    default_alpha,
    lr_table,
    paper_of,
    rule_that_held,
    warmup_in_examples,
)
from anybatch.schedules import Clock, Warmup, epochs, fraction, resolve_schedule, updates

# Effective lr of the best trial, ResNet-8 on CIFAR-10 with Nesterov momentum: log2 lr by log2 B,
# read off figure 8c of Shallue et al. 2019 (+- 0.15).
SHALLUE = {1: -6.5, 2: -5.9, 3: -3.6, 4: -3.3, 5: -1.9, 6: -0.4, 7: -0.1}
SHALLUE |= {8: 0.7, 9: -0.1, 10: 0.6, 11: -0.3, 12: 1.0, 13: -0.1}


def measured(table: dict[int, float], spread: float) -> list[tuple[float, float, float, float]]:
    """With 95 % intervals of a standard error of `spread` octaves."""
    half = 1.96 * spread
    return [(2.0**b, 2.0 ** (lr - half), 2.0**lr, 2.0 ** (lr + half)) for b, lr in table.items()]


# --- carrying -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LR_RULES)
def test_carried_there_and_back_is_as_before(rule: LRRule) -> None:
    there = carried_lr(rule, 0.3, 64, 1000, noise_scale=500.0, alpha=0.7)
    assert carried_lr(rule, there, 1000, 64, noise_scale=500.0, alpha=0.7) == pytest.approx(0.3)
    between = carried_lr(rule, 0.3, 64, 200, noise_scale=500.0, alpha=0.7)
    onward = carried_lr(rule, between, 200, 1000, noise_scale=500.0, alpha=0.7)
    assert onward == pytest.approx(there)
    assert carried_lr(rule, 0.3, 64, 64, noise_scale=500.0) == 0.3
    assert paper_of(rule)


def test_the_linear_rule_of_the_full_batch_article() -> None:
    """Its baseline has lr 0.1 at batch 128; all 50,000 examples would take 39."""
    assert int(carried_lr("linear", 0.1, 128, 50_000)) == 39
    assert carried_lr("square-root", 0.1, 128, 50_000) == pytest.approx(1.976, abs=1e-3)


def test_the_noise_scale_rule_is_linear_below_and_constant_above() -> None:
    assert carried_lr("noise-scale", 0.1, 1, 4, noise_scale=1e6) == pytest.approx(0.4, rel=1e-4)
    assert carried_lr("noise-scale", 0.1, 1e6, 4e6, noise_scale=1.0) == pytest.approx(0.1, rel=1e-4)
    half = carried_lr("noise-scale", 0.1, 1, 4, noise_scale=1e6, alpha=0.5)
    assert half == pytest.approx(carried_lr("square-root", 0.1, 1, 4), rel=1e-4)
    assert (default_alpha("sgd"), default_alpha("adamw")) == (1.0, 0.5)


def test_the_noise_scale_rule_of_a_published_fit() -> None:
    """SVHN, McCandlish et al. 2018: lr = 0.27 B / (96 + B)."""
    known = 0.27 * 32 / (96 + 32)
    for size in (4, 96, 4096):
        found = carried_lr("noise-scale", known, 32, size, noise_scale=96.0)
        assert found == pytest.approx(0.27 * size / (96 + size))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("linear", 0.0, 1, 1), "lr must be > 0"),
        (("linear", 0.1, 0, 1), "batch_size must be > 0"),
        (("noise-scale", 0.1, 1, 2), "noise_scale must be given"),
        (("cubic", 0.1, 1, 2), "rule must be one of: linear, square-root, noise-scale, constant"),
    ],
)
def test_what_cannot_be_carried(arguments: tuple[LRRule, float, int, int], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        carried_lr(*arguments)
    with pytest.raises(InputError, match="alpha must be in"):
        carried_lr("noise-scale", 0.1, 1, 2, noise_scale=5.0, alpha=1.5)


# --- the table ----------------------------------------------------------------------------------


def test_the_linear_rule_is_refused_at_the_full_batch() -> None:
    rows = lr_table(0.1, 128, [128, 512], num_examples=50_000, noise_scale=900.0, edge=0.8)
    found = {(row.rule, row.batch_size): row for row in rows}
    assert len(rows) == 4 * 3
    full = found["linear", 50_000]
    assert full.lr == 39.0625
    assert full.refused == (
        "0.1 x 50,000 / 128 = 39.1: 48.8 times the largest lr that still learns, 0.8"
    )
    assert found["linear", 512].refused == ""
    assert found["noise-scale", 50_000].refused == ""
    assert [row.refused for row in rows if row.rule == "constant"] == ["", "", ""]


def test_rules_of_noise_end_at_the_noise_scale() -> None:
    rows = lr_table(0.1, 128, [2000], num_examples=50_000, noise_scale=900.0)
    found = {(row.rule, row.batch_size): row.refused for row in rows}
    for rule in ("linear", "square-root"):
        assert "below the noise scale of 900 examples, not at 2,000" in found[rule, 2000]
        assert "the full batch has no noise" in found[rule, 50_000]
    down = lr_table(0.1, 2000, [128], num_examples=50_000, noise_scale=900.0)
    assert "not at 2,000" in down[0].refused  # the known lr is the one out of the domain
    unmeasured = lr_table(0.1, 128, [256], num_examples=1000)
    assert [row.lr for row in unmeasured if row.rule == "noise-scale"] == [None, None]
    assert not unmeasured[0].refused
    with pytest.raises(InputError, match="must be <= the 100 examples"):
        lr_table(0.1, 128, [256], num_examples=100)


# --- which one held -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "power"), [("linear", 1.0), ("square-root", 0.5), ("constant", 0.0)]
)
def test_a_power_law_is_recognized(rule: str, power: float) -> None:
    check = rule_that_held(measured({b: power * b for b in (3, 5, 7, 9)}, 0.2))
    assert check.resolved
    assert check.held[0] == rule
    assert check.exponent == pytest.approx(power)
    assert check.exponent_low < power < check.exponent_high
    assert check.verdict.startswith(f"{rule} held")


def test_a_noise_scale_is_recognized_and_measured() -> None:
    table = {b: -math.log2(1 + 200 / 2.0**b) for b in range(2, 14)}
    check = rule_that_held(measured(table, 0.15))
    assert check.held == ("noise-scale",)
    assert check.resolved
    (scale,) = [fit.noise_scale for fit in check.fits if fit.noise_scale]
    assert 150 < scale < 270


def test_published_learning_rates_follow_the_noise_scale_and_not_the_linear_rule() -> None:
    check = rule_that_held(measured(SHALLUE, 0.6))
    assert check.held == ("noise-scale",)
    (scale,) = [fit.noise_scale for fit in check.fits if fit.noise_scale]
    assert 50 < scale < 500
    below = rule_that_held(measured({b: lr for b, lr in SHALLUE.items() if b <= 6}, 0.6))
    assert "linear" in below.held
    assert "constant" not in below.held


def test_what_intervals_cannot_tell_apart_is_not_resolved() -> None:
    check = rule_that_held(measured({4: 0.0, 5: 0.7}, 0.7))
    assert not check.resolved
    assert set(check.held) == {"linear", "square-root", "constant"}
    assert check.verdict.startswith("not resolved")
    assert all(fit.rule != "noise-scale" for fit in check.fits)  # two sizes fit any


def test_no_rule_may_hold() -> None:
    check = rule_that_held(measured({4: 0.0, 6: -2.0, 8: -4.0}, 0.1))
    assert check.held == ()
    assert check.verdict.startswith("no rule held: measured lr ~ B^-1.00")


def test_measured_learning_rates_that_are_none() -> None:
    with pytest.raises(InputError, match="at least two batch sizes"):
        rule_that_held([(8, 0.1, 0.2, 0.3), (8, 0.1, 0.2, 0.3)])
    with pytest.raises(InputError, match="low <= lr <= high"):
        rule_that_held([(8, 0.3, 0.2, 0.4), (16, 0.1, 0.2, 0.3)])


# --- what travels with the learning rate --------------------------------------------------------


@pytest.mark.parametrize("convention", ["coupled", "decoupled"])
@pytest.mark.parametrize("rule", ["linear", "square-root"])
def test_the_decay_of_an_epoch_is_kept(convention: str, rule: LRRule) -> None:
    lr = carried_lr(rule, 0.1, 128, 1024)
    decay = carried_weight_decay(convention, 5e-4, 0.1, 128, lr, 1024)  # type: ignore[arg-type]
    per_epoch = [
        lr_ * decay_ * 50_000 / size for lr_, decay_, size in ((0.1, 5e-4, 128), (lr, decay, 1024))
    ]
    assert per_epoch[1] == pytest.approx(per_epoch[0])
    if rule == "linear":
        assert decay == pytest.approx(5e-4)


def test_the_normalized_decay_of_its_paper() -> None:
    """lambda = lambda_norm sqrt(b / (B T)): 0.05, batch 128, 50,000 examples, 100 epochs."""

    def normalized(size: int, num_epochs: float) -> float:
        return 0.05 * math.sqrt(size / (50_000 * num_epochs))

    assert normalized(128, 100) == pytest.approx(2.53e-4, rel=1e-3)
    torch_decay = normalized(128, 100) / 1e-3
    assert torch_decay == pytest.approx(0.253, rel=1e-3)
    new = carried_weight_decay("normalized", torch_decay, 1e-3, 128, 2e-3, 512, examples_ratio=0.3)
    assert new * 2e-3 == pytest.approx(normalized(512, 30))
    full = carried_weight_decay(
        "normalized", torch_decay, 1e-3, 128, 1e-3, 50_000, examples_ratio=30.0
    )
    assert full * 1e-3 == pytest.approx(9.1e-4, rel=5e-3)  # 3,000 updates of the full batch


def test_decays_that_are_none() -> None:
    with pytest.raises(InputError, match="weight_decay must be >= 0"):
        carried_weight_decay("coupled", -1.0, 0.1, 1, 0.1, 2)
    with pytest.raises(InputError, match="convention must be"):
        carried_weight_decay("l1", 0.1, 0.1, 1, 0.1, 2)  # type: ignore[arg-type]


def test_adam_averages_reach_over_as_many_examples() -> None:
    adam = AdamAverages(beta1=0.9, beta2=0.999, epsilon=1e-8)
    carried = carried_adam_averages(adam, 32, 128)
    for old, new in ((adam.beta1, carried.beta1), (adam.beta2, carried.beta2)):
        assert 128 / (1 - new) == pytest.approx(32 / (1 - old))  # examples
    assert carried.epsilon == pytest.approx(5e-9)
    smaller = carried_adam_averages(carried, 128, 32)
    assert smaller.beta2 == pytest.approx(0.999)
    with pytest.raises(InputError, match=r"beta1 must satisfy 10 \(1 - beta1\) < 1"):
        carried_adam_averages(adam, 32, 320)


@pytest.mark.parametrize("length", [updates(50), epochs(1.6), fraction(0.16)])
def test_a_warmup_in_examples_survives_a_change_of_the_batch(length: object) -> None:
    before = Clock(examples_per_epoch=1000, batch_size=20, total_examples=10_000)
    after = Clock(examples_per_epoch=1000, batch_size=125, total_examples=10_000)
    told = warmup_in_examples(length, before)  # type: ignore[arg-type]
    assert told.unit == "examples"
    schedules = [resolve_schedule(Warmup(duration=told), clock)(0.05) for clock in (before, after)]
    assert schedules[0] == schedules[1] == pytest.approx(0.05 / (told.count / 10_000))
