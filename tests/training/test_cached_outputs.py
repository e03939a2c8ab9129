"""Cached outputs: the whole batch's gradient in parts; draws, buffers, memory, refusals.

The same over ranks: tests/distributed/test_cached_outputs.py.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import coupled_cases
import exact_cases as cases

from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.recipe import (
    AdaptiveBatchSize,
    BlockSettings,
    LocalUpdates,
    LossSettings,
    Recipe,
    SGDSettings,
)
from anybatch.schedules import epochs, updates
from anybatch.task import Task, load_task
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
CASES = coupled_cases.coupled_cases()
CACHED = LossSettings(coupled="cached-outputs")


@cache
def undivided(name: str) -> cases.Result:
    return coupled_cases.train(*CASES[name], ONE)


@pytest.mark.parametrize("micro", [4, 8, 12])
@pytest.mark.parametrize("name", CASES)
def test_updates_by_micro_batches_equal_those_of_the_whole_batch(name: str, micro: int) -> None:
    task, recipe = CASES[name]
    divided = coupled_cases.train(task, replace(recipe, micro_batch_size=micro), ONE)
    cases.assert_same(divided, undivided(name))
    if recipe.ghost_batch_size:
        assert set(divided["tracked"]) == {12}  # each update once, in two passes


def test_the_whole_batch_in_one_pass_is_what_torch_makes_of_it() -> None:
    """Against a loop of three lines, so that both ways are not wrong together."""
    task = coupled_cases.coupled_task("supervised", False)
    recipe = coupled_cases.coupled_recipe(None, micro_batch_size=3)
    training = Training(task, recipe, world=ONE)
    portion = training.feed.next()
    training.gradient(portion)
    batch = portion.batch
    loss = coupled_cases.supervised(training.model(batch.inputs.double()), batch.targets)
    expected = torch.autograd.grad(loss, list(training.model.parameters()))
    found = [parameter.grad for parameter in training.model.parameters()]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-15)
    losses = torch.cat(training.one_step.losses)
    torch.testing.assert_close(losses, loss.detach().expand(16), rtol=1e-12, atol=0)


# --- what happens twice must happen alike ----------------------------------------------------


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.4), nn.Tanh(), nn.Linear(16, 3))


def dropout_training(micro: int) -> Training:
    task = replace(coupled_cases.coupled_task("supervised", False), build_model=with_dropout)
    return Training(task, coupled_cases.coupled_recipe(None, micro_batch_size=micro), world=ONE)


def test_dropout_repeats_itself_in_the_second_pass() -> None:
    """The reference keeps every micro-batch's graph, and draws each mask once."""
    training = dropout_training(micro=5)
    training.one_step.train_mode()
    portion = training.feed.next()
    torch.manual_seed(7)
    outputs = [training.model(part.inputs.double()) for part in portion.parts(5)]
    after = torch.get_rng_state()
    loss = coupled_cases.supervised(torch.cat(outputs), portion.batch.targets)
    expected = torch.autograd.grad(loss, list(training.model.parameters()))
    torch.manual_seed(7)
    training.gradient(portion)
    found = [parameter.grad for parameter in training.model.parameters()]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-15)
    assert torch.equal(torch.get_rng_state(), after)  # as if it had been drawn once


def test_numpy_and_python_draws_repeat_too() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            import random

            import numpy as np

            factor = 1.0 + random.random() + float(np.random.rand())  # noqa: NPY002
            outputs: Tensor = factor * self.linear(inputs)
            seen.append(float(outputs.detach().sum()))
            return outputs

    seen: list[float] = []
    task = replace(coupled_cases.coupled_task("supervised", False), build_model=Noisy)
    recipe = coupled_cases.coupled_recipe(None, micro_batch_size=5)
    training = Training(task, recipe, world=ONE)
    portion = training.feed.next()
    seen.clear()
    training.gradient(portion)
    assert len(seen) == 8
    assert seen[:4] == seen[4:]
    assert len(set(seen)) == 4


def test_what_the_loss_draws_is_drawn_once() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return coupled_cases.supervised(outputs * torch.rand(3), targets)

    task = replace(coupled_cases.coupled_task("supervised", False), loss=loss)
    results = []
    for micro in (None, 4):
        recipe = coupled_cases.coupled_recipe(None, micro_batch_size=micro)
        training = Training(task, recipe, world=ONE)
        results.append(cases.plain(training, list(training)))
    cases.assert_same(*results)


