"""Scripted cases of the gallery that are broken, cut short, or in unusual units."""

from __future__ import annotations

import math

from benchmarks.gallery_curves import (
    Curve,
    Disturbance,
    basin,
    curve_case,
    drift,
    drop,
    flat,
    gaussian,
    periodic,
    replaced,
    replaced_from,
    rescaled,
    rise,
    total,
)
from benchmarks.gallery_truth import TOLERANCE, Case, Ramp, Truth

__all__ = ["ODD_CASES"]

_SEEDS = 3
_PLAIN = basin(1e-3, 1e-1)  # with 12.4 updates a decade, the steepest point is at update 49.5
_NOTHING_LEARNED = ("never-learned", "noisy", "no-three-regions", "loss-ignores-weights")


def _none(why: str, *findings: str) -> Truth:
    return Truth(why=why, none_is_right=True, findings=findings)


def _either(low: float, high: float, why: str, *findings: str) -> Truth:
    return Truth(why=why, low=low, high=high, none_is_right=True, findings=findings)


def _disturbed(*disturbances: Disturbance) -> Curve:
    return Curve(shape=_PLAIN, disturbances=disturbances)


_NOT_FINITE = "not finite"
_CUT = Truth(
    why="above 0.03 no loss is finite; below, the fall is that of the curve",
    low=1e-3 / TOLERANCE,
    high=0.03,
)
_FALL = total(flat(), drop(1e-3))
_NOT_FINITE_CASES = (
    curve_case(
        "nan-gap-plateau", _disturbed(replaced(range(20, 25), math.nan)),
        "five before the fall, then finite again: they do not move it", group=_NOT_FINITE,
    ),
    curve_case(
        "nan-gap-fall", _disturbed(gaussian(0.02), replaced((47, 48), math.nan)),
        "two inside of the fall", group=_NOT_FINITE,
    ),
    curve_case(
        "nan-gap-minimum", _disturbed(gaussian(0.02), replaced(range(58, 61), math.nan)),
        "three in the minimum, finite and low again after", group=_NOT_FINITE,
    ),
    curve_case(
        "nan-every-seventh", _disturbed(gaussian(0.02), replaced(range(3, 100, 7), math.nan)),
        "one batch in seven", group=_NOT_FINITE,
    ),
    curve_case(
        "nan-at-end",
        Curve(shape=_FALL, disturbances=[gaussian(0.02), replaced_from(0.03, math.nan)]),
        "NaN without any rise before", group=_NOT_FINITE, truth=_CUT, num_seeds=_SEEDS,
    ),
    curve_case(
        "inf-at-end",
        Curve(shape=_FALL, disturbances=[replaced_from(0.03, math.inf)]),
        "infinite without any rise before", group=_NOT_FINITE, truth=_CUT,
    ),
    curve_case(
        "nan-after-rise", _disturbed(replaced_from(0.2, math.nan)),
        "the blow-up ends in NaN", group=_NOT_FINITE,
    ),
    curve_case(
        "inf-once", _disturbed(gaussian(0.02), replaced((6,), math.inf)),
        "a single infinite loss early", group=_NOT_FINITE,
    ),
    curve_case(
        "nan-everywhere", _disturbed(replaced(range(100), math.nan)), "no loss is finite",
        group=_NOT_FINITE,
        truth=_none(
            "there is nothing to read", "diverged-at-once", "non-finite-data", "too-few-points"
        ),
    ),
    curve_case(
        "nan-from-fourth", _disturbed(replaced(range(3, 100), math.nan)),
        "three losses, then NaN", group=_NOT_FINITE,
        truth=_none(
            "three losses before the fall hold no lr", "diverged-at-once", "too-few-points",
            "never-learned", "non-finite-data",
        ),
    ),
)  # fmt: skip

_UNITS = "units and signs"
_UNIT_CASES = (
    curve_case(
        "negative",
        Curve(shape=rescaled(_PLAIN, factor=2.0, offset=-5.6)),
        "a log-density: -1 to -5, then the blow-up",
        group=_UNITS,
    ),
    curve_case(
        "negative-noisy",
        Curve(shape=rescaled(_PLAIN, factor=2.0, offset=-5.6), disturbances=[gaussian(0.4)]),
        "with noise of 10 %",
        group=_UNITS,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "crosses-zero",
        Curve(shape=rescaled(_PLAIN, offset=-1.3), disturbances=[gaussian(0.04)]),
        "from 1 to -1",
        group=_UNITS,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "starts-at-zero", Curve(shape=rescaled(_PLAIN, offset=-2.3)), "from 0 to -2", group=_UNITS
    ),
    curve_case(
        "tiny", Curve(shape=rescaled(_PLAIN, factor=1e-8)), "2.3e-8 to 0.3e-8", group=_UNITS
    ),
    curve_case(
        "huge",
        Curve(shape=rescaled(_PLAIN, factor=1e6), disturbances=[gaussian(2e4)]),
        "2.3e6 to 0.3e6, noise of 1 %",
        group=_UNITS,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "large-offset",
        Curve(shape=rescaled(_PLAIN, offset=1000.0), disturbances=[gaussian(0.04)]),
        "a constant of 1000 above a fall by 2",
        group=_UNITS,
        num_seeds=_SEEDS,
    ),
)

