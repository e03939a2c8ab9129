"""Loss oscillation: noise of known size, gradients of known angle, explosions, and its laws."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.measuring import loss_oscillation as module
from anybatch.measuring.loss_oscillation import (
    LossOscillationSettings,
    measure_loss_oscillation,
)
from anybatch.measuring.loss_oscillation_reading import (
    bootstrap_interval,
    explosion,
    findings_of,
    read_oscillation,
    relative_differences,
)
from anybatch.recipe import LossSettings, Recipe, SGDSettings
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

RECIPE = Recipe(optimizer=SGDSettings(lr=0.05), batch_size=16, duration=updates(100))


def classification(num_examples: int = 512, **changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_examples) % 2
    inputs = torch.randn(num_examples, 5, generator=generator) + 0.5 * labels[:, None]
    values: dict[str, Any] = {"build_model": lambda: nn.Linear(5, 2), "train": (inputs, labels)}
    return Task(**(values | {"validation": (inputs[:8], labels[:8])} | changes))


def noise() -> Task:
    """Regression on targets of pure noise, far from 0: nothing to learn with a tiny lr."""
    generator = torch.Generator().manual_seed(1)
    targets = 10.0 + torch.randn(8192, 1, generator=generator)

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.weight.expand(len(inputs), 1)

    data = torch.zeros(8192, 1), targets
    return Task(build_model=Constant, train=data, validation=data, kind="regression")


def settings_of(**changes: Any) -> LossOscillationSettings:
    return LossOscillationSettings(
        **({"batch_sizes": (16,), "num_updates": 60, "cosine_every": 2} | changes)
    )


# --- known answers -----------------------------------------------------------------------------


def test_the_oscillation_of_pure_noise_falls_with_the_root_of_the_batch_size() -> None:
    """Squared errors of 10 + n have deviation about 20 and mean 101; |a - b| has median .954 s."""
    wanted = settings_of(batch_sizes=(4, 16, 64), num_updates=400, lr=1e-12, cosine_every=400)
    measured = measure_loss_oscillation(noise(), RECIPE, settings=wanted)
    for size in (4, 16, 64):
        estimate = measured.estimates[f"oscillation/{size}"]
        expected = 0.954 * math.sqrt(402.0) / 101.0 / math.sqrt(size)
        assert estimate.value == pytest.approx(expected, rel=0.15)
        assert estimate.low < expected < estimate.high


def test_the_cosine_is_of_neighbours_at_the_same_weights() -> None:
    """Against gradients by hand: the weights of the update, the batches of the order."""
    task = classification()
    wanted = settings_of(num_updates=12, cosine_every=3, lr=0.5)
    samples = measure_loss_oscillation(task, RECIPE, settings=wanted).samples
    torch.manual_seed(RECIPE.seed)
    with Training(task, replace(RECIPE, optimizer=SGDSettings(lr=0.5))) as training:
        model = training.model
        before = None
        for update in range(12):
            gradients, losses = [], []
            for place in (update, update + 1):
                batch = task.batch(0, 16 * place, batch_size=16)
                loss = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
                found = torch.autograd.grad(loss, list(model.parameters()))
                gradients.append(torch.cat([g.flatten() for g in found]).double())
                losses.append(float(loss.detach()))
            here, neighbour = gradients
            assert samples["loss"][update] == pytest.approx(losses[0], rel=1e-5)
            if update % 3 == 0:
                cosine = float(torch.cosine_similarity(here, neighbour, dim=0))
                assert samples["cosine"][update] == pytest.approx(cosine, abs=1e-5)
            else:
                assert math.isnan(samples["cosine"][update])
            if update % 3 == 0 and update:
                across = float(torch.cosine_similarity(here, before, dim=0))
                assert samples["cosine_across_updates"][update] == pytest.approx(across, abs=1e-5)
            before = here
            training.step()


def test_larger_batches_have_gradients_more_alike() -> None:
    wanted = settings_of(batch_sizes=(2, 32), num_updates=100, lr=1e-6, cosine_every=1)
    found = measure_loss_oscillation(classification(4096), RECIPE, settings=wanted).estimates
    small, large = found["cosine/2"], found["cosine/32"]
    assert small.value is not None
    assert large.value is not None
    assert small.high < large.low


def test_the_cosines_change_nothing_in_the_training() -> None:
    def losses(every: int) -> tuple[float, ...]:
        def build() -> nn.Module:
            return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3),
                                 nn.Linear(8, 2))  # fmt: skip

        task = classification(build_model=build)
        wanted = settings_of(cosine_every=every)
        return measure_loss_oscillation(task, RECIPE, settings=wanted).samples["loss"]

    assert losses(1) == losses(1000)


def test_gradients_of_consecutive_updates_point_back_where_the_lr_is_large() -> None:
    """The trap: on a quadratic above half of the edge they point back, at equal weights not."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 3, generator=generator)
    data = inputs, inputs @ torch.ones(3, 1)
    task = Task(build_model=lambda: nn.Linear(3, 1, bias=False), train=data, validation=data,
                kind="regression")  # fmt: skip
    wanted = settings_of(batch_sizes=(128,), lr=0.8, num_updates=6, cosine_every=1)
    samples = measure_loss_oscillation(task, RECIPE, settings=wanted).samples
    assert min(samples["cosine"][:3]) > 0.5
    assert max(samples["cosine_across_updates"][1:3]) < 0.0


