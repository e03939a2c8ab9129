"""Zero-gamma: blocks that begin as their shortcut and learn, and the networks that cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.errors import InputError
from anybatch.models.initialization import NormedBranch
from anybatch.models.table import MODELS, ModelShape, build_model
from anybatch.recipe import ModelSettings, Recipe, SGDSettings
from anybatch.schedules import updates
from anybatch.task import load_task
from anybatch.training.training import Training

IMAGES = ModelShape(input_shape=(3, 16, 16), num_outputs=10)
TEXT = ModelShape(input_shape=(8,), num_outputs=16, vocabulary_size=16)
ENDS_IN_A_NORM = {"resnet18": 8, "resnet50": 16, "resnet20": 9}  # blocks


def built(name: str, zero_gamma: bool | None) -> nn.Module:
    torch.manual_seed(0)
    shape = TEXT if name == "gpt" else IMAGES
    return build_model(name, shape, width=0.25, zero_gamma=zero_gamma)


@pytest.mark.parametrize("name", ENDS_IN_A_NORM)
def test_every_block_begins_as_its_shortcut(name: str) -> None:
    model = built(name, zero_gamma=True)
    found: list[tuple[Tensor, Tensor]] = []

    def compare(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        shortcut = block.shortcut
        carried = inputs[0] if shortcut is None else shortcut(inputs[0])
        found.append((output.detach(), functional.relu(carried).detach()))

    for block in model.modules():
        if isinstance(block, NormedBranch):
            block.register_forward_hook(compare)
    model(torch.randn(4, 3, 16, 16))
    assert len(found) == ENDS_IN_A_NORM[name]
    for output, carried in found:
        torch.testing.assert_close(output, carried, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENDS_IN_A_NORM)
def test_only_the_last_scales_differ_from_the_published_network(name: str) -> None:
    ours, published = built(name, True), built(name, None)
    differing = [
        key
        for (key, one), other in zip(
            ours.state_dict().items(), published.state_dict().values(), strict=True
        )
        if not torch.equal(one, other)
    ]
    last = "norm3" if name == "resnet50" else "norm2"
    assert len(differing) == ENDS_IN_A_NORM[name]
    assert all(key.endswith(f"{last}.weight") for key in differing)
    assert all(bool((ours.state_dict()[key] == 0).all()) for key in differing)
    other = built(name, False).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in published.state_dict().items())


@pytest.mark.parametrize("name", ENDS_IN_A_NORM)
def test_the_scales_and_then_the_branches_learn(name: str) -> None:
    model = built(name, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for block in (m for m in model.modules() if isinstance(m, NormedBranch)):
        assert bool((block.last_norm.weight != 0).any())
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert still == []


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ENDS_IN_A_NORM])
def test_a_network_without_a_norm_at_a_branchs_end_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"model.zero_gamma must be left out for {name}"):
        built(name, True)
    built(name, False)


@pytest.mark.parametrize("name", ["dawn-resnet18", "resnet9"])
def test_before_a_relu_a_scale_of_zero_would_never_learn(name: str) -> None:
    """Why these two are refused: neither the norm nor anything before it gets a gradient."""
    model = built(name, None)
    if name == "resnet9":
        branches = [m.branch for m in model.modules() if hasattr(m, "branch")]
        norms = [branch[1][1] for branch in branches]
        inside = [branch[0][0].weight for branch in branches]
    else:
        blocks = [m for m in model.modules() if hasattr(m, "norm2")]
        norms = [block.norm2 for block in blocks]
        inside = [block.conv1.weight for block in blocks]
    for norm in norms:
        nn.init.zeros_(norm.weight)
    loss = functional.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.arange(8))
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in [*(norm.weight for norm in norms), *(n.bias for n in norms), *inside]:
        assert parameter.grad is not None
        assert not bool(parameter.grad.any())


def test_a_recipe_asks_for_it() -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1),
        duration=updates(1),
        model=ModelSettings(name="resnet20", width=0.5, zero_gamma=True),
    )
    model = Training(load_task("digits"), recipe).model
    assert not any(bool(m.norm2.weight.any()) for m in model.modules() if hasattr(m, "norm2"))
    plain = replace(recipe, model=ModelSettings(name="resnet20", width=0.5))
    model = Training(load_task("digits"), plain).model
    assert all(bool(m.norm2.weight.any()) for m in model.modules() if hasattr(m, "norm2"))
    refused = replace(recipe, model=ModelSettings(name="resnet9", zero_gamma=True))
    with pytest.raises(InputError, match="none of whose residual branches ends in a norm"):
        Training(load_task("digits"), refused)
