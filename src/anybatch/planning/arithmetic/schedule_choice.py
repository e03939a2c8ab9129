"""Which schedule a planned training takes, and why.

Reference: one cycle and its weaker weight decay: Smith 2018, "A disciplined approach to neural
network hyper-parameters: part 1", section 4.4; the warm-up of Adam: Ma and Yarats 2021, "On the
adequacy of untuned warmup for adaptive optimization", section 4; gradual warm-up: Goyal et al.
2017, "Accurate, large minibatch SGD", section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from anybatch.durations import Duration, examples, fraction
from anybatch.errors import InputError
from anybatch.recipe import Schedules
from anybatch.recipe_parts import ReduceOnPlateauSettings
from anybatch.schedules import Cosine, InverseSquareRoot, OneCycle, Schedule, Warmup

__all__ = ["ScheduleChoice", "ScheduleKind", "choose_schedule"]

ScheduleKind: TypeAlias = Literal[
    "one-cycle", "cosine", "inverse-square-root", "warmup-constant", "warmup-plateau"
]

LONG = 50_000
"""Updates above which one cycle is not chosen: its papers gain by being short."""

_SGD_SHARE, _SGD_MOST = 0.05, 500  # warm-up in updates: at most this share, at most so many
_ADAM_SHARE, _ADAM_MOST = 0.1, 2000  # 2 / (1 - beta2) for beta2 = 0.999
_FEWEST = 5  # a warm-up of fewer updates is none


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleChoice:
    """A schedule for the learning rate with its reason.

    Attributes:
        kind: which one.
        reason: one sentence.
        settings: schedules of a recipe; their durations are fractions of the run or examples, so
            that a change of the batch size leaves them as they are.
        weight_decay_factors: arms to be tried, 1 first: with one cycle also 0.3, since its high
            learning rates regularize by themselves.
        plateau: reductions where evaluations stop to improve; None: none.
    """

    kind: ScheduleKind
    reason: str
    settings: Schedules
    weight_decay_factors: tuple[float, ...] = (1.0,)
    plateau: ReduceOnPlateauSettings | None = None


def choose_schedule(
    *,
    optimizer_kind: str,
    has_target: bool,
    planned_updates: int | None,
    has_plateau: bool,
    has_edge: bool = False,
    momentum: float = 0.0,
    batch_size: int | None = None,
    pilot_examples: int | None = None,
) -> ScheduleChoice:
    """The schedule for a training, by rules in this order.

    1. Patience or a plateau decides: warm-up, then constant with reductions on plateaus.
    2. It stops at its target, or its length is not known: no decay that needs to know the end.
       After a pilot of constant lr: the inverse square root of the examples over the pilot's, which
       keeps the lr for a run not much longer than its pilot, and in a longer one lowers the noise
       that a constant lr would stay at. Without a pilot: warm-up, then constant.
    3. SGD with momentum, whose lr range has an edge, for at most 50,000 updates: one cycle.
    4. Anything else: warm-up, then a cosine to 0.

    The warm-up is 5 % of the updates and at most 500 for SGD, 10 % and at most 2,000 for others;
    none where that is fewer than 5.

    Args:
        optimizer_kind: name of the optimizer's settings ("sgd", "adam", "adamw", "muon").
        has_target: whether the training ends when a target is reached.
        planned_updates: >= 1; None: not known.
        has_plateau: whether the recipe reduces the lr, or stops, by what evaluations say.
        has_edge: whether a range test found the largest lr that still learns.
        momentum: of SGD.
        batch_size: to tell the warm-up in examples; None: as a fraction of the planned updates.
        pilot_examples: trained at the constant lr already; None: no pilot.

    Raises:
        InputError: planned_updates or batch_size below 1.

    Example:
        >>> choice = choose_schedule(optimizer_kind="sgd", has_target=False, planned_updates=2000,
        ...     has_plateau=False, has_edge=True, momentum=0.9)
        >>> choice.kind, choice.weight_decay_factors
        ('one-cycle', (1.0, 0.3))
    """
    for name, value in (("planned_updates", planned_updates), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InputError(name, "must be >= 1", value)
    is_sgd = optimizer_kind in ("sgd", "sgdw")
    warm = _warmup_updates(is_sgd, planned_updates)
    length = _length(warm, planned_updates, batch_size)
    rise = f"after a warm-up of {warm:,} updates" if length else "without a warm-up"
    constant = Schedules(lr=Warmup(duration=length, start=1.0 / warm)) if length else Schedules()
    if has_plateau:
        return ScheduleChoice(
            kind="warmup-plateau",
            reason=f"evaluations decide when the lr falls, so it stays constant {rise}",
            settings=constant,
            plateau=ReduceOnPlateauSettings(begin_after=length or examples(0)),
        )
    if has_target or planned_updates is None:
        why = "the run stops at its target" if has_target else "the run's length is not known"
        if pilot_examples:
            reason = (
                f"{why}, so no decay could know where to end: the lr stays for the pilot's "
                f"{pilot_examples:,} examples and then falls with the square root of the examples"
            )
            falling = InverseSquareRoot(warmup=examples(pilot_examples), start=1.0)
            return ScheduleChoice(
                kind="inverse-square-root", reason=reason, settings=Schedules(lr=falling)
            )
        reason = f"{why}, so no decay could know where to end: constant {rise}"
        return ScheduleChoice(kind="warmup-constant", reason=reason, settings=constant)
    if is_sgd and momentum > 0 and has_edge and planned_updates <= LONG:
        return ScheduleChoice(
            kind="one-cycle",
            reason=f"{planned_updates:,} updates are known beforehand (at most {LONG:,}), SGD has "
            f"momentum {momentum:g} and its lr range an edge: one cycle may rise up to it",
            settings=Schedules(lr=OneCycle()),
            weight_decay_factors=(1.0, 0.3),
        )
    into: Schedule = Cosine()
    if length:
        into = Warmup(duration=length, start=1.0 / warm, into=Cosine())
    why = _not_one_cycle(is_sgd, optimizer_kind, planned_updates, momentum)
    return ScheduleChoice(
        kind="cosine",
        reason=f"{planned_updates:,} updates are known beforehand, {why}: a cosine to 0 {rise}",
        settings=Schedules(lr=into),
    )


def _not_one_cycle(is_sgd: bool, optimizer: str, planned_updates: int, momentum: float) -> str:
    """Why the run, whose length is known, does not take one cycle."""
    if not is_sgd:
        return f"{optimizer} scales its steps by itself"
    if planned_updates > LONG:
        return f"more than the {LONG:,} that one cycle is for"
    if momentum <= 0:
        return "SGD has no momentum"
    return "no edge of the lr range was found for one cycle to rise to"


def _warmup_updates(is_sgd: bool, planned_updates: int | None) -> int:
    share, most = (_SGD_SHARE, _SGD_MOST) if is_sgd else (_ADAM_SHARE, _ADAM_MOST)
    return most if planned_updates is None else min(most, math.floor(share * planned_updates))


def _length(warm: int, planned_updates: int | None, batch_size: int | None) -> Duration | None:
    """The warm-up in examples, or as a fraction; None where it is too short."""
    if warm < _FEWEST:
        return None
    if batch_size is not None:
        return examples(warm * batch_size)
    if planned_updates is None:
        raise InputError("batch_size", "must be given where the planned updates are not known")
    return fraction(warm / planned_updates)
