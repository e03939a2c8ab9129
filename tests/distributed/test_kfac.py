"""K-FAC on 1, 2 and 4 processes, and accumulated: one training, whatever divides its batches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import exact_cases as cases
import kfac_cases
import pytest
import torch
from kfac_cases import recipes, single_recipes
from launching import launch

from anybatch.run import Run
from anybatch.training.loop import create_run, resume, train_to_end
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(f"{request.param}-ranks")
    launch(request.param, kfac_cases.__file__, str(folder))
    return request.param, folder


def of_ranks(ranks: tuple[int, Path], name: str) -> list[Any]:
    number, folder = ranks
    files = (folder / f"{name}-{rank}.pt" for rank in range(number))
    return [torch.load(file, weights_only=True) for file in files]


@cache
def alone(name: str) -> cases.Result:
    return kfac_cases.train(*(recipes() | single_recipes())[name], ONE)


# --- 1 = 2 = 4 = accumulation ------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_weights_after_20_updates_do_not_depend_on_the_ranks(
    name: str, ranks: tuple[int, Path]
) -> None:
    results = of_ranks(ranks, name)
    cases.assert_same(results[0], alone(name), tolerance=1e-9)
    for other in results[1:]:  # bit by bit
        cases.assert_same(other, results[0], tolerance=0.0)
    counted = ("updates", "refreshes", "inversions", "refreshes_saved")
    assert [results[0]["counts"][k] for k in counted] == [alone(name)["counts"][k] for k in counted]


@pytest.mark.parametrize("name", recipes())
def test_every_rank_can_save_the_factors_of_all(name: str, ranks: tuple[int, Path]) -> None:
    expected = alone(name)["factors"]
    for result in of_ranks(ranks, name):
        assert result["factors"].keys() == expected.keys()
        for factor, kept in result["factors"].items():
            for key in ("running", "inverse"):
                difference = (kept[key] - expected[factor][key]).norm()
                assert difference <= 1e-9 * expected[factor][key].norm(), (factor, key)


@pytest.mark.parametrize("name", [n for n in recipes() if n not in ("three-examples", "one-ghost")])
def test_weights_do_not_depend_on_accumulation(name: str) -> None:
    network, recipe = recipes()[name]
    divided = kfac_cases.train(network, replace(recipe, micro_batch_size=4), ONE)
    cases.assert_same(divided, alone(name), tolerance=1e-9)


def test_k_fac_changes_the_training() -> None:
    network, recipe = recipes()["mlp"]
    task = kfac_cases.make_task(network, False)
    with Training(task, replace(recipe, preconditioner=None), world=ONE) as training:
        plain = cases.plain(training, list(training))
    assert cases.relative_difference(plain["weights"], alone("mlp")["weights"]) > 1e-3


def test_statistics_leave_while_backward_goes_on(ranks: tuple[int, Path]) -> None:
    first, *others = of_ranks(ranks, "departed")
    assert first["left"] == ["0.A", "0.G", "2.A", "2.G"]
    for other in others:
        assert all(
            torch.equal(a, b) for a, b in zip(first["weights"], other["weights"], strict=True)
        )


def test_bytes_that_adaptive_refresh_saves_are_those_of_a_dense_one(
    ranks: tuple[int, Path],
) -> None:
    dense, adaptive = (
        of_ranks(ranks, name)[0]["counts"] for name in ("every-update", "adaptive-inverses")
    )
    each = dense["refreshes"] // 20
    assert dense["payload_bytes_saved"] == 0
    assert adaptive["refreshes"] + adaptive["refreshes_saved"] == each * 20
    sides = (7, 16, 17, 12, 13, 3)  # of the same network's factors
    whole = sum(side * (side + 1) // 2 for side in sides) * 8 * 20
    assert 0 < adaptive["payload_bytes_saved"] < whole
    shares = adaptive["refreshes_saved"] / (each * 20), adaptive["payload_bytes_saved"] / whole
    assert shares[0] == pytest.approx(shares[1], abs=0.3)


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_a_rank_without_examples_waits_for_nobody(wire: str, ranks: tuple[int, Path]) -> None:
    first, *others = of_ranks(ranks, f"one-example-{wire}")
    for other in others:
        cases.assert_same(other, first, tolerance=0.0)


def test_a_silent_layer_is_refused_on_every_rank_or_on_none(ranks: tuple[int, Path]) -> None:
    assert of_ranks(ranks, "silent") == [[True, False]] * ranks[0]


# --- single precision, and half of it on the wire ------------------------------------------------


@pytest.mark.parametrize(("wire", "bound"), [("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 1e-2)])
def test_single_precision_and_half_of_it_on_the_wire(
    wire: str, bound: float, ranks: tuple[int, Path]
) -> None:
    results = of_ranks(ranks, f"fp32-{wire}")
    expected = alone(f"fp32-{wire}")
    assert cases.relative_difference(results[0]["weights"], expected["weights"]) <= bound
    for other in results[1:]:
        assert cases.relative_difference(results[0]["weights"], other["weights"]) == 0
    for factor in results[0]["factors"].values():
        assert float(torch.linalg.cond(factor["inverse"]).max()) <= 1e3
    sent, whole = (
        of_ranks(ranks, f"fp32-{w}")[0]["counts"]["payload_bytes"] for w in (wire, "fp32")
    )
    assert (sent < whole) == (wire != "fp32")


# --- saving, resuming, losing a rank --------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaptive", "inverses-ghosts", "sampled"])
def test_saved_in_the_middle_of_an_interval(name: str, ranks: tuple[int, Path]) -> None:
    pairs = zip(of_ranks(ranks, f"parts-{name}"), of_ranks(ranks, f"whole-{name}"), strict=True)
    for part, whole in pairs:
        # Buckets of a new DDP are other ones at first: with 4 ranks gradients add in another order.
        cases.assert_same(part, whole, tolerance=0.0 if ranks[0] == 2 else 1e-9)


@pytest.mark.parametrize("name", ["adaptive", "inverses-ghosts"])
def test_saved_on_many_ranks_and_gone_on_with_on_one(name: str, ranks: tuple[int, Path]) -> None:
    saved = of_ranks(ranks, f"parts-{name}")[0]
    network, recipe = recipes()[name]
    task = kfac_cases.make_task(network, recipe.ghost_batch_size is not None)
    with Training(task, recipe, world=ONE) as training:
        training.load_state_dict(saved["state"])
        result = cases.plain(training, list(training))
    assert cases.relative_difference(result["weights"], saved["weights"]) <= 1e-9


def test_a_lost_rank_ends_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "--nproc-per-node=2",
        kfac_cases.__file__, str(tmp_path), "mlp", "12",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert "exitcode  : 7" in ended.stderr
    network, recipe = recipes()["mlp"]
    task = kfac_cases.make_task(network, False)
    whole = tmp_path / "whole"
    with Training(task, kfac_cases.saved_often(recipe), world=ONE) as training:
        train_to_end(training, create_run(training, whole), progress=False)
    resume(tmp_path / "lost", task=task, progress=False)
    weights, expected = (
        torch.load(folder / "weights.pt", weights_only=True)
        for folder in (tmp_path / "lost", whole)
    )
    assert Run(tmp_path / "lost").status.name == "finished"
    assert cases.relative_difference(weights, expected) <= 1e-9
