"""Curves of the gallery: a loss written as a function of the lr, and what is done to it.

A shape is the loss without noise; a disturbance is noise, spikes, gaps or rounding. A finder sees
shape and disturbances through a tiny model whose loss function returns the script; the truth is
computed from the shape alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn, optim

from benchmarks.gallery_truth import TOLERANCE, Case, FloatArray, Problem, Ramp, Truth

__all__ = ["Curve", "Disturbance", "Shape", "basin", "curve_case", "flat", "usable_region"]

Shape = Callable[[FloatArray], FloatArray]
"""lrs -> losses without noise."""

Disturbance = Callable[[FloatArray, FloatArray, np.random.Generator], FloatArray]
"""(losses, lrs of the whole ramp, generator) -> losses."""

TOP, DEPTH = 2.3, 2.0  # as ten classes: log(10) before learning, 0.3 after
_FINE = 4001


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A scripted curve.

    Attributes:
        shape: without noise.
        disturbances: applied in this order.
        ramp: over which it is drawn.
    """

    shape: Shape
    disturbances: Sequence[Disturbance] = ()
    ramp: Ramp = field(default_factory=Ramp)

    def losses(self, lrs: FloatArray, seed: int) -> FloatArray:
        """The losses at every lr of the ramp.

        Args:
            lrs: one for each update.
            seed: of the disturbances; draws depend on it and on the position only.
        """
        losses = self.shape(lrs)
        for number, disturbance in enumerate(self.disturbances):
            losses = disturbance(losses, lrs, np.random.default_rng([seed, number]))
        return losses


class ScriptedLoss:
    """A loss function that returns the script's next value at the optimizer's present lr.

    Args:
        curve: the script.
        optimizer: whose lr is read.
        seed: of the disturbances.
    """

    def __init__(self, curve: Curve, optimizer: optim.Optimizer, seed: int) -> None:
        self._curve, self._optimizer, self._seed = curve, optimizer, seed
        self._lrs, self._position = curve.ramp.lrs(), 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The value, with a gradient that moves the weights and nothing else."""
        position = self._position % len(self._lrs)
        self._position += 1
        self._lrs[position] = float(self._optimizer.param_groups[0]["lr"])
        value = self._curve.losses(self._lrs, self._seed)[position]
        return (outputs - outputs.detach()).sum() + float(value)


def curve_case(
    name: str,
    curve: Curve,
    description: str,
    *,
    group: str,
    truth: Truth | None = None,
    num_seeds: int = 1,
) -> Case:
    """A case of the gallery from a curve.

    Args:
        name: unique.
        curve: shape, disturbances and ramp.
        description: what is seen.
        group: of the score table.
        truth: None takes `usable_region` of the shape.
        num_seeds: of the disturbances.
    """

    def known() -> Truth:
        return usable_region(curve) if truth is None else truth

    return Case(
        name=name,
        group=group,
        description=description,
        build=partial(_scripted_problem, curve),
        truth=known,
        num_seeds=num_seeds,
    )


def usable_region(curve: Curve) -> Truth:
    """The learning rates that a reader of the noise-free shape could use as the greatest lr.

    From a factor of 4 below the steepest descent per log lr (finders differ in whether they take
    the slope per lr, which lies lower, or per log lr) to the lr beyond the minimum at which half
    of the drop is lost again, or to the end of the ramp.

    Args:
        curve: its disturbances do not count.
    """
    ramp = curve.ramp
    lrs = np.geomspace(ramp.start_lr, ramp.end_lr, _FINE)
    losses = curve.shape(lrs)
    steepest = float(lrs[np.argmin(np.gradient(losses))])
    lowest = int(np.argmin(losses))
    half = losses[lowest] + 0.5 * (losses[0] - losses[lowest])
    lost = np.flatnonzero(losses[lowest:] >= half)
    high = float(lrs[lowest + lost[0]]) if len(lost) else ramp.end_lr
    why = (
        "from the steepest point of the noise-free curve / 4 to where half of its drop is lost"
        if len(lost)
        else "from the steepest point of the noise-free curve / 4 to the end of the ramp"
    )
    return Truth(low=steepest / TOLERANCE, high=high, why=why)


def _scripted_problem(curve: Curve, seed: int) -> Problem:
    torch.manual_seed(seed)
    model = nn.Linear(1, 1, dtype=torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=curve.ramp.start_lr)
    lrs = curve.ramp.lrs()
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    return Problem(
        model=model,
        optimizer=optimizer,
        loss_function=ScriptedLoss(curve, optimizer, seed),
        batches=(batch,) * curve.ramp.num_updates,
        ramp=curve.ramp,
        recorded=(lrs.tolist(), curve.losses(lrs, seed).tolist()),
    )


# --- shapes --------------------------------------------------------------------------------------


def flat(top: float = TOP) -> Shape:
    """A loss that does not depend on the lr."""
    return lambda lrs: np.full(len(lrs), top)


def drop(at: float, *, scale: float = 0.25, depth: float = DEPTH) -> Shape:
    """A logistic fall by `depth` in log10 lr, steepest at `at`, `scale` decades wide."""
    return lambda lrs: -depth / (1 + (lrs / at) ** (-1 / (scale * math.log(10))))


def rise(at: float, *, power: float = 4.0, size: float = DEPTH / 2) -> Shape:
    """A blow-up (lr / at)^power, which is `size` at `at`."""
    return lambda lrs: size * (lrs / at) ** power


def bump(at: float, *, height: float, width: float = 0.2) -> Shape:
    """A hill in log10 lr, `width` decades wide."""
    return lambda lrs: height * np.exp(-0.5 * (np.log10(lrs / at) / width) ** 2)


def total(*terms: Shape) -> Shape:
    """The sum of shapes."""
    return lambda lrs: np.sum([term(lrs) for term in terms], axis=0)


def basin(at: float, edge: float, *, scale: float = 0.25, power: float = 4.0) -> Shape:
    """The shape of the books: flat at 2.3, a fall by 2 around `at`, a blow-up around `edge`."""
    return total(flat(), drop(at, scale=scale), rise(edge, power=power))


def rescaled(shape: Shape, *, factor: float = 1.0, offset: float = 0.0) -> Shape:
    """Another unit and another zero of the same loss."""
    return lambda lrs: factor * shape(lrs) + offset


# --- disturbances --------------------------------------------------------------------------------


def gaussian(sigma: float) -> Disturbance:
    """Independent normal noise."""
    return lambda losses, lrs, generator: losses + sigma * generator.standard_normal(len(losses))


def heavy_tailed(scale: float) -> Disturbance:
    """Student's t with 2 degrees of freedom: its variance is infinite."""
    return lambda losses, lrs, generator: losses + scale * generator.standard_t(2, len(losses))


