"""A gradient accumulated over parts is the gradient; two common formulas are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.schedules import Constant, updates
from anybatch.studies.reproductions.common import MNIST, momentum_sgd, quickly, recipe_of
from anybatch.studies.reproductions.parts import Accumulated, Arm, Effect, Experiment, Verdict
from anybatch.studies.reproductions.results import ArmResult, Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "accumulation-exact"
TITLE = "Accumulation is exact, whatever the parts"
SOURCE = (
    "Geiping et al. 2022 and their public code of 2021 and of 2023 (article 4); facts on "
    "accumulation in threads of Keras, Transformers and others"
)
CLAIM = (
    "A full-batch gradient can be formed in parts of any size. The code that was public with the "
    "paper divided by the number of parts in each step of a running average instead."
)
PREDICTION = (
    "Count-weighted accumulation agrees to 1e-6 in fp32 and 1e-12 in fp64 with one pass over all "
    "examples; the mean of means is right where parts are equal and wrong by more than 1e-3 where "
    "they are not; the constant divisor is wrong by more than 1e-3 everywhere, its gradient about "
    "0.63 times as long."
)
_LIMITS = {"fp32": 1e-6, "fp64": 1e-12}
_WRONG = 1e-3


def experiment(*, quick: bool) -> Experiment:
    """Three ways to combine parts, two precisions of the first."""
    problem = quickly(MNIST) if quick else MNIST
    parts = (24, 60, 7, 100) if quick else (50, 250, 7, 64, 300, 1500)
    base = replace(
        recipe_of(momentum_sgd(0.1), "full", updates(1), Constant()), micro_batch_size=None
    )
    methods: dict[str, Literal["count-weighted", "mean-of-means", "constant-divisor"]] = {
        "count-weighted-fp32": "count-weighted",
        "count-weighted-fp64": "count-weighted",
        "mean-of-means": "mean-of-means",
        "constant-divisor": "constant-divisor",
    }
    arms = {}
    for name, method in methods.items():
        compute = replace(base.compute, precision="fp64" if name.endswith("64") else "fp32")
        arms[name] = Arm(
            recipe=replace(base, compute=compute),
            problem=problem,
            procedure=Accumulated(method=method, parts=parts),
        )
    return Experiment(
        arms=arms,
        shown=("error_equal_parts", "error_unequal_parts"),
        limits=("LeNet-5 without BatchNorm, at its initial weights; no training.",),
    )


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether ours agrees within rounding and the two others do not."""
    arms, told, held = results.arms, [], True
    for precision, limit in _LIMITS.items():
        largest = max(_largest(arms[f"count-weighted-{precision}"], kind) for kind in _KINDS)
        told.append(f"count-weighted in {precision} {largest:.1e} (limit {limit:.0e})")
        held &= largest < limit
    means = [_largest(arms["mean-of-means"], kind) for kind in _KINDS]
    constant = min(_smallest(arms["constant-divisor"], kind) for kind in _KINDS)
    length = results.mean("constant-divisor", "norm_ratio")
    held &= means[0] < _WRONG < means[1] and constant > _WRONG
    told.append(f"mean of means {means[0]:.1e} for equal, {means[1]:.1e} for unequal parts")
    told.append(
        f"constant divisor at least {constant:.2f}, its gradient {length:.2f} times as long"
    )
    name: Literal["seen", "not seen"] = "seen" if held else "not seen"
    return Verdict(name=name, sentence="largest relative errors: " + "; ".join(told))


_KINDS = ("error_equal_parts", "error_unequal_parts")


def _largest(arm: ArmResult, quantity: str) -> float:
    return max(arm.values(quantity).values(), default=float("inf"))


def _smallest(arm: ArmResult, quantity: str) -> float:
    return min(arm.values(quantity).values(), default=0.0)
