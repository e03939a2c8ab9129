"""From draws of seconds to one batch size, with what it would cost to be wrong.

    excess(B) = E[T(B) / min T] over its least value, - 1     within 5 %: the near-optimal set
    proposal  = the least excess among near-optimal sizes that suit the hardware
    move      if 1 - E[T(proposal) / T(present)] > 5 %
              and P(T(proposal) > 1.1 T(present)) < 20 %

Times are divided within each draw before they are averaged: updates to the target multiply all
batch sizes alike, so a world in which the target is far, or out of reach, has no more say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.planning.arithmetic.decision_reasons import reasons_of
from anybatch.planning.arithmetic.error_shares import shares_of_choice, shares_of_seconds
from anybatch.planning.arithmetic.posterior import Posterior, weighted_quantile
from anybatch.planning.arithmetic.sizes import batch_size_grid, friendly, permitted

__all__ = ["BatchChoice", "Decision", "best_batch_size", "decide", "expected_excess",
           "near_optimal"]  # fmt: skip

_Array = NDArray[np.float64]

TOLERANCE = 0.05
"""Expected excess within which batch sizes count as equally good."""

_LEAST_GAIN = 0.05
_WORSE = 0.10
_MOST_RISK = 0.20
_BAND = (0.1, 0.9)


def expected_excess(seconds: ArrayLike, weights: ArrayLike) -> _Array:
    """E[T(B) / min T] over its least value, less 1: what each size is expected to cost, (sizes,).

    The minimum is each draw's own, so that only the shape counts. The least entry is 0.

    Args:
        seconds: (draws, sizes); draws that are not finite everywhere are left out.
        weights: (draws,), >= 0.

    Raises:
        InputError: no finite draw.

    Example:
        >>> expected_excess([[2.0, 1.0, 2.0], [30.0, 20.0, 20.0]], [0.5, 0.5]).round(3).tolist()
        [0.75, 0.0, 0.5]
    """
    times, share = np.asarray(seconds, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    usable = np.isfinite(times).all(axis=1) & (share > 0.0)
    if not usable.any():
        raise InputError("seconds", "must hold a finite draw")
    ratios = times[usable] / times[usable].min(axis=1, keepdims=True)
    expected = share[usable] @ ratios
    return np.asarray(expected / expected.min() - 1.0)


def near_optimal(
    seconds: ArrayLike,
    weights: ArrayLike,
    batch_sizes: Sequence[int],
    tolerance: float = TOLERANCE,
) -> tuple[int, ...]:
    """Batch sizes whose expected excess is at most `tolerance`, ascending.

    Args:
        seconds: (draws, sizes).
        weights: (draws,), >= 0.
        batch_sizes: (sizes,).
        tolerance: a share.

    Raises:
        InputError: no finite draw.
    """
    excess = expected_excess(seconds, weights)
    return tuple(
        sorted(int(b) for b, e in zip(batch_sizes, excess, strict=True) if e <= tolerance + 1e-12)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchChoice:
    """The best of many batch sizes.

    Attributes:
        batch_size: the near-optimal one that suits the hardware, of least excess.
        least: the one of least expected time, whatever it is.
        near_optimal: those within 5 % of it, ascending.
        batch_sizes: all that were compared, ascending.
        excess: expected excess of each.
    """

    batch_size: int
    least: int
    near_optimal: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    excess: tuple[float, ...]


def best_batch_size(
    posterior: Posterior,
    candidates: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    ranks: int = 1,
    ghost: int | None = None,
    set_size: int | None = None,
    preferred: int | None = None,
) -> BatchChoice:
    """The batch size of least expected time, then the member of its set that suits the hardware.

    Args:
        posterior: draws of what decides.
        candidates: sizes to compare; None takes a fine grid up to the set.
        device: "cpu" or "cuda".
        ranks: that train together.
        ghost: examples that share BatchNorm statistics; None where nothing does.
        set_size: training examples; None where not known.
        preferred: proposed wherever it is near-optimal: what was trained and measured at it counts
            for more than a few percent.

    Raises:
        InputError: no candidate can be trained with.
    """
    if candidates is None:
        sizes = batch_size_grid(ranks=ranks, ghost=ghost, set_size=set_size)
    else:
        sizes = permitted(candidates, ranks=ranks, ghost=ghost, set_size=set_size)
    if not len(sizes):
        rule = "must hold a size within the set that whole ghosts on each rank make up"
        raise InputError("candidates", rule, list(candidates or ()))
    seconds = _relative_seconds(posterior, sizes, ranks)
    excess = expected_excess(seconds, posterior.weights)
    near = np.array(near_optimal(seconds, posterior.weights, sizes.tolist()))
    suited = friendly(near, device=device, ranks=ranks, ghost=ghost, set_size=set_size)
    by_size = dict(zip(sizes.tolist(), excess.tolist(), strict=True))
    least = min(suited.tolist() or near.tolist(), key=by_size.__getitem__)
    return BatchChoice(
        batch_size=preferred if preferred is not None and preferred in near else least,
        least=int(sizes[excess.argmin()]),
        near_optimal=tuple(near.tolist()),
        batch_sizes=tuple(by_size),
        excess=tuple(by_size.values()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Which batch size to train with, and why.

    Attributes:
        batch_size: to train with: the proposal where moving to it is worth it, else the present.
        choice: the proposal and what it was chosen from.
        present_batch_size: the user's.
        moves: whether the two differ.
        present_excess: seconds at the present size over those at the proposal, less 1: median
            and 80 % interval over the draws.
        expected_gain: expected share of the present seconds that the proposal saves.
        probability_worse: that the proposal takes more than 10 % longer than the present size.
        shares_of_choice: of each source of error in the uncertainty of the best batch size.
        shares_of_seconds: of each source of error in the uncertainty of the seconds to the target.
        reasons: in sentences with numbers, most important first.
    """

    batch_size: int
    choice: BatchChoice
    present_batch_size: int
    moves: bool
    present_excess: Estimate
    expected_gain: float
    probability_worse: float
    shares_of_choice: Mapping[str, float]
    shares_of_seconds: Mapping[str, float]
    reasons: tuple[str, ...]

    @property
    def near_optimal(self) -> tuple[int, ...]:
        """Batch sizes within 5 % of the least expected time, ascending."""
        return self.choice.near_optimal


