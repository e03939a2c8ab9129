"""Student's quantiles, and the comparison of two arms: sound where it speaks, silent otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import METRIC, RECIPE, make_run

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.reporting.comparison import compare_runs, mean_difference
from anybatch.reporting.student import samples_needed, student_probability, student_quantile
from anybatch.run import Status
from anybatch.study import Study

TABLE = [  # (probability, degrees of freedom, quantile), from a printed table
    (0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.975, 9, 2.26216),
    (0.975, 30, 2.04227), (0.8, 2, 1.06066), (0.8, 10, 0.87906), (0.95, 5, 2.01505),
    (0.995, 3, 5.84091), (0.975, 120, 1.97993),
]  # fmt: skip


@pytest.mark.parametrize(("probability", "degrees", "quantile"), TABLE)
def test_quantiles_are_those_of_the_table(
    probability: float, degrees: int, quantile: float
) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, abs=6e-6, rel=4e-6)
    assert student_quantile(1 - probability, degrees) == pytest.approx(-quantile, rel=4e-6)
    assert student_probability(quantile, degrees) == pytest.approx(probability, abs=1e-6)


def test_one_degree_is_cauchys_distribution_and_two_have_a_closed_form() -> None:
    for t in (-30.0, -1.0, 0.0, 0.3, 5.0):
        assert student_probability(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
        two = 0.5 + t / (2 * math.sqrt(2 + t * t))
        assert student_probability(t, 2) == pytest.approx(two, abs=1e-12)


def test_samples_needed_is_the_smallest_number_that_suffices() -> None:
    for effect in (0.1, 0.4, 0.5, 1.0, 2.5):
        n = samples_needed(effect)
        assert n is not None

        def enough(count: int, effect: float = effect) -> bool:
            sum_ = student_quantile(0.975, count - 1) + student_quantile(0.8, count - 1)
            return count >= (sum_ / effect) ** 2

        assert enough(n)
        assert n == 3 or not enough(n - 1)
    assert samples_needed(50.0) == 3
    assert samples_needed(0.0) is None


def test_welchs_interval_is_that_of_a_case_by_hand() -> None:
    a, b = [1.0, 2.0, 3.0], [4.0, 8.0, 12.0, 16.0]
    found = mean_difference(a, b, paired=False)
    errors = 1.0 / 3, (80 / 3) / 4
    degrees = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 3)
    half = student_quantile(0.975, degrees) * math.sqrt(sum(errors))
    assert (found.value, found.number) == (8.0, 3)
    assert (found.low, found.high) == pytest.approx((8.0 - half, 8.0 + half))


def arm(path: Path, metrics: Sequence[float], *, first: int = 0, **changes: object) -> Path:
    for seed, metric in enumerate(metrics, start=first):
        make_run(path / f"s{seed}", seed=seed, metric=metric, updates=1, **changes)  # type: ignore[arg-type]
    return path


def test_a_paired_difference_is_resolved_where_runs_spread_more_than_it(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.80, 0.85, 0.90, 0.95])
    b = arm(tmp_path / "b", [0.811, 0.860, 0.909, 0.960])
    (found,) = compare_runs(a, b)
    assert found.paired
    assert found.resolved
    assert found.counts == (4, 4)
    assert found.means == pytest.approx((0.875, 0.885))
    assert found.difference.value == pytest.approx(0.01)
    deviation = math.sqrt(2e-6 / 3)
    half = 3.182446 * deviation / 2
    assert found.difference.low == pytest.approx(0.01 - half, rel=1e-5)
    assert found.verdict == "b is better: accuracy higher by 0.01"
    assert (found.split, found.direction) == ("test", "max")
    (back,) = compare_runs(b, a)
    assert back.verdict == "b is better: accuracy higher by 0.01"


def test_less_is_better_where_the_run_says_so(tmp_path: Path) -> None:
    task = {"name": "digits", "metric": METRIC | {"direction": "min"}}
    a = arm(tmp_path / "a", [0.80, 0.85, 0.90], task=task)
    b = arm(tmp_path / "b", [0.901, 0.95, 1.0], task=task)
    assert compare_runs(a, b)[0].verdict == "a is better: accuracy lower by 0.1003"
    old = arm(tmp_path / "old", [0.1, 0.11, 0.12], task={"name": "digits"})
    other = arm(tmp_path / "other", [0.2, 0.21, 0.221], task={"name": "digits"})
    (found,) = compare_runs(old, other)
    assert found.verdict.startswith("other is better")
    assert "more accuracy is taken to be better, by its name" in found.notes


def test_an_interval_that_holds_zero_names_the_seeds_that_would_do(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.90, 0.91, 0.92])
    b = arm(tmp_path / "b", [0.91, 0.90, 0.93])
    (found,) = compare_runs(a, b)
    differences = [0.01, -0.01, 0.01]
    deviation = math.sqrt(sum((d - 0.01 / 3) ** 2 for d in differences) / 2)
    assert not found.resolved
    assert found.seeds_needed == samples_needed(0.01 / 3 / deviation)
    assert f"not resolved: about {found.seeds_needed} seeds a side" in found.verdict
    assert found.seeds_needed > 3


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pairs_get_no_verdict(tmp_path: Path, count: int) -> None:
    a = arm(tmp_path / "a", [0.1, 0.11][:count])
    b = arm(tmp_path / "b", [0.9, 0.92][:count])
    (found,) = compare_runs(a, b)
    assert not found.resolved
    assert found.verdict.startswith(f"no verdict: {count} pair")
    assert found.difference.value > 0.7


def test_differences_that_are_all_the_same_get_no_verdict(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.5, 0.5, 0.5])
    assert "the values are equal" in compare_runs(a, arm(tmp_path / "b", [0.5] * 3))[0].verdict
    found = compare_runs(a, arm(tmp_path / "c", [0.75] * 3))[0]
    assert "every difference is the same" in found.verdict
    assert not found.resolved


def test_other_seeds_are_compared_without_pairs(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.80, 0.81, 0.82])
    b = arm(tmp_path / "b", [0.90, 0.91, 0.92], first=10)
    (found,) = compare_runs(a, b)
    assert not found.paired
    assert found.resolved
    assert "Welch" in " ".join(found.notes)


def test_seeds_of_one_side_alone_and_runs_that_diverged_are_named(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.80, 0.81, 0.83, 0.9])
    b = arm(tmp_path / "b", [0.90, 0.92, 0.93])
    make_run(b / "s3", seed=3, updates=1, metric=0.1, status=Status(name="diverged"))
    (found,) = compare_runs(a, b)
    assert found.counts == (3, 3)
    assert found.notes == (
        "b: 1 of 4 runs diverged: left out",
        "seeds 3 are on one side only: left out",
    )


def test_time_to_the_target_is_compared_where_both_reached_it(tmp_path: Path) -> None:
    for name, seconds in (("a", (9.0, 10.0, 11.0)), ("b", (5.0, 6.5, 7.0))):
        for seed, taken in enumerate(seconds):
            status = Status(name="finished", target="accuracy >= 0.8", target_seconds=taken)
            make_run(tmp_path / name / str(seed), seed=seed, updates=1, metric=0.9 + seed / 100,
                     status=status)  # fmt: skip
    metric, time = compare_runs(tmp_path / "a", tmp_path / "b")
    assert "no verdict" in metric.verdict
    assert (time.quantity, time.means) == ("seconds to target", (10.0, pytest.approx(18.5 / 3)))
    assert time.verdict.startswith("b is better: seconds to target lower by")


def test_arms_of_a_study_and_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"low": RECIPE, "high": replace(RECIPE, batch_size=256)}
    study = Study.create(tmp_path / "study", arms, [0, 1, 2], {"name": "digits"})
    for trial in study.trials():
        higher = 0.1 if trial.arm == "high" else 0.0
        make_run(trial.path, seed=trial.seed, recipe=trial.recipe, updates=1,
                 metric=0.8 + higher + trial.seed**2 / 1000 * (1 + higher))  # fmt: skip
    sides = [f"{study.path}:low", f"{study.path}:high"]
    assert main(["compare", *sides]) == 0
    out = capsys.readouterr().out
    assert "study:high is better: accuracy higher by 0.1" in out
    assert "95 % interval +0.09" in out
    assert main(["compare", *sides, "--metric", "loss", "--split", "test", "--json"]) == 0
    (loss,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (loss["direction"], loss["resolved"], loss["difference"]["value"]) == ("min", False, 0)
    with pytest.raises(InputError, match="must name one of its arms: low, high"):
        compare_runs(study.path, study.path)
    with pytest.raises(InputError, match="arm must be one of: low, high"):
        compare_runs(sides[0], f"{study.path}:middle")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [0.8, 0.9])
    make_run(tmp_path / "twice" / "one", updates=1)
    make_run(tmp_path / "twice" / "two", updates=1)
    running = arm(tmp_path / "running", [0.8], status=Status(name="running"))
    with pytest.raises(InputError, match="must hold each seed once"):
        compare_runs(a, tmp_path / "twice")
    with pytest.raises(InputError, match="--metric must be one of: loss, accuracy"):
        compare_runs(a, a, metric="f1")
    with pytest.raises(InputError, match="must have an ended run"):
        compare_runs(a, running)
    with pytest.raises(InputError, match="run must be a folder"):
        compare_runs(a, tmp_path / "none")
