"""Under Accelerate: outside of `prepare`, inside of it, and the N times too fast trap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return results_of("accelerate")


@pytest.mark.parametrize("case", ["example", "prepared", "prepared, two processes, split batches"])
def test_every_update_has_the_schedules_learning_rate(
    case: str, results: dict[str, Any], expected: list[float]
) -> None:
    assert results[case] == pytest.approx(expected, abs=1e-12)


def test_past_the_end_the_last_value_holds(results: dict[str, Any]) -> None:
    assert results["prepared, past the end"][16:] == [0.0] * 4


def test_prepared_on_two_processes_it_runs_twice_as_fast_as_the_docs_warn(
    results: dict[str, Any], expected: list[float]
) -> None:
    assert results["prepared, two processes"] == pytest.approx(expected[::2] + [0.0] * 8, abs=1e-12)
