"""A loss that couples a batch over two processes is that of one process and one pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import coupled_cases
import exact_cases as cases
import pytest
import torch
from coupled_cases import coupled_cases as all_cases
from coupled_cases import jobs
from launching import launch

from anybatch.errors import InputError
from anybatch.world import World

ONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    launch(2, coupled_cases.__file__, str(folder))
    return folder


@cache
def alone(name: str) -> cases.Result:
    """The same case in one process, the batch as a whole."""
    return coupled_cases.train(*all_cases()[name.removesuffix("-micro")], ONE)


@pytest.mark.parametrize("name", sorted(jobs()))
def test_two_processes_equal_one_pass_over_the_whole_batch(name: str, two_ranks: Path) -> None:
    first, other = (
        torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    cases.assert_same(first, alone(name))
    cases.assert_same(other, first, tolerance=0.0)


def test_a_loss_that_stays_whole_is_refused_on_several_ranks_with_the_remedy() -> None:
    world = World(torch.device("cpu"), rank=0, size=2)
    task, recipe = coupled_cases.coupled_task("supervised", False), cases.make_recipe("sgd", None)
    with pytest.raises(InputError, match=r"over ranks, must stay whole.*cached-outputs"):
        coupled_cases.Training(task, recipe, world=world)
