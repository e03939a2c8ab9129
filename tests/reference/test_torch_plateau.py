"""ReduceOnPlateau equals torch's ReduceLROnPlateau value by value, and lacks its two faults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from anybatch.controllers import ReduceOnPlateau
from anybatch.recipe import ReduceOnPlateauSettings

LRS = (0.3, 0.07)  # of two parameter groups
LEVELS = st.sampled_from([0.0, 0.1, 0.125, 0.2, 0.5, 0.9, 0.99, 0.999, 1.0, 1.001, 1.01, 3.0])
OPTIONS: dict[str, Any] = {
    "mode": st.sampled_from(["min", "max"]),
    "factor": st.sampled_from([0.1, 0.3, 0.5, 0.9]),
    "patience": st.integers(0, 4),
    "threshold": st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.5]),
    "threshold_mode": st.sampled_from(["rel", "abs"]),
    "cooldown": st.integers(0, 3),
    "min_lr": st.sampled_from([0.0, 1e-3, 0.0517, 0.2, 1.0]),
    "eps": st.sampled_from([0.0, 1e-8, 0.00371, 0.0713]),
}


def by_torch(values: list[float], options: dict[str, Any], lrs: tuple[float, ...]) -> list[Any]:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    optimizer = torch.optim.SGD(groups)
    floors = [options["min_lr"] * lr / lrs[0] for lr in lrs]
    scheduler = ReduceLROnPlateau(optimizer, **(options | {"min_lr": floors}))
    found = []
    for value in values:
        scheduler.step(value)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


def by_ours(values: list[float], options: dict[str, Any], lrs: tuple[float, ...]) -> list[Any]:
    plateau = ReduceOnPlateau(ReduceOnPlateauSettings(**options))
    found = []
    for value in values:
        plateau.judge(value, lrs[0] * plateau.factor)
        found.append([lr * plateau.factor for lr in lrs])
    return found


def assert_equal(values: list[float], options: dict[str, Any], lrs: tuple[float, ...]) -> None:
    ours, torchs = by_ours(values, options, lrs), by_torch(values, options, lrs)
    for one, other in zip(ours, torchs, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=0)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(LEVELS | st.just(math.nan) | st.floats(0, 2), max_size=40),
    st.fixed_dictionaries(OPTIONS),
)
def test_every_lr_is_torchs(values: list[float], options: dict[str, Any]) -> None:
    assert_equal(values, options, LRS[:1])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-2, 2) | st.sampled_from([math.nan, math.inf, -0.5, -1.0]), max_size=40),
    st.fixed_dictionaries(OPTIONS | {"threshold_mode": st.just("abs"), "mode": st.just("min")}),
)
def test_negative_values_are_judged_as_torch_does_in_their_own_unit(
    values: list[float], options: dict[str, Any]
) -> None:
    assert_equal(values, options, LRS[:1])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(LEVELS, max_size=40),
    # eps is a bound for each of torch's groups, but for the first of ours, which takes along others
    st.fixed_dictionaries(
        OPTIONS | {"eps": st.just(0.0), "min_lr": st.sampled_from([0.0, 0.0517])}
    ),
)
def test_groups_keep_their_ratio_as_under_torch_with_floors_in_that_ratio(
    values: list[float], options: dict[str, Any]
) -> None:
    assert_equal(values, options, LRS)


def test_the_defaults_are_torchs() -> None:
    theirs = ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    ours = ReduceOnPlateauSettings()
    assert (ours.mode, ours.watch, theirs.mode) == (None, "loss", "min")
    for name in ("factor", "patience", "threshold", "threshold_mode", "cooldown", "eps"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert theirs.min_lrs == [ours.min_lr]


# --- torch's faults ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "value"), [("min", -1.0), ("max", -1.0)])
def test_an_equal_negative_value_is_no_improvement(mode: str, value: float) -> None:
    options = {"mode": mode, "factor": 0.5, "patience": 1, "threshold": 0.1, "min_lr": 0.0}
    theirs = by_torch([value] * 4, options, (1.0,))
    ours = by_ours([value] * 4, options, (1.0,))
    assert theirs[-1] == [1.0]  # torch takes each for better than the last
    assert [lr for (lr,) in ours] == [1.0, 1.0, 0.5, 0.5]


@settings(max_examples=200, deadline=None)
@given(st.lists(LEVELS.filter(bool), max_size=30), st.fixed_dictionaries(OPTIONS))
def test_negative_values_mirror_positive_ones(values: list[float], options: dict[str, Any]) -> None:
    """To fall from -1 takes -1 - threshold, as to rise from 1 takes 1 + threshold."""
    mirrored = options | {"mode": "max" if options["mode"] == "min" else "min"}
    ours = by_ours(values, options, LRS)
    assert by_ours([-value for value in values], mirrored, LRS) == ours


def test_an_infinite_value_is_no_best_that_nothing_can_beat() -> None:
    options = {"factor": 0.5, "patience": 0, "min_lr": 0.0}
    values = [-math.inf, 3.0, 2.0, 1.0]
    assert by_torch(values, options, (1.0,))[-1] == [0.125]
    assert by_ours(values, options, (1.0,))[-1] == [0.5]
