"""Halving, on curves that are written down: who wins, who is left behind, what a stop changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from anybatch.studies.halving import Choice, History, choose_lr, standing

GRID = (1.0, 2.0, 4.0, 8.0, 16.0)
LENGTHS = (10, 20, 40, 80, 160)
Curve = Callable[[int], float]


def train(curve: Curve, length: int, target: float) -> History:
    """A run that is looked at after every fifth update and may end before `length`."""
    seen: dict[int, tuple[float, float]] = {}
    for update in range(5, length + 1, 5):
        value = curve(update)
        if math.isnan(value):
            return History(updates=update, seen=seen, diverged=update)
        seen[update] = (value, value)
        if value <= target:
            return History(updates=update, seen=seen, reached=update)
    return History(updates=length, seen=seen)


def tune(
    curves: Callable[[float], Curve],
    *,
    target: float = 0.0,
    lengths: Sequence[int] = LENGTHS,
    known: Mapping[float, History] | None = None,
) -> tuple[Choice, dict[float, list[int]]]:
    """Train whatever is asked for until it is decided; what was asked, by lr."""
    histories, asked = dict(known or {}), dict[float, list[int]]()
    for _ in range(100):
        choice = choose_lr(GRID, histories, lengths)
        if not choice.trials:
            return choice, asked
        for lr, length in choice.trials:
            asked.setdefault(lr, []).append(length)
            histories[lr] = train(curves(lr), length, target)
    raise AssertionError("it never decides")


def away_from(best: float) -> Callable[[float], Curve]:
    """Losses that fall like 1 / update, the slower the further lr is from the best."""
    return lambda lr: lambda update: (1.0 + abs(math.log2(lr / best))) / update


def test_the_fastest_to_the_target_wins_and_nobody_trains_on_after_that_round() -> None:
    choice, asked = tune(away_from(4.0), target=0.03)
    assert (choice.lr, choice.at_edge) == (4.0, "")
    assert asked[4.0] == [10, 20, 40]  # reached at 35, and the round ends at 40
    assert max(length for lengths in asked.values() for length in lengths) == 40


def test_the_better_half_goes_on_and_never_fewer_than_two() -> None:
    choice, asked = tune(away_from(4.1))
    assert choice.lr == 4.0
    assert {lr: lengths[-1] for lr, lengths in asked.items()} == {
        1.0: 10, 16.0: 10, 2.0: 20, 8.0: 160, 4.0: 160,
    }  # fmt: skip


def test_a_late_starter_that_reaches_the_target_first_is_not_left_behind() -> None:
    def curves(lr: float) -> Curve:
        if lr == 4.0:  # second in the first round, but first at the target
            return lambda update: 0.5 if update < 15 else 0.0
        if lr == 2.0:
            return lambda update: 0.4 if update < 20 else 0.0
        return lambda update: 0.9

    choice, _ = tune(curves)
    assert choice.lr == 4.0


@pytest.mark.parametrize(
    ("best", "winner", "tried"),
    [
        (0.5, 0.5, (0.25, 0.5, 1.0)),  # two more below
        (32.0, 32.0, (16.0, 32.0, 64.0)),  # two more above
        (64.0, 64.0, (64.0, 128.0, 256.0)),  # at the edge again: another two
    ],
)
def test_the_grid_grows_until_the_winner_stands_inside(best, winner, tried) -> None:
    choice, _ = tune(away_from(best))
    assert (choice.lr, choice.at_edge) == (winner, "")
    assert set(tried) <= set(choice.tried)
    assert choice.tried[0] < winner < choice.tried[-1]


def test_a_grid_without_end_is_given_up_and_said() -> None:
    choice, _ = tune(lambda lr: lambda update: 1.0 / lr)
    assert (choice.lr, choice.at_edge) == (max(choice.tried), "highest")
    assert len(choice.tried) == len(GRID) + 8


def test_what_diverges_has_lost_and_where_all_do_smaller_ones_are_tried() -> None:
    def curves(lr: float) -> Curve:
        return lambda update: math.nan if lr > 0.3 else 1.0 / (update * lr)

    choice, _ = tune(curves)
    assert choice.lr == 0.25
    nothing, _ = tune(lambda lr: lambda update: math.nan)
    assert nothing.lr is None
    assert min(nothing.tried) < 1e-2


def test_two_at_once_or_one_by_one_and_stopped_anywhere_decide_the_same() -> None:
    curves, target = away_from(1.3), 0.04
    whole, _ = tune(curves, target=target)
    histories: dict[float, History] = {}
    for _ in range(200):
        choice = choose_lr(GRID, histories, LENGTHS)
        if not choice.trials:
            break
        lr, length = choice.trials[-1]  # the last one alone; then the question is asked again
        histories[lr] = train(curves(lr), length, target)
    assert choice == whole
    for count in range(len(histories) + 1):
        part = dict(itertools.islice(histories.items(), count))
        assert tune(curves, target=target, known=part)[0] == whole


def test_a_run_that_went_on_is_judged_by_what_it_was_at_the_round() -> None:
    early = History(updates=160, seen={10: (0.5, 0.5), 160: (0.0, 0.0)}, reached=160)
    assert standing(early, 10, 1.0)[:3] == (1.0, 0.0, 0.5)
    assert standing(early, 160, 1.0)[:2] == (0.0, 160.0)
    late = History(updates=20, seen={10: (0.5, 0.5)}, diverged=20)
    assert standing(late, 10, 1.0)[0] == 1.0
    assert standing(late, 20, 1.0)[0] == 2.0


def test_ties_go_to_the_better_value_then_the_loss_then_the_smaller_lr() -> None:
    def at(value: float, loss: float) -> History:
        return History(updates=10, seen={10: (value, loss)}, reached=10)

    assert standing(at(0.1, 0.3), 10, 2.0) < standing(at(0.2, 0.1), 10, 1.0)
    assert standing(at(0.1, 0.2), 10, 2.0) < standing(at(0.1, 0.3), 10, 1.0)
    assert standing(at(0.1, 0.2), 10, 1.0) < standing(at(0.1, 0.2), 10, 2.0)
