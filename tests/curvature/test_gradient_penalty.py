"""Penalized gradients: differences against the exact product, weights and draws put back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.curvature.gradient_penalty import (
    central_difference_penalty,
    exact_penalty,
    forward_difference_penalty,
    global_norm,
    sharpness_aware,
)
from anybatch.curvature.penalized_backward import penalized_backward, sharpness_aware_backward
from anybatch.errors import InputError

COEFFICIENT = 0.3


def tanh_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


class Problem:
    """A loss of a model on one batch, its gradient and its weights."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        self.model = model
        self.inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
        self.targets = torch.arange(20) % 3
        self.weights = list(model.parameters())

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.inputs), self.targets)

    def gradient(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(), self.weights))

    def exact(self) -> Tensor:
        found = exact_penalty(self.gradient(), [self.loss()], self.weights, coefficient=COEFFICIENT)
        return flat(found)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def penalized_by_autograd(problem: Problem) -> Tensor:
    """By differentiating L + c |g|^2 itself."""
    gradient = torch.autograd.grad(problem.loss(), problem.weights, create_graph=True)
    squared = sum(g.square().sum() for g in gradient)
    total = problem.loss() + COEFFICIENT * squared
    return flat(list(torch.autograd.grad(total, problem.weights)))


def test_the_exact_penalty_is_the_gradient_of_the_penalized_loss():
    problem = Problem(tanh_net())
    assert torch.allclose(problem.exact(), penalized_by_autograd(problem), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("difference", "order", "epsilons"),
    [
        (forward_difference_penalty, 1, [10.0**-k for k in range(1, 6)]),
        (central_difference_penalty, 2, [10.0**-k for k in (0.5, 1, 1.5, 2, 2.5)]),
    ],
)
def test_the_error_of_a_difference_falls_with_its_order_of_epsilon(difference, order, epsilons):
    problem = Problem(tanh_net())
    exact = problem.exact()
    errors = []
    for epsilon in epsilons:
        found = difference(
            problem.gradient(), problem.gradient, problem.weights,
            coefficient=COEFFICIENT, epsilon=epsilon,
        )  # fmt: skip
        errors.append(float((flat(found) - exact).norm() / exact.norm()))
    slopes = np.polyfit(np.log(epsilons), np.log(errors), 1)
    assert abs(slopes[0] - order) < 0.05
    assert errors[-1] < 1e-4


def test_in_single_precision_the_error_has_a_least_value_and_rises_again():
    problem = Problem(tanh_net(torch.float32), torch.float32)
    exact = problem.exact()

    def error(epsilon: float) -> float:
        found = forward_difference_penalty(
            problem.gradient(), problem.gradient, problem.weights,
            coefficient=COEFFICIENT, epsilon=epsilon,
        )  # fmt: skip
        return float((flat(found) - exact).norm())

    assert error(1e-2) < error(1.0)
    assert error(1e-2) < error(1e-6)


@pytest.mark.parametrize("difference", [forward_difference_penalty, central_difference_penalty])
def test_on_a_quadratic_every_difference_is_exact(difference):
    curvature = torch.diag(torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64))
    weights = [torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)]

    def gradient() -> list[Tensor]:
        return [curvature @ weights[0]]

    found = difference(gradient(), gradient, weights, coefficient=0.5, epsilon=0.7)
    slope = curvature @ weights[0]
    assert torch.allclose(found[0], slope + curvature @ slope, rtol=1e-13)


def test_sam_looks_at_the_radius_and_is_the_forward_difference_of_the_norm():
    problem = Problem(tanh_net())
    gradient, radius = problem.gradient(), 0.05
    norm = float(global_norm(gradient))
    moved = Problem(tanh_net())
    with torch.no_grad():
        for weight, slope in zip(moved.weights, gradient, strict=True):
            weight += radius * slope / norm
    sam = flat(sharpness_aware(gradient, problem.gradient, problem.weights, radius=radius))
    assert torch.allclose(sam, flat(moved.gradient()), rtol=1e-12)
    share = sharpness_aware(gradient, problem.gradient, problem.weights, radius=radius, weight=0.25)
    assert torch.allclose(flat(share), 0.75 * flat(gradient) + 0.25 * sam, rtol=1e-12)
    penalty = forward_difference_penalty(  # the share that it takes of the displaced gradient
        gradient, problem.gradient, problem.weights,
        coefficient=0.25 * radius / (2 * norm), epsilon=radius,
    )  # fmt: skip
    assert torch.allclose(flat(share), flat(penalty), rtol=1e-12)


def test_a_zero_gradient_stays_zero_and_the_inputs_are_kept():
    weights = [torch.zeros(3, dtype=torch.float64)]
    zero = [torch.zeros(3, dtype=torch.float64)]
    for function, settings in (
        (forward_difference_penalty, {"coefficient": 1.0, "epsilon": 0.1}),
        (central_difference_penalty, {"coefficient": 1.0, "epsilon": 0.1}),
        (sharpness_aware, {"radius": 0.1}),
    ):
        [found] = function(zero, lambda: [weights[0].clone()], weights, **settings)
        assert torch.equal(found, torch.zeros(3, dtype=torch.float64))
    problem = Problem(tanh_net())
    gradient = problem.gradient()
    before = flat(gradient).clone()
    forward_difference_penalty(
        gradient, problem.gradient, problem.weights, coefficient=1.0, epsilon=0.1
    )
    assert torch.equal(flat(gradient), before)


