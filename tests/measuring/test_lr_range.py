"""LR range test: known edges, anybody's loop, pathologies by name, bad input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch import (
    AdamSettings,
    ComputeSettings,
    InputError,
    LRRangeSettings,
    Measurement,
    Recipe,
    Schedules,
    SGDSettings,
    Task,
    Warmup,
    fraction,
    load_recipe,
    load_task,
    measure_lr_range,
)
from anybatch.records import plain

QUICK = LRRangeSettings(start_lr=1e-5, num_updates=60, probe_updates=20)


class Quadratic(nn.Module):
    """Loss sum of h w^2 / 2, plus noise that is linear in w."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(10))
        self.register_buffer("h", torch.linspace(0.1, 1.0, 10) * largest)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.get_buffer("h") * self.w**2).sum() + x @ self.w


def quadratic_task(largest: float = 4.0, noise: float = 0.1, scale: float = 1.0) -> Task:
    generator = torch.Generator().manual_seed(0)
    half = noise * torch.randn(200, 10, generator=generator)
    return Task(
        build_model=lambda: Quadratic(largest),
        train=(torch.cat([half, -half]), torch.zeros(400)),
        kind="regression",
        loss=lambda outputs, targets: scale * outputs,
    )


def recipe(**changes: Any) -> Recipe:
    base = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=8)
    return replace(base, compute=ComputeSettings(threads=1), **changes)


def names(measured: Measurement) -> list[str]:
    return [finding.name for finding in measured.findings]


def value(measured: Measurement, name: str) -> float:
    found = measured.estimates[name].value
    assert found is not None, measured.estimates[name]
    return found


# --- a known edge --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "momentum", "edge"),
    [(4.0, 0.0, 0.5), (40.0, 0.0, 0.05), (4.0, 0.9, 0.95)],  # 2 (1 + momentum) / largest
)
def test_the_confirmed_edge_is_the_one_of_theory(
    largest: float, momentum: float, edge: float
) -> None:
    rule = SGDSettings(lr=0.1, momentum=momentum)
    measured = measure_lr_range(
        quadratic_task(largest), recipe(optimizer=rule), settings=replace(QUICK, probe_updates=60)
    )
    found = measured.estimates["edge"]
    assert value(measured, "edge") == pytest.approx(edge, rel=0.2)
    assert found.low <= edge * 1.1
    assert found.high >= edge / 1.1
    assert value(measured, "base_lr") < value(measured, "max_lr") < edge


def test_a_ramp_alone_overshoots_the_edge() -> None:
    """What the short trainings are for."""
    task = quadratic_task(noise=0.0)
    ramp = measure_lr_range(task, recipe(), settings=replace(QUICK, probe_updates=0))
    confirmed = measure_lr_range(task, recipe(), settings=QUICK)
    assert value(ramp, "edge") > 1.15 * 0.5
    assert value(confirmed, "edge") == pytest.approx(0.5, rel=0.15)


def test_sgd_sees_the_scale_of_the_loss_and_adam_does_not() -> None:
    adam = recipe(optimizer=AdamSettings(lr=0.1))
    found = [
        [
            value(measure_lr_range(quadratic_task(scale=scale), r, settings=QUICK), "max_lr")
            for scale in (1.0, 0.01)
        ]
        for r in (recipe(), adam)
    ]
    (sgd_one, sgd_small), (adam_one, adam_small) = found
    assert 30 < sgd_small / sgd_one < 300
    assert 0.5 < adam_small / adam_one < 2


def test_the_recipes_own_lr_and_schedule_play_no_part() -> None:
    task = quadratic_task()
    one = measure_lr_range(task, recipe(), settings=QUICK)
    other = recipe(
        optimizer=SGDSettings(lr=7.0), schedules=Schedules(lr=Warmup(duration=fraction(0.5)))
    )
    two = measure_lr_range(task, other, settings=QUICK)
    assert one.samples["loss"] == pytest.approx(two.samples["loss"], rel=1e-4)
    assert value(one, "max_lr") == pytest.approx(value(two, "max_lr"), rel=1e-3)


