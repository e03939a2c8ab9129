"""Which schedule, for which reason, and in lengths that survive a change of the batch."""

from __future__ import annotations

from typing import Any

import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic.schedule_choice import LONG, ScheduleChoice, choose_schedule
from anybatch.recipe import Recipe, SGDSettings
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.schedules import Clock, Constant, Cosine, OneCycle, Warmup, resolve_schedule, updates

CYCLE: dict[str, Any] = {
    "optimizer_kind": "sgd",
    "has_target": False,
    "planned_updates": 4000,
    "has_plateau": False,
    "has_edge": True,
    "momentum": 0.9,
    "batch_size": 32,
}


def choice(**changes: Any) -> ScheduleChoice:
    return choose_schedule(**(CYCLE | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({}, "one-cycle", "momentum 0.9 and its lr range an edge"),
        ({"has_target": True}, "warmup-constant", "stops at its target"),
        ({"planned_updates": None}, "warmup-constant", "length is not known"),
        ({"has_plateau": True}, "warmup-plateau", "evaluations decide"),
        ({"has_plateau": True, "has_target": True}, "warmup-plateau", "evaluations decide"),
        ({"optimizer_kind": "adamw"}, "cosine", "adamw scales its steps"),
        ({"planned_updates": LONG + 1}, "cosine", "more than the 50,000"),
        ({"planned_updates": LONG}, "one-cycle", "50,000 updates are known"),
        ({"has_edge": False}, "cosine", "no edge of the lr range"),
        ({"momentum": 0.0}, "cosine", "no momentum"),
    ],
)
def test_the_rules(changes: dict[str, Any], kind: str, said: str) -> None:
    found = choice(**changes)
    assert found.kind == kind
    assert said in found.reason
    assert "\n" not in found.reason
    assert found.weight_decay_factors == ((1.0, 0.3) if kind == "one-cycle" else (1.0,))
    assert (found.plateau is not None) == (kind == "warmup-plateau")


def test_what_is_built() -> None:
    assert choice().settings.lr == OneCycle()
    constant, cosine = choice(has_target=True).settings.lr, choice(has_edge=False).settings.lr
    assert isinstance(constant, Warmup)
    assert constant.into == Constant()
    assert str(constant.duration) == "6400 examples"  # 200 updates of 32
    assert constant.start == 1 / 200  # the first update moves something
    assert isinstance(cosine, Warmup)
    assert cosine.into == Cosine()


def test_warmups_are_longer_for_adam_and_bounded() -> None:
    found = {}
    for optimizer in ("sgd", "adam"):
        for planned in (4000, 1_000_000):
            lr = choice(optimizer_kind=optimizer, planned_updates=planned, has_target=True)
            found[optimizer, planned] = lr.settings.lr.duration.count / 32  # type: ignore[union-attr]
    assert found == {
        ("sgd", 4000): 200,
        ("sgd", 1_000_000): 500,
        ("adam", 4000): 400,
        ("adam", 1_000_000): 2000,
    }


def test_a_very_short_run_has_no_warmup() -> None:
    found = choice(planned_updates=40, has_target=True)
    assert found.settings.lr == Constant()
    assert "without a warm-up" in found.reason
    assert choice(planned_updates=40, has_edge=False).settings.lr == Cosine()
    assert choice(planned_updates=40, has_plateau=True).plateau is not None


@pytest.mark.parametrize("batch_size", [32, None])
@pytest.mark.parametrize("changes", [{}, {"has_edge": False}, {"has_target": True}])
def test_a_change_of_the_batch_leaves_the_schedule(
    changes: dict[str, Any], batch_size: int | None
) -> None:
    schedule = choice(batch_size=batch_size, **changes).settings.lr
    clocks = [Clock(1000, size, 128_000) for size in (32, 250)]
    one, two = (resolve_schedule(schedule, clock) for clock in clocks)
    for progress in (0.0, 0.01, 0.05, 0.3, 0.9, 1.0):
        assert one(progress) == two(progress)


@pytest.mark.parametrize(
    "changes", [{}, {"has_edge": False}, {"has_target": True}, {"has_plateau": True}]
)
def test_a_recipe_can_hold_it(changes: dict[str, Any]) -> None:
    found = choice(**changes)
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1, momentum=0.9),
        duration=updates(4000),
        schedules=found.settings,
        plateau=found.plateau,
    )
    assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe


def test_choices_that_are_none() -> None:
    with pytest.raises(InputError, match="planned_updates must be >= 1"):
        choice(planned_updates=0)
    with pytest.raises(InputError, match="batch_size must be given"):
        choice(planned_updates=None, batch_size=None)
