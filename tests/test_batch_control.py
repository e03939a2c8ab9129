"""What follows from an interval of the noise scale: by hand, at the bounds, as a law."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anybatch.batch_control import (
    BatchSizeController,
    NoiseLook,
    SizeBounds,
    lr_factor_of,
    next_batch_size,
)
from anybatch.cli import main
from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.preview import preview
from anybatch.recipe import AdaptiveBatchSize, Recipe, Schedules, SGDSettings
from anybatch.records import EventRecord, from_json, to_json
from anybatch.schedules import Linear, epochs, updates

BOUNDS = SizeBounds(32, 8, 512)
UNKNOWN = Estimate(value=None, reason="3 observed updates, of at least 12")


def look(noise: Estimate) -> NoiseLook:
    return NoiseLook(
        update=40, examples=1280, epoch=1.28, noise_scale=noise,
        squared_gradient_norm=0.5, covariance_trace=50.0, pairs=32,
    )  # fmt: skip


def between(low: float, high: float) -> Estimate:
    return Estimate(value=math.sqrt(low * high), low=low, high=high, unit="examples")


@pytest.mark.parametrize(
    ("size", "low", "high", "after"),
    [
        (32, 46.0, 900.0, 64),  # all above 32 x 1.414 = 45.25
        (32, 45.0, 900.0, 32),
        (32, 1.0, 22.0, 16),  # all below 32 / 1.414 = 22.63
        (32, 1.0, 23.0, 32),
        (32, 30.0, 34.0, 32),
        (300, 1e4, 1e5, 512),  # not above the largest
        (512, 1e4, 1e5, 512),
        (10, 1.0, 2.0, 8),
        (8, 1.0, 2.0, 8),
    ],
)
def test_moves_by_hand(size: int, low: float, high: float, after: int) -> None:
    assert next_batch_size(AdaptiveBatchSize(), BOUNDS, size, between(low, high))[0] == after


def test_an_end_that_is_not_known_says_nothing() -> None:
    at_least = Estimate(value=None, low=46.0)
    assert next_batch_size(AdaptiveBatchSize(), BOUNDS, 32, at_least)[0] == 64
    assert next_batch_size(AdaptiveBatchSize(), BOUNDS, 64, at_least)[0] == 64
    assert next_batch_size(AdaptiveBatchSize(), BOUNDS, 32, UNKNOWN) == (
        32, "the interval has no ends",
    )  # fmt: skip


def test_the_aim_is_a_multiple_of_the_noise_scale() -> None:
    quarter = AdaptiveBatchSize(per_noise_scale=0.25)
    assert next_batch_size(quarter, BOUNDS, 32, between(46.0, 60.0))[0] == 16
    assert next_batch_size(quarter, BOUNDS, 32, between(190.0, 250.0))[0] == 64


@given(
    size=st.integers(8, 512),
    factor=st.floats(1.001, 16.0),
    low=st.floats(0.01, 1e5),
    width=st.floats(1.0, 1e3),
)
def test_a_move_is_towards_the_aim_and_stays_within_the_bounds(
    size: int, factor: float, low: float, width: float
) -> None:
    settings = AdaptiveBatchSize(factor=factor)
    after, reason = next_batch_size(settings, BOUNDS, size, between(low, low * width))
    assert 8 <= after <= 512
    assert reason
    if after > size:
        assert low > size
        assert after <= max(round(size * factor), size + 1)
    if after < size:
        assert low * width < size
    if size < low / 2 and factor <= 2 and size < 512:
        assert after > size  # nothing that is known well is left alone


def test_lr_follows_by_its_rule() -> None:
    for rule, factor in (("constant", 1.0), ("square-root", 2.0), ("linear", 4.0)):
        settings: Any = AdaptiveBatchSize(lr_rule=rule)  # type: ignore[arg-type]
        assert lr_factor_of(settings, 128, 32) == factor
        assert lr_factor_of(settings, 8, 32) == 1.0 / factor


def test_every_look_is_an_event_with_its_numbers_and_its_reason() -> None:
    controller = BatchSizeController(AdaptiveBatchSize(), BOUNDS)
    assert controller.event is None
    assert controller.observe(look(between(81.0, 121.0))) == 64
    event = controller.event
    assert isinstance(event, EventRecord)
    assert (event.name, event.update, event.examples) == ("batch-size-changed", 40, 1280)
    assert event.sentence == (
        "batch size 32 -> 64: noise scale 99 examples (81 to 121); "
        "the whole interval lies above 32 x 1.41"
    )
    assert event.values["lr_factor_after"] == pytest.approx(math.sqrt(2.0))
    assert (event.values["batch_size_before"], event.values["batch_size_after"]) == (32, 64)
    assert controller.observe(look(UNKNOWN)) == 64
    assert controller.event is not None
    assert controller.event.name == "batch-size-looked-at"
    assert controller.event.sentence == (
        "batch size stays 64: noise scale not known: 3 observed updates, of at least 12"
    )
    again = from_json(to_json(controller.event), EventRecord)
    assert math.isnan(again.values["noise_scale"])
    assert again.values["noise_scale_high"] == math.inf
    assert to_json(again) == to_json(controller.event)


def test_a_saved_controller_decides_the_same() -> None:
    one, other = (BatchSizeController(AdaptiveBatchSize(), BOUNDS) for _ in range(2))
    one.observe(look(between(81.0, 121.0)))
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.observe(look(between(300.0, 400.0)))
    assert one.event == other.event
    assert one.lr_factor == other.lr_factor == 2.0


# --- bounds -------------------------------------------------------------------------------------

RECIPE = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32, batch_control=AdaptiveBatchSize())


def controlled(**changes: Any) -> Recipe:
    return replace(RECIPE, batch_control=AdaptiveBatchSize(**changes))


def test_the_bounds_are_the_recipe_and_the_set() -> None:
    assert SizeBounds.of(RECIPE, 1000) == SizeBounds(32, 32, 1000)
    assert SizeBounds.of(RECIPE, None) == SizeBounds(32, 32, math.inf)
    assert SizeBounds.of(controlled(smallest=4, largest=64), 1000) == SizeBounds(32, 4, 64)
    full = replace(controlled(smallest=4), batch_size="full")
    assert SizeBounds.of(full, 1000) == SizeBounds(1000, 4, 1000)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (controlled(smallest=64), "batch_control.smallest must be <= the recipe's batch size 32"),
        (controlled(largest=16), "batch_control.largest must be >= the recipe's batch size 32"),
        (controlled(largest=2000), "batch_control.largest must be <= the 1000 training examples"),
        (controlled(largest=32), "batch_control.largest must be above the smallest, 32"),
        (
            replace(RECIPE, schedules=Schedules(batch_size=Linear(start=1.0, end=2.0))),
            "schedules.batch_size must be constant where batch_control moves",
        ),
    ],
)
def test_bounds_that_do_not_fit_are_refused_in_one_line(recipe: Recipe, message: str) -> None:
    with pytest.raises(InputError) as caught:
        SizeBounds.of(recipe, 1000)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_preview_says_what_may_move(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["--set", "batch_control={largest=256}", "--set", "duration=2 epochs"]
    assert main(["recipe", "preview", "default", "--examples", "1000", *lines]) == 0
    assert (
        "# batch_control: looks at the noise scale every 10000 examples, and may then move the "
        "batch size by a factor of 2, within 128 and 256, and the lr with it (square-root)"
    ) in capsys.readouterr().out
    assert main(["recipe", "preview", "default", "--examples", "200", *lines]) == 2
    assert "largest must be <= the 200 training examples" in capsys.readouterr().err


def test_updates_of_a_controlled_size_have_no_length() -> None:
    with pytest.raises(InputError, match="duration must not be in updates"):
        recipe_clock(replace(RECIPE, duration=updates(9)), 1000)
    rows = preview(replace(RECIPE, duration=epochs(1)), 1000)
    assert {row.batch_size for row in rows[:-1]} == {32}  # without what is measured
