"""The table of networks by name, and the one function that builds from it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from anybatch.errors import InputError
from anybatch.models.dawn_resnet import DawnResNet18
from anybatch.models.geometry import (
    require_at_least_one,
    require_image_size,
    scaled_channels,
)
from anybatch.models.gpt import GPT
from anybatch.models.initialization import zero_last_norms
from anybatch.models.lenet import LeNet
from anybatch.models.mlp import MLP
from anybatch.models.resnet import resnet18, resnet50
from anybatch.models.resnet9 import ResNet9
from anybatch.models.resnet_small import ResNet8, ResNet20
from anybatch.models.simple_cnn import LeeSimpleCNN, ShallueSimpleCNN

__all__ = ["MODELS", "ModelEntry", "ModelShape", "build_model"]

_GPT_EMBEDDING_SIZE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What the data ask of a network.

    Attributes:
        input_shape: shape of one example without the batch dimension, each side >= 1:
            (channels, height, width) of images, (context_length,) of token sequences.
        num_outputs: outputs per example (classes), or per token (the vocabulary), >= 1.
        vocabulary_size: number of distinct tokens, >= 1; None where inputs are not tokens.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        if not self.input_shape or min(self.input_shape) < 1:
            raise InputError("input_shape", "must have sides >= 1", self.input_shape)
        require_at_least_one("num_outputs", self.num_outputs)
        if self.vocabulary_size is not None:
            require_at_least_one("vocabulary_size", self.vocabulary_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One row of the table of networks.

    Attributes:
        name: the name users write.
        description: one sentence.
        source: authors and year.
        builder: makes the network from a shape and a width, or raises InputError.
    """

    name: str
    description: str
    source: str
    builder: Callable[[ModelShape, float], nn.Module]


def build_model(
    name: str, shape: ModelShape, *, width: float = 1.0, zero_gamma: bool | None = None
) -> nn.Module:
    """Build a network of the table, with initial weights drawn from torch's global RNG.

    Args:
        name: a key of `MODELS`.
        shape: what the data ask of the network.
        width: multiplier of the hidden channels, finite and > 0; 1 is the published network,
            otherwise channels are rounded to multiples of 8.
        zero_gamma: begin every residual block as its shortcut; see `zero_last_norms`. None: as
            the network was published, which for all of them is False.

    Returns:
        The network in training mode, on torch's default device.

    Raises:
        InputError: if the name is unknown, the width is not > 0, network and shape do not fit, or
            no residual branch ends in a norm whose scale could be 0.

    Example:
        >>> model = build_model("mlp", ModelShape(input_shape=(1, 8, 8), num_outputs=10))
        >>> sum(parameter.numel() for parameter in model.parameters())
        76810
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else ""
        raise InputError("model", f"must be one of {', '.join(MODELS)}", name, hint=hint)
    if not (math.isfinite(width) and width > 0):
        raise InputError("width", "must be finite and > 0", width)
    model = MODELS[name].builder(shape, width)
    if zero_gamma and not zero_last_norms(model):
        rule = f"must be left out for {name}, none of whose residual branches ends in a norm"
        hint = "a ReLU after a norm of scale 0 would never let it learn"
        raise InputError("model.zero_gamma", rule, True, hint=hint)
    return model


def _require_no_vocabulary(model: str, shape: ModelShape) -> None:
    if shape.vocabulary_size is not None:
        raise InputError(
            f"vocabulary_size of {model}",
            "must be None, its inputs are not tokens",
            shape.vocabulary_size,
            hint="take gpt for token sequences",
        )


def _image(model: str, shape: ModelShape, minimum_side: int = 1) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) of image inputs; `InputError` where they are not images."""
    _require_no_vocabulary(model, shape)
    if len(shape.input_shape) != 3:
        raise InputError(
            f"input_shape of {model}", "must be (channels, height, width)", shape.input_shape
        )
    channels, *image_size = shape.input_shape
    require_image_size(model, image_size, minimum_side)
    return channels, (image_size[0], image_size[1])


def _mlp(shape: ModelShape, width: float) -> nn.Module:
    _require_no_vocabulary("mlp", shape)
    return MLP(shape.input_shape, shape.num_outputs, width=width)


def _lenet(shape: ModelShape, width: float) -> nn.Module:
    channels, image_size = _image("lenet", shape)
    return LeNet(channels, shape.num_outputs, image_size=image_size, width=width)


def _simple_cnn_shallue(shape: ModelShape, width: float) -> nn.Module:
    channels, image_size = _image("simple-cnn-shallue", shape)
    return ShallueSimpleCNN(channels, shape.num_outputs, image_size=image_size, width=width)


