"""What the order of SGD's batches does on average: a penalty on the norms of their gradients.

M batches with losses L_k, L their mean, g_k = grad L_k, G = grad L, H and H_k the Hessians. One
epoch of SGD at a small lr from w, batches in the order p:

    w_p = w - eta sum_k g_k + eta^2 sum_{j before k} H_k g_j + O(eta^3)

Averaged over all M! orders, every pair stands in both orders equally often:

    mean w_p = w - M eta G + eta^2 / 2 (M^2 H G - sum_k H_k g_k) + O(eta^3)

Gradient flow on L' for the time M eta gives w - M eta grad L' + M^2 eta^2 / 2 H G + O(eta^3), so
the two agree to second order where grad L' = G + eta / 2 mean_k H_k g_k, that is

    L' = L + (eta / 4) mean_k |g_k|^2                      (Smith et al. 2021, eq. 22)

Gradient descent in M steps of the same lr has M (M - 1) / 2 eta^2 H G in the place of the flow's
term, which is its own share eta / 4 |G|^2 of the penalty: it agrees on
L + (eta / 4) (mean_k |g_k|^2 - |G|^2), the variance of the batches' gradients. On quadratics all of
this can be computed exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.objectives import Metric
from anybatch.recipe import (
    BlockSettings,
    ComputeSettings,
    GradientPenalty,
    Recipe,
    SGDSettings,
)
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

NUM_BATCHES, SIDE = 4, 3
LRS = [2.0**-k for k in range(5, 11)]


def quadratics() -> tuple[Tensor, Tensor]:
    """Hessians (M, n, n), positive, and minima a (M, n) of L_k = (w - a)' H_k (w - a) / 2."""
    generator = torch.Generator().manual_seed(7)
    roots = torch.randn(NUM_BATCHES, SIDE, SIDE, generator=generator, dtype=torch.float64)
    minima = torch.randn(NUM_BATCHES, SIDE, generator=generator, dtype=torch.float64)
    return roots @ roots.mT / SIDE + 0.1 * torch.eye(SIDE, dtype=torch.float64), minima


HESSIANS, MINIMA = quadratics()
START = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64)
MEAN_HESSIAN = HESSIANS.mean(0)
MEAN_OFFSET = torch.einsum("kij,kj->i", HESSIANS, MINIMA) / NUM_BATCHES  # G = H w - this
SQUARES = torch.einsum("kij,kjl->il", HESSIANS, HESSIANS) / NUM_BATCHES
SQUARES_OFFSET = torch.einsum("kij,kjl,kl->i", HESSIANS, HESSIANS, MINIMA) / NUM_BATCHES


def epoch_of_sgd(lr: float, order: Iterable[int]) -> Tensor:
    w = START.clone()
    for k in order:
        w = w - lr * HESSIANS[k] @ (w - MINIMA[k])
    return w


def mean_over_all_orders(lr: float) -> Tensor:
    orders = list(itertools.permutations(range(NUM_BATCHES)))
    assert len(orders) == math.factorial(NUM_BATCHES)
    return torch.stack([epoch_of_sgd(lr, order) for order in orders]).mean(0)


def slope_of(lr: float, *, blocks: float, whole: float) -> tuple[Tensor, Tensor]:
    """A and b of grad L' = A w - b, L' = L + lr (blocks mean |g_k|^2 + whole |G|^2)."""
    curvature = MEAN_HESSIAN + 2 * lr * (blocks * SQUARES + whole * MEAN_HESSIAN @ MEAN_HESSIAN)
    offset = MEAN_OFFSET + 2 * lr * (blocks * SQUARES_OFFSET + whole * MEAN_HESSIAN @ MEAN_OFFSET)
    return curvature, offset


def flow(lr: float, *, blocks: float, whole: float = 0.0) -> Tensor:
    """Gradient flow for the time of the epoch, by the matrix exponential."""
    curvature, offset = slope_of(lr, blocks=blocks, whole=whole)
    minimum = torch.linalg.solve(curvature, offset)
    return minimum + torch.linalg.matrix_exp(-NUM_BATCHES * lr * curvature) @ (START - minimum)


def descent(lr: float, *, blocks: float, whole: float = 0.0) -> Tensor:
    """Gradient descent in as many steps of the same lr."""
    curvature, offset = slope_of(lr, blocks=blocks, whole=whole)
    w = START.clone()
    for _ in range(NUM_BATCHES):
        w = w - lr * (curvature @ w - offset)
    return w


