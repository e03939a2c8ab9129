"""Plan: what is written is what is read, without torch, and damage is told in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compose_cases import measurements, pilot, plan_of, recipe_with, request_of

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.plan import PLAN_FILE, Plan
from anybatch.run import Run, write_json

PLAN = plan_of()
FAR = plan_of(
    request_of(target="accuracy>=0.9999"), measurements(pilot=pilot(slope=0.01, distance=0.5))
)


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("plan", [PLAN, FAR], ids=["reached", "far"])
def test_a_plan_comes_back_from_strict_json(plan: Plan) -> None:
    text = json.dumps(plan.to_dict(), allow_nan=False)
    values = json.loads(text, parse_constant=refuse_constant)
    again = Plan.from_dict(values)
    assert again == plan
    assert json.dumps(again.to_dict()) == text
    assert Plan.from_dict({"schema": 1} | values) == plan
    assert "folder" not in values


def test_words_never_leave_a_number_bare() -> None:
    first, second, third, *_ = PLAN.lines()
    assert first.startswith(f"batch size {PLAN.batch_size:,} (any of ")
    assert second.startswith(f"lr {PLAN.recipe.optimizer.lr:.3g} (")
    assert ", 95 %) with sgd" in second
    assert third.count("80 %") == 2
    assert "not known" in FAR.lines()[2] or "at least" in FAR.lines()[2]
    assert "None" not in "\n".join(FAR.lines())
    for name in ("batch-size", "lr", "schedule"):
        assert name in {reason.name for reason in PLAN.reasons}
    assert "batch size" in PLAN._repr_html_()


def test_an_unknown_time_is_said_once_and_a_plan_without_a_pilot_blames_no_target() -> None:
    told = FAR.lines()
    assert told[2].count("not known") == 1
    assert not any(line.count("not known") > 1 for line in told)
    early = dataclasses.replace(FAR, partial="ended by Ctrl-C during the lr range", pilot={})
    assert early.lines()[3].endswith(": not known: it ended before a pilot that tells")


def test_a_present_choice_of_unknown_seconds_still_has_its_excess() -> None:
    request = dataclasses.replace(FAR.request, recipe=dataclasses.replace(
        FAR.request.recipe, batch_size=FAR.batch_size + 1))  # fmt: skip
    excess = Estimate(value=0.5, low=0.25, high=1.0, unit="of the seconds", level=0.8)
    predictions = dict(FAR.predictions) | {"excess_of_present": excess}
    told = dataclasses.replace(FAR, request=request, predictions=predictions).lines()[-1]
    assert f"pilot: +50 % time (+25 to +100, 80 %) than at {FAR.batch_size:,}" in told


def test_the_learning_rate_has_its_interval_or_is_said_to_have_none() -> None:
    def second(low: float, high: float) -> str:
        lr = Estimate(value=0.559, low=low, high=high, level=0.95)
        return dataclasses.replace(PLAN, predictions=dict(PLAN.predictions) | {"lr": lr}).lines()[1]

    assert "(0.25 to 1, 95 %) with sgd" in second(0.25, 1.0)
    assert "(0.25 or more, 95 %) with sgd" in second(0.25, math.inf)
    assert "(not measured) with sgd" in second(0.0, math.inf)


def test_a_batch_size_outside_of_the_near_optimal_ones_is_not_said_to_be_one_of_them() -> None:
    kept = dataclasses.replace(PLAN, near_optimal=(PLAN.batch_size + 1, PLAN.batch_size + 2))
    assert "any of" not in kept.lines()[0]
    assert "not worth the move" in kept.lines()[0]


def test_what_would_change_it_is_told() -> None:
    assert any("critical batch size 4 times as large" in line for line in PLAN.would_change)
    assert any("mostly because of" in line for line in PLAN.would_change)


def test_the_whole_set_is_a_number_of_examples() -> None:
    request = request_of(recipe_with(batch_size="full"))
    assert request.present_batch_size == 50_000


def test_it_is_drawn_from_its_prices() -> None:
    times = PLAN.times()
    assert len(times.batch_sizes) == len(times.seconds) == len(times.low) == len(times.high)
    assert times.chosen == PLAN.batch_size
    assert times.present == 128
    assert PLAN.plot() is not None
    assert FAR.times().batch_sizes == ()


def written(folder: Path, values: Any) -> Run:
    write_json(folder / "recipe.json", PLAN.to_dict()["recipe"])
    (folder / PLAN_FILE).write_text(values if isinstance(values, str) else json.dumps(values))
    return Run(folder)


def changed(*path: Any, to: Any = None, without: bool = False) -> dict[str, Any]:
    values: Any = json.loads(json.dumps(PLAN.to_dict()))
    place = values
    for key in path[:-1]:
        place = place[key]
    if without:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return dict(values)


DAMAGED: dict[str, Any] = {
    "empty": "",
    "cut": json.dumps(PLAN.to_dict())[:5000],
    "a list": "[]",
    "nothing": {},
    "no request": changed("request", without=True),
    "another request": changed("request", to="all"),
    "a key too many": changed("colour", to="red"),
    "predictions as a list": changed("predictions", to=[]),
    "no seconds": changed("predictions", "seconds", without=True),
    "a prediction as text": changed("predictions", "seconds", to="soon"),
    "an end as text": changed("predictions", "seconds", "low", to="soon"),
    "an interval that leaves its value": changed("predictions", "seconds", "low", to=1e9),
    "sizes as text": changed("near_optimal", to=["many"]),
    "a recipe that is none": changed("recipe", "batch_size", to=-3),
    "prices as a number": changed("prices", to=7),
    "a price without seconds": changed("prices", 0, "seconds", without=True),
    "a reason without a sentence": changed("reasons", 0, "sentence", without=True),
    "no findings": changed("findings", to=None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_in_one_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    run = written(tmp_path, DAMAGED[name])
    with pytest.raises(InputError) as caught:
        _ = run.plan
    assert str(tmp_path / PLAN_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_one_is_read_with_its_folder(tmp_path: Path) -> None:
    run = written(tmp_path, PLAN.to_dict())
    assert run.plan == PLAN
    assert run.plan is not None
    assert run.plan.folder == str(tmp_path)
    (tmp_path / PLAN_FILE).unlink()
    assert run.plan is None


def test_it_is_read_without_torch_or_numpy(tmp_path: Path) -> None:
    written(tmp_path, PLAN.to_dict())
    code = (
        "import sys, anybatch as ab\n"
        f"plan = ab.Run({str(tmp_path)!r}).plan\n"
        "print(plan.batch_size, len(plan.lines()))\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) == PLAN.batch_size


def test_ends_without_end_are_kept() -> None:
    endless = [e for e in FAR.predictions.values() if e.high == math.inf]
    assert endless
    again = Plan.from_dict(json.loads(json.dumps(FAR.to_dict(), allow_nan=False)))
    assert [e for e in again.predictions.values() if e.high == math.inf] == endless
    assert all(isinstance(e, Estimate) for e in again.predictions.values())
