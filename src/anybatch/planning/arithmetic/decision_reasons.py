"""A decision in sentences with numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from anybatch.planning.arithmetic.error_shares import SOURCES
from anybatch.planning.arithmetic.posterior import Posterior, weighted_quantile

if TYPE_CHECKING:
    from anybatch.planning.arithmetic.decision import Decision

__all__ = ["reasons_of"]


def reasons_of(decision: Decision, posterior: Posterior, set_size: int | None) -> tuple[str, ...]:
    """Why a decision says what it says, most important first.

    Args:
        decision: its reasons are not read.
        posterior: that it was taken from.
        set_size: training examples; None where not known.
    """
    return (
        _best(decision),
        *_present(decision),
        _curves(posterior),
        *_limits(decision, set_size),
        *_errors("the best batch size", decision.shares_of_choice),
        *_errors("the time to the target", decision.shares_of_seconds),
        *posterior.notes,
    )


def _best(decision: Decision) -> str:
    choice, near = decision.choice, decision.near_optimal
    if len(choice.batch_sizes) == 1:
        return f"{choice.batch_size:,} is the only batch size that was compared"
    best = f"batch size {choice.batch_size:,} is expected to be among the fastest"
    if len(near) == 1:
        return f"{best}; every other size costs more than 5 %"
    return f"{best}: {near[0]:,} to {near[-1]:,} cost at most 5 % more than the least"


def _present(decision: Decision) -> tuple[str, ...]:
    present, proposal = decision.present_batch_size, decision.choice.batch_size
    if present == proposal:
        return (f"the present batch size, {present:,}, is the one",)
    excess = decision.present_excess
    assert excess.value is not None
    costs = (
        f"the present batch size, {present:,}, costs {_percent(excess.value)} time "
        f"(80 %: {_percent(excess.low)} to {_percent(excess.high)})"
    )
    gain = f"{100.0 * decision.expected_gain:.0f} % of the time are expected to be saved"
    if decision.expected_gain < 0.005:
        gain = "no time is expected to be saved"
    risk = (
        f"it is more than 10 % slower with probability {100.0 * decision.probability_worse:.0f} %"
    )
    if decision.moves:
        return costs, f"moving to {proposal:,} is worth it: {gain}, {risk}"
    return (
        costs,
        f"moving to {proposal:,} is not worth it: {gain} (more than 5 % are asked), {risk}",
    )


def _curves(posterior: Posterior) -> str:
    low, middle, high = weighted_quantile(
        posterior.critical_batch_size, posterior.weights, [0.1, 0.5, 0.9]
    )
    critical = (
        f"updates stop falling near the critical batch size, {_size(middle)} "
        f"(80 %: {_size(low)} to {_size(high)})"
    )
    half = posterior.time.half_batch_size
    if not math.isfinite(half):
        return f"{critical}; a further example costs no time yet at any size that was timed"
    return f"{critical}; this machine reaches half of its examples per second at {_size(half)}"


def _limits(decision: Decision, set_size: int | None) -> tuple[str, ...]:
    least = decision.choice.least
    if set_size is not None and least == set_size and set_size > 1:
        return (f"the whole set, {set_size:,}, is the limit: larger ones were not compared",)
    return ()


def _errors(what: str, shares: Mapping[str, float]) -> tuple[str, ...]:
    if not shares:
        return ()
    name = max(shares, key=shares.__getitem__)
    share = f"{100.0 * shares[name]:.0f} %"
    return (f"{what} is unsure mostly because of the {name} ({share}): {SOURCES[name]}",)


def _percent(share: float) -> str:
    return f"{100.0 * share:+.0f} %"


def _size(examples: float) -> str:
    return f"{examples:,.0f}" if examples >= 10.0 else f"{examples:.2g}"
