"""Which learning-rate rule the measured best learning rates agree with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.lr_carrying import LR_RULES, LRRule, carried_lr

__all__ = ["RuleCheck", "RuleFit", "rule_that_held"]

_Array = NDArray[np.float64]

_REJECTED = 0.05  # a rule whose chance is smaller did not hold
_NORMAL_95 = 1.959964
_LEAST_SPREAD = 0.02  # of the natural log: no learning rate is known better


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleFit:
    """How well one rule agrees.

    Attributes:
        rule: which one.
        chi_squared: sum of ((log lr - the rule's) / standard error)^2 at the best level.
        freedom: batch sizes less what was fitted.
        chance: of a chi-squared at least as large if the rule holds; 1 where nothing is left over.
        noise_scale: the best one, in examples; of the noise-scale rule alone.
    """

    rule: LRRule
    chi_squared: float
    freedom: int
    chance: float
    noise_scale: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCheck:
    """Which rules agree with what was measured.

    Attributes:
        held: rules that are not rejected at 5 %, best first; empty where none agrees.
        resolved: whether exactly one of them is left, the noise-scale rule not counted where a rule
            with fewer free numbers is among them.
        exponent: a of the best power law lr ~ B^a; 1 is linear, 0.5 square-root.
        exponent_low: lower end of its 95 % interval.
        exponent_high: upper end.
        fits: of every rule that could be tried.
        verdict: one sentence.
    """

    held: tuple[LRRule, ...]
    resolved: bool
    exponent: float
    exponent_low: float
    exponent_high: float
    fits: tuple[RuleFit, ...]
    verdict: str


def rule_that_held(
    measured: Sequence[tuple[float, float, float, float]], *, alpha: float = 1.0
) -> RuleCheck:
    """Compare measured best learning rates with the rules, on logarithms.

    A measured lr is taken as log-normal with the standard error log(high / low) / (2 x 1.96). For
    each rule the level is fitted, for the noise-scale rule the noise scale too; what is left is a
    chi-squared.

    Args:
        measured: (batch size, low, lr, high), a 95 % interval each; at least two batch sizes.
        alpha: exponent of the noise-scale rule.

    Raises:
        InputError: fewer than two batch sizes, an interval that does not hold its lr.

    Example:
        >>> found = [(batch, 0.9 * lr, lr, 1.1 * lr) for batch, lr in ((8, 0.1), (32, 0.41))]
        >>> rule_that_held([*found, (128, 1.4, 1.6, 1.8)]).verdict
        'linear held: measured lr ~ B^1.00 (0.94 to 1.06)'
        >>> rule_that_held([(8, 0.05, 0.1, 0.2), (16, 0.07, 0.15, 0.3)]).resolved
        False
    """
    batch_sizes, log_lr, spread = _columns(measured)
    fits = []
    for rule in LR_RULES:
        if rule == "noise-scale":
            if len(batch_sizes) > 2:
                fits.append(_noise_scale_fit(batch_sizes, log_lr, spread, alpha))
            continue
        squared = _left_over(log_lr - _shape(rule, batch_sizes), spread)
        freedom = len(batch_sizes) - 1
        chance = _chi_squared_above(squared, freedom)
        fits.append(RuleFit(rule=rule, chi_squared=squared, freedom=freedom, chance=chance))
    agree = sorted((fit for fit in fits if fit.chance > _REJECTED), key=lambda f: -f.chance)
    held = tuple(fit.rule for fit in agree)
    plain = [rule for rule in held if rule != "noise-scale"]
    resolved = len(plain) == 1 or held == ("noise-scale",)
    exponent, low, high = _exponent(batch_sizes, log_lr, spread)
    power = f"measured lr ~ B^{exponent:.2f} ({low:.2f} to {high:.2f})"
    if resolved:
        verdict = f"{(plain or held)[0]} held: {power}"
    elif held:
        verdict = f"not resolved: {', '.join(held)} all agree; {power}"
    else:
        verdict = f"no rule held: {power}"
    return RuleCheck(
        held=held,
        resolved=resolved,
        exponent=exponent,
        exponent_low=low,
        exponent_high=high,
        fits=tuple(fits),
        verdict=verdict,
    )


def _columns(measured: Sequence[tuple[float, float, float, float]]) -> tuple[_Array, ...]:
    """Batch sizes, log lr, standard errors."""
    for row in measured:
        batch_size, low, lr, high = row
        if not (batch_size > 0 and 0 < low <= lr <= high and math.isfinite(high)):
            raise InputError("measured lr", "must satisfy 0 < low <= lr <= high < inf", row)
    if len({row[0] for row in measured}) < 2:
        raise InputError("measured lrs", "must be of at least two batch sizes", len(measured))
    table = np.array(measured, dtype=float)
    spread = np.log(table[:, 3] / table[:, 1]) / (2.0 * _NORMAL_95)
    return table[:, 0], np.log(table[:, 2]), np.maximum(spread, _LEAST_SPREAD)


def _shape(
    rule: LRRule, batch_sizes: _Array, noise_scale: float | None = None, alpha: float = 1.0
) -> _Array:
    """Log of the lr that a rule gives, up to its level."""
    first = float(batch_sizes[0])
    lrs = [
        carried_lr(rule, 1.0, first, float(size), noise_scale=noise_scale, alpha=alpha)
        for size in batch_sizes
    ]
    shape: _Array = np.log(np.array(lrs))
    return shape


def _left_over(difference: _Array, spread: _Array) -> float:
    """Chi-squared of differences about their weighted mean."""
    weights = spread**-2.0
    centred = difference - (weights @ difference) / weights.sum()
    return float(weights @ centred**2)


def _noise_scale_fit(batch_sizes: _Array, log_lr: _Array, spread: _Array, alpha: float) -> RuleFit:
    """The noise scale of least chi-squared, from a third of the least size to thrice the most."""
    scales = np.geomspace(batch_sizes.min() / 3.0, batch_sizes.max() * 3.0, 121)
    squares = [
        _left_over(log_lr - _shape("noise-scale", batch_sizes, float(scale), alpha), spread)
        for scale in scales
    ]
    best = int(np.argmin(squares))
    freedom = len(batch_sizes) - 2
    return RuleFit(
        rule="noise-scale",
        chi_squared=squares[best],
        freedom=freedom,
        chance=_chi_squared_above(squares[best], freedom),
        noise_scale=float(scales[best]),
    )


def _exponent(batch_sizes: _Array, log_lr: _Array, spread: _Array) -> tuple[float, float, float]:
    """Slope of log lr against log B by weighted least squares, with its 95 % interval."""
    weights = spread**-2.0
    x = np.log(batch_sizes)
    x = x - (weights @ x) / weights.sum()
    slope = float(weights @ (x * log_lr) / (weights @ x**2))
    half = _NORMAL_95 / math.sqrt(float(weights @ x**2))
    return slope, slope - half, slope + half


def _chi_squared_above(value: float, freedom: int) -> float:
    """Probability of a larger chi-squared; finite sums, for whole degrees of freedom.

    Example:
        >>> [round(_chi_squared_above(value, freedom), 3) for value, freedom in
        ...     ((3.841, 1), (5.991, 2), (7.815, 3), (18.307, 10))]
        [0.05, 0.05, 0.05, 0.05]
    """
    if freedom < 1:
        return 1.0
    half = value / 2.0
    if freedom % 2 == 0:
        terms = (half**i / math.factorial(i) for i in range(freedom // 2))
        return math.exp(-half) * sum(terms)
    terms = (half ** (i - 0.5) / math.gamma(i + 0.5) for i in range(1, (freedom + 1) // 2))
    return math.erfc(math.sqrt(half)) + math.exp(-half) * sum(terms)