def growing(first: float, last: float) -> Disturbance:
    """Normal noise whose deviation grows in proportion to a power of the position."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        deviations = np.geomspace(first, last, len(losses))
        return losses + deviations * generator.standard_normal(len(losses))

    return disturb


def correlated(sigma: float, memory: float = 0.8) -> Disturbance:
    """Normal noise of which each value keeps the share `memory` of the one before."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        draws = sigma * generator.standard_normal(len(losses))
        for i in range(1, len(draws)):
            draws[i] = memory * draws[i - 1] + math.sqrt(1 - memory**2) * draws[i]
        return losses + draws

    return disturb


def proportional(sigma: float) -> Disturbance:
    """Noise in proportion to the loss (log-normal)."""
    return lambda losses, lrs, generator: (
        losses * np.exp(sigma * generator.standard_normal(len(losses)))
    )


def spikes(positions: Sequence[int], height: float) -> Disturbance:
    """Single values that lie `height` too high (or too low)."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        changed = losses.copy()
        changed[list(positions)] += height
        return changed

    return disturb


def random_spikes(share: float, height: float) -> Disturbance:
    """A share of the values, at random, lies up to `height` too high."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        hit = generator.random(len(losses)) < share
        return losses + hit * generator.uniform(0.3 * height, height, len(losses))

    return disturb


def replaced(positions: Sequence[int], value: float) -> Disturbance:
    """Values that are NaN or infinite."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        changed = losses.copy()
        changed[list(positions)] = value
        return changed

    return disturb


def replaced_from(lr: float, value: float) -> Disturbance:
    """NaN or infinite from an lr on."""
    return lambda losses, lrs, generator: np.where(lrs >= lr, value, losses)


def periodic(period: int, amplitude: float) -> Disturbance:
    """Batches that come again in the same order, from easy to hard."""

    def disturb(losses: FloatArray, lrs: FloatArray, generator: np.random.Generator) -> FloatArray:
        return losses + amplitude * np.linspace(-1, 1, period)[np.arange(len(losses)) % period]

    return disturb


def drift(change: float) -> Disturbance:
    """Data that become easier (or harder) in the order they come, whatever the lr."""
    return lambda losses, lrs, generator: losses + np.linspace(0, change, len(losses))


def rounded(step: float) -> Disturbance:
    """Losses that are logged in steps."""
    return lambda losses, lrs, generator: np.round(losses / step) * step
