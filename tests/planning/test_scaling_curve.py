"""What is foretold of each method on many ranks, and the updates to a target that it is told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import LINK, block, kfac_work, stage_times, work
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import throughput

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Measurement
from anybatch.plan import PLAN_FILE, Plan, PlanRequest, Price
from anybatch.planning.arithmetic.scaling_curve import (
    METHODS,
    KnownUpdates,
    ScalingRequest,
    break_even,
    predict_scaling,
)
from anybatch.planning.arithmetic.updates_model import UpdatesCurve
from anybatch.planning.foretell_scaling import chosen_link, with_prediction
from anybatch.planning.known_updates import known_updates, method_of
from anybatch.recipe import (
    AdamSettings,
    KFACSettings,
    LARSSettings,
    LocalUpdates,
    Recipe,
    SGDSettings,
)
from anybatch.run import write_json

CURVE = UpdatesCurve(fewest_updates=100.0, critical_batch_size=1000.0)
KNOWN = KnownUpdates(curve=CURVE, smallest=64, largest=512, target="accuracy>=0.9")
WORK = work(kfac=kfac_work(*(block(name, 0.01) for name in "abcd")))


def test_every_method_on_every_number_of_ranks() -> None:
    found = predict_scaling(WORK, LINK, ScalingRequest(ranks=(1, 4, 64), batch_size=256))
    assert [(p.method, p.ranks) for p in found] == [(m, r) for m in METHODS for r in (1, 4, 64)]
    assert {p.batch_size for p in found} == {256}
    without = predict_scaling(work(), LINK, ScalingRequest(ranks=(1,), batch_size=256))
    assert [p.method for p in without] == ["sgd", "lars", "local-sgd"]


def test_a_batch_for_each_rank_grows_with_them() -> None:
    found = predict_scaling(WORK, LINK, ScalingRequest(ranks=(1, 4), batch_size_per_rank=32))
    sgd = [p for p in found if p.method == "sgd"]
    assert [p.batch_size for p in sgd] == [32, 128]
    assert sgd[0].stages.forward == sgd[1].stages.forward


def test_ranks_without_an_example_are_left_out() -> None:
    found = predict_scaling(WORK, LINK, ScalingRequest(ranks=(4, 64, 4), batch_size=8))
    assert [p.ranks for p in found] == [4] * len(METHODS)
    with pytest.raises(InputError, match="must leave an example for each rank, got 8"):
        predict_scaling(WORK, LINK, ScalingRequest(ranks=(64,), batch_size=8))


def test_seconds_to_the_target_where_updates_are_known() -> None:
    request = ScalingRequest(ranks=(1, 8, 32), batch_size_per_rank=32)
    found = predict_scaling(WORK, LINK, request, updates={"lars": KNOWN})
    lars = [p for p in found if p.method == "lars"]
    for prediction in lars:
        updates = 100.0 * (1.0 + 1000.0 / prediction.batch_size)
        assert prediction.updates == pytest.approx(updates)
        assert prediction.seconds_to_target == pytest.approx(updates * prediction.stages.total)
    assert [p.extrapolated for p in lars] == [True, False, True]
    assert {p.seconds_to_target for p in found if p.method != "lars"} == {None}


def test_break_even_is_the_ratio_of_seconds() -> None:
    found = predict_scaling(WORK, LINK, ScalingRequest(ranks=(1, 4), batch_size=64))
    seconds = {(p.method, p.ranks): p.stages.total for p in found}
    shares = break_even(found, "kfac")
    assert shares == {r: seconds["sgd", r] / seconds["kfac", r] for r in (1, 4)}
    assert all(share < 1.0 for share in shares.values())
    assert break_even([p for p in found if p.method != "sgd"], "kfac") == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranks": (), "batch_size": 8}, "ranks must be numbers of ranks, each >= 1"),
        ({"ranks": (0,), "batch_size": 8}, "ranks must be numbers of ranks, each >= 1"),
        ({"ranks": (1,)}, "not both"),
        ({"ranks": (1,), "batch_size": 8, "batch_size_per_rank": 8}, "not both"),
        ({"ranks": (1,), "batch_size": 0}, "batch_size must be >= 1"),
        ({"ranks": (1,), "batch_size": 8, "local_every": 0}, "local_every must be >= 1"),
    ],
)
def test_a_request_that_asks_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScalingRequest(**values)


# --- the measurement with its prediction ---------------------------------------------------------


def test_the_link_is_given_measured_or_assumed() -> None:
    alone = throughput(all_reduce=None, world_size=1)
    link, source = chosen_link(alone)
    assert (link.latency_seconds, 1.0 / link.seconds_per_byte) == pytest.approx((10e-6, 12.5e9))
    assert source.startswith("assumed")
    values = {"latency_seconds": 2e-3, "seconds_per_byte": 3e-9, "bytes": 4e6}
    pair = throughput(all_reduce=values, world_size=2)
    link, source = chosen_link(pair, bytes_per_second=1e9)
    assert (link.latency_seconds, link.seconds_per_byte) == pytest.approx((1e-3, 1e-9))
    assert source == "bandwidth as given, the rest measured between these ranks"
    assert chosen_link(alone, latency_seconds=0.0, bytes_per_second=1e9).source == "as given"


def test_the_prediction_is_kept_as_columns_that_strict_json_holds() -> None:
    curve, stages = throughput(all_reduce=None, world_size=1), stage_times()
    request = ScalingRequest(ranks=(1, 8), batch_size=64)
    found, predictions = with_prediction(
        curve, stages, chosen_link(curve), request, updates={"sgd": KNOWN}
    )
    again = Measurement.from_dict(found.to_dict())
    assert str(again) == str(found)
    assert found.settings["targets"] == {"sgd": "accuracy>=0.9"}
    assert len(found.fitted["ranks"]) == len(predictions) == 8
    for row, prediction in enumerate(predictions):
        assert METHODS[int(found.fitted["method"][row])] == prediction.method
        assert found.fitted["seconds_per_update"][row] == prediction.stages.total
        assert found.fitted["inversion"][row] == prediction.stages.inversion
        known = prediction.method == "sgd"
        assert math.isfinite(found.fitted["seconds_to_target"][row]) == known


def test_a_prediction_is_drawn_as_stacked_bars() -> None:
    from matplotlib.figure import Figure

    from anybatch.drawings.stage_times import draw_reach, draw_stages

    curve = throughput(all_reduce=None, world_size=1)
    request = ScalingRequest(ranks=(1, 8), batch_size=64)
    found, predictions = with_prediction(curve, stage_times(), chosen_link(curve), request)
    bars, lines = Figure().subplots(1, 2)
    draw_stages(bars, found.measured)
    tops: dict[float, float] = {}
    for patch in bars.patches:
        top = patch.get_y() + patch.get_height()
        tops[patch.get_x()] = max(tops.get(patch.get_x(), 0.0), top)
    assert sorted(tops.values()) == pytest.approx(sorted(1e3 * p.stages.total for p in predictions))
    draw_reach(lines, found.measured)
    assert lines.get_ylabel() == "examples per second, predicted"
    sgd = next(p for p in predictions if p.method == "sgd")
    assert lines.get_lines()[0].get_ydata()[0] == pytest.approx(64 / sgd.stages.total)
    low, high = lines.get_ylim()
    told = [tick.get_text() for tick in lines.get_yticklabels()]
    assert len(told) >= 2
    assert all(low <= place <= high for place in lines.get_yticks())
    assert max(map(len, told)) <= 6


@given(st.floats(1e-6, 1e12), st.floats(1.001, 1e10))
def test_a_log_axis_has_a_few_labels_inside(low: float, ratio: float) -> None:
    from anybatch.drawings.stage_times import log_ticks, short_number

    found = log_ticks(low, low * ratio)
    assert 2 <= len(found) <= 12
    assert found == sorted(set(found))
    assert all(low * (1 - 1e-6) <= place <= low * ratio * (1 + 1e-6) for place in found)
    assert len(set(map(short_number, found))) == len(found)


# --- updates that were measured before -----------------------------------------------------------


def test_whose_updates_they_are_follows_from_the_recipe() -> None:
    plain = Recipe(optimizer=SGDSettings(lr=0.1))
    assert method_of(plain) == "sgd"
    assert method_of(dataclasses.replace(plain, optimizer=LARSSettings(lr=1.0))) == "lars"
    local = dataclasses.replace(plain, communication=LocalUpdates(every=4))
    assert method_of(local) == "local-sgd"
    assert method_of(dataclasses.replace(plain, preconditioner=KFACSettings())) == "kfac"
    with pytest.raises(InputError, match="must have been trained with SGD, LARS"):
        method_of(dataclasses.replace(plain, optimizer=AdamSettings(lr=1e-3)))


def test_a_folder_without_updates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be the folder of a study of batch sizes"):
        known_updates(tmp_path)


def test_a_plan_tells_its_medians_on_its_own_ranks(tmp_path: Path) -> None:
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=64)
    request = PlanRequest(
        task={},
        num_examples=1000,
        num_validation=100,
        target="accuracy>=0.9",
        kind="classification",
        metric_name="accuracy",
        metric_direction="max",
        recipe=recipe,
    )

    def estimate(value: float | None) -> Estimate:
        return Estimate(value=value, low=0.0, reason="" if value else "not reached")

    prices = [
        Price(
            batch_size=size,
            ranks=ranks,
            updates=estimate(updates),
            seconds=estimate(1.0),
            device_hours=estimate(1.0),
            near_optimal=False,
        )
        for size, ranks, updates in (
            (32, 1, float(CURVE.updates(32))),
            (512, 1, float(CURVE.updates(512))),
            (1024, 1, None),
            (2048, 8, 1.0),
        )
    ]
    named = dict.fromkeys(("updates", "examples", "seconds", "batch_size", "lr"), estimate(1.0))
    plan = Plan(
        request=request, recipe=recipe, predictions=named, near_optimal=(), prices=tuple(prices)
    )
    write_json(tmp_path / PLAN_FILE, plan.to_dict())
    for path in (tmp_path, tmp_path / PLAN_FILE):
        method, known = known_updates(path)
        assert (method, known.target) == ("sgd", "accuracy>=0.9")
        assert (known.smallest, known.largest) == (32, 512)
        assert known.curve.updates(128) == pytest.approx(CURVE.updates(128), rel=1e-3)