def test_a_buffer_that_moves_in_every_forward_pass_goes_the_same_way_twice() -> None:
    """The power iteration of a spectral norm: pass 2 sees what pass 1 saw, and moves it once."""

    def model() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)))

    task = replace(coupled_cases.coupled_task("supervised", False), build_model=model)
    recipe = coupled_cases.coupled_recipe(None, micro_batch_size=4)
    cached, joint = (Training(task, recipe, world=ONE) for _ in range(2))
    for training in (cached, joint):
        training.one_step.train_mode()
    portion = cached.feed.next()
    cached.gradient(portion)
    outputs = torch.cat([joint.model(part.inputs.double()) for part in portion.parts(4)])
    coupled_cases.supervised(outputs, portion.batch.targets).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(cached.model.parameters(), joint.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
    for one, other in zip(cached.model.buffers(), joint.model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_gradient_that_is_taken_twice_is_the_same_twice() -> None:
    training = dropout_training(micro=5)
    training.one_step.train_mode()
    portion = training.feed.next()
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        training.gradient(portion)
        found.append([p.grad.clone() for p in training.model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))


# --- memory ----------------------------------------------------------------------------------


class Kept:
    """Bytes that autograd keeps for backward passes, at most at any time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Any:
        box = _Box(tensor)
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(box, self.release, size)
        return box

    def release(self, size: int) -> None:
        self.now -= size


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def bytes_kept(num_examples: int, micro: int | None) -> int:
    """By the network and the loss, at most at any time of a gradient."""
    task = coupled_cases.coupled_task("supervised", False, num_examples=num_examples)
    wide = replace(
        task, build_model=lambda: nn.Sequential(nn.Linear(6, 4000), nn.Tanh(), nn.Linear(4000, 3))
    )
    recipe = coupled_cases.coupled_recipe(
        None, batch_size=num_examples, duration=updates(1), micro_batch_size=micro
    )
    training = Training(wide, recipe, world=ONE)
    portion, kept = training.feed.next(), Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda box: box.tensor):
        training.gradient(portion)
    return kept.most


def test_activations_of_one_micro_batch_are_kept_whatever_the_batch() -> None:
    eight_parts, thirty_two_parts = bytes_kept(64, 8), bytes_kept(256, 8)
    assert bytes_kept(256, None) > 12 * eight_parts
    # What grows is the loss's own graph: a few matrices of (batch, batch) numbers.
    assert thirty_two_parts - eight_parts < 8 * 8 * 256**2


# --- examples --------------------------------------------------------------------------------


def shifted_views(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two views of each digit: as it is, and one pixel to a side."""
    return [(image, image.roll((0, 1), (1, 2))) for image in images]


class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 16)
        )

    def forward(self, one: Tensor, other: Tensor) -> dict[str, Any]:
        views = (self.encoder(one), self.encoder(other))
        return {"views": views, "scale": torch.tensor(10.0), "count": torch.zeros(len(one), 1)}


def two_views_of_digits() -> Task:
    splits: dict[str, Any] = {}
    digits = load_task("digits")
    for split, count in (("train", 512), ("validation", 100)):
        source = digits.source(split)  # type: ignore[arg-type]
        (batch,) = source.batches([torch.arange(count)])
        views = zip(shifted_views(batch.inputs), torch.zeros(count), strict=True)
        splits[split] = [(one, other, weight) for (one, other), weight in views]
    return Task(
        build_model=TwoViews,
        train=splits["train"],
        validation=splits["validation"],
        loss=coupled_cases.info_nce,
        metric=coupled_cases.RETRIEVAL,
        loss_scope="batch",
    )


def test_info_nce_over_512_digits_in_parts_of_64_learns_to_find_the_partner() -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1, momentum=0.9), batch_size="full", micro_batch_size=64,
        ghost_batch_size=64, duration=epochs(25), loss=CACHED, compute=cases.COMPUTE,
    )  # fmt: skip
    short = replace(recipe, duration=epochs(3))
    task = two_views_of_digits()
    results = []
    for one in (short, replace(short, micro_batch_size=None)):
        training = Training(task, one, world=ONE)
        results.append(cases.plain(training, list(training)))
    cases.assert_same(*results, tolerance=1e-10)
    with Training(task, recipe, world=ONE) as training:
        before = training.evaluate("validation")
        list(training)
        after = training.evaluate("validation")
    assert after.loss < 0.5 * before.loss
    assert after.metric > before.metric + 0.1, (before, after)