def order_of(found: Callable[[float], Tensor]) -> float:
    """How fast the distance from the mean of SGD's epochs falls with the lr: its exponent."""
    errors = [float((found(lr) - mean_over_all_orders(lr)).norm()) for lr in LRS]
    return float(np.polyfit(np.log(LRS), np.log(errors), 1)[0])


def test_the_mean_epoch_of_sgd_is_gradient_flow_on_the_penalized_loss_to_the_next_order():
    assert order_of(lambda lr: flow(lr, blocks=0.25)) == pytest.approx(3.0, abs=0.1)
    assert order_of(lambda lr: flow(lr, blocks=0.0)) == pytest.approx(2.0, abs=0.1)
    for coefficient in (0.125, 0.5, 0.0625):  # 1/16 is what the published runs have
        assert order_of(lambda lr, c=coefficient: flow(lr, blocks=c)) < 2.2


def test_gradient_descent_at_the_same_lr_lacks_only_the_variance():
    own = order_of(lambda lr: descent(lr, blocks=0.25, whole=-0.25))
    assert own == pytest.approx(3.0, abs=0.1)
    for blocks, whole in ((0.0, 0.0), (0.25, 0.0)):
        found = order_of(lambda lr, b=blocks, w=whole: descent(lr, blocks=b, whole=w))
        assert found == pytest.approx(2.0, abs=0.1)
    # Many small steps are the flow, and then the penalty is that of the blocks again.
    lr, steps = LRS[0], 4096
    curvature, offset = slope_of(lr, blocks=0.25, whole=0.0)
    w = START.clone()
    for _ in range(steps):
        w = w - NUM_BATCHES * lr / steps * (curvature @ w - offset)
    assert torch.allclose(w, flow(lr, blocks=0.25), atol=1e-4)


def test_one_order_alone_is_not_what_the_mean_is():
    lr = LRS[-1]
    mean = mean_over_all_orders(lr)
    off = max(
        float((epoch_of_sgd(lr, order) - mean).norm())
        for order in itertools.permutations(range(NUM_BATCHES))
    )
    assert off > 20 * float((flow(lr, blocks=0.25) - mean).norm())


# --- the same by the step of this package ------------------------------------------------------


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(START.float())

    def forward(self, number: Tensor) -> Tensor:
        return self.w.expand(len(number), SIDE)


def quadratic_loss(points: Tensor, numbers: Tensor) -> Tensor:
    distance = points - MINIMA[numbers]
    return 0.5 * torch.einsum("ei,eij,ej->e", distance, HESSIANS[numbers], distance)


def gradient_field(lr: float, coefficient: float) -> Callable[[Tensor], Tensor]:
    """The training's gradient as a function of the weights: a block for every batch."""
    numbers = torch.arange(NUM_BATCHES)
    task = Task(
        build_model=Point,
        train=(numbers[:, None].double(), numbers),
        validation=(numbers[:, None].double(), numbers),
        kind="regression",
        loss=quadratic_loss,
        metric=Metric(name="quadratic", direction="min", per_example=quadratic_loss),
    )
    penalty = GradientPenalty(coefficient=coefficient, unit="lr", method="exact")
    recipe = Recipe(
        optimizer=SGDSettings(lr=lr),
        batch_size="full",
        duration=updates(1),
        blocks=BlockSettings(size=1, penalty=penalty),
        compute=ComputeSettings(device="cpu", precision="fp64"),
    )
    training = Training(task, recipe, world=World(torch.device("cpu")))
    portion = training.feed.next()

    def field(w: Tensor) -> Tensor:
        with torch.no_grad():
            training.model.w.copy_(w)
        training.gradient(portion)
        return training.model.w.grad.clone()

    return field


def integrated(field: Callable[[Tensor], Tensor], seconds: float) -> Tensor:
    """Gradient flow by one step of Runge and Kutta, error O(seconds^5)."""
    w = START
    first = -field(w)
    second = -field(w + seconds / 2 * first)
    third = -field(w + seconds / 2 * second)
    fourth = -field(w + seconds * third)
    return w + seconds / 6 * (first + 2 * second + 2 * third + fourth)


@pytest.mark.parametrize(("coefficient", "expected"), [(0.25, 3.0), (0.0625, 2.0)])
def test_blocks_with_a_penalty_of_a_quarter_of_the_lr_follow_the_mean_epoch(coefficient, expected):
    curvature, offset = slope_of(0.1, blocks=coefficient, whole=0.0)
    found = gradient_field(0.1, coefficient)(START)
    assert torch.allclose(found, curvature @ START - offset, rtol=1e-12)

    def end(lr: float) -> Tensor:
        return integrated(gradient_field(lr, coefficient), NUM_BATCHES * lr)

    assert order_of(end) == pytest.approx(expected, abs=0.15)
