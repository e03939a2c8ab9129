"""The tasks of the gallery, each with its optimum.

Edges are 2 / lambda_max of the Hessian, times 1 + momentum, where gradient descent is on a
quadratic; everything else comes from `brute_force`. The trial "truth" of the benchmark computes
the optima again and compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from benchmarks.gallery_optima import SEEDS, Optimum, truth_of_optimum
from benchmarks.gallery_tasks import (
    Rule,
    classification,
    density,
    independent,
    linear_network,
    quadratic,
    regression,
    regression_with_nan,
)
from benchmarks.gallery_truth import Case, Problem, Ramp, Truth

__all__ = ["OPTIMA", "TASK_CASES"]

_QUADRATIC, _STOCHASTIC, _BROKEN = "quadratic task", "other task", "broken task"
_UNTRAINABLE = ("never-learned", "loss-ignores-weights", "noisy", "no-three-regions")


def _case(
    name: str,
    build: Callable[[int], Problem],
    description: str,
    *,
    group: str = _STOCHASTIC,
    has_edge: bool = False,
    truth: Truth | None = None,
) -> Case:
    def known() -> Truth:
        if truth is not None:
            return truth
        return truth_of_optimum(OPTIMA[name], build(0).ramp, has_edge=has_edge)

    return Case(
        name=name,
        group=group,
        description=description,
        build=build,
        truth=known,
        num_seeds=SEEDS,
    )


OPTIMA = {
    # edges of the first four: 2 / 2, 2 / 10, 2 (1 + 0.9) / 10, 2 / 10
    "quadratic": Optimum(best_lr=0.7433, low=0.03906, high=0.8839, edge=1.0),
    "quadratic-ill-conditioned": Optimum(best_lr=0.1858, low=0.03906, high=0.1858, edge=0.2),
    "quadratic-momentum": Optimum(best_lr=0.221, low=0.004883, high=0.3716, edge=0.38),
    "quadratic-noisy": Optimum(best_lr=0.09291, low=0.01953, high=0.1105, edge=0.2),
    "quadratic-adam": Optimum(best_lr=0.03906, low=0.01953, high=10, edge=math.inf),
    "regression": Optimum(best_lr=0.03285, low=0.01953, high=0.3125, edge=0.5033),
    "regression-momentum": Optimum(best_lr=0.004106, low=0.001221, high=0.03906, edge=0.08158),
    "regression-adam": Optimum(best_lr=0.07812, low=0.03906, high=0.3125, edge=4.391),
    "regression-loss-scaled": Optimum(best_lr=32.85, low=19.53, high=312.5, edge=503.3),
    "regression-adam-loss-scaled": Optimum(best_lr=0.07812, low=0.03906, high=0.3125, edge=4.391),
    "logistic-separable": Optimum(best_lr=100, low=0.04883, high=100, edge=math.inf),
    "logistic-batches": Optimum(best_lr=0.3285, low=0.1953, high=0.7812, edge=14.23),
    "tanh-network": Optimum(best_lr=6.25, low=5.256, high=6.25, edge=31.05),
    "tanh-network-adamw": Optimum(best_lr=0.1953, low=0.1953, high=0.2323, edge=3.559),
    "linear-network": Optimum(best_lr=0.625, low=0.07812, high=0.8839, edge=1.007),
    "density": Optimum(best_lr=0.02323, low=0.02323, high=0.02323, edge=0.04448),
}
"""Task -> what `brute_force` gave."""

_EVEN = (0.5, 0.7, 1.0, 1.4, 2.0)
_UNEVEN = tuple(10.0 ** (i / 3 - 2) for i in range(10))  # 0.01 to 10
_HEAVY = Rule(momentum=0.9)

TASK_CASES: tuple[Case, ...] = (
    _case(
        "quadratic",
        partial(quadratic, _EVEN),
        "gradient descent, curvatures 0.5 to 2: edge 2 / 2",
        group=_QUADRATIC,
        has_edge=True,
    ),
    _case(
        "quadratic-ill-conditioned",
        partial(quadratic, _UNEVEN),
        "curvatures 0.01 to 10: edge 2 / 10",
        group=_QUADRATIC,
        has_edge=True,
    ),
    _case(
        "quadratic-momentum",
        partial(quadratic, _UNEVEN, rule=_HEAVY),
        "momentum 0.9: edge 2 (1 + 0.9) / 10",
        group=_QUADRATIC,
        has_edge=True,
    ),
    _case(
        "quadratic-noisy",
        partial(quadratic, _UNEVEN, noise=0.3),
        "the minimum is drawn anew for each batch: the mean still has the edge 2 / 10",
        group=_QUADRATIC,
        has_edge=True,
    ),
    _case(
        "quadratic-adam",
        partial(quadratic, _UNEVEN, rule=Rule(name="adam")),
        "Adam: no edge in closed form",
        group=_QUADRATIC,
    ),
    _case("regression", regression, "least squares, 20 batches of 8", has_edge=True),
    _case("regression-momentum", partial(regression, rule=_HEAVY), "momentum 0.9", has_edge=True),
    _case("regression-adam", partial(regression, rule=Rule(name="adam")), "Adam"),
    _case(
        "regression-loss-scaled",
        partial(regression, factor=1e-3, ramp=Ramp(start_lr=1e-2, end_lr=1e4)),
        "the loss times 0.001: edge and best lr of SGD move up by 1000",
        has_edge=True,
    ),
    _case(
        "regression-adam-loss-scaled",
        partial(regression, rule=Rule(name="adam"), factor=1e-3),
        "the loss times 0.001: those of Adam stay",
    ),
    _case(
        "logistic-separable",
        partial(classification, separation=5.0),
        "two clouds apart, gradient descent: the larger the lr, the better",
    ),
    _case(
        "logistic-batches",
        partial(classification, separation=1.0, batch_size=20),
        "two clouds that overlap, batches of 20",
    ),
    _case(
        "tanh-network",
        partial(classification, separation=2.0, hidden=16, batch_size=20),
        "one hidden layer, SGD",
    ),
    _case(
        "tanh-network-adamw",
        partial(classification, separation=2.0, hidden=16, batch_size=20, rule=Rule(name="adamw")),
        "one hidden layer, AdamW",
    ),
    _case("linear-network", linear_network, "two linear layers, gradient descent", has_edge=True),
    _case("density", density, "a loss that becomes negative, edge falls while it is learned"),
    _case(
        "independent-of-weights",
        independent,
        "the loss is computed from the data alone",
        group=_BROKEN,
        truth=Truth(why="no lr changes it", none_is_right=True, findings=_UNTRAINABLE),
    ),
    _case(
        "nan-in-data",
        regression_with_nan,
        "one number of the fourth batch is NaN",
        group=_BROKEN,
        truth=Truth(
            why="the weights are NaN from the fourth update on",
            none_is_right=True,
            findings=("non-finite-data", "diverged-at-once", "nan-gap", "too-few-points"),
        ),
    ),
    _case(
        "at-the-minimum",
        partial(quadratic, _EVEN, start=0.0),
        "the weights begin at the minimum: gradient 0, loss 0",
        group=_BROKEN,
        truth=Truth(why="no lr changes it", none_is_right=True, findings=_UNTRAINABLE),
    ),
    _case(
        "already-learned",
        partial(regression, learned=True),
        "the weights begin at the least squares: the loss can only rise",
        group=_BROKEN,
        truth=Truth(why="no lr lowers it", none_is_right=True, findings=_UNTRAINABLE),
    ),
)
"""In the order of the table."""
