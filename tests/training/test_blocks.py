"""Blocks: exact means of unequal blocks, penalties by hand, and four sizes that do not interfere.

Ranks are in tests/distributed.
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.errors import InputError
from anybatch.recipe import (
    BlockSettings,
    ClipGlobalNorm,
    GradientPenalty,
    LossSettings,
    Recipe,
    Schedules,
    SGDSettings,
    SharpnessAware,
)
from anybatch.schedules import Linear, Warmup, updates
from anybatch.task import Task
from anybatch.training.portion import Portion
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
EXACT = GradientPenalty(method="exact", coefficient=0.7, unit="absolute")


def training_of(network: str = "mlp", ghost: int | None = None, **changes: Any) -> Training:
    """70 examples in float64; batches of 16, so that the last one has 6."""
    recipe = cases.make_recipe("sgd", ghost, **changes)
    task = cases.make_task(network, normalized=ghost is not None)
    return Training(task, recipe, world=ONE)


def gradient_of(training: Training, portion: Portion | None = None) -> Tensor:
    training.gradient(portion or training.feed.next())
    return torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_is(found: Tensor, expected: Tensor) -> None:
    assert relative(found, expected) < 1e-12


def blocks_of(training: Training, size: int) -> list[tuple[int, Tensor]]:
    """Examples and mean gradient of each block of the next batch, each by a plain step."""
    portion = training.feed.next()
    batch = portion.batch
    found = []
    for start in range(0, portion.num_examples, size):
        part = type(batch)(*(field[start : start + size] for field in batch))
        count = len(part.indices)
        share = Portion(part, count, counted=True)
        found.append((count, gradient_of(training, share).clone()))
    return found


# --- the mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [1, 3, 5, 15, 16, 100])
def test_the_mean_of_unequal_blocks_is_the_gradient_of_one_batch(network, size, reduction):
    loss = LossSettings(reduction=reduction)
    whole = gradient_of(training_of(network, loss=loss))
    blocked = training_of(network, loss=loss, blocks=BlockSettings(size=size))
    assert_is(gradient_of(blocked), whole)


def test_two_published_means_are_no_means():
    whole = gradient_of(training_of())
    blocks = blocks_of(training_of(), 5)
    assert [count for count, _ in blocks] == [5, 5, 5, 1]
    assert_is(sum(count / 16 * gradient for count, gradient in blocks), whole)
    mean_of_means = sum(gradient for _, gradient in blocks) / len(blocks)
    moving = torch.zeros_like(whole)
    for _, gradient in blocks:  # the code of the full-batch paper before 31 January 2023
        moving += (gradient - moving) / len(blocks)
    for found in (mean_of_means, moving):
        with pytest.raises(AssertionError):
            assert_is(found, whole)
        assert relative(found, whole) > 0.05


def test_fifty_updates_by_blocks_are_those_of_whole_batches():
    whole = cases.train("mlp", cases.make_recipe("sgd", 4), ONE)
    recipe = cases.make_recipe("sgd", 4, blocks=BlockSettings(size=8), micro_batch_size=4)
    blocked = cases.train("mlp", recipe, ONE)
    for record in blocked["records"]:
        if "lr" in record:
            assert record["block_gradient_norm"] > 0
            assert record["squared_block_gradient_norm"] >= record["block_gradient_norm"] ** 2
            record |= {"block_gradient_norm": None, "squared_block_gradient_norm": None}
    cases.assert_same(blocked, whole)


def test_sums_in_double_precision_round_once():
    compute = replace(cases.COMPUTE, precision="fp32")
    settings = {"compute": compute, "batch_size": "full", "micro_batch_size": 1}
    blocks = [g.double() for _, g in blocks_of(training_of(**settings), 1)]
    once = (sum(blocks) / len(blocks)).float()
    found = {
        accumulate: gradient_of(
            training_of(blocks=BlockSettings(size=1, accumulate=accumulate), **settings)
        )
        for accumulate in ("fp32", "fp64")
    }
    assert found["fp64"].dtype == torch.float32
    assert torch.equal(found["fp64"], once)
    assert 0 < relative(found["fp32"], once) < 1e-6


def test_a_parameter_without_a_gradient_stays_without():
    training = training_of(
        "unused-head",
        blocks=BlockSettings(size=5),
        optimizer=SGDSettings(lr=0.1, weight_decay=0.1),
    )
    before = training.model.head.weight.detach().clone()
    training.step()
    assert training.model.head.weight.grad is None
    assert torch.equal(training.model.head.weight, before)


def test_a_placeholder_weighs_nothing():
    training = training_of(blocks=BlockSettings(size=5, penalty=EXACT))
    batch = training.feed.next().batch
    part = type(batch)(*(field[:1] for field in batch))
    training.gradient(Portion(part, 16, counted=False))
    assert all(p.grad is None for p in training.model.parameters())
    assert training.one_step.losses == []


# --- penalty and clipping ----------------------------------------------------------------------


def penalized_by_hand(training: Training, size: int, c: float) -> Tensor:
    """sum n_k / N d/dw (L_k + c |g_k|^2), by differentiating it."""
    batch = training.feed.next().batch
    weights = list(training.model.parameters())
    total = torch.zeros((), dtype=torch.float64)
    count = len(batch.indices)
    for start in range(0, count, size):
        inputs, targets = batch.inputs[start : start + size], batch.targets[start : start + size]
        loss = nn.functional.cross_entropy(training.model(inputs.double()), targets)
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        penalty = c * sum(g.square().sum() for g in gradient)
        total = total + len(targets) / count * (loss + penalty)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)])


@pytest.mark.parametrize("micro", [None, 2, 3])
@pytest.mark.parametrize(
    ("method", "epsilon", "tolerance"),
    [("exact", 1.0, 1e-12), ("central", 1e-4, 1e-8), ("forward", 1e-5, 1e-5)],
)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_penalty_is_that_of_every_block_by_itself(network, method, epsilon, tolerance, micro):
    expected = penalized_by_hand(training_of(network), 5, 0.7)
    penalty = replace(EXACT, method=method, epsilon=epsilon)
    training = training_of(
        network, micro_batch_size=micro, blocks=BlockSettings(size=5, penalty=penalty)
    )
    assert relative(gradient_of(training), expected) < tolerance
    assert relative(gradient_of(training_of(network)), expected) > 0.01


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_coefficient_in_units_of_the_lr_follows_the_lr(reduction):
    lr, coefficient = (0.4, 0.25) if reduction == "mean" else (0.4 / 16, 0.25 * 16)
    schedules = Schedules(lr=Warmup(duration=updates(4), start=0.0, into=Linear(end=1.0)))
    penalty = GradientPenalty(coefficient=coefficient, unit="lr", method="exact")
    training = training_of(
        optimizer=SGDSettings(lr=lr),
        schedules=schedules,
        loss=LossSettings(reduction=reduction),
        blocks=BlockSettings(size=5, penalty=penalty),
    )
    scale = 1 if reduction == "mean" else 16
    for update in range(3):
        c = 0.25 * 0.4 * update / 4  # at first 0: then no block is looked at twice
        expected = scale * penalized_by_hand(training, 5, c)
        assert_is(gradient_of(training), expected)
        training.step()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_sam_displaces_every_block_by_itself(weight):
    training = training_of()
    expected = torch.zeros(())
    portion = training.feed.next()
    for number, (count, gradient) in enumerate(blocks_of(training, 5)):
        moved = training_of()
        place = 0
        with torch.no_grad():
            for parameter in moved.model.parameters():
                slope = gradient[place : place + parameter.numel()].view_as(parameter)
                parameter += 0.05 * slope / gradient.norm()
                place += parameter.numel()
        batch = portion.batch
        part = type(batch)(*(field[5 * number : 5 * number + 5] for field in batch))
        there = gradient_of(moved, Portion(part, count, counted=True))
        expected = expected + count / 16 * ((1 - weight) * gradient + weight * there)
    blocks = BlockSettings(size=5, penalty=SharpnessAware(radius=0.05, weight=weight))
    assert_is(gradient_of(training_of(blocks=blocks)), expected)


@pytest.mark.parametrize("penalty", [None, EXACT])
def test_each_block_is_clipped_after_the_penalty_and_its_norm_is_that_before_both(penalty):
    blocks = blocks_of(training_of(), 5)
    norms = [float(gradient.norm()) for _, gradient in blocks]
    settings = BlockSettings(size=5, penalty=penalty)
    penalized = blocks_of(training_of(blocks=settings), 5)
    limit = sorted(float(gradient.norm()) for _, gradient in penalized)[1]
    expected = sum(
        count / 16 * gradient * min(1.0, limit / (float(gradient.norm()) + 1e-6))
        for count, gradient in penalized
    )
    training = training_of(
        blocks=replace(settings, clip_norm=limit), gradient=(ClipGlobalNorm(max_norm=1e9),)
    )
    assert_is(gradient_of(training), expected)
    found = training.one_step.block_norms
    mean = sum(count * norm for (count, _), norm in zip(blocks, norms, strict=True)) / 16
    squared = sum(count * norm**2 for (count, _), norm in zip(blocks, norms, strict=True)) / 16
    assert float(found.mean) == pytest.approx(mean, rel=1e-12)
    assert float(found.mean_squared) == pytest.approx(squared, rel=1e-12)
    assert float(training.one_step.transforms.norm) == pytest.approx(float(expected.norm()))


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, cases.NUM_CLASSES)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs)
        return outputs


def dropout_training(**changes: Any) -> Training:
    task = replace(cases.make_task("mlp", normalized=False), build_model=WithDropout)
    return Training(task, cases.make_recipe("sgd", None, **changes), world=ONE)


@pytest.mark.parametrize("micro", [None, 2])
def test_displaced_passes_draw_the_same_dropout_and_leave_the_generator_as_one_pass_would(micro):
    found = {}
    for method in ("none", "exact", "forward", "central"):
        penalty = None if method == "none" else replace(EXACT, method=method, epsilon=1e-6)
        training = dropout_training(
            micro_batch_size=micro, blocks=BlockSettings(size=5, penalty=penalty)
        )
        torch.manual_seed(8)
        found[method] = gradient_of(training), float(torch.rand(()))
    for method in ("forward", "central"):
        assert relative(found[method][0], found["exact"][0]) < 1e-5
    assert relative(found["none"][0], found["exact"][0]) > 0.01
    assert len({draw for _, draw in found.values()}) == 1


# --- four sizes --------------------------------------------------------------------------------


def after_an_update(**changes: Any) -> dict[str, Tensor]:
    training = training_of("cnn", **changes)
    training.step()
    return {name: value.double() for name, value in training.model.state_dict().items()}


def assert_same_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert any("running" in name for name in one)
    assert cases.relative_difference(one, other) < 1e-12


@pytest.mark.parametrize("penalty", [None, EXACT, SharpnessAware()])
def test_the_micro_batch_changes_nothing_while_ghost_and_block_are_kept(penalty):
    blocks = BlockSettings(size=8, penalty=penalty)
    expected = after_an_update(ghost=4, blocks=blocks)
    for micro in (4, 8, 12, 16):
        found = after_an_update(ghost=4, blocks=blocks, micro_batch_size=micro)
        assert_same_states(found, expected)


def test_block_and_ghost_are_kept_apart():
    plain = after_an_update(ghost=4)
    assert_same_states(after_an_update(ghost=4, blocks=BlockSettings(size=8)), plain)
    penalized = {
        (ghost, size): after_an_update(ghost=ghost, blocks=BlockSettings(size=size, penalty=EXACT))
        for ghost, size in ((4, 4), (4, 8), (8, 8))
    }
    moved = penalized[4, 8]
    for name, value in plain.items():
        if "running" in name:  # displaced passes do not count
            assert torch.allclose(value, moved[name], rtol=1e-13)
    assert cases.relative_difference(plain, moved) > 1e-6
    for other in ((4, 4), (8, 8)):
        assert cases.relative_difference(penalized[other], moved) > 1e-6


def test_without_a_ghost_size_the_block_is_the_ghost():
    task = cases.make_task("cnn", normalized=True)
    states = []
    for ghost in (None, 8):
        recipe = cases.make_recipe("sgd", ghost, blocks=BlockSettings(size=8, penalty=EXACT))
        training = Training(task, recipe, world=ONE)
        training.step()
        states.append({k: v.double() for k, v in training.model.state_dict().items()})
    assert_same_states(*states)


def test_losses_are_those_of_the_weights_themselves():
    plain = training_of()
    penalized = training_of(blocks=BlockSettings(size=5, penalty=replace(EXACT, method="central")))
    for training in (plain, penalized):
        training.gradient(training.feed.next())
    assert [len(losses) for losses in penalized.one_step.losses] == [5, 5, 5, 1]
    both = [torch.cat(training.one_step.losses) for training in (plain, penalized)]
    assert torch.allclose(*both, rtol=1e-14)


# --- the training around it --------------------------------------------------------------------


def saved(training: Training) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    return file


def test_a_training_with_blocks_resumes_bit_for_bit():
    blocks = BlockSettings(size=8, penalty=GradientPenalty(unit="lr"), clip_norm=0.5)
    settings = {"ghost": 4, "blocks": blocks, "duration": updates(9)}
    first = training_of("cnn", **settings)
    for _ in range(4):
        first.step()
    second = training_of("cnn", **settings)
    second.load_state_dict(torch.load(saved(first), weights_only=True))
    assert torch.equal(second.one_step.block_norms.mean, first.one_step.block_norms.mean)
    ends = [cases.plain(training, list(training)) for training in (first, second)]
    cases.assert_same(*ends, tolerance=0.0)
    last = [record for record in ends[0]["records"] if "lr" in record][-1]
    assert last["block_gradient_norm"] > 0


def test_what_cannot_be_divided_into_blocks_is_refused():
    task = cases.make_task("cnn", normalized=True)
    recipe = cases.make_recipe("sgd", None, blocks=BlockSettings(size=8), micro_batch_size=4)
    with pytest.raises(InputError, match="ghost_batch_size must be set"):
        Training(task, recipe, world=ONE)
    Training(task, replace(recipe, micro_batch_size=8), world=ONE)
    coupled = Task(
        build_model=lambda: nn.Linear(6, 3),
        train=cases.examples_of((6,), 40, seed=1),
        loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets),
        loss_scope="batch",
    )
    plain: Recipe = cases.make_recipe("sgd", None)
    Training(coupled, plain, world=ONE)
    with pytest.raises(InputError, match="blocks must be left out"):
        Training(coupled, replace(plain, blocks=BlockSettings(size=8)), world=ONE)
