"""Whether lr and weight decay can be chosen one by one: L2, torch's decay, the paper's decay."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from anybatch.recipe import AdamSettings, AdamWSettings
from anybatch.schedules import epochs
from anybatch.studies.reproductions.common import MNIST, quickly, recipe_of
from anybatch.studies.reproductions.grids import additive_share, best_place, grid_values, slope
from anybatch.studies.reproductions.parts import RESOLVED, Arm, Effect, Experiment, Verdict
from anybatch.studies.reproductions.results import ArmResult, Results

__all__ = ["CLAIM", "NAME", "PREDICTION", "SOURCE", "TITLE", "experiment", "verdict"]

NAME = "adamw-separability"
TITLE = "Lr and weight decay, one by one"
SOURCE = "Loshchilov, Hutter 2019, Decoupled weight decay regularization, figure 2 (article 5)"
CLAIM = (
    "With L2 regularization the best decay of Adam depends on its lr; with decoupled decay it does "
    "not, so that the two can be chosen one by one, and the best result is better."
)
PREDICTION = (
    "Row and column explain more of the grid of decoupled decay than of the others, in every seed; "
    "its best decay stays where it is while that of torch's AdamW falls as 1 / lr (slope -1 in "
    "logarithms). The best AdamW is no worse than the best Adam with L2."
)
_LRS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
_POWERS = (-2, -1, 0, 1, 2)
_GRIDS: Mapping[Literal["l2", "torch", "decoupled"], float] = {
    "l2": 2.5e-4, "torch": 1.0, "decoupled": 1e-3
}  # fmt: skip
_QUANTITY = "validation_accuracy"


def experiment(*, quick: bool) -> Experiment:
    """Three kinds of decay, each with 5 lr a factor of 2 and 5 decays a factor of 4 apart."""
    problem = quickly(MNIST) if quick else replace(MNIST, train=1000)
    length, size = (epochs(1), 60) if quick else (epochs(100), 100)
    lrs, powers = (_LRS[::2], _POWERS[::2]) if quick else (_LRS, _POWERS)
    arms = {}
    for kind, centre in _GRIDS.items():
        for lr in lrs:
            for power in powers:
                decay = float(f"{centre * 4.0**power:.6g}")
                optimizer = _optimizer(kind, lr, decay)
                arms[f"{kind}-lr-{lr:g}-decay-{decay:g}"] = Arm(
                    recipe=recipe_of(optimizer, size, length),
                    problem=problem,
                    group=kind,
                    place=(math.log2(lr), math.log2(decay)),
                )
    return Experiment(
        arms=arms,
        picture="grid",
        shown=(_QUANTITY,),
        limits=(
            "1,000 digits of MNIST at 14 x 14 pixels and LeNet-5 stand in for CIFAR-10 and a "
            "26 2x64d ResNet; nets this small hardly need decay, so that the best values may tie.",
            "Argmax and shares are those of validation accuracy; the test set compares the best.",
        ),
    )


def _optimizer(
    kind: Literal["l2", "torch", "decoupled"], lr: float, decay: float
) -> AdamSettings | AdamWSettings:
    if kind == "l2":
        return AdamSettings(lr=lr, weight_decay=decay)
    convention: Literal["lr-decoupled", "decoupled"]
    convention = "lr-decoupled" if kind == "torch" else "decoupled"
    return AdamWSettings(lr=lr, weight_decay=decay, decay=convention)


def verdict(results: Results, effects: Mapping[str, Effect]) -> Verdict:
    """Whether lr and decay act apart where decay is decoupled, in every seed."""
    shares = {kind: _shares(results, kind) for kind in _GRIDS}
    ahead = [
        all(shares["decoupled"][seed] > shares[other][seed] for other in ("l2", "torch"))
        for seed in results.seeds
    ]
    behind = [
        all(shares["decoupled"][seed] < shares[other][seed] for other in ("l2", "torch"))
        for seed in results.seeds
    ]
    told = [
        f"{kind} {100 * statistics.fmean(shares[kind].values()):.0f} %, slope of its best decay "
        f"{_slope(results, kind):+.2f}"
        for kind in _GRIDS
    ]
    name: Literal["seen", "not seen", "null"]
    name = "seen" if all(ahead) else "not seen" if all(behind) else "null"
    return Verdict(
        name=name,
        sentence=(
            "row and column explain more of the decoupled grid than of both others in "
            f"{sum(ahead)} of {len(ahead)} seeds ({'; '.join(told)}); {_best_sentence(results)}"
        ),
    )


def _shares(results: Results, kind: str) -> dict[int, float]:
    arms = results.group(kind)
    return {s: additive_share(grid_values(arms, _QUANTITY, s)) for s in results.seeds}


def _slope(results: Results, kind: str) -> float:
    """Octaves that the best decay moves by in an octave of lr."""
    values = grid_values(results.group(kind), _QUANTITY)
    points = []
    for lr in sorted({place[0] for place in values}):
        points.append((lr, best_place({p[1]: v for p, v in values.items() if p[0] == lr})))
    return slope(points)


def _best(results: Results, kind: str) -> ArmResult:
    """The arm with the best mean on validation."""
    return max(results.group(kind), key=lambda arm: arm.mean(_QUANTITY) or 0.0)


def _best_sentence(results: Results) -> str:
    best = {kind: _best(results, kind).values("test_accuracy") for kind in _GRIDS}
    common = sorted(set(best["decoupled"]) & set(best["l2"]))
    differences = [best["decoupled"][seed] - best["l2"][seed] for seed in common]
    if not differences:
        return "the best cells cannot be compared"
    mean = statistics.fmean(differences)
    size = " (no effect)" if abs(mean) < RESOLVED else ""
    return (
        f"on the test set the best decoupled cell is {100 * mean:+.2f} points from the best with "
        f"L2{size}, {100 * min(differences):+.2f} to {100 * max(differences):+.2f}"
    )
