"""The 18-layer pre-activation network with which the DAWNBench CIFAR-10 series began."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.models.geometry import require_at_least_one, scaled_channels

__all__ = ["DawnResNet18"]

_GROUP_CHANNELS = (64, 128, 256, 256)


class DawnResNet18(nn.Module):
    """Pre-activation ResNet of Page (2018), How to Train Your ResNet, parts 1 to 3.

    A 3x3 convolution; four groups of two blocks with 64, 128, 256 and 256 channels, groups 2 to 4
    beginning with stride 2; the global maximum and the global average side by side; a linear
    layer. A block is BatchNorm, ReLU, convolution, BatchNorm, ReLU, convolution, and its shortcut
    begins after the first BatchNorm and ReLU, also where it is the identity. The doubled
    BatchNorm-ReLU after the stem is already left out, as from the second half of part 1 on.
    BatchNorm scales begin at 1 (the torch of 2018 drew them uniformly from 0 to 1). 5,205,834
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
        channels = scaled_channels(_GROUP_CHANNELS[0], width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        groups: list[nn.Module] = []
        for group, published in enumerate(_GROUP_CHANNELS):
            out_channels = scaled_channels(published, width)
            groups.append(
                nn.Sequential(
                    _PreActivationBlock(channels, out_channels, stride=2 if group > 0 else 1),
                    _PreActivationBlock(out_channels, out_channels, stride=1),
                )
            )
            channels = out_channels
        self.groups = nn.Sequential(*groups)
        self.classifier = nn.Linear(2 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        features: Tensor = self.groups(self.stem(images))
        pooled = torch.cat([features.amax(dim=(2, 3)), features.mean(dim=(2, 3))], dim=1)
        logits: Tensor = self.classifier(pooled)
        return logits


class _PreActivationBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        # A group with stride 2 projects even where the channels stay (256 to 256).
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        activated = functional.relu(self.norm1(features))
        residual: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
        carried: Tensor = self.shortcut(activated)
        return carried + residual
