"""Random erasing: a rectangle of an image filled with noise or the mean colour."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from anybatch.data.draws import normal, uniform
from anybatch.recipe import RandomErasing

__all__ = ["erase_rectangles"]

# Beside the streams of `augmentation`, on the same counters.
_WHETHER_STREAM: Final = 6
_AREA_STREAM: Final = 7
_ASPECT_STREAM: Final = 8
_TOP_STREAM: Final = 9
_LEFT_STREAM: Final = 10
_NOISE_STREAM: Final = 11
_ATTEMPTS: Final = 10


def erase_rectangles(
    images: Tensor, indices: Tensor, settings: RandomErasing, *, seed: int, epoch: int
) -> None:
    """Fill a rectangle of some images, in place, each by its own draws.

    With probability p, on an image of H x W pixels: area a H W with a uniform in [smallest_area,
    largest_area], aspect r = height / width uniform in [lowest_aspect, 1 / lowest_aspect];
    height round(sqrt(a H W r)), width round(sqrt(a H W / r)), at least one pixel. The first of ten
    such rectangles that fits is put at a uniform place; if none does, the image stays as it is.

    So the area stays uniform. The paper draws the place with the size and draws all four anew
    while the rectangle reaches over the edge, which favours small ones.

    Args:
        images: normalized, shape (n, H, W, C).
        indices: int64, shape (n,), same device: the examples' numbers within their split.
        settings: probability, bounds and filling.
        seed: the run's seed.
        epoch: number of the pass over the data.

    Cost:
        23 draws an image, and with noise one for every pixel that is erased (on a GPU for every
        pixel, as counting them would make the host wait).

    Reference:
        Zhong, Zheng, Kang, Li, Yang (2017), Random erasing data augmentation, algorithm 1.
    """
    mask = _erased(images, indices, settings, seed, epoch)
    if settings.filling == "mean":
        images.masked_fill_(mask[:, :, :, None], 0)
        return
    if images.device.type == "cpu":
        pixels = mask.flatten().nonzero().squeeze(1)
        images.masked_scatter_(mask[:, :, :, None], _noise(images, indices, pixels, seed, epoch))
    else:
        pixels = torch.arange(mask.numel(), device=mask.device)
        noise = _noise(images, indices, pixels, seed, epoch).view(images.shape)
        images.copy_(torch.where(mask[:, :, :, None], noise, images))


def _noise(images: Tensor, indices: Tensor, pixels: Tensor, seed: int, epoch: int) -> Tensor:
    """Standard normal numbers for some pixels, numbered through the batch; shape (pixels, C)."""
    _, height, width, channels = images.shape
    area = height * width
    of_split = indices.index_select(0, pixels // area) * area + pixels % area
    counters = of_split[:, None] * channels + torch.arange(channels, device=pixels.device)
    flat = normal(counters.flatten(), seed=seed, epoch=epoch, stream=_NOISE_STREAM)
    return flat.view(-1, channels).to(images.dtype)


def _erased(
    images: Tensor, indices: Tensor, settings: RandomErasing, seed: int, epoch: int
) -> Tensor:
    """Which pixels, shape (n, H, W)."""
    _, height, width, _ = images.shape

    def drawn(counters: Tensor, stream: int) -> Tensor:
        return uniform(counters, seed=seed, epoch=epoch, stream=stream)

    attempts = torch.arange(_ATTEMPTS, device=indices.device)
    counters = (indices[:, None] * _ATTEMPTS + attempts).flatten()
    low, high = settings.smallest_area, settings.largest_area
    area = (low + (high - low) * drawn(counters, _AREA_STREAM)) * (height * width)
    flat, tall = settings.lowest_aspect, 1.0 / settings.lowest_aspect
    aspect = flat + (tall - flat) * drawn(counters, _ASPECT_STREAM)
    heights = (area * aspect).sqrt().round().clamp(min=1.0).view(-1, _ATTEMPTS)
    widths = (area / aspect).sqrt().round().clamp(min=1.0).view(-1, _ATTEMPTS)
    fits = (heights <= height) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    wanted = drawn(indices, _WHETHER_STREAM) < settings.probability
    wanted &= fits.gather(1, first).squeeze(1)
    rows = _covered(height, heights.gather(1, first), drawn(indices, _TOP_STREAM))
    columns = _covered(width, widths.gather(1, first), drawn(indices, _LEFT_STREAM))
    return wanted[:, None, None] & rows[:, :, None] & columns[:, None, :]


def _covered(length: int, size: Tensor, place: Tensor) -> Tensor:
    """Positions of a run of `size` (n, 1) at a uniform place (n,) among those where it fits."""
    begin = (place[:, None] * (length - size + 1.0)).floor()
    positions = torch.arange(length, device=place.device)[None, :]
    return (positions >= begin) & (positions < begin + size)
