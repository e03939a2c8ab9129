"""Throughput on a clock that the model and the data move: every number is known beforehand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring import (
    loading_time,
    memory,
    throughput_samples,
    timed_step,
)
from anybatch.measuring.step_time import seconds_per_update
from anybatch.measuring.throughput import ThroughputSettings, measure_throughput
from anybatch.measuring.throughput_reading import COLUMNS, read_throughput
from anybatch.recipe import BlockSettings, GradientPenalty, LossSettings, Recipe, SGDSettings
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

FIXED, EACH, LOADING = 4e-3, 1e-4, 2e-5  # seconds; B_half = 40
FIXED_AT_FIRST = FIXED
SETTINGS = ThroughputSettings(seconds=2.0, rounds=3)
RECIPE = Recipe(optimizer=SGDSettings(lr=0.1, momentum=0.9), batch_size=32, duration=updates(60))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (timed_step, loading_time, throughput_samples):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(loading_time, "_EXAMPLES", 64)  # the clock of the tests never hurries
    return clock


class Late(torch.autograd.Function):
    """Moves the clock: a third of a pass forward, two thirds backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, clock: Clock) -> Tensor:
        ctx.clock, ctx.seconds = clock, FIXED + EACH * len(inputs)
        clock.now += ctx.seconds / 3.0
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.clock.now += ctx.seconds * 2.0 / 3.0
        return gradient, None


