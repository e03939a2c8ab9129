"""Image dataset: images decoded one by one, resized and augmented."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anybatch.data.augmentation import Normalization, augment_images
from anybatch.data.draws import uniform
from anybatch.data.image_files import ImageFile, decode_image
from anybatch.recipe import Augmentation

__all__ = ["ImageDataset", "centre_crop", "resized_crop_box"]

_AREA_STREAM: Final = 16
_ASPECT_STREAM: Final = 17
_LEFT_STREAM: Final = 18
_TOP_STREAM: Final = 19
_ATTEMPTS: Final = 10
_LEAST_AREA: Final = 0.08
_WIDEST_ASPECT: Final = 4 / 3
_RESIZE_RATIO: Final = 256 / 224


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageDataset:
    """Images of any size, delivered as squares; an `EpochDataset`.

    Attributes:
        files: one for each example.
        labels: class number of each example.
        image_size: side in pixels of what is delivered.
        normalization: for the channels red, green, blue.
    """

    files: list[ImageFile]
    labels: list[int]
    image_size: int
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.files)

    def item(
        self, index: int, *, epoch: int, seed: int, augmentation: Augmentation | None
    ) -> tuple[Tensor, int]:
        """Image of shape (3, image_size, image_size), normalized float32, and class number.

        With `random_resized_crop` a random box is resized to the square; otherwise the image is
        resized and its centre taken. The other augmentations follow on the square.

        Args:
            index: the example's number in the dataset.
            epoch: number of the pass over the data.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.

        Raises:
            InputError: if the file cannot be read or decoded.
        """
        image = decode_image(self.files[index])
        if augmentation is not None and augmentation.random_resized_crop:
            box = resized_crop_box(image.width, image.height, index, seed=seed, epoch=epoch)
            side = (self.image_size, self.image_size)
            square = image.resize(side, Image.Resampling.BILINEAR, box=box)
        else:
            square = centre_crop(image, self.image_size)
        pixels = augment_images(
            torch.from_numpy(np.array(square))[None],
            torch.tensor([index]),
            normalization=self.normalization,
            augmentation=augmentation,
            seed=seed,
            epoch=epoch,
        )
        return pixels[0], self.labels[index]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to round(size 256 / 224), then take the centre square.

    Args:
        image: of any size.
        size: side in pixels of the result.

    Example:
        >>> centre_crop(Image.new("RGB", (500, 375)), 224).size
        (224, 224)
    """
    short = round(size * _RESIZE_RATIO)
    width, height = image.size
    if width < height:
        resized = (short, max(short, round(height * short / width)))
    else:
        resized = (max(short, round(width * short / height)), short)
    image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def resized_crop_box(
    width: int, height: int, index: int, *, seed: int, epoch: int
) -> tuple[int, int, int, int]:
    """A random box for one example in one epoch.

    Its area is uniform in [8 %, 100 %] of the image and the logarithm of its aspect (width /
    height) uniform in [log 3/4, log 4/3]. The first of ten boxes that fits is taken, at a uniform
    place; if none does, the largest centred one whose aspect lies within those bounds.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        index: the example's number.
        seed: the run's seed.
        epoch: number of the pass over the data.

    Returns:
        Left, top, right and bottom in pixels; right and bottom are the first ones outside.

    Example:
        >>> resized_crop_box(500, 375, 0, seed=0, epoch=0) == resized_crop_box(
        ...     500, 375, 0, seed=0, epoch=1)
        False

    Reference:
        Szegedy et al. (2015), Going deeper with convolutions, Section 6.
    """
    counters = torch.arange(_ATTEMPTS) + index * _ATTEMPTS
    areas, aspects, lefts, tops = (
        uniform(counters, seed=seed, epoch=epoch, stream=stream).tolist()
        for stream in (_AREA_STREAM, _ASPECT_STREAM, _LEFT_STREAM, _TOP_STREAM)
    )
    for attempt in range(_ATTEMPTS):
        area = width * height * (_LEAST_AREA + (1 - _LEAST_AREA) * areas[attempt])
        aspect = _WIDEST_ASPECT ** (2 * aspects[attempt] - 1)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(lefts[attempt] * (width - box_width + 1))
            top = int(tops[attempt] * (height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = max(1, min(width, round(height * _WIDEST_ASPECT)))
    box_height = max(1, min(height, round(width * _WIDEST_ASPECT)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
