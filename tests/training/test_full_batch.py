"""Full batch: read part by part, the same whatever the parts; fixed order, fixed copies, memory."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.course import recipe_clock
from anybatch.data.augmentation import Normalization
from anybatch.data.copies import copied, example_number
from anybatch.data.iterable import IterableSource
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Source
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError
from anybatch.models.table import ModelShape
from anybatch.preview import preview
from anybatch.recipe import (
    Augmentation,
    BlockSettings,
    GradientPenalty,
    Recipe,
    RecordSettings,
    SGDSettings,
    Stopping,
)
from anybatch.recipe_file import load_recipe, shipped_recipe_names
from anybatch.schedules import epochs, updates
from anybatch.task import Task
from anybatch.training.feed import Feed
from anybatch.training.portion import Reading
from anybatch.training.sampling import pass_size
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
NUM_IMAGES = 23
AUGMENTED = Augmentation(crop_padding=1, padding_mode="zero", flip="random", cutout_size=2)


def images(count: int = NUM_IMAGES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 6, 6, 1), generator=generator).to(torch.uint8)
    return pixels, torch.arange(count) % 3


def resident() -> ResidentSource:
    scale = Normalization(mean=(0.5,), std=(0.3,))
    return ResidentSource.from_arrays(*images(), normalization=scale)


class RandomDataset(Dataset[Any]):
    """A plain data set whose transform draws from every global generator."""

    def __init__(self, count: int = NUM_IMAGES) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(6) + random.random() + np.random.rand()  # noqa: NPY002
        return noise + index, index % 3


@dataclass(frozen=True)
class OwnDataset:
    """An `EpochDataset`: it is told epoch, seed and augmentation."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def item(
        self, index: int, *, epoch: int, seed: int, augmentation: Augmentation | None
    ) -> tuple[Tensor, int]:
        flip = 0 if augmentation is None else len(augmentation.flip)
        return torch.tensor([float(v) for v in (index, epoch, seed, flip, 1, 1)]), index % 3


class OneNet(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, cases.NUM_CLASSES)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


SOURCES: dict[str, tuple[Any, int]] = {
    "resident": (resident, 36),
    "plain": (lambda: StreamedSource(RandomDataset()), 6),
    "own": (lambda: StreamedSource(OwnDataset()), 6),
    "part": (lambda: StreamedSource(RandomDataset(40)).subset(torch.arange(3, 26)), 6),
}


def task_of(kind: str) -> Task:
    make, inputs = SOURCES[kind]
    source = make()
    return Task(build_model=lambda: OneNet(inputs), train=source, validation=source)


def full_recipe(**changes: Any) -> Recipe:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.0),
        duration=epochs(6),
        batch_size="full",
        seed=3,
        compute=cases.COMPUTE,
    )
    return replace(recipe, **changes)


def gradient_of(training: Training) -> Tensor:
    training.gradient(training.feed.next())
    return torch.cat([p.grad.flatten() for p in training.model.parameters()])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["shuffled", "fixed"])
@pytest.mark.parametrize("kind", ["resident", "plain", "own"])
def test_a_full_batch_by_parts_is_that_at_once(kind, order):
    augmentation = AUGMENTED if kind == "resident" else Augmentation()
    recipe = full_recipe(order=order, augmentation=augmentation)
    whole = gradient_of(Training(task_of(kind), recipe, world=ONE))
    for micro in (1, 5, 22):
        training = Training(task_of(kind), replace(recipe, micro_batch_size=micro), world=ONE)
        assert isinstance(training.feed.next().examples, Reading)
        assert relative(gradient_of(training), whole) < 1e-12
        assert next(len(part) for part in training.one_step.losses) == micro
        assert sum(len(part) for part in training.one_step.losses) == NUM_IMAGES


def test_loader_processes_read_the_same_parts():
    compute = replace(cases.COMPUTE, num_workers=2)
    blocks = BlockSettings(size=8, penalty=GradientPenalty(coefficient=1.0, unit="absolute"))
    recipe = full_recipe(micro_batch_size=3, blocks=blocks)  # each part is read twice
    alone = gradient_of(Training(task_of("plain"), recipe, world=ONE))
    with Training(task_of("plain"), replace(recipe, compute=compute), world=ONE) as training:
        assert torch.equal(gradient_of(training), alone)


@pytest.mark.parametrize("kind", ["resident", "plain"])
def test_blocks_of_several_parts_that_are_read_are_those_that_are_held(kind):
    penalty = GradientPenalty(coefficient=1.0, unit="absolute", method="central")
    recipe = full_recipe(micro_batch_size=3, blocks=BlockSettings(size=8, penalty=penalty))
    reading = Training(task_of(kind), recipe, world=ONE)
    holding = Training(task_of(kind), recipe, world=ONE)
    portion = holding.feed.next()
    holding.gradient(replace(portion, examples=portion.batch))
    held = torch.cat([p.grad.flatten() for p in holding.model.parameters()])
    assert torch.equal(gradient_of(reading), held)


