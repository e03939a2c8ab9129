"""BatchNorm's rules: last update, whole set, frozen; evaluation changes nothing but the record.

Over ranks: tests/distributed/test_local_updates.py, beside the ranks' own rules.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import (
    Augmentation,
    BatchNormSettings,
    ExponentialAverage,
    PolynomialAverage,
    Recipe,
)
from anybatch.run import Run
from anybatch.schedules import epochs, updates
from anybatch.task import load_task
from anybatch.training.loop import create_run, fit, resume, train_to_end
from anybatch.training.outcome import Outcome
from anybatch.training.recalibration import recalibrate
from anybatch.training.snapshot import preserved_training
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
TASK = cases.make_task("cnn", normalized=True)
WHOLE_SET = BatchNormSettings(evaluated_with="whole-set")
LAST = BatchNormSettings(evaluated_with="last-update")
FROZEN = BatchNormSettings(frozen=True)


def recipe_of(rules: BatchNormSettings, ghost: int | None = 4, **changes: Any) -> Recipe:
    return cases.make_recipe(
        "sgd", ghost, **{"batch_norm": rules, "duration": updates(12)} | changes
    )


def training_of(rules: BatchNormSettings, ghost: int | None = 4, **changes: Any) -> Training:
    return Training(TASK, recipe_of(rules, ghost, **changes), world=ONE)


def norms_of(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "running_mean")]


def statistics(model: nn.Module) -> list[Tensor]:
    return [t.clone() for m in norms_of(model) for t in (m.running_mean, m.running_var)]


def inputs_seen(training: Training, batches: list[Tensor], ghost: int) -> list[list[Tensor]]:
    """What each BatchNorm gets, ghost by ghost, in a network of torch's own layers."""
    model = cases.smooth_cnn(True).double()
    model.load_state_dict(training.model.state_dict())
    model.train()
    seen: list[list[Tensor]] = [[] for _ in norms_of(model)]
    for layer, kept in zip(norms_of(model), seen, strict=True):
        layer.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            for part in batch.split(ghost):
                model(part.double())
    return seen


def flat_channels(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)


# --- last update -----------------------------------------------------------------------------


def test_the_last_updates_statistics_are_the_count_weighted_mean_over_its_ghosts() -> None:
    training = training_of(LAST)
    for _ in range(4):
        training.step()
    training.one_step.train_mode()
    before = copy.deepcopy(training.model.state_dict())
    portion = training.feed.next()  # the epoch's last one: ghosts of 4 and 2
    assert portion.num_examples == 6
    seen = inputs_seen(training, [portion.batch.inputs], ghost=4)
    training.gradient(portion)
    training.update(portion.num_examples)
    for layer, parts in zip(norms_of(training.model), seen, strict=True):
        weights = [len(part) / 6 for part in parts]
        flat = [flat_channels([part]) for part in parts]
        mean = sum(w * f.mean(1) for w, f in zip(weights, flat, strict=True))
        variance = sum(w * f.var(1) for w, f in zip(weights, flat, strict=True))
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-12, atol=1e-13)
        assert int(layer.num_batches_tracked) == 5
    changed = [not torch.equal(v, before[k]) for k, v in training.model.state_dict().items()]
    assert any(changed)


def test_statistics_of_the_last_update_are_those_of_momentum_1() -> None:
    def with_momentum_1() -> nn.Module:
        model = cases.smooth_cnn(True)
        for layer in norms_of(model):
            layer.momentum = 1.0
        return model

    own = replace(TASK, build_model=with_momentum_1)
    one = Training(own, recipe_of(BatchNormSettings()), world=ONE)
    other = training_of(LAST)
    cases.assert_same(cases.plain(one, list(one)), cases.plain(other, list(other)), tolerance=0.0)


@pytest.mark.parametrize("average", [ExponentialAverage(decay=0.9), PolynomialAverage()])
def test_averaged_weights_have_no_last_update(average: Any) -> None:
    with pytest.raises(InputError, match=r"batch_norm.evaluated_with must be .*averaged"):
        training_of(LAST, averaging=average)


# --- whole set -------------------------------------------------------------------------------


