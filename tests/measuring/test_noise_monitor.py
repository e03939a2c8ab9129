"""The monitor in loops of one's own: right pairs, the same training, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.curvature.noise_arithmetic import pair_of_parts
from anybatch.errors import InputError
from anybatch.measuring.noise_monitor import NoiseScaleMonitor


def new_model(*, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(6) if batch_norm else nn.Tanh()
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 1)).double()


def batches(count: int, size: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 4, generator=generator).double() for _ in range(count)]


def mean_loss(model: nn.Module, inputs: Tensor) -> Tensor:
    loss: Tensor = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    return loss


def trained(
    monitor_every: int | None, *, sizes: tuple[int, ...] = (6, 6), batch_norm: bool = False
) -> tuple[nn.Module, NoiseScaleMonitor | None]:
    """Six accumulated updates, with a monitor or without."""
    model = new_model(batch_norm=batch_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = None if monitor_every is None else NoiseScaleMonitor(model, every=monitor_every)
    for batch in batches(6, sum(sizes)):
        optimizer.zero_grad()
        for part in batch.split(list(sizes)):
            loss = len(part) / len(batch) * mean_loss(model, part)
            if monitor is None:
                loss.backward()
            else:
                with monitor.part(len(part)):
                    loss.backward()
        if monitor is not None:
            monitor.update()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, monitor


def gradient(model: nn.Module, inputs: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(mean_loss(model, inputs), parameters)]
    )


@pytest.mark.parametrize("sizes", [(6, 6), (3, 2, 7)])
def test_a_pair_is_that_of_the_parts(sizes: tuple[int, ...]) -> None:
    _, monitor = trained(1, sizes=sizes)
    assert monitor is not None
    samples = monitor.measurement().samples
    model, (first, *_) = new_model(), batches(6, sum(sizes))
    parts = [gradient(model, part) for part in first.split(list(sizes))]
    squares = sum(b * float(g @ g) for b, g in zip(sizes, parts, strict=True)) / len(first)
    whole = gradient(model, first)
    wanted = pair_of_parts(
        squares, float(whole @ whole), num_examples=len(first), num_parts=len(sizes)
    )
    assert samples["squared_gradient_norm"][0] == pytest.approx(float(wanted.squared_norm))
    assert samples["covariance_trace"][0] == pytest.approx(float(wanted.trace))
    assert samples["probe"] == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert set(samples["parts"]) == {float(len(sizes))}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_are_bitwise_those_without_it(batch_norm: bool) -> None:
    plain, watched = trained(None, batch_norm=batch_norm)[0], trained(2, batch_norm=batch_norm)[0]
    pairs = zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_updates_that_are_not_measured_have_no_hooks() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model, every=2)
    hooks = []
    for batch in batches(2):
        model.zero_grad()
        for part in batch.split(6):
            with monitor.part(6):
                hooks.append([bool(p._backward_hooks) for p in model.parameters()])
                (0.5 * mean_loss(model, part)).backward()
        monitor.update()
        assert not any(p._backward_hooks for p in model.parameters())
    assert [all(seen) for seen in hooks] == [True, True, False, False]
    assert [any(seen) for seen in hooks] == [True, True, False, False]


def test_split_divides_the_measured_updates_alone_and_changes_rounding_alone() -> None:
    models = new_model(), new_model()
    monitor = NoiseScaleMonitor(models[1], every=2)
    counts = []
    for batch in batches(6, 13):
        for model, parts in zip(models, ([(batch, 1.0)], monitor.split(batch, 4)), strict=True):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            optimizer.zero_grad()
            seen = 0
            for part, share in parts:
                (share * mean_loss(model, part)).backward()
                seen += 1
            counts.append(seen)
            if model is models[1]:
                monitor.update()
            optimizer.step()
    assert counts == [1, 4, 1, 1] * 3
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    samples = monitor.measurement().samples
    assert (samples["examples"], samples["parts"]) == ((13.0,) * 3, (4.0,) * 3)


def test_nests_are_split_and_a_batch_that_is_too_small_is_refused() -> None:
    monitor = NoiseScaleMonitor(new_model(), every=1)
    nest = {"a": torch.arange(5), "b": (torch.arange(5), "text")}
    parts = monitor.split(nest, 2)
    part, share = next(parts)
    assert (part["a"].tolist(), part["b"][0].tolist(), share) == ([0, 1], [0, 1], 0.4)
    with pytest.raises(InputError, match="must hold one backward pass"):
        next(parts)
    with pytest.raises(InputError, match="must be >= 9 parts, got 5"):
        next(monitor.split(nest, 9))
    with pytest.raises(InputError, match="tensors of the same length"):
        next(monitor.split((torch.arange(3), torch.arange(4))))


# --- the trap -----------------------------------------------------------------------------------


def test_consecutive_updates_are_biased_where_the_parts_of_each_are_not() -> None:
    """SGD at rest on a quadratic with known noise, lr half of 1 / the largest eigenvalue."""
    torch.manual_seed(3)
    eigenvalues = torch.tensor([1.0] * 25 + [0.5] * 25).double()
    weights = nn.Parameter(torch.zeros(50).double())
    model = nn.Module()
    model.weights = weights
    optimizer = torch.optim.SGD([weights], lr=0.5)
    monitor = NoiseScaleMonitor(model, every=1, capacity=1200)
    products, before = [], None
    for number in range(1250):
        if number == 50:  # at rest
            monitor = NoiseScaleMonitor(model, every=1, capacity=1200)
        optimizer.zero_grad()
        for noise in torch.randn(4, 4, 50).double():  # 4 parts of 4 examples, variance 1
            with monitor.part(4):
                value = 0.5 * (eigenvalues * weights.square()).sum() + noise.mean(0) @ weights
                (0.25 * value).backward()
        monitor.update()
        now = weights.grad.clone()
        if number > 50:
            products.append(float(now @ before))
        before = now
        optimizer.step()
    variance = 0.5 / 16 / (eigenvalues * (2.0 - 0.5 * eigenvalues))  # of the weights, at rest
    squared_norm = float((eigenvalues.square() * variance).sum())
    found = monitor.measurement().estimates
    assert found["squared_gradient_norm"].value == pytest.approx(squared_norm, rel=0.08)
    assert found["b_simple"].value == pytest.approx(50.0 / squared_norm, rel=0.08)
    crossed = sum(products) / len(products)  # what two "disjoint batches" would agree on
    assert crossed == pytest.approx(-squared_norm, rel=0.2)


# --- what it refuses ----------------------------------------------------------------------------


def one_part(monitor: NoiseScaleMonitor, model: nn.Module, size: int = 6) -> None:
    with monitor.part(size):
        mean_loss(model, batches(1, size)[0]).backward()


def test_one_backward_pass_in_an_update_is_refused_with_the_way_out() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model)
    one_part(monitor, model)
    with pytest.raises(InputError, match=r"two parts.*one backward pass.*monitor\.split\(batch\)"):
        monitor.update()
    monitor = NoiseScaleMonitor(model)
    with pytest.raises(InputError, match="got no part"):
        monitor.update()


def test_split_under_batch_norm_is_refused_and_parts_are_its_unit() -> None:
    model = new_model(batch_norm=True)
    monitor = NoiseScaleMonitor(model, every=1)
    with pytest.raises(InputError, match="undivided under BatchNorm in training mode"):
        next(monitor.split(batches(1)[0]))
    for sizes in ((4, 5), (4, 4), (3, 3)):
        model.zero_grad()
        for size in sizes:
            one_part(monitor, model, size)
        if sizes == (4, 5):
            with pytest.raises(InputError, match="of one size under BatchNorm"):
                monitor.update()
        else:
            monitor.update()
    settings = monitor.measurement().settings
    assert (settings["unit"], settings["unit_examples"]) == ("ghost batches of 4 examples", 4)
    assert (settings["updates_left_out"], monitor.updates) == (1, 3)
    model.eval()
    assert (
        len(list(zip(range(1), NoiseScaleMonitor(model).split(batches(1)[0]), strict=False))) == 1
    )


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize("change", [clip, nn.Module.zero_grad])
def test_a_gradient_that_was_changed_before_is_refused(change: Any) -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model)
    one_part(monitor, model)
    one_part(monitor, model)
    change(model)
    with pytest.raises(InputError, match="must come before the gradient is clipped"):
        monitor.update()


def test_a_gradient_that_was_not_set_to_zero_is_refused() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model, every=1)
    for _ in range(2):
        one_part(monitor, model)
        one_part(monitor, model)
        monitor.update()
    with pytest.raises(InputError, match=r"gradients must be zero.*zero_grad"):
        monitor.estimate()


def test_zeros_in_the_place_of_none_are_no_gradient() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model, every=1)
    for _ in range(4):
        model.zero_grad(set_to_none=False)
        one_part(monitor, model)
        one_part(monitor, model)
        monitor.update()
    assert len(monitor.measurement().samples["probe"]) == 4


def test_a_part_with_two_backward_passes_or_none_is_refused() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model)
    for count in (2, 0):
        part = monitor.part(6)
        part.__enter__()
        for _ in range(count):
            mean_loss(model, batches(1)[0]).backward()
        with pytest.raises(InputError, match=f"must hold one backward pass .*got {count}"):
            part.__exit__(None, None, None)


def test_an_update_that_breaks_off_leaves_nothing_behind() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model, every=1)
    one_part(monitor, model)
    with pytest.raises(ZeroDivisionError), monitor.part(6):
        raise ZeroDivisionError
    model.zero_grad()
    assert not any(p._backward_hooks for p in model.parameters())
    for _ in range(2):
        one_part(monitor, model)
    monitor.update()
    assert monitor.measurement().samples["parts"] == (2.0,)


def test_frozen_and_tied_parameters_count_as_the_training_counts_them() -> None:
    model = new_model()
    model[0].bias.requires_grad_(False)
    model.append(model[1])
    model.append(nn.Linear(1, 6).double())
    model.append(model[2])  # the second use of one weight
    monitor = NoiseScaleMonitor(model)
    halves = batches(1)[0].split(6)
    for part in halves:
        with monitor.part(6):
            (0.5 * mean_loss(model, part)).backward()
    monitor.update()
    whole = sum(gradient(model, part) / 2 for part in halves)
    samples = monitor.measurement().samples
    added = samples["squared_gradient_norm"][0] + samples["covariance_trace"][0] / 12
    assert added == pytest.approx(float(whole @ whole))


class FakeScaler:
    """Scales as torch's does; CUDA has the real one."""

    def get_scale(self) -> float:
        return 1024.0