def test_it_is_the_same_twice_and_survives_json() -> None:
    first = measure_lr_range(quadratic_task(), recipe(), settings=QUICK)
    second = measure_lr_range(quadratic_task(), recipe(), settings=QUICK)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    assert str(Measurement.from_dict(plain(first.to_dict()))) == str(first)


def test_linear_spacing_and_repeats() -> None:
    settings = replace(QUICK, start_lr=0.01, end_lr=1.0, spacing="linear", repeats=2)
    measured = measure_lr_range(quadratic_task(), recipe(), settings=settings)
    lrs = [lr for stage, lr in zip(measured.samples["stage"], measured.samples["lr"], strict=True)
           if stage == 0]  # fmt: skip
    assert lrs[1] - lrs[0] == pytest.approx(lrs[11] - lrs[10])
    assert set(measured.samples["repeat"]) == {0, 1}
    assert value(measured, "edge") == pytest.approx(0.5, rel=0.2)


def test_accumulation_takes_one_lr_for_each_update() -> None:
    whole = measure_lr_range(quadratic_task(), recipe(), settings=QUICK)
    parts = measure_lr_range(quadratic_task(), recipe(micro_batch_size=3), settings=QUICK)
    assert parts.samples["lr"] == whole.samples["lr"]
    assert parts.samples["loss"] == pytest.approx(whole.samples["loss"], rel=1e-3, abs=1e-4)


def test_the_metric_is_measured_beside_the_loss() -> None:
    task, given = load_task("digits"), load_recipe("digits")
    measured = measure_lr_range(task, given, settings=replace(QUICK, probe_updates=0))
    metric = [m for m in measured.samples["metric"] if math.isfinite(m)]
    assert measured.settings["metric_name"] == "accuracy"
    assert len(metric) >= 10
    assert min(metric) < 0.4
    assert max(metric) > 0.6
    best = value(measured, "best_metric")
    assert value(measured, "learning_starts") < best < 1.0


def test_bf16_and_a_stream_without_length() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 4, generator=generator)
    labels = (inputs[:, 0] > 0).long()

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(x, y) for x, y in zip(inputs, labels, strict=True)])

    task = Task(
        build_model=lambda: nn.Linear(4, 2), train=Stream(), validation=(inputs[:50], labels[:50])
    )
    compute = ComputeSettings(threads=1, precision="bf16")
    measured = measure_lr_range(task, replace(recipe(), compute=compute), settings=QUICK)
    assert 0.01 < value(measured, "max_lr") < 20


def test_examples_that_are_dicts() -> None:
    inputs, labels = blobs()
    rows = [{"x": x, "target": y} for x, y in zip(inputs, labels, strict=True)]

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 2)

        def forward(self, *, x: Tensor) -> Tensor:
            outputs: Tensor = self.linear(x)
            return outputs

    task = Task(build_model=ByName, train=Rows())
    assert value(measure_lr_range(task, recipe(batch_size=32), settings=QUICK), "max_lr") > 0.05


# --- anybody's loop ------------------------------------------------------------------------------


class Loop:
    """A quadratic of one's own, with two parameter groups."""

    def __init__(self, **groups: float) -> None:
        self.model = Quadratic(4.0)
        self.extra = nn.Parameter(torch.ones(()))
        lrs = {"first": 0.1, "second": 0.01} | groups
        self.optimizer = torch.optim.SGD(
            [
                {"params": [self.model.w], "lr": lrs["first"]},
                {"params": [self.extra], "lr": lrs["second"]},
            ],
            lr=1.0,
        )
        self.ratios: set[float] = set()

    def step(self) -> Any:
        loss = self.model(torch.zeros(1, 10)).mean() + 0.5 * self.extra**2
        self.optimizer.zero_grad()
        loss.backward()
        one, two = (group["lr"] for group in self.optimizer.param_groups)
        self.ratios.add(round(float(two / one), 9))
        self.optimizer.step()
        return loss

    def measure(self, step: Any = None, **changes: Any) -> Measurement:
        arguments: dict[str, Any] = {"restore": [self.model], "settings": QUICK} | changes
        return measure_lr_range(step=step or self.step, optimizer=self.optimizer, **arguments)


