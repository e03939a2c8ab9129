"""Channel counts under a width multiplier, and the checks of counts and image sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anybatch.errors import InputError

__all__ = ["require_at_least_one", "require_image_size", "scaled_channels"]

_CHANNEL_MULTIPLE = 8


def scaled_channels(published_channels: int, width: float) -> int:
    """The number of channels of a layer in a network of another width.

    `max(8, 8 * floor(published_channels * width / 8 + 1/2))`, and exactly `published_channels`
    where `width` is 1, also when that is no multiple of 8 (LeNet's 6 channels).

    Args:
        published_channels: channels at width 1, an integer >= 1.
        width: the multiplier, finite and > 0.

    Returns:
        A multiple of 8 that is at least 8, or `published_channels` itself at width 1.

    Raises:
        InputError: if `width` is not finite and > 0, or `published_channels` < 1.

    Example:
        >>> scaled_channels(64, 0.5), scaled_channels(64, 0.3), scaled_channels(6, 1.0)
        (32, 16, 6)
    """
    require_at_least_one("published_channels", published_channels)
    if not (math.isfinite(width) and width > 0):
        raise InputError("width", "must be finite and > 0", width)
    if width == 1:
        return published_channels
    groups = math.floor(published_channels * width / _CHANNEL_MULTIPLE + 0.5)
    return _CHANNEL_MULTIPLE * max(1, groups)


def require_at_least_one(name: str, value: int) -> None:
    """Refuse a count below 1.

    Args:
        name: what is counted, as the user calls it.
        value: the count.

    Raises:
        InputError: if `value` < 1.
    """
    if value < 1:
        raise InputError(name, "must be >= 1", value)


def require_image_size(model: str, image_size: Sequence[int], minimum_side: int) -> None:
    """Refuse an image that would shrink to nothing inside a network.

    Args:
        model: the network's name, for the message.
        image_size: (height, width) in pixels.
        minimum_side: the smallest height and width that leave at least one pixel everywhere.

    Raises:
        InputError: if `image_size` is not two numbers, each >= `minimum_side`.
    """
    if len(image_size) != 2:
        raise InputError(f"image_size of {model}", "must be (height, width)", tuple(image_size))
    if min(image_size) < minimum_side:
        height, width = image_size
        raise InputError(
            f"image_size of {model}",
            f"must be at least {minimum_side} x {minimum_side} pixels",
            f"{height} x {width}",
            hint="mlp takes images of any size",
        )
