"""Inside of Hugging Face's Trainer, and against the schedules of its library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NAMES = ["constant", "linear", "cosine", "hard restarts", "polynomial", "inverse square root"]
NAMES += [f"warm-up, stable, {shape} decay" for shape in ("linear", "cosine", "1-sqrt")]


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return results_of("transformers")


def test_the_example_follows_the_schedule(results: dict[str, Any], expected: list[float]) -> None:
    assert results["example"] == pytest.approx(expected, abs=1e-12)


def test_a_trainer_resumed_from_its_checkpoint_goes_on(
    results: dict[str, Any], expected: list[float]
) -> None:
    assert results["resumed"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_update_has_the_librarys_learning_rate(name: str, results: dict[str, Any]) -> None:
    theirs, ours = results["pairs"][name]
    assert len(set(theirs)) > 5
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12 * 0.3)


def test_every_pair_is_looked_at(results: dict[str, Any]) -> None:
    assert sorted(results["pairs"]) == sorted(NAMES)
