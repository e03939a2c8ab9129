"""A training: when it records and evaluates, its arithmetic, and every kind of data it takes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset

from anybatch.data.iterable import IterableSource
from anybatch.errors import InputError
from anybatch.objectives import Metric
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    ClipGlobalNorm,
    ComputeSettings,
    ExponentialAverage,
    LossSettings,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
    Stopping,
)
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.run import Run
from anybatch.schedules import Linear, OneCycle, epochs, examples, fraction, updates
from anybatch.task import Task, load_task
from anybatch.training.checkpoint import has_checkpoint
from anybatch.training.loop import create_run, fit, resume, training_records
from anybatch.training.training import Training

NUM = 100
INPUTS = torch.randn(NUM, 5, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()
VALUES = INPUTS[:, :2].sum(1, keepdim=True)


def two_classes(**changes: Any) -> Task:
    settings: dict[str, Any] = {
        "build_model": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)),
        "train": (INPUTS, LABELS),
        "validation": (INPUTS, LABELS),
    }
    return Task(**(settings | changes))


def recipe_of(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "optimizer": SGDSettings(lr=0.1, momentum=0.9),
        "batch_size": 32,
        "duration": epochs(3),
        "records": RecordSettings(log_every=1),
    }
    return Recipe(**(settings | changes))


def records_of(task: Task, recipe: Recipe) -> list[Record]:
    with Training(task, recipe) as training:
        return list(training)


def steps_of(task: Task, recipe: Recipe) -> list[StepRecord]:
    return [record for record in records_of(task, recipe) if isinstance(record, StepRecord)]


def evals_of(task: Task, recipe: Recipe) -> list[EvalRecord]:
    return [record for record in records_of(task, recipe) if isinstance(record, EvalRecord)]


# --- records -------------------------------------------------------------------------------------


def test_every_update_is_on_the_record_with_the_sizes_that_the_epoch_leaves() -> None:
    steps = steps_of(two_classes(), recipe_of())
    assert [record.batch_size for record in steps] == [32, 32, 32, 4] * 3
    assert [record.examples for record in steps][:5] == [32, 64, 96, 100, 132]
    assert [record.update for record in steps] == list(range(1, 13))
    assert [record.epoch for record in steps][:5] == pytest.approx([0.32, 0.64, 0.96, 1.0, 1.32])
    assert all(record.lr == 0.1 and record.momentum == 0.9 for record in steps)


@pytest.mark.parametrize(
    ("log_every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (20, [6]), (6, [6])]
)
def test_records_come_every_so_many_updates_and_at_the_end(
    log_every: int, expected: list[int]
) -> None:
    recipe = recipe_of(
        duration=updates(6), records=RecordSettings(log_every=log_every),
        stopping=Stopping(evaluate_every=epochs(100)),
    )  # fmt: skip
    assert [record.update for record in steps_of(two_classes(), recipe)] == expected


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (epochs(1), [4, 8, 12]),
        (epochs(2), [8, 12]),
        (epochs(0.5), [2, 4, 6, 8, 10, 12]),
        (updates(5), [5, 10, 12]),  # counted in updates, however many examples each takes
        (updates(1), list(range(1, 13))),
        (examples(150), [6, 12]),
        (fraction(0.5), [6, 12]),
        (epochs(50), [12]),
    ],
)
def test_evaluations_come_after_every_such_distance_and_at_the_end(every, expected) -> None:
    recipe = recipe_of(stopping=Stopping(evaluate_every=every))
    evals = evals_of(two_classes(), recipe)
    assert [record.update for record in evals] == expected


def test_an_evaluation_comes_with_a_record_of_the_updates_before_it() -> None:
    recipe = recipe_of(
        duration=updates(6), records=RecordSettings(log_every=5),
        stopping=Stopping(evaluate_every=updates(3)),
    )  # fmt: skip
    records = records_of(two_classes(), recipe)
    kinds = [(record.update, isinstance(record, EvalRecord)) for record in records]
    assert kinds == [(3, False), (3, True), (5, False), (6, False), (6, True)]


def test_a_record_holds_the_mean_loss_of_its_examples() -> None:
    task, sizes = two_classes(), [32, 32, 32, 4]
    each = steps_of(task, recipe_of(duration=epochs(1)))
    one = steps_of(task, recipe_of(duration=epochs(1), records=RecordSettings(log_every=99)))
    mean = sum(r.loss * n for r, n in zip(each, sizes, strict=True)) / 100
    assert [record.loss for record in one] == pytest.approx([mean], rel=1e-12)


def test_records_do_not_depend_on_how_often_they_are_taken() -> None:
    task = two_classes()
    rare = recipe_of(
        stopping=Stopping(evaluate_every=epochs(3)), records=RecordSettings(log_every=12)
    )
    often = recipe_of(stopping=Stopping(evaluate_every=updates(1)))
    with Training(task, rare) as one:
        list(one)
    with Training(task, often) as other:
        list(other)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])


def test_a_training_left_at_a_record_goes_on_where_it_was() -> None:
    task, recipe = two_classes(), recipe_of()
    whole = records_of(task, recipe)
    with Training(task, recipe) as training:
        parts: list[Record] = []
        for record in training:
            parts.append(record)
            if len(parts) == 3:
                break
        parts += list(training)
    losses = [(r.update, r.loss) for r in parts]
    assert losses == [(r.update, r.loss) for r in whole]


def test_a_training_that_has_ended_has_nothing_more_to_say() -> None:
    with Training(two_classes(test=(INPUTS, LABELS)), recipe_of()) as training:
        assert [r.split for r in training if isinstance(r, EvalRecord)][-2:] == [
            "validation",
            "test",
        ]
        assert list(training) == []


def test_threads_and_determinism_are_the_recipes_only_while_it_trains() -> None:
    before = torch.get_num_threads()
    compute = ComputeSettings(threads=before + 1, deterministic=True)
    with Training(two_classes(), recipe_of(compute=compute)) as training:
        training.step()
        assert torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_batch_sizes_follow_their_schedule() -> None:
    schedule = Linear(start=0.5, end=2.0)
    recipe = recipe_of(batch_size=20, schedules=Schedules(batch_size=schedule), duration=epochs(4))
    seen = offset = 0
    expected = []
    while seen < 400:
        size = min(max(1, round(20 * (0.5 + 1.5 * seen / 400))), 100 - offset)
        expected.append(size)
        seen, offset = seen + size, (offset + size) % 100
    steps = steps_of(two_classes(), recipe)
    assert [record.batch_size for record in steps] == expected
    assert steps[-1].examples == 400


def test_scheduled_settings_are_those_of_the_examples_seen_before_the_update() -> None:
    recipe = recipe_of(
        optimizer=SGDSettings(lr=0.1, momentum=0.5, weight_decay=0.01),
        schedules=Schedules(
            lr=Linear(), momentum=Linear(start=0.5, end=1.0), weight_decay=Linear()
        ),
    )
    steps = steps_of(two_classes(), recipe)
    before = [0, *(record.examples for record in steps[:-1])]
    assert [r.lr for r in steps] == pytest.approx([0.1 * (1 - n / 300) for n in before])
    assert [r.momentum for r in steps] == pytest.approx([0.25 + 0.25 * n / 300 for n in before])
    assert [r.weight_decay for r in steps] == pytest.approx([0.01 * (1 - n / 300) for n in before])


# --- no synchronization --------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts reads of a number from a tensor, which wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_nothing_is_read_from_the_device_between_two_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # (averaging reads torch's count of averages, which lies on the CPU whatever the device)
    recipe = recipe_of(
        optimizer=AdamWSettings(lr=0.01),
        schedules=Schedules(lr=OneCycle(), momentum=OneCycle(start=1, peak=0.9, end=1)),
        gradient=(ClipGlobalNorm(max_norm=0.1),),
        loss=LossSettings(label_smoothing=0.1),
    )
    with Training(two_classes(), recipe) as training:
        training.step()
        lists: list[int] = []
        tolist = Tensor.tolist
        monkeypatch.setattr(Tensor, "tolist", lambda self: lists.append(1) or tolist(self))
        with Reads() as reads:
            for _ in range(2):
                training.step()
            assert (reads.count, len(lists)) == (0, 0)
            training._step_record()
            assert reads.count + len(lists) > 0  # the count counts


# --- arithmetic ----------------------------------------------------------------------------------


def constant_logits() -> nn.Module:
    """Logits (1, -1) whatever the input."""
    layer = nn.Linear(5, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    return layer


def test_label_smoothing_is_in_the_training_loss_and_not_in_evaluations() -> None:
    recipe = recipe_of(
        optimizer=SGDSettings(lr=0.0), duration=epochs(1), records=RecordSettings(log_every=4),
        loss=LossSettings(label_smoothing=0.2),
    )  # fmt: skip
    step, evaluation = records_of(two_classes(build_model=constant_logits), recipe)
    of_zero, of_one = math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(2.0))
    share = float(LABELS.double().mean())
    plain = (1 - share) * of_zero + share * of_one
    assert evaluation.loss == pytest.approx(plain, rel=1e-6)
    assert step.loss == pytest.approx(0.8 * plain + 0.2 * (of_zero + of_one) / 2, rel=1e-6)


def test_averaged_weights_are_evaluated_and_kept(tmp_path: Path) -> None:
    decay = 0.8
    task = two_classes()
    recipe = recipe_of(averaging=ExponentialAverage(decay=decay), duration=updates(6))
    with Training(task, recipe) as training:
        average = {k: v.clone() for k, v in training.model.state_dict().items()}
        for record in training:
            if isinstance(record, StepRecord):
                for key, value in training.model.state_dict().items():
                    average[key] = decay * average[key] + (1 - decay) * value
        kept = training.kept_model.state_dict()
        for key, value in average.items():
            torch.testing.assert_close(kept[key], value)
            assert not torch.equal(kept[key], training.model.state_dict()[key])
        loss = nn.functional.cross_entropy(training.kept_model(INPUTS).detach(), LABELS)
        assert training.evaluate("validation").loss == pytest.approx(float(loss), rel=1e-5)
    run = fit(task, recipe, out=tmp_path / "run", progress=False)
    weights = torch.load(run.path / "weights.pt", weights_only=True)
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[key], kept[key]) for key in kept)


def test_an_average_moves_only_every_so_many_updates() -> None:
    recipe = recipe_of(averaging=ExponentialAverage(decay=0.5, every=3), duration=updates(5))
    with Training(two_classes(), recipe) as training:
        kept = []
        for _ in range(5):
            kept.append(training.kept_model.state_dict()["0.weight"].clone())
            training.step()
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(kept)]
    assert moved == [False, False, True, False]


def test_the_norm_before_clipping_is_recorded_and_the_gradient_is_clipped() -> None:
    recipe = recipe_of(gradient=(ClipGlobalNorm(max_norm=0.01),), optimizer=SGDSettings(lr=1.0))
    with Training(two_classes(), recipe) as training:
        before = [p.detach().clone() for p in training.model.parameters()]
        record = next(iter(training))
        moved = [p.detach() - q for p, q in zip(training.model.parameters(), before, strict=True)]
    assert isinstance(record, StepRecord)
    assert record.gradient_norm is not None
    assert record.gradient_norm > 0.05
    norm = float(torch.cat([m.flatten() for m in moved]).norm())
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert all(record.gradient_norm is None for record in steps_of(two_classes(), recipe_of()))


def test_bf16_keeps_the_weights_and_the_losses_in_fp32_and_learns() -> None:
    recipe = recipe_of(compute=ComputeSettings(precision="bf16"), duration=epochs(10))
    kinds = set()

    class Seen(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            outputs = super().forward(inputs)
            kinds.add(outputs.dtype)
            return outputs

    task = two_classes(build_model=lambda: Seen(5, 2))
    with Training(task, recipe) as training:
        records = [record for record in training if isinstance(record, EvalRecord)]
        assert {p.dtype for p in training.model.parameters()} == {torch.float32}
        assert {loss.dtype for loss in training.one_step.losses} == {torch.float32}
    assert torch.bfloat16 in kinds
    assert records[-1].loss < 0.7 * records[0].loss
    assert records[-1].metric > 0.9


def test_fp64_computes_everything_in_float64() -> None:
    recipe = recipe_of(compute=ComputeSettings(precision="fp64"))
    with Training(two_classes(), recipe) as training:
        training.step()
        assert {p.dtype for p in training.model.parameters()} == {torch.float64}
        assert {loss.dtype for loss in training.one_step.losses} == {torch.float64}


def test_channels_last_changes_the_layout_and_not_the_numbers() -> None:
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 3

    def convolution() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    task = Task(build_model=convolution, train=(images, labels), validation=(images, labels))
    settings = {"batch_size": 20, "duration": epochs(2)}
    plain = steps_of(task, recipe_of(**settings))
    compute = ComputeSettings(channels_last=True)
    with Training(task, recipe_of(**settings, compute=compute)) as training:
        other = [record for record in training if isinstance(record, StepRecord)]
        weight = training.model.get_parameter("0.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert [r.loss for r in other] == pytest.approx([r.loss for r in plain], rel=1e-4)


@pytest.mark.skipif(
    not os.environ.get("ANYBATCH_SLOW_TESTS"),
    reason="compiling takes minutes; ANYBATCH_SLOW_TESTS=1",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its own parts
def test_a_compiled_model_trains_to_the_same_numbers() -> None:
    compute = ComputeSettings(compile=True)
    plain = steps_of(two_classes(), recipe_of(duration=updates(3)))
    compiled = steps_of(two_classes(), recipe_of(duration=updates(3), compute=compute))
    assert [r.loss for r in compiled] == pytest.approx([r.loss for r in plain], rel=1e-4)


def test_the_full_batch_is_the_whole_set() -> None:
    steps = steps_of(two_classes(), recipe_of(batch_size="full"))
    assert [(record.batch_size, record.epoch) for record in steps] == [(100, 1), (100, 2), (100, 3)]


def test_models_in_training_mode_and_evaluation_mode() -> None:
    task = two_classes(
        build_model=lambda: nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.9), nn.Linear(64, 2))
    )
    with Training(task, recipe_of()) as training:
        next(iter(training))
        assert training.model.training
        one, other = training.evaluate("train"), training.evaluate("train")
        assert one.loss == other.loss  # no dropout
        assert training.model.training


# --- every kind of data --------------------------------------------------------------------------


class Pairs(Dataset):
    """A map-style data set of (input, label)."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return INPUTS[index], int(LABELS[index])


