"""Mixup and running mixup: by hand, however an update is divided, resumed, and where refused."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.cli import main
from anybatch.data.draws import symmetric_beta
from anybatch.data.mixing import MixedTargets, mixup, partners, running_mixup
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import (
    AdaptiveBatchSize,
    Augmentation,
    ComputeSettings,
    LossSettings,
    Mixup,
    Recipe,
    RecordSettings,
    RunningMixup,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.recipe_file import load_recipe
from anybatch.records import EvalRecord, StepRecord
from anybatch.schedules import Linear, epochs, updates
from anybatch.task import Task, load_task
from anybatch.training.feed import Feed
from anybatch.training.mixing import ExampleMixing
from anybatch.training.precision import cast
from anybatch.training.snapshot import preserved_training
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
NUM_CLASSES = 3
MIXUP = Augmentation(mixing=Mixup(alpha=1.0))
RUNNING = Augmentation(mixing=RunningMixup(alpha=1.0))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_batch(n: int = 10, first: int = 0) -> Batch:
    inputs = torch.randn(n, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, torch.arange(n) % NUM_CLASSES, torch.arange(first, first + n) * 7)


# --- the functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("ghost", [None, 4, 5, 1, 30])
def test_each_example_is_mixed_with_one_of_its_ghost_by_one_share(ghost: int | None) -> None:
    batch = some_batch()
    mixed = mixup(batch, 1.0, ghost=ghost, seed=3, update=5)
    size = ghost or 10
    assert isinstance(mixed.targets, MixedTargets)
    other = partners(batch.indices, size, seed=3, update=5)
    for start in range(0, 10, size):
        places = list(range(start, min(start + size, 10)))
        assert sorted(other[start : start + size].tolist()) == places
        first = batch.indices[start : start + 1]
        share = symmetric_beta(first, 1.0, seed=3, epoch=5, stream=(1 << 32) + 16)
        for place in places:
            x, partner = batch.inputs[place], batch.inputs[other[place]]
            expected = share * x + (1 - share) * partner
            torch.testing.assert_close(mixed.inputs[place], expected, rtol=1e-14, atol=1e-15)
            assert mixed.targets.share[place] == share
    assert torch.equal(mixed.targets.own, batch.targets)
    assert torch.equal(mixed.targets.partners, batch.targets[other])
    assert torch.equal(mixed.indices, batch.indices)


def test_what_is_drawn_depends_on_seed_update_and_examples_alone() -> None:
    batch = some_batch()
    mixed = mixup(batch, 1.0, ghost=5, seed=3, update=5)
    assert torch.equal(mixup(batch, 1.0, ghost=5, seed=3, update=5).inputs, mixed.inputs)
    for change in ({"seed": 4, "update": 5}, {"seed": 3, "update": 6}):
        other = mixup(batch, 1.0, ghost=5, **change)
        assert not torch.equal(other.targets.share, mixed.targets.share)
        assert not torch.equal(other.inputs, mixed.inputs)
    others = batch._replace(indices=batch.indices + 1)
    assert not torch.equal(mixup(others, 1.0, ghost=5, seed=3, update=5).inputs, mixed.inputs)
    parts = [Batch(*(t[at : at + 5] for t in batch)) for at in (0, 5)]
    halves = [mixup(part, 1.0, ghost=5, seed=3, update=5) for part in parts]
    assert torch.equal(torch.cat([half.inputs for half in halves]), mixed.inputs)


def test_partners_are_every_permutation_alike() -> None:
    found = [tuple(partners(torch.arange(3), 3, seed=0, update=u).tolist()) for u in range(1200)]
    counts = {order: found.count(order) for order in set(found)}
    assert len(counts) == 6
    assert 150 < min(counts.values()) <= max(counts.values()) < 250


def test_running_mixup_is_its_formula_with_the_greater_share() -> None:
    batch = some_batch()
    batch = batch._replace(targets=F.one_hot(batch.targets, NUM_CLASSES).double())
    before = [torch.randn(10, 2, 3).double(), torch.full((10, NUM_CLASSES), 1 / 3).double()]
    mixed = running_mixup(batch, before, 0.4, seed=1, update=2)
    drawn = symmetric_beta(batch.indices, 0.4, seed=1, epoch=2, stream=(1 << 32) + 16)
    assert float(drawn.min()) < 0.5 < float(drawn.max())
    for place, share in enumerate(torch.maximum(drawn, 1 - drawn)):
        x = share * batch.inputs[place] + (1 - share) * before[0][place]
        t = share * batch.targets[place] + (1 - share) * before[1][place]
        torch.testing.assert_close(mixed.inputs[place], x, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(mixed.targets[place], t, rtol=1e-13, atol=1e-15)


def test_a_nest_of_inputs_is_mixed_tensor_by_tensor() -> None:
    batch = some_batch()
    nested = batch._replace(inputs={"a": batch.inputs, "b": (2 * batch.inputs[:, 0],)})
    mixed, plain = (mixup(b, 1.0, seed=0, update=0).inputs for b in (nested, batch))
    assert torch.equal(mixed["a"], plain)
    torch.testing.assert_close(mixed["b"][0], 2 * plain[:, 0])


# --- three updates by hand -----------------------------------------------------------------------

INPUTS = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % NUM_CLASSES


def softmax_regression(augmentation: Augmentation, **changes: Any) -> Training:
    def build() -> nn.Module:
        model = nn.Linear(4, NUM_CLASSES, bias=False)
        nn.init.zeros_(model.weight)
        return model

    data = INPUTS, LABELS
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.5),
        duration=updates(6),
        batch_size=8,
        order="fixed",
        seed=5,
        augmentation=augmentation,
        compute=ComputeSettings(device="cpu", precision="fp64"),
        stopping=Stopping(evaluate_every=epochs(100)),
        records=RecordSettings(log_every=1),
    )
    task = Task(build_model=build, train=data, validation=data)
    return Training(task, replace(recipe, **changes), world=ONE)


def one_step(weight: Tensor, inputs: Tensor, probabilities: Tensor) -> tuple[Tensor, float]:
    """Gradient descent on mean cross-entropy with soft targets, whose gradient is closed."""
    predicted = (inputs @ weight.T).softmax(1)
    loss = -(probabilities * predicted.log()).sum(1).mean()
    return weight - 0.5 * (predicted - probabilities).T @ inputs / len(inputs), float(loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_three_updates_of_mixup_by_hand(smoothing: float) -> None:
    loss = LossSettings(label_smoothing=smoothing)
    training = softmax_regression(MIXUP, ghost_batch_size=4, loss=loss)
    weight = torch.zeros(NUM_CLASSES, 4, dtype=torch.float64)
    onehot = F.one_hot(LABELS, NUM_CLASSES).double() * (1 - smoothing) + smoothing / NUM_CLASSES
    for update in range(3):
        drawn = mixup(Batch(INPUTS, LABELS, torch.arange(8)), 1.0, ghost=4, seed=5, update=update)
        share = drawn.targets.share[:, None]
        other = partners(torch.arange(8), 4, seed=5, update=update)
        inputs = share * INPUTS + (1 - share) * INPUTS[other]
        targets = share * onehot + (1 - share) * onehot[other]
        weight, expected = one_step(weight, inputs, targets)
        training.step()
        torch.testing.assert_close(training.model.weight.detach(), weight, rtol=1e-12, atol=1e-15)
        (losses,) = training.one_step.losses
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_three_updates_of_running_mixup_by_hand(smoothing: float) -> None:
    loss = LossSettings(label_smoothing=smoothing)
    training = softmax_regression(RUNNING, batch_size=4, loss=loss)  # the halves in turn
    weight = torch.zeros(NUM_CLASSES, 4, dtype=torch.float64)
    onehot = F.one_hot(LABELS, NUM_CLASSES).double()
    for update in range(4):
        half = torch.arange(4) + 4 * (update % 2)
        if update == 0:  # is not mixed
            inputs, targets = INPUTS[half], onehot[half]
        else:
            share = symmetric_beta(half, 1.0, seed=5, epoch=update, stream=(1 << 32) + 16)
            share = torch.maximum(share, 1 - share)[:, None]
            inputs = share * INPUTS[half] + (1 - share) * inputs
            targets = share * onehot[half] + (1 - share) * targets
        smooth = targets * (1 - smoothing) + smoothing / NUM_CLASSES
        weight, expected = one_step(weight, inputs, smooth)
        training.step()
        torch.testing.assert_close(training.model.weight.detach(), weight, rtol=1e-12, atol=1e-15)
        (losses,) = training.one_step.losses
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-12)


def test_mixup_of_a_regression_mixes_the_losses() -> None:
    inputs, targets = INPUTS, INPUTS.sum(1, keepdim=True)
    task = Task(
        build_model=lambda: nn.Linear(4, 1),
        train=(inputs, targets),
        validation=(inputs, targets),
        kind="regression",
    )
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), duration=updates(3), batch_size=8, order="fixed",
        augmentation=MIXUP, compute=ComputeSettings(device="cpu", precision="fp64"),
    )  # fmt: skip
    training = Training(task, recipe, world=ONE)
    weight = training.model.weight.detach().clone()
    bias = training.model.bias.detach().clone()
    training.step()
    mixed = mixup(Batch(inputs, targets, torch.arange(8)), 1.0, seed=0, update=0)
    outputs = mixed.inputs @ weight.T + bias
    own, other = ((outputs - t).square()[:, 0] for t in mixed.targets[:2])
    expected = mixed.targets.share * own + (1 - mixed.targets.share) * other
    torch.testing.assert_close(training.one_step.losses[0], expected, rtol=1e-12, atol=0)


# --- divided, interrupted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "ghost", "augmentation", "micro_sizes"),
    [
        ("cnn", 4, MIXUP, (4, 8, 12)),
        ("mlp", 8, MIXUP, (8,)),
        ("cnn", 4, RUNNING, (4, 12)),
        ("mlp", None, RUNNING, (1, 3, 5, 15)),
    ],
)
def test_micro_batches_of_whole_ghosts_change_nothing(network, ghost, augmentation, micro_sizes):
    loss = LossSettings(label_smoothing=0.1)
    recipe = cases.make_recipe("sgd", ghost, augmentation=augmentation, loss=loss)
    whole = cases.train(network, recipe, ONE)
    plain = cases.train(network, replace(recipe, augmentation=Augmentation()), ONE)
    assert cases.relative_difference(whole["weights"], plain["weights"]) > 1e-3
    for micro in micro_sizes:
        divided = cases.train(network, replace(recipe, micro_batch_size=micro), ONE)
        cases.assert_same(divided, whole)


class _Rank:
    """One of several ranks in one process: what it is handed, and how it mixes it."""

    def __init__(self, augmentation: Augmentation, rank: int, size: int) -> None:
        world = World(torch.device("cpu"), rank=rank, size=size)
        task = cases.make_task("mlp", False)
        recipe = cases.make_recipe("sgd", 4, augmentation=augmentation)
        clock = Training(task, recipe, world=ONE).clock
        self.feed = Feed(task.source("train"), recipe, clock, world)
        model = task.new_model()
        sample = cast(Batch(*(t[:2] for t in self.feed.next().batch)), recipe.compute)
        loss = task.loss_function()
        self.mixing = ExampleMixing(task, recipe, world, loss, model.double(), sample)

    def update(self, number: int) -> Batch | None:
        portion = self.feed.next()
        self.mixing.begin(portion, number)
        mixed = self.mixing.mixed(portion.batch)
        self.mixing.take()
        self.feed.advance(portion.num_examples)
        return mixed if portion.counted else None


@pytest.mark.parametrize("augmentation", [MIXUP, RUNNING])
def test_ranks_see_the_same_examples_also_after_their_number_changes(augmentation) -> None:
    alone = _Rank(augmentation, 0, 1)
    sizes = [3, 3, 3, 2, 2, 5, 5, 1]  # of the world; 5 ranks and ghosts of 4: one has no example
    ranks: list[_Rank] = []
    for number, size in enumerate(sizes):
        if len(ranks) != size:
            feed = ranks[0].feed.state_dict() if ranks else None
            states = copy.deepcopy([rank.mixing.state_dict() for rank in ranks])
            ranks = [_Rank(augmentation, rank, size) for rank in range(size)]
            for rank in ranks if feed else ():
                rank.feed.load_state_dict(feed)
                rank.mixing.load_state_dict(states)
        expected = alone.update(number)
        parts = [part for part in (rank.update(number) for rank in ranks) if part is not None]
        assert torch.equal(torch.cat([part.inputs for part in parts]), expected.inputs)
        for place in range(3 if augmentation is MIXUP else 1):
            got = [p.targets[place] if augmentation is MIXUP else p.targets for p in parts]
            want = expected.targets[place] if augmentation is MIXUP else expected.targets
            assert torch.equal(torch.cat(got), want)


def test_a_short_update_is_neither_mixed_nor_remembered() -> None:
    rank = _Rank(RUNNING, 0, 1)  # 16, 16, 16, 16, 6 examples
    plain = _Rank(Augmentation(), 0, 1)
    for number in range(7):
        before = rank.mixing.state_dict()
        mixed, raw = rank.update(number), plain.update(number)
        assert mixed is not None
        assert raw is not None
        after = rank.mixing.state_dict()
        unmixed = torch.equal(mixed.inputs, raw.inputs.double())
        assert unmixed == (number in (0, 4))
        if number == 4:
            assert torch.equal(mixed.targets, F.one_hot(raw.targets, NUM_CLASSES).double())
            assert before["tensors"][0] is after["tensors"][0]
        else:
            assert torch.equal(after["tensors"][0], mixed.inputs)
            assert torch.equal(after["tensors"][1], mixed.targets)


def mixing_training(augmentation: Augmentation) -> Training:
    recipe = cases.make_recipe("sgd", 4, augmentation=augmentation, duration=epochs(4))
    return Training(cases.make_task("cnn", True), recipe, world=ONE)


@pytest.mark.parametrize("augmentation", [MIXUP, RUNNING])
@pytest.mark.parametrize("num_updates", [0, 1, 5, 6])  # 5 are an epoch
def test_a_resumed_training_mixes_on_to_the_last_bit(augmentation, num_updates) -> None:
    uninterrupted = mixing_training(augmentation)
    expected = cases.plain(uninterrupted, list(uninterrupted))
    first, second = mixing_training(augmentation), mixing_training(augmentation)
    for _ in range(num_updates):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    resumed = cases.plain(second, list(second))
    for name, value in expected["weights"].items():
        assert torch.equal(resumed["weights"][name], value)
    assert resumed["records"] == expected["records"][-len(resumed["records"]) :]


@pytest.mark.parametrize("between", [False, True])
def test_a_measurement_leaves_the_mixed_examples_as_found(between: bool) -> None:
    measured, undisturbed = mixing_training(RUNNING), mixing_training(RUNNING)
    for training in (measured, undisturbed):
        for number in range(7):
            portion = training.feed.next()
            training.gradient(portion)
            if training is measured and number == 5 and between:
                with preserved_training(training):
                    for _ in range(6):
                        training.step()
            training.update(portion.num_examples)
            if training is measured and number == 5 and not between:
                with preserved_training(training):
                    training.step()
    for one, other in zip(measured.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_taken_is_not_remembered() -> None:
    twice, once = mixing_training(RUNNING), mixing_training(RUNNING)
    for training in (twice, once):
        for _ in range(4):
            if training is twice:
                training.gradient(training.feed.next())
            training.step()
    for one, other in zip(twice.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_recipe_can_begin_from_running_mixup() -> None:
    state = mixing_training(RUNNING)
    for _ in range(3):
        state.step()
    for changes in ({"batch_size": 8}, {"augmentation": MIXUP}, {"augmentation": Augmentation()}):
        recipe = replace(state.recipe, **changes)
        other = Training(cases.make_task("cnn", True), recipe, world=ONE)
        other.begin_from(state.state_dict())
        for _ in range(3):
            other.step()
        remembered = other.one_step.mixing.state_dict()
        assert (remembered is None) == ("augmentation" in changes)
        assert remembered is None or remembered["num_examples"] == 8


# --- where it is refused, and end to end ---------------------------------------------------------


def batch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


TOKENS = torch.randint(0, 5, (12, 6)), torch.randint(0, 5, (12, 6))
IMAGES = cases.examples_of((6,), 40, seed=1)


def plain_model() -> nn.Module:
    return cases.smooth_mlp(False)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            {"build_model": lambda: nn.Embedding(5, 5), "kind": "language-modelling"}
            | {"train": TOKENS},
            {"augmentation": MIXUP},
            "mixup must meet inputs of real numbers, got torch.int64",
        ),
        (
            {"loss": batch_loss, "loss_scope": "batch"},
            {"augmentation": MIXUP},
            "mixup must be left out where the loss couples the examples",
        ),
        (
            {"loss": nn.CrossEntropyLoss()},
            {"augmentation": RUNNING},
            "running-mixup must meet a classification with the default loss, whose targets can be "
            "mixed, got a loss of the task's own (mixup mixes the losses instead)",
        ),
        (
            {"kind": "regression", "train": (IMAGES[0], IMAGES[0][:, :3])},
            {"augmentation": RUNNING},
            "running-mixup must meet a classification with the default loss, whose targets can be "
            "mixed, got regression",
        ),
        (
            {},
            {"augmentation": RUNNING, "schedules": Schedules(batch_size=Linear(end=2.0))},
            "running-mixup must meet a constant batch size",
        ),
        (
            {},
            {"augmentation": RUNNING, "batch_control": AdaptiveBatchSize()},
            "running-mixup must meet a constant batch size",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(task, changes, message) -> None:
    made = Task(**({"build_model": plain_model, "train": IMAGES} | task))
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=4, duration=epochs(2))
    with pytest.raises(InputError) as caught:
        Training(made, replace(recipe, **changes), world=ONE)
    assert f"augmentation.mixing {message}" in str(caught.value)


def test_an_own_loss_is_mixed_by_mixup() -> None:
    task = Task(build_model=plain_model, train=IMAGES, loss=nn.CrossEntropyLoss())
    default = Task(build_model=plain_model, train=IMAGES)
    recipe = cases.make_recipe("sgd", None, augmentation=MIXUP, duration=epochs(2))
    own, expected = (list(Training(t, recipe, world=ONE)) for t in (task, default))
    losses = [[r.loss for r in records if isinstance(r, StepRecord)] for records in (own, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("augmentation", [MIXUP, RUNNING])
def test_mixing_changes_the_training_and_not_the_evaluation(augmentation) -> None:
    task, recipe = load_task("digits"), replace(load_recipe("digits"), duration=epochs(2))
    found = []
    for one in (recipe, replace(recipe, augmentation=augmentation)):
        with Training(task, one, world=ONE) as training:
            before = training.evaluate("validation")
            found.append((before.loss, list(training)))
    (loss, plain), (same, mixed) = found
    assert loss == same
    train = [[r.loss for r in records if isinstance(r, StepRecord)] for records in (plain, mixed)]
    assert train[1][-1] > train[0][-1] + 0.1  # mixed examples are harder
    last = mixed[-1]
    assert isinstance(last, EvalRecord)
    assert last.metric > 0.85  # plain ones are learned all the same


@pytest.mark.parametrize("name", ["mixup", "running-mixup"])
def test_one_recipe_line_mixes_and_a_run_resumes(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = f'augmentation.mixing={{ name = "{name}", alpha = 0.4 }}'
    arguments = ["train", "digits", "--set", "duration=2 epochs", "--set", line]
    assert main([*arguments, "--out", "out"]) == 0
    assert main(["train", "--resume", "out", "--extend", "1 epoch"]) == 0
