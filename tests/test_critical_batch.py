"""The arithmetic of the batch-size benchmarks: what is looked at, chosen, named and written."""

import dataclasses
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import critical_batch_reach
from benchmarks.article2_blow_up import name_event
from benchmarks.article2_page import filled
from benchmarks.article2_tables import events, fixed_table, seconds_of, tuned_table, verdict_of
from benchmarks.critical_batch_reach import (
    GROWTH,
    Goal,
    evaluation_points,
    reach,
    stored_reach,
    tuned_exponent,
)
from benchmarks.critical_batch_tables import critical_table, critical_verdict
from torch import nn

from anybatch import ComputeSettings, Recipe, SGDSettings, Task, updates
from anybatch.run import read_json

RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.5, momentum=0.5),
    batch_size=4,
    duration=updates(1),
    compute=ComputeSettings(threads=1),
)


def separable_task() -> Task:
    torch.manual_seed(0)
    targets = torch.arange(200) % 2
    inputs = torch.randn(200, 2) + 3.0 * (2.0 * targets - 1.0)[:, None]
    return Task(
        build_model=lambda: nn.Linear(2, 2), train=(inputs, targets), test=(inputs, targets)
    )


# --- what is looked at --------------------------------------------------------------------------


def test_evaluations_stand_5_percent_apart_and_end_at_the_cap() -> None:
    points = list(evaluation_points(100, 10_000))
    assert points[0] == 100
    assert points[-1] == 10_000
    ratios = [after / before for before, after in itertools.pairwise(points[:-1])]
    assert all(GROWTH <= ratio < GROWTH + 0.011 for ratio in ratios)


def test_reach_names_the_first_evaluation_at_the_goal() -> None:
    goal = Goal(error=0.02, split="test", first_examples=8, first_updates=1)
    told = reach(separable_task(), RECIPE, goal, cap=400)
    assert told["status"] == "reached"
    assert told["updates"] == told["taken"]
    errors = [whole for _, _, whole in told["evaluations"]]
    assert errors[-1] <= 0.02
    assert all(error > 0.02 for error in errors[:-1])


def test_reach_goes_on_to_the_cap_where_asked_and_keeps_the_first_evaluation() -> None:
    goal = Goal(error=0.02, split="test", first_examples=8, first_updates=1, kept_losses=7)
    first = reach(separable_task(), RECIPE, goal, cap=300)["updates"]
    further = dataclasses.replace(goal, goes_on=True)
    on = reach(separable_task(), RECIPE, further, cap=300)
    assert (len(on["losses"]), len(on["hundreds"])) == (7, 3)
    assert (on["updates"], on["taken"], on["status"]) == (first, 300, "reached")


def test_reach_tells_the_cap_and_a_divergence() -> None:
    never = Goal(error=-1.0, first_examples=8, first_updates=1)
    assert reach(separable_task(), RECIPE, never, cap=20)["status"] == "cap"
    wild = dataclasses.replace(RECIPE, optimizer=SGDSettings(lr=1e38, momentum=0.9))
    told = reach(separable_task(), wild, never, cap=200)
    assert told["status"] == "diverged"
    assert told["updates"] is None
    assert told["taken"] < 200


def test_the_whole_split_is_read_only_near_the_target() -> None:
    goal = Goal(error=0.0, watched=10, margin=0.2, first_examples=4, first_updates=1)
    slow = dataclasses.replace(RECIPE, optimizer=SGDSettings(lr=1e-4))
    for _, watched, whole in reach(separable_task(), slow, goal, cap=60)["evaluations"]:
        assert (whole is None) == (watched > 0.2)


def test_a_stored_training_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = Goal(error=0.02, first_examples=8, first_updates=1)
    path = tmp_path / "one" / "run.json"
    told = stored_reach(path, separable_task(), RECIPE, goal, cap=50)
    monkeypatch.setattr(critical_batch_reach, "reach", None)
    again = stored_reach(path, separable_task(), RECIPE, goal, cap=50)
    assert again == told == read_json(path)


# --- the lr -------------------------------------------------------------------------------------


def tuned(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    needed: dict[tuple[int, int], float],
    centre: int,
) -> tuple[int, list[dict[str, Any]]]:
    """Tune with known answers: (exponent, seed) -> updates; inf where it diverges."""

    def known(path: Path, task: Any, recipe: Recipe, goal: Goal, *, cap: int) -> dict[str, Any]:
        exponent = round(math.log2(recipe.optimizer.lr))
        updates_needed = needed.get((exponent, recipe.seed), math.inf)
        if updates_needed <= cap:
            return {"updates": updates_needed, "status": "reached", "seed": recipe.seed}
        status = "diverged" if math.isinf(updates_needed) else "cap"
        return {"updates": None, "status": status, "seed": recipe.seed}

    monkeypatch.setattr(critical_batch_reach, "stored_reach", known)
    goal = Goal(error=0.02)
    return tuned_exponent(tmp_path, separable_task(), RECIPE, goal, cap=1000, centre=centre)