class Tables(Dataset):
    """A map-style data set of dicts."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> dict[str, Any]:
        half = INPUTS[index]
        return {"left": half[:2], "right": half[2:], "target": int(LABELS[index])}


class TwoInputs(nn.Module):
    """A model that is called with two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(torch.cat([left, right], 1))


def one_layer() -> nn.Module:
    return nn.Linear(5, 2)


DATA = {
    "tensors": (one_layer, (INPUTS, LABELS)),
    "arrays": (one_layer, (INPUTS.numpy(), LABELS.numpy())),
    "TensorDataset": (one_layer, torch.utils.data.TensorDataset(INPUTS, LABELS)),
    "Dataset": (one_layer, Pairs()),
    "DataLoader": (one_layer, DataLoader(Pairs(), batch_size=7, shuffle=True)),
    "list of pairs": (one_layer, [(x, int(y)) for x, y in zip(INPUTS, LABELS, strict=True)]),
    "tuple of inputs": (TwoInputs, ((INPUTS[:, :2], INPUTS[:, 2:]), LABELS)),
    "dict of inputs": (TwoInputs, ({"left": INPUTS[:, :2], "right": INPUTS[:, 2:]}, LABELS)),
    "Dataset of dicts": (TwoInputs, Tables()),
    "DataLoader of dicts": (TwoInputs, DataLoader(Tables(), batch_size=3)),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_trains_to_the_same_weights(kind: str) -> None:
    build, data = DATA[kind]
    task = Task(build_model=build, train=data, validation=data)
    reference = Task(build_model=one_layer, train=(INPUTS, LABELS), validation=(INPUTS, LABELS))
    trained = records_of(task, recipe_of())
    expected = records_of(reference, recipe_of())
    assert [r.loss for r in trained] == pytest.approx([r.loss for r in expected], rel=1e-6)


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_can_have_validation_set_aside(kind: str) -> None:
    build, data = DATA[kind]
    task = Task(build_model=build, train=data)
    assert (task.source("train").num_examples, task.source("validation").num_examples) == (90, 10)
    assert [record.examples for record in evals_of(task, recipe_of())] == [90, 180, 270]


def pairs() -> Iterator[tuple[Tensor, int]]:
    for x, y in zip(INPUTS, LABELS, strict=True):
        yield x, int(y)


class CountedStream(IterableDataset):
    """A stream that can save its place."""

    def __init__(self) -> None:
        self.begun_at: list[int] = []
        self._place = self._next = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        self.begun_at.append(self._next)
        start, self._next = self._next, 0
        for place in range(start, NUM):
            self._place = place + 1
            yield INPUTS[place], int(LABELS[place])

    def state_dict(self) -> dict[str, int]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["place"] % NUM


STREAMS = {
    "function": lambda: pairs,
    "IterableDataset with state": CountedStream,
    "source of known length": lambda: IterableSource(pairs, num_examples=NUM),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_trains_in_its_own_order_and_resumes_to_the_same_numbers(
    kind: str, tmp_path: Path
) -> None:
    def task() -> Task:
        return Task(build_model=one_layer, train=STREAMS[kind](), validation=(INPUTS, LABELS))

    recipe = recipe_of(
        duration=examples(260), stopping=Stopping(evaluate_every=examples(64)),
        records=RecordSettings(log_every=3, checkpoint_every=examples(64)),
    )  # fmt: skip
    whole = fit(task(), recipe, out=tmp_path / "whole", progress=False)
    assert whole.status.examples == 260
    with Training(task(), recipe) as training:
        run = create_run(training, tmp_path / "cut")
        for record in training_records(training, run):
            if record.update == 6:
                break  # as a kill would: the generator is closed, nothing more is written
    assert has_checkpoint(run)
    resumed = resume(run.path, task=task(), progress=False)
    assert [(r.update, r.examples, r.loss) for r in resumed.steps()] == [
        (r.update, r.examples, r.loss) for r in whole.steps()
    ]
    one, other = (torch.load(r.path / "weights.pt", weights_only=True) for r in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_stream_that_saves_its_place_is_not_read_again_up_to_it(tmp_path: Path) -> None:
    recipe = recipe_of(
        duration=examples(160), records=RecordSettings(checkpoint_every=examples(32)),
        stopping=Stopping(evaluate_every=examples(32)),
    )  # fmt: skip

    def task(stream: CountedStream) -> Task:
        return Task(build_model=one_layer, train=stream, validation=(INPUTS, LABELS))

    with Training(task(CountedStream()), recipe) as training:
        run = create_run(training, tmp_path / "run")
        for record in training_records(training, run):
            if record.update == 2 and isinstance(record, EvalRecord):
                break
    again = CountedStream()
    resume(run.path, task=task(again), progress=False)
    assert again.begun_at == [64, 0]


def test_the_order_of_a_stream_is_kept() -> None:
    task = Task(build_model=one_layer, train=pairs, validation=(INPUTS, LABELS))
    stopping = Stopping(evaluate_every=examples(132))
    with Training(task, recipe_of(duration=examples(132), stopping=stopping)) as training:
        seen = []
        while training.feed.examples < 132:
            portion = training.feed.next()
            seen += [portion.batch.indices.tolist()]
            training.gradient(portion)
            training.update(portion.num_examples)
    assert [len(indices) for indices in seen] == [32, 32, 32, 4, 32]
    assert [index for indices in seen[:4] for index in indices] == list(range(100))


def test_a_stream_of_known_length_counts_its_epochs() -> None:
    task = Task(build_model=one_layer, train=pairs, num_examples=NUM, validation=(INPUTS, LABELS))
    assert [(r.examples, r.epoch) for r in evals_of(task, recipe_of())] == [
        (100, 1.0),
        (200, 2.0),
        (300, 3.0),
    ]


def test_the_target_of_a_dict_may_have_another_name() -> None:
    rows = [{"input": x, "label": int(y)} for x, y in zip(INPUTS, LABELS, strict=True)]
    task = Task(build_model=one_layer, train=rows, validation=rows, target_key="label")
    plain = Task(build_model=one_layer, train=(INPUTS, LABELS), validation=(INPUTS, LABELS))
    losses = [record.loss for record in records_of(task, recipe_of())]
    assert losses == pytest.approx([r.loss for r in records_of(plain, recipe_of())], rel=1e-6)


def test_a_stream_must_come_with_validation() -> None:
    with pytest.raises(InputError, match="validation must be given for a stream"):
        Task(build_model=one_layer, train=pairs)


# --- every kind of task --------------------------------------------------------------------------


def test_a_regression_is_learned_and_judged_by_its_squared_error() -> None:
    task = Task(
        build_model=lambda: nn.Linear(5, 1), train=(INPUTS, VALUES), kind="regression",
        validation=(INPUTS, VALUES),
    )  # fmt: skip
    evals = evals_of(task, recipe_of(optimizer=SGDSettings(lr=0.1), duration=epochs(20)))
    assert {record.metric_name for record in evals} == {"squared_error"}
    assert evals[-1].metric == pytest.approx(evals[-1].loss, rel=1e-6)
    assert evals[-1].loss < 0.01 < 0.2 < evals[0].loss


def test_a_language_model_learns_to_count(tmp_path: Path) -> None:
    def letters() -> nn.Module:
        return nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 8))

    path = tmp_path / "abc.txt"
    path.write_text("abcdefgh" * 4000)
    task = load_task(f"text:{path}")
    recipe = Recipe(
        optimizer=AdamSettings(lr=0.02),
        duration=updates(20),
        batch_size=16,
        stopping=Stopping(evaluate_every=updates(10)),
    )
    with Training(dataclasses.replace(task, build_model=letters), recipe) as training:
        evals = [record for record in training if isinstance(record, EvalRecord)]
    assert {record.metric_name for record in evals} == {"bits_per_token"}
    assert [record.split for record in evals] == ["validation", "validation", "test"]
    for record in evals:
        assert record.metric == pytest.approx(record.loss / math.log(2), rel=1e-6)
    assert evals[-1].metric < 0.5 < 3.0  # 3 bits tell 8 letters apart


def test_ones_own_loss_and_metric_are_used() -> None:
    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        signs = 2.0 * targets - 1.0
        return (1.0 - signs * outputs[:, 0]).clamp(min=0)

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] > 0).long() != targets).float()

    task = two_classes(
        build_model=lambda: nn.Linear(5, 1),
        loss=hinge,
        metric=Metric(name="error", direction="min", per_example=error),
    )
    with Training(task, recipe_of(duration=epochs(10))) as training:
        evals = [record for record in training if isinstance(record, EvalRecord)]
        outputs = training.model(INPUTS).detach()
    assert evals[-1].loss == pytest.approx(float(hinge(outputs, LABELS).mean()), rel=1e-5)
    assert evals[-1].metric == pytest.approx(float(error(outputs, LABELS).mean()), abs=1e-6)
    assert evals[-1].metric_name == "error"
    assert evals[-1].metric < 0.1 < evals[0].loss


