"""Scripted cases of the gallery in which a fall and a blow-up are there to be found."""

from __future__ import annotations

from benchmarks.gallery_curves import (
    Curve,
    Disturbance,
    basin,
    bump,
    correlated,
    curve_case,
    drift,
    drop,
    flat,
    gaussian,
    growing,
    heavy_tailed,
    periodic,
    proportional,
    random_spikes,
    rise,
    rounded,
    spikes,
    total,
)
from benchmarks.gallery_truth import Case, Ramp, Truth

__all__ = ["FALL_CASES"]

_SEEDS = 3
_PLAIN = basin(1e-3, 1e-1)  # with 12.4 updates a decade, the steepest point is at update 49.5
_NOTHING_LEARNED = ("never-learned", "noisy", "no-three-regions", "loss-ignores-weights")


def _none(why: str, *findings: str) -> Truth:
    return Truth(why=why, none_is_right=True, findings=findings)


def _disturbed(*disturbances: Disturbance) -> Curve:
    return Curve(shape=_PLAIN, disturbances=disturbances)


_CLEAN = "clean"
_CLEAN_CASES = (
    curve_case(
        "clean",
        Curve(shape=_PLAIN),
        "fall at 1e-3, blow-up at 0.1, two decades apart",
        group=_CLEAN,
    ),
    curve_case(
        "clean-low", Curve(shape=basin(1e-5, 1e-3)), "the same two decades lower", group=_CLEAN
    ),
    curve_case(
        "clean-high", Curve(shape=basin(0.05, 2.0)), "near the upper end of the ramp", group=_CLEAN
    ),
    curve_case(
        "steep",
        Curve(shape=basin(1e-3, 1e-2, scale=0.08, power=6)),
        "a fall within half a decade, a wall one decade later",
        group=_CLEAN,
    ),
    curve_case(
        "gentle",
        Curve(shape=basin(1e-3, 0.5, scale=0.5, power=2)),
        "a fall over three decades, a slow blow-up",
        group=_CLEAN,
    ),
    curve_case(
        "narrow",
        Curve(shape=basin(1e-2, 6e-2, scale=0.12, power=6)),
        "the blow-up follows the fall within 0.8 decades",
        group=_CLEAN,
    ),
    curve_case(
        "slow-blow-up",
        Curve(shape=basin(1e-3, 0.3, power=1)),
        "past the minimum the loss grows in proportion to the lr",
        group=_CLEAN,
    ),
    curve_case(
        "falls-at-once",
        Curve(shape=basin(3e-4, 3e-2), ramp=Ramp(start_lr=1e-4)),
        "the ramp begins inside of the fall",
        group=_CLEAN,
    ),
    curve_case(
        "late-edge",
        Curve(shape=basin(0.02, 6.0)),
        "the blow-up shows in the last few updates only",
        group=_CLEAN,
    ),
    curve_case(
        "long-plateau-before",
        Curve(shape=basin(0.3, 5.0, scale=0.15)),
        "nothing happens for four fifths of the ramp",
        group=_CLEAN,
    ),
    curve_case(
        "long-plateau-after",
        Curve(shape=basin(1e-5, 1.0)),
        "five decades of flat minimum: any lr in it serves",
        group=_CLEAN,
    ),
)

_NOISE = "noise"
_NOISE_CASES = (
    curve_case(
        "noise-small", _disturbed(gaussian(0.04)), "2 % of the fall", group=_NOISE, num_seeds=_SEEDS
    ),
    curve_case("noise-medium", _disturbed(gaussian(0.2)), "10 %", group=_NOISE, num_seeds=_SEEDS),
    curve_case(
        "noise-large",
        _disturbed(gaussian(0.6)),
        "30 % of the fall; twelve updates a decade still show it",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-swamps",
        _disturbed(gaussian(6.0)),
        "three times the fall",
        group=_NOISE,
        truth=_none(
            "40 updates before and 25 after the fall tell their means apart by 1.3 deviations only",
            *_NOTHING_LEARNED,
        ),
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-heavy-tails",
        _disturbed(heavy_tailed(0.1)),
        "Student's t with 2 degrees of freedom",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-grows",
        _disturbed(growing(0.02, 0.6)),
        "small at first, 30 % of the fall at the end",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-correlated",
        _disturbed(correlated(0.2)),
        "10 % of the fall, remembered over five updates",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-proportional",
        _disturbed(proportional(0.1)),
        "10 % of the loss itself",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "noise-plateau-before",
        Curve(shape=basin(0.1, 2.0), disturbances=[gaussian(0.2)]),
        "10 % of the fall, which comes after six decades",
        group=_NOISE,
        num_seeds=_SEEDS,
    ),
)