def _simple_cnn_lee(shape: ModelShape, width: float) -> nn.Module:
    channels, image_size = _image("simple-cnn-lee", shape)
    return LeeSimpleCNN(channels, shape.num_outputs, image_size=image_size, width=width)


def _resnet8(shape: ModelShape, width: float) -> nn.Module:
    channels, _ = _image("resnet8", shape)
    return ResNet8(channels, shape.num_outputs, width=width)


def _resnet20(shape: ModelShape, width: float) -> nn.Module:
    channels, _ = _image("resnet20", shape)
    return ResNet20(channels, shape.num_outputs, width=width)


def _resnet18(shape: ModelShape, width: float) -> nn.Module:
    channels, _ = _image("resnet18", shape)
    return resnet18(channels, shape.num_outputs, width=width)


def _resnet50(shape: ModelShape, width: float) -> nn.Module:
    channels, _ = _image("resnet50", shape)
    return resnet50(channels, shape.num_outputs, width=width)


def _dawn_resnet18(shape: ModelShape, width: float) -> nn.Module:
    channels, _ = _image("dawn-resnet18", shape)
    return DawnResNet18(channels, shape.num_outputs, width=width)


def _resnet9(shape: ModelShape, width: float) -> nn.Module:
    # Three poolings by 2 come before the global maximum.
    channels, _ = _image("resnet9", shape, minimum_side=8)
    return ResNet9(channels, shape.num_outputs, width=width)


def _gpt(shape: ModelShape, width: float) -> nn.Module:
    if shape.vocabulary_size is None:
        raise InputError("vocabulary_size of gpt", "must be the number of distinct tokens", None)
    if len(shape.input_shape) != 1:
        raise InputError("input_shape of gpt", "must be (context_length,)", shape.input_shape)
    if shape.num_outputs != shape.vocabulary_size:
        raise InputError(
            "num_outputs of gpt",
            f"must equal vocabulary_size = {shape.vocabulary_size}",
            shape.num_outputs,
        )
    embedding_size = scaled_channels(_GPT_EMBEDDING_SIZE, width)
    return GPT(shape.vocabulary_size, shape.input_shape[0], embedding_size=embedding_size)


_ENTRIES = (
    ModelEntry(
        name="mlp",
        description="One hidden layer of 1,024 ReLU units on flattened inputs of any shape.",
        source="Shallue et al., 2019",
        builder=_mlp,
    ),
    ModelEntry(
        name="lenet",
        description="LeNet-5 with ReLU and maximum pooling, for images from 12 x 12 pixels.",
        source="LeCun et al., 1998",
        builder=_lenet,
    ),
    ModelEntry(
        name="simple-cnn-shallue",
        description="Two padded 5x5 convolutions and a hidden layer of 1,024 units.",
        source="Shallue et al., 2019",
        builder=_simple_cnn_shallue,
    ),
    ModelEntry(
        name="simple-cnn-lee",
        description="Two unpadded 5x5 convolutions and a linear head, from 16 x 16 pixels.",
        source="Lee et al., 2021",
        builder=_simple_cnn_lee,
    ),
    ModelEntry(
        name="resnet8",
        description="Three residual blocks from 16 channels without BatchNorm.",
        source="Shallue et al., 2019; Lee et al., 2021",
        builder=_resnet8,
    ),
    ModelEntry(
        name="resnet18",
        description="ResNet-18 with a 3x3 stem without pooling, for small images.",
        source="He et al., 2016",
        builder=_resnet18,
    ),
    ModelEntry(
        name="resnet50",
        description="ResNet-50 version 1.5 with the 7x7 stem, for ImageNet.",
        source="He et al., 2016",
        builder=_resnet50,
    ),
    ModelEntry(
        name="dawn-resnet18",
        description="18-layer pre-activation ResNet with 256 channels at its end.",
        source="Page, 2018, How to Train Your ResNet, part 1",
        builder=_dawn_resnet18,
    ),
    ModelEntry(
        name="resnet9",
        description="Eight convolutions with two residual layers, trained in 79 seconds.",
        source="Page, 2018, How to Train Your ResNet, part 4",
        builder=_resnet9,
    ),
    ModelEntry(
        name="resnet20",
        description="Nine residual blocks from 16 channels with BatchNorm, shortcuts option A.",
        source="He et al., 2016",
        builder=_resnet20,
    ),
    ModelEntry(
        name="gpt",
        description="Decoder-only transformer of 4 layers, 4 heads and 128 channels.",
        source="Radford et al., 2019",
        builder=_gpt,
    ),
)

MODELS: Mapping[str, ModelEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""All networks by name, in the order of the documentation."""
