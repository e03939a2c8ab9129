"""Training equals a plain torch loop over the same batches (`task.batch` gives them).

The loops below are what a torch user writes: `cross_entropy(...)` of the batch, `backward`,
`clip_grad_norm_`, `step`. In float64 the weights agree to 1e-12 relative (only the order of the
sums in the mean loss differs). Where the loop weighs per-example losses as Training does, weights
and losses are equal to the last bit, in float64 and in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    ClipGlobalNorm,
    ComputeSettings,
    ExponentialAverage,
    LossSettings,
    MuonSettings,
    PolynomialAverage,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
)
from anybatch.records import StepRecord
from anybatch.schedules import Cosine, Linear, OneCycle, Warmup, epochs, fraction
from anybatch.task import Task
from anybatch.training.training import Training
from anybatch.world import World

NUM_EXAMPLES, NUM_CLASSES = 70, 4
SGD = SGDSettings(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3)
ADAM = AdamSettings(lr=3e-3, beta2=0.99, weight_decay=1e-3)
ADAMW = AdamWSettings(lr=3e-3, beta1=0.8, weight_decay=0.1)
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, NUM_CLASSES)
    )


def make_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_EXAMPLES, 8, generator=generator)
    targets = inputs[:, :NUM_CLASSES].argmax(1)
    return Task(build_model=network, train=(inputs, targets), validation=(inputs, targets))


TASK = make_task()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_recipe(precision: Any = "fp64", **changes: Any) -> Recipe:
    recipe = Recipe(
        optimizer=SGD,
        duration=epochs(8),
        batch_size=16,
        seed=11,
        compute=ComputeSettings(device="cpu", precision=precision),
        records=RecordSettings(log_every=1),
    )
    return replace(recipe, **changes)


def train(recipe: Recipe) -> tuple[Training, list[float]]:
    """The training at its end, and the loss of each update."""
    training = Training(TASK, recipe, world=World(torch.device("cpu")))
    return training, [record.loss for record in training if isinstance(record, StepRecord)]


# --- by hand ---------------------------------------------------------------------------------


def new_model(recipe: Recipe) -> nn.Module:
    torch.manual_seed(recipe.seed)
    return network().to(torch.float64 if recipe.compute.precision == "fp64" else torch.float32)


def torch_optimizer(settings: Any, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay, **options}
    if isinstance(settings, SGDSettings):
        common |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD(model.parameters(), **common)
    make = torch.optim.Adam if isinstance(settings, AdamSettings) else torch.optim.AdamW
    betas = (settings.beta1, settings.beta2)
    return make(model.parameters(), betas=betas, eps=settings.epsilon, **common)


def batches(recipe: Recipe, size_of: Callable[[float], int]) -> Iterator[tuple[float, Any]]:
    """(progress, batch) of every update: consecutive, the last of an epoch takes what is left."""
    total = round(recipe.duration.count * NUM_EXAMPLES)
    examples = 0
    while examples < total:
        epoch, position = divmod(examples, NUM_EXAMPLES)
        size = min(size_of(examples / total), total - examples)
        batch = TASK.batch(epoch, position, batch_size=size, seed=recipe.seed)
        yield examples / total, batch
        examples += len(batch.indices)


def mean_loss(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(outputs, targets, **options)


def weighted_loss(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The same mean, summed as Training sums it: each example's loss times 1 / B."""
    losses = F.cross_entropy(outputs, targets, reduction="none", **options)
    return (losses * torch.full_like(losses, 1 / len(targets))).sum()


def loop(
    recipe: Recipe,
    *,
    loss: Callable[..., Tensor] = mean_loss,
    size_of: Callable[[float], int] = lambda progress: 16,
    before_step: Callable[[nn.Module, Any, float], None] = lambda *_: None,
    after_step: Callable[[nn.Module], None] = lambda _: None,
    **options: Any,
) -> tuple[nn.Module, list[float]]:
    """What a torch user writes; `options` go to the optimizer."""
    model = new_model(recipe)
    optimizer = torch_optimizer(recipe.optimizer, model, **options)
    dtype = next(model.parameters()).dtype
    losses = []
    for progress, batch in batches(recipe, size_of):
        optimizer.zero_grad()
        value = loss(model(batch.inputs.to(dtype)), batch.targets)
        value.backward()
        before_step(model, optimizer, progress)
        optimizer.step()
        after_step(model)
        losses.append(value.item())
    return model, losses


