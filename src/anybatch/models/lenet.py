"""LeNet-5, in the form that is common today: ReLU and maximum pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anybatch.models.geometry import (
    require_at_least_one,
    require_image_size,
    scaled_channels,
)

__all__ = ["LeNet"]

_PUBLISHED_SIDE = 32
_MINIMUM_SIDE = 12


class LeNet(nn.Module):
    """LeNet-5 of LeCun et al. (1998) with ReLU, maximum pooling and full connections.

    Convolution 5x5 to 6 channels, pool 2, convolution 5x5 to 16, pool 2, linear 120, 84, outputs.
    The published network sees 28 x 28 digits in the middle of 32 x 32 pixels; so images with a
    side below 32 get two pixels of zero padding in the first convolution, larger ones none.
    Departures from 1998: ReLU for the scaled tanh, maximum for trainable average pooling, every
    channel connected, a linear head. 61,706 parameters on 28 x 28 x 1 images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        image_size: (height, width), each at least 12 pixels.
        width: multiplier of all hidden channels and units, > 0.

    Raises:
        InputError: if an image is smaller than 12 x 12 pixels, or an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        image_size: Sequence[int] = (28, 28),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        require_at_least_one("in_channels", in_channels)
        require_at_least_one("num_classes", num_classes)
        require_image_size("lenet", image_size, _MINIMUM_SIDE)
        padding = 2 if min(image_size) < _PUBLISHED_SIDE else 0
        channels_1, channels_2 = scaled_channels(6, width), scaled_channels(16, width)
        units_1, units_2 = scaled_channels(120, width), scaled_channels(84, width)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, channels_1, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels_1, channels_2, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        height, breadth = (((side - 4 + 2 * padding) // 2 - 4) // 2 for side in image_size)
        self.classifier = nn.Sequential(
            nn.Linear(channels_2 * height * breadth, units_1),
            nn.ReLU(),
            nn.Linear(units_1, units_2),
            nn.ReLU(),
            nn.Linear(units_2, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
