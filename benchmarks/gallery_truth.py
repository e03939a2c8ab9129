"""Truth of the gallery: what a right answer to a case is, and the judge.

A case states the learning rates that are right, or that no number is right, before any finder has
run. The judge knows of a finder only its answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, optim

__all__ = [
    "TOLERANCE",
    "Answer",
    "Case",
    "FloatArray",
    "Problem",
    "Ramp",
    "Truth",
    "Verdict",
    "judge",
    "judge_edge",
]

TOLERANCE = 4.0
"""Factor by which a suggested lr may miss the best one, or lie below the steepest point."""

_EDGE_TOLERANCE = 2.0

FloatArray = NDArray[np.float64]
Verdict = Literal["right", "wrong", "don't know"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ramp:
    """The learning rates that every finder is asked to go through.

    Attributes:
        start_lr: the first, > 0.
        end_lr: the last.
        num_updates: how many.
        kind: equal ratios ("log") or equal differences ("linear").
    """

    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_updates: int = 100
    kind: Literal["log", "linear"] = "log"

    def lrs(self, num: int | None = None) -> FloatArray:
        """The learning rates, or `num` of them over the same range.

        Example:
            >>> Ramp(start_lr=0.01, end_lr=1.0, num_updates=3).lrs().round(6).tolist()
            [0.01, 0.1, 1.0]
        """
        space = np.geomspace if self.kind == "log" else np.linspace
        return space(self.start_lr, self.end_lr, num or self.num_updates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is right in a case.

    Attributes:
        why: it is the truth, in one sentence.
        low: least suggested lr that is right; with `high` None where no number is right.
        high: greatest.
        none_is_right: whether "don't know" is right, be it beside a number or instead of one.
        findings: of which a finder that names its reasons must name one when it says "don't know";
            empty: any.
        edge: lr above which training at a constant lr diverges, where that is known.
    """

    why: str
    low: float | None = None
    high: float | None = None
    none_is_right: bool = False
    findings: tuple[str, ...] = ()
    edge: float | None = None

    def __post_init__(self) -> None:
        if self.low is None or self.high is None:
            good = self.low is self.high and self.none_is_right
        else:
            good = 0 < self.low < self.high
        if not good:
            raise ValueError(f"no answer could be right: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a finder said.

    Attributes:
        lr: to be used as (maximal) learning rate; None: it does not know.
        edge: of stability, from finders that estimate it.
        findings: names of the reasons, from finders that name them.
        error: message of the exception it raised, cut short.
        seconds: of the whole call.
    """

    lr: float | None = None
    edge: float | None = None
    findings: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One training, built anew for every finder, ready for its own loop.

    Attributes:
        model: takes the first part of a batch.
        optimizer: of the model, at the ramp's start.
        loss_function: (outputs, targets) -> scalar.
        batches: (inputs, targets), one for each update of the ramp.
        ramp: that the finder goes through.
        recorded: (lrs, losses) of a scripted curve; None where something is trained.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    loss_function: Callable[[Tensor, Tensor], Tensor]
    batches: tuple[tuple[Tensor, Tensor], ...]
    ramp: Ramp
    recorded: tuple[list[float], list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture of the gallery.

    Attributes:
        name: unique.
        group: of the score table.
        description: what is seen or trained.
        build: seed -> problem; the same seed gives the same one.
        truth: computes what is right, without any finder.
        num_seeds: how many problems are judged.
    """

    name: str
    group: str
    description: str
    build: Callable[[int], Problem]
    truth: Callable[[], Truth] = field(repr=False)
    num_seeds: int = 1


def judge(truth: Truth, answer: Answer, *, names_reasons: bool) -> Verdict:
    """Whether an answer is right.

    A number is right inside of [low, high] and wrong elsewhere, also where no number is right and
    where it is not finite. No number is right where the truth allows that, "don't know" elsewhere;
    from a finder that names its reasons it needs one of the right names.

    Args:
        truth: of the case.
        answer: of the finder.
        names_reasons: whether the finder has names for what is broken.

    Example:
        >>> truth = Truth(why="by construction", low=0.01, high=0.1)
        >>> judge(truth, Answer(lr=0.05), names_reasons=False)
        'right'
        >>> judge(truth, Answer(), names_reasons=False)
        "don't know"
    """
    if answer.lr is not None:
        if truth.low is None or truth.high is None or not math.isfinite(answer.lr):
            return "wrong"
        return "right" if truth.low <= answer.lr <= truth.high else "wrong"
    if not truth.none_is_right:
        return "don't know"
    named = set(answer.findings) & set(truth.findings or answer.findings)
    return "right" if named or not names_reasons else "don't know"


def judge_edge(truth: Truth, answer: Answer) -> Verdict | None:
    """Whether the estimated edge lies within a factor of 2; None where there is no truth.

    Args:
        truth: of the case.
        answer: of a finder that estimates the edge.

    Example:
        >>> judge_edge(Truth(why="2 / H", low=0.1, high=1.0, edge=2.0), Answer(edge=3.0))
        'right'
    """
    if truth.edge is None:
        return None
    if answer.edge is None:
        return "don't know"
    ratio = answer.edge / truth.edge
    return "right" if 1 / _EDGE_TOLERANCE <= ratio <= _EDGE_TOLERANCE else "wrong"


def plain_truth(truth: Truth) -> dict[str, Any]:
    """The values that are stored beside the answers."""
    return {name: getattr(truth, name) for name in Truth.__slots__}