def test_the_order_is_that_of_the_data_where_it_is_fixed():
    orders = {}
    for order in ("fixed", "shuffled", "shuffled-once"):
        recipe = full_recipe(order=order, micro_batch_size=4)
        task = task_of("resident")
        feed = Feed(task.source("train"), recipe, recipe_clock(recipe, NUM_IMAGES), ONE)
        found = []
        for epoch in range(2):
            portion = feed.next()
            found.append(portion.indices.clone())
            read = torch.cat([part.indices for part in portion.parts(4)])
            assert torch.equal(read, portion.indices)
            again = task.batch(epoch, 0, batch_size=NUM_IMAGES, seed=3, order=order)
            assert torch.equal(again.indices, portion.indices)
            assert torch.equal(again.inputs, portion.batch.inputs)
            feed.advance(NUM_IMAGES)
        orders[order] = found
    assert all(torch.equal(found, torch.arange(NUM_IMAGES)) for found in orders["fixed"])
    first, second = orders["shuffled"]
    assert not torch.equal(first, second)
    assert all(torch.equal(found, first) for found in orders["shuffled-once"])
    assert torch.equal(first.sort().values, second.sort().values)


def test_fixed_order_holds_in_batches_too():
    recipe = full_recipe(order="fixed", batch_size=10)
    source = resident()
    feed = Feed(source, recipe, recipe_clock(recipe, NUM_IMAGES), ONE)
    found = []
    for _ in range(4):
        portion = feed.next()
        found.append(portion.batch.indices.tolist())
        feed.advance(portion.num_examples)
    assert found == [[*range(10)], [*range(10, 20)], [20, 21, 22], [*range(10)]]


@pytest.mark.parametrize("order", ["shuffled", "fixed"])
@pytest.mark.parametrize("copies", [0, 2])
def test_a_full_batch_training_repeats_and_resumes_bit_for_bit(order, copies):
    recipe = full_recipe(
        optimizer=SGDSettings(lr=0.05, momentum=0.9),
        order=order,
        micro_batch_size=7,
        duration=updates(5),
        stopping=Stopping(evaluate_every=epochs(9)),
        records=RecordSettings(log_every=5),
        blocks=BlockSettings(size=9, penalty=GradientPenalty()),
        augmentation=replace(AUGMENTED, copies=copies),
    )
    first, again = (Training(task_of("resident"), recipe, world=ONE) for _ in range(2))
    ends = [cases.plain(training, list(training)) for training in (first, again)]
    begun = Training(task_of("resident"), recipe, world=ONE)
    for _ in range(2):
        begun.step()
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed = Training(task_of("resident"), recipe, world=ONE)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    cases.assert_same(ends[1], ends[0], tolerance=0.0)
    end = cases.plain(resumed, list(resumed))
    cases.assert_same(end, ends[0], tolerance=0.0)
    assert resumed.updates == 5


def test_without_a_micro_batch_size_a_full_batch_is_divided_by_the_evaluation_batch_size():
    compute = replace(cases.COMPUTE, evaluation_batch_size=10)
    training = Training(task_of("resident"), full_recipe(compute=compute), world=ONE)
    gradient_of(training)
    assert [len(part) for part in training.one_step.losses] == [10, 10, 3]
    ghosts = full_recipe(compute=compute, ghost_batch_size=4)
    assert pass_size(ghosts, divisible=True) == 8
    assert pass_size(replace(ghosts, ghost_batch_size=12), divisible=True) == 12
    assert pass_size(replace(ghosts, micro_batch_size=16), divisible=True) == 16
    assert pass_size(replace(ghosts, batch_size=16), divisible=True) is None
    coupled = Training(
        replace(task_of("resident"), build_model=lambda: nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3)
        )),
        full_recipe(compute=compute),
        world=ONE,
    )  # fmt: skip
    coupled.gradient(coupled.feed.next())
    assert [len(part) for part in coupled.one_step.losses] == [NUM_IMAGES]  # one ghost


# --- copies ------------------------------------------------------------------------------------


def with_copies(copies: int, kind: str) -> Augmentation:
    augmentation = AUGMENTED if kind in ("resident", "own") else Augmentation()
    return replace(augmentation, copies=copies)


