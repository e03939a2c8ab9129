"""1 process = 2 processes = 4 processes, with and without micro-batches, BatchNorm and leftovers.

Two launches by torchrun (gloo) make every case; the tests compare what the ranks left in files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import exact_cases as cases
import pytest
import torch
import train_on_ranks
from launching import launch
from train_on_ranks import jobs

from anybatch.world import World

FEW = sorted(jobs("few"))
ALL = sorted(jobs("all"))
ONE = World(torch.device("cpu"))


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
    launch(2, train_on_ranks.__file__, "all", str(folder))
    return folder


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four-ranks")
    launch(4, train_on_ranks.__file__, "few", str(folder))
    return folder


def results(folder: Path, name: str, num_processes: int) -> list[cases.Result]:
    paths = [folder / f"{name}-{rank}.pt" for rank in range(num_processes)]
    return [torch.load(path, weights_only=True) for path in paths]


@cache
def alone(name: str) -> cases.Result:
    """The same case in one process, without micro-batches."""
    return jobs("all")[name.split("-micro")[0]](ONE)


def assert_ranks_equal_one_process(folder: Path, name: str, num_processes: int) -> None:
    first, *others = results(folder, name, num_processes)
    cases.assert_same(first, alone(name))
    for other in others:  # every rank has the same numbers to the last bit
        cases.assert_same(other, first, tolerance=0.0)


@pytest.mark.parametrize("name", [n for n in ALL if "begun" not in n and "interrupted" not in n])
def test_two_processes_equal_one(name, two_ranks):
    assert_ranks_equal_one_process(two_ranks, name, 2)


@pytest.mark.parametrize("name", FEW)
def test_three_examples_on_four_processes_equal_one(name, four_ranks):
    assert_ranks_equal_one_process(four_ranks, name, 4)


def test_a_training_resumed_on_two_processes_is_the_uninterrupted_one_to_the_last_bit(two_ranks):
    before = results(two_ranks, "uninterrupted", 2)
    after = results(two_ranks, "interrupted", 2)
    for one, other in zip(after, before, strict=True):
        cases.assert_same(one, other, tolerance=0.0)


def test_a_training_goes_on_with_another_number_of_processes(two_ranks):
    # The losses pending in the middle of a log window are each counted once.
    for name in ("begun-on-one-rank", "ended-on-one-rank"):
        for result in results(two_ranks, name, 2):
            cases.assert_same(result, alone("uninterrupted"))
    assert_ranks_equal_one_process(two_ranks, "interrupted", 2)


def test_every_case_has_records_of_training_and_evaluation(two_ranks):
    for name in ALL:
        records = results(two_ranks, name, 2)[0]["records"]
        assert any("split" in record for record in records)
        assert any("lr" in record for record in records)
        assert any("lr_after" in record for record in records) == name.startswith("everything")
