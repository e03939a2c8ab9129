"""Every network: its published size, its shapes, its gradients, and what it refuses."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from anybatch.errors import InputError
from anybatch.models.geometry import scaled_channels
from anybatch.models.table import MODELS, ModelShape, build_model


class Published(NamedTuple):
    name: str
    input_shape: tuple[int, ...]
    num_outputs: int
    num_parameters: int


# Where each number comes from:
# mlp             784*1024 + 1024 + 1024*10 + 10, from the layers of Shallue et al. (2019).
# lenet           LeCun et al. (1998) with all channels connected: the common 61,706
#                 (156 + 2,416 + 48,120 + 10,164 + 850).
# *-shallue       832 + 51,264 + (3136*1024 + 1024) + 10,250, from the layers of the paper.
# *-lee           832 + 51,264 + 10,250: the weight shapes in the published code.
# resnet8         448 + 4,640 + 13,888 + 55,424 + 650: the weight shapes in Lee et al.'s code.
# resnet18        11,173,962, the CIFAR ResNet-18; 11.2 M in the airbench comparison.
# resnet50        25,557,032, as torchvision documents its ResNet-50.
# dawn-resnet18   5.2 M (Page, 2018, part 1); exactly 1,728 (stem) + 147,968 + 525,184
#                 + 2,098,944 + 2,426,880 (groups) + 5,130, from the layers of his notebook.
# resnet9         6.57 M (Page, 2018, part 4).
# resnet20        0.27 M (He et al., 2016, table 6); 269,722 with option A.
# gpt             2*65*128 + 64*128 + 4*198,272 + 256; GPT-2's published size has its own test.
PUBLISHED = (
    Published("mlp", (1, 28, 28), 10, 814_090),
    Published("lenet", (1, 28, 28), 10, 61_706),
    Published("simple-cnn-shallue", (1, 28, 28), 10, 3_274_634),
    Published("simple-cnn-lee", (1, 28, 28), 10, 62_346),
    Published("resnet8", (3, 32, 32), 10, 75_050),
    Published("resnet18", (3, 32, 32), 10, 11_173_962),
    Published("resnet50", (3, 224, 224), 1000, 25_557_032),
    Published("dawn-resnet18", (3, 32, 32), 10, 5_205_834),
    Published("resnet9", (3, 32, 32), 10, 6_573_120),
    Published("resnet20", (3, 32, 32), 10, 269_722),
    Published("gpt", (64,), 65, 818_176),
)
VISION = tuple(row.name for row in PUBLISHED if len(row.input_shape) == 3)
CONVOLUTIONAL = tuple(name for name in VISION if name != "mlp")
NORMALIZED = ("resnet18", "resnet50", "dawn-resnet18", "resnet9", "resnet20")

every_model = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)


def shape_of(input_shape: tuple[int, ...], num_outputs: int = 10) -> ModelShape:
    is_text = len(input_shape) == 1
    return ModelShape(
        input_shape=input_shape,
        num_outputs=num_outputs,
        vocabulary_size=num_outputs if is_text else None,
    )


def inputs_of(shape: ModelShape, num_examples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (num_examples, *shape.input_shape)
    if shape.vocabulary_size is not None:
        return torch.randint(shape.vocabulary_size, size, generator=generator)
    return torch.randn(size, generator=generator)


def tiny_shape(name: str) -> ModelShape:
    """A shape the network takes that costs little."""
    if name == "gpt":
        return shape_of((12,), 17)
    return shape_of((3, 64, 64) if name == "resnet50" else (3, 32, 32))


def tiny_model(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, tiny_shape(name), width=0.25)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_table_has_every_network_under_its_own_name() -> None:
    assert sorted(MODELS) == sorted(row.name for row in PUBLISHED)
    for name, entry in MODELS.items():
        assert entry.name == name
        assert entry.description.endswith(".")
        assert any(character.isdigit() for character in entry.source)


@every_model
def test_parameter_count_and_output_shape_are_the_published_ones(row: Published) -> None:
    shape = shape_of(row.input_shape, row.num_outputs)
    with torch.device("meta"):
        model = build_model(row.name, shape)
        outputs = model(torch.empty((2, *row.input_shape)).to(inputs_of(shape).dtype))
    assert num_parameters(model) == row.num_parameters
    positions = row.input_shape if row.name == "gpt" else ()
    assert outputs.shape == (2, *positions, row.num_outputs)


@pytest.mark.parametrize(
    ("name", "published_millions", "decimals"),
    [("dawn-resnet18", 5.2, 1), ("resnet9", 6.57, 2), ("resnet18", 11.2, 1), ("resnet20", 0.27, 2)],
)
def test_counts_round_to_the_millions_that_the_authors_print(
    name: str, published_millions: float, decimals: int
) -> None:
    with torch.device("meta"):
        model = build_model(name, shape_of((3, 32, 32)))
    assert round(num_parameters(model) / 1e6, decimals) == published_millions


@every_model
def test_forward_and_backward_are_finite_and_reach_every_parameter(row: Published) -> None:
    shape = tiny_shape(row.name)
    model = tiny_model(row.name)
    outputs = model(inputs_of(shape, 4)).flatten(0, -2)
    targets = torch.arange(len(outputs)) % shape.num_outputs
    loss = functional.cross_entropy(outputs, targets)
    loss.backward()
    # A network that begins near the uniform guess loses about log(number of outputs).
    assert 0.3 * math.log(shape.num_outputs) < loss.item() < 4 * math.log(shape.num_outputs)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The softmax does not see a shift of all scores, so a key's bias has no gradient but noise.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().max() > 0, name


@every_model
def test_a_smaller_width_has_fewer_and_a_larger_width_more_parameters(row: Published) -> None:
    shape = shape_of(row.input_shape, row.num_outputs)
    counts = []
    for width in (0.5, 1.0, 2.0):
        with torch.device("meta"):
            model = build_model(row.name, shape, width=width)
            model(torch.empty((2, *row.input_shape)).to(inputs_of(shape).dtype))
        counts.append(num_parameters(model))
    assert counts[1] == row.num_parameters
    assert counts[0] < counts[1] < counts[2]


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 2048),
    larger_channels=st.integers(1, 2048),
    width=st.floats(0.01, 16.0),
)
def test_scaled_channels_are_the_nearest_multiple_of_eight_and_never_reorder(
    channels: int, larger_channels: int, width: float
) -> None:
    scaled = scaled_channels(channels, width)
    assert scaled_channels(channels, 1.0) == channels
    if width != 1:
        assert scaled % 8 == 0
        assert scaled == 8 or abs(scaled - channels * width) <= 4
    smaller, larger = sorted((channels, larger_channels))
    assert scaled_channels(smaller, width) <= scaled_channels(larger, width)


@pytest.mark.parametrize("name", ["mlp", "simple-cnn-shallue", *CONVOLUTIONAL[3:]])
def test_digits_of_8_by_8_pixels_work_where_the_geometry_allows_it(name: str) -> None:
    shape = shape_of((1, 8, 8))
    model = build_model(name, shape, width=0.25)
    assert model(inputs_of(shape)).shape == (2, 10)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32), (2, 33, 47)])
def test_every_vision_network_takes_other_image_sizes(
    name: str, input_shape: tuple[int, ...]
) -> None:
    shape = shape_of(input_shape, 7)
    with torch.device("meta"):
        assert build_model(name, shape, width=0.5)(torch.empty(2, *input_shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "smallest"), [("lenet", 12), ("simple-cnn-shallue", 4), ("simple-cnn-lee", 16)]
)
def test_the_smallest_image_works_and_one_pixel_less_is_refused(name: str, smallest: int) -> None:
    shape = shape_of((1, smallest, smallest + 3))
    assert build_model(name, shape)(inputs_of(shape)).shape == (2, 10)
    with pytest.raises(InputError) as caught:
        build_model(name, shape_of((1, smallest, smallest - 1)))
    assert str(caught.value) == (
        f"image_size of {name} must be at least {smallest} x {smallest} pixels, "
        f"got {smallest} x {smallest - 1} (mlp takes images of any size)"
    )


def shape_with_vocabulary(input_shape: tuple[int, ...]) -> ModelShape:
    return ModelShape(input_shape=input_shape, num_outputs=10, vocabulary_size=10)


@pytest.mark.parametrize(
    ("name", "shape", "width", "message"),
    [
        ("resnet81", shape_of((3, 32, 32)), 1.0, "(did you mean resnet8?)"),
        ("ResNet-50", shape_of((3, 32, 32)), 1.0, "(did you mean resnet50?)"),
        ("transformer-xl", shape_of((3, 32, 32)), 1.0, "resnet20, gpt, got transformer-xl"),
        ("mlp", shape_of((3, 32, 32)), 0.0, "width must be finite and > 0, got 0.0"),
        ("gpt", shape_of((8,)), -1.0, "width must be finite and > 0, got -1.0"),
        ("resnet9", shape_of((3, 32, 32)), math.nan, "width must be finite and > 0, got nan"),
        ("resnet9", shape_of((3, 7, 32)), 1.0, "must be at least 8 x 8 pixels, got 7 x 32"),
        (
            "resnet18",
            ModelShape(input_shape=(32, 32), num_outputs=10),
            1.0,
            "input_shape of resnet18 must be (channels, height, width), got (32, 32)",
        ),
        (
            "resnet18",
            shape_with_vocabulary((3, 32, 32)),
            1.0,
            "vocabulary_size of resnet18 must be None, its inputs are not tokens, got 10",
        ),
        ("mlp", shape_with_vocabulary((64,)), 1.0, "vocabulary_size of mlp must be None"),
        (
            "gpt",
            ModelShape(input_shape=(64,), num_outputs=10),
            1.0,
            "vocabulary_size of gpt must be the number of distinct tokens, got None",
        ),
        (
            "gpt",
            shape_with_vocabulary((1, 64)),
            1.0,
            "input_shape of gpt must be (context_length,), got (1, 64)",
        ),
        (
            "gpt",
            ModelShape(input_shape=(64,), num_outputs=2, vocabulary_size=65),
            1.0,
            "num_outputs of gpt must equal vocabulary_size = 65, got 2",
        ),
    ],
)
def test_bad_requests_are_refused_in_one_clear_line(
    name: str, shape: ModelShape, width: float, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        build_model(name, shape, width=width)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("input_shape", "num_outputs", "vocabulary_size", "thing"),
    [
        ((), 10, None, "input_shape"),
        ((3, 0, 32), 10, None, "input_shape"),
        ((3, 32, 32), 0, None, "num_outputs"),
        ((64,), 10, 0, "vocabulary_size"),
    ],
)
def test_a_model_shape_without_size_is_refused(
    input_shape: tuple[int, ...], num_outputs: int, vocabulary_size: int | None, thing: str
) -> None:
    with pytest.raises(InputError, match=f"^{thing} must"):
        ModelShape(
            input_shape=input_shape, num_outputs=num_outputs, vocabulary_size=vocabulary_size
        )


@pytest.mark.parametrize("name", VISION)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model = tiny_model(name).eval()
    images = inputs_of(tiny_shape(name))
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        actual = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_model
def test_no_layer_changes_what_another_layer_has_taken_or_given(row: Published) -> None:
    model = tiny_model(row.name)
    captured: list[tuple[str, Tensor, Tensor]] = []

    def capture_inputs(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append((name, inputs[0], inputs[0].detach().clone()))

    def capture_outputs(name: str, _: nn.Module, __: object, outputs: Tensor) -> None:
        captured.append((name, outputs, outputs.detach().clone()))

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_pre_hook(partial(capture_inputs, name))
            module.register_forward_hook(partial(capture_outputs, name))
    model(inputs_of(tiny_shape(row.name)))
    assert len(captured) > 4
    for name, tensor, copied in captured:
        assert torch.equal(tensor, copied), name


@every_model
def test_forward_leaves_no_python_state_behind(row: Published) -> None:
    model = tiny_model(row.name).eval()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    inputs = inputs_of(tiny_shape(row.name))
    first = model(inputs)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert torch.equal(first, model(inputs))
    assert torch.equal(first, copy.deepcopy(model)(inputs))


@every_model
def test_weights_are_drawn_from_the_global_generator_alone(row: Published) -> None:
    first, again, other = (tiny_model(row.name, seed) for seed in (3, 3, 4))
    for left, right in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    differ = [
        not torch.equal(left, right)
        for left, right in zip(first.parameters(), other.parameters(), strict=True)
        if left.ndim > 1
    ]
    assert all(differ)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_normalization_is_plain_batchnorm_and_only_where_published(name: str) -> None:
    model = tiny_model(name)
    with_running_mean = {type(m) for m in model.modules() if hasattr(m, "running_mean")}
    assert with_running_mean == ({nn.BatchNorm2d} if name in NORMALIZED else set())