def test_an_own_loop_finds_the_edge_and_keeps_the_ratios_of_its_groups() -> None:
    loop = Loop()
    measured = loop.measure()
    assert value(measured, "edge") == pytest.approx(0.5, rel=0.15)
    assert loop.ratios == {0.1}
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.1, 0.01]
    assert names(measured) == []


def test_several_optimizers_move_together() -> None:
    loop = Loop()
    other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.05)
    seen = set()

    def step() -> Any:
        seen.add(round(other.param_groups[0]["lr"] / loop.optimizer.param_groups[0]["lr"], 9))
        return loop.step()

    measure_lr_range(step=step, optimizer=[loop.optimizer, other], settings=QUICK)
    assert seen == {0.5}
    assert other.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("form", ["float", "tensor", "pair", "mapping"])
def test_what_a_step_may_return(form: str) -> None:
    loop = Loop()

    def step() -> Any:
        loss = loop.step()
        return {
            "float": float(loss.detach()),
            "tensor": loss,
            "pair": (loss, 0.25),
            "mapping": {"loss": loss, "metric": torch.tensor(0.25), "other": None},
        }[form]

    measured = loop.measure(step)
    assert value(measured, "edge") == pytest.approx(0.5, rel=0.15)
    expected = {0.25} if form in ("pair", "mapping") else set()
    assert {m for m in measured.samples["metric"] if not math.isnan(m)} == expected


def test_a_tensor_lr_is_filled_and_never_rebound() -> None:
    loop = Loop()
    lr = torch.tensor(0.1)
    loop.optimizer.param_groups[0]["lr"] = lr
    loop.measure()
    assert loop.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.1)