def test_a_loss_module_gives_the_same_training_as_the_function() -> None:
    plain = steps_of(two_classes(), recipe_of())
    module = steps_of(two_classes(loss=nn.CrossEntropyLoss()), recipe_of())
    assert [r.loss for r in module] == [r.loss for r in plain]


def test_a_loss_over_the_whole_batch_counts_for_each_of_its_examples() -> None:
    def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    plain = records_of(two_classes(), recipe_of())
    batch = records_of(two_classes(loss=coupled, loss_scope="batch"), recipe_of())
    assert [r.loss for r in batch] == pytest.approx([r.loss for r in plain], rel=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    losses = [
        [record.loss for record in steps_of(two_classes(), recipe_of(seed=seed))]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_run_made_by_fit_says_what_a_training_says(tmp_path: Path) -> None:
    task, recipe = two_classes(test=(INPUTS, LABELS)), recipe_of()
    run = fit(task, recipe, out=tmp_path / "run", progress=False)
    records = records_of(task, recipe)
    assert [r.loss for r in run.steps()] == [r.loss for r in records if isinstance(r, StepRecord)]
    assert [(r.split, r.loss) for r in run.evals()] == [
        (r.split, r.loss) for r in records if isinstance(r, EvalRecord)
    ]
    assert [r.split for r in run.evals()] == ["validation"] * 3 + ["test"]
    assert Run(run.path).status.name == "finished"
    assert np.isfinite(run.status.seconds)