_SPIKES = "spikes"
_SPIKE_CASES = (
    curve_case(
        "spike-first", _disturbed(spikes([0], 20.0)), "the first loss is ten times too high",
        group=_SPIKES,
    ),
    curve_case(
        "spike-early", _disturbed(gaussian(0.02), spikes([4], 8.0)), "one at update 4",
        group=_SPIKES,
    ),
    curve_case(
        "spike-plateau", _disturbed(gaussian(0.02), spikes([30], 8.0)), "one before the fall",
        group=_SPIKES,
    ),
    curve_case(
        "spikes-plateau-pair", _disturbed(gaussian(0.02), spikes([20, 21], 6.0)),
        "two in a row before the fall", group=_SPIKES,
    ),
    curve_case(
        "spike-minimum", _disturbed(gaussian(0.02), spikes([62], 3.0)), "one in the minimum",
        group=_SPIKES,
    ),
    curve_case(
        "lucky-batch", _disturbed(gaussian(0.02), spikes([15], -2.2)),
        "one batch, long before the fall, has the least loss of all", group=_SPIKES,
    ),
    curve_case(
        "spikes-everywhere", _disturbed(gaussian(0.02), random_spikes(0.07, 4.0)),
        "7 % of the updates", group=_SPIKES, num_seeds=_SEEDS,
    ),
)  # fmt: skip

_SHAPES = "shapes"
_SHAPE_CASES = (
    curve_case(
        "two-falls",
        Curve(
            shape=total(
                flat(),
                drop(1e-5, scale=0.15, depth=0.6),
                drop(1e-2, scale=0.15, depth=1.4),
                rise(0.5),
            )
        ),
        "a third of the fall at 1e-5, the rest at 1e-2: below the second, most is not learned",
        group=_SHAPES,
    ),
    curve_case(
        "two-falls-first-larger",
        Curve(shape=total(flat(), drop(1e-4, depth=1.6), drop(1e-2, depth=0.4), rise(0.5))),
        "four fifths at 1e-4: both serve",
        group=_SHAPES,
    ),
    curve_case(
        "hump-before-fall",
        Curve(shape=total(_PLAIN, bump(1e-4, height=0.4))),
        "the loss rises a little before it falls",
        group=_SHAPES,
        truth=Truth(
            why="fall and blow-up are those of the curve without the hump", low=1e-3 / 4, high=0.1
        ),
    ),
    curve_case(
        "catapult",
        Curve(shape=total(basin(1e-3, 1.0), bump(3e-2, height=2.5, width=0.1))),
        "a short peak above the start, then the minimum again, then the blow-up",
        group=_SHAPES,
        truth=Truth(why="both sides of the peak are learned at", low=1e-3 / 4, high=1.0),
    ),
    curve_case(
        "rounded", _disturbed(rounded(0.5)), "losses logged in quarters of the fall", group=_SHAPES
    ),
    curve_case(
        "two-batches", _disturbed(periodic(2, 0.3)), "an easy and a hard batch by turns",
        group=_SHAPES,
    ),
    curve_case(
        "epochs-sawtooth", _disturbed(periodic(20, 0.3), gaussian(0.05)),
        "each pass goes from easy to hard in twenty batches", group=_SHAPES, num_seeds=_SEEDS,
    ),
    curve_case(
        "drift-down", _disturbed(drift(-0.6), gaussian(0.04)),
        "the data become easier by 30 % of the fall, whatever the lr", group=_SHAPES,
        num_seeds=_SEEDS,
    ),
    curve_case(
        "drift-up", _disturbed(drift(0.6), gaussian(0.04)), "they become harder", group=_SHAPES,
        num_seeds=_SEEDS,
    ),
)  # fmt: skip

FALL_CASES: tuple[Case, ...] = (*_CLEAN_CASES, *_NOISE_CASES, *_SPIKE_CASES, *_SHAPE_CASES)
"""In the order of the table."""
