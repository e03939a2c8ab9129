"""Noise scale of a training: against gradients by hand, its units, its bounds, and its command."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.cli import main
from anybatch.curvature.noise_arithmetic import noise_estimates, pair_of_parts
from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale
from anybatch.recipe import (
    AdamSettings,
    Augmentation,
    BlockSettings,
    ClipGlobalNorm,
    ComputeSettings,
    LossSettings,
    Mixup,
    Recipe,
    SGDSettings,
)
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

EXAMPLES = 90
SOON = NoiseScaleSettings(min_probes=4, max_probes=6)
RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.05),
    batch_size=16,
    duration=updates(40),
    compute=ComputeSettings(precision="fp64"),
)


class Net(nn.Module):
    """Parts are switched on by name."""

    def __init__(self, *, norm: bool = False, dropout: float = 0.0, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(5, 5)
        if tied:
            self.second.weight = self.first.weight
        self.head = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.norm(self.first(inputs))))
        outputs: Tensor = self.head(torch.tanh(self.second(hidden)))
        return outputs


def make_task(build: Any = Net, *, size: int = EXAMPLES, train: Any = None) -> Task:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % 2
    inputs = torch.randn(size, 5, generator=generator) + 0.7 * labels[:, None]
    data = (inputs, labels) if train is None else train(inputs, labels)
    return Task(build_model=build, train=data, validation=(inputs[:20], labels[:20]))


def gradient(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(batch.inputs.double()), batch.targets).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def by_hand(task: Task, model: nn.Module, start: int, sizes: list[int], *, set_size=math.inf):
    """(Q, S) of consecutive parts of the first epoch's order, whole and of the layer `head`."""
    found, position = [], start
    for size in sizes:
        found.append(gradient(model, task.batch(0, position, batch_size=size)))
        position += size
    count, pairs = sum(sizes), []
    for names in (list(found[0]), [n for n in found[0] if n.startswith("head")]):
        rows = torch.stack([torch.cat([g[n].flatten() for n in names]) for g in found])
        weights = torch.tensor(sizes).double() / count
        mean = weights @ rows
        pairs.append(
            pair_of_parts(
                float(weights @ rows.square().sum(1)), float(mean @ mean),
                num_examples=count, num_parts=len(sizes), set_size=set_size,
            )
        )  # fmt: skip
    return pairs


def columns(found: Measurement, row: int, layer: str = "") -> tuple[float, float]:
    names = f"squared_gradient_norm{layer}", f"covariance_trace{layer}"
    return tuple(found.samples[name][row] for name in names)


def fresh_model(task: Task, recipe: Recipe = RECIPE) -> nn.Module:
    with Training(task, recipe) as training:
        return training.model.train()