def test_a_margin_softmax_among_the_classes_of_the_batch_learns_digits() -> None:
    digits = load_task("digits")
    task = replace(digits, loss=coupled_cases.margin_softmax, loss_scope="batch")
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.5, momentum=0.9), batch_size=512, micro_batch_size=128,
        duration=epochs(20), loss=CACHED, compute=replace(cases.COMPUTE, precision="fp32"),
    )  # fmt: skip
    with Training(task, recipe, world=ONE) as training:
        before = training.evaluate("validation").loss
        list(training)
        assert training.evaluate("validation").loss < 0.5 * before


# --- refusals --------------------------------------------------------------------------------


def one_step(task: Task, recipe: Recipe) -> None:
    Training(task, recipe, world=ONE).step()


def refusal(task: Task, recipe: Recipe) -> str:
    with pytest.raises(InputError) as refused:
        one_step(task, recipe)
    return str(refused.value)


def test_accumulation_of_a_coupled_loss_is_refused_with_the_remedy() -> None:
    task = coupled_cases.coupled_task("supervised", False)
    said = refusal(task, cases.make_recipe("sgd", None, micro_batch_size=4))
    assert "must stay whole" in said
    assert 'loss.coupled = "cached-outputs" divides it' in said


def test_batch_norm_without_ghosts_still_refuses_the_division() -> None:
    task = coupled_cases.coupled_task("supervised", True)
    said = refusal(task, coupled_cases.coupled_recipe(None, micro_batch_size=4))
    assert said.startswith("ghost_batch_size must be set")


def test_a_loss_for_each_example_needs_no_cached_outputs() -> None:
    said = refusal(cases.make_task("mlp", False), coupled_cases.coupled_recipe(None))
    assert 'loss.coupled must be "whole"' in said


@pytest.mark.parametrize(
    ("changes", "thing"),
    [
        ({"batch_control": AdaptiveBatchSize(), "duration": epochs(2)}, "batch_control"),
        ({"communication": LocalUpdates(every=2)}, "communication"),
        ({"blocks": BlockSettings(size=4)}, "blocks"),
    ],
)
def test_what_needs_a_gradient_of_parts_is_refused(changes: dict[str, Any], thing: str) -> None:
    task = coupled_cases.coupled_task("supervised", False)
    said = refusal(task, coupled_cases.coupled_recipe(None, **changes))
    assert said.startswith(f"{thing} must be left out where the loss couples")


NO_METRIC = Metric(name="none", direction="max", per_example=lambda _, t: torch.zeros(len(t)))


class Outputs(nn.Module):
    """A network whose outputs are what a test wants them to be."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(6, 3), make

    def forward(self, inputs: Tensor) -> Any:
        return self.make(self.linear(inputs))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda z: z.reshape(-1), "must have one row for each of 5 examples"),
        (lambda z: torch.cat([z, z]), "must have one row for each of 5 examples"),
        (lambda z: (z, z.mean()), "one number that no example enters"),
        (lambda z: (z, "text"), "must be tensors"),
    ],
)
def test_outputs_that_are_not_one_row_an_example_are_refused(make: Any, said: str) -> None:
    task = coupled_cases.coupled_task("supervised", False)
    odd = replace(
        task,
        build_model=lambda: Outputs(make),
        metric=NO_METRIC,
        loss=lambda outputs, targets: (outputs[0] if isinstance(outputs, tuple) else outputs).sum(),
    )
    recipe = coupled_cases.coupled_recipe(None, micro_batch_size=5)
    found = refusal(odd, recipe)
    assert found.startswith("model output")
    assert said in found


def test_a_tuple_of_outputs_with_none_in_it_passes() -> None:
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        assert outputs[1] is None
        return coupled_cases.supervised(outputs[0], targets)

    task = coupled_cases.coupled_task("supervised", False)
    odd = replace(
        task, build_model=lambda: Outputs(lambda z: (z, None)), loss=loss, metric=NO_METRIC
    )
    plain = replace(task, build_model=lambda: Outputs(lambda z: z))
    results = []
    for one in (odd, plain):
        recipe = coupled_cases.coupled_recipe(None, micro_batch_size=5)
        training = Training(one, recipe, world=ONE)
        for _ in range(5):
            training.step()
        results.append(training.model.linear.weight)
    assert torch.equal(*results)