@pytest.mark.parametrize("centre", [-8, -5, -3, -1])
def test_the_best_lr_is_found_from_wherever_the_grid_begins(
    centre: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 updates at 2^-7 down to 200 at 2^-5; 2^-3 and above diverge."""
    curve = {-8: 900, -7: 600, -6: 350, -5: 200, -4: 260}
    needed = {(e, seed): count for e, count in curve.items() for seed in (100, 101)}
    assert tuned(tmp_path, monkeypatch, needed, centre)[0] == -5


def test_the_second_seed_can_turn_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {(-5, 100): 200, (-6, 100): 210, (-4, 100): 290, (-5, 101): 390, (-6, 101): 220}
    exponent, told = tuned(tmp_path, monkeypatch, needed, -5)
    assert exponent == -6
    assert [run["seed"] for run in told].count(101) == 2


def test_no_lr_that_reaches_the_goal_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="no lr from"):
        tuned(tmp_path, monkeypatch, {}, -5)


# --- names of what happened ---------------------------------------------------------------------

FALL = [2.3, 1.0, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("hundreds", "name", "update"),
    [
        ([*FALL, 0.3, 0.1, 0.2], "none", None),
        ([*FALL, 2.31, 0.2, 0.2, 0.2, 0.2], "spikes", 800),
        ([*FALL, 2.3, 2.3, 2.31, 2.3, 2.3], "collapse", 800),
        ([*FALL, 50.0, 80.0, 900.0, 1e4, 1e5], "blow-up", 800),
        ([*FALL, 5.0, None], "blow-up", 900),
        ([2.3] * 20, "none", None),
    ],
)
def test_events_of_a_training_are_named(
    hundreds: list[float | None], name: str, update: int | None
) -> None:
    told = name_event(hundreds)
    assert (told.name, told.update) == (name, update)


# --- tables -------------------------------------------------------------------------------------

STEP = {"compute": 0.5, "resident": 0.1, "DataLoader": 0.8, "DataLoader, 2 workers": 0.6}


def run_of(count: int | None, cap: int = 900) -> dict[str, Any]:
    taken = count or cap
    error = 0.02 if count else 0.07
    return {"updates": count, "taken": taken, "cap": cap, "evaluations": [[taken, error, error]],
            "hundreds": FALL, "status": "reached" if count else "cap"}  # fmt: skip


def cells(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seconds_add_loading_in_the_same_process_and_overlap_with_workers() -> None:
    assert seconds_of(STEP, "resident set") == pytest.approx(0.6)
    assert seconds_of(STEP, "DataLoader") == pytest.approx(1.3)
    assert seconds_of(STEP, "DataLoader, 2 workers") == 0.6


def test_the_fixed_table_counts_a_seed_that_missed_as_the_longest() -> None:
    results = {
        "fixed-60-0": run_of(100), "fixed-60-1": run_of(None), "fixed-60-2": run_of(300),
        "fixed-600-0": run_of(None), "fixed-600-1": run_of(40), "fixed-600-2": run_of(None),
        "step-times": {"seconds": {"60": STEP, "600": STEP}},
    }  # fmt: skip
    row = cells(fixed_table(results), "60")
    assert row[1:3] == ["2 of 3", "300 (100, 300)"]
    assert row[4:] == ["150.0", "180.0", "390.0", "180.0"]
    assert cells(fixed_table(results), "600")[1:3] == [
        "1 of 3", "not within 900 (accuracy 98.00% there)"
    ]  # fmt: skip


def test_the_verdict_names_the_quickest_and_both_ends() -> None:
    slow = STEP | {"compute": 4.0, "DataLoader": 0.1}
    results = {
        "fixed-6-0": run_of(100), "fixed-60-0": run_of(90), "fixed-1-0": run_of(None),
        "fixed-60000-0": run_of(None, 100),
        "step-times": {"seconds": {"1": STEP, "6": STEP, "60": slow, "60000": slow}},
    }  # fmt: skip
    said = verdict_of(results)
    assert "with the DataLoader batch size 6 is quickest (130.0 s)" in said
    assert "batch size 1 reaches 98 % with 0 of 1 seeds (events: 1 none)" in said
    assert "60,000 reaches 98 % with 0 of 1 within 100 updates" in said


def test_a_divergence_is_a_blow_up_also_before_a_full_hundred() -> None:
    results = {"fixed-1-0": run_of(None) | {"status": "diverged"}, "fixed-1-1": run_of(40)}
    row = cells(events(results), "lenet")
    assert row[1:5] == ["2", "900, 40", "1 blow-up, 1 none", "800"]


def test_tables_of_nothing_say_so() -> None:
    assert fixed_table({}) == tuned_table({}) == "Not measured yet."
    assert verdict_of({}) == "too little yet"
    assert critical_verdict({}) == "too few batch sizes yet"


def batch_of(size: int, counts: list[int | None]) -> dict[str, Any]:
    runs = [{"updates": count} for count in counts]
    return {"batch_size": size, "lr": 2.0**-5, "runs": runs}


def test_the_critical_batch_size_of_a_known_curve_is_told() -> None:
    """S = 100 (1 + 200 / B): three equal seeds a size; one that missed is left out and counted."""
    sizes = (8, 32, 128, 512, 2048)
    results = {
        f"batch-{size}": batch_of(size, [round(100 * (1 + 200 / size))] * 3) for size in sizes
    }
    results["batch-32"]["runs"][0]["updates"] = None
    said = critical_verdict(results)
    found = re.search(r"B_crit ([\d.,]+) \(", said)
    assert found is not None
    assert float(found.group(1).replace(",", "")) == pytest.approx(200, rel=0.05)
    assert said.startswith("holds:")
    assert cells(critical_table(results), "32")[2] == "2 of 3"


# --- the page -----------------------------------------------------------------------------------


def test_generated_parts_replace_only_what_is_theirs() -> None:
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y --><!-- end y -->\n"
    once = filled(text, {"x": "1\n2"})
    assert once == text.replace("\nold\n", "\n\n1\n2\n\n")
    assert filled(once, {"x": "1\n2"}) == once
    with pytest.raises(ValueError, match="z must have one place, has 0"):
        filled(text, {"z": "?"})
