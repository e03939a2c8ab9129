"""What the ramps and the short trainings of an LR range test say together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from anybatch.measurement import Estimate, Finding
from anybatch.measuring.lr_curve import CurveReading
from anybatch.measuring.lr_probes import Probe, ProbePlan, best_lr, edge, may_learn

__all__ = ["estimates_of", "findings_of", "perhaps_converged"]

_BASE_SHARES = (1.0 / 32.0, 1.0 / 25.0, 1.0 / 4.0)  # of max_lr: least, usual, greatest


def estimates_of(
    reading: CurveReading,
    probes: Sequence[Probe],
    plan: ProbePlan | None,
    *,
    edge_margin: float = 2.0,
) -> dict[str, Estimate]:
    """The learning rates by name; "edge", "max_lr" and "base_lr" from short trainings if any.

    Args:
        reading: of the ramps.
        probes: short trainings.
        plan: of their search; None where none were taken.
        edge_margin: `max_lr` is at most the edge over this.
    """
    estimates = dict(reading.estimates)
    if plan is not None:
        estimates["edge"] = edge(probes, plan)
        estimates["max_lr"] = _below_edge(best_lr(probes, plan), estimates["edge"], edge_margin)
    else:
        estimates["max_lr"] = _max_lr_of_curve(reading)
    estimates["base_lr"] = _base_lr(estimates)
    return estimates


def _max_lr_of_curve(reading: CurveReading) -> Estimate:
    """Without short trainings: the geometric middle of the steepest place and the minimum."""
    steepest, minimum = reading.estimates["steepest"], reading.estimates["minimum"]
    if steepest.value is None or minimum.value is None:
        reason = steepest.reason or minimum.reason
        return Estimate(value=None, low=minimum.low, high=math.inf, reason=reason)
    return Estimate(
        value=math.sqrt(steepest.value * minimum.value),
        low=min(steepest.low, minimum.value),
        high=max(minimum.high, steepest.value),
        reason="read from the ramp alone",
    )


def _below_edge(top: Estimate, edge: Estimate, margin: float) -> Estimate:
    """max_lr, at most the edge over the margin."""
    if top.value is None or edge.value is None:
        return top
    value = min(top.value, edge.value / margin)
    low = top.low * value / top.value  # as far below as it was
    return dataclasses.replace(top, value=value, low=low, high=max(value, min(top.high, edge.high)))


def _base_lr(estimates: dict[str, Estimate]) -> Estimate:
    """For the bottom of a cycle: where learning starts, between 1/32 and 1/4 of max_lr.

    1/25 of max_lr, a usual share, where no ramp tells where learning starts.
    """
    top, starts = estimates["max_lr"], estimates["learning_starts"]
    if top.value is None:
        return Estimate(value=None, reason=top.reason)
    least, usual, greatest = (share * top.value for share in _BASE_SHARES)
    if starts.value is None:
        reason = f"1/25 of max_lr, since {starts.reason or 'the start of learning is not known'}"
        return Estimate(value=usual, low=least, high=greatest, reason=reason)
    value, low, high = (
        min(max(lr, least), greatest) for lr in (starts.value, starts.low, starts.high)
    )
    return Estimate(value=value, low=low, high=high)


def findings_of(
    reading: CurveReading,
    estimates: dict[str, Estimate],
    probes: Sequence[Probe],
    plan: ProbePlan | None,
) -> list[Finding]:
    """What the ramps showed, as far as the short trainings leave it as it is.

    Args:
        reading: of the ramps.
        estimates: that follow from all.
        probes: short trainings.
        plan: of their search; None where none were taken.
    """
    suspected = may_learn(probes, plan) if plan is not None else None
    found = estimates["max_lr"].value is not None
    steepest = reading.estimates["steepest"].value
    findings = []
    for finding in reading.findings:
        if finding.name == "never-diverged" and estimates["edge"].value is not None:
            continue
        if finding.name in ("never-learned", "noisy") and found:
            sentence = "the ramp shows no fall that is clear of the noise, but short trainings do"
            finding = Finding(name="noisy", sentence=sentence, advice="--repeats 3")
        elif finding.name == "never-learned" and suspected is not None:
            sentence = f"the loss may fall at lr {suspected:.3g}, but not clear of the noise"
            advice = "a larger batch, or LRRangeSettings(probe_updates=400)"
            finding = Finding(name="noisy", sentence=sentence, advice=advice)
        findings.append(finding)
    if plan is not None and not found and steepest is not None:
        sentence = f"the ramp falls near lr {steepest:.3g}, but no short training does"
        findings.insert(0, Finding(name="not-confirmed", sentence=sentence, advice="--repeats 3"))
    return findings


def perhaps_converged(finding: Finding) -> Finding:
    """The advice for a training under way, in which nothing may be left to learn."""
    if finding.name != "never-learned":
        return finding
    return dataclasses.replace(finding, advice="nothing may be wrong: it may have converged")
