"""What is trained under a scaling rule, under mean and sum, and under a stepped batch size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.preview import preview
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdditiveNoise,
    ClipGlobalNorm,
    LAMBSettings,
    LARSSettings,
    NormalizeGradient,
    OptimizerSettings,
    Recipe,
    RMSpropWarmupSettings,
    ScalingRule,
    Schedules,
    SGDSettings,
    SGDWSettings,
)
from anybatch.scaling import with_reduction
from anybatch.schedules import MultiStep, Step, epochs, updates
from anybatch.training.loop import fit, resume
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
SIZE = 10  # of 70 examples: no update of an epoch is short


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def training_of(recipe: Recipe) -> Training:
    return Training(cases.make_task("mlp", normalized=False), recipe, world=ONE)


def weights_after(recipe: Recipe, num_updates: int = 5) -> list[Tensor]:
    """All weights as one vector, before the first update and after each."""
    training = training_of(recipe)
    training.one_step.train_mode()
    seen = []
    for _ in range(num_updates + 1):
        seen.append(nn.utils.parameters_to_vector(training.model.parameters()).detach().clone())
        training.step()
    return seen


# --- another batch size -------------------------------------------------------------------------


def test_the_scaled_settings_are_trained_and_the_written_ones_are_kept(tmp_path: Path) -> None:
    rule = ScalingRule(base_batch_size=4, lr="square-root")
    written = cases.make_recipe("adamw", None, scaling=rule, duration=updates(20))
    training = training_of(written)
    (group,) = training.optimizer.param_groups
    assert group["lr"] == pytest.approx(2 * 3e-3)
    assert group["betas"] == pytest.approx((0.6, 0.996))
    assert group["eps"] == pytest.approx(5e-9)
    assert training.recipe == written
    assert training.scaled_recipe.scaling is None
    run = fit(
        cases.make_task("mlp", False), written, out=tmp_path / "run", world=ONE, progress=False
    )
    assert run.recipe == written
    assert {record.lr for record in run.steps()} == {group["lr"]}
    by_hand = replace(training.scaled_recipe, duration=updates(20))
    cases.assert_same(
        cases.train("mlp", written, ONE), cases.train("mlp", by_hand, ONE), tolerance=0.0
    )


def test_a_schedule_multiplies_the_scaled_settings_and_a_preview_knows_them() -> None:
    written = cases.make_recipe(
        "sgd", None, duration=epochs(4), scaling=ScalingRule(base_batch_size=8),
        schedules=Schedules(lr=Step(every=epochs(2), factor=0.1)),
    )  # fmt: skip
    records = [
        r for r in training_of(replace(written, records=_every_update())) if hasattr(r, "lr")
    ]
    rows = preview(written, 70)
    assert [record.lr for record in records] == [row.lr for row in rows]
    assert sorted({row.lr for row in rows}) == pytest.approx([0.01, 0.1])


def test_a_run_under_a_rule_is_extended_to_the_same_numbers(tmp_path: Path) -> None:
    rule = ScalingRule(base_batch_size=32, lr="constant", momentum="constant-noise")
    written = cases.make_recipe("sgd", None, scaling=rule, batch_size=64, duration=epochs(4))
    task = cases.make_task("mlp", False)
    run = fit(task, written, out=tmp_path / "run", progress=False)
    assert {record.momentum for record in run.steps()} == {0.95}
    longer = resume(run.path, task=cases.make_task("mlp", False), extend=epochs(2), progress=False)
    whole = fit(
        cases.make_task("mlp", False), replace(written, duration=epochs(6)),
        out=tmp_path / "whole", progress=False,
    )  # fmt: skip
    last = [list(found.evals())[-1] for found in (longer, whole)]
    assert last[0].update == last[1].update == 12
    assert (last[0].loss, last[0].metric) == (last[1].loss, last[1].metric)


def _every_update() -> Any:
    return replace(cases.make_recipe("sgd", None).records, log_every=1)


# --- mean and sum -------------------------------------------------------------------------------

OPTIMIZERS: dict[str, OptimizerSettings] = {
    "sgd": SGDSettings(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgdw": SGDWSettings(lr=0.05, weight_decay=0.01),
    "sgdw coupled": SGDWSettings(lr=0.05, weight_decay=0.01, decay="coupled"),
    "sgdw normalized": SGDWSettings(lr=0.05, weight_decay=0.05, decay="normalized"),
    "adam": AdamSettings(lr=0.01, weight_decay=0.01, epsilon=1e-3),
    "adamw": AdamWSettings(lr=0.01, weight_decay=0.1, epsilon=1e-3),
    "adamw normalized": AdamWSettings(lr=0.01, weight_decay=0.1, decay="normalized"),
    "lars": LARSSettings(lr=1.0, weight_decay=0.01, epsilon=1e-3, trust=0.01),
    "lars unscaled": LARSSettings(lr=1.0, weight_decay=0.01, buffer="unscaled", max_ratio=0.01),
    "lamb": LAMBSettings(lr=0.01, weight_decay=0.1, epsilon=1e-3),
    "rmsprop-warmup": RMSpropWarmupSettings(
        lr=0.05, weight_decay=0.01, epsilon=1e-3, center=epochs(0.5), width=epochs(1)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mean_and_sum_make_the_same_updates(name: str) -> None:
    mean = replace(cases.make_recipe("sgd", None), optimizer=OPTIMIZERS[name], batch_size=SIZE)
    summed = with_reduction(mean, "sum", SIZE)
    assert summed.optimizer != mean.optimizer
    traces = weights_after(mean), weights_after(summed)
    for one, other in zip(*traces, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)
    assert float((traces[0][-1] - traces[0][0]).norm()) > 1e-3
    unconverted = replace(mean, loss=summed.loss)
    assert float((weights_after(unconverted)[-1] - traces[0][-1]).norm()) > 1e-6


@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [
        (NormalizeGradient(norm=0.5), 1e-12),
        (AdditiveNoise(std=0.1), 1e-12),
        (ClipGlobalNorm(max_norm=0.1), 1e-4),  # torch adds 1e-6 to the norm, whichever it is
    ],
)
def test_transforms_of_the_sum_are_those_of_the_mean(transform: Any, tolerance: float) -> None:
    mean = cases.make_recipe("sgd", None, batch_size=SIZE, gradient=(transform,))
    one, other = weights_after(mean), weights_after(with_reduction(mean, "sum", SIZE))
    moved = float((one[-1] - one[0]).norm())
    assert float((one[-1] - other[-1]).norm()) <= tolerance * moved
    assert moved > 1e-3


def test_in_a_short_last_batch_an_example_of_a_sum_counts_as_in_any_other() -> None:
    """70 = 4 x 16 + 6: the fifth update moves by 6 / 16 of what the mean's does."""
    mean = replace(cases.make_recipe("sgd", None), optimizer=SGDSettings(lr=0.05), batch_size=16)
    one, other = weights_after(mean), weights_after(with_reduction(mean, "sum", 16))
    torch.testing.assert_close(one[4], other[4], rtol=1e-12, atol=1e-13)
    steps = one[5] - one[4], other[5] - other[4]
    torch.testing.assert_close(steps[1], steps[0] * 6 / 16, rtol=1e-9, atol=1e-13)


