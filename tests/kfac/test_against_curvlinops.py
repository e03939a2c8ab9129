"""Products of factors against curvlinops' K-FAC, where that is installed."""

from __future__ import annotations

import warnings

import pytest
import torch
from fisher_cases import DOUBLE, assert_same, capturing, statistics
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn of each other
    curvlinops = pytest.importorskip("curvlinops")


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, dilation=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def their_matrix(operator: object, size: int) -> Tensor:
    return operator @ torch.eye(size, dtype=DOUBLE)  # type: ignore[operator]


def our_matrix(found: dict[str, Tensor], name: str, layer: nn.Module) -> Tensor:
    """G x A in the order of (weight, bias) flattened one after the other."""
    a, g = found[f"{name}.A"][0], found[f"{name}.G"][0]
    index = torch.arange(len(g) * len(a)).view(len(g), len(a))
    order = index.flatten()
    if layer.bias is not None:
        order = torch.cat([index[:, :-1].flatten(), index[:, -1]])
    return torch.kron(g, a)[order][:, order]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("family", ["softmax", "gaussian"])
@pytest.mark.parametrize("make", [dense, convolutional])
def test_products_are_the_same(make: object, family: str, fisher: str, approximation: str) -> None:
    torch.manual_seed(0)
    model = make().to(DOUBLE)  # type: ignore[operator]
    convolutions = isinstance(model[0], nn.Conv2d)
    inputs = torch.randn(6, *((2, 7, 7) if convolutions else (4,)), dtype=DOUBLE)
    loss: nn.Module = nn.MSELoss()
    targets = torch.randn(6, 3, dtype=DOUBLE)
    if family == "softmax":
        loss, targets = nn.CrossEntropyLoss(), torch.randint(3, (6,))
    with capturing(model, fisher=fisher, sharing=approximation) as capture:
        outputs = model(inputs)
        capture.add_model_statistics(outputs, family)
        loss(outputs, targets).backward()
    found = statistics(capture, divisor=6.0 if fisher == "empirical" else 1.0)
    for name, layer in model.named_children():
        parameters = list(layer.parameters())
        if not parameters:
            continue
        operator = curvlinops.KFACLinearOperator(
            model,
            loss,
            parameters,
            [(inputs, targets)],
            fisher_type="type-2" if fisher == "exact" else "empirical",
            kfac_approx=approximation,
            separate_weight_and_bias=False,
        )
        theirs = their_matrix(operator, sum(each.numel() for each in parameters))
        if (family, fisher) == ("gaussian", "empirical"):
            theirs = theirs / 3  # the mean over 3 elements: they take it outside of g g^T
        assert_same(our_matrix(found, name, layer), theirs, 1e-9)