class Net(nn.Module):
    def __init__(self, clock: Clock, least: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.clock, self.least = clock, least
        self.passes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.passes.append(len(inputs))
            if len(inputs) < self.least:
                raise ValueError("too few for me")
        outputs: Tensor = Late.apply(self.linear(inputs), self.clock)
        return outputs


class Rows(torch.utils.data.Dataset[Any]):
    """Each example takes its time."""

    def __init__(self, clock: Clock, count: int, seconds: float) -> None:
        self.clock, self.count, self.seconds = clock, count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.clock.now += self.seconds
        return torch.randn(3), index % 2


def make_task(clock: Clock, *, count: int = 500, loading: float = LOADING, **changes: Any) -> Task:
    validation = torch.randn(20, 3), torch.arange(20) % 2
    least = changes.pop("least", 1)
    given: dict[str, Any] = {
        "build_model": lambda: Net(clock, least),
        "train": Rows(clock, count, loading),
        "validation": validation,
    }
    return Task(**(given | changes))


def value(measured: Measurement, name: str) -> float:
    found = measured.estimates[name].value
    assert found is not None, measured.estimates[name]
    return found


def names(measured: Measurement) -> set[str]:
    return {finding.name for finding in measured.findings}


def sizes(measured: Measurement) -> list[int]:
    return sorted({int(size) for size in measured.samples["batch_size"]})


# --- the numbers ---------------------------------------------------------------------------------


def test_known_seconds_come_back(clock: Clock) -> None:
    measured = measure_throughput(make_task(clock), RECIPE, settings=SETTINGS)
    assert tuple(measured.samples) == COLUMNS
    assert sizes(measured) == [1, 2, 4, 8, 16, 32, 64, 128, 256]  # the set holds 500
    rows = zip(*(measured.samples[name] for name in COLUMNS), strict=True)
    for size, _, forward, backward, optimizer, loading, update, _ in rows:
        seconds = FIXED + EACH * size
        parts = (forward, backward, optimizer)
        assert parts == pytest.approx((seconds / 3, seconds * 2 / 3, 0.0), abs=1e-9)
        assert update == pytest.approx(sum(parts))
        assert loading == pytest.approx(LOADING * size)
    assert value(measured, "fixed_seconds") == pytest.approx(FIXED, rel=1e-6)
    assert value(measured, "seconds_per_example") == pytest.approx(EACH, rel=1e-6)
    assert value(measured, "b_half") == pytest.approx(FIXED / EACH, rel=1e-6)
    assert value(measured, "loading_seconds_per_example") == pytest.approx(LOADING)
    assert seconds_per_update(measured.settings["fit"], 1000) == pytest.approx(0.104)
    # 500 = 15 updates of 32, and one of 20.
    whole, rest = FIXED + EACH * 32, FIXED + EACH * 20
    assert value(measured, "epoch_compute_seconds") == pytest.approx(15 * whole + rest, rel=1e-6)
    assert value(measured, "epoch_loading_seconds") == pytest.approx(500 * LOADING)
    assert "loader-bound" not in names(measured)


def test_every_round_visits_every_size_in_an_order_of_its_own(clock: Clock) -> None:
    measured = measure_throughput(make_task(clock), RECIPE, settings=SETTINGS)
    orders = []
    for number in range(SETTINGS.rounds):
        rows = zip(measured.samples["batch_size"], measured.samples["round"], strict=True)
        orders.append(list(dict.fromkeys(size for size, own in rows if own == number)))
    assert all(sorted(order) == sizes(measured) for order in orders)
    assert len({tuple(order) for order in orders}) == SETTINGS.rounds
    of_size = [measured.samples["batch_size"].count(size) for size in sizes(measured)]
    assert of_size == sorted(of_size, reverse=True)  # large ones are timed less often
    assert of_size[0] > of_size[-1]


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_the_time_allowed_is_kept(clock: Clock, seconds: float) -> None:
    settings = ThroughputSettings(seconds=seconds, rounds=1000)
    task = make_task(clock, count=10**6)
    before = clock.now
    measured = measure_throughput(task, RECIPE, settings=settings)
    assert 0.5 * seconds < clock.now - before < 1.2 * seconds
    assert measured.settings["stopped_by"] == "time"
    assert max(measured.samples["update_seconds"]) <= 0.05 * seconds * 1.01


@pytest.mark.parametrize(
    ("growth", "rounds"), [(1.0, 3), (1.005, 3), (1.1, 12)], ids=["steady", "sure", "unsure"]
)
def test_no_further_round_once_the_medians_are_precise(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, growth: float, rounds: int
) -> None:
    """A machine that slows down from round to round."""
    settings = ThroughputSettings(seconds=100.0, rounds=12, precision=0.01, max_micro_batch_size=8)
    visit = throughput_samples.ThroughputTest._visit

    def slower(test: Any, size: int, number: int) -> None:
        monkeypatch.setattr(sys.modules[__name__], "FIXED", FIXED_AT_FIRST * growth**number)
        visit(test, size, number)

    monkeypatch.setattr(throughput_samples.ThroughputTest, "_visit", slower)
    measured = measure_throughput(make_task(clock), RECIPE, settings=settings)
    assert len(set(measured.samples["round"])) == rounds
    assert measured.settings["precision"] == 0.01


def test_a_slow_loader_is_told_and_does_not_use_up_the_time(clock: Clock) -> None:
    task = make_task(clock, count=5000, loading=0.01)
    before = clock.now
    measured = measure_throughput(task, RECIPE, settings=SETTINGS)
    assert clock.now - before < 1.3 * SETTINGS.seconds
    assert value(measured, "loading_seconds_per_example") == pytest.approx(0.01)
    assert value(measured, "seconds_per_example") == pytest.approx(EACH, rel=1e-6)
    (finding,) = [f for f in measured.findings if f.name == "loader-bound"]
    assert "4444 % longer" in finding.sentence  # 0.32 s of loading beside 7.2 ms
    assert "num_workers" in finding.advice
    assert max(sizes(measured)) > measured.settings["loading"]["largest_loaded"]


def test_loader_processes_hide_what_is_shorter_than_the_update(clock: Clock) -> None:
    measured = measure_throughput(make_task(clock), RECIPE, settings=SETTINGS)
    hidden = read_throughput(measured.samples, {**measured.settings, "num_workers": 2})
    assert hidden.estimates["epoch_loading_seconds"].value == 0.0
    assert hidden.loading_share == 0.0
    slow = {**measured.settings["loading"], "samples": [[1.0, 1e-3], [32.0, 32e-3]]}
    settings = {**measured.settings, "num_workers": 2, "loading": slow}
    shown = read_throughput(measured.samples, settings)
    each = 32e-3 - (FIXED + EACH * 32)
    assert shown.loading_share == pytest.approx(each / (FIXED + EACH * 32), rel=1e-3)


def test_micro_batches_share_the_optimizer(clock: Clock) -> None:
    recipe = replace(RECIPE, batch_size=100, micro_batch_size=30)
    measured = measure_throughput(make_task(clock), recipe, settings=SETTINGS)
    assert 64 in sizes(measured)  # one pass, although the recipe would divide it
    assert 30 in sizes(measured)
    settings = measured.settings
    optimizer = 1e-3
    samples = dict(measured.samples)
    samples["update_seconds"] = tuple(t + optimizer for t in samples["update_seconds"])
    samples["optimizer_seconds"] = (optimizer,) * len(samples["round"])
    epoch = read_throughput(samples, settings).estimates["epoch_compute_seconds"].value
    each = 3 * (FIXED + EACH * 30) + (FIXED + EACH * 10) + optimizer
    assert epoch == pytest.approx(5 * each, rel=1e-6)


def test_a_pass_is_not_divided_even_where_the_recipe_divides(clock: Clock) -> None:
    nets: list[Net] = []

    def build() -> Net:
        nets.append(Net(clock))
        return nets[-1]

    recipe = replace(RECIPE, micro_batch_size=8)
    measure_throughput(make_task(clock, build_model=build), recipe, settings=SETTINGS)
    assert {64, 128, 256} <= set(nets[-1].passes)


def test_the_stored_measurement_gives_the_same_estimates_again(clock: Clock) -> None:
    measured = measure_throughput(make_task(clock), RECIPE, settings=SETTINGS)
    stored = Measurement.from_dict(json.loads(json.dumps(measured.to_dict(), allow_nan=False)))
    again = read_throughput(stored.samples, stored.settings)
    assert again.estimates == measured.estimates
    assert again.fit == measured.settings["fit"]
    assert again.fitted == measured.fitted


# --- what stays ----------------------------------------------------------------------------------


def test_weights_stay_and_loss_and_lr_are_put_back(clock: Clock) -> None:
    with Training(make_task(clock), RECIPE) as training:
        training.step()
        step = training.one_step
        before, loss = [p.detach().clone() for p in training.model.parameters()], step.loss
        with timed_step.timed_step(training) as timed:
            portion = training.feed.next()
            timed.take(portion)
            assert all(map(torch.equal, before, training.model.parameters()))
            assert timed.has_gradient()
        assert step.loss is loss
        assert step.hyperparameters.fixed_lr is None
        measured = measure_throughput(training, settings=SETTINGS)
        assert measured.settings["after_updates"] == training.updates
        training.step()
        assert not all(map(torch.equal, before, training.model.parameters()))


def test_a_penalty_in_units_of_lr_is_timed_though_the_weights_stay(clock: Clock) -> None:
    blocks = BlockSettings(size=16, penalty=GradientPenalty(unit="lr"))
    with Training(make_task(clock), replace(RECIPE, blocks=blocks)) as training:
        before = [p.detach().clone() for p in training.model.parameters()]
        with timed_step.timed_step(training) as timed:
            for _ in range(3):
                training.model.passes.clear()
                timed.take(training.feed.next())
                assert training.model.passes == [16] * 4  # two blocks, each displaced once
        assert all(map(torch.equal, before, training.model.parameters()))
        assert training.optimizer.param_groups[0]["lr"] == 0.1


def test_loss_and_lr_are_put_back_after_an_exception(clock: Clock) -> None:
    with Training(make_task(clock), RECIPE) as training:
        loss = training.one_step.loss
        with pytest.raises(KeyboardInterrupt), timed_step.timed_step(training):
            raise KeyboardInterrupt
        assert training.one_step.loss is loss
        assert training.one_step.hyperparameters.fixed_lr is None


# --- limits --------------------------------------------------------------------------------------


class Meter:
    """1 MB an example beside 2 MB, in 100 MB."""

    method, resolution = "fake", 1e4
    free = 100e6

    def __init__(self, device: torch.device) -> None:
        self.nets: list[int] = []

    def begin(self) -> None:
        pass

    def added_bytes(self) -> float:
        return 2e6 + 1e6 * Meter.last

    def free_bytes(self) -> float:
        return self.free

    last = 0


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_samples, "MemoryMeter", Meter)
    take = timed_step.TimedStep.take

    def noted(self: Any, portion: Any) -> Any:
        Meter.last = len(portion.batch.indices)
        return take(self, portion)

    monkeypatch.setattr(timed_step.TimedStep, "take", noted)