def test_a_scaler_does_not_change_the_pair_and_an_overflow_is_left_out() -> None:
    found = []
    for scaler in (None, FakeScaler()):
        model = new_model()
        monitor = NoiseScaleMonitor(model, every=1, scaler=scaler)
        for number, batch in enumerate(batches(6)):
            model.zero_grad()
            for part in batch.split(6):
                factor = 1.0 if scaler is None else scaler.get_scale()
                overflow = math.inf if number == 3 else 1.0
                with monitor.part(6):
                    (overflow * factor * 0.5 * mean_loss(model, part)).backward()
            monitor.update()
        found.append(monitor.measurement())
    for name in ("squared_gradient_norm", "covariance_trace"):
        plain, scaled = (measured.samples[name] for measured in found)
        assert scaled == pytest.approx(plain, nan_ok=True)
        assert [math.isfinite(value) for value in plain].count(False) == 1
    names = [finding.name for finding in found[0].findings]
    assert names[0] == "non-finite-gradient"


def test_bad_settings_are_refused() -> None:
    frozen = new_model().requires_grad_(False)
    with pytest.raises(InputError, match="a parameter that requires a gradient"):
        NoiseScaleMonitor(frozen)
    for wrong in ({"every": 0}, {"capacity": 3}):
        with pytest.raises(InputError, match="must be >="):
            NoiseScaleMonitor(new_model(), **wrong)
    with pytest.raises(InputError, match="num_examples must be >= 1"):
        next(iter([NoiseScaleMonitor(new_model()).part(0).__enter__()]))


def test_only_the_latest_pairs_are_kept_and_a_model_can_be_copied_meanwhile() -> None:
    model = new_model()
    monitor = NoiseScaleMonitor(model, every=1, capacity=4)
    for _ in range(6):
        model.zero_grad()
        one_part(monitor, model)
        copy.deepcopy(model)
        one_part(monitor, model)
        monitor.update()
    assert monitor.measurement().samples["probe"] == (3.0, 4.0, 5.0, 6.0)
    assert monitor.estimate().value == 0.0  # the same batch again and again