@pytest.mark.parametrize("build", [Net, lambda: Net(tied=True)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pairs_are_those_of_gradients_by_hand(build: Any, reduction: Any) -> None:
    """Two probes: a whole one, and the shorter one at the end of the epoch, of unequal parts."""
    task = make_task(build)
    recipe = dataclasses.replace(
        RECIPE, loss=LossSettings(reduction=reduction), gradient=(ClipGlobalNorm(max_norm=1e-3),)
    )
    settings = dataclasses.replace(SOON, examples_per_probe=50)
    found = measure_noise_scale(task, recipe, settings=settings)
    model = fresh_model(task)
    for row, start, sizes in ((0, 0, [13, 13, 13, 11]), (1, 50, [13, 13, 13, 1])):
        whole, head = by_hand(task, model, start, sizes, set_size=EXAMPLES)
        assert columns(found, row) == pytest.approx(tuple(map(float, whole)), rel=1e-9)
        assert columns(found, row, "/head") == pytest.approx(tuple(map(float, head)), rel=1e-9)
    assert found.samples["examples"][:3] == (50.0, 40.0, 50.0)
    layers = {name for name in found.estimates if "/" in name}
    assert layers == {"b_simple/first", "b_simple/second", "b_simple/head"}


def test_full_batch_probes_have_no_noise() -> None:
    task, recipe = make_task(), dataclasses.replace(RECIPE, batch_size="full")
    found = measure_noise_scale(task, recipe, settings=SOON)
    whole = gradient(fresh_model(task), task.batch(0, 0, batch_size=EXAMPLES))
    norm = sum(float(g.square().sum()) for g in whole.values())
    assert found.samples["squared_gradient_norm"] == pytest.approx([norm] * 6, rel=1e-9)
    assert set(found.samples["parts"]) == {4.0}


def test_it_is_unbiased_on_linear_regression_with_known_gradients() -> None:
    """Q and S of 300 probes against the whole set's own |G|^2 and tr Sigma."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(600, 8, generator=generator).double()
    targets = inputs @ torch.ones(8, 1).double() + torch.randn(600, 1, generator=generator)
    task = Task(
        build_model=lambda: nn.Linear(8, 1), train=(inputs, targets),
        validation=(inputs, targets), kind="regression",
    )  # fmt: skip
    settings = NoiseScaleSettings(max_probes=300, precision=1.0001)
    found = measure_noise_scale(task, RECIPE, settings=settings)
    model = fresh_model(task)
    residuals = model(inputs) - targets
    singles = 2.0 * torch.cat([residuals * inputs, residuals], dim=1).detach()
    mean = singles.mean(0)
    wanted = float(mean @ mean), float((singles - mean).square().sum() / 599)
    for name, value in zip(("squared_gradient_norm", "covariance_trace"), wanted, strict=True):
        column = np.array(found.samples[name])
        assert column.mean() == pytest.approx(value, abs=3.5 * column.std() / math.sqrt(300))
    total = found.estimates["b_simple"]
    assert total.low <= wanted[1] / wanted[0] <= total.high
    assert found.settings["stopped_by"] == "max_probes"


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ghost", [None, 8])
def test_under_batch_norm_the_parts_are_whole_ghosts_and_so_is_the_unit(ghost: int | None) -> None:
    task = make_task(lambda: Net(norm=True))
    recipe = dataclasses.replace(RECIPE, ghost_batch_size=ghost)
    found = measure_noise_scale(task, recipe, settings=SOON)
    unit = ghost or 16
    assert found.settings["unit"] == f"ghost batches of {unit} examples"
    assert found.settings["unit_examples"] == unit
    assert "ghost-unit" in [finding.name for finding in found.findings]
    part = found.settings["part_examples"]
    assert part % unit == 0
    assert set(found.samples["examples"]) == {64.0}
    if ghost is None:  # each part is one batch of the training, normalized by itself
        whole, _ = by_hand(task, fresh_model(task), 0, [16] * 4)
        assert columns(found, 0) == pytest.approx(tuple(map(float, whole)), rel=1e-9)


def test_batch_norm_in_evaluation_mode_leaves_examples_apart() -> None:
    def frozen() -> nn.Module:
        model = Net(norm=True)
        model.norm.eval()
        return model

    found = measure_noise_scale(make_task(frozen), RECIPE, settings=SOON)
    assert (found.settings["unit"], found.settings["set_examples"]) == ("examples", EXAMPLES)


def test_a_set_too_small_for_two_units_is_one_clear_line() -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=60)
    with pytest.raises(InputError, match=r"two parts of 60 .*, got 90 .*ghost_batch_size") as error:
        measure_noise_scale(make_task(lambda: Net(norm=True)), recipe)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"batch_size must be <= the 90 training examples"):
        measure_noise_scale(make_task(), dataclasses.replace(RECIPE, batch_size=91))
    settings = NoiseScaleSettings(examples_per_probe=91)
    with pytest.raises(InputError, match=r"examples_per_probe must be <= the 90"):
        measure_noise_scale(make_task(), RECIPE, settings=settings)


def test_a_loss_that_couples_a_batch_is_measured_in_batches() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs - outputs.mean(0), targets)

    task = dataclasses.replace(make_task(), loss=loss, loss_scope="batch")
    found = measure_noise_scale(task, RECIPE, settings=SOON)
    assert found.settings["unit_examples"] == 16
    assert set(found.samples["parts"]) == {4.0}


def test_blocks_whose_gradients_are_no_parts_are_refused() -> None:
    recipe = dataclasses.replace(RECIPE, blocks=BlockSettings(size=16, clip_norm=1.0))
    with pytest.raises(InputError, match="blocks must be left out for a noise scale"):
        measure_noise_scale(make_task(), recipe, settings=SOON)


def test_a_part_is_never_larger_than_what_training_takes_at_once() -> None:
    recipe = dataclasses.replace(RECIPE, micro_batch_size=4)
    found = measure_noise_scale(make_task(), recipe, settings=SOON)
    assert set(found.samples["parts"]) == {16.0}
    single = measure_noise_scale(
        make_task(), dataclasses.replace(RECIPE, batch_size=1), settings=SOON
    )
    assert set(single.samples["parts"]) == {64.0}


@pytest.mark.parametrize(("dropout", "size"), [(0.0, EXAMPLES), (0.5, None)])
def test_only_examples_whose_gradient_stays_are_counted_as_a_set(
    dropout: float, size: int | None
) -> None:
    found = measure_noise_scale(make_task(lambda: Net(dropout=dropout)), RECIPE, settings=SOON)
    assert found.settings["set_examples"] == size


def test_mixed_examples_are_fresh_ones() -> None:
    recipe = dataclasses.replace(RECIPE, augmentation=Augmentation(mixing=Mixup()))
    found = measure_noise_scale(make_task(), recipe, settings=SOON)
    assert found.settings["set_examples"] is None


def test_a_stream_is_measured_as_fresh_examples() -> None:
    task = make_task(train=lambda inputs, labels: list(zip(inputs, labels, strict=True)).__iter__)
    found = measure_noise_scale(task, RECIPE, settings=SOON)
    assert found.settings["set_examples"] is None
    assert found.samples["examples"][0] == 64.0


def test_frozen_layers_are_left_out() -> None:
    def frozen() -> nn.Module:
        model = Net()
        model.first.requires_grad_(False)
        return model

    task = make_task(frozen)
    found = measure_noise_scale(task, RECIPE, settings=SOON)
    assert "b_simple/first" not in found.estimates
    whole, _ = by_hand(task, fresh_model(task), 0, [16] * 4, set_size=EXAMPLES)
    assert columns(found, 0) == pytest.approx(tuple(map(float, whole)), rel=1e-9)


# --- a training under way -----------------------------------------------------------------------


def test_a_training_is_measured_where_it_stands_and_adam_gives_a_trend() -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=AdamSettings(lr=0.01))
    with Training(make_task(), recipe) as training:
        assert "b_simple_preconditioned" not in measure_noise_scale(training).estimates
        for _ in range(3):
            training.step()
        found = measure_noise_scale(training, settings=SOON)
        assert (found.settings["after_updates"], found.settings["lr"]) == (3, 0.01)
    # 42 examples of the epoch are left: parts of 16, 16 and 10.
    trend = found.estimates["b_simple_preconditioned"]
    assert trend.reason
    assert found.samples["examples"][0] == 42.0
    assert found.samples["parts"][0] == 3.0
    again = measure_noise_scale(
        make_task(), recipe, settings=dataclasses.replace(SOON, train_updates=3)
    )
    assert again.samples == found.samples
    assert again.examples == found.examples + 48


def test_preconditioned_pairs_are_those_of_scaled_gradients() -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=AdamSettings(lr=0.01), duration=updates(40))
    with Training(make_task(), recipe) as training:
        training.step()
        found = measure_noise_scale(training, settings=SOON)
        task, model = training.task, training.model
        grads = [gradient(model, task.batch(0, 16 + 16 * i, batch_size=16)) for i in range(4)]
        rows = []
        for grad in grads:
            scaled = [
                grad[n] / ((training.optimizer.state[p]["exp_avg_sq"] / 1e-3).sqrt() + 1e-8)
                for n, p in model.named_parameters()
            ]
            rows.append(torch.cat([g.flatten() for g in scaled]))
    stacked = torch.stack(rows)
    mean = stacked.mean(0)
    wanted = pair_of_parts(
        float(stacked.square().sum(1).mean()), float(mean @ mean),
        num_examples=64, num_parts=4, set_size=EXAMPLES,
    )  # fmt: skip
    assert columns(found, 0, "_preconditioned") == pytest.approx(
        tuple(map(float, wanted)), rel=1e-6
    )


# --- stopping and findings ----------------------------------------------------------------------


def test_estimates_come_again_from_what_is_stored() -> None:
    found = measure_noise_scale(make_task(), RECIPE, settings=SOON)
    stored = Measurement.from_dict(json.loads(json.dumps(found.to_dict())))
    assert noise_estimates(stored.samples) == found.estimates


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (NoiseScaleSettings(precision=50.0), "precision"),
        (NoiseScaleSettings(precision=1.001, max_probes=15), "max_probes"),
        (NoiseScaleSettings(precision=1.001, seconds=1e-9), "seconds"),
    ],
)
def test_it_says_what_stopped_it(settings: NoiseScaleSettings, reason: str) -> None:
    found = measure_noise_scale(make_task(), RECIPE, settings=settings)
    assert found.settings["stopped_by"] == reason
    probes = {"precision": 12, "max_probes": 15, "seconds": 1}[reason]
    assert len(found.samples["probe"]) == probes
    names = [finding.name for finding in found.findings]
    assert names == (["not-precise"] if reason == "max_probes" else [])


def test_a_signal_below_the_noise_is_at_least_and_a_finding() -> None:
    generator = torch.Generator().manual_seed(5)
    task = Task(
        build_model=Net,
        train=(torch.randn(2000, 5, generator=generator), torch.arange(2000) // 2 % 2),
        validation=(torch.randn(9, 5), torch.arange(9) % 2),
    )
    settings = NoiseScaleSettings(train_updates=150, max_probes=8, examples_per_probe=16)
    found = measure_noise_scale(task, RECIPE, settings=settings)
    total = found.estimates["b_simple"]
    assert (total.value, total.high) == (None, math.inf)
    assert total.low > 0.0
    (finding,) = [f for f in found.findings if f.name == "signal-not-resolved"]
    assert finding.advice == "--examples-per-probe 64"


class Overflows(Net):
    """Outputs that bf16 cannot hold for one example in a hundred."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs * torch.where(inputs[:, :1] > 2.9, math.inf, 1.0)


def test_probes_that_overflow_under_autocast_are_left_out_and_named() -> None:
    recipe = dataclasses.replace(RECIPE, compute=ComputeSettings(precision="bf16"))
    settings = NoiseScaleSettings(max_probes=40, min_probes=40)
    found = measure_noise_scale(make_task(Overflows), recipe, settings=settings)
    finite = [math.isfinite(v) for v in found.samples["squared_gradient_norm"]]
    assert 0 < finite.count(False) < 37
    assert found.findings[0].name == "non-finite-gradient"
    assert f"{finite.count(False)} of 40 probes" in found.findings[0].sentence
    assert found.estimates["b_simple"].value is not None


def test_bad_settings_are_refused() -> None:
    for wrong in (
        {"precision": 1.0}, {"parts_per_probe": 1}, {"min_probes": 3}, {"max_probes": 3},
        {"examples_per_probe": 1}, {"seconds": 0.0}, {"train_updates": -1},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            NoiseScaleSettings(**wrong)


def test_more_parts_than_the_epoch_leaves_are_taken_from_the_next() -> None:
    """What is left of an epoch is left out where it is less than half a probe."""
    found = measure_noise_scale(make_task(), RECIPE, settings=SOON)
    assert set(found.samples["examples"]) == {64.0}
    assert found.examples == 64 * len(found.samples["probe"])


# --- the command and the picture ----------------------------------------------------------------


def test_the_command_says_what_the_batch_means(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["noise-scale", "digits", "--after", "0", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    texts = ["your batch of 32 is", "would halve the noise", "b_simple/", "cost:"]
    texts += [f"next: anybatch report {out}", "unit: examples", "stopped by precision"]
    for text in texts:
        assert text in said
    assert (out / "measurements" / "noise-scale.json").exists()


def test_the_command_exits_with_1_where_nothing_is_resolved(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--after", "400", "--max-probes", "4", "--examples-per-probe", "4", "--json"]
    assert main(["noise-scale", "digits", *options, "--out", str(tmp_path / "run")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["estimates"]["b_simple"]["value"] is None
    (advice,) = [f["advice"] for f in found["findings"] if f["name"] == "signal-not-resolved"]
    assert advice == "anybatch noise-scale digits --examples-per-probe 16"


def test_the_picture_shows_the_probes_the_batch_and_the_layers() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    from anybatch.drawings.noise_scale import NOISE_SCALE, draw_layers, draw_running

    found = measure_noise_scale(make_task(), RECIPE, settings=SOON)
    axes = figures.Figure().subplots(2)
    probes = len(found.samples["probe"])
    assert draw_running(axes[0], found.measured) == probes - 3
    assert draw_layers(axes[1], found.measured) == 3
    texts = [text.get_text() for text in axes[0].texts]
    assert f"{found.estimates['b_simple'].value:.3g}" in texts
    assert "batch size 16" in texts
    assert f"{found.estimates['b_simple'].value:.3g} examples" in NOISE_SCALE.caption(
        found.measured
    )


def test_too_few_probes_are_refused_by_the_name_of_the_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["noise-scale", "digits", "--max-probes", "3"]) == 2
    assert capsys.readouterr().err == "anybatch: --max-probes must be >= 4, got 3\n"
