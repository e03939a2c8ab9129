"""The two small convolutional networks of the batch-size studies.

Both have two 5x5 convolutions with 32 and 64 channels, each with ReLU and 2x2 maximum pooling;
they differ in padding, in the hidden linear layer and in the initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anybatch.models.geometry import (
    require_at_least_one,
    require_image_size,
    scaled_channels,
)
from anybatch.models.initialization import initialize_variance_scaling

__all__ = ["LeeSimpleCNN", "ShallueSimpleCNN"]


class ShallueSimpleCNN(nn.Module):
    """Simple CNN of Shallue et al. (2019): padded convolutions and a hidden layer of 1,024 units.

    Convolution 5x5 to 32 channels, ReLU, pool 2, convolution 5x5 to 64, ReLU, pool 2, linear
    1,024, ReLU, linear to the classes. Weights begin with torch's defaults. The paper's narrow
    and wide networks are widths 0.5 and 2. 3,274,634 parameters on 28 x 28 x 1 images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        image_size: (height, width), each at least 4 pixels.
        width: multiplier of all hidden channels and units, > 0.

    Raises:
        InputError: if an image is smaller than 4 x 4 pixels, or an argument is out of range.
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
        require_at_least_one("num_classes", num_classes)
        require_image_size("simple-cnn-shallue", image_size, 4)
        channels, units = scaled_channels(64, width), scaled_channels(1024, width)
        self.features = _two_convolutions(in_channels, width, padding=2)
        height, breadth = (side // 2 // 2 for side in image_size)
        self.classifier = nn.Sequential(
            nn.Linear(channels * height * breadth, units),
            nn.ReLU(),
            nn.Linear(units, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class LeeSimpleCNN(nn.Module):
    """Simple CNN of Lee et al. (2021): unpadded convolutions and no hidden linear layer.

    Convolution 5x5 to 32 channels, ReLU, pool 2, convolution 5x5 to 64, ReLU, pool 2, linear to
    the classes. Weights begin with variance 1 / fan_in, biases with 0, as in the published code.
    62,346 parameters on 28 x 28 x 1 images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        image_size: (height, width), each at least 16 pixels.
        width: multiplier of the hidden channels, > 0.

    Raises:
        InputError: if an image is smaller than 16 x 16 pixels, or an argument is out of range.
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
        require_at_least_one("num_classes", num_classes)
        require_image_size("simple-cnn-lee", image_size, 16)
        self.features = _two_convolutions(in_channels, width, padding=0)
        height, breadth = (((side - 4) // 2 - 4) // 2 for side in image_size)
        self.classifier = nn.Linear(scaled_channels(64, width) * height * breadth, num_classes)
        initialize_variance_scaling(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _two_convolutions(in_channels: int, width: float, *, padding: int) -> nn.Sequential:
    require_at_least_one("in_channels", in_channels)
    channels_1, channels_2 = scaled_channels(32, width), scaled_channels(64, width)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels_1, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels_1, channels_2, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
