"""ResNet-9, the network with which Page trained CIFAR-10 in 79 seconds."""

from __future__ import annotations

from torch import Tensor, nn

from anybatch.models.geometry import require_at_least_one, scaled_channels

__all__ = ["ResNet9"]

_LOGIT_SCALE = 0.125


class ResNet9(nn.Module):
    """ResNet-9 of Page (2018), How to Train Your ResNet, part 4.

    Convolution-BatchNorm-ReLU to 64 channels; three layers to 128, 256 and 512 channels, each
    convolution-BatchNorm-ReLU-pool 2, the first and the third followed by a residual of two
    convolution-BatchNorm-ReLU; maximum over what is left of the image (4 x 4 pixels in the
    published case); a linear layer without bias; logits times 0.125. 6,573,120 parameters on
    colour images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        require_at_least_one("in_channels", in_channels)
        require_at_least_one("num_classes", num_classes)
        channels = [scaled_channels(published, width) for published in (64, 128, 256, 512)]
        self.features = nn.Sequential(
            _convolution(in_channels, channels[0]),
            _convolution(channels[0], channels[1]),
            nn.MaxPool2d(2),
            _Residual(channels[1]),
            _convolution(channels[1], channels[2]),
            nn.MaxPool2d(2),
            _convolution(channels[2], channels[3]),
            nn.MaxPool2d(2),
            _Residual(channels[3]),
        )
        self.classifier = nn.Linear(channels[3], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images, each side >= 8, to (n, num_classes) logits."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.amax(dim=(2, 3)))
        return logits * _LOGIT_SCALE


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(channels, channels), _convolution(channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.branch(features)
        return features + residual


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