def decide(
    posterior: Posterior,
    present_batch_size: int,
    candidates: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    ranks: int = 1,
    ghost: int | None = None,
    set_size: int | None = None,
    preferred: int | None = None,
) -> Decision:
    """Stay at the present batch size, or move to a better one.

    Args:
        posterior: draws of what decides.
        present_batch_size: the user's, global.
        candidates: sizes to compare with it; None takes a fine grid up to the set.
        device: "cpu" or "cuda".
        ranks: that train together.
        ghost: examples that share BatchNorm statistics; None where nothing does.
        set_size: training examples; None where not known.
        preferred: proposed wherever it is near-optimal: what was trained and measured at it counts
            for more than a few percent.

    Raises:
        InputError: a present batch size below 1 or above the set, or no candidate that can be
            trained with.

    Cost:
        About 0.2 s for 2,000 draws on a fine grid.
    """
    if present_batch_size < 1:
        raise InputError("batch_size", "must be >= 1", present_batch_size)
    if set_size is not None and present_batch_size > set_size:
        raise InputError("batch_size", f"must be at most the {set_size:,} of the set",
                         present_batch_size)  # fmt: skip
    choice = best_batch_size(
        posterior, candidates, device=device, ranks=ranks, ghost=ghost, set_size=set_size,
        preferred=preferred,
    )  # fmt: skip
    proposal, weights = choice.batch_size, posterior.weights
    seconds = _relative_seconds(posterior, np.array([proposal, present_batch_size]), ranks)
    ratio = seconds[:, 0] / seconds[:, 1]
    gain = 1.0 - float(weights @ ratio)
    risk = float(weights @ (ratio > 1.0 + _WORSE))
    moves = proposal != present_batch_size and gain > _LEAST_GAIN and risk < _MOST_RISK
    chosen = proposal if moves else present_batch_size
    decision = Decision(
        batch_size=chosen,
        choice=choice,
        present_batch_size=present_batch_size,
        moves=moves,
        present_excess=_excess_estimate(1.0 / ratio - 1.0, weights),
        expected_gain=gain,
        probability_worse=risk,
        shares_of_choice=shares_of_choice(posterior, np.array(choice.batch_sizes), ranks),
        shares_of_seconds=shares_of_seconds(posterior, chosen, ranks),
        reasons=(),
    )
    reasons = reasons_of(decision, posterior, set_size)
    return dataclasses.replace(decision, reasons=reasons)


def _relative_seconds(posterior: Posterior, sizes: ArrayLike, ranks: int) -> _Array:
    """Seconds to the target over updates at the pilot: finite, whatever the learning curve says."""
    per_update = posterior.time.seconds_per_update(sizes, ranks=ranks)
    return posterior.relative_updates(sizes) * per_update


def _excess_estimate(excess: _Array, weights: _Array) -> Estimate:
    low, value, high = weighted_quantile(excess, weights, [_BAND[0], 0.5, _BAND[1]])
    return Estimate(value=value, low=low, high=high, unit="of the seconds", level=0.8)
