"""What a plan has to warn of: the findings of its measurements, and its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from anybatch.measurement import Estimate, Finding, Measurement

if TYPE_CHECKING:
    from anybatch.planning.compose import Composer

__all__ = ["findings_of"]

_STAGES = ("throughput", "lr-range", "pilot", "noise-scale", "branches")


def findings_of(composer: Composer, predictions: Mapping[str, Estimate]) -> list[Finding]:
    """What to know before the plan is followed, the gravest first; one of each name.

    Args:
        composer: of the plan.
        predictions: "seconds" to the target.
    """
    measurements, request = composer.measurements, composer.request
    names = sorted(measurements, key=_stage_of)  # the same order from disk
    found = [f for name in names for f in _own_findings(composer, measurements[name])]
    found[:0] = _divergence(composer)
    seconds = predictions["seconds"]
    if composer.pilot is not None and (seconds.value is None or math.isinf(seconds.high)):
        why = seconds.reason or "more than a tenth of the draws never get there"
        found.insert(0, Finding(
            name="target-far",
            sentence=f"the target {request.target} may not be reached: {why}",
            advice="ask for less, or train a larger model; anybatch doctor looks for faults",
        ))  # fmt: skip
    if "pilot" not in measurements:
        found.insert(0, Finding(
            name="no-pilot",
            sentence="no pilot was trained, so nobody knows how far the target is",
            advice="let anybatch plan come to its end",
        ))  # fmt: skip
    unique: dict[str, Finding] = {}
    for finding in found:
        unique.setdefault(finding.name, finding)
    return list(unique.values())


def _own_findings(composer: Composer, measured: Measurement) -> list[Finding]:
    """Of a measurement; what its own command can do better is told as that command."""
    command = f"anybatch {measured.kind} {composer.request.task.get('name') or 'TASK'} "
    return [
        dataclasses.replace(finding, advice=command + finding.advice)
        if finding.advice.startswith("--")
        else finding
        for finding in measured.findings
    ]


def _divergence(composer: Composer) -> list[Finding]:
    """That a pilot diverged at the lr of the range test, where one did."""
    trained = composer.measurements.get("pilot")
    if trained is None:
        return []
    lr, is_lost = float(trained.settings["lr"]), bool(trained.settings["diverged"])
    first = composer.untried_lr(composer.pilot_size)
    if not is_lost and not lr < 0.99 * first:
        return []
    last = f"and down to {lr:.3g}" if is_lost and lr < 0.99 * first else ""
    then = last if is_lost else f"and learned at {lr:.3g}"
    sentence = f"the pilot diverged at lr {first:.3g} {then}".rstrip()
    return [Finding(name="pilot-diverged", sentence=sentence, advice="anybatch doctor")]


def _stage_of(name: str) -> tuple[int, str]:
    """Where a measurement stands in the procedure."""
    places = [place for place, stage in enumerate(_STAGES) if name.startswith(stage)]
    return (places[0] if places else len(_STAGES), name)
