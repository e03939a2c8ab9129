"""Reproductions: equal search, paired seeds, verdicts that can be null, trials killed anywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.errors import InputError
from anybatch.reporting.reproduction_effects import effects_of, verdict_on
from anybatch.reporting.reproduction_page import (
    reproduction_page,
    stored_results,
    write_reproduction,
)
from anybatch.run import write_json
from anybatch.studies.reproductions.accumulation import accumulation_errors, combined
from anybatch.studies.reproductions.common import MNIST, quickly
from anybatch.studies.reproductions.folder import ReproductionFolder
from anybatch.studies.reproductions.grids import best_place
from anybatch.studies.reproductions.parts import (
    Contrast,
    Effect,
    SameLR,
    Searched,
    passes_per_example,
)
from anybatch.studies.reproductions.problems import problem_task
from anybatch.studies.reproductions.reproduce import reproduce
from anybatch.studies.reproductions.results import OUTCOME, ArmResult, Results, TrialResult
from anybatch.studies.reproductions.search import Score, best_power, lr_at, next_power
from anybatch.studies.reproductions.table import CLAIMS, claim_named
from anybatch.study import Study

NAMES = [claim.NAME for claim in CLAIMS]
SEEDS = (1, 2, 3)


# --- the search ---------------------------------------------------------------------------------


def searched(error: Callable[[int], float], trials: int) -> dict[int, Score]:
    tried: dict[int, Score] = {}
    while (power := next_power(tried, trials)) is not None:
        assert power not in tried
        value = error(power)
        tried[power] = Score(True) if math.isinf(value) else Score(False, value)
    return tried


@given(best=st.integers(-4, 4), edge=st.integers(0, 6), trials=st.integers(1, 9))
def test_a_search_takes_its_trials_exactly_and_without_a_gap(
    best: int, edge: int, trials: int
) -> None:
    tried = searched(lambda p: math.inf if p > best + edge else abs(p - best) / 10, trials)
    assert len(tried) == trials
    assert max(tried) - min(tried) == trials - 1 or trials == 2
    if trials >= 3 + abs(best):
        assert best_power(tried) == best


def test_a_search_goes_on_beyond_its_edge_but_not_into_divergence() -> None:
    assert sorted(searched(lambda p: -p, 5)) == [-1, 0, 1, 2, 3]
    assert sorted(searched(lambda p: p, 5)) == [-3, -2, -1, 0, 1]
    assert sorted(searched(lambda p: math.inf if p > 0 else -p, 5)) == [-3, -2, -1, 0, 1]
    assert best_power({0: Score(True), 1: Score(True), -1: Score(False, 0.9)}) == -1
    assert best_power({0: Score(False, 0.1), 1: Score(False, 0.1)}) == 0  # the smaller of equals
    assert lr_at(0.1, 3) == 0.8


# --- experiments --------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_fair(name: str, quick: bool) -> None:
    experiment = claim_named(name).experiment(quick=quick)
    arms = experiment.arms
    assert experiment.limits
    assert all(re.fullmatch(r"[a-z0-9.-]+", arm) for arm in arms)
    for contrast in experiment.contrasts:
        assert {contrast.arm, contrast.control} <= set(arms)
    assert len({c.name for c in experiment.contrasts}) == len(experiment.contrasts)
    for arm in arms.values():
        assert arm.recipe.compute.threads == 1  # the same numbers however many processes
        if isinstance(arm.lr, SameLR):
            assert isinstance(arms[arm.lr.arm].lr, Searched)
    if not quick:
        assert experiment.search_trials >= 5
        tests = {arm.problem.test for arm in arms.values()}
        assert tests == {None}  # all 10,000
        is_grid = experiment.picture == "grid"
        assert is_grid or experiment.contrasts or name == "accumulation-exact"


def test_claims_say_what_they_expect_before_they_run() -> None:
    assert len(set(NAMES)) == len(NAMES) == 14
    for claim in CLAIMS:
        for text in (claim.TITLE, claim.SOURCE, claim.CLAIM, claim.PREDICTION):
            assert text
            assert text == text.strip()
    with pytest.raises(InputError, match="did you mean clipping"):
        claim_named("cliping")


def test_passes_count_what_a_penalty_costs() -> None:
    arms = claim_named("block-penalty").experiment(quick=True).arms
    assert passes_per_example(arms["no-penalty"].recipe) == 1
    assert passes_per_example(arms["block-32"].recipe) == 2


def test_the_two_validation_sets_share_nothing_and_test_is_for_the_end() -> None:
    problem = quickly(MNIST)
    tuning = problem_task(problem, "tuning", None)
    final = problem_task(problem, "final", None)
    assert not tuning.has("test")
    assert final.source("test").num_examples == 100

    def images(task: Any, split: str) -> set[bytes]:
        source = task.source(split)
        (batch,) = source.batches([torch.arange(source.num_examples)])
        return {image.numpy().tobytes() for image in batch.inputs}

    assert images(tuning, "train") == images(final, "train")
    assert not images(tuning, "validation") & images(final, "validation")
    assert not images(tuning, "train") & images(tuning, "validation")
    (batch,) = tuning.source("train").batches([torch.arange(3)])
    assert batch.inputs.shape == (3, 1, 16, 16)
    with pytest.raises(InputError, match="must take at most 1437 training examples"):
        problem_task(dataclasses.replace(problem, train=1400), "tuning", None)
    with pytest.raises(InputError, match="side must be a whole multiple or part of 8"):
        problem_task(dataclasses.replace(problem, side=12), "tuning", None)


def test_images_are_made_smaller_by_means_of_blocks() -> None:
    small = problem_task(dataclasses.replace(quickly(MNIST), side=4), "tuning", None)
    same = problem_task(dataclasses.replace(quickly(MNIST), side=8), "tuning", None)
    index = [torch.arange(2)]
    (means,), (whole,) = (list(t.source("train").batches(index)) for t in (small, same))
    blocks = whole.inputs.reshape(2, 1, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(means.inputs, blocks)


# --- accumulation -------------------------------------------------------------------------------


def test_the_wrong_ways_to_accumulate_by_hand() -> None:
    parts = [torch.tensor([4.0]), torch.tensor([8.0]), torch.tensor([12.0])]
    assert combined(parts, "mean-of-means").item() == 8.0
    # 4/3, then + (8 - 4/3)/3 = 32/9, then + (12 - 32/9)/3 = 172/27
    assert combined(parts, "constant-divisor").item() == pytest.approx(172 / 27)
    ones = [torch.ones(1)] * 50
    expected = 1 - (1 - 1 / 50) ** 50
    assert combined(ones, "constant-divisor").item() == pytest.approx(expected, rel=1e-5)


def test_accumulation_is_exact_and_its_errors_are_those_of_the_formulas() -> None:
    arm = claim_named("accumulation-exact").experiment(quick=True).arms["count-weighted-fp64"]
    task = problem_task(arm.problem, "final", None)
    ours = accumulation_errors(task, arm.recipe, "count-weighted", (24, 7))
    assert max(ours["error_equal_parts"], ours["error_unequal_parts"]) < 1e-13
    means = accumulation_errors(task, arm.recipe, "mean-of-means", (24, 7))
    assert means["error_equal_parts"] < 1e-13 < 1e-3 < means["error_unequal_parts"]
    constant = accumulation_errors(task, arm.recipe, "constant-divisor", (24, 7))
    assert min(constant["error_equal_parts"], constant["error_unequal_parts"]) > 0.1


# --- effects and verdicts -----------------------------------------------------------------------


def effect(value: float, low: float, high: float, number: int = 3, **more: Any) -> Effect:
    contrast = Contrast(arm="a", control="b", foretold="more", **more)
    return Effect(contrast=contrast, value=value, low=low, high=high, number=number)


def test_an_effect_is_read_by_its_size_and_its_interval() -> None:
    assert effect(0.02, 0.01, 0.03).reading == "more"
    assert effect(-0.02, -0.03, -0.01).reading == "less"
    assert effect(0.02, -0.01, 0.05).reading == "unresolved"
    assert effect(0.004, 0.003, 0.005).reading == "none"  # resolved, and too small to count
    assert effect(0.02, 0.01, 0.03, number=2).reading == "too few"
    assert effect(0.004, 0.003, 0.005, smallest=0.0).reading == "more"
    assert effect(-0.002, -0.004, 0.0).excludes_loss
    assert not effect(-0.002, -0.006, 0.002).excludes_loss


def results_of(
    name: str, values: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int] = SEEDS
) -> Results:
    """Results of a claim at full size: arm -> quantity -> a value for each seed."""
    experiment = claim_named(name).experiment(quick=False)
    arms = {}
    for arm, settings_ in experiment.arms.items():
        known = values.get(arm, {})
        trials = tuple(
            TrialResult(
                seed=seed,
                outcome="finished",
                values={quantity: v[number] for quantity, v in known.items()},
            )
            for number, seed in enumerate(seeds)
        )
        arms[arm] = ArmResult(
            name=arm, lr=settings_.recipe.optimizer.lr, planned=len(seeds), trials=trials,
            group=settings_.group, place=settings_.place,
        )  # fmt: skip
    return Results(name=name, quick=False, seeds=tuple(seeds), search_trials=5, arms=arms)


def accuracies(**means: float) -> dict[str, dict[str, list[float]]]:
    """Around each mean a spread that pairs share but for a little."""
    return {
        arm.replace("_", "-"): {
            "test_accuracy": [mean - 0.01, mean + 0.01, mean + 0.002 * number],
            "train_loss": [1 - mean, 1 - mean - 0.001, 1 - mean + 0.001],
            "train_accuracy": [mean] * 3,
            "squared_block_gradient_norm": [2 - mean] * 3,
        }
        for number, (arm, mean) in enumerate(means.items())
    }


BATCHES = {
    "equal-epochs": ("full_batch", "sgd", ("sgd_few_updates",)),
    "train-longer": ("full_batch_x10", "full_batch_x1", ("sgd", "full_batch_x30")),
    "clipping": (
        "clip_0.25", "unclipped", ("clip_0.1", "clip_1", "normalized", "unclipped_same_lr")
    ),
    "block-penalty": (
        "block_32", "no_penalty", ("block_32_strong", "block_128", "block_all")
    ),
    "regime-adaptation": (
        "updates", "epochs", ("small", "epochs_sqrt", "epochs_linear", "updates_sqrt")
    ),
    "ghost-batch-norm": ("ghost_32", "ghost_all", ("ghost_256", "ghost_64", "batch_64")),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_a_verdict_follows_its_contrast(name: str) -> None:
    arm, control, others = BATCHES[name]
    foretold = claim_named(name).experiment(quick=False).contrasts
    decisive = f"{arm.replace('_', '-')} - {control.replace('_', '-')}"
    sign = next(1 if c.foretold == "more" else -1 for c in foretold if c.name == decisive)
    for shift, expected in ((0.1, "seen"), (-0.1, "not seen"), (0.001, "null")):
        means = {control: 0.8, arm: 0.8 + sign * shift} | dict.fromkeys(others, 0.8)
        found = verdict_on(results_of(name, accuracies(**means)))
        assert found.name == expected, found.sentence
        assert re.search(r"-?\d+\.\d points \(95 % interval", found.sentence)
    few = results_of(name, accuracies(**dict.fromkeys((arm, control, *others), 0.8)), seeds=(1, 2))
    assert verdict_on(few).name == "open"


def test_an_interval_that_holds_0_is_null_whatever_the_mean() -> None:
    values = accuracies(full_batch=0.8, sgd=0.8, sgd_few_updates=0.8)
    values["full-batch"]["test_accuracy"] = [0.9, 0.8, 0.4]
    found = verdict_on(results_of("equal-epochs", values))
    assert found.name == "null"
    assert "not told from 0" in found.sentence


def test_one_cycle_is_seen_where_it_is_no_worse() -> None:
    def judged(shift: float) -> str:
        means = {}
        for share in ("100", "20"):
            means |= {f"one_cycle_{share}": 0.9 + shift, f"inverse_85_{share}": 0.9}
            means |= {f"cosine_12_{share}": 0.9}
        return verdict_on(results_of("one-cycle", accuracies(**means))).name

    assert [judged(shift) for shift in (0.0, 0.02, -0.02, -0.005)] == [
        "seen", "seen", "not seen", "null"
    ]  # fmt: skip


def test_the_gap_is_closed_only_where_sgd_is_not_ahead() -> None:
    arms = ("full_batch", "longer", "clipped", "sgd", "sgd_equal_epochs", "sgd_equal_passes")

    def judged(shift: float) -> Any:
        means = dict.fromkeys(arms, 0.6) | {"penalized": 0.6 + shift}
        return verdict_on(results_of("full-batch-gap", accuracies(**means)))

    assert [judged(shift).name for shift in (0.02, -0.03, -0.005)] == ["seen", "not seen", "null"]
    assert "against SGD with as many passes" in judged(0.0).sentence


def test_beyond_adam_needs_all_of_them() -> None:
    arms = claim_named("beyond-adam").experiment(quick=False).arms
    means = {arm.replace("-", "_"): 0.6 for arm in arms}

    def judged(**changes: float) -> str:
        values = accuracies(**(means | changes))
        return verdict_on(results_of("beyond-adam", values)).name

    better = {m: 0.7 for m in means if m.startswith("photographs") and "3e_4" not in m}
    assert judged(**better) == "seen"
    assert judged(**(better | {"photographs_clr": 0.6})) == "null"
    assert judged(**(better | {"photographs_clr": 0.5})) == "not seen"


def test_restarts_must_lead_at_each_end_and_tie_at_the_last() -> None:
    def judged(early: float, last: float) -> str:
        values = accuracies(sgdr=0.6 + last, cosine=0.6)
        for arm, shift in (("sgdr", early), ("cosine", 0.0)):
            values[arm] |= {
                f"validation_accuracy_at_{end}": [0.4 + shift, 0.42 + shift, 0.39 + shift]
                for end in (1, 3, 7)
            }
        return verdict_on(results_of("warm-restarts", values)).name

    assert judged(0.1, 0.0) == "seen"
    assert judged(0.1, -0.05) == "not seen"
    assert judged(-0.1, 0.0) == "not seen"
    assert judged(0.001, 0.0) == "null"


def test_the_edge_must_be_approached_from_below_and_kept() -> None:
    arms = list(claim_named("edge-of-stability").experiment(quick=False).arms)

    def judged(late: float, sgd: float) -> str:
        values = {
            arm: {
                "first_share_of_edge": [0.4] * 3,
                "late_share_of_edge": [
                    (sgd if arm.startswith("sgd") else late) + x for x in (0.0, 0.01, 0.03)
                ],
            }
            for arm in arms
        }
        values[arms[0]]["late_share_of_edge"] = [late, late + 0.02, late + 0.01]
        return verdict_on(results_of("edge-of-stability", values)).name

    assert judged(1.02, 0.5) == "seen"
    assert judged(0.5, 0.4) == "not seen"
    assert judged(1.02, 1.0) == "null"


def grid_results(name: str, height: Callable[[str, float, float, int], float]) -> Results:
    arms = claim_named(name).experiment(quick=False).arms
    values = {
        arm: {
            quantity: [height(found.group, *found.place, seed) for seed in SEEDS]
            for quantity in ("validation_accuracy", "test_accuracy")
        }
        for arm, found in arms.items()
    }
    return results_of(name, values)


def test_decay_is_separable_where_row_and_column_explain_the_grid() -> None:
    def height(group: str, lr: float, decay: float, seed: int) -> float:
        best = {"decoupled": -10.0, "torch": -10.0 - lr, "l2": -12.0 - lr / 2}[group]
        return 0.9 - 0.01 * (lr + 10) ** 2 / 4 - 0.01 * (decay - best) ** 2 + 0.0001 * seed

    found = verdict_on(grid_results("adamw-separability", height))
    assert found.name == "seen"
    slopes = {k: float(v) for k, v in re.findall(r"(\w+) \d+ %, slope of its best decay ([-+.\d]+)",
                                                 found.sentence)}  # fmt: skip
    assert slopes["decoupled"] == pytest.approx(0.0, abs=0.05)
    assert slopes["torch"] < -0.5

    def turned(group: str, lr: float, decay: float, seed: int) -> float:
        other = {"decoupled": "torch", "torch": "decoupled"}.get(group, group)
        shift = {"decoupled": 10.0, "torch": -10.0}.get(group, 0.0)
        return height(other, lr, decay + shift, seed)

    assert verdict_on(grid_results("adamw-separability", turned)).name != "seen"


def test_normalized_decay_is_seen_where_its_best_stays() -> None:
    def normalized(group: str, updates: float, decay: float, seed: int) -> float:
        return 0.9 - 0.001 * (decay + 2.0 + 0.1 * seed) ** 2

    def raw(group: str, updates: float, decay: float, seed: int) -> float:
        return 0.9 - 0.001 * (decay - updates / 2 + 6.0) ** 2

    found = verdict_on(grid_results("normalized-decay", normalized))
    assert found.name == "seen"
    assert "slope -0.50" in found.sentence
    assert verdict_on(grid_results("normalized-decay", raw)).name == "not seen"


def test_accumulation_is_judged_by_its_limits() -> None:
    def judged(**changes: float) -> str:
        errors = {"count-weighted-fp32": 5e-7, "count-weighted-fp64": 1e-15} | {
            name.replace("_", "-"): error for name, error in changes.items()
        }
        values = {
            arm: {"error_equal_parts": [error] * 3, "error_unequal_parts": [error] * 3,
                  "norm_ratio": [1.0] * 3}
            for arm, error in errors.items()
        }  # fmt: skip
        values["mean-of-means"] = {
            "error_equal_parts": [1e-7] * 3, "error_unequal_parts": [0.1] * 3,
            "norm_ratio": [1.0] * 3,
        }  # fmt: skip
        values.setdefault("constant-divisor", {
            "error_equal_parts": [0.4] * 3, "error_unequal_parts": [0.4] * 3,
            "norm_ratio": [0.63] * 3,
        })  # fmt: skip
        return verdict_on(results_of("accumulation-exact", values)).name

    assert judged() == "seen"
    assert judged(**{"count-weighted-fp64": 1e-9}) == "not seen"
    assert judged(**{"constant-divisor": 1e-7}) == "not seen"


@given(centre=st.floats(1.0, 5.0), bend=st.floats(0.01, 10.0))
@settings(max_examples=30)
def test_the_best_of_a_parabola_is_found_between_its_points(centre: float, bend: float) -> None:
    values = {float(place): -bend * (place - centre) ** 2 for place in range(7)}
    assert best_place(values) == pytest.approx(centre, abs=1e-6)


# --- trials on the disk -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_runs_at_its_quick_size(name: str, tmp_path: Path) -> None:
    folder = ReproductionFolder.open(tmp_path / name, name, quick=True, seeds=1)
    assert reproduce(folder)
    results = folder.results()
    assert results.missing == []
    budgets = {len(arm.tried) + arm.has_range for arm in results.arms.values() if arm.tried}
    assert len(budgets) <= 1  # the same number of trials for every searched arm
    page = write_reproduction(results, tmp_path / "pages")
    text = page.read_text()
    assert "far too small to say anything" in text
    assert "Verdict: open" in text
    assert (tmp_path / "pages" / f"{name}.svg").read_text().count("<path") > 10
    stored = stored_results(tmp_path / "pages" / f"{name}.json")
    assert reproduction_page(stored) == text  # the page can be made of its numbers alone
    assert name in (tmp_path / "pages" / "README.md").read_text()
    assert not list((tmp_path / name).rglob("*.pt"))  # no trial is lengthened


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    folder = ReproductionFolder.open(tmp_path / "begun", "equal-epochs", quick=True, seeds=1)
    assert reproduce(folder)
    return folder.path


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """Every trial but for what differs from session to session."""
    found = {}
    for file in sorted(path.rglob(OUTCOME)):
        values = json.loads(file.read_text())
        told = {k: v for k, v in values.items() if k not in ("seconds", "environment")}
        found[str(file.relative_to(path))] = told
    return found


def test_more_seeds_are_added_and_pair_with_the_first(begun: Path) -> None:
    before = outcomes(begun)
    folder = ReproductionFolder.open(begun, "equal-epochs", quick=True, seeds=2)
    assert folder.results().missing
    assert reproduce(folder)
    after = outcomes(begun)
    assert before.items() <= after.items()
    assert len(after) == len(before) + len(folder.experiment.arms)
    results = folder.results()
    assert all(effect.number == 2 for effect in effects_of(results).values())
    for name, found in after.items():
        assert found["seed"] == (0 if name.startswith("tuning") else int(name.split("seed-")[1][0]))
    assert len(set(results.arms["sgd"].values("train_loss").values())) == 2
    fewer = ReproductionFolder.open(begun, "equal-epochs", quick=True, seeds=1)
    assert fewer.seeds == (1, 2)
    assert Study(begun).arms.keys() == folder.experiment.arms.keys()  # compare and report know it


def test_time_that_is_up_leaves_everything_and_the_page_says_what_is_missing(
    tmp_path: Path,
) -> None:
    folder = ReproductionFolder.open(tmp_path / "r", "train-longer", quick=True, seeds=3)
    assert not reproduce(folder, seconds=0.0)
    results = folder.results()
    assert len(results.missing) == 4
    text = reproduction_page(results)
    assert "**Missing:** sgd: the search for its lr and 3 trials" in text
    assert "Verdict: open" in text


def test_an_end_that_was_not_noted_is_trained_again_to_the_same(begun: Path) -> None:
    before = outcomes(begun)
    for lost in ("sgd/seed-1", "full-batch/seed-1"):
        (begun / lost / OUTCOME).unlink()
    assert reproduce(ReproductionFolder(begun))
    assert outcomes(begun) == before


def test_a_diverged_trial_is_told_and_never_chosen(begun: Path) -> None:
    folder = ReproductionFolder.open(begun, "equal-epochs", quick=True, seeds=1)
    chosen = folder.lr_of("sgd")
    path = begun / "tuning" / "sgd" / f"lr-{chosen:.6g}" / OUTCOME
    write_json(path, json.loads(path.read_text()) | {"outcome": "diverged", "values": {}})
    assert folder.lr_of("sgd") != chosen
    final = begun / "sgd" / "seed-1" / OUTCOME
    write_json(final, json.loads(final.read_text()) | {"outcome": "diverged", "values": {}})
    results = folder.results()
    assert results.arms["sgd"].diverged == 1
    assert "diverged" in reproduction_page(results)
    assert effects_of(results)["full-batch - sgd"].number == 0


def test_a_folder_of_another_protocol_is_refused(begun: Path) -> None:
    with pytest.raises(InputError, match="must be of the same claim and size"):
        ReproductionFolder.open(begun, "clipping", quick=True, seeds=1)
    with pytest.raises(InputError, match="must be of the same claim and size"):
        ReproductionFolder.open(begun, "equal-epochs", quick=False, seeds=1)
    values = json.loads((begun / "study.json").read_text())
    values["about"]["protocol"]["sgd"]["problem"]["train"] = 7
    write_json(begun / "study.json", values)
    with pytest.raises(InputError, match="arm sgd must be as the protocol"):
        ReproductionFolder(begun)
    with pytest.raises(InputError, match="seeds must be >= 1"):
        ReproductionFolder.open(begun.parent / "new", "clipping", quick=True, seeds=0)
    assert not (begun.parent / "new").exists()


def test_a_setting_that_came_later_does_not_orphan_a_folder(begun: Path) -> None:
    """Stored by an earlier version, whose recipes did not know it: it counts by its default."""
    values = json.loads((begun / "study.json").read_text())
    recipe = values["about"]["protocol"]["sgd"]["recipe"]
    assert recipe.pop("preconditioner", None) is None
    del recipe["schedules"]["damping"]
    write_json(begun / "study.json", values)
    ReproductionFolder(begun)
    recipe["a_setting_that_is_no_more"] = 1
    write_json(begun / "study.json", values)
    with pytest.raises(InputError, match="arm sgd must be as the protocol"):
        ReproductionFolder(begun)


def test_killed_anywhere_it_ends_like_one_that_was_not(tmp_path: Path) -> None:
    folder = ReproductionFolder.open(tmp_path / "whole", "train-longer", quick=True, seeds=2)
    assert reproduce(folder)
    arguments = ["reproduce", "train-longer", "--quick", "--seeds", "2", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "anybatch", *arguments]
    out = tmp_path / "train-longer-quick"
    for wanted in (1, 7):
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        deadline = time.monotonic() + 120
        while len(list(out.rglob(OUTCOME))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = ReproductionFolder.open(out, "train-longer", quick=True, seeds=2)
    assert reproduce(resumed)
    assert outcomes(out) == outcomes(tmp_path / "whole")


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    made = []
    for on in ("local", "local:2"):
        path = tmp_path / on.replace(":", "-")
        folder = ReproductionFolder.open(path, "equal-epochs", quick=True, seeds=2)
        assert reproduce(folder, on=on)
        made.append(outcomes(path))
    assert made[0] == made[1]
