"""Blocks and full batches: 1 process = 2 processes, with penalties, ghosts and fixed copies."""

from __future__ import annotations

from pathlib import Path

import blocks_on_ranks
import exact_cases as cases
import pytest
import torch
from launching import launch

from anybatch.world import World

ONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    launch(2, blocks_on_ranks.__file__, str(folder))
    return folder


@pytest.mark.parametrize("name", blocks_on_ranks.jobs())
def test_two_processes_equal_one(name, two_ranks):
    first, second = (
        torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    alone = blocks_on_ranks.jobs()[name](ONE)
    cases.assert_same(first, alone)
    cases.assert_same(second, first, tolerance=0.0)  # to the last bit
    steps = [record for record in alone["records"] if "lr" in record]
    without = name in ("full-without-blocks", "copies")
    assert all((step["block_gradient_norm"] is None) == without for step in steps)