def test_updates_that_a_scaler_skips_do_not_count() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    calls, lrs = [0], []

    def step() -> Tensor:
        calls[0] += 1
        lrs.append(optimizer.param_groups[0]["lr"])
        loss = (model(data) - data.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if calls[0] % 7 == 0:  # an overflow
            model.weight.grad.fill_(math.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    measured = measure_lr_range(
        step=step,
        optimizer=optimizer,
        restore=[model, scaler],
        settings=replace(QUICK, probe_updates=0),
    )
    kept = measured.samples["lr"]
    assert len(kept) < calls[0]
    assert len(set(kept)) == len(kept)
    assert lrs[6] == lrs[7]  # the seventh was skipped, so its lr is tried again
    assert scaler.get_scale() == 2.0**10


def test_a_scheduler_inside_of_the_step_is_refused() -> None:
    loop = Loop()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(loop.optimizer, 0.5)

    def step() -> Any:
        loss = loop.step()
        scheduler.step()
        return loss

    with pytest.raises(InputError, match=r"must not change the learning rate.*scheduler\.step"):
        loop.measure(step, restore=[loop.model, scheduler])
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.1, 0.01]


def test_what_restore_cannot_cover_is_named() -> None:
    loop = Loop()
    loader = torch.utils.data.DataLoader([1, 2, 3])
    measured = loop.measure(restore=[loader, iter([1]), object()])
    (finding,) = [f for f in measured.findings if f.name == "not-restored"]
    for part in ("DataLoader without state_dict", "list_iterator", "object", "buffers"):
        assert part in finding.sentence


# --- pathologies ---------------------------------------------------------------------------------


def classification(build_model: Any, inputs: Tensor, labels: Tensor) -> Task:
    return Task(build_model=build_model, train=(inputs, labels))


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    return torch.randn(400, 5, generator=generator) + 4.0 * labels[:, None], labels


class Detached(nn.Module):
    """Weights that the loss does not see: outputs that only look as if they could be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return outputs.detach() + 0.0 * outputs


def test_a_loss_that_ignores_the_weights_is_told() -> None:
    measured = measure_lr_range(classification(Detached, *blobs()), recipe(), settings=QUICK)
    assert names(measured)[0] == "loss-ignores-weights"
    assert measured.estimates["max_lr"].value is None


def test_an_own_loss_that_ignores_the_weights_is_told() -> None:
    loop = Loop()
    measured = loop.measure(lambda: 2.0 + 0.1 * float(torch.rand(())))
    assert names(measured)[0] == "loss-ignores-weights"


def test_bad_data_are_told_with_the_example() -> None:
    inputs, labels = blobs()
    rows = [(x, y) for x, y in zip(inputs, labels, strict=True)]
    rows[37] = (torch.full((5,), math.nan), rows[37][1])

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    task = Task(build_model=lambda: nn.Linear(5, 2), train=Rows(), validation=(inputs, labels))
    measured = measure_lr_range(
        task, recipe(batch_size=32), settings=replace(QUICK, num_updates=100)
    )
    bad = [finding for finding in measured.findings if finding.name == "non-finite-data"]
    assert len(bad) == 1
    assert "37" in bad[0].sentence
    assert "nan-gap" in names(measured)  # the loss went on: a gap, not a divergence
    assert value(measured, "max_lr") > 0


def test_random_labels_on_tiny_noise_are_not_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(400, 5)
    labels = torch.randint(0, 2, (400,), generator=generator)

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w.T

    measured = measure_lr_range(classification(Constant, inputs, labels), recipe(), settings=QUICK)
    assert names(measured)[0] in ("never-learned", "loss-ignores-weights")
    assert measured.estimates["max_lr"].value is None


def test_started_far_too_high_it_diverges_at_once() -> None:
    settings = replace(QUICK, start_lr=5.0, end_lr=500.0)
    measured = measure_lr_range(quadratic_task(), recipe(), settings=settings)
    assert names(measured) == ["diverged-at-once"]
    assert "--start-lr" in measured.findings[0].advice


def test_ended_too_low_it_never_diverged() -> None:
    settings = replace(QUICK, start_lr=1e-4, end_lr=0.02)
    measured = measure_lr_range(quadratic_task(), recipe(), settings=settings)
    assert "never-diverged" in names(measured)
    assert measured.estimates["edge"].value is None
    assert measured.estimates["edge"].low > 0.01


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_lr": 0.0}, "start_lr must be > 0"),
        ({"start_lr": 20.0}, "end_lr must be > start_lr"),
        ({"end_lr": math.inf}, "end_lr"),
        ({"num_updates": 5}, "num_updates must be >= 16"),
        ({"repeats": 0}, "repeats must be >= 1"),
        ({"probe_updates": 3}, "probe_updates must be 0 or >= 10"),
        ({"edge_margin": 0.5}, "edge_margin must be >= 1"),
        ({"edge_margin": math.inf}, "edge_margin must be >= 1"),
        ({"spacing": "cubic"}, "spacing must be one of"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LRRangeSettings(**changes)


def test_what_is_measured_must_be_one_loop() -> None:
    loop = Loop()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "task must be a Task"),
        ({"task": quadratic_task()}, "recipe must be a Recipe"),
        ({"step": loop.step}, "step must be a function, given together"),
        ({"optimizer": loop.optimizer}, "step must be a function"),
        ({"task": quadratic_task(), "recipe": recipe(), "restore": [1]}, "restore must come with"),
        (
            {"task": quadratic_task(), "step": loop.step, "optimizer": loop.optimizer},
            "step must be given without a task",
        ),
        ({"step": lambda: "high", "optimizer": loop.optimizer}, "step must return a loss"),
        ({"step": lambda: {"cost": 1}, "optimizer": loop.optimizer}, 'mapping with "loss"'),
        (
            {"task": quadratic_task(), "recipe": recipe(optimizer=SGDSettings(lr=0.0))},
            "optimizer.lr must be > 0",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            measure_lr_range(**arguments)
