"""Random erasing: against a loop over examples in Python, pure in its draws, and in a training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from anybatch.cli import main
from anybatch.data.augmentation import Normalization, augment_images
from anybatch.data.draws import normal, uniform
from anybatch.data.erasing import erase_rectangles
from anybatch.data.image_folder import load_image_folder
from anybatch.data.items import augments
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError
from anybatch.recipe import Augmentation, RandomErasing, Recipe, SGDSettings
from anybatch.recipe_file import load_recipe
from anybatch.records import EvalRecord
from anybatch.schedules import epochs
from anybatch.task import Task, load_task
from anybatch.training.training import Training

PLAIN = Normalization(mean=(0.0, 0.0), std=(1.0, 1.0), scale=1.0)
SETTINGS = st.builds(
    RandomErasing,
    probability=st.floats(0, 1),
    smallest_area=st.floats(0.01, 0.3),
    largest_area=st.floats(0.3, 1.0),
    lowest_aspect=st.floats(0.1, 1),
    filling=st.sampled_from(["noise", "mean"]),
)


def some_images(n: int = 6, height: int = 9, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, height, width, 2), dtype=torch.uint8, generator=generator)


def erased(
    images: Tensor, indices: Tensor, settings: RandomErasing, seed: int = 0, epoch: int = 0
) -> Tensor:
    """Shape (n, C, H, W)."""
    return augment_images(
        images,
        indices,
        normalization=PLAIN,
        augmentation=Augmentation(erasing=settings),
        seed=seed,
        epoch=epoch,
    )


def draw(counter: int, stream: int, seed: int, epoch: int) -> float:
    return float(uniform(torch.tensor([counter]), seed=seed, epoch=epoch, stream=stream))


def naive(image: Tensor, index: int, a: RandomErasing, seed: int, epoch: int) -> Tensor:
    """One image of shape (H, W, C), step by step."""
    result = image.float()
    height, width, channels = image.shape
    if draw(index, 6, seed, epoch) >= a.probability:
        return result
    for attempt in range(10):
        counter = 10 * index + attempt
        share = a.smallest_area + (a.largest_area - a.smallest_area) * draw(counter, 7, seed, epoch)
        low, high = a.lowest_aspect, 1 / a.lowest_aspect
        aspect = low + (high - low) * draw(counter, 8, seed, epoch)
        tall = max(1, round(math.sqrt(share * (height * width) * aspect)))
        wide = max(1, round(math.sqrt(share * (height * width) / aspect)))
        if tall <= height and wide <= width:
            break
    else:
        return result
    top = int(draw(index, 9, seed, epoch) * (height - tall + 1))
    left = int(draw(index, 10, seed, epoch) * (width - wide + 1))
    for row in range(top, top + tall):
        for column in range(left, left + wide):
            place = ((index * height + row) * width + column) * channels
            counters = torch.arange(place, place + channels)
            values = normal(counters, seed=seed, epoch=epoch, stream=11)
            result[row, column] = 0.0 if a.filling == "mean" else values
    return result


@settings(max_examples=60, deadline=None)
@given(
    SETTINGS,
    st.integers(0, 10**6),
    st.integers(0, 5),
    st.integers(0, 10**6),
    st.sampled_from([(9, 7), (5, 12), (2, 2), (1, 30)]),
)
def test_images_equal_a_loop_over_examples(
    settings: RandomErasing, seed: int, epoch: int, first: int, size: tuple[int, int]
) -> None:
    images = some_images(6, *size)
    result = erased(images, torch.arange(first, first + 6), settings, seed, epoch)
    for row, image in enumerate(images):
        expected = naive(image, first + row, settings, seed, epoch).permute(2, 0, 1)
        assert torch.equal(result[row], expected)


@settings(max_examples=30, deadline=None)
@given(SETTINGS, st.lists(st.integers(0, 5), min_size=1, max_size=10), st.integers(0, 1000))
def test_an_example_does_not_depend_on_the_rest_of_the_batch(
    settings: RandomErasing, chosen: list[int], seed: int
) -> None:
    images = some_images()
    everything = erased(images, torch.arange(6), settings, seed, 3)
    part = torch.tensor(chosen)
    assert torch.equal(erased(images[part], part, settings, seed, 3), everything[chosen])


def test_area_aspect_and_place_are_uniform() -> None:
    n, side = 4000, 64
    images = torch.ones(n, side, side, 2, dtype=torch.uint8)
    settings = RandomErasing(probability=0.75, filling="mean")
    gone = erased(images, torch.arange(n), settings)[:, 0] == 0
    hit = gone.flatten(1).any(1)
    assert float(hit.float().mean()) == pytest.approx(0.75, abs=0.03)
    rows, columns = gone[hit].any(2), gone[hit].any(1)
    tall, wide = rows.sum(1).float(), columns.sum(1).float()
    assert torch.equal(gone[hit].flatten(1).sum(1).float(), tall * wide)  # rectangles
    area = tall * wide / side**2
    assert 0.018 < float(area.min()) < 0.025
    assert 0.38 < float(area.max()) < 0.41
    # Uniform on [0.02, 0.4], but for the tall ones of the largest areas, which do not fit.
    assert float(area.mean()) == pytest.approx(0.21, abs=0.01)
    aspect = tall / wide
    assert 0.28 < float(aspect.min()) < 0.32
    assert 3.1 < float(aspect.max()) < 3.6
    small = area < 0.2  # all of them fit: the aspect is uniform, not its logarithm
    assert float(aspect[small].mean()) == pytest.approx((0.3 + 1 / 0.3) / 2, abs=0.06)
    top = rows.float().argmax(1) / (side - tall).clamp(min=1)
    assert float(top.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(top.min()) == 0.0
    assert float(top.max()) == 1.0


def test_noise_is_standard_normal_whatever_the_image_and_its_channels() -> None:
    images = torch.full((500, 20, 20, 2), 200, dtype=torch.uint8)
    result = erased(images, torch.arange(500), RandomErasing(probability=1.0))
    noise = result[result != 200]
    assert 50_000 < len(noise) < 120_000
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    gone = (result != 200).all(1)
    first, second = result[:, 0][gone], result[:, 1][gone]
    assert abs(float((first * second).mean())) < 0.02


def test_draws_differ_between_epochs_and_seeds() -> None:
    images, indices = some_images(50), torch.arange(50)
    whole = erased(images, indices, RandomErasing())
    assert torch.equal(whole, erased(images, indices, RandomErasing()))
    assert not torch.equal(whole, erased(images, indices, RandomErasing(), epoch=1))
    assert not torch.equal(whole, erased(images, indices, RandomErasing(), seed=1))
    assert torch.equal(
        erased(images, indices, RandomErasing(probability=0.0)),
        images.float().permute(0, 3, 1, 2),
    )


def test_erasing_comes_last_and_asks_for_augmentation() -> None:
    images, indices = some_images(50), torch.arange(50)
    before = Augmentation(crop_padding=2, flip="random", cutout_size=3)
    both = replace(before, erasing=RandomErasing(filling="mean"))
    assert augments(Augmentation(erasing=RandomErasing()))
    plain, changed = (
        augment_images(images, indices, normalization=PLAIN, augmentation=augmentation)
        for augmentation in (before, both)
    )
    assert torch.equal(changed[changed != 0], plain[changed != 0])
    assert (changed == 0).sum() > (plain == 0).sum()


# --- in loaders and trainings --------------------------------------------------------------------


def test_streamed_images_are_erased_each_by_itself(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog") * 3):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    source = load_image_folder(tmp_path, image_size=12).train
    assert isinstance(source, StreamedSource)
    indices, arguments = torch.arange(6), {"seed": 1, "epoch": 2}
    erasing = RandomErasing(probability=0.5)
    augmentation = Augmentation(erasing=erasing)
    (plain,) = source.batches([indices], **arguments)
    (whole,) = source.batches([indices], augmentation=augmentation, **arguments)
    parts = source.batches(indices.split(1), augmentation=augmentation, **arguments)
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    expected = plain.inputs.permute(0, 2, 3, 1).contiguous()
    erase_rectangles(expected, indices, erasing, **arguments)  # the draws of those in memory
    assert torch.equal(whole.inputs, expected.permute(0, 3, 1, 2))
    assert 0 < (whole.inputs != plain.inputs).flatten(1).any(1).sum() < 6


def test_erasing_changes_the_training_and_not_the_evaluation() -> None:
    task, recipe = load_task("digits"), replace(load_recipe("digits"), duration=epochs(2))
    erasing = replace(recipe, augmentation=Augmentation(erasing=RandomErasing()))
    trained = []
    for one in (recipe, erasing):
        with Training(task, one) as training:
            before = training.evaluate("validation")
            trained.append((before.loss, list(training)))
    (loss, plain), (same, changed) = trained
    assert loss == same
    assert [r.loss for r in plain] != [r.loss for r in changed]
    last = changed[-1]
    assert isinstance(last, EvalRecord)
    assert last.metric > 0.8  # whole digits are still known


def test_data_that_are_no_images_cannot_be_erased() -> None:
    data = torch.randn(20, 3), torch.arange(20) % 2
    task = Task(build_model=lambda: torch.nn.Linear(3, 2), train=data)
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=4, duration=epochs(1),
        augmentation=Augmentation(erasing=RandomErasing()),
    )  # fmt: skip
    with Training(task, recipe) as training, pytest.raises(InputError, match="cannot be augmented"):
        training.step()


def test_one_recipe_line_erases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "digits", "--set", "duration=2 epochs", "--out", "out"]
    line = 'augmentation.erasing={ largest_area = 0.25, filling = "mean" }'
    assert main([*arguments, "--set", line]) == 0
    assert '"filling": "mean"' in (tmp_path / "out" / "recipe.json").read_text()