def assert_close(training: nn.Module, by_hand: nn.Module, tolerance: float = 1e-12) -> None:
    one, other = (
        torch.cat([p.detach().flatten() for p in model.parameters()])
        for model in (training, by_hand)
    )
    assert float((one - other).norm() / other.norm()) <= tolerance


def assert_equal(training: nn.Module, by_hand: nn.Module) -> None:
    for one, other in zip(training.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)


# --- equality --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_float64_is_the_plain_loop_to_1e_12(name):
    recipe = make_recipe(optimizer=OPTIMIZERS[name])
    training, losses = train(recipe)
    model, expected = loop(recipe)
    assert_close(training.model, model)
    assert losses == pytest.approx(expected, rel=1e-12)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_loop_of_weighted_losses_to_the_last_bit(name, precision):
    recipe = make_recipe(precision, optimizer=OPTIMIZERS[name])
    training, losses = train(recipe)
    model, expected = loop(recipe, loss=weighted_loss, fused=True)
    assert_equal(training.model, model)
    assert losses == pytest.approx(expected, rel=1e-14 if precision == "fp64" else 1e-6)


def test_label_smoothing_is_torchs():
    recipe = make_recipe(loss=LossSettings(label_smoothing=0.1))
    training, losses = train(recipe)
    model, expected = loop(recipe, loss=lambda o, t: mean_loss(o, t, label_smoothing=0.1))
    assert_close(training.model, model)
    assert losses == pytest.approx(expected, rel=1e-12)


def test_clipping_is_torchs_and_the_norm_before_it_is_recorded():
    recipe = make_recipe(gradient=(ClipGlobalNorm(max_norm=0.3),))
    training = Training(TASK, recipe, world=World(torch.device("cpu")))
    recorded = [r.gradient_norm for r in training if isinstance(r, StepRecord)]
    norms: list[float] = []

    def clip(model: nn.Module, optimizer: Any, progress: float) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.3)))

    model, _ = loop(recipe, before_step=clip)
    assert_close(training.model, model)
    assert recorded == pytest.approx(norms, rel=1e-12)
    assert min(norms) < 0.3 < max(norms)  # some updates are clipped, some are not


def test_summed_losses_with_converted_lr_and_decay_give_the_same_trace():
    # w <- w - lr (mean gradient + decay w) = w - (lr / B) (summed gradient + B decay w).
    size = 14  # divides the 70 examples: every update has the same B
    mean = make_recipe(batch_size=size)
    summed = replace(
        mean,
        optimizer=replace(SGD, lr=SGD.lr / size, weight_decay=SGD.weight_decay * size),
        loss=LossSettings(reduction="sum"),
    )
    training, losses = train(mean)
    other, other_losses = train(summed)
    assert_close(other.model, training.model)
    assert other_losses == pytest.approx(losses, rel=1e-12)
    model, _ = loop(
        summed, loss=lambda o, t: mean_loss(o, t, reduction="sum"), size_of=lambda _: size
    )
    assert_close(other.model, model)


def test_schedules_move_lr_momentum_and_decay_like_a_users_loop():
    schedules = Schedules(
        lr=Warmup(duration=fraction(0.25), into=Cosine(end=0.1)),
        momentum=OneCycle(warmup=fraction(0.5), start=1.0, peak=0.5, end=1.0, shape="linear"),
        weight_decay=Linear(start=0.0, end=2.0),
    )
    recipe = make_recipe(schedules=schedules)

    def set_values(model: nn.Module, optimizer: Any, progress: float) -> None:
        rest = (progress - 0.25) / 0.75
        factor = progress / 0.25 if rest < 0 else 0.55 + 0.45 * math.cos(math.pi * rest)
        group = optimizer.param_groups[0]
        group["lr"] = SGD.lr * factor
        group["momentum"] = SGD.momentum * (1 - min(progress, 1 - progress))
        group["weight_decay"] = SGD.weight_decay * 2 * progress

    training, _ = train(recipe)
    model, _ = loop(recipe, before_step=set_values)
    assert_close(training.model, model)


