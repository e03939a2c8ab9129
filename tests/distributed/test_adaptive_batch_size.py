"""A batch size that moves, by noise or by stages: 1 process = 2 processes, and one decision.

One launch by torchrun (gloo) makes every case; the tests compare what the ranks left in files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import adapt_on_ranks
import exact_cases as cases
import pytest
import torch
from adapt_on_ranks import jobs
from launching import launch

from anybatch.world import World

ONE = World(torch.device("cpu"))
NAMES = sorted(jobs())
ADAPTIVE = [name for name in NAMES if not name.startswith("stepped")]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    launch(2, adapt_on_ranks.__file__, str(folder))
    return folder


def results(folder: Path, name: str) -> list[cases.Result]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


@cache
def alone(name: str) -> cases.Result:
    """The same case in one process: an update that has but one part is observed in halves."""
    return jobs()[name](ONE)


def decisions(result: cases.Result) -> list[tuple[int, int, int]]:
    return [
        (record["examples"], record["batch_size_before"], record["batch_size_after"])
        for record in result["records"]
        if "batch_size_after" in record
    ]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name: str, two_ranks: Path) -> None:
    first, other = results(two_ranks, name)
    # The noise scale is a difference of nearly equal numbers: it has some digits less.
    cases.assert_same(first, alone(name), tolerance=1e-8 if name in ADAPTIVE else 1e-12)
    cases.assert_same(other, first, tolerance=0.0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_both_ranks_move_together_and_as_one_rank_does(name: str, two_ranks: Path) -> None:
    found = [decisions(result) for result in (*results(two_ranks, name), alone(name))]
    assert found[0] == found[1] == found[2]
    assert any(before != after for _, before, after in found[0])


def test_a_training_saved_on_two_processes_goes_on_alone(two_ranks: Path) -> None:
    for result in results(two_ranks, "begun-together"):
        cases.assert_same(result, alone("interrupted"), tolerance=1e-8)


def test_an_interruption_changes_nothing(two_ranks: Path) -> None:
    whole, resumed = results(two_ranks, "ghosts")[0], results(two_ranks, "interrupted")[0]
    assert cases.relative_difference(resumed["weights"], whole["weights"]) == 0.0
    assert resumed["statistics"].keys() == whole["statistics"].keys()
    late = [entry for entry in decisions(whole) if entry in decisions(resumed)]
    assert late == decisions(resumed) != []