# --- a stepped batch size -----------------------------------------------------------------------

STAGES = Schedules(batch_size=MultiStep(milestones=(epochs(2), epochs(4)), factor=2.5))


@pytest.mark.parametrize("ghost", [None, 2])
@pytest.mark.parametrize("micro", [2, 6, 100])
def test_a_stepped_batch_size_by_micro_batches_is_the_undivided_one(
    ghost: int | None, micro: int
) -> None:
    stepped = cases.make_recipe("adamw", ghost, batch_size=8, duration=epochs(6), schedules=STAGES)
    divided = cases.train("cnn", replace(stepped, micro_batch_size=micro), ONE)
    whole = cases.train("cnn", stepped, ONE)
    cases.assert_same(divided, whole)
    sizes = [r["batch_size"] for r in whole["records"] if "batch_size" in r]
    assert {8, 20, 50} <= {*sizes, 50}


def test_a_run_in_the_middle_of_a_stage_is_resumed_bit_for_bit() -> None:
    stepped = cases.make_recipe("sgd", None, batch_size=8, duration=epochs(6), schedules=STAGES)
    task = cases.make_task("mlp", normalized=False)
    whole = Training(task, stepped, world=ONE)
    every = list(whole)
    for num_records in range(1, 5):
        first = Training(cases.make_task("mlp", normalized=False), stepped, world=ONE)
        head = list(islice(first.rounds(), num_records))
        second = Training(cases.make_task("mlp", normalized=False), stepped, world=ONE)
        second.load_state_dict(first.state_dict())
        rest = list(second)
        assert len(rest) + sum(map(len, head)) == len(every)
        cases.assert_same(cases.plain(second, []), cases.plain(whole, []), tolerance=0.0)
        sizes = [r.batch_size for r in every if hasattr(r, "batch_size")]
        assert [r.batch_size for r in rest if hasattr(r, "batch_size")] == sizes[
            len(sizes) - sum(hasattr(r, "batch_size") for r in rest) :
        ]


def test_the_lr_of_a_stepped_batch_size_is_its_own_schedule() -> None:
    """Smith et al. 2018: first the batch grows at a constant lr, then the lr falls."""
    schedules = Schedules(
        batch_size=MultiStep(milestones=(epochs(1),), factor=5.0),
        lr=MultiStep(milestones=(epochs(2),), factor=0.2),
    )
    recipe = cases.make_recipe(
        "sgd", None, batch_size=7, duration=epochs(3), schedules=schedules, records=_every_update()
    )
    steps = [r for r in training_of(recipe) if hasattr(r, "lr")]
    assert [(r.batch_size, r.lr) for r in steps] == [
        *[(7, 0.05)] * 10, *[(35, 0.05)] * 2, *[(35, pytest.approx(0.01))] * 2,
    ]  # fmt: skip
