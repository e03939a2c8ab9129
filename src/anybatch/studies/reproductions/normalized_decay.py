"""Whether normalized weight decay survives another length and another batch size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import AdamWSettings
from anybatch.schedules import epochs
from anybatch.studies.reproductions.common import MNIST, quickly, recipe_of
from anybatch.studies.reproductions.grids import best_place, grid_values, slope
from anybatch.studies.reproductions.parts import Arm, Effect, Experiment, Verdict
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "normalized-decay"
TITLE = "Weight decay that survives another length and batch size"
SOURCE = "Loshchilov, Hutter 2019, Decoupled weight decay regularization, appendix B (article 5)"
CLAIM = (
    "With lambda = lambda_norm sqrt(b / (B T)), which divides by the root of the updates, one "
    "lambda_norm is best for short and long trainings, where the best raw decay falls."
)
PREDICTION = (
    "Over six trainings of 40 to 5,120 updates the best lambda_norm drifts less than the best raw "
    "lambda, in every seed; the latter falls about as the root of the updates (slope -0.5)."
)
_LR = 0.002
_POWERS = tuple(range(-3, 5))
_CENTRE = 0.1
_QUANTITY = "validation_accuracy"


def experiment(*, quick: bool) -> Experiment:
    """Three lengths, two batch sizes, eight decays a factor of 2 apart."""
    problem = quickly(MNIST) if quick else replace(MNIST, train=1000)
    lengths, sizes = ((1, 2), (60,)) if quick else ((10, 40, 160), (32, 256))
    arms = {}
    for size in sizes:
        for length in lengths:
            updates = length * math.ceil(problem.train / size)
            for power in _POWERS[::3] if quick else _POWERS:
                decay = _CENTRE * 2.0**power
                optimizer = AdamWSettings(lr=_LR, weight_decay=decay, decay="normalized")
                arms[f"batch-{size}-epochs-{length}-decay-{decay:g}"] = Arm(
                    recipe=recipe_of(optimizer, size, epochs(length)),
                    problem=problem,
                    group=f"batch {size}, {length} epochs",
                    place=(math.log2(updates), math.log2(decay)),
                )
    return Experiment(
        arms=arms,
        picture="grid",
        shown=(_QUANTITY,),
        axes=("updates", "normalized decay"),
        limits=(
            "1,000 digits of MNIST at 14 x 14 pixels and LeNet-5; lr 0.002 for all, with a "
            "cosine; so small a net has a flat optimum.",
            "The best decay lies between grid points by a parabola; at an end of the grid it is "
            "that end.",
        ),
    )


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether the best normalized decay drifts less than the best raw one, in every seed."""
    drifts = [_drifts(results, seed) for seed in results.seeds]
    less, more = ([a < b for a, b in drifts], [a > b for a, b in drifts])
    normalized, raw = (statistics.fmean(side) for side in zip(*drifts, strict=True))
    points = _best_raw(results, None)
    name: Literal["seen", "not seen", "null"]
    name = "seen" if all(less) else "not seen" if all(more) else "null"
    return Verdict(
        name=name,
        sentence=(
            f"the best normalized decay drifts by {normalized:.2f} octaves (standard deviation "
            f"over {len(points)} trainings), the best raw one by {raw:.2f}; less in {sum(less)} of "
            f"{len(less)} seeds; the raw one moves with slope {slope(points):+.2f} over the updates"
        ),
    )


def _best_raw(results: Results, seed: int | None) -> list[tuple[float, float]]:
    """(log2 of the updates, log2 of the best raw decay) of each training."""
    groups = dict.fromkeys(arm.group for arm in results.arms.values())
    points = []
    for group in groups:
        values = grid_values(results.group(group), _QUANTITY, seed)
        updates = next(iter(values))[0]
        best = best_place({place[1]: value for place, value in values.items()})
        points.append((updates, best - updates / 2.0))
    return points


def _drifts(results: Results, seed: int) -> tuple[float, float]:
    """Standard deviation of the best normalized and of the best raw decay, in octaves."""
    points = _best_raw(results, seed)
    return (
        statistics.stdev(raw + updates / 2.0 for updates, raw in points),
        statistics.stdev(raw for _, raw in points),
    )