def test_recalibrated_statistics_are_mean_and_unbiased_variance_of_all_that_a_layer_sees() -> None:
    training = training_of(WHOLE_SET)
    for _ in range(7):
        training.step()
    source = training.task.source("train")
    order = training.feed._order_of(0)
    (everything,) = source.batches([order])
    seen = inputs_seen(training, [everything.inputs], ghost=4)
    training.evaluate("validation")
    for layer, parts in zip(norms_of(training.kept_model), seen, strict=True):
        flat = flat_channels(parts)
        assert flat.shape[1] > 70
        torch.testing.assert_close(layer.running_mean, flat.mean(1), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer.running_var, flat.var(1), rtol=1e-12, atol=1e-13)


def test_one_ghost_of_the_whole_set_is_torchs_batch_norm_over_it() -> None:
    recipe = recipe_of(WHOLE_SET, None, batch_size="full")
    training = Training(TASK, recipe, world=ONE)
    training.step()
    torchs = cases.smooth_cnn(True).double()
    torchs.load_state_dict(training.model.state_dict())
    for layer in norms_of(torchs):
        layer.momentum = 1.0
    (everything,) = TASK.source("train").batches([torch.arange(70)])
    torchs.train()(everything.inputs.double())
    training.evaluate("validation")
    for one, other in zip(norms_of(training.kept_model), norms_of(torchs), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(one.running_var, other.running_var, rtol=1e-12, atol=1e-13)


def test_the_spread_between_ghosts_counts_which_running_averages_leave_out() -> None:
    """Two ghosts of constants 0 and 1: no variance within, all of it between."""
    model = nn.Sequential(nn.BatchNorm1d(1))
    batches = [Batch(torch.full((3, 1), value), None, torch.arange(3)) for value in (0.0, 1.0)]
    recalibrate_plain(model, batches)
    assert float(model[0].running_mean) == 0.5
    assert float(model[0].running_var) == pytest.approx(0.25 * 6 / 5)


def recalibrate_plain(model: nn.Module, batches: list[Batch]) -> None:
    recalibrate(model, batches, replace(cases.COMPUTE, precision="fp32"), ONE)


def test_any_model_can_be_recalibrated_and_is_left_as_it_was_otherwise() -> None:
    """Torch's own layers; dropout rests; a frozen layer and an untouched one stay."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.idle = (nn.BatchNorm1d(2) for _ in range(3))
            self.drop = nn.Dropout(0.5)
            self.frozen.eval()

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.used(self.drop(self.frozen(inputs)))
            return outputs

    model = Model()
    before = [module.training for module in model.modules()]
    inputs = torch.randn(5, 2)
    generator = torch.get_rng_state()
    recalibrate_plain(model, [Batch(inputs, None, torch.arange(5))])
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), generator)
    frozen = nn.functional.batch_norm(inputs, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(model.used.running_mean, frozen.mean(0))
    torch.testing.assert_close(model.used.running_var, frozen.var(0))
    for layer in (model.frozen, model.idle):
        assert torch.equal(layer.running_mean, torch.zeros(2))
        assert torch.equal(layer.running_var, torch.ones(2))
    assert int(model.used.num_batches_tracked) == 0


def test_how_often_one_looks_changes_nothing_that_is_trained() -> None:
    often, seldom = (
        training_of(WHOLE_SET, averaging=ExponentialAverage(decay=0.9)) for _ in range(2)
    )
    for number in range(9):
        often.step()
        seldom.step()
        if number % 2:
            often.evaluate("train")
            often.evaluate("validation")
    one, other = (copy.deepcopy(t.one_step.state_dict()) for t in (often, seldom))
    for state in (one, other):
        del state["kept"]
    cases_equal(one, other)
    assert often.evaluate("validation").loss == seldom.evaluate("validation").loss


def cases_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            cases_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            cases_equal(left, right)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("average", [None, ExponentialAverage(decay=0.8), PolynomialAverage()])
def test_the_evaluated_statistics_are_those_of_the_evaluated_weights(average: Any) -> None:
    training = training_of(WHOLE_SET, averaging=average)
    for _ in range(6):
        training.step()
    base = training.one_step._base  # with running averages
    running = statistics(base)
    record = training.evaluate("validation")
    kept = training.kept_model
    assert kept is not base
    for one, other in zip(kept.parameters(), base.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(map(torch.equal, statistics(base), running))
    assert not any(map(torch.equal, statistics(kept), running))
    (batch,) = TASK.source("validation").batches([torch.arange(33)])
    outputs = kept.eval()(batch.inputs.double()).detach()
    assert record.loss == pytest.approx(
        float(nn.functional.cross_entropy(outputs, batch.targets)), rel=1e-12
    )
    training.step()
    assert training.kept_model is training.one_step._base  # the copy is of older weights


def test_augmentation_does_not_enter() -> None:
    task = replace(load_task("digits"), build_model=lambda: cases.smooth_cnn(True))
    task = replace(task, loss=lambda outputs, targets: outputs.square().sum(1))
    found = []
    for augmentation in (Augmentation(), Augmentation(crop_padding=2)):
        recipe = recipe_of(WHOLE_SET, augmentation=augmentation)
        training = Training(task, recipe, world=ONE)
        training.evaluate("validation")  # of the same initial weights
        found.append(statistics(training.kept_model))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("count", [2, 16, 70])
def test_fewer_examples_recalibrate_too(count: int) -> None:
    rules = BatchNormSettings(evaluated_with="whole-set", recalibration_examples=count)
    training = training_of(rules)
    training.evaluate("validation")
    order = training.feed._order_of(0)[:count]
    (some,) = TASK.source("train").batches([order])
    seen = inputs_seen(training, [some.inputs], ghost=4)
    layer = norms_of(training.kept_model)[0]
    expected = flat_channels(seen[0])
    torch.testing.assert_close(layer.running_mean, expected.mean(1), rtol=1e-12, atol=1e-13)


def test_recalibration_in_smaller_passes_gives_the_same() -> None:
    found = []
    for size in (4, 8, 100):
        compute = replace(cases.COMPUTE, evaluation_batch_size=size)
        training = training_of(WHOLE_SET, compute=compute)
        training.refresh_kept_model()
        found.append(statistics(training.kept_model))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


# --- runs ------------------------------------------------------------------------------------


def kept_weights(run: Run) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(run.path / "weights.pt", weights_only=True)
    return weights


@pytest.mark.parametrize("average", [None, ExponentialAverage(decay=0.8)])
def test_a_run_keeps_the_statistics_that_it_was_evaluated_with(
    tmp_path: Path, average: Any
) -> None:
    recipe = recipe_of(WHOLE_SET, averaging=average)
    run = fit(TASK, recipe, out=tmp_path / "run", progress=False, world=ONE)
    last = [record for record in run.evals() if record.split == "validation"][-1]
    model = cases.smooth_cnn(True).double()
    model.load_state_dict(kept_weights(run))
    (batch,) = TASK.source("validation").batches([torch.arange(33)])
    loss = nn.functional.cross_entropy(model.eval()(batch.inputs.double()), batch.targets)
    assert float(loss.detach()) == pytest.approx(last.loss, rel=1e-12)


def test_a_measurement_after_the_last_evaluation_leaves_the_kept_model() -> None:
    training = training_of(WHOLE_SET)
    list(training)
    before = statistics(training.kept_model)
    with preserved_training(training), torch.no_grad():
        for parameter in training.model.parameters():
            parameter.add_(1.0)
        training.evaluate("train")
        assert not all(map(torch.equal, statistics(training.kept_model), before))
    assert all(map(torch.equal, statistics(training.kept_model), before))


def test_an_interrupted_run_keeps_running_averages_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    stopping = replace(recipe_of(WHOLE_SET).stopping, evaluate_every=epochs(1))
    recipe = recipe_of(WHOLE_SET, stopping=stopping)
    whole = fit(TASK, recipe, out=tmp_path / "whole", progress=False, world=ONE)
    training = Training(TASK, recipe, world=ONE)
    run = create_run(training, tmp_path / "parts")
    for _ in range(7):
        training.step()
    training.request_stop(Outcome(name="interrupted", reason="test"))
    train_to_end(training, run, progress=False)
    running = statistics(training.model)
    model = cases.smooth_cnn(True).double()
    model.load_state_dict(kept_weights(run))
    assert all(map(torch.equal, statistics(model), running))
    resumed = resume(run.path, task=TASK, progress=False)
    one, other = kept_weights(whole), kept_weights(resumed)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert list(whole.evals())[-1].loss == list(resumed.evals())[-1].loss


@pytest.mark.parametrize("rules", [WHOLE_SET, LAST])
def test_a_saved_training_goes_on_bit_for_bit(rules: BatchNormSettings) -> None:
    first = training_of(rules)
    for _ in range(5):
        first.step()
    first.evaluate("validation")
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = training_of(rules)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, statistics(second.kept_model), statistics(first.kept_model)))
    results = [cases.plain(training, list(training)) for training in (first, second)]
    cases.assert_same(*results, tolerance=0.0)


# --- frozen ----------------------------------------------------------------------------------


def warmed_up_cnn() -> nn.Module:
    """Statistics as a pretrained model brings them."""
    model = cases.smooth_cnn(True)
    for number, layer in enumerate(norms_of(model)):
        layer.running_mean.fill_(0.1 * (number + 1))
        layer.running_var.fill_(2.0 + number)
    return model


PRETRAINED = replace(TASK, build_model=warmed_up_cnn)


def test_frozen_layers_normalize_by_what_they_came_with_and_still_learn_scale_and_shift() -> None:
    training = Training(PRETRAINED, recipe_of(FROZEN), world=ONE)
    before = statistics(training.model)
    affine = [p.detach().clone() for m in norms_of(training.model) for p in (m.weight, m.bias)]
    torchs = warmed_up_cnn().double().eval()  # gradients of torch's own layers in evaluation mode
    torchs.load_state_dict(training.model.state_dict())
    portion = training.feed.next()
    training.one_step.train_mode()
    training.gradient(portion)
    outputs = torchs(portion.batch.inputs.double())
    nn.functional.cross_entropy(outputs, portion.batch.targets).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(training.model.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)
    list(training)
    assert all(map(torch.equal, statistics(training.model), before))
    moved = [p for m in norms_of(training.model) for p in (m.weight, m.bias)]
    assert not any(map(torch.equal, moved, affine))
    assert all(int(m.num_batches_tracked) == 0 for m in norms_of(training.model))


def test_frozen_batch_norm_couples_nothing_so_it_is_divided_without_ghosts() -> None:
    results = []
    for micro in (None, 1, 5):
        recipe = recipe_of(FROZEN, None, micro_batch_size=micro)
        training = Training(PRETRAINED, recipe, world=ONE)
        results.append(cases.plain(training, list(training)))
    for other in results[1:]:
        cases.assert_same(other, results[0])


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [WHOLE_SET, LAST, FROZEN])
def test_rules_for_a_model_without_batch_norm_are_refused(rules: BatchNormSettings) -> None:
    with pytest.raises(InputError, match="must be left out for a model without BatchNorm"):
        Training(cases.make_task("cnn", False), recipe_of(rules), world=ONE)


def test_what_cannot_be_frozen_or_recalibrated_is_refused() -> None:
    class Activated(nn.BatchNorm1d):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).tanh()

    def model(layer: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), layer, nn.Linear(4, 3))

    task = cases.make_task("mlp", False)
    without = replace(task, build_model=lambda: model(nn.BatchNorm1d(4, track_running_stats=False)))
    with pytest.raises(InputError, match="must have running statistics to be frozen"):
        Training(without, recipe_of(FROZEN), world=ONE)
    own = replace(task, build_model=lambda: model(Activated(4)))
    with pytest.raises(InputError, match="own BatchNorm forward pass to be recalibrated"):
        Training(own, recipe_of(WHOLE_SET, None), world=ONE)
    too_many = BatchNormSettings(evaluated_with="whole-set", recalibration_examples=71)
    with pytest.raises(InputError, match="recalibration_examples must be <= the 70"):
        training_of(too_many)


def test_a_stream_cannot_be_passed_through_once_more() -> None:
    def stream() -> Iterator[tuple[Tensor, int]]:
        inputs, labels = cases.examples_of((1, 6, 6), 40, seed=1)
        yield from zip(inputs, labels.tolist(), strict=True)

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return stream()

    task = replace(TASK, train=Stream(), num_examples=40)
    with pytest.raises(InputError, match="for a stream, got whole-set"):
        Training(task, recipe_of(WHOLE_SET), world=ONE)