@pytest.mark.parametrize("every", [1, 3])
def test_the_average_is_torchs_averaged_model_from_the_initial_weights_on(every):
    recipe = make_recipe(averaging=ExponentialAverage(decay=0.8, every=every))
    averages: list[AveragedModel] = [
        AveragedModel(new_model(recipe), multi_avg_fn=get_ema_multi_avg_fn(0.8))
    ]
    averages[0].update_parameters(new_model(recipe))
    updates = 0

    def average(model: nn.Module) -> None:
        nonlocal updates
        updates += 1
        if updates % every == 0:
            averages[0].update_parameters(model)

    model, _ = loop(recipe, after_step=average)
    training, _ = train(recipe)
    assert_close(training.model, model)
    assert_close(training.kept_model, averages[0].module)
    assert not torch.equal(training.kept_model[0].weight, training.model[0].weight)


def test_the_average_by_its_formula():
    recipe = make_recipe(averaging=ExponentialAverage(decay=0.8))
    expected = [p.detach().clone() for p in new_model(recipe).parameters()]

    def average(model: nn.Module) -> None:
        for kept, weight in zip(expected, model.parameters(), strict=True):
            kept.mul_(0.8).add_(0.2 * weight.detach())

    loop(recipe, after_step=average)
    training, _ = train(recipe)
    for kept, weight in zip(expected, training.kept_model.parameters(), strict=True):
        torch.testing.assert_close(weight, kept, rtol=1e-11, atol=1e-13)


def test_a_growing_batch_size_takes_the_batches_of_the_same_positions():
    recipe = make_recipe(schedules=Schedules(batch_size=Linear(start=0.25, end=2.0)))
    training, losses = train(recipe)

    def size_of(progress: float) -> int:
        return round(16 * (0.25 + 1.75 * progress))

    model, expected = loop(recipe, size_of=size_of)
    assert len(losses) == len(expected)
    assert_close(training.model, model)
    assert losses == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_muon_is_torchs_muon_on_hidden_matrices_and_adamw_beside_it(adjust_lr):
    settings = MuonSettings(lr=0.02, weight_decay=0.01, adjust_lr=adjust_lr, adamw_lr=2e-3)
    recipe = make_recipe(optimizer=settings, schedules=Schedules(lr=Linear()))
    training, losses = train(recipe)
    model = new_model(recipe)
    hidden = [model[0].weight, model[2].weight]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in hidden)]
    optimizers = (
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.01, adjust_lr_fn=adjust_lr),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01),
    )
    expected = []
    for progress, batch in batches(recipe, lambda _: 16):
        model.zero_grad()
        loss = weighted_loss(model(batch.inputs.double()), batch.targets)
        loss.backward()
        for optimizer, lr in zip(optimizers, (0.02, 2e-3), strict=True):
            optimizer.param_groups[0]["lr"] = lr * (1 - progress)
            optimizer.step()
        expected.append(loss.item())
    # To the last bit: torch's Newton-Schulz iteration in bfloat16 would amplify any rounding.
    assert_equal(training.model, model)
    assert losses == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("power", "every"), [(0.0, 1), (8.0, 1), (2.5, 2)])
def test_the_polynomial_average_by_its_formula(power, every):
    recipe = make_recipe(averaging=PolynomialAverage(power=power, every=every))
    expected = [p.detach().clone() for p in new_model(recipe).parameters()]
    updates, step = 0, 1  # the initial weights are the first step

    def average(model: nn.Module) -> None:
        nonlocal updates, step
        updates += 1
        if updates % every:
            return
        step += 1
        rate = (power + 1.0) / (step + power)
        for kept, weight in zip(expected, model.parameters(), strict=True):
            kept.mul_(1.0 - rate).add_(rate * weight.detach())

    loop(recipe, after_step=average)
    training, _ = train(recipe)
    for kept, weight in zip(expected, training.kept_model.parameters(), strict=True):
        torch.testing.assert_close(weight, kept, rtol=1e-11, atol=1e-13)


def test_of_power_0_the_polynomial_average_is_the_mean_of_all_weights():
    recipe = make_recipe(averaging=PolynomialAverage(power=0.0))
    seen = [[p.detach().clone() for p in new_model(recipe).parameters()]]
    loop(recipe, after_step=lambda m: seen.append([p.detach().clone() for p in m.parameters()]))
    training, _ = train(recipe)
    means = [torch.stack(weights).mean(0) for weights in zip(*seen, strict=True)]
    for mean, weight in zip(means, training.kept_model.parameters(), strict=True):
        torch.testing.assert_close(weight, mean, rtol=1e-11, atol=1e-13)
