"""What ramps and short trainings say together: max_lr below the edge, base_lr, findings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from anybatch import Estimate, Finding
from anybatch.measuring.lr_curve import CurveReading
from anybatch.measuring.lr_probes import Probe, ProbePlan
from anybatch.measuring.lr_range_reading import estimates_of, findings_of

UPDATES = 40
PLAN = ProbePlan(
    guess=-5.0, lowest=-12.0, highest=4.0, num_updates=UPDATES, repeats=1, start=1.0, noise=0.0
)


def probe(octave: float, level: float) -> Probe:
    return Probe(octave=octave, repeat=0, losses=(1.0,) * 10 + (level,) * (UPDATES - 10))


def reading(starts: float | None = 1e-3, *names: str) -> CurveReading:
    known = Estimate(value=0.01, low=0.005, high=0.02)
    learning = (
        Estimate(value=None, reason="hidden")
        if starts is None
        else Estimate(value=starts, low=starts, high=starts)
    )
    estimates = dict.fromkeys(("steepest", "minimum", "edge"), known)
    findings = tuple(Finding(name=name, sentence="seen", advice="--repeats 2") for name in names)
    return CurveReading(estimates={"learning_starts": learning} | estimates, findings=findings)


FAR_FROM_EDGE = [probe(-8, 0.9), probe(-7, 0.3), probe(-6, 0.1), probe(-5, 0.3), probe(-4, 0.5),
                 probe(-1, 0.6), probe(0, 1.5), probe(-0.5, 1.5), probe(-0.75, 1.5)]  # fmt: skip
AT_THE_EDGE = [probe(-7, 0.9), probe(-6, 0.8), probe(-5, 0.5), probe(-4, 0.1), probe(-3, 1.5),
               probe(-3.5, 0.6), probe(-3.25, 1.5)]  # fmt: skip


def test_far_from_the_edge_max_lr_is_the_best() -> None:
    estimates = estimates_of(reading(), FAR_FROM_EDGE, PLAN)
    assert estimates["max_lr"].value == pytest.approx(2.0**-6, rel=0.15)
    assert estimates["edge"].value == pytest.approx(2.0**-0.875)


def test_max_lr_is_at_most_half_of_the_edge_and_keeps_its_width_below() -> None:
    free = estimates_of(reading(), FAR_FROM_EDGE, PLAN)["max_lr"]
    estimates = estimates_of(reading(), AT_THE_EDGE, PLAN)
    top, edge = estimates["max_lr"], estimates["edge"]
    assert edge.value == pytest.approx(2.0**-3.375)
    assert top.value == pytest.approx(0.5 * 2.0**-3.375)
    assert free.value is not None
    assert math.log2(top.value / top.low) == pytest.approx(
        math.log2(free.value / free.low), abs=0.3
    )
    assert top.high <= edge.high
    near = estimates_of(reading(), AT_THE_EDGE, PLAN, edge_margin=1.8)["max_lr"]
    assert near.value == pytest.approx(2.0**-3.375 / 1.8)


@pytest.mark.parametrize(
    ("starts", "share"), [(1e-9, 1 / 32), (1.0, 1 / 4), (None, 1 / 25), (2.0**-6 / 10, None)]
)
def test_base_lr_stays_within_usual_shares_of_max_lr(
    starts: float | None, share: float | None
) -> None:
    estimates = estimates_of(reading(starts), FAR_FROM_EDGE, PLAN)
    top, base = estimates["max_lr"].value, estimates["base_lr"]
    assert top is not None
    assert base.value == pytest.approx(starts if share is None else share * top)
    assert base.low <= (base.value or 0.0) <= base.high


def test_short_trainings_overrule_what_the_ramp_did_not_see() -> None:
    ramps = reading(None, "never-learned", "never-diverged")
    estimates = estimates_of(ramps, FAR_FROM_EDGE, PLAN)
    (finding,) = findings_of(ramps, estimates, FAR_FROM_EDGE, PLAN)
    assert finding.name == "noisy"
    assert "short trainings do" in finding.sentence


def test_a_fall_that_no_short_training_shows_is_named() -> None:
    flat = [probe(-5, 1.0), probe(-6, 1.0), probe(-7, 1.0)]
    estimates = estimates_of(reading(), flat, PLAN)
    assert estimates["max_lr"].value is None
    assert [f.name for f in findings_of(reading(), estimates, flat, PLAN)] == ["not-confirmed"]
    assert findings_of(reading(), estimates, [], None) == []


def test_without_short_trainings_the_ramp_alone_answers() -> None:
    estimates = estimates_of(replace(reading(), findings=()), [], None)
    assert estimates["max_lr"].value == pytest.approx(0.01)
    assert "ramp alone" in estimates["max_lr"].reason
