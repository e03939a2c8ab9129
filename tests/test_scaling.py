"""Settings carried to another batch size, and from mean to summed losses, by arithmetic alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anybatch.commands.recipe import conventions
from anybatch.errors import InputError
from anybatch.preview import preview
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdaptiveBatchSize,
    AdditiveNoise,
    BlockSettings,
    ClipGlobalNorm,
    GradientPenalty,
    LAMBSettings,
    LARSSettings,
    LossSettings,
    MultiplicativeNoise,
    MuonSettings,
    NormalizeGradient,
    OptimizerSettings,
    Recipe,
    ReduceOnPlateauSettings,
    RMSpropWarmupSettings,
    ScalingRule,
    Schedules,
    SGDSettings,
    SGDWSettings,
)
from anybatch.recipe_file import load_recipe
from anybatch.scaling import scaled_recipe, scaling_sentences, with_reduction
from anybatch.schedules import Linear, MultiStep, epochs

SGD = SGDSettings(lr=0.1, momentum=0.9, weight_decay=1e-4)
DECAYED = {"lr": 0.1, "weight_decay": 0.02}
OPTIMIZERS: dict[str, OptimizerSettings] = {
    "sgd": SGD,
    "sgdw coupled": SGDWSettings(decay="coupled", **DECAYED),
    "sgdw": SGDWSettings(decay="decoupled", **DECAYED),
    "adam": AdamSettings(**DECAYED),
    "adamw": AdamWSettings(**DECAYED),
    "lars": LARSSettings(epsilon=1e-5, **DECAYED),
    "lamb": LAMBSettings(**DECAYED),
    "rmsprop-warmup": RMSpropWarmupSettings(**DECAYED),
}


def recipe(optimizer: OptimizerSettings = SGD, size: Any = 1024, **rule: Any) -> Recipe:
    scaling = ScalingRule(**({"base_batch_size": 256} | rule))
    return Recipe(optimizer=optimizer, batch_size=size, scaling=scaling)


def scaled(optimizer: OptimizerSettings = SGD, size: Any = 1024, **rule: Any) -> Any:
    return scaled_recipe(recipe(optimizer, size, **rule), None).optimizer


# --- another batch size -------------------------------------------------------------------------


def test_the_rules_of_sgd_by_hand() -> None:
    assert scaled(lr="linear") == replace(SGD, lr=0.4)
    assert scaled(lr="square-root") == replace(SGD, lr=0.2)
    assert scaled(lr="constant") == SGD
    # eps_max / (1 + 512 / B) = 0.1 at B = 256: eps_max = 0.3, and 0.3 / 1.5 at B = 1024.
    assert scaled(lr="noise-scale", noise_scale=512.0).lr == pytest.approx(0.2)


def test_without_a_rule_and_at_its_own_size_a_recipe_stays_as_it_is() -> None:
    plain = replace(recipe(), scaling=None)
    assert scaled_recipe(plain, None) is plain
    own = AdamSettings(lr=0.1, beta1=0.7)  # 1 - (1 - 0.7) is not 0.7 in binary numbers
    assert scaled(own, 256, lr="square-root") == own
    assert scaled_recipe(recipe(), None).scaling is None


def test_the_full_batch_is_the_whole_set() -> None:
    assert scaled_recipe(recipe(size="full"), 50_000).optimizer.lr == pytest.approx(19.53125)
    with pytest.raises(InputError, match="must be a number for a stream"):
        scaled_recipe(recipe(size="full"), None)


def test_adam_under_the_square_root_rule_reaches_over_as_many_examples() -> None:
    for kind in (AdamSettings, AdamWSettings):
        found = scaled(kind(lr=0.1, epsilon=1e-8, weight_decay=0.3), lr="square-root")
        assert (found.lr, found.epsilon, found.weight_decay) == (0.2, 5e-9, 0.3)
        assert found.beta1 == pytest.approx(0.6)
        assert found.beta2 == pytest.approx(0.996)
        linear = scaled(kind(lr=0.1), lr="linear")
        assert linear == kind(lr=0.4)


def test_where_the_rule_of_adam_ends_it_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"beta1 must satisfy 10 \(1 - beta1\) < 1") as caught:
        scaled(AdamSettings(lr=0.1), 2560, lr="square-root")
    assert "\n" not in str(caught.value)


def test_rules_of_other_updates_move_every_lr_and_nothing_else() -> None:
    muon = scaled(MuonSettings(lr=0.02, adamw_lr=3e-4), lr="square-root")
    assert muon == MuonSettings(lr=0.04, adamw_lr=6e-4)
    warm = scaled(RMSpropWarmupSettings(lr=0.1, rms_lr=3e-4), lr="linear")
    assert warm == RMSpropWarmupSettings(lr=0.4, rms_lr=1.2e-3)
    assert scaled(LAMBSettings(lr=0.01), lr="square-root") == LAMBSettings(lr=0.02)
    noise = scaled(LARSSettings(lr=0.1), lr="noise-scale", noise_scale=512.0)
    assert noise.lr == pytest.approx(0.1 * math.sqrt(2.0))  # steps divided by the gradient's size


@given(
    momentum=st.floats(0.0, 0.99),
    base=st.integers(1, 4096),
    size=st.integers(1, 4096),
    rule=st.sampled_from(["constant", "square-root"]),
)
def test_the_noise_of_momentum_is_kept(momentum: float, base: int, size: int, rule: str) -> None:
    before = SGDSettings(lr=0.1, momentum=momentum)

    def noise(settings: Any, batch_size: int) -> float:
        return float(settings.lr / (batch_size * (1.0 - settings.momentum)))

    changes = {"base_batch_size": base, "lr": rule, "momentum": "constant-noise"}
    kept = 1.0 - (1.0 - momentum) * (base / size) ** (1.0 if rule == "constant" else 0.5)
    if kept < -1e-12:
        with pytest.raises(InputError, match=r"must stay in \[0, 1\)"):
            scaled(before, size, **changes)
        return
    assume(kept > 1e-12 or size == base)
    after = scaled(before, size, **changes)
    assert noise(after, size) == pytest.approx(noise(before, base))
    assert after.momentum >= momentum or size < base  # it rises with the batch


def test_momentum_by_batch_size_by_hand() -> None:
    kept = {"lr": "constant", "momentum": "constant-noise"}
    assert scaled(SGD, 512, **kept).momentum == pytest.approx(0.95)
    assert scaled(SGDWSettings(lr=0.1), 64, **kept).momentum == pytest.approx(0.6)
    with pytest.raises(InputError, match=r"optimizer.momentum must stay in \[0, 1\) .* got -0.6"):
        scaled(SGD, 16, **kept)
    with pytest.raises(InputError, match='must be "kept" under adam'):
        scaled(AdamSettings(lr=0.1), **kept)
    with pytest.raises(InputError, match='must be "kept" under the linear rule'):
        scaled(SGD, lr="linear", momentum="constant-noise")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["linear", "square-root"])
def test_a_summed_loss_is_carried_as_the_mean_that_it_means(name: str, rule: str) -> None:
    mean = recipe(OPTIMIZERS[name], lr=rule)
    at_base = replace(mean, scaling=None, batch_size=256)
    summed = with_reduction(at_base, "sum", 256)
    carried = scaled_recipe(replace(summed, scaling=mean.scaling, batch_size=1024), None)
    expected = with_reduction(scaled_recipe(mean, None), "sum", 1024)
    for field in type(expected.optimizer).__dataclass_fields__:
        value, wanted = getattr(carried.optimizer, field), getattr(expected.optimizer, field)
        assert value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)
    if rule == "linear" and name == "sgd":
        assert carried.optimizer.lr == pytest.approx(summed.optimizer.lr)  # it acts per example


def test_what_a_rule_gives_is_told_with_its_paper() -> None:
    (told,) = scaling_sentences(recipe(AdamSettings(lr=0.1), lr="square-root"))
    assert told == (
        "from batch size 256 to 1024: lr 0.1 -> 0.2, beta1 0.9 -> 0.6, beta2 0.999 -> 0.996, "
        "epsilon 1e-08 -> 5e-09 (square-root rule: Malladi et al. 2022)"
    )
    (told,) = scaling_sentences(recipe(SGD, 512, lr="constant", momentum="constant-noise"))
    assert "momentum 0.9 -> 0.95" in told
    assert "Smith, Le 2018" in told
    (told,) = scaling_sentences(recipe(size="full"))
    assert told.startswith("settings of batch size 256 are carried to the whole set (linear rule")
    assert scaling_sentences(replace(recipe(), scaling=None)) == []
    assert "every setting stays" in scaling_sentences(recipe(lr="constant"))[0]
    assert any("lr 0.1 -> 0.4" in sentence for sentence in conventions(recipe()))


def test_warmup_from_the_lr_of_a_single_worker() -> None:
    """Goyal et al. 2017: 0.1 k n / 256 after 5 epochs that begin at 0.1 of one worker (k = 32)."""
    lines = [
        "optimizer={name='sgd',lr=0.1,momentum=0.9,nesterov=true,weight_decay=1e-4}",
        "batch_size=8192",
        "duration='90 epochs'",
        "scaling={base_batch_size=256,lr='linear'}",
        "schedules.lr={name='warmup',duration='5 epochs',start=0.03125,"
        "into={name='multistep',milestones=['25 epochs','55 epochs','75 epochs'],factor=0.1}}",
    ]
    goyal = load_recipe("default", lines)
    rows = preview(goyal, 81_920)  # ten updates an epoch
    assert rows[0].lr == pytest.approx(0.1)
    assert [rows[50 * n].lr for n in (0, 1)] == [pytest.approx(0.1), pytest.approx(3.2)]
    rise = [late.lr - early.lr for early, late in itertools.pairwise(rows[:51])]
    assert max(rise) == pytest.approx(min(rise))  # gradual: by a constant amount each update
    ends = [rows[10 * epoch - 1].lr for epoch in (30, 60, 80, 90)]
    assert ends == pytest.approx([3.2, 0.32, 0.032, 0.0032])
    assert [rows[10 * epoch].lr for epoch in (30, 60, 80)] == pytest.approx([0.32, 0.032, 0.0032])


# --- mean and sum -------------------------------------------------------------------------------


def test_mean_and_sum_by_hand() -> None:
    def summed(optimizer: OptimizerSettings) -> Any:
        return with_reduction(Recipe(optimizer=optimizer, batch_size=4), "sum", 4).optimizer

    assert summed(SGD) == replace(SGD, lr=0.025, weight_decay=4e-4)
    assert summed(SGDWSettings(lr=0.1, weight_decay=0.1)) == SGDWSettings(
        lr=0.025, weight_decay=0.1
    )
    coupled = SGDWSettings(lr=0.1, weight_decay=0.1, decay="coupled")
    assert summed(coupled) == replace(coupled, lr=0.025, weight_decay=0.4)
    assert summed(AdamSettings(lr=0.1, weight_decay=0.1)) == AdamSettings(
        lr=0.1, weight_decay=0.4, epsilon=4e-8
    )
    assert summed(AdamWSettings(lr=0.1)) == AdamWSettings(lr=0.1, epsilon=4e-8)
    assert summed(LAMBSettings(lr=0.1)) == LAMBSettings(lr=0.1, epsilon=4e-6)
    lars = LARSSettings(lr=0.1, weight_decay=0.1, epsilon=1e-5, trust=0.001, max_ratio=10.0)
    assert summed(lars) == replace(lars, lr=0.025, weight_decay=0.4, epsilon=4e-5, trust=0.004)
    rms = RMSpropWarmupSettings(lr=0.1, weight_decay=0.1)
    assert summed(rms) == replace(rms, lr=0.025, weight_decay=0.4, epsilon=4e-8)


def test_what_is_in_units_of_the_gradient_or_of_lr_follows() -> None:
    mean = Recipe(
        optimizer=SGD,
        batch_size=4,
        gradient=(
            ClipGlobalNorm(max_norm=1.0),
            NormalizeGradient(norm=2.0),
            AdditiveNoise(std=0.5),
            MultiplicativeNoise(std=0.1),
        ),
        plateau=ReduceOnPlateauSettings(min_lr=0.01, eps=1e-4),
        blocks=BlockSettings(size=2, penalty=GradientPenalty(coefficient=0.25), clip_norm=1.0),
    )
    found = with_reduction(mean, "sum", 4)
    assert found.gradient == (
        ClipGlobalNorm(max_norm=4.0),
        NormalizeGradient(norm=8.0),
        AdditiveNoise(std=2.0),
        MultiplicativeNoise(std=0.1),
    )
    assert found.plateau == replace(mean.plateau, min_lr=0.0025, eps=2.5e-5)  # type: ignore[type-var]
    assert found.blocks == BlockSettings(  # a block's own gradient stays that of its mean
        size=2, penalty=GradientPenalty(coefficient=1.0), clip_norm=1.0
    )
    adam = with_reduction(replace(mean, optimizer=AdamSettings(lr=0.1)), "sum", 4)
    assert adam.plateau == mean.plateau
    assert adam.blocks == mean.blocks
    fixed = BlockSettings(size=2, penalty=GradientPenalty(coefficient=0.25, unit="absolute"))
    assert with_reduction(replace(mean, blocks=fixed), "sum", 4).blocks == fixed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_and_back_is_as_before(name: str) -> None:
    mean = Recipe(optimizer=OPTIMIZERS[name], batch_size=64)
    summed = with_reduction(mean, "sum", 64)
    assert summed.loss.reduction == "sum"
    assert with_reduction(summed, "sum", 64) is summed
    assert with_reduction(summed, "mean", 64) == mean


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": MuonSettings(lr=0.1)}, "must be one that a mean and a sum can serve alike"),
        ({"scaling": ScalingRule(base_batch_size=2)}, "scaling must be applied before"),
        ({"schedules": Schedules(batch_size=Linear(start=1.0, end=2.0))}, "must be constant"),
        ({"batch_control": AdaptiveBatchSize()}, "must be constant"),
        ({"batch_size": 8}, "must be the recipe's, 8"),
    ],
)
def test_what_no_single_lr_stands_for_is_refused(changes: dict[str, Any], message: str) -> None:
    refused = replace(Recipe(optimizer=SGD, batch_size=4), **changes)
    with pytest.raises(InputError, match=message):
        with_reduction(refused, "sum", 4)


def test_reductions_that_are_none() -> None:
    with pytest.raises(InputError, match="must be mean or sum"):
        with_reduction(Recipe(optimizer=SGD), "max", 128)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size must be >= 1"):
        with_reduction(Recipe(optimizer=SGD, batch_size="full"), "sum", 0)


def test_recipe_show_says_what_a_sum_means() -> None:
    sums = LossSettings(reduction="sum")
    adam = Recipe(optimizer=AdamSettings(lr=0.1, epsilon=4e-8), batch_size=4, loss=sums)
    assert any("epsilon 1e-08" in sentence for sentence in conventions(adam))
    sgd = Recipe(optimizer=SGDSettings(lr=0.1, weight_decay=0.4), batch_size=4, loss=sums)
    assert any("lr 0.4, weight_decay 0.1" in sentence for sentence in conventions(sgd))
    muon = Recipe(optimizer=MuonSettings(lr=0.1), batch_size=4, loss=sums)
    assert conventions(muon)


def test_growing_the_batch_at_milestones_is_a_schedule() -> None:
    """Smith et al. 2018: the batch grows where the lr would fall; lr stays."""
    stages = MultiStep(milestones=(epochs(2), epochs(4)), factor=5.0)
    grown = Recipe(
        optimizer=SGD, batch_size=8, duration=epochs(6), schedules=Schedules(batch_size=stages)
    )
    rows = preview(grown, 400)
    sizes = {int(row.epoch): row.batch_size for row in rows if row.epoch != int(row.epoch)}
    assert sizes == {0: 8, 1: 8, 2: 40, 3: 40, 4: 200, 5: 200}
    assert {row.lr for row in rows} == {0.1}