@pytest.mark.parametrize("order", ["shuffled", "fixed"])
@pytest.mark.parametrize("kind", SOURCES)
def test_an_update_on_copies_is_the_mean_of_as_many_epochs(kind, order):
    plain = Training(
        task_of(kind), full_recipe(order=order, augmentation=with_copies(0, kind)), world=ONE
    )
    gradients = []
    for _ in range(3):
        gradients.append(gradient_of(plain).clone())
        plain.step()  # at lr 0
    mean = torch.stack(gradients).mean(0)
    assert relative(gradients[0], mean) > 1e-3
    recipe = full_recipe(order=order, augmentation=with_copies(3, kind), micro_batch_size=5)
    training = Training(task_of(kind), recipe, world=ONE)
    portion = training.feed.next()
    assert portion.num_examples == 3 * NUM_IMAGES
    assert relative(gradient_of(training), mean) < 1e-12
    training.step()
    assert training.feed.epoch == 1
    later = gradient_of(training)  # the copies are the same in every epoch
    assert relative(later, mean) < 1e-12
    if order == "fixed":
        training.feed.load_state_dict(training.feed.state_dict() | {"epoch": 5})
        assert torch.equal(gradient_of(training), later)


@pytest.mark.parametrize("kind", ["resident", "plain"])
def test_batches_of_copies_are_a_permutation_that_can_be_had_again(kind):
    augmentation = with_copies(2, kind)
    recipe = full_recipe(batch_size=10, augmentation=augmentation)
    task = task_of(kind)
    feed = Feed(task.source("train"), recipe, recipe_clock(recipe, NUM_IMAGES), ONE)
    seen = []
    for _ in range(5):  # 46 examples: the last batch has 6
        offset = feed.offset
        portion = feed.next()
        seen.append(portion.batch.indices)
        again = task.batch(0, offset, batch_size=10, seed=3, augmentation=augmentation)
        assert torch.equal(again.indices, portion.batch.indices)
        assert torch.equal(again.inputs, portion.batch.inputs)
        assert torch.equal(again.targets, portion.batch.targets)
        feed.advance(portion.num_examples)
    assert [len(indices) for indices in seen] == [10, 10, 10, 10, 6]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(2 * NUM_IMAGES))
    assert feed.epoch == 1


def test_copies_differ_and_are_the_epochs_of_their_number():
    source = resident()
    copies = copied(source, replace(AUGMENTED, copies=3))
    assert copied(copies, replace(AUGMENTED, copies=3)) is copies
    numbers = torch.tensor([5, 5 + NUM_IMAGES, 5 + 2 * NUM_IMAGES, 7])
    drawn = next(iter(copies.batches([numbers], epoch=9, seed=3, augmentation=AUGMENTED)))
    for row, (example, epoch) in enumerate(((5, 0), (5, 1), (5, 2), (7, 0))):
        expected = next(
            iter(source.batches([torch.tensor([example])], epoch=epoch, seed=3,
                                augmentation=AUGMENTED))
        )  # fmt: skip
        assert torch.equal(drawn.inputs[row], expected.inputs[0])
        assert int(drawn.targets[row]) == int(expected.targets[0])
    assert not torch.equal(drawn.inputs[0], drawn.inputs[1])


def test_inputs_in_nests_are_copied_too():
    inputs = {"one": torch.randn(4, 2), "two": (torch.randn(4), torch.arange(4))}
    source = ResidentSource.from_arrays(inputs, torch.arange(4))
    copies = copied(source, Augmentation(copies=2))
    [batch] = copies.batches([torch.tensor([6, 1, 2])])
    assert torch.equal(batch.inputs["one"], inputs["one"][[2, 1, 2]])
    assert torch.equal(batch.inputs["two"][1], torch.tensor([2, 1, 2]))
    assert torch.equal(batch.targets, torch.tensor([2, 1, 2]))


def test_lengths_clock_and_preview_count_every_copy():
    recipe = full_recipe(
        batch_size=10, augmentation=replace(AUGMENTED, copies=4), duration=epochs(2)
    )
    clock = recipe_clock(recipe, NUM_IMAGES)
    assert (clock.examples_per_epoch, clock.total_examples) == (92, 184)
    rows = preview(recipe, NUM_IMAGES)
    assert [row.batch_size for row in rows] == 2 * [*[10] * 9, 2]
    assert rows[-1].epoch == 2.0
    training = Training(task_of("resident"), recipe, world=ONE)
    still = training.feed.standing_still(batch_size=92)
    assert still.next().num_examples == 92
    still.advance(92)
    assert (still.epoch, still.offset) == (1, 0)
    assert training.evaluate("train").loss > 0