# --- explosions --------------------------------------------------------------------------------


def test_an_explosion_is_told_with_its_update() -> None:
    def build() -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    data = torch.ones(256, 1), torch.ones(256, 1) + 0.1 * torch.randn(256, 1)
    task = Task(build_model=build, train=data, validation=data, kind="regression")
    wanted = settings_of(batch_sizes=(8, 32), lr=1.3)  # the edge is at 1
    measured = measure_loss_oscillation(task, RECIPE, settings=wanted)
    assert [finding.name for finding in measured.findings] == ["exploded", "exploded"]
    assert "at batch size 8 and lr 1.3" in measured.findings[0].sentence
    assert measured.findings[0].advice == "--batch-sizes 8 --lr 0.33"
    assert measured.estimates["exploded_at/32"].value is not None


def test_no_explosion_is_said_to_be_absent() -> None:
    found = measure_loss_oscillation(classification(), RECIPE, settings=settings_of())
    absent = found.estimates["exploded_at/16"]
    assert absent.value is None
    assert absent.reason == "the loss did not explode in 60 updates"
    assert "exploded" not in {finding.name for finding in found.findings}


def test_a_loss_that_is_not_finite_ends_it() -> None:
    wanted = settings_of(batch_sizes=(16,), lr=1e30, num_updates=60)
    task = classification(kind="regression", build_model=lambda: nn.Linear(5, 1))
    floats = task.train[0], task.train[0][:, :1].clone()
    task = replace(task, train=floats, validation=floats)
    measured = measure_loss_oscillation(task, RECIPE, settings=wanted)
    assert 1 < len(measured.samples["loss"]) < 60
    assert not math.isfinite(measured.samples["loss"][-1])
    assert measured.estimates["exploded_at/16"].value == len(measured.samples["loss"]) - 1


def test_single_examples_do_not_explode_by_being_hard() -> None:
    """At batch size 1 most losses are near 0 and some large: a run of five happens."""
    generator = np.random.default_rng(0)
    easy_and_hard = np.where(generator.random(1000) < 0.4, 5.0, 0.01)
    losses = [*np.full(100, 2.0), *easy_and_hard]
    assert explosion(losses, 25) is not None
    assert explosion(losses, 1) is None
    assert explosion([*losses, *[500.0] * 200], 1) == pytest.approx(1100, abs=25)


# --- arithmetic --------------------------------------------------------------------------------


def test_the_interval_knows_of_neighbours_that_err_alike() -> None:
    generator = np.random.default_rng(5)
    shocks = generator.normal(size=3000)
    alike = np.convolve(shocks, np.ones(10) / 10.0, mode="valid")
    wide, narrow = (bootstrap_interval(alike, "mean", block=b) for b in (40, 1))
    assert wide[1] - wide[0] > 2.0 * (narrow[1] - narrow[0])
    truth = 1.96 * 1.0 / math.sqrt(len(alike))  # of the shocks' mean
    assert 0.5 * (wide[1] - wide[0]) == pytest.approx(truth, rel=0.25)


def test_the_interval_covers() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(size=200), "median")
        hits += low <= 0.0 <= high
    assert 170 <= hits <= 198


