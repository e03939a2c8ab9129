"""Augmentation: against a loop over examples with torch's own padding, and pure in its draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from anybatch.data.augmentation import Normalization, augment_images
from anybatch.data.draws import integers
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

NORMALIZATION = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def some_images(n: int = 6, height: int = 9, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def normalized(image: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(NORMALIZATION.mean)[:, None, None]
    std = torch.tensor(NORMALIZATION.std)[:, None, None]
    return (image.float() / 255 - mean) / std


def one_draw(index: int, high: int, stream: int, seed: int, epoch: int) -> int:
    return int(integers(torch.tensor([index]), high, seed=seed, epoch=epoch, stream=stream))


def naive(image: torch.Tensor, index: int, a: Augmentation, seed: int, epoch: int) -> torch.Tensor:
    """One image of shape (H, W, C), augmented step by step."""
    raw = image.permute(2, 0, 1)
    _, height, width = raw.shape
    p = a.crop_padding
    if p:
        mode = "reflect" if a.padding_mode == "reflect" else "constant"
        padded = pad(raw.float()[None], (p, p, p, p), mode=mode)[0].to(torch.uint8)
        top = one_draw(index, 2 * p + 1, 0, seed, epoch)
        left = one_draw(index, 2 * p + 1, 1, seed, epoch)
        raw = padded[:, top : top + height, left : left + width]
    mirrored = False
    if a.flip == "random":
        mirrored = one_draw(index, 2, 2, seed, epoch) == 1
    elif a.flip == "alternating":
        mirrored = (one_draw(index, 2, 3, seed, 0) + epoch) % 2 == 1
    if mirrored:
        raw = raw.flip(2)
    result = normalized(raw)
    if a.cutout_size:
        top = one_draw(index, height, 4, seed, epoch) - a.cutout_size // 2
        left = one_draw(index, width, 5, seed, epoch) - a.cutout_size // 2
        rows = slice(max(0, top), max(0, top + a.cutout_size))
        columns = slice(max(0, left), max(0, left + a.cutout_size))
        result[:, rows, columns] = 0
    return result


@settings(max_examples=60, deadline=None)
@given(
    augmentation=st.builds(
        Augmentation,
        crop_padding=st.integers(0, 6),
        padding_mode=st.sampled_from(["reflect", "zero"]),
        flip=st.sampled_from(["none", "random", "alternating"]),
        cutout_size=st.integers(0, 9),
    ),
    seed=st.integers(0, 10**6),
    epoch=st.integers(0, 5),
    first=st.integers(0, 10**6),
)
def test_images_equal_a_loop_over_examples(augmentation, seed, epoch, first):
    images = some_images()
    indices = torch.arange(first, first + len(images))
    result = augment_images(
        images,
        indices,
        normalization=NORMALIZATION,
        augmentation=augmentation,
        seed=seed,
        epoch=epoch,
    )
    for row, image in enumerate(images):
        expected = naive(image, first + row, augmentation, seed, epoch)
        torch.testing.assert_close(result[row], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 5), min_size=1, max_size=10),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 3),
)
def test_an_example_does_not_depend_on_the_rest_of_the_batch(chosen, seed, epoch):
    images = some_images()
    augmentation = Augmentation(crop_padding=2, flip="random", cutout_size=3)

    def augmented(indices: torch.Tensor) -> torch.Tensor:
        return augment_images(
            images[indices],
            indices,
            normalization=NORMALIZATION,
            augmentation=augmentation,
            seed=seed,
            epoch=epoch,
        )

    everything = augmented(torch.arange(6))
    assert torch.equal(augmented(torch.tensor(chosen)), everything[chosen])


def test_alternating_flip_shows_both_orientations_in_any_two_epochs():
    images = some_images(n=200)
    indices = torch.arange(200)
    plain = augment_images(images, indices, normalization=NORMALIZATION)
    augmentation = Augmentation(flip="alternating")
    epochs = [
        augment_images(
            images,
            indices,
            normalization=NORMALIZATION,
            augmentation=augmentation,
            seed=3,
            epoch=epoch,
        )
        for epoch in range(3)
    ]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0], epochs[1].flip(3))
    kept = (epochs[0] == plain).flatten(1).all(1).sum().item()
    assert 70 < kept < 130  # half of the examples begin mirrored


def test_draws_differ_between_epochs_and_seeds():
    images, indices = some_images(n=50), torch.arange(50)

    def augmented(seed: int, epoch: int) -> torch.Tensor:
        return augment_images(
            images,
            indices,
            normalization=NORMALIZATION,
            augmentation=Augmentation(crop_padding=3, flip="random", cutout_size=3),
            seed=seed,
            epoch=epoch,
        )

    assert torch.equal(augmented(0, 0), augmented(0, 0))
    assert not torch.equal(augmented(0, 0), augmented(0, 1))
    assert not torch.equal(augmented(0, 0), augmented(1, 0))


def test_all_crop_offsets_and_cutout_centres_occur():
    n = 2000
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 5, 5, 1).expand(n, 5, 5, 1)
    plain = Normalization(mean=(0.0,), std=(1.0,), scale=1.0)
    indices = torch.arange(n)
    cropped = augment_images(
        image,
        indices,
        normalization=plain,
        augmentation=Augmentation(crop_padding=1, padding_mode="zero"),
    )
    assert len(torch.unique(cropped.flatten(1), dim=0)) == 9
    cut = augment_images(
        image, indices, normalization=plain, augmentation=Augmentation(cutout_size=1)
    )
    zeros = (cut == 0).flatten(1)
    assert (zeros.sum(1) == 1).all()
    assert len(torch.unique(zeros.int().argmax(1))) == 25


def test_zero_padding_is_black_before_normalization():
    images = torch.full((40, 4, 4, 3), 255, dtype=torch.uint8)
    result = augment_images(
        images,
        torch.arange(40),
        normalization=NORMALIZATION,
        augmentation=Augmentation(crop_padding=4, padding_mode="zero"),
    )
    black = normalized(torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten()
    white = normalized(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
    for channel in range(3):
        values = torch.unique(result[:, channel])
        torch.testing.assert_close(values, torch.stack([black[channel], white[channel]]))


def test_the_result_lies_channels_last():
    result = augment_images(some_images(), torch.arange(6), normalization=NORMALIZATION)
    assert result.shape == (6, 3, 9, 7)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("images", "augmentation", "message"),
    [
        (torch.zeros(2, 4, 4, 3), None, "images must be uint8 of shape (n, H, W, C)"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, "images must be uint8 of shape"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), None, "normalization must have 1 channels"),
        (
            torch.zeros(2, 4, 5, 3, dtype=torch.uint8),
            Augmentation(crop_padding=4),
            "crop_padding must be smaller than the image (4 x 5) to be reflected, got 4",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(images, augmentation, message):
    with pytest.raises(InputError) as caught:
        augment_images(
            images,
            torch.arange(len(images)),
            normalization=NORMALIZATION,
            augmentation=augmentation,
        )
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mean": (0.5,), "std": (0.5, 0.5)},
        {"mean": (), "std": ()},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": (0.5,), "std": (0.5,), "scale": 0.0},
    ],
)
def test_a_normalization_must_make_sense(arguments):
    with pytest.raises(InputError):
        Normalization(**arguments)
