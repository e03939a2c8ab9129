"""Residual networks of He et al. (2016): ResNet-18 for small images, ResNet-50 for ImageNet."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from anybatch.models.geometry import require_at_least_one, scaled_channels
from anybatch.models.initialization import initialize_kaiming_normal, zero_last_norms

__all__ = ["ResNet", "resnet18", "resnet50"]

_GROUP_CHANNELS = (64, 128, 256, 512)


def resnet18(
    in_channels: int = 3,
    num_classes: int = 10,
    *,
    width: float = 1.0,
    zero_init_last_norm: bool = False,
) -> ResNet:
    """ResNet-18 with the stem for small images: a 3x3 convolution, stride 1, no pooling.

    11,173,962 parameters on colour images with ten classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
        zero_init_last_norm: begin every block as its shortcut, by a zero scale of its last
            BatchNorm, as Goyal et al. (2017) and Geiping et al. (2022) do.

    Returns:
        The network, with weights drawn from torch's global RNG.

    Example:
        >>> sum(parameter.numel() for parameter in resnet18().parameters())
        11173962

    Reference:
        He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, table 1; the
        stem of the CIFAR variants, as in Geiping et al. (2022).
    """
    channels = scaled_channels(_GROUP_CHANNELS[0], width)
    stem = nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
    model = ResNet(stem, _BasicBlock, num_blocks=(2, 2, 2, 2), num_classes=num_classes, width=width)
    _initialize(model, zero_init_last_norm=zero_init_last_norm)
    return model


def resnet50(
    in_channels: int = 3,
    num_classes: int = 1000,
    *,
    width: float = 1.0,
    zero_init_last_norm: bool = False,
) -> ResNet:
    """ResNet-50 with the ImageNet stem: a 7x7 convolution with stride 2, then pooling by 2.

    Version 1.5: the stride is in the 3x3 convolution of a block, not in its first 1x1.
    25,557,032 parameters on colour images with 1,000 classes.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
        zero_init_last_norm: begin every block as its shortcut, by a zero scale of its last
            BatchNorm, as Goyal et al. (2017) do.

    Returns:
        The network, with weights drawn from torch's global RNG.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = resnet50()
        >>> sum(parameter.numel() for parameter in model.parameters())
        25557032

    Reference:
        He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, table 1; the
        stride as in Goyal et al. (2017), section 5.1.
    """
    channels = scaled_channels(_GROUP_CHANNELS[0], width)
    stem = nn.Sequential(
        nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    model = ResNet(
        stem, _BottleneckBlock, num_blocks=(3, 4, 6, 3), num_classes=num_classes, width=width
    )
    _initialize(model, zero_init_last_norm=zero_init_last_norm)
    return model


class ResNet(nn.Module):
    """A stem, four groups of residual blocks, the global average and a linear head.

    `resnet18` and `resnet50` build it.

    Args:
        stem: the layers before the first group; gives 64 x width channels.
        block: builds one block from (input channels, inner channels, stride); the block names
            its number of output channels `out_channels`.
        num_blocks: blocks of each group; groups after the first begin with stride 2.
        num_classes: number of outputs, >= 1.
        width: multiplier of the hidden channels, > 0.
    """

    def __init__(
        self,
        stem: nn.Module,
        block: Callable[[int, int, int], _BasicBlock | _BottleneckBlock],
        *,
        num_blocks: tuple[int, int, int, int],
        num_classes: int,
        width: float,
    ) -> None:
        super().__init__()
        require_at_least_one("num_classes", num_classes)
        self.stem = stem
        channels = scaled_channels(_GROUP_CHANNELS[0], width)
        groups: list[nn.Module] = []
        for group, (published, count) in enumerate(zip(_GROUP_CHANNELS, num_blocks, strict=True)):
            inner = scaled_channels(published, width)
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if group > 0 and index == 0 else 1
                built = block(channels, inner, stride)
                blocks.append(built)
                channels = built.out_channels
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) images to (n, num_classes) logits."""
        features: Tensor = self.groups(self.stem(images))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, inner_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = inner_channels
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner_channels)
        self.shortcut = _projection(in_channels, self.out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.norm2

    def forward(self, features: Tensor) -> Tensor:
        residual = functional.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return functional.relu(self.shortcut(features) + residual)


class _BottleneckBlock(nn.Module):
    def __init__(self, in_channels: int, inner_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = 4 * inner_channels
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, self.out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(self.out_channels)
        self.shortcut = _projection(in_channels, self.out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.norm3

    def forward(self, features: Tensor) -> Tensor:
        residual = functional.relu(self.norm1(self.conv1(features)))
        residual = functional.relu(self.norm2(self.conv2(residual)))
        residual = self.norm3(self.conv3(residual))
        return functional.relu(self.shortcut(features) + residual)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _initialize(model: ResNet, *, zero_init_last_norm: bool) -> None:
    initialize_kaiming_normal(model, fan="fan_out")
    if zero_init_last_norm:
        zero_last_norms(model)
