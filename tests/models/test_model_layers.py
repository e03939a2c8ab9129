"""What is particular to single networks: shortcuts, pooling, strides, weights, causality."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.errors import InputError
from anybatch.models.dawn_resnet import DawnResNet18
from anybatch.models.gpt import GPT
from anybatch.models.initialization import initialize_kaiming_normal
from anybatch.models.lenet import LeNet
from anybatch.models.mlp import MLP
from anybatch.models.resnet import resnet18, resnet50
from anybatch.models.resnet9 import ResNet9
from anybatch.models.resnet_small import ResNet8, ResNet20, ZeroPadShortcut
from anybatch.models.simple_cnn import LeeSimpleCNN, ShallueSimpleCNN


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_tokens() -> Tensor:
    return torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(1))


def small_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(17, 12, embedding_size=32).eval()


def test_the_zero_pad_shortcut_averages_appends_zeros_and_has_no_parameters() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    averaging = ZeroPadShortcut(2, average=True)
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 0] = torch.tensor([[2.5, 4.5], [10.5, 12.5]])
    assert torch.equal(averaging(images), expected)
    expected[0, 0] = torch.tensor([[0.0, 2.0], [8.0, 10.0]])
    assert torch.equal(ZeroPadShortcut(2, average=False)(images), expected)
    # An odd side rounds up, and the last window averages over the pixels that exist.
    assert torch.equal(averaging(torch.ones(1, 1, 5, 3))[:, :1], torch.ones(1, 1, 3, 2))
    for model in (ResNet8(), ResNet20()):
        shortcuts = [m for m in model.modules() if isinstance(m, ZeroPadShortcut)]
        assert len(shortcuts) == 2
        assert sum(num_parameters(shortcut) for shortcut in shortcuts) == 0
        assert not [name for name, _ in model.named_parameters() if "shortcut" in name]


def test_resnet8_is_the_computation_of_the_published_code() -> None:
    torch.manual_seed(0)
    model = ResNet8(width=2.0)
    images = torch.randn(2, 3, 32, 32)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    features = convolutions[0](images)
    for block in range(3):
        first, second = convolutions[1 + 2 * block : 3 + 2 * block]
        carried, activated = features, functional.relu(features)
        if block > 0:
            halved = functional.avg_pool2d(activated, 2)
            carried = torch.cat([halved, torch.zeros_like(halved)], dim=1)
        features = carried + second(functional.relu(first(activated)))
    expected = model.classifier(functional.relu(features).mean(dim=(2, 3)))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(
    "model", [MLP((1, 28, 28), 10, hidden=(20, 30)), LeNet(), ShallueSimpleCNN(), LeeSimpleCNN()]
)
def test_plain_networks_activate_after_every_layer_but_the_last(model: nn.Module) -> None:
    images = torch.randn(2, 1, 28, 28)
    features = images
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        features = functional.max_pool2d(functional.relu(convolution(features)), 2)
    features = features.flatten(1)
    for linear in linears[:-1]:
        features = functional.relu(linear(features))
    torch.testing.assert_close(model(images), linears[-1](features))


@pytest.mark.parametrize("build", [resnet18, resnet50, ResNet20])
def test_blocks_activate_after_every_convolution_and_after_the_sum(
    build: Callable[..., nn.Module],
) -> None:
    model = build(width=0.5).eval()
    blocks = [m for m in model.modules() if hasattr(m, "norm2")]
    assert len(blocks) == {resnet18: 8, resnet50: 16, ResNet20: 9}[build]
    for block in blocks:
        images = torch.randn(2, block.conv1.in_channels, 6, 6)
        residual = block.norm2(block.conv2(functional.relu(block.norm1(block.conv1(images)))))
        if hasattr(block, "norm3"):
            residual = block.norm3(block.conv3(functional.relu(residual)))
        carried = images if block.shortcut is None else block.shortcut(images)
        torch.testing.assert_close(block(images), functional.relu(carried + residual))


def test_resnet9_is_the_published_chain_of_convolutions() -> None:
    model = ResNet9(width=0.25).eval()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    # Eval mode with fresh statistics only divides by sqrt(1 + eps).
    layers = [lambda x, c=c: functional.relu(c(x) / (1 + 1e-5) ** 0.5) for c in convolutions]
    images = torch.randn(2, 3, 32, 32)
    features = functional.max_pool2d(layers[1](layers[0](images)), 2)
    features = features + layers[3](layers[2](features))
    features = functional.max_pool2d(layers[4](features), 2)
    features = functional.max_pool2d(layers[5](features), 2)
    features = features + layers[7](layers[6](features))
    expected = 0.125 * model.classifier(functional.max_pool2d(features, 4).flatten(1))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("average_image", [True, False])
def test_resnet9_and_dawn_reduce_the_image_as_published(average_image: bool) -> None:
    model = (DawnResNet18 if average_image else ResNet9)(width=0.25).eval()
    seen: list[Tensor] = []
    (model.groups if average_image else model.features).register_forward_hook(
        lambda _, __, result: seen.append(result)
    )
    logits = model(torch.randn(2, 3, 32, 32))
    assert seen[0].shape[-2:] == (4, 4)
    pooled = functional.max_pool2d(seen[0], 4).flatten(1)
    if average_image:
        pooled = torch.cat([pooled, functional.avg_pool2d(seen[0], 4).flatten(1)], dim=1)
    scale = 1.0 if average_image else 0.125
    torch.testing.assert_close(logits, scale * model.classifier(pooled))


def test_dawn_shortcuts_begin_after_the_first_normalization_and_relu() -> None:
    model = DawnResNet18(width=0.25).eval()
    block = model.groups[0][0]
    with torch.no_grad():
        block.conv2.weight.zero_()
        features = torch.randn(2, 16, 8, 8)
        expected = functional.relu(block.norm1(features))
        assert torch.equal(block(features), expected)
    projections = [
        name
        for name, module in model.named_modules()
        if name.endswith("shortcut") and isinstance(module, nn.Conv2d)
    ]
    assert projections == ["groups.1.0.shortcut", "groups.2.0.shortcut", "groups.3.0.shortcut"]


def test_resnet50_strides_in_the_three_by_three_convolution() -> None:
    with torch.device("meta"):
        model = resnet50()
    strided = {
        (name.rsplit(".", 1)[-1], module.kernel_size)
        for name, module in model.groups.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and "shortcut" not in name
    }
    assert strided == {("conv2", (3, 3))}


@pytest.mark.parametrize(("build", "num_blocks"), [(resnet18, 8), (resnet50, 16)])
def test_zero_init_begins_every_block_as_its_shortcut(build: object, num_blocks: int) -> None:
    assert callable(build)
    zeroed = [m for m in build(width=0.25, zero_init_last_norm=True).modules() if _is_zeroed(m)]
    plain = [m for m in build(width=0.25).modules() if _is_zeroed(m)]
    assert (len(zeroed), len(plain)) == (num_blocks, 0)


def _is_zeroed(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and not module.weight.any()


def test_lee_weights_have_variance_one_over_fan_in_and_zero_biases() -> None:
    torch.manual_seed(0)
    for model in (LeeSimpleCNN(width=2.0), ResNet8(width=2.0)):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif parameter.numel() > 10_000:
                fan_in = parameter[0].numel()
                assert parameter.var().item() * fan_in == pytest.approx(1, rel=0.05), name
                # Truncated at two standard deviations of the underlying normal.
                assert parameter.abs().max().item() <= 2 / 0.8796 * fan_in**-0.5, name


def test_residual_networks_begin_with_the_published_fan() -> None:
    torch.manual_seed(0)
    for model, is_fan_out in ((resnet18(width=0.5), True), (ResNet20(width=2.0), False)):
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        widening = [m for m in convolutions if m.out_channels == 2 * m.in_channels]
        assert widening
        for layer in widening:
            fan = layer.weight[0].numel() * (2 if is_fan_out else 1)
            assert layer.weight.var().item() * fan == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("fan", "channels"), [("fan_in", 32), ("fan_out", 128)])
def test_kaiming_weights_have_variance_two_over_the_fan(fan: str, channels: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 128, 3)
    initialize_kaiming_normal(layer, fan=fan)  # type: ignore[arg-type]
    assert layer.weight.var().item() * 9 * channels == pytest.approx(2, rel=0.05)


def test_mlp_without_hidden_layers_is_one_linear_map() -> None:
    model = MLP((3, 4, 5), 2, hidden=())
    inputs = torch.randn(6, 3, 4, 5)
    linear = model.layers[-1]
    assert torch.equal(model(inputs), linear(inputs.flatten(1)))
    assert num_parameters(model) == 122
    assert num_parameters(MLP((7,), 3, hidden=(20, 30))) == 160 + 630 + 93


def test_gpt_of_the_published_size_has_the_parameters_of_gpt2_small() -> None:
    # Radford et al. (2019), the released 124 M checkpoint: 124,439,808 with the tied head.
    with torch.device("meta"):
        model = GPT(
            50257, 1024, embedding_size=768, num_layers=12, num_heads=12, dropout=0.1, tie_head=True
        )
    assert num_parameters(model) == 124_439_808


def test_gpt_is_causal() -> None:
    model = small_gpt()
    tokens = random_tokens()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 17
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=(0, 2)).min() > 0


def test_gpt_sees_the_order_of_earlier_tokens() -> None:
    model = small_gpt()
    tokens = torch.tensor([[1, 2, 3], [2, 1, 3]])
    first, second = model(tokens)
    assert not torch.allclose(first[-1], second[-1])


def test_gpt_hidden_weights_are_matrices_and_its_initial_deviations_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT(65, 64, num_layers=2)
    for name, parameter in model.blocks.named_parameters():
        assert parameter.ndim == (1 if name.endswith("bias") or "norm" in name else 2), name
        if name.endswith("weight") and "norm" not in name:
            writes = name.endswith(("attention.out.weight", "mlp_out.weight"))
            expected = 0.02 / math.sqrt(2 * 2) if writes else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_gpt_head_is_tied_only_on_request() -> None:
    tied, untied = GPT(65, 8, tie_head=True), GPT(65, 8)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight
    assert num_parameters(untied) - num_parameters(tied) == 65 * 128


def test_gpt_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = GPT(17, 12, dropout=0.5)
    tokens = random_tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_gpt_refuses_what_it_cannot_be() -> None:
    with pytest.raises(InputError, match="embedding_size must be a multiple of num_heads = 3"):
        GPT(65, 8, embedding_size=128, num_heads=3)
    with pytest.raises(InputError, match=r"dropout must be in \[0, 1\), got 1.0"):
        GPT(65, 8, dropout=1.0)
    with pytest.raises(InputError, match="must have at most 8 tokens, got 9"):
        GPT(65, 8)(torch.zeros(1, 9, dtype=torch.int64))