def test_differences_are_relative_to_the_losses_around() -> None:
    losses = [1.0, 2.0] * 40
    assert relative_differences(losses) == pytest.approx(1.0 / 1.5, rel=0.05)
    scaled = relative_differences([100.0 * loss for loss in losses])
    assert scaled == pytest.approx(relative_differences(losses))


def test_estimates_come_again_from_the_samples_alone() -> None:
    wanted = settings_of(batch_sizes=(4, 16))
    measured = measure_loss_oscillation(classification(), RECIPE, settings=wanted)
    assert read_oscillation(measured.samples) == measured.estimates
    assert tuple(findings_of(measured.samples, measured.settings)) == measured.findings
    assert set(map(int, measured.samples["batch_size"])) == {4, 16}


# --- what is asked for -------------------------------------------------------------------------


def test_a_coupled_loss_is_divided_where_the_recipe_says_how() -> None:
    def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs - outputs.mean(0), targets)

    task = classification(loss=coupled, loss_scope="batch")
    settings = settings_of(batch_sizes=(8, 32), num_updates=2)
    divided = replace(RECIPE, micro_batch_size=4)
    with pytest.raises(InputError, match="its loss couples"):
        measure_loss_oscillation(task, divided, settings=settings)
    cached = replace(divided, loss=LossSettings(coupled="cached-outputs"))
    found = [
        measure_loss_oscillation(task, recipe, settings=settings).samples["loss"]
        for recipe in (cached, RECIPE)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_sizes_by_default_are_powers_of_four_that_fit() -> None:
    wanted = settings_of(batch_sizes=(), num_updates=2)
    measured = measure_loss_oscillation(classification(200), RECIPE, settings=wanted)
    assert measured.settings["batch_sizes"] == [1, 4, 16, 64]


def test_few_examples_shorten_large_batches_and_that_is_told() -> None:
    wanted = settings_of(batch_sizes=(2, 64), max_examples=640)
    measured = measure_loss_oscillation(classification(), RECIPE, settings=wanted)
    assert measured.samples["batch_size"].count(64) == 10
    (finding,) = (f for f in measured.findings if f.name == "shortened")
    assert finding.advice == "--batch-sizes 64 --max-examples 3840"


def test_a_loss_that_does_not_fall_is_told() -> None:
    wanted = settings_of(lr=1e-12)
    measured = measure_loss_oscillation(classification(), RECIPE, settings=wanted)
    assert [finding.name for finding in measured.findings] == ["not-learning"]


def test_batches_that_cannot_be_had_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_Course", None)
    with pytest.raises(InputError, match="must be <= the 512 training examples, got 1000"):
        measure_loss_oscillation(
            classification(), RECIPE, settings=settings_of(batch_sizes=(4, 1000))
        )

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    divided = replace(RECIPE, micro_batch_size=16)
    with pytest.raises(InputError, match="ghost_batch_size must be set"):
        measure_loss_oscillation(
            classification(build_model=build), divided, settings=settings_of(batch_sizes=(64,))
        )


@pytest.mark.parametrize(
    ("name", "bad"),
    [("batch_sizes", (0,)), ("batch_sizes", (4, 4)), ("num_updates", 1), ("lr", 0.0),
     ("cosine_every", 0), ("max_examples", 0)],
)  # fmt: skip
def test_bad_settings_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(InputError, match=name):
        LossOscillationSettings(**{name: bad})


def test_a_stream_can_be_measured() -> None:
    inputs, labels = classification().train

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(list(zip(inputs, labels, strict=True)))

    task = classification(train=Stream(), num_examples=512)
    measured = measure_loss_oscillation(task, RECIPE, settings=settings_of(num_updates=30))
    again = measure_loss_oscillation(classification(), RECIPE, settings=settings_of(num_updates=30))
    assert len(measured.samples["loss"]) == len(again.samples["loss"]) == 30
    assert all(map(math.isfinite, measured.samples["loss"]))


def test_the_command_prints_a_row_for_each_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--batch-sizes", "4,64", "--updates", "60", "--lr", "0.02", "--out", "one"]
    assert main(["loss-oscillation", "digits", *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["4", "60"], ["64", "60"]]
    assert "exploded (lr 0.02)" in lines[0]
    axes = Run(tmp_path / "one").measurements()["loss-oscillation"].plot()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "batch size 4", "batch size 64"
    ]  # fmt: skip
