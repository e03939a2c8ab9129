"""A batch size that follows the noise scale: what is observed, what moves, and what goes with it.

Ranks are in tests/distributed; what follows from an interval is in tests/test_batch_control.py.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import exact_cases as cases

from anybatch.data.iterable import IterableSource
from anybatch.errors import InputError
from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale
from anybatch.recipe import (
    AdaptiveBatchSize,
    Augmentation,
    BlockSettings,
    ClipGlobalNorm,
    LossSettings,
    Mixup,
    Recipe,
    RecordSettings,
    ReduceOnPlateauSettings,
    Schedules,
    SGDSettings,
    SGDWSettings,
    Stopping,
)
from anybatch.records import EventRecord, StepRecord
from anybatch.reporting.curves import panels
from anybatch.reporting.page import write_report
from anybatch.reporting.sources import read_groups
from anybatch.schedules import Linear, epochs, examples, updates
from anybatch.task import Task
from anybatch.training.loop import fit, resume
from anybatch.training.training import Training
from anybatch.world import World

ONE = World(torch.device("cpu"))
WIDTH = 10


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def regression(
    num_examples: int = 4000, noise: float = 3.0, seed: int = 1
) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, WIDTH, generator=drawn)
    targets = inputs.sum(1, keepdim=True) + noise * torch.randn(num_examples, 1, generator=drawn)
    return inputs, targets


def task_of(data: Any = None, **changes: Any) -> Task:
    parts: dict[str, Any] = {
        "build_model": lambda: nn.Linear(WIDTH, 1),
        "train": regression() if data is None else data,
        "validation": regression(100, seed=2),
        "kind": "regression",
    }
    return Task(**(parts | changes))


def recipe_of(lr: float = 0.01, control: AdaptiveBatchSize | None = None, **changes: Any) -> Recipe:
    recipe = Recipe(
        optimizer=SGDSettings(lr=lr, momentum=0.5),
        batch_size=16,
        duration=epochs(2),
        batch_control=control or AdaptiveBatchSize(every=examples(800)),
        stopping=Stopping(evaluate_every=epochs(1)),
        compute=cases.COMPUTE,
        records=RecordSettings(log_every=25),
    )
    return replace(recipe, **changes)


def looks(records: Any) -> list[EventRecord]:
    return [record for record in records if isinstance(record, EventRecord)]


def trained(recipe: Recipe, task: Task | None = None) -> tuple[Training, list[Any]]:
    training = Training(task or task_of(), recipe, world=ONE)
    return training, list(training)


def told(event: EventRecord) -> str:
    """All of an event as text, so that nan equals nan."""
    return str(dataclasses.asdict(event))


def exact_noise(task: Task, training: Training) -> tuple[float, float]:
    """|G|^2 and tr Sigma (divisor N - 1) of the whole training set at the present weights."""
    inputs, targets = (t.double() for t in task.train)
    weight, bias = training.model.weight, training.model.bias
    errors = 2.0 * (inputs @ weight.T + bias - targets)
    gradients = torch.cat([errors * inputs, errors], dim=1).detach()
    mean = gradients.mean(0)
    trace = (gradients - mean).square().sum() / (len(gradients) - 1)
    return float(mean.square().sum()), float(trace)


# --- what is observed ---------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_pairs_of_a_pass_are_right_on_average(micro: int | None, reduction: str) -> None:
    """At weights that stand still, the means of the looks within 3.5 standard errors."""
    control = AdaptiveBatchSize(every=epochs(1), largest=17)
    task = task_of(regression(1000))
    recipe = recipe_of(
        lr=0.0, control=control, micro_batch_size=micro, loss=LossSettings(reduction=reduction)
    )  # type: ignore[arg-type]
    training = Training(task, replace(recipe, duration=epochs(40)), world=ONE)
    (norm, trace) = exact_noise(task, training)
    events = looks(training)
    assert len(events) == 40
    assert {event.values["pairs"] for event in events} <= {32, 64, 96}
    for name, exact in (("squared_gradient_norm", norm), ("covariance_trace", trace)):
        found = torch.tensor([event.values[name] for event in events[2::3]])
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - exact) < 3.5 * error, name
        assert error < 0.2 * exact


def test_an_observed_full_batch_is_divided_as_every_other() -> None:
    sizes = []

    class Seen(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(inputs))
            return super().forward(inputs)

    control = AdaptiveBatchSize(every=epochs(4), smallest=100)
    recipe = recipe_of(control=control, duration=epochs(8), batch_size="full")
    recipe = replace(recipe, compute=replace(recipe.compute, evaluation_batch_size=100))
    task = task_of(regression(1000), build_model=lambda: Seen(WIDTH, 1))
    _, records = trained(recipe, task)
    assert looks(records)
    assert max(sizes) == 100


def test_every_copy_of_an_example_is_one_of_the_set() -> None:
    control = AdaptiveBatchSize(every=examples(800), smallest=16)
    recipe = recipe_of(control=control, batch_size=256, augmentation=Augmentation(copies=2))
    training, records = trained(recipe, task_of(regression(200)))
    assert training.clock.examples_per_epoch == 400
    assert looks(records)


def test_the_batch_size_comes_to_the_noise_scale_and_stays_there() -> None:
    task = task_of(regression(noise=20.0))
    recipe = recipe_of(lr=0.0, duration=epochs(30))
    training, records = trained(recipe, task)
    norm, trace = exact_noise(task, training)
    assert trace / norm > 200
    last = looks(records)[-1]
    assert last.name == "batch-size-looked-at"
    assert last.values["noise_scale_low"] < trace / norm < last.values["noise_scale_high"]
    assert 0.5 < last.values["batch_size_after"] / (trace / norm) < 2.0
    shrinking = replace(recipe, batch_size=1024, batch_control=AdaptiveBatchSize(
        every=examples(4000), smallest=2))  # fmt: skip
    _, records = trained(replace(shrinking, duration=epochs(60)), task)
    assert 0.5 < looks(records)[-1].values["batch_size_after"] / (trace / norm) < 2.0


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("ghost", [None, 4])
def test_observing_does_not_change_what_is_trained(network: str, ghost: int | None) -> None:
    """Halves of an update add up to its gradient; transforms come after; nothing ever moves."""
    still = AdaptiveBatchSize(every=examples(200), factor=1e6, largest=17)
    plain = cases.make_recipe(
        "sgd", ghost, duration=epochs(6), gradient=(ClipGlobalNorm(max_norm=0.1),)
    )
    expected = cases.train(network, plain, ONE)
    found = cases.train(network, replace(plain, batch_control=still), ONE)
    events = [r for r in found["records"] if "sentence" in r]
    assert len(events) == 2
    assert events[-1]["pairs"] == 29  # every update up to the 29th, which passes 400 examples
    found["records"] = [r for r in found["records"] if "sentence" not in r]
    cases.assert_same(found, expected)


def test_micro_batches_are_parts_as_they_are() -> None:
    still = AdaptiveBatchSize(every=examples(200), factor=1e6, largest=17)
    plain = cases.make_recipe("adamw", None, duration=epochs(4), micro_batch_size=4)
    expected = cases.train("mlp", plain, ONE)
    found = cases.train("mlp", replace(plain, batch_control=still), ONE)
    found["records"] = [r for r in found["records"] if "sentence" not in r]
    cases.assert_same(found, expected, tolerance=0.0)


def test_only_some_updates_are_observed() -> None:
    """32 of those between two looks, evenly; what is not observed has no hooks."""
    control = AdaptiveBatchSize(every=examples(800), largest=9, factor=1e6)
    recipe = recipe_of(batch_size=8, duration=epochs(3), control=control)
    training = Training(task_of(), recipe, world=ONE)
    training.one_step.train_mode()
    divided = []
    for _ in range(300):
        training.step()
        divided.append(len(training.one_step.losses) == 2)
        assert not training.model.weight._backward_hooks
    assert sum(divided) == 96
    assert sum(divided[:50]) == pytest.approx(16, abs=1)


def test_nothing_is_looked_at_before_its_time() -> None:
    control = AdaptiveBatchSize(every=examples(800), begin_after=examples(3000))
    _, records = trained(recipe_of(control=control))
    found = looks(records)
    assert [event.examples for event in found][:2] == [3200, 4000]
    assert found[0].values["pairs"] == pytest.approx(32 * 200 / 800, abs=1)
    assert "observed updates, of at least 12" in found[0].sentence


def test_fresh_draws_are_no_draws_from_a_finite_set() -> None:
    """The set of 64 is seen whole: its gradient has no noise, unless examples are drawn anew."""
    data = regression(64)
    control = AdaptiveBatchSize(every=updates(12), smallest=2)
    whole = recipe_of(lr=0.0, control=control, batch_size="full", duration=epochs(12))
    _, records = trained(whole, task_of(data))
    (event,) = looks(records)
    squares = event.values["squared_gradient_norm"]
    task = task_of(data)
    norm, _ = exact_noise(task, Training(task, whole, world=ONE))
    assert squares == pytest.approx(norm)
    dropping = task_of(
        data, build_model=lambda: nn.Sequential(nn.Dropout(1e-9), nn.Linear(WIDTH, 1))
    )
    training, records = trained(whole, dropping)
    (event,) = looks(records)
    assert event.values["squared_gradient_norm"] < squares  # minus S / n
    assert training.state_dict()["batch_control"]["set_size"] == math.inf


# --- what goes with it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "power"), [("constant", 0.0), ("square-root", 0.5), ("linear", 1)]
)
def test_lr_follows_times_schedule_and_plateau(rule: Any, power: float) -> None:
    control = AdaptiveBatchSize(every=examples(800), lr_rule=rule, largest=128)
    recipe = recipe_of(
        1e-3, control,
        duration=epochs(3),
        schedules=Schedules(lr=Linear(end=0.5)),
        plateau=ReduceOnPlateauSettings(patience=0, threshold=0.99, factor=0.5),
        records=RecordSettings(log_every=1),
        stopping=Stopping(evaluate_every=epochs(0.5)),
    )  # fmt: skip
    _, records = trained(recipe)
    size, plateau, moves, before = 16.0, 1.0, 0, 0
    for record in records:
        if isinstance(record, StepRecord):
            schedule = 1.0 - 0.5 * before / 12_000
            expected = 1e-3 * schedule * plateau * (size / 16) ** power
            assert record.lr == pytest.approx(expected, rel=1e-12)
            assert record.batch_size in (size, *_ends(before, size))
            before = record.examples
        elif isinstance(record, EventRecord) and record.name == "lr-reduced":
            plateau *= 0.5
        elif isinstance(record, EventRecord):
            assert record.values["batch_size_before"] == size
            size = record.values["batch_size_after"]
            moves += record.name == "batch-size-changed"
    assert moves >= 2
    assert plateau < 1.0


def _ends(seen: int, size: float) -> tuple[int, ...]:
    """Examples left of an epoch or of the run, where fewer than a batch."""
    left = 4000 - seen % 4000
    return (left,) if left < size else ()


def test_accumulation_is_the_undivided_training_with_its_decisions() -> None:
    """Halves of 16 are micro-batches of 8; at larger sizes the parts, and so the looks, differ."""
    control = AdaptiveBatchSize(every=examples(800), largest=32)
    recipe = recipe_of(control=control, duration=examples(1600))
    _, whole = trained(recipe)
    _, divided = trained(replace(recipe, micro_batch_size=8))
    pairs = [
        (one, other)
        for one, other in zip(looks(whole), looks(divided), strict=True)
        if one.values["batch_size_before"] == 16
    ]
    assert pairs
    for one, other in pairs:
        assert other.sentence == one.sentence
        assert other.values == pytest.approx(one.values, rel=1e-9, nan_ok=True)


def test_every_pass_sees_each_example_once() -> None:
    """No example is lost or repeated where the size moves."""
    task = task_of()
    training = Training(task, recipe_of(lr=1e-3, duration=epochs(3)), world=ONE)
    training.one_step.train_mode()
    sizes, seen = [], []
    while training.feed.examples < 12_000:
        portion = training.feed.next()
        seen.append(portion.indices.clone())
        sizes.append(portion.num_examples)
        training.step()
    assert max(sizes) >= 64
    for part in torch.cat(seen).split(4000):
        assert sorted(part.tolist()) == list(range(4000))


class Rows(torch.utils.data.Dataset[Any]):
    """Examples that are read one by one."""

    def __init__(self) -> None:
        self.inputs, self.targets = regression()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_read_ahead_in_the_old_size_is_let_go(workers: int) -> None:
    """A loader, also of its own processes, hands out what data in memory would have."""
    recipe = recipe_of(duration=examples(6000))
    compute = replace(recipe.compute, num_workers=workers)
    with Training(task_of(Rows()), replace(recipe, compute=compute), world=ONE) as streamed:
        records = looks(streamed)
    resident, expected = trained(recipe)
    assert [told(event) for event in records] == [told(event) for event in looks(expected)]
    assert {event.name for event in records} == {"batch-size-changed", "batch-size-looked-at"}
    assert all(map(torch.equal, streamed.model.parameters(), resident.model.parameters()))


@pytest.mark.parametrize("known", [True, False])
def test_a_stream_is_read_on_without_a_gap(known: bool) -> None:
    inputs, targets = regression(3000)
    rows = [(inputs[n], targets[n]) for n in range(3000)]
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for number, row in enumerate(rows):
            read.append(number)
            yield row

    source = IterableSource(stream, num_examples=3000 if known else None)
    recipe = recipe_of(
        1e-3, duration=examples(6000), stopping=Stopping(evaluate_every=examples(3000))
    )
    training = Training(task_of(source), recipe, world=ONE)
    begun = len(read)
    records = list(training)
    assert any(event.name == "batch-size-changed" for event in looks(records))
    assert training.feed.examples == 6000
    passes = "".join("|" if number == 0 else "." for number in read[begun:])
    assert passes.count("|") == 2
    assert read[begun:] == [*range(3000)] * 2


# --- saved, resumed, begun from, measured -------------------------------------------------------


def test_a_training_resumed_anywhere_is_the_uninterrupted_one_to_the_last_bit() -> None:
    recipe = recipe_of(duration=epochs(1), optimizer=SGDSettings(lr=1e-3, momentum=0.9))
    recipe = replace(recipe, batch_control=AdaptiveBatchSize(every=examples(500)))
    whole, every = trained(recipe)
    assert sum(event.name == "batch-size-changed" for event in looks(every)) >= 2
    weights = nn.utils.parameters_to_vector(whole.model.parameters())
    for num_updates in (1, 20, 31, 32, 40, 63, 64, 70, 80):
        first = Training(task_of(), recipe, world=ONE)
        first.one_step.train_mode()
        for _ in range(num_updates):
            first.step()
        second = Training(task_of(), recipe, world=ONE)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        rest = looks(second)
        expected = [event for event in looks(every) if event.update > num_updates]
        assert [told(event) for event in rest] == [told(event) for event in expected]
        assert torch.equal(nn.utils.parameters_to_vector(second.model.parameters()), weights)
        list(first)  # saving has not disturbed the one that was saved
        assert torch.equal(nn.utils.parameters_to_vector(first.model.parameters()), weights)


def test_looks_between_two_records_are_said_and_written(tmp_path: Path) -> None:
    recipe = recipe_of(records=RecordSettings(log_every=10_000, checkpoint_every=epochs(1)))
    run = fit(task_of(), recipe, out=tmp_path / "run", progress=False)
    assert [event.examples for event in run.events()][:2] == [800, 1600]
    assert [record.examples for record in run.steps()] == [4000, 8000]
    assert run.recipe == recipe
    longer = resume(run.path, task=task_of(), extend=epochs(1), progress=False)
    before = {event.examples for event in run.events()}
    assert max(event.examples for event in longer.events()) > 8000
    assert before <= {event.examples for event in longer.events()}
    sizes = [(e.values["batch_size_before"], e.values["batch_size_after"]) for e in longer.events()]
    assert all(late[0] == early[1] for early, late in pairwise(sizes))


def test_a_look_is_said_where_it_is_taken() -> None:
    training = Training(task_of(), recipe_of(records=RecordSettings(log_every=10_000)), world=ONE)
    updates_seen = [(training.updates, record.update) for record in training]
    assert all(now == said for now, said in updates_seen)
    assert len(updates_seen) >= 10


def test_a_report_marks_the_moves_and_lists_every_look(tmp_path: Path) -> None:
    run = fit(task_of(), recipe_of(), out=tmp_path / "run", progress=False)
    moved = [event for event in run.events() if event.name == "batch-size-changed"]
    assert 0 < len(moved) < len(list(run.events()))
    page = write_report([run.path], out=tmp_path / "page.html").read_text()
    assert all(html.escape(event.sentence) in page for event in run.events())
    marks = {panel.name: panel.marks for panel in panels(read_groups([run.path]))}
    for name in ("lr", "batch-size"):
        assert [mark.sentence for mark in marks[name]] == [event.sentence for event in moved]
    assert marks["loss"] == ()


def test_an_interruption_keeps_what_was_looked_at() -> None:
    recipe = recipe_of()
    training = Training(task_of(), recipe, world=ONE)
    head = list(islice(training.rounds(), 4))
    other = Training(task_of(), recipe, world=ONE)
    other.load_state_dict(training.state_dict())
    rest = list(other)
    _, every = trained(recipe)
    found = [told(event) for event in looks(chain(*head, rest))]
    assert found == [told(event) for event in looks(every)]


def test_another_training_begins_at_its_own_size() -> None:
    recipe = recipe_of(1e-3)
    first, records = trained(recipe)
    assert looks(records)[-1].values["batch_size_after"] > 16
    other = Training(task_of(), replace(recipe, duration=epochs(4)), world=ONE)
    other.begin_from(first.state_dict())
    assert other.feed.position().size == 16
    other.one_step.train_mode()
    other.step()
    assert other.one_step.hyperparameters.current()["lr"] == 1e-3


def test_a_measurement_sees_the_present_size_and_leaves_no_trace() -> None:
    recipe = recipe_of(1e-3)
    training, measured = (Training(task_of(), recipe, world=ONE) for _ in range(2))
    heads = [list(islice(one.rounds(), 12)) for one in (training, measured)]
    size = looks(chain(*heads[0]))[-1].values["batch_size_after"]
    assert size > 16
    found = measure_noise_scale(measured, settings=NoiseScaleSettings(max_probes=4))
    assert found.samples["examples"][0] == 4 * size
    assert [told(e) for e in looks(training)] == [told(e) for e in looks(measured)]
    assert all(map(torch.equal, training.model.parameters(), measured.model.parameters()))


# --- refused ------------------------------------------------------------------------------------


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"duration": updates(100)}, {}, "duration must not be in updates"),
        (
            {"schedules": Schedules(batch_size=Linear(start=1.0, end=2.0))}, {},
            "schedules.batch_size must be constant where batch_control moves",
        ),
        (
            {}, {"build_model": _normed},
            "ghost_batch_size must be set for BatchNorm under batch_control",
        ),
        (
            {"ghost_batch_size": 16}, {"build_model": _normed},
            "ghost_batch_size must be at most half of the smallest batch size, 16",
        ),
        (
            {"batch_size": 1}, {},
            "batch_control.smallest must be >= 2 examples",
        ),
        ({"blocks": BlockSettings(size=4)}, {}, "batch_control must be left out beside blocks"),
        (
            {"optimizer": SGDWSettings(lr=0.1, weight_decay=0.1, decay="normalized")}, {},
            "optimizer.decay must not be normalized under batch_control",
        ),
        (
            {"batch_control": AdaptiveBatchSize(begin_after=updates(9))}, {},
            "batch_control.begin_after must not be in updates",
        ),
    ],
)  # fmt: skip
def test_what_has_no_parts_is_refused_in_one_line(
    changes: dict[str, Any], task: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        Training(task_of(**task), recipe_of(**changes), world=ONE)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_mixup_needs_ghosts() -> None:
    images = torch.rand(40, 1, 6, 6), torch.arange(40) % 3
    task = Task(build_model=lambda: cases.smooth_cnn(False), train=images, validation=images)
    mixed = recipe_of(augmentation=Augmentation(mixing=Mixup()))
    with pytest.raises(InputError, match="ghost_batch_size must be set for mixup"):
        Training(task, mixed, world=ONE)
