"""The input statistic of convolutions against patches that torch's own convolution cuts out."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac import autocorrelation, patches
from anybatch.kfac.patches import (
    Convolution,
    add_convolution_input_sum,
    convolution_input_diagonal,
    convolution_input_multiply_adds,
)
from anybatch.kfac.shifted_cells import Axis, image_cells

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

Way = Literal["patches", "autocorrelation", "convolution", "cheaper"]
SHIFTS: list[Way] = ["autocorrelation", "convolution"]


def true_patches(inputs: Tensor, module: Convolution, *, with_bias: bool) -> Tensor:
    """(groups, side, all positions): the layer itself, with unit matrices for its kernels."""
    channels = module.in_channels // module.groups
    side = channels * module.weight[0, 0].numel()
    unit = torch.eye(side, dtype=inputs.dtype).view(side, channels, *module.kernel_size)
    kernels = unit.repeat(module.groups, *[1] * (unit.dim() - 1))
    found = module._conv_forward(inputs, kernels, None)
    found = found.unflatten(1, (module.groups, side)).movedim(0, 2).flatten(2)
    ones = torch.ones_like(found[:, :1])
    return torch.cat([found, ones], dim=1) if with_bias else found


def true_sum(inputs: Tensor, module: Convolution, *, with_bias: bool) -> Tensor:
    found = true_patches(inputs, module, with_bias=with_bias)
    return found @ found.mT


def summed(inputs: Tensor, module: Convolution, way: Way, *, with_bias: bool) -> Tensor:
    def chosen(axes: Any, **sizes: int) -> Any:
        plane = axes if len(axes) == 2 else (Axis(1, 1, 1, 1, 0, 0), *axes)
        return plane if way in SHIFTS else None

    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    side = module.weight[0].numel() + with_bias
    total = torch.zeros(module.groups, side, side, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        if way != "cheaper":
            patch.setattr(patches, "_autocorrelation_axes", chosen)
            patch.setattr(autocorrelation, "is_served", lambda _: way == "convolution")
            patch.setattr(autocorrelation, "_FEWEST_CHANNELS", 1)
            patch.setattr(autocorrelation, "_FEWEST_POSITIONS", 1)
        add_convolution_input_sum(total, inputs, module, with_bias=with_bias)
    return total


def convolution(dimensions: int, *sizes: Any, **others: Any) -> Convolution:
    kind: type[Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    built: Convolution = kind(*sizes, **others)
    return built


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max().item() <= 1e-12 * scale
    assert torch.equal(found, found.mT)


@st.composite
def cases(draw_: st.DrawFn, *, strides: int) -> tuple[Convolution, Tensor]:
    dimensions = draw_(st.integers(1, 2))
    each = [range(dimensions)] * 5
    kernel = tuple(draw_(st.integers(1, 5)) for _ in each[0])
    dilation = tuple(draw_(st.integers(1, 3)) for _ in each[1])
    stride = tuple(draw_(st.integers(1, strides)) for _ in each[2])
    padding: Any = tuple(draw_(st.integers(0, 5)) for _ in each[3])
    if max(stride) == 1 and draw_(st.booleans()):
        padding = draw_(st.sampled_from(["same", "valid"]))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    pads = spans if padding == "same" else [0] * dimensions if padding == "valid" else padding
    smallest = [max(1, s - 2 * p) for s, p in zip(spans, pads, strict=True)]
    size = [least + draw_(st.integers(0, 4)) for least in smallest]
    groups = draw_(st.integers(1, 3))
    channels = groups * draw_(st.integers(1, 3))
    module = convolution(
        dimensions, channels, groups, kernel, stride, padding, dilation, groups=groups
    )
    return module, draw(draw_(st.integers(1, 3)), channels, *size, seed=draw_(st.integers(0, 99)))


@settings(max_examples=200, deadline=None)
@given(case=cases(strides=1), way=st.sampled_from(SHIFTS), with_bias=st.booleans())
def test_the_autocorrelation_is_the_sum_over_patches(
    case: tuple[Convolution, Tensor], way: Way, with_bias: bool
) -> None:
    module, inputs = case
    found = summed(inputs, module, way, with_bias=with_bias)
    assert_same(found, true_sum(inputs, module, with_bias=with_bias))


@settings(max_examples=100, deadline=None)
@given(case=cases(strides=3), with_bias=st.booleans())
def test_patches_and_their_diagonal(case: tuple[Convolution, Tensor], with_bias: bool) -> None:
    module, inputs = case
    expected = true_sum(inputs, module, with_bias=with_bias)
    assert_same(summed(inputs, module, "patches", with_bias=with_bias), expected)
    diagonal = convolution_input_diagonal(inputs, module, with_bias=with_bias)
    assert torch.allclose(diagonal, expected.diagonal(dim1=1, dim2=2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["patches", *SHIFTS])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_padding_that_is_not_of_zeros(way: Way, mode: Any, padding: Any) -> None:
    module = nn.Conv2d(4, 2, (3, 2), padding=padding, padding_mode=mode, groups=2)
    inputs = draw(2, 4, 5, 4)
    expected = true_sum(inputs, module, with_bias=True)
    assert_same(summed(inputs, module, way, with_bias=True), expected)
    diagonal = convolution_input_diagonal(inputs, module, with_bias=True)
    assert torch.allclose(diagonal, expected.diagonal(dim1=1, dim2=2), rtol=1e-12)


def test_three_axes() -> None:
    module = nn.Conv3d(4, 2, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 1), groups=2)
    inputs = draw(2, 4, 3, 5, 2)
    assert_same(
        summed(inputs, module, "cheaper", with_bias=True), true_sum(inputs, module, with_bias=True)
    )


@pytest.mark.parametrize("way", ["patches", *SHIFTS])
@pytest.mark.parametrize("limit", [64, 1000])
def test_slices_change_nothing(way: Way, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Conv2d(6, 2, 3, padding=1, groups=2)
    inputs = draw(5, 6, 7, 6)
    monkeypatch.setattr(patches, "_BUFFER_BYTES", limit)
    monkeypatch.setattr(patches, "_BLOCK", 5)  # several blocks of the symmetric product
    monkeypatch.setattr(autocorrelation, "_BUFFER_BYTES", 8 * limit)
    monkeypatch.setattr(autocorrelation, "_STAGE_BYTES", 2 * limit)
    monkeypatch.setattr(autocorrelation, "_CONVOLVED_BYTES", 2 * limit)
    monkeypatch.setattr(autocorrelation, "_THIN", 3)
    expected = true_sum(inputs, module, with_bias=True)
    assert_same(summed(inputs, module, way, with_bias=True), expected)
    diagonal = convolution_input_diagonal(inputs, module, with_bias=True)
    assert torch.allclose(diagonal, expected.diagonal(dim1=1, dim2=2), rtol=1e-12)


@pytest.mark.parametrize("limit", [2**14, 2**16])
def test_the_buffer_of_patches_is_bounded(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_BUFFER_BYTES", limit)
    module, inputs = nn.Conv2d(4, 2, 3, padding=1), torch.zeros(40, 4, 12, 12)
    _, axes = patches._images_and_axes(inputs, module)
    slices = [m.numel() for m in patches._patch_matrices(inputs, axes, 1, torch.float32)]
    assert max(slices) * 4 <= limit
    assert sum(slices) == 40 * 36 * 144


@pytest.mark.parametrize("way", ["patches", *SHIFTS])
def test_any_layout_and_no_batch(way: Way) -> None:
    module = nn.Conv2d(3, 2, 3, padding=1)
    inputs = draw(4, 3, 6, 5)
    expected = true_sum(inputs, module, with_bias=False)
    last = inputs.contiguous(memory_format=torch.channels_last)
    turned = inputs.transpose(2, 3).contiguous().transpose(2, 3)
    for laid_out in (last, turned):
        assert_same(summed(laid_out, module, way, with_bias=False), expected)
    one = true_sum(inputs[:1], module, with_bias=False)
    assert_same(summed(inputs[0], module, way, with_bias=False), one)


@pytest.mark.parametrize("way", ["patches", *SHIFTS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_widened_first_also_under_autocast(way: Way, dtype: torch.dtype) -> None:
    module = nn.Conv2d(3, 2, 3, padding=1)
    inputs = draw(8, 3, 12, 12).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = summed(inputs, module, way, with_bias=True)
        diagonal = convolution_input_diagonal(inputs, module, with_bias=True)
    expected = true_sum(inputs.double(), module, with_bias=True)
    assert found.dtype == diagonal.dtype == torch.float32
    scale = expected.abs().max().item()
    assert (found - expected).abs().max().item() <= 1e-5 * scale
    assert torch.allclose(diagonal.double(), expected.diagonal(dim1=1, dim2=2), rtol=1e-5)


def test_the_count_of_multiply_adds_follows_the_way() -> None:
    strided = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect")
    assert convolution_input_multiply_adds(strided, (8, 8), examples=3) == 3 * 16 * 72**2
    plain = nn.Conv1d(64, 8, 2, groups=2)
    found = convolution_input_multiply_adds(plain, (100,), examples=512)
    assert found == 512 * 2 * 32**2 * (100 + 99)  # a tap with itself, and with the other


def test_an_empty_batch_adds_nothing() -> None:
    module, nothing = nn.Conv2d(2, 2, 3), torch.zeros(0, 2, 5, 5)
    assert not summed(nothing, module, "cheaper", with_bias=True).any()
    assert not convolution_input_diagonal(nothing, module, with_bias=True).any()


def test_no_graph_is_kept() -> None:
    inputs = draw(2, 2, 5, 5).requires_grad_()
    module = nn.Conv2d(2, 2, 3)
    assert not summed(inputs, module, "cheaper", with_bias=True).requires_grad
    assert not convolution_input_diagonal(inputs, module, with_bias=True).requires_grad


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    module = nn.Conv2d(2, 2, 5, padding=1)
    with pytest.raises(InputError, match="must not be smaller than the kernel"):
        summed(torch.zeros(1, 2, 2, 2), module, "cheaper", with_bias=True)


def test_whole_images_are_multiplied_thirteen_times_for_three_by_three() -> None:
    axis = Axis(32, 3, 1, 1, 1, 1)
    cells = image_cells(axis, axis)
    sizes = [cell.size for cell in cells]
    assert sum(size >= 30 * 30 for size in sizes) == 13
    assert len(sizes) == 29
    assert sum(sizes) < 13 * 32 * 32


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride", "groups", "shifts"),
    [
        (64, 32, 3, 1, 1, True),
        (512, 4, 3, 1, 1, True),
        (16, 32, 3, 1, 1, True),
        (64, 32, 3, 2, 1, False),
        (64, 16, 3, 1, 64, False),
        (3, 32, 7, 1, 1, False),
        (6, 14, 5, 1, 1, False),
    ],
)
def test_the_cheaper_way(
    channels: int, size: int, kernel: int, stride: int, groups: int, shifts: bool
) -> None:
    module = nn.Conv2d(channels, channels, kernel, stride, padding=1, groups=groups)
    _, axes = patches._images_and_axes(torch.zeros(1, channels, size, size), module)
    plane = patches._autocorrelation_axes(
        axes, channels=channels // groups, groups=groups, examples=128
    )
    assert (plane is not None) == shifts
