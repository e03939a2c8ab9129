"""Controllers: patience counts, remembers, and is not impressed by numbers that are not finite."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.controllers import Patience
from anybatch.records import EvalRecord


def decisions(patience: Patience, values: list[float]) -> list[bool]:
    return [patience.judge(value) for value in values]


@pytest.mark.parametrize(
    ("evaluations", "direction", "min_delta", "values", "expected"),
    [
        (1, "max", 0.0, [0.5, 0.5], [False, True]),
        (2, "max", 0.0, [0.5, 0.4, 0.4], [False, False, True]),
        (2, "max", 0.0, [0.5, 0.4, 0.6, 0.5, 0.5], [False, False, False, False, True]),
        (2, "min", 0.0, [0.5, 0.4, 0.45, 0.41], [False, False, False, True]),
        (1, "max", 0.1, [0.5, 0.59, 0.7], [False, True, False]),
        (1, "min", 0.1, [0.5, 0.41], [False, True]),
        (2, "max", 0.0, [math.nan, 0.1, math.inf, math.nan], [False, False, False, True]),
        (1, "min", 0.0, [-math.inf, 3.0], [True, False]),
    ],
)
def test_patience_ends_after_that_many_evaluations_without_improvement(
    evaluations, direction, min_delta, values, expected
) -> None:
    patience = Patience(evaluations=evaluations, direction=direction, min_delta=min_delta)
    assert decisions(patience, values) == expected


def test_patience_observes_the_metric_and_not_the_loss() -> None:
    patience = Patience(evaluations=1, direction="max")
    for metric, loss, ends in ((0.5, 1.0, False), (0.6, 2.0, False), (0.6, 0.1, True)):
        record = EvalRecord(
            update=1, examples=1, epoch=1.0, split="validation", loss=loss, metric=metric,
            metric_name="accuracy", seconds=0.0, evaluation_seconds=0.0,
        )  # fmt: skip
        assert patience.observe(record) is ends


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=12), st.integers(0, 12), st.integers(1, 4))
def test_patience_resumed_anywhere_decides_the_same(
    values: list[float], cut: int, evaluations: int
) -> None:
    whole = decisions(Patience(evaluations=evaluations, direction="max"), values)
    first = Patience(evaluations=evaluations, direction="max")
    before = decisions(first, values[:cut])
    second = Patience(evaluations=evaluations, direction="max")
    second.load_state_dict(first.state_dict())
    assert before + decisions(second, values[cut:]) == whole


def test_the_state_is_plain_values() -> None:
    patience = Patience(evaluations=3, direction="max")
    patience.judge(0.5)
    patience.judge(0.4)
    state = json.loads(json.dumps(patience.state_dict()))
    assert state == {"best": 0.5, "without_improvement": 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), max_size=12), st.integers(1, 4))
def test_less_is_better_mirrors_more_is_better(values: list[float], evaluations: int) -> None:
    more = decisions(Patience(evaluations=evaluations, direction="max"), values)
    less = decisions(Patience(evaluations=evaluations, direction="min"), [-v for v in values])
    assert more == less
