"""Models, losses and loaders as users bring them: shared layers, odd buffers, frozen parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import anybatch as ab
from anybatch.training.normalization import GhostBatchNorm, GhostNormalization
from anybatch.training.snapshot import preserved_training


def data(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


def recipe(**changes: Any) -> ab.Recipe:
    made = ab.Recipe(optimizer=ab.SGDSettings(lr=0.1), batch_size=8, duration=ab.updates(6))
    return replace(made, **changes)


def task(build: Callable[[], nn.Module], **changes: Any) -> ab.Task:
    return ab.Task(build_model=build, **({"train": data()} | changes))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def test_blocks_shared_by_two_parents_keep_their_own_batchnorm() -> None:
    for _ in range(60):  # a mistaken identity depends on where objects come to lie
        blocks = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(6)]
        expected = [block[1].weight for block in blocks]
        model = nn.ModuleDict({"a": nn.Sequential(*blocks), "b": nn.Sequential(*blocks)})
        normalization = GhostNormalization(model, None)
        for parent in ("a", "b"):
            for block, weight in zip(model[parent], expected, strict=True):  # type: ignore[arg-type]
                assert isinstance(block[1], GhostBatchNorm)
                assert block[1].weight is weight
        assert len(normalization.layers) == 6


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.9999])
def test_averaging_copies_whole_number_buffers(decay: float) -> None:
    class WithPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)
            self.register_buffer("positions", torch.arange(2048))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs)  # type: ignore[no-any-return]

    averaged = recipe(averaging=ab.ExponentialAverage(decay=decay), duration=ab.updates(20))
    with ab.Training(task(WithPositions), averaged) as training:
        for _ in training:
            pass
        assert torch.equal(training.kept_model.positions, torch.arange(2048))
        assert not torch.equal(training.kept_model.linear.weight, training.model.linear.weight)


def test_a_model_that_was_trained_is_not_trained_again_as_new() -> None:
    model = small_net()
    with ab.Training(task(lambda: model), recipe()) as training:
        training.step()
    with pytest.raises(ab.InputError, match="build_model must return a new model"):
        ab.Training(task(lambda: model), recipe())


class Counting(nn.Module):
    """Scales by a count of its forward passes that it keeps out of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.linear(inputs) * (1 + 0.01 * self.calls)  # type: ignore[no-any-return]


def test_buffers_out_of_the_state_dict_are_measured_and_resumed_without_a_trace(
    tmp_path: Path,
) -> None:
    with ab.Training(task(Counting), recipe()) as training:
        training.step()
        with preserved_training(training):
            training.step()
        assert int(training.model.calls) == 1
    whole = ab.fit(task(Counting), recipe(), out=tmp_path / "whole", progress=False)
    ab.fit(task(Counting), recipe(duration=ab.updates(3)), out=tmp_path / "half", progress=False)
    half = ab.resume(tmp_path / "half", task=task(Counting), extend=ab.updates(3), progress=False)
    one, other = (torch.load(run.path / "weights.pt", weights_only=True) for run in (whole, half))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_measurement_between_the_halves_of_a_step_keeps_batchnorm_statistics() -> None:
    means = []
    for measured in (False, True):
        with ab.Training(task(small_net), recipe()) as training:
            training.one_step.train_mode()
            portion = training.feed.next()
            training.gradient(portion)
            if measured:
                with preserved_training(training):
                    training.update(portion.num_examples)
            training.update(portion.num_examples)
            means.append(training.model[1].running_mean.clone())
    assert means[0].abs().max() > 0
    assert torch.equal(*means)


def test_parts_frozen_by_eval_stay_frozen() -> None:
    def build() -> nn.Module:
        model = small_net()
        model[1].eval()  # type: ignore[index]
        return model

    with ab.Training(task(build), recipe()) as training:
        for _ in training:
            pass
        assert torch.equal(training.model[1].running_mean, torch.zeros(5))
        assert training.model[0].training
        assert not training.model[1].training


