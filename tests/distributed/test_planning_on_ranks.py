"""Two processes plan a tiny task: one plan, one folder, and a run that both begin at its pilot."""

from __future__ import annotations

import json
from pathlib import Path

import plan_on_ranks
import pytest
from launching import launch

from anybatch.plan import Plan
from anybatch.planning import compose
from anybatch.planning.compose import Composer
from anybatch.run import Run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    launch(2, plan_on_ranks.__file__, str(folder), seconds_allowed=120.0)
    return folder


def test_both_ranks_have_the_same_plan_which_follows_from_the_folder(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "_NUM_DRAWS", 100)
    texts = [(two_ranks / f"plan-{rank}.json").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    run, plan = Run(two_ranks / "plan"), Plan.from_dict(json.loads(texts[0]))
    assert run.plan == plan
    assert plan.request.ranks == 2
    assert plan.batch_size % 2 == 0
    assert {"branches", "pilot", "throughput"} <= set(run.measurements())
    again = Composer(plan.request, run.measurements(), interval_factor=plan.interval_factor)
    found = again.plan(procedure=plan.procedure, cost=plan.cost)
    assert found.predictions == plan.predictions
    assert found.recipe == plan.recipe


def test_both_ranks_refuse_a_folder_that_holds_a_plan(two_ranks: Path) -> None:
    texts = {(two_ranks / f"refused-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(texts) == 1
    assert "must be a new or empty folder" in texts.pop()


def test_both_ranks_begin_the_run_where_the_pilot_stands(two_ranks: Path) -> None:
    values = [json.loads((two_ranks / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    assert values[0] == values[1]
    plan = Run(two_ranks / "plan").plan
    assert plan is not None
    assert values[0]["begun"] == plan.pilot["updates"] > 0
    assert Run(two_ranks / "run").status.update > values[0]["begun"]