@pytest.mark.usefixtures("meter")
def test_memory_is_predicted_and_never_filled(clock: Clock) -> None:
    recipe = replace(RECIPE, batch_size=200)
    measured = measure_throughput(make_task(clock), recipe, settings=SETTINGS)
    assert sizes(measured)[-1] == 32  # 64 would take 66 of the 100 MB
    assert measured.settings["stopped_by"] == "memory"
    assert value(measured, "bytes_per_example") == pytest.approx(1e6)
    assert value(measured, "largest_micro_batch") == 88.0  # (90 - 2) MB
    (finding,) = [f for f in measured.findings if f.name == "memory-limits"]
    assert finding.advice == "--set micro_batch_size=88"


@pytest.mark.usefixtures("meter")
def test_where_the_whole_set_fits_memory_is_not_the_limit(clock: Clock) -> None:
    task = make_task(clock, count=50)
    measured = measure_throughput(task, RECIPE, settings=SETTINGS)
    found = measured.estimates["largest_micro_batch"]
    assert (found.value, found.low) == (None, 50.0)
    assert "all 50 examples fit" in found.reason
    assert "memory-limits" not in names(measured)


def test_unknown_memory_is_told_as_that(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_status_bytes", lambda name: math.nan)
    measured = measure_throughput(make_task(clock), RECIPE, settings=SETTINGS)
    assert all(map(math.isnan, measured.samples["memory_bytes"]))
    assert measured.settings["memory"]["method"] == "none"
    found = measured.estimates["largest_micro_batch"]
    assert (found.value, found.low) == (None, 256.0)
    assert "cannot be read" in found.reason


def test_memory_of_the_process_is_seen() -> None:
    meter = memory.MemoryMeter(torch.device("cpu"))
    if meter.method != "peak-resident":
        pytest.skip("this kernel does not let the high-water mark be reset")
    for _ in range(2):  # the peak of the first piece of work is not that of the second
        for mebibytes in (96, 32):
            meter.begin()
            ones = torch.ones(mebibytes * 2**18)
            added = meter.added_bytes()
            del ones
            assert mebibytes - 8 <= added / 2**20 <= mebibytes + 24


def test_without_a_reset_only_growth_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_peak", lambda: False)
    greatest = iter([5e9, 5e9, 5e9, 6e9])
    monkeypatch.setattr(memory, "_greatest_resident_bytes", lambda: next(greatest))
    monkeypatch.setattr(memory, "_status_bytes", lambda name: 1e9)
    meter = memory.MemoryMeter(torch.device("cpu"))
    found = []
    for _ in range(2):
        meter.begin()
        found.append(meter.added_bytes())
    assert meter.method == "resident-growth"
    assert math.isnan(found[0])
    assert found[1] == 5e9


def test_a_batch_larger_than_the_set_is_one_line(clock: Clock) -> None:
    with pytest.raises(InputError, match="must be <= the 20 training examples") as error:
        measure_throughput(make_task(clock, count=20), RECIPE, settings=SETTINGS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch_size", ["full", 40])
def test_a_batch_that_covers_the_set_is_named(clock: Clock, batch_size: Any) -> None:
    recipe = replace(RECIPE, batch_size=batch_size)
    measured = measure_throughput(make_task(clock, count=40), recipe, settings=SETTINGS)
    assert "batch-covers-the-set" in names(measured)
    assert sizes(measured)[-1] == 40
    seconds = FIXED + EACH * 40
    assert value(measured, "epoch_compute_seconds") == pytest.approx(seconds, rel=1e-6)


def test_two_sizes_make_no_curve(clock: Clock) -> None:
    recipe = replace(RECIPE, batch_size=2)
    measured = measure_throughput(make_task(clock, count=2), recipe, settings=SETTINGS)
    assert sizes(measured) == [1, 2]
    assert "too-few-sizes" in names(measured)
    for name in ("fixed_seconds", "seconds_per_example", "b_half"):
        assert measured.estimates[name].value is None
        assert "3 are needed" in measured.estimates[name].reason
    assert value(measured, "epoch_compute_seconds") > 0.0


def test_sizes_are_whole_ghosts(clock: Clock) -> None:
    recipe = replace(RECIPE, batch_size=36, ghost_batch_size=12)
    measured = measure_throughput(make_task(clock), recipe, settings=SETTINGS)
    assert sizes(measured) == [12, 24, 36, 48, 96, 192, 384]


def test_a_loss_that_couples_the_batch_begins_with_two(clock: Clock) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert len(outputs) > 1
        return nn.functional.cross_entropy(outputs, targets)

    task = make_task(clock, loss=loss, loss_scope="batch", count=64)
    assert sizes(measure_throughput(task, RECIPE, settings=SETTINGS)) == [2, 4, 8, 16, 32, 64]


def test_a_model_that_refuses_small_passes_is_named(clock: Clock) -> None:
    measured = measure_throughput(make_task(clock, least=3), RECIPE, settings=SETTINGS)
    assert sizes(measured)[0] == 4
    (finding,) = [f for f in measured.findings if f.name == "smallest-refused"]
    assert "too few for me" in finding.sentence
    with pytest.raises(ValueError, match="too few"):
        measure_throughput(make_task(clock, least=5), RECIPE, settings=SETTINGS)


def stream_of(count: int) -> Callable[[], Iterator[Any]]:
    return lambda: ((torch.randn(3), n % 2) for n in range(count))


def test_a_stream_of_unknown_length_is_timed_up_to_its_end(clock: Clock) -> None:
    task = make_task(clock, train=stream_of(70))
    measured = measure_throughput(task, RECIPE, settings=SETTINGS)
    assert sizes(measured) == [1, 2, 4, 8, 16, 32, 64]
    for name in ("epoch_compute_seconds", "epoch_loading_seconds"):
        assert measured.estimates[name].value is None
        assert "length" in measured.estimates[name].reason


def test_a_stream_that_can_be_read_once_is_one_line(clock: Clock) -> None:
    task = make_task(clock, train=stream_of(70)(), num_examples=70)
    with pytest.raises(InputError, match="can be read only once") as error:
        measure_throughput(task, RECIPE, settings=SETTINGS)
    assert "\n" not in str(error.value)


def test_loader_processes_are_counted_and_closed() -> None:
    task = make_task(Clock(), loading=0.0)
    recipe = replace(RECIPE, compute=replace(RECIPE.compute, num_workers=1))
    settings = ThroughputSettings(seconds=0.5, rounds=2, max_micro_batch_size=4)
    measured = measure_throughput(task, recipe, settings=settings)
    assert measured.settings["num_workers"] == 1
    assert value(measured, "loading_seconds_per_example") > 0.0


def test_workers_play_no_part_for_data_in_memory() -> None:
    data = torch.randn(60, 3), torch.arange(60) % 2
    task = make_task(Clock(), train=data)
    recipe = replace(RECIPE, compute=replace(RECIPE.compute, num_workers=3, precision="bf16"),
                     loss=LossSettings(reduction="sum"))  # fmt: skip
    settings = ThroughputSettings(seconds=0.5, rounds=2, max_micro_batch_size=4)
    measured = measure_throughput(task, recipe, settings=settings)
    assert measured.settings["num_workers"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0.0},
        {"seconds": math.inf},
        {"rounds": 1},
        {"max_micro_batch_size": 0},
        {"precision": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ThroughputSettings(**wrong)
