"""Local updates on two processes, and BatchNorm's rules, which must not depend on the processes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import exact_cases as cases
import local_cases
import pytest
import torch
from launching import launch
from local_cases import local_recipes, rule_recipes, synchronous
from torch import Tensor

from anybatch.errors import InputError
from anybatch.recipe import AdaptiveBatchSize, BlockSettings, LocalUpdates
from anybatch.schedules import Clock, Position, epochs, examples, fraction, updates
from anybatch.training.local_updates import LocalPhase, bytes_per_update
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    launch(2, local_cases.__file__, str(folder))
    return folder


def of_ranks(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@cache
def alone(name: str) -> cases.Result:
    return local_cases.train(*(synchronous() | rule_recipes())[name], ONE)


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", synchronous())
def test_averaging_after_each_update_is_synchronous_sgd(name: str, two_ranks: Path) -> None:
    """Plain SGD with its own state; with momentum, where that is averaged too."""
    first, other = of_ranks(two_ranks, f"each-{name}")
    expected = alone(name)
    for part in ("weights", "average", "kept"):
        assert cases.relative_difference(first[part], expected[part]) <= 1e-12, part
    cases.assert_same(other, first, tolerance=0.0)
    for record, reference in zip(first["records"], expected["records"], strict=True):
        assert record["loss"] == pytest.approx(reference["loss"], rel=1e-12)


@pytest.mark.parametrize("settings", ["4-0", "4-3", "2-3"])
def test_every_update_is_that_of_torchs_averager_in_a_loop_by_hand(
    settings: str, two_ranks: Path
) -> None:
    differ = []
    for rank in (0, 1):
        hand, recipe = (of_ranks(two_ranks, f"{n}-{settings}")[rank] for n in ("hand", "recipe"))
        for one, other in zip(recipe, hand, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for one, other in zip(*of_ranks(two_ranks, f"recipe-{settings}"), strict=True):
        differ.append(not all(map(torch.equal, one, other)))
    every, warmup = map(int, settings.split("-"))
    assert differ == [n >= warmup and (n - warmup) % every > 0 for n in range(13)]


def test_one_rank_has_nobody_to_average_with() -> None:
    for name, (network, recipe) in synchronous().items():
        result = local_cases.train(network, local_cases.after_each(name, recipe), ONE)
        cases.assert_same(result, alone(name), tolerance=0.0)


# --- records, evaluation, what is kept ---------------------------------------------------------


@pytest.mark.parametrize("name", local_recipes())
def test_ranks_have_one_record_and_keep_one_model(name: str, two_ranks: Path) -> None:
    first, other = of_ranks(two_ranks, f"local-{name}")
    assert first["records"] == other["records"]
    evals = [record for record in first["records"] if "split" in record]
    assert len(evals) == 7
    for key, value in first["kept"].items():
        assert torch.equal(value, other["kept"][key]), key
    assert cases.relative_difference(first["weights"], other["weights"]) > 1e-6  # by then


@pytest.mark.parametrize("name", local_recipes())
def test_the_kept_model_is_the_mean_over_ranks_and_what_was_evaluated(
    name: str, two_ranks: Path
) -> None:
    results = of_ranks(two_ranks, f"local-{name}")
    for key, value in results[0]["average"].items():
        mean = (value + results[1]["average"][key]) / 2
        torch.testing.assert_close(results[0]["kept"][key], mean, rtol=1e-12, atol=1e-14)
    network, recipe = local_recipes()[name]
    model = cases.NETWORKS[network][0](recipe.ghost_batch_size is not None).double()
    model.load_state_dict(results[0]["kept"])
    (batch,) = local_cases.task_of(network, recipe).source("validation").batches([torch.arange(33)])
    with torch.no_grad():
        outputs = model.eval()(batch.inputs.double())
    loss = torch.nn.functional.cross_entropy(outputs, batch.targets)
    tracked = [v for key, v in results[0]["kept"].items() if "tracked" in key]
    assert all(int(value) == 14 for value in tracked)
    last = [record for record in results[0]["records"] if "split" in record][-1]
    assert float(loss) == pytest.approx(last["loss"], rel=1e-12)


@pytest.mark.parametrize("name", local_recipes())
def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(
    name: str, two_ranks: Path
) -> None:
    pairs = zip(
        of_ranks(two_ranks, f"interrupted-{name}"),
        of_ranks(two_ranks, f"uninterrupted-{name}"),
        strict=True,
    )
    for one, other in pairs:
        cases.assert_same(one, other, tolerance=0.0)


def test_runs_keep_the_mean_also_when_interrupted_and_resume_on_as_many_ranks(
    two_ranks: Path,
) -> None:
    first, other = of_ranks(two_ranks, "runs")
    saved = torch.load(two_ranks / "whole" / "weights.pt", weights_only=True)
    for found, weights in ((saved, "whole-weights"), (first["interrupted"], "parts-weights")):
        for value, one, two in zip(found.values(), first[weights], other[weights], strict=True):
            torch.testing.assert_close(value, (one + two) / 2, rtol=1e-12, atol=1e-14)
    assert not all(map(torch.equal, first["parts-weights"], other["parts-weights"]))
    assert first["status"] == "finished"
    assert first["alone"].startswith("ranks must be 2, as each has weights of its own")
    resumed = torch.load(two_ranks / "parts" / "weights.pt", weights_only=True)
    assert all(torch.equal(saved[key], resumed[key]) for key in saved)


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "every"), [("none", None), ("4", 4), ("3-averaged", 3)])
def test_bytes_of_all_reduces_are_those_predicted(
    name: str, every: int | None, two_ranks: Path
) -> None:
    for found in of_ranks(two_ranks, f"bytes-{name}"):
        synchronous_bytes = found["gradients"] + found["statistics"]
        share = 0.0 if every is None else 1.0
        predicted = bytes_per_update(
            synchronous_bytes, found["averaged"], every=every or 1, local_share=share
        )
        assert found["counted"] == pytest.approx(predicted, rel=1e-12)


# --- BatchNorm's rules ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", rule_recipes())
def test_batch_norm_rules_do_not_depend_on_the_ranks(name: str, two_ranks: Path) -> None:
    first, other = of_ranks(two_ranks, f"rule-{name}")
    cases.assert_same(first, alone(name))
    cases.assert_same(other, first, tolerance=0.0)
    kept: dict[str, Tensor] = alone(name)["kept"]
    assert cases.relative_difference(first["kept"], kept) <= 1e-12


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_control": AdaptiveBatchSize(), "duration": epochs(2)}, "with batch_control"),
        ({"blocks": BlockSettings(size=4)}, "with blocks"),
    ],
)
def test_what_needs_the_gradients_of_all_ranks_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    communication = LocalUpdates(every=2)
    recipe = local_cases.recipe_of(local_cases.PLAIN, communication=communication, **changes)
    with pytest.raises(InputError, match=f"communication must be left out {said}"):
        Training(cases.make_task("mlp", False), recipe, world=ONE)


@pytest.mark.parametrize("begin", [updates(3), examples(48), epochs(0.5), fraction(0.25)])
def test_the_phase_begins_after_any_duration(begin: Any) -> None:
    clock = Clock(examples_per_epoch=96, batch_size=16, total_examples=192)
    phase = LocalPhase(LocalUpdates(every=2, begin_after=begin), clock, ONE)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    begun = []
    for update in range(4):
        begun.append(phase.has_begun)
        phase.take_step(model, optimizer, Position(16 * update, 16, 192))
    assert begun == [False, False, False, True]


def test_bytes_of_a_post_local_run_lie_between_both() -> None:
    always, never = (bytes_per_update(100, 120, every=8, local_share=s) for s in (1.0, 0.0))
    assert (always, never) == (15.0, 100.0)
    assert bytes_per_update(100, 120, every=8, local_share=0.5) == (always + never) / 2
