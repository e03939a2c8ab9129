"""What is tried: sizes, learning rates, lengths of rounds, and where evaluations fall."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anybatch.course import Course, recipe_clock
from anybatch.errors import InputError
from anybatch.recipe import (
    AdamSettings,
    LossSettings,
    MuonSettings,
    Recipe,
    RMSpropWarmupSettings,
    Schedules,
    SGDSettings,
    SGDWSettings,
)
from anybatch.scaling import with_lr
from anybatch.schedules import Cosine, Duration, epochs, examples, updates
from anybatch.studies.batch_size_grid import (
    BatchSizeSettings,
    Looks,
    cap_updates,
    default_batch_sizes,
    lr_centre,
    round_lengths,
    trial_recipe,
)

SGD = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32)


@given(st.integers(1, 1000), st.integers(1, 5000), st.integers(1, 400))
def test_two_looks_are_five_percent_or_one_update_apart(
    first: int, batch_size: int, looks_made: int
) -> None:
    looks, before, update = Looks(length=first, counts="examples"), 0, 0
    last = 0  # examples at the last look
    for _ in range(looks_made):
        update += 1
        count = looks.times(updates=update, examples=update * batch_size)
        assert count >= before
        if count > before:
            gap = update * batch_size - last
            assert gap <= max(first, 0.05 * last * (1 + 1e-9)) + batch_size
            before, last = count, update * batch_size
    if batch_size >= max(first, 0.05 * update * batch_size):
        assert before >= min(looks_made, 20)  # each update is looked at


def test_looks_become_rarer_as_examples_add_up() -> None:
    looks = Looks(length=540, counts="examples")
    assert looks.times(updates=0, examples=54_000) == 20 + math.floor(math.log(5) / math.log(1.05))
    assert looks.times(updates=0, examples=10**9) < 260


def test_the_centre_of_the_grid_follows_the_rule_of_the_optimizer() -> None:
    adam = Recipe(optimizer=AdamSettings(lr=0.001), batch_size=32)
    assert [lr_centre(SGD, b, 10**6) for b in (8, 64, 10**5)] == [0.025, 0.2, 1.6]
    assert [lr_centre(adam, b, 10**6) for b in (8, 128, 10**6)] == [0.0005, 0.002, 0.016]
    summed = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=32, loss=LossSettings(reduction="sum")
    )
    assert [lr_centre(summed, b, 10**6) for b in (8, 512, 1024)] == [0.1, 0.1, 0.05]
    full = Recipe(optimizer=SGDSettings(lr=0.8), batch_size="full")
    assert lr_centre(full, 25, 100) == 0.2


def test_muons_second_lr_moves_with_the_first() -> None:
    made = with_lr(MuonSettings(lr=0.02, adamw_lr=0.001), 0.04)
    assert (made.lr, made.adamw_lr) == (0.04, 0.002)


def test_rmsprops_lr_moves_with_that_of_sgd() -> None:
    made = with_lr(RMSpropWarmupSettings(lr=0.1, rms_lr=3e-4), 0.2)
    assert (made.lr, made.rms_lr) == (0.2, 6e-4)


def test_the_centre_of_sgdw_is_that_of_sgd() -> None:
    for reduction in ("mean", "sum"):
        loss = LossSettings(reduction=reduction)
        sgd, sgdw = (
            Recipe(optimizer=kind(lr=0.1), batch_size=32, loss=loss)
            for kind in (SGDSettings, SGDWSettings)
        )
        assert lr_centre(sgdw, 128, 10_000) == lr_centre(sgd, 128, 10_000)


@pytest.mark.parametrize(
    ("batch_size", "num_examples", "expected"),
    [
        (32, 2000, (8, 32, 128, 512)),
        (50, 60, (8, 32, 50)),
        (4, 5, (4,)),
        (16, None, (8, 16, 32, 128)),
    ],
)
def test_default_sizes_end_with_the_set(batch_size, num_examples, expected) -> None:
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=batch_size)
    assert default_batch_sizes(recipe, num_examples) == expected


@pytest.mark.parametrize("duration", [epochs(2.5), updates(17), examples(333), epochs(0.1)])
@pytest.mark.parametrize("num_examples", [100, 101, None])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 100])
def test_the_cap_is_as_many_updates_as_a_run_takes(
    duration: Duration, num_examples: int | None, batch_size: int
) -> None:
    if num_examples is None and duration.unit == "epochs":
        return
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=batch_size, duration=duration)
    course = Course.of(recipe, recipe_clock(recipe, num_examples))
    count = seen = 0
    while seen < course.total_examples:
        seen += course.size(seen, seen % num_examples if num_examples else seen)
        count += 1
    assert cap_updates(recipe, num_examples) == count


def test_rounds_double_and_a_schedule_allows_one_alone() -> None:
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=10, duration=epochs(3))
    assert round_lengths(recipe, 100) == (2, 4, 8, 15, 30)
    scheduled = Recipe(
        optimizer=SGDSettings(lr=0.1), batch_size=10, duration=epochs(3),
        schedules=Schedules(lr=Cosine()),
    )  # fmt: skip
    assert round_lengths(scheduled, 100) == (30,)


def test_every_batch_size_is_looked_at_after_as_many_examples() -> None:
    made = [trial_recipe(SGD, b, 0.1, num_examples=1000, smallest=8) for b in (8, 512)]
    assert {str(recipe.stopping.evaluate_every) for recipe in made} == {"10 examples"}
    tiny = trial_recipe(SGD, 8, 0.1, num_examples=32, smallest=8)
    assert str(tiny.stopping.evaluate_every) == "1 examples"
    with pytest.raises(InputError, match="batch_size must be <= the 100 training examples"):
        trial_recipe(SGD, 128, 0.1, num_examples=100, smallest=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_sizes": (8, 0)}, "batch_sizes must be whole numbers >= 1, got 0"),
        ({"batch_sizes": (8, 8)}, "batch_sizes must all be different"),
        ({"batch_sizes": (True,)}, "batch_sizes must be whole numbers"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"lr": math.nan}, "lr must be > 0"),
        ({"seeds": 0}, "seeds must be >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSizeSettings(**given)
