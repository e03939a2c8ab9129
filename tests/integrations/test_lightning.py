"""Inside of Lightning's Trainer every update has the schedule's learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return results_of("lightning")


def test_the_example_follows_the_schedule(results: dict[str, Any], expected: list[float]) -> None:
    assert results["example"] == pytest.approx(expected, abs=1e-12)


def test_a_fit_resumed_from_lightnings_checkpoint_goes_on(
    results: dict[str, Any], expected: list[float]
) -> None:
    assert results["resumed"] == pytest.approx(expected, abs=1e-12)


def test_a_fit_longer_than_the_schedule_holds_its_end(results: dict[str, Any]) -> None:
    assert results["past the end"] == [0.0] * 8
