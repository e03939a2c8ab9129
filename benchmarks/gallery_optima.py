"""Optima of the gallery's tasks, from training at every lr.

Of runs with a constant lr over as many updates as the ramp has, over a grid of ratio 2, refined to
2^(1/4), the best is the lr with the least final loss on the whole data (mean over seeds). The edge
is the lr, to ratio 2^(1/8), above which the final loss exceeds the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gallery_truth import TOLERANCE, Problem, Ramp, Truth

__all__ = ["SEEDS", "Optimum", "brute_force", "truth_of_optimum"]

SEEDS = 2
_KEPT = 0.99
_OVERFLOWED = 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """What all constant-lr runs say.

    Attributes:
        best_lr: with the least final loss.
        low: least lr next to it that keeps 99 % of its improvement, on the grid.
        high: greatest.
        edge: above which the final loss exceeds the first; inf if that is beyond the ramp.
    """

    best_lr: float
    low: float
    high: float
    edge: float


def brute_force(build: Callable[[int], Problem]) -> Optimum:
    """Best constant lr and edge of a task, from training at every lr.

    Args:
        build: seed -> problem.
    """
    ramp = build(0).ramp
    first = _final_loss(build, None)
    losses = _grid_of_final_losses(build, first)
    best = min(losses, key=losses.__getitem__)
    for fraction in (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75):
        lr = best * 2**fraction
        if lr <= ramp.end_lr:
            losses[lr] = _final_loss(build, lr)
    best = min(losses, key=losses.__getitem__)
    enough = first - _KEPT * (first - losses[best])
    worse = [lr for lr, loss in losses.items() if not loss <= enough]
    below = max((lr for lr in worse if lr < best), default=0.0)
    above = min((lr for lr in worse if lr > best), default=math.inf)
    kept = [lr for lr in losses if below < lr < above]
    return Optimum(
        best_lr=best, low=min(kept), high=max(kept), edge=_edge(build, losses, best, first)
    )


def _grid_of_final_losses(build: Callable[[int], Problem], first: float) -> dict[float, float]:
    """Downwards from the end of the ramp, until nothing is learned any more."""
    ramp, losses = build(0).ramp, dict[float, float]()
    lr = ramp.end_lr
    while lr > ramp.start_lr:
        losses[lr] = _final_loss(build, lr)
        improvement = first - min(losses.values())
        past_the_best = lr < min(losses, key=losses.__getitem__)
        if past_the_best and first - 0.5 * improvement < losses[lr] < first:
            break
        lr /= 2
    return losses


def _edge(
    build: Callable[[int], Problem], losses: dict[float, float], best: float, first: float
) -> float:
    diverged = [lr for lr, loss in losses.items() if lr > best and not loss <= first]
    if not diverged:
        return math.inf
    high = min(diverged)
    low = max(lr for lr in losses if lr < high)
    while high / low > 2**0.125:
        middle = math.sqrt(low * high)
        if _final_loss(build, middle) <= first:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _final_loss(build: Callable[[int], Problem], lr: float | None) -> float:
    """Mean over seeds of the loss on the whole data after all updates at a constant lr.

    Args:
        build: seed -> problem.
        lr: None makes no update.
    """
    losses = []
    for seed in range(SEEDS):
        problem = build(seed)
        if lr is not None and not _train(problem, lr):
            return math.inf
        losses.append(_whole_loss(problem))
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf


def _train(problem: Problem, lr: float) -> bool:
    """All updates at a constant lr; whether the loss stayed finite."""
    for group in problem.optimizer.param_groups:
        group["lr"] = lr
    for inputs, targets in problem.batches:
        problem.optimizer.zero_grad()
        loss = problem.loss_function(problem.model(inputs), targets)
        if not abs(loss.item()) < _OVERFLOWED:
            return False
        loss.backward()
        problem.optimizer.step()
    return True


def _whole_loss(problem: Problem) -> float:
    distinct = {id(inputs): (inputs, targets) for inputs, targets in problem.batches}
    with torch.no_grad():
        losses = [problem.loss_function(problem.model(x), y).item() for x, y in distinct.values()]
    return sum(losses) / len(losses)


def truth_of_optimum(optimum: Optimum, ramp: Ramp, *, has_edge: bool) -> Truth:
    """Right is what lies within a factor of 4 of the best lr, or keeps 99 % of its improvement.

    It must not diverge either. Where the best lr lies at the end of the ramp, "never-diverged" is
    right as well.

    Args:
        optimum: of the task.
        ramp: of the task.
        has_edge: whether its edge is sharp enough to judge estimates of it.
    """
    low = min(optimum.best_lr / TOLERANCE, optimum.low)
    high = min(max(optimum.best_lr * TOLERANCE, optimum.high), optimum.edge, ramp.end_lr)
    at_end = optimum.best_lr * TOLERANCE > ramp.end_lr
    return Truth(
        low=low,
        high=high,
        none_is_right=at_end,
        findings=("never-diverged", "no-three-regions") if at_end else (),
        edge=optimum.edge if has_edge else None,
        why=f"of all constant-lr runs, {optimum.best_lr:.3g} is best; edge {optimum.edge:.3g}",
    )