def test_an_example_of_a_copy_is_named_by_its_number_in_the_data():
    part = StreamedSource(RandomDataset(40)).subset(torch.arange(3, 26))
    copies: Source = copied(part, Augmentation(copies=3))
    assert copies.num_examples == 69
    assert [example_number(copies, index) for index in (0, 22, 23, 68)] == [3, 25, 3, 25]
    assert example_number(copied(resident(), Augmentation(copies=2)), NUM_IMAGES + 4) == 4

    class Broken(RandomDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 7:
                raise ValueError("no such file")
            return super().__getitem__(index)

    broken = copied(StreamedSource(Broken()), Augmentation(copies=2))
    with pytest.raises(InputError, match="must give example 7, got ValueError: no such file"):
        list(broken.batches([torch.tensor([NUM_IMAGES + 7])]))


def test_copies_of_a_stream_and_augmentation_of_a_plain_data_set_are_refused():
    stream = IterableSource([(torch.zeros(6), 0)] * 4, num_examples=4)
    with pytest.raises(InputError, match=r"augmentation.copies must be 0 for a stream"):
        copied(stream, Augmentation(copies=2))
    with pytest.raises(InputError, match="plain Dataset cannot be augmented"):
        copied(StreamedSource(RandomDataset()), replace(AUGMENTED, copies=2))
    with pytest.raises(InputError, match="before it is copied"):
        copied(resident(), Augmentation(copies=2)).subset(torch.arange(2))


# --- memory ------------------------------------------------------------------------------------


def peak_mib(num_examples: int, *, penalty: bool) -> float:
    """Peak resident memory without the data, of a fresh process that takes two full updates."""
    command = [
        sys.executable, "-m", "benchmarks.full_batch_step", "--memory", str(num_examples),
        *(["--penalty"] if penalty else []),
    ]  # fmt: skip
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(json.loads(done.stdout)["peak_mib_without_data"])


def test_the_memory_of_a_full_batch_does_not_grow_with_the_data():
    small = peak_mib(3_000, penalty=False)
    for penalty in (False, True):
        # Held at once, 9,000 images more would be 105 MiB as float32.
        assert peak_mib(12_000, penalty=penalty) <= 1.05 * small


# --- the published rows ------------------------------------------------------------------------

ROWS = [name for name in shipped_recipe_names() if name.startswith("full-batch/")]


@pytest.fixture(scope="module")
def photographs() -> Task:
    """256 images of the JPEG copy of CIFAR-10, of all classes."""
    root = os.environ.get("ANYBATCH_DATA")
    if not root or not (Path(root) / "cifar10-jpeg.tar.xz").exists():
        pytest.skip("cifar10-jpeg.tar.xz is not in ANYBATCH_DATA")
    pixels, labels, classes = [], [], set()
    with tarfile.open(Path(root) / "cifar10-jpeg.tar.xz") as archive:
        members = (m for m in archive if "train/" in m.name and m.name.endswith(".jpg"))
        for member in itertools.islice(members, 0, None, 195):
            file = archive.extractfile(member)
            assert file is not None
            pixels.append(np.asarray(Image.open(file)))
            classes.add(member.name.split("/")[-2])
            labels.append(len(classes) - 1)
    scale = Normalization(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    inputs, targets = torch.from_numpy(np.stack(pixels[:256])), torch.tensor(labels[:256])
    source = ResidentSource.from_arrays(inputs, targets, normalization=scale)
    assert len(classes) == 10
    return Task(
        build_model=nn.Identity,
        train=source,
        validation=source.subset(torch.arange(20)),
        shape=ModelShape(input_shape=(3, 32, 32), num_outputs=10),
    )


def test_there_are_seven_rows_with_their_origin():
    assert [name.removeprefix("full-batch/") for name in ROWS] == [
        "baseline-sgd", "clip", "fb1", "fb2", "in-practice", "regularized",
        "strong-regularization",
    ]  # fmt: skip
    for name in ROWS:
        recipe = load_recipe(name)
        assert recipe.origin is not None
        assert (recipe.origin.year, recipe.origin.article) == (2022, 4)
        rows = preview(recipe, 45_000)
        assert rows[-1].epoch == (300 if name.endswith(("sgd", "fb1")) else 3000)
        peak = max(row.lr for row in rows)
        assert peak == pytest.approx(recipe.optimizer.lr)
        long = rows[-1].epoch == 3000
        assert rows[-1].lr / peak == pytest.approx(0.273 if long else 0.0, abs=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_takes_two_updates(name, photographs):
    small = ["model.width=0.125", "compute.device=cpu"]
    training = Training(photographs, load_recipe(name, small), world=ONE)
    before = [p.detach().clone() for p in training.model.parameters()]
    for _ in range(2):  # the first one of a warm-up has lr 0
        training.step()
    after = list(training.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(bool(p.isfinite().all()) for p in after)
    norms = training.one_step.block_norms
    blocks = training.recipe.blocks
    assert (norms is None) == (blocks is None)
    full = training.recipe.batch_size == "full"
    assert training.feed.last_size == (256 if full else 128)
    passes = [len(part) for part in training.one_step.losses]
    assert set(passes) == {32 if blocks is not None and blocks.size == 32 else 128}
