"""`anybatch train --dry-run`: two updates on made-up data, sizes that follow from the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from anybatch.cli import main
from anybatch.kfac.blocks import find_blocks
from anybatch.measuring.dry_run import travels
from anybatch.measuring.dry_run_task import made_small
from anybatch.recipe import (
    BlockSettings,
    ComputeSettings,
    KFACSettings,
    LocalUpdates,
    Recipe,
    SGDSettings,
)

CPU = ComputeSettings(device="cpu")

KFAC = ["--set", "preconditioner.name=kfac"]
SIDES = (65, 256, 257, 10)  # of A and G of the digits' network, 64 -> 256 -> 10 with biases
PARAMETERS = 65 * 256 + 257 * 10


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a dry run prints for programs."""
    assert main(["train", *arguments, "--dry-run", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_numbers_of_a_run_with_kfac(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = found(capsys, "digits", *KFAC, "--ranks", "4")
    assert document["parameters"] == document["covered_parameters"] == PARAMETERS
    memory = document["memory_bytes"]
    assert memory["gradients"] == memory["optimizer"] == 4 * PARAMETERS
    assert memory["factors"] == memory["inverses"] == 4 * sum(n * n for n in SIDES)
    travels = {travel["what"]: travel for travel in document["travels"]}
    packed = travels["statistics (packed)"]
    assert packed["payload_bytes"] == 4 * sum(n * (n + 1) // 2 for n in SIDES)
    assert packed["every"] == 10
    assert travels["gradients"]["link_bytes"] == 2 * 3 * 4 * PARAMETERS // 4
    assert travels["preconditioned gradients"]["payload_bytes"] == 4 * PARAMETERS
    assert 1 / 2 <= document["busiest_share"] < 1  # the larger of two layers
    first, second = document["seconds"]
    assert first["inversion"] > 0
    assert "inversion" not in second  # due in every 100 updates
    assert all(math.isfinite(loss) for loss in document["losses"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    change = ("--set", "optimizer.lr=0.2", *KFAC)
    assert main(["train", "digits", *change, "--ranks", "16", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"{PARAMETERS:,} parameters, on cpu; {PARAMETERS:,} of them under K-FAC" in text
    assert "sent by each of 16 ranks" in text
    assert "inversions over 16 ranks" in text
    assert (
        "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 "
        "-m anybatch train digits --set optimizer.lr=0.2 --set preconditioner.name=kfac"
    ) in text


def test_a_recipe_without_kfac_and_a_folder_to_keep_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = found(capsys, "digits", "--out", "kept")
    assert [travel["what"] for travel in document["travels"]] == ["gradients"]
    assert document["memory_bytes"]["factors"] == 0
    assert set(document["seconds"][0]) == {"passes", "optimizer"}
    assert document["command"] == "anybatch train digits"
    assert json.loads((tmp_path / "kept" / "dry-run.json").read_text()) == document
    assert main(["train", "digits", "--dry-run", "--out", "kept"]) == 2
    assert "must be a folder without a dry-run.json" in capsys.readouterr().err


def test_images_that_are_on_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "batch_size=64", "micro_batch_size=4", "ghost_batch_size=4", "image_size=32",
        "model.width=0.125", "compute.precision=fp32", "compute.device=cpu",
    ]  # fmt: skip
    changes = [word for change in small for word in ("--set", change)]
    document = found(
        capsys, "image-folder:far/away", "--recipe", "kfac/imagenet-16384", *changes,
        "--ranks", "2",
    )  # fmt: skip
    assert document["cut_down"] == [
        "3x32x32 noise in 1,000 classes, as of ImageNet: image-folder:far/away is not here",
        "an update of 8 examples in the place of 64",
    ]
    assert document["covered_parameters"] == document["parameters"]
    assert all("inversion" in update for update in document["seconds"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--ranks", "2"], "--ranks must come with --dry-run"),
        (["digits", "--dry-run", "--ranks", "0"], "--ranks must be >= 1"),
        (["digits", "--dry-run", "--seeds", "2"], "--seeds must be left out with --dry-run"),
        (["--dry-run", "--resume", "x"], "--resume must be left out with --dry-run"),
        (["text:nowhere.txt", "--dry-run"], "path of the data must exist"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- arithmetic ------------------------------------------------------------------------------


def recipe_of(**settings: Any) -> Recipe:
    return Recipe(optimizer=SGDSettings(lr=0.1), **settings)


@pytest.mark.parametrize(
    ("settings", "ranks", "expected"),
    [
        # (batch_size, micro_batch_size, ghost_batch_size)
        ({"batch_size": 100}, 1, (100, None, None)),
        ({"batch_size": 100}, 3, (34, None, None)),
        ({"batch_size": 1000, "micro_batch_size": 20}, 2, (40, 20, None)),
        ({"batch_size": 1000, "ghost_batch_size": 16}, 1, (1000, 512, 16)),
        ({"batch_size": 1000, "ghost_batch_size": 48}, 1, (960, 480, 48)),
        ({"batch_size": "full", "ghost_batch_size": 32}, 1, (1024, 512, 32)),
        ({"batch_size": 64, "micro_batch_size": 32, "ghost_batch_size": 32}, 2, (32, 32, 32)),
    ],
)
def test_an_update_takes_two_passes_at_most(
    settings: dict[str, Any], ranks: int, expected: tuple[int | None, ...]
) -> None:
    numbers = 2**12  # of an example, so that a pass takes 512 on a CPU
    recipe = recipe_of(compute=CPU, **settings)
    small, _ = made_small(recipe, ranks=ranks, numbers=numbers, num_examples=50_000)
    assert (small.batch_size, small.micro_batch_size, small.ghost_batch_size) == expected


def test_blocks_and_ghosts_shrink_with_the_pass() -> None:
    recipe = recipe_of(
        compute=CPU, batch_size=256, ghost_batch_size=64, blocks=BlockSettings(size=128)
    )
    small, said = made_small(recipe, ranks=1, numbers=2**17, num_examples=None)
    assert small.blocks is not None
    assert (small.batch_size, small.ghost_batch_size, small.blocks.size) == (32, 16, 16)
    assert "a ghost of 16 examples in the place of 64" in said


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("inputs", "packed", "sent"),
    [
        (3, 6 + 6, 12),  # padded: (3 - 1) * 6; all-reduced: 4 / 3 * 12
        (1, 1 + 6, 28 / 3),  # padded: (3 - 1) * 6; all-reduced: 4 / 3 * 7
    ],
)
def test_bytes_of_one_layer_on_three_ranks_by_hand(
    inputs: int, packed: int, sent: float, wire: Any
) -> None:
    model = nn.Sequential(nn.Linear(inputs, 3, bias=False))
    settings = KFACSettings(wire=wire, distribution="inverses")
    trained, coverage = list(model.parameters()), find_blocks(model, settings)
    gradient, statistics, inverses = travels(
        trained, coverage, recipe_of(preconditioner=settings), 3
    )
    assert (gradient.payload_bytes, gradient.link_bytes) == (12 * inputs, 16 * inputs)
    size = 4 if wire == "fp32" else 2  # A and G are each on a rank of its own
    assert (statistics.payload_bytes, statistics.link_bytes) == (packed * size, int(sent * size))
    assert (inverses.payload_bytes, inverses.link_bytes) == (packed * 4, int(sent * 4))
    assert (statistics.every, inverses.every) == (10, 100)


def test_of_local_updates_weights_travel_now_and_then() -> None:
    model = nn.Linear(2, 3, bias=False)
    recipe = recipe_of(communication=LocalUpdates(every=7))
    (weights,) = travels(list(model.parameters()), None, recipe, 2)
    assert (weights.what, weights.every, weights.link_bytes) == ("weights", 7, 24)
