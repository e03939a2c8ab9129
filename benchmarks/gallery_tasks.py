"""Tasks of the gallery: small trainings in float64, each from a seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn, optim

from benchmarks.gallery_truth import Problem, Ramp

__all__ = [
    "Rule",
    "classification",
    "density",
    "independent",
    "linear_network",
    "quadratic",
    "regression",
    "regression_with_nan",
]

_DTYPE = torch.float64
_RAMP = Ramp(start_lr=1e-5)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An update rule.

    Attributes:
        name: of torch's optimizer.
        momentum: of SGD.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0

    def build(self, model: nn.Module, lr: float) -> optim.Optimizer:
        """The optimizer of a model."""
        if self.name == "sgd":
            return optim.SGD(model.parameters(), lr=lr, momentum=self.momentum)
        return (optim.Adam if self.name == "adam" else optim.AdamW)(model.parameters(), lr=lr)


class Offset(nn.Module):
    """weights - inputs: what a quadratic is made of.

    Args:
        weights: to begin with.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Distance of the weights from the inputs."""
        return self.weights - inputs


def _problem(
    model: nn.Module,
    rule: Rule,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    batches: list[tuple[Tensor, Tensor]],
    ramp: Ramp,
) -> Problem:
    """Batches come again in the same order until the ramp is full."""
    repeated = tuple(batches[i % len(batches)] for i in range(ramp.num_updates))
    return Problem(
        model=model,
        optimizer=rule.build(model, ramp.start_lr),
        loss_function=loss_function,
        batches=repeated,
        ramp=ramp,
    )


def quadratic(
    eigenvalues: tuple[float, ...],
    seed: int,
    *,
    rule: Rule = Rule(),
    noise: float = 0.0,
    start: float = 1.0,
    ramp: Ramp = _RAMP,
) -> Problem:
    """1/2 (w - x)' H (w - x), H diagonal; x is 0 or drawn anew for each batch."""
    generator = torch.Generator().manual_seed(seed)
    hessian = torch.tensor(eigenvalues, dtype=_DTYPE)
    weights = start * torch.randn(len(hessian), generator=generator, dtype=_DTYPE).sign()
    draws = noise * torch.randn(
        ramp.num_updates if noise else 1, len(hessian), generator=generator, dtype=_DTYPE
    )

    def loss_function(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (hessian * outputs**2).sum()

    batches = [(draw, torch.zeros(1, dtype=_DTYPE)) for draw in draws]
    return _problem(Offset(weights), rule, loss_function, batches, ramp)


def regression(
    seed: int,
    *,
    rule: Rule = Rule(),
    factor: float = 1.0,
    learned: bool = False,
    ramp: Ramp = _RAMP,
) -> Problem:
    """Least squares in 8 dimensions with noise, 20 batches of 8, loss times `factor`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(160, 8, generator=generator, dtype=_DTYPE)
    slopes = torch.linspace(-2, 2, 8, dtype=_DTYPE).unsqueeze(1)
    targets = inputs @ slopes + 0.3 * torch.randn(160, 1, generator=generator, dtype=_DTYPE)
    model = nn.Linear(8, 1, bias=False, dtype=_DTYPE)
    with torch.no_grad():
        best = torch.linalg.lstsq(inputs, targets).solution.T
        model.weight.copy_(best if learned else torch.zeros(1, 8))

    def loss_function(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * nn.functional.mse_loss(outputs, targets)

    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    return _problem(model, rule, loss_function, batches, ramp)


def regression_with_nan(seed: int) -> Problem:
    """Least squares in which one input of the fourth batch is not a number."""
    problem = regression(seed)
    problem.batches[3][0][0, 0] = math.nan  # the weights are NaN from then on
    return problem


def classification(
    seed: int,
    *,
    separation: float,
    hidden: int = 0,
    batch_size: int = 200,
    rule: Rule = Rule(),
) -> Problem:
    """Two normal clouds, linear or with one tanh layer, cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(200) % 2).to(_DTYPE).unsqueeze(1)
    inputs = torch.randn(200, 4, generator=generator, dtype=_DTYPE) + separation * (labels - 0.5)
    torch.manual_seed(seed)
    last = nn.Linear(hidden or 4, 1, dtype=_DTYPE)
    model = nn.Sequential(nn.Linear(4, hidden, dtype=_DTYPE), nn.Tanh(), last) if hidden else last
    loss_function = nn.functional.binary_cross_entropy_with_logits
    batches = list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
    return _problem(model, rule, loss_function, batches, Ramp(start_lr=1e-5, end_lr=100.0))


def linear_network(seed: int) -> Problem:
    """Two layers W2 W1 x fitted to a linear map, whole data in every batch."""
    torch.manual_seed(seed)
    inputs = torch.randn(64, 4, dtype=_DTYPE)
    targets = inputs @ torch.diag(torch.tensor([2.0, 1.5, 1.0, 0.5], dtype=_DTYPE))
    layers = [nn.Linear(4, 4, bias=False, dtype=_DTYPE) for _ in range(2)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.3)
    mse = nn.functional.mse_loss
    return _problem(nn.Sequential(*layers), Rule(), mse, [(inputs, targets)], _RAMP)


def density(seed: int) -> Problem:
    """-log normal density with a learned mean and log deviation: the loss becomes negative."""
    generator = torch.Generator().manual_seed(seed)
    samples = 0.05 * torch.randn(256, 1, generator=generator, dtype=_DTYPE)
    model = Offset(torch.tensor([0.5, 0.0], dtype=_DTYPE))

    def loss_function(outputs: Tensor, targets: Tensor) -> Tensor:
        deviation = torch.exp(outputs[:, 1])
        return (0.5 * (outputs[:, 0] / deviation) ** 2 + outputs[:, 1]).mean()

    inputs = torch.cat([samples, torch.zeros_like(samples)], dim=1)
    batches = [(part, part[:, :1]) for part in inputs.split(32)]
    return _problem(model, Rule(), loss_function, batches, _RAMP)


def independent(seed: int) -> Problem:
    """A loss that is computed from the data alone."""
    generator = torch.Generator().manual_seed(seed)
    draws = 1.0 + 0.1 * torch.randn(100, 3, generator=generator, dtype=_DTYPE)

    def loss_function(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.mean() + 0.0 * outputs.sum()

    batches = [(draw, draw) for draw in draws]
    model = Offset(torch.zeros(3, dtype=_DTYPE))
    return _problem(model, Rule(), loss_function, batches, _RAMP)