BAD_LOADERS: dict[str, Callable[[TensorDataset], DataLoader[Any]]] = {
    "part of the set": lambda d: DataLoader(d, sampler=SubsetRandomSampler(range(10))),
    "weighted": lambda d: DataLoader(d, sampler=WeightedRandomSampler([1.0] * len(d), len(d))),
    "own batches": lambda d: DataLoader(d, batch_sampler=[[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("kind", BAD_LOADERS)
def test_a_loader_that_chooses_its_examples_is_refused(kind: str) -> None:
    loader = BAD_LOADERS[kind](TensorDataset(*data()))
    with pytest.raises(ab.InputError, match="train must be a DataLoader with torch's"):
        task(small_net, train=loader)


def test_a_plain_loader_gives_its_data_set_and_its_collation() -> None:
    def doubled(items: list[Any]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*items, strict=True)
        return 2 * torch.stack(inputs), torch.stack(targets)

    loader = DataLoader(TensorDataset(*data()), batch_size=7, shuffle=True, collate_fn=doubled)
    batch = task(small_net, train=loader, validation=data(8)).batch(0, 0, batch_size=4)
    assert torch.equal(batch.inputs, 2 * data()[0][batch.indices])


def test_a_pair_of_lists_is_refused_with_a_hint() -> None:
    with pytest.raises(ab.InputError, match=r"tensors or arrays.*numpy\.array"):
        task(small_net, train=([[0.0] * 6] * 3, [0, 1, 0]))


def test_dict_examples_name_their_target() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, features: Tensor) -> Tensor:
            return self.linear(features)  # type: ignore[no-any-return]

    inputs, targets = data()
    rows = [{"features": x, "labels": y} for x, y in zip(inputs, targets, strict=True)]
    with ab.Training(task(Named, train=rows, target_key="labels"), recipe()) as training:
        training.step()
    assert training.updates == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(6, 2).to(torch.bfloat16), "parameter weight must be float32"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "must not be lazy"),
        (lambda: nn.Sequential(nn.Embedding(3, 2, sparse=True)), "must have dense gradients"),
        (lambda: nn.Linear(6, 2).double(), "float32, got torch.float64"),
    ],
)
def test_models_that_would_be_changed_silently_are_refused(
    build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ab.InputError, match=message):
        ab.Training(task(build), recipe())


def test_double_inputs_are_brought_to_the_precision_of_the_model() -> None:
    inputs, targets = data()
    with ab.Training(task(small_net, train=(inputs.double(), targets)), recipe()) as training:
        training.step()
    assert training.updates == 1


def test_a_loss_with_parameters_is_refused() -> None:
    loss = nn.BCEWithLogitsLoss()
    loss.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ab.InputError, match="must have no parameters"):
        task(small_net, loss=loss).loss_function()


def test_leaving_a_loop_between_records_of_an_update_loses_none_and_test_is_read_once() -> None:
    splits = {"validation": data(8), "test": data(8)}
    every = recipe(stopping=ab.Stopping(evaluate_every=ab.updates(3)))
    with ab.Training(task(small_net, **splits), every) as training:
        whole = [type(r).__name__ + getattr(r, "split", "") for r in training]
    with ab.Training(task(small_net, **splits), every) as training:
        taken = [next(iter(training)) for _ in whole]
        assert [type(r).__name__ + getattr(r, "split", "") for r in taken] == whole
        assert list(training) == []
    assert whole.count("EvalRecordtest") == 1


def test_drawing_in_evaluation_does_not_change_what_is_trained() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(6, 2), nn.Dropout(0.5)

        def forward(self, inputs: Tensor) -> Tensor:
            if not self.training:
                torch.rand(1)
            return self.linear(self.dropout(inputs))  # type: ignore[no-any-return]

    weights = []
    for every in (1, 6):
        stopping = ab.Stopping(evaluate_every=ab.updates(every))
        with ab.Training(task(Drawing), recipe(stopping=stopping)) as training:
            for _ in training:
                pass
            weights.append(training.model.linear.weight.detach().clone())
    assert torch.equal(*weights)
