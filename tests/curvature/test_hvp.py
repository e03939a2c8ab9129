"""Hessian-vector products against the whole Hessian, and what they do at kinks and gaps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from anybatch.curvature.hvp import flat, hessian_vector_product, kinks_of
from anybatch.errors import InputError


def whole_hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Every row, by torch."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss_at(vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [shape.numel() for shape in shapes])
        weights = {n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(model, weights, (inputs,))
        return nn.functional.cross_entropy(outputs, targets)

    at = parameters_to_vector(model.parameters()).detach()
    return torch.autograd.functional.hessian(loss_at, at)


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3


def test_it_is_the_hessian_and_parts_add_up(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    parameters = list(model.parameters())
    hessian = whole_hessian(model, inputs, targets)

    def parts(size: int) -> Iterator[Tensor]:
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            yield nn.functional.cross_entropy(model(x), y, reduction="sum") / len(inputs)

    for size in (12, 5):
        vector = torch.randn(len(hessian), dtype=torch.float64)
        product = hessian_vector_product(parts(size), parameters, vector)
        assert torch.allclose(product, hessian @ vector, rtol=1e-12, atol=1e-14)


def test_one_graph_is_alive_at_a_time(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    alive: list[int] = []
    graphs = []

    def parts() -> Iterator[Tensor]:
        import weakref

        for x, y in zip(inputs.split(4), targets.split(4), strict=True):
            alive.append(sum(reference() is not None for reference in graphs))
            hidden = model[0](x)
            graphs.append(weakref.ref(hidden))
            yield nn.functional.cross_entropy(model[2](model[1](hidden)), y)
            del hidden

    parameters = list(model.parameters())
    hessian_vector_product(parts(), parameters, torch.ones_like(flat(parameters)))
    assert alive == [0, 0, 0]


def test_a_parameter_without_influence_has_rows_of_zeros() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    vector = torch.tensor([1.0, 0.0, 1.0])
    loss = (used**2).sum()
    assert hessian_vector_product([loss], [used, unused], vector).tolist() == [2.0, 0.0, 0.0]
    linear = used.sum()
    assert hessian_vector_product([linear], [used, unused], vector).tolist() == [0.0] * 3
    constant = torch.tensor(1.0)
    assert hessian_vector_product([constant], [used, unused], vector).tolist() == [0.0] * 3


def test_tied_weights_count_once() -> None:
    layer = nn.Linear(2, 2, bias=False).double()
    inputs = torch.randn(5, 2, dtype=torch.float64)

    def loss_at(weight: Tensor) -> Tensor:
        return ((inputs @ weight.T @ weight.T) ** 2).sum()

    hessian = torch.autograd.functional.hessian(loss_at, layer.weight.detach()).reshape(4, 4)
    vector = torch.randn(4, dtype=torch.float64)
    loss = (layer(layer(inputs)) ** 2).sum()
    product = hessian_vector_product([loss], list(layer.parameters()), vector)
    assert torch.allclose(product, hessian @ vector, rtol=1e-12)


def test_attention_has_a_second_derivative_here() -> None:
    query = torch.randn(1, 1, 3, 4, requires_grad=True)
    key = torch.randn(1, 1, 3, 4)

    def losses() -> Iterator[Tensor]:
        yield nn.functional.scaled_dot_product_attention(query, key, key).square().sum()

    assert hessian_vector_product(losses(), [query], torch.ones(12)).abs().max() > 0


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_layer_without_second_derivative_is_refused_in_one_line() -> None:
    weights = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="must have a second derivative in every layer"):
        hessian_vector_product([_Once.apply(weights).square().sum()], [weights], torch.ones(2))


def test_kinks_are_named_wherever_they_are() -> None:
    image = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = nn.functional.max_pool2d(nn.functional.leaky_relu(image), 2).abs().sum()
    assert kinks_of(loss) == ["Abs", "LeakyRelu", "MaxPool2DWithIndices"]
    assert kinks_of(nn.functional.gelu(image).sum()) == []