_NO_ANSWER = "no answer"
_HIGH_RAMP = Ramp(start_lr=1e-2, end_lr=10.0)
_NO_ANSWER_CASES = (
    curve_case(
        "diverges-at-once",
        Curve(shape=total(flat(), rise(3e-2, power=3)), ramp=_HIGH_RAMP),
        "the ramp begins at the edge: the loss only rises",
        group=_NO_ANSWER,
        truth=_none("no lr of the ramp lowered it", "diverged-at-once", "never-learned"),
    ),
    curve_case(
        "rises-slowly",
        Curve(shape=total(flat(), rise(1.0, power=0.3))),
        "the loss rises a little all the way",
        group=_NO_ANSWER,
        truth=_none("no lr lowered it", "never-learned", "diverged-at-once", "no-three-regions"),
    ),
    curve_case(
        "constant",
        Curve(shape=flat()),
        "every loss is the same",
        group=_NO_ANSWER,
        truth=_none("nothing depends on the lr", *_NOTHING_LEARNED),
    ),
    curve_case(
        "flat-noisy",
        Curve(shape=flat(), disturbances=[gaussian(0.2)]),
        "noise around a constant",
        group=_NO_ANSWER,
        truth=_none("nothing depends on the lr", *_NOTHING_LEARNED),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "flat-two-batches",
        Curve(shape=flat(), disturbances=[periodic(2, 0.3), gaussian(0.02)]),
        "an easy and a hard batch by turns, nothing learned",
        group=_NO_ANSWER,
        truth=_none("nothing depends on the lr", *_NOTHING_LEARNED),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "flat-then-blow-up",
        Curve(shape=total(flat(), rise(1e-1)), disturbances=[gaussian(0.04)]),
        "never learned, diverged in the end",
        group=_NO_ANSWER,
        truth=_none("below the blow-up nothing was learned", *_NOTHING_LEARNED),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "drift-only",
        Curve(shape=flat(), disturbances=[drift(-1.0), gaussian(0.02)]),
        "an even decline from the first update to the last",
        group=_NO_ANSWER,
        truth=_none(
            "no lr differs from another: easier data, or learning at every one; any reason will do"
        ),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "never-diverges",
        Curve(shape=_FALL, disturbances=[gaussian(0.02)]),
        "falls and stays low to the end of the ramp",
        group=_NO_ANSWER,
        truth=_either(
            1e-3 / TOLERANCE,
            10.0,
            "every lr past the fall served; the greatest is not known",
            "never-diverged",
            "no-three-regions",
        ),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "ends-inside-fall",
        Curve(shape=total(flat(), drop(10.0, scale=0.3))),
        "the ramp ends where the fall is steepest",
        group=_NO_ANSWER,
        truth=_either(
            10.0 / TOLERANCE,
            10.0,
            "the best lr lies at the end of the ramp or beyond",
            "never-diverged",
            "no-three-regions",
        ),
    ),
)

_POINTS = "points and ramps"
_POINT_CASES = (
    curve_case(
        "one-point",
        Curve(shape=_PLAIN, ramp=Ramp(num_updates=1)),
        "a ramp of one update",
        group=_POINTS,
        truth=_none("one loss has no slope", "too-few-points"),
    ),
    curve_case(
        "five-points",
        Curve(shape=_PLAIN, ramp=Ramp(num_updates=5)),
        "two decades from one to the next",
        group=_POINTS,
        truth=_either(
            1e-3 / TOLERANCE,
            0.1,
            "the fall lies on one point; too few to be sure",
            "too-few-points",
        ),
    ),
    curve_case(
        "twelve-points",
        Curve(shape=_PLAIN, ramp=Ramp(num_updates=12)),
        "0.7 decades from one to the next",
        group=_POINTS,
        truth=_either(1e-3 / TOLERANCE, 0.1, "four points in the minimum", "too-few-points"),
    ),
    curve_case(
        "twenty-five-points",
        Curve(shape=basin(1e-3, 0.3, power=8), ramp=Ramp(num_updates=25)),
        "the edge lies between two points, a third of a decade apart",
        group=_POINTS,
    ),
    curve_case(
        "forty-points-noisy",
        Curve(shape=_PLAIN, disturbances=[gaussian(0.1)], ramp=Ramp(num_updates=40)),
        "noise of 5 %",
        group=_POINTS,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "four-hundred-points",
        Curve(shape=_PLAIN, disturbances=[gaussian(0.2)], ramp=Ramp(num_updates=400)),
        "noise of 10 %",
        group=_POINTS,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "narrow-ramp",
        Curve(shape=basin(1e-3, 0.1, scale=0.15), ramp=Ramp(start_lr=1e-4, end_lr=1.0)),
        "four decades only, well chosen",
        group=_POINTS,
    ),
    curve_case(
        "linear-ramp",
        Curve(
            shape=basin(0.05, 0.6, scale=0.15),
            ramp=Ramp(start_lr=1e-3, end_lr=1.0, kind="linear"),
        ),
        "equal differences of lr",
        group=_POINTS,
    ),
    curve_case(
        "linear-ramp-noisy",
        Curve(
            shape=basin(0.1, 1.2, scale=0.15),
            disturbances=[gaussian(0.1)],
            ramp=Ramp(start_lr=1e-3, end_lr=2.0, num_updates=150, kind="linear"),
        ),
        "with noise of 5 %",
        group=_POINTS,
        num_seeds=_SEEDS,
    ),
)

ODD_CASES: tuple[Case, ...] = (
    *_NOT_FINITE_CASES,
    *_UNIT_CASES,
    *_NO_ANSWER_CASES,
    *_POINT_CASES,
)
"""In the order of the table."""
