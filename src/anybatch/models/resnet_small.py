"""Thin residual networks for small images, with shortcuts that have no parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from anybatch.models.geometry import require_at_least_one, scaled_channels
from anybatch.models.initialization import (
    initialize_kaiming_normal,
    initialize_variance_scaling,
)

__all__ = ["ResNet8", "ResNet20", "ZeroPadShortcut"]

_GROUP_CHANNELS = (16, 32, 64)


class ZeroPadShortcut(nn.Module):
    """A shortcut without parameters: halves the image and appends channels of zeros.

    Args:
        extra_channels: number of zero channels to append, >= 0.
        average: halve by the mean of 2x2 pixels; otherwise by taking every second pixel.
    """

    def __init__(self, extra_channels: int, *, average: bool) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        # An odd side rounds up, as the stride-2 convolution beside it does; the last window then
        # averages over the pixels that exist. Kernel 1 with stride 2 takes every second pixel.
        self.halve = nn.AvgPool2d(2 if average else 1, stride=2, ceil_mode=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c + extra_channels, ceil(h / 2), ceil(w / 2))."""
        return functional.pad(self.halve(features), (0, 0, 0, 0, 0, self.extra_channels))


class ResNet8(nn.Module):
    """ResNet-8 of the batch-size studies: 16, 32 and 64 channels, one block each, no BatchNorm.

    Shallue et al. (2019) introduced it; layers, shortcuts and initial weights follow the code of
    Lee et al. (2021): a 3x3 convolution, three pre-activation blocks (ReLU, convolution, ReLU,
    convolution, all with biases), ReLU, global average, linear. Where the image halves, the
    shortcut is the 2x2 mean of the activated input with zero channels appended. The strided
    convolutions pad by one pixel on both sides (TensorFlow pads only one side). 75,050
    parameters on colour images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        require_at_least_one("in_channels", in_channels)
        require_at_least_one("num_classes", num_classes)
        channels = [scaled_channels(published, width) for published in _GROUP_CHANNELS]
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.blocks = nn.Sequential(
            _PlainPreActivationBlock(channels[0], channels[0], halve=False),
            _PlainPreActivationBlock(channels[0], channels[1], halve=True),
            _PlainPreActivationBlock(channels[1], channels[2], halve=True),
        )
        self.classifier = nn.Linear(channels[2], num_classes)
        initialize_variance_scaling(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        features = functional.relu(self.blocks(self.stem(images)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class _PlainPreActivationBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, halve: bool) -> None:
        super().__init__()
        stride = 2 if halve else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: ZeroPadShortcut | None = None
        if halve:
            self.shortcut = ZeroPadShortcut(out_channels - in_channels, average=True)

    def forward(self, features: Tensor) -> Tensor:
        activated = functional.relu(features)
        # The identity takes the input before its ReLU, the halving shortcut the one after it.
        carried = features if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(functional.relu(self.conv1(activated)))
        return carried + residual


class ResNet20(nn.Module):
    """ResNet-20 for small images of He et al. (2016): three blocks each of 16, 32, 64 channels.

    A 3x3 convolution, nine blocks of two 3x3 convolutions with BatchNorm and ReLU after the sum,
    global average, linear. Shortcuts are option A: every second pixel, zero channels appended.
    Convolutions begin with variance 2 / fan_in. 269,722 parameters on colour images, ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        require_at_least_one("in_channels", in_channels)
        require_at_least_one("num_classes", num_classes)
        channels = scaled_channels(_GROUP_CHANNELS[0], width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        for group, published in enumerate(_GROUP_CHANNELS):
            out_channels = scaled_channels(published, width)
            for block in range(3):
                halve = group > 0 and block == 0
                blocks.append(_NormalizedBlock(channels, out_channels, halve=halve))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_kaiming_normal(self, fan="fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        features: Tensor = self.blocks(self.stem(images))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class _NormalizedBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, halve: bool) -> None:
        super().__init__()
        stride = 2 if halve else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: ZeroPadShortcut | None = None
        if halve:
            self.shortcut = ZeroPadShortcut(out_channels - in_channels, average=False)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.norm2

    def forward(self, features: Tensor) -> Tensor:
        carried = features if self.shortcut is None else self.shortcut(features)
        residual: Tensor = self.norm1(self.conv1(features))
        residual = self.norm2(self.conv2(functional.relu(residual)))
        return functional.relu(carried + residual)
