"""Controllers count, remember, and are not impressed by numbers that are not finite."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.controllers import Patience, ReduceOnPlateau
from anybatch.errors import InputError
from anybatch.recipe import ReduceOnPlateauSettings
from anybatch.records import EvalRecord, EventRecord


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


# --- plateau: equality with torch is in tests/reference/test_torch_plateau.py --------------------


def plateau_of(**changes: Any) -> ReduceOnPlateau:
    return ReduceOnPlateau(ReduceOnPlateauSettings(**({"patience": 1, "factor": 0.5} | changes)))


def evaluation(*, loss: float = 1.0, metric: float = 0.5, examples: int = 10) -> EvalRecord:
    return EvalRecord(
        update=examples // 10, examples=examples, epoch=examples / 100, split="validation",
        loss=loss, metric=metric, metric_name="accuracy", seconds=0.0, evaluation_seconds=0.0,
    )  # fmt: skip


def test_a_reduction_is_an_event_with_its_reason() -> None:
    plateau = plateau_of(patience=2, factor=0.1)
    for loss in (0.5, 0.312, 0.4, 0.4):
        assert plateau.observe(evaluation(loss=loss), lr=0.1) == 1.0
        assert plateau.event is None
    assert plateau.observe(evaluation(loss=math.nan, examples=70), lr=0.1) == 0.1
    sentence = "lr 0.1 -> 0.01: validation loss has not improved on 0.312 in 3 evaluations"
    values = {"lr_before": 0.1, "lr_after": 0.1 * 0.1, "factor": 0.1, "best": 0.312}
    assert plateau.event == EventRecord(
        update=7, examples=70, epoch=0.7, name="lr-reduced", sentence=sentence,
        values=values | {"evaluations": 3},
    )  # fmt: skip
    plateau.observe(evaluation(loss=0.4), lr=0.01)
    assert plateau.event is None  # the last observation did nothing


def test_the_metric_is_watched_in_its_own_direction_or_in_the_one_given() -> None:
    settings_ = ReduceOnPlateauSettings(watch="metric", patience=0, factor=0.5)
    with pytest.raises(InputError, match='must be "min" or "max"'):
        ReduceOnPlateau(settings_)
    accuracies = [0.5, 0.6, 0.6]
    rising = ReduceOnPlateau(settings_, metric_direction="max")
    records = [evaluation(metric=value, loss=9.0) for value in accuracies]
    assert [rising.observe(record) for record in records] == [1.0, 1.0, 0.5]
    assert rising.event is not None
    assert "validation accuracy has not improved on 0.6 in 1 evaluation" in rising.event.sentence
    falling = plateau_of(watch="metric", patience=0, mode="min")
    assert [falling.observe(record) for record in records] == [1.0, 0.5, 0.25]


def test_what_was_never_finite_is_said_so() -> None:
    plateau = plateau_of(watch="metric", mode="max")
    for _ in range(2):
        plateau.observe(evaluation(metric=math.nan))
    assert plateau.event is not None
    assert plateau.event.sentence.endswith(
        "validation accuracy has not been finite in 2 evaluations"
    )


def test_evaluations_before_the_beginning_are_not_looked_at() -> None:
    plateau = ReduceOnPlateau(
        ReduceOnPlateauSettings(patience=0, factor=0.5), begin_after_examples=30
    )
    records = [evaluation(loss=0.1 * n, examples=10 * n) for n in range(1, 6)]
    # 0.1 and 0.2 came before; 0.3 is the first best, 0.4 no improvement on it
    assert [plateau.observe(record) for record in records] == [1.0, 1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"min_lr": 0.03}, [0.1, 0.05, 0.03, 0.03, 0.03]),  # the last step is shortened
        ({"min_lr": 0.2}, [0.1, 0.1, 0.1, 0.1, 0.1]),  # never raised to it
        ({"eps": 0.03}, [0.1, 0.05, 0.05, 0.05, 0.05]),
        ({"cooldown": 1}, [0.1, 0.05, 0.05, 0.025, 0.025]),
    ],
)
def test_floor_smallest_change_and_cooldown(changes: dict[str, Any], expected: list[float]) -> None:
    plateau = plateau_of(patience=0, **changes)
    lrs, events = [], 0
    for _ in expected:
        plateau.observe(evaluation(), lr=0.1 * plateau.factor)
        lrs.append(0.1 * plateau.factor)
        events += plateau.event is not None
    assert lrs == pytest.approx(expected, rel=1e-12)
    assert events == len(set(expected)) - 1  # no event without a change


def test_at_the_floor_rounding_is_no_reduction() -> None:
    for base in (0.1 + 0.001 * n for n in range(400)):  # some floors are missed by rounding
        plateau = plateau_of(patience=0, min_lr=0.05, eps=0.0, factor=0.3)
        factors = [plateau.judge(1.0, base * plateau.factor) for _ in range(6)]
        assert len(set(factors)) == (2 if base * 0.3 <= 0.05 else 3)
        assert base * factors[-1] == pytest.approx(0.05, rel=1e-12)


NUMBERS = st.sampled_from([0.1, 0.5, 0.9, math.nan]) | st.floats(-1, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, max_size=20), st.integers(0, 20), st.integers(0, 2), st.integers(0, 2))
def test_a_plateau_resumed_anywhere_decides_the_same(
    values: list[float], cut: int, patience: int, cooldown: int
) -> None:
    def new() -> ReduceOnPlateau:
        return plateau_of(patience=patience, cooldown=cooldown, min_lr=0.1)

    def factors(plateau: ReduceOnPlateau, part: list[float]) -> list[float]:
        return [plateau.judge(value, plateau.factor) for value in part]

    first, second = new(), new()
    before = factors(first, values[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + factors(second, values[cut:]) == factors(new(), values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\), got 0.0"),
        ({"patience": -1}, "patience must be >= 0, got -1"),
        ({"patience": 1.5}, "patience must be a whole number, got 1.5"),
        ({"cooldown": -1}, "cooldown must be >= 0, got -1"),
        ({"threshold": 1.0}, "threshold must be < 1 where relative, got 1.0"),
        ({"threshold": math.nan}, "threshold must be >= 0, got nan"),
        ({"min_lr": -0.1}, "min_lr must be >= 0, got -0.1"),
        ({"eps": math.inf}, "eps must be >= 0, got inf"),
        ({"mode": "auto"}, "mode must be one of: min, max or None, got 'auto'"),
        ({"watch": "accuracy"}, "watch must be one of: loss, metric, got 'accuracy'"),
    ],
)
def test_settings_out_of_bounds_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plateau_of(**changes)


def test_an_absolute_threshold_may_be_large() -> None:
    plateau = plateau_of(threshold=5.0, threshold_mode="abs", patience=0)
    assert [plateau.judge(value) for value in (100.0, 96.0, 90.0)] == [1.0, 0.5, 0.5]