class _ForwardError(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_put_back_bit_for_bit(fails):
    problem = Problem(tanh_net(torch.float32), torch.float32)
    before = flat(problem.weights).clone()
    seen: list[Tensor] = []

    def gradient_at() -> list[Tensor]:
        seen.append(flat(problem.weights).clone())
        if fails and len(seen) == 2:
            raise _ForwardError
        return problem.gradient()

    try:
        central_difference_penalty(
            problem.gradient(), gradient_at, problem.weights, coefficient=1.0, epsilon=0.01
        )
    except _ForwardError:
        assert fails
    assert len(seen) == 2
    assert torch.equal(flat(problem.weights), before)
    distances = [float((displaced - before).norm()) for displaced in seen]
    assert distances == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.parametrize(
    ("function", "settings", "name"),
    [
        (forward_difference_penalty, {"coefficient": -1.0, "epsilon": 0.1}, "coefficient"),
        (central_difference_penalty, {"coefficient": 1.0, "epsilon": 0.0}, "epsilon"),
        (sharpness_aware, {"radius": math.nan}, "epsilon"),
        (sharpness_aware, {"radius": 0.1, "weight": 0.0}, "weight"),
    ],
)
def test_settings_out_of_bounds_are_refused(function, settings, name):
    problem = Problem(tanh_net())
    with pytest.raises(InputError, match=name):
        function(problem.gradient(), problem.gradient, problem.weights, **settings)


# --- for a model in anybody's loop -------------------------------------------------------------


class Drawing(nn.Module):
    """Dropout, BatchNorm, a layer without use, and draws of Python and numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)
        )
        self.unused = nn.Linear(2, 2)
        self.drawn: list[float] = []

    def forward(self, inputs: Tensor) -> Tensor:
        scale = 1 + random.random() + np.random.rand()  # noqa: NPY002 - as layers of users do
        self.drawn.append(scale)
        outputs: Tensor = self.body(inputs) * scale
        return outputs


def drawing_problem() -> Problem:
    torch.manual_seed(0)
    return Problem(Drawing().double())


Backward = Callable[[Problem], Tensor]
WAYS: dict[str, Backward] = {
    "forward": lambda p: penalized_backward(p.model, p.loss, coefficient=0.1),
    "central": lambda p: penalized_backward(p.model, p.loss, coefficient=0.1, method="central"),
    "exact": lambda p: penalized_backward(p.model, p.loss, coefficient=0.1, method="exact"),
    "sam": lambda p: sharpness_aware_backward(p.model, p.loss, radius=0.01),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_models_gradient_leaves_buffers_and_generators_as_one_pass_would(way):
    plain, penalized = drawing_problem(), drawing_problem()
    after = []
    for problem, backward in ((plain, None), (penalized, WAYS[way])):
        torch.manual_seed(4), random.seed(4), np.random.seed(4)  # noqa: NPY002
        if backward is None:
            problem.loss().backward()
        else:
            loss = backward(problem)
            assert not loss.requires_grad
        after.append((float(torch.rand(())), random.random(), np.random.rand()))  # noqa: NPY002
    assert after[0] == after[1]
    for (name, buffer), other in zip(
        plain.model.named_buffers(), penalized.model.buffers(), strict=True
    ):
        assert torch.equal(buffer, other), name
    assert len(set(penalized.model.drawn)) == 1  # the same draws in every pass
    assert len(penalized.model.drawn) == (3 if way == "central" else 2)
    assert penalized.model.unused.weight.grad is None
    assert torch.equal(flat(plain.weights), flat(penalized.weights))
    slopes = [
        flat([w.grad for w in problem.weights if w.grad is not None])
        for problem in (plain, penalized)
    ]
    assert 0 < float((slopes[0] - slopes[1]).norm() / slopes[0].norm()) < 1


def test_a_models_methods_agree_and_replace_what_was_in_grad():
    found = {}
    for way in ("forward", "central", "exact"):
        problem = drawing_problem()
        for weight in problem.weights:
            weight.grad = torch.full_like(weight, 1e6)
        torch.manual_seed(4), random.seed(4), np.random.seed(4)  # noqa: NPY002
        penalized_backward(problem.model, problem.loss, coefficient=0.1, method=way, epsilon=1e-5)
        found[way] = flat([w.grad for w in problem.weights if w.grad is not None])
    scale = float(found["exact"].norm())
    assert float((found["forward"] - found["exact"]).norm()) < 1e-4 * scale
    assert float((found["central"] - found["exact"]).norm()) < 1e-8 * scale
    with pytest.raises(InputError, match="method"):
        penalized_backward(problem.model, problem.loss, coefficient=0.1, method="backward")
