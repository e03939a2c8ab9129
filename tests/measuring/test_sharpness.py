"""Sharpness: exact on the quadratic and on a small network; the edges where optimizers diverge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anybatch.curvature.hvp as hvp_module
from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.examples import portions_of
from anybatch.measuring.sharpness import SharpnessSettings, _Curvature, measure_sharpness
from anybatch.measuring.sharpness_reading import findings_of, read_sharpness, stability_limit
from anybatch.recipe import (
    AdamSettings,
    ComputeSettings,
    LossSettings,
    MuonSettings,
    Recipe,
    SGDSettings,
)
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.training import Training

EXACT = SharpnessSettings(num_examples=10_000, tolerance=1e-13, max_iterations=200)
FP64 = ComputeSettings(precision="fp64")


def recipe_of(optimizer: Any, **changes: Any) -> Recipe:
    values = {"batch_size": 16, "duration": updates(500), "compute": FP64} | changes
    return Recipe(optimizer=optimizer, **values)


SGD = recipe_of(SGDSettings(lr=0.1))


def linear_data(num_examples: int = 96, features: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    scales = torch.linspace(0.3, 3.0, features)
    inputs = torch.randn(num_examples, features, generator=generator) * scales
    return inputs, inputs @ torch.ones(features, 1) + 1.0


def regression(build: Callable[[], nn.Module] | None = None) -> Task:
    inputs, targets = linear_data()
    return Task(
        build_model=build or (lambda: nn.Linear(5, 1, bias=False)),
        train=(inputs, targets),
        validation=(inputs[:4], targets[:4]),
        kind="regression",
    )


def true_sharpness() -> float:
    inputs = linear_data()[0].double()
    return float(torch.linalg.eigvalsh(2.0 * inputs.T @ inputs / len(inputs))[-1])


def value(measured: Measurement, name: str = "sharpness") -> float:
    found = measured.estimates[name].value
    assert found is not None, measured.estimates[name].reason
    return found


def names(measured: Measurement) -> set[str]:
    return {finding.name for finding in measured.findings}


# --- exact cases -------------------------------------------------------------------------------


def test_it_is_exact_on_the_quadratic() -> None:
    measured = measure_sharpness(regression(), SGD, settings=EXACT)
    assert value(measured) == pytest.approx(true_sharpness(), rel=1e-10)
    assert value(measured, "edge_lr") == pytest.approx(2.0 / true_sharpness(), rel=1e-10)
    times = 0.1 * true_sharpness()
    assert value(measured, "lr_times_sharpness") == pytest.approx(times, rel=1e-10)
    assert measured.settings["is_whole_set"]
    assert measured.settings["repeats"] == 1
    assert "not-smooth" not in names(measured)


@pytest.mark.parametrize("micro", [None, 7])
def test_it_is_the_largest_eigenvalue_of_a_small_network(micro: int | None) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))

    inputs, _ = linear_data()
    labels = torch.arange(96) % 2
    task = Task(build_model=build, train=(inputs, labels), validation=(inputs[:4], labels[:4]))
    recipe = replace(SGD, micro_batch_size=micro)
    measured = measure_sharpness(task, recipe, settings=EXACT)
    with Training(task, recipe) as training:
        model = training.model
        shapes = [p.shape for p in model.parameters()]
        keys = [name for name, _ in model.named_parameters()]

        def loss_at(vector: Tensor) -> Tensor:
            pieces = torch.split(vector, [shape.numel() for shape in shapes])
            views = [piece.view(s) for piece, s in zip(pieces, shapes, strict=True)]
            weights = dict(zip(keys, views, strict=True))
            outputs = torch.func.functional_call(model, weights, (inputs.double(),))
            return nn.functional.cross_entropy(outputs, labels)

        at = nn.utils.parameters_to_vector(model.parameters()).detach()
        hessian = torch.autograd.functional.hessian(loss_at, at)
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert value(measured) == pytest.approx(largest, rel=1e-10)
    assert max(measured.samples["eigenvalue"]) <= largest * (1.0 + 1e-10)


def test_an_interval_covers_other_examples() -> None:
    settings = SharpnessSettings(num_examples=24, repeats=4)
    estimate = measure_sharpness(regression(), SGD, settings=settings).estimates["sharpness"]
    assert estimate.low < true_sharpness() < estimate.high
    assert estimate.high - estimate.low > 0.02 * true_sharpness()
    assert estimate.value is not None
    assert estimate.high - estimate.value >= estimate.value - estimate.low


def test_few_products_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SharpnessSettings(num_examples=10_000, max_iterations=2, tolerance=1e-6)
    measured = measure_sharpness(regression(), SGD, settings=settings)
    assert names(measured) == {"not-converged"}
    assert measured.findings[0].advice == "--iterations 4"
    estimate = measured.estimates["sharpness"]
    assert estimate.low <= true_sharpness() <= estimate.high


# --- the edge ----------------------------------------------------------------------------------


def diverges(make: Callable[[list[Tensor], float], torch.optim.Optimizer], lr: float) -> bool:
    """Whether an optimizer of torch diverges on w^2 / 2, whose curvature is 1."""
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = make([weight], lr)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * weight**2).sum().backward()
        optimizer.step()
        if abs(float(weight.detach())) > 30.0:
            return True
    return False


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_limits_are_where_sgd_of_torch_diverges(momentum: float, nesterov: bool) -> None:
    if nesterov and momentum == 0.0:
        return
    limit = stability_limit("sgd", momentum, nesterov=nesterov)
    assert limit is not None

    def make(weights: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=lr, momentum=momentum, nesterov=nesterov)

    assert not diverges(make, 0.99 * limit)
    assert diverges(make, 1.01 * limit)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_limit_of_adam_is_where_it_diverges_with_a_preconditioner_that_stands_still(
    beta: float,
) -> None:
    limit = stability_limit("adamw", beta)
    assert limit is not None

    def make(weights: list[Tensor], lr: float) -> torch.optim.Optimizer:
        adam = torch.optim.Adam(weights, lr=lr, betas=(beta, 1.0 - 1e-15), eps=1e-300)
        second = torch.full_like(weights[0].detach(), 1.0)  # stays, as beta2 is 1
        adam.state[weights[0]] = {
            "step": torch.tensor(1e17),  # without bias left to correct
            "exp_avg": torch.zeros_like(second),
            "exp_avg_sq": second,
        }
        return adam

    assert not diverges(make, 0.99 * limit)
    assert diverges(make, 1.01 * limit)


def test_training_above_the_edge_diverges_and_below_it_does_not() -> None:
    edge = value(measure_sharpness(regression(), SGD, settings=EXACT), "edge_lr")
    for factor in (0.97, 1.03):
        recipe = recipe_of(SGDSettings(lr=factor * edge), batch_size="full")
        with Training(regression(), recipe) as training:
            for _ in range(400):
                training.step()
            loss = training.evaluate("train").loss
        assert (loss > 10.0) == (factor > 1.0)
        measured = measure_sharpness(regression(), recipe, settings=EXACT)
        assert ("beyond-the-edge" in names(measured)) == (factor > 1.0)


def test_the_summed_loss_and_coupled_decay_enter_the_edge() -> None:
    decay = recipe_of(SGDSettings(lr=0.1, weight_decay=0.5))
    edge = value(measure_sharpness(regression(), decay, settings=EXACT), "edge_lr")
    assert edge == pytest.approx(2.0 / (true_sharpness() + 0.5), rel=1e-9)
    summed = recipe_of(SGDSettings(lr=0.1), loss=LossSettings(reduction="sum"))
    edge = value(measure_sharpness(regression(), summed, settings=EXACT), "edge_lr")
    assert edge == pytest.approx(2.0 / (16.0 * true_sharpness()), rel=1e-9)


def test_adam_is_measured_with_its_preconditioner() -> None:
    adam = recipe_of(AdamSettings(lr=0.01))
    with Training(regression(), adam) as training:
        for _ in range(20):
            training.step()
        measured = measure_sharpness(training, settings=EXACT)
        (weight,) = training.model.parameters()
        state = training.optimizer.state[weight]  # type: ignore[attr-defined]
        root = (state["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8
        scale = ((1 - 0.9**21) * root).flatten().sqrt()
    inputs = linear_data()[0].double()
    hessian = 2.0 * inputs.T @ inputs / len(inputs) / scale[:, None] / scale[None, :]
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert value(measured, "preconditioned_sharpness") == pytest.approx(largest, rel=1e-9)
    assert value(measured, "edge_lr") == pytest.approx(38.0 / largest, rel=1e-9)


def test_a_new_adam_takes_updates_first_unless_told_otherwise() -> None:
    adam = recipe_of(AdamSettings(lr=0.01))
    assert measure_sharpness(regression(), adam).settings["num_updates"] == 100
    none = SharpnessSettings(num_updates=0)
    edge = measure_sharpness(regression(), adam, settings=none).estimates["edge_lr"]
    assert edge.value is None
    assert "no state yet" in edge.reason


def test_muon_has_no_known_edge() -> None:
    muon = recipe_of(MuonSettings(lr=0.01))
    edge = measure_sharpness(regression(), muon).estimates["edge_lr"]
    assert edge.value is None
    assert "muon" in edge.reason


# --- models of all kinds -----------------------------------------------------------------------


def small_net(*layers: nn.Module) -> Task:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), *layers, nn.Linear(6, 1))

    return regression(build)


def test_kinks_are_told_once() -> None:
    slow = recipe_of(SGDSettings(lr=1e-4))
    assert names(measure_sharpness(small_net(nn.ReLU()), slow)) == {"not-smooth"}
    assert not names(measure_sharpness(small_net(nn.Tanh()), slow))


def test_dropout_draws_the_same_in_every_product() -> None:
    """Else the products would not be those of one symmetric matrix."""
    with Training(small_net(nn.Tanh(), nn.Dropout(0.5)), SGD) as training:
        parameters: list[Tensor] = list(training.model.parameters())
        operator = _Curvature(training, parameters, portions_of(training, 40), None)
        left, right = operator.start(0), operator.start(1)
        product = operator.product(left)
        assert torch.equal(operator.product(left), product)
        symmetric = float(left @ operator.product(right))
        assert float(right @ product) == pytest.approx(symmetric, rel=1e-10)


def test_batch_norm_uses_whole_batches_and_keeps_its_statistics() -> None:
    task = small_net(nn.BatchNorm1d(6), nn.Tanh())
    with Training(task, SGD) as training:
        training.step()
        before = [buffer.clone() for buffer in training.model.buffers()]
        measured = measure_sharpness(training, settings=SharpnessSettings(num_examples=30))
        assert all(map(torch.equal, training.model.buffers(), before))
    assert measured.settings["examples_per_repeat"] == 32  # two batches of 16


def test_frozen_layers_are_left_out() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1, bias=False))
        nn.init.eye_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        model[0].requires_grad_(False)
        return model

    measured = measure_sharpness(regression(build), SGD, settings=EXACT)
    assert value(measured) == pytest.approx(true_sharpness(), rel=1e-9)


class _Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :1].detach() + 0.0 * self.weight


def test_a_loss_without_curvature_is_told() -> None:
    measured = measure_sharpness(regression(_Flat), SGD)
    assert names(measured) == {"no-curvature"}
    assert measured.estimates["edge_lr"].value is None


def test_a_loss_that_is_not_finite_is_told() -> None:
    hot = recipe_of(SGDSettings(lr=1e6))
    settings = SharpnessSettings(num_updates=200)
    measured = measure_sharpness(small_net(nn.Identity()), hot, settings=settings)
    assert names(measured) == {"not-finite"}
    assert measured.estimates["sharpness"].value is None


def test_streams_are_measured_from_their_beginning() -> None:
    inputs, targets = linear_data()
    stream = [(x, y) for x, y in zip(inputs, targets, strict=True)]
    task = Task(
        build_model=lambda: nn.Linear(5, 1, bias=False),
        train=iter_of(stream),
        num_examples=96,
        validation=(inputs[:4], targets[:4]),
        kind="regression",
    )
    measured = measure_sharpness(task, SGD, settings=EXACT)
    assert value(measured) == pytest.approx(true_sharpness(), rel=1e-9)


class _Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def iter_of(items: list[Any]) -> _Stream:
    return _Stream(items)


# --- form --------------------------------------------------------------------------------------


def test_estimates_come_again_from_the_samples_alone() -> None:
    measured = measure_sharpness(small_net(nn.ReLU()), SGD)
    again = read_sharpness(measured.samples, measured.settings)
    assert again == measured.estimates
    assert tuple(findings_of(measured.samples, measured.settings, again)) == measured.findings


@pytest.mark.parametrize(
    ("name", "bad"),
    [("num_examples", 0), ("repeats", 0), ("max_iterations", 0), ("tolerance", 0.0),
     ("num_updates", -1)],
)  # fmt: skip
def test_bad_settings_are_refused(name: str, bad: float) -> None:
    with pytest.raises(InputError, match=name):
        SharpnessSettings(**{name: bad})  # type: ignore[arg-type]


def test_a_wrong_product_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact cases can fail: with a tenth more in each product they do."""
    right = hvp_module._product
    monkeypatch.setattr(hvp_module, "_product", lambda *a: 1.1 * right(*a))
    measured = measure_sharpness(regression(), SGD, settings=EXACT)
    assert value(measured) == pytest.approx(1.1 * true_sharpness(), rel=1e-9)


def test_the_command_says_the_edge_and_what_is_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["sharpness", "digits", "--examples", "100", "--repeats", "2"]
    assert main([*quick, "--out", "one"]) == 0
    said = capsys.readouterr().out
    assert "after 0 updates, on 2 x about 100 training examples" in said
    assert "at lr 0.1; the edge is at 1.36" in said
    assert "beyond-the-edge" not in said
    assert main([*quick, "--set", "optimizer.lr=9", "--out", "two"]) == 0
    assert "! beyond-the-edge: lr 9 x curvature" in capsys.readouterr().out
    axes = Run(tmp_path / "one").measurements()["sharpness"].plot()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "examples 1", "examples 2", "edge 1.36"
    ]  # fmt: skip
