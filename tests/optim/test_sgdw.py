"""SGDW: traces by hand, equality with torch's SGD, and what every optimizer of torch's can."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.lr_scheduler import schedule_as_lr_scheduler
from anybatch.optim.sgdw import SGDW, StepNumbers, sgdw_step
from anybatch.recipe import SGDWSettings
from anybatch.schedules import Linear
from anybatch.training.build import build_optimizer

LRS = (0.1, 0.05, 0.2)
GRADIENTS = (2.0, -1.0, 4.0)


def trace(optimizer_of: Any, lrs: tuple[float, ...] = LRS) -> list[float]:
    """A weight that begins at 1, under three gradients and a moving lr."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = optimizer_of([weight])
    values = []
    for lr, gradient in zip(lrs, GRADIENTS, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        values.append(weight.item())
    return values


# --- by hand ---------------------------------------------------------------------------------
# lr 0.1, 0.05, 0.2 of a reference of 0.1: eta = 1, 0.5, 2; g = 2, -1, 4; momentum 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # m: .2; .1 - .05 = .05; .025 + .8 = .825
        # w: 1 - .2 - .1 = .7; .7 - .05 - .05 * .7 = .615; .615 - .825 - .2 * .615 = -.333
        ({"weight_decay": 0.1}, (0.7, 0.615, -0.333)),
        # lambda = .3 / sqrt(9) = .1
        ({"weight_decay": 0.3, "decay": "normalized", "num_updates": 9}, (0.7, 0.615, -0.333)),
        # g': 2.1; -1 + .069 = -.931; with w = 1, .79, ...
        #   m: .21; .105 + .05 (-1 + .079) = .05895; .029475 + .2 (4 + .073105) = .844096
        #   w: .79; .73105; -.113046
        ({"weight_decay": 0.1, "decay": "coupled"}, (0.79, 0.73105, -0.113046)),
        # d = lr g + .5 m: .2 + .1 = .3; -.05 + .025 = -.025; .8 + .4125 = 1.2125
        # w: 1 - .3 - .1 = .6; .6 + .025 - .03 = .595; .595 - 1.2125 - .119 = -.7365
        ({"weight_decay": 0.1, "nesterov": True}, (0.6, 0.595, -0.7365)),
        # the momentum times lr_t / lr_{t-1}: m: .2; .5 * .5 * .2 - .05 = 0; .8
        # w: .7; .7 - 0 - .035 = .665; .665 - .8 - .133 = -.268
        ({"weight_decay": 0.1, "momentum_correction": True}, (0.7, 0.665, -0.268)),
        # no momentum: w: .7; .7 + .05 - .035 = .715; .715 - .8 - .143 = -.228
        ({"weight_decay": 0.1, "momentum": 0.0}, (0.7, 0.715, -0.228)),
    ],
)
def test_three_steps_by_hand(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    options = {"momentum": 0.5} | options
    assert trace(lambda p: SGDW(p, 0.1, **options)) == pytest.approx(expected, rel=1e-12)


def test_the_paper_and_torch_differ_where_lr_moves_and_only_there() -> None:
    def sgdw(**options: Any) -> Any:
        return lambda p: SGDW(p, 0.1, momentum=0.9, weight_decay=0.1, decay="coupled", **options)

    def sgd(**options: Any) -> Any:
        return lambda p: torch.optim.SGD(
            p, 0.1, momentum=0.9, weight_decay=0.1, foreach=False, **options
        )

    still = (0.1, 0.1, 0.1)
    for options in ({}, {"nesterov": True}):
        corrected = sgdw(momentum_correction=True, **options)
        assert trace(corrected) == pytest.approx(trace(sgd(**options)), rel=1e-14)
        if not options:  # the same operations, bit for bit
            assert trace(corrected) == trace(sgd(**options))
        papers = sgdw(**options)
        assert trace(papers, still) == pytest.approx(trace(sgd(**options), still), rel=1e-14)
        assert trace(papers)[1] != pytest.approx(trace(sgd(**options))[1], rel=1e-3)


@settings(deadline=None, max_examples=50)
@given(
    lrs=st.lists(st.floats(0.0, 0.5), min_size=2, max_size=8),
    momentum=st.floats(0.0, 0.99),
    nesterov=st.booleans(),
    decay=st.floats(0.0, 0.1),
)
def test_with_momentum_correction_it_is_torchs_sgd(lrs, momentum, nesterov, decay) -> None:
    """Also through an lr of 0, where m itself would have forgotten the gradients."""
    nesterov = nesterov and momentum > 0
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    ours = SGDW(weights[:1], 0.1, momentum=momentum, nesterov=nesterov, momentum_correction=True,
                weight_decay=decay, decay="coupled")  # fmt: skip
    torchs = torch.optim.SGD(weights[1:], 0.1, momentum=momentum, nesterov=nesterov,
                             weight_decay=decay, foreach=False)  # fmt: skip
    for lr in lrs:
        gradient = torch.randn(3, generator=generator, dtype=torch.float64)
        for optimizer, weight in zip((ours, torchs), weights, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-14)


def test_momentum_correction_is_goyals_factor_on_the_papers_momentum() -> None:
    lrs, momentum = (0.1, 0.05, 0.2), 0.9
    m, w, expected = 0.0, 1.0, []
    for t, (lr, g) in enumerate(zip(lrs, GRADIENTS, strict=True)):
        m = momentum * (lr / lrs[max(t - 1, 0)]) * m + lr * g
        w -= m
        expected.append(w)
    got = trace(lambda p: SGDW(p, 0.1, momentum=momentum, momentum_correction=True))
    assert got == pytest.approx(expected, rel=1e-13)


# --- the step function -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("coupled", [0.0, 0.1])
def test_all_at_once_is_one_by_one_to_rounding(dtype, momentum, nesterov, coupled) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (7,), (), (2, 3, 4)]

    def tensors() -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]

    numbers = StepNumbers(
        inside=0.1, outside=0.7, momentum=momentum, nesterov=nesterov, coupled_decay=coupled,
        shrink=0.99,
    )  # fmt: skip
    weights, gradients, buffers = tensors(), tensors(), tensors() if momentum else []
    copies = copy.deepcopy((weights, gradients, buffers))
    sgdw_step(weights, gradients, buffers, numbers)
    sgdw_step(*copies, numbers, foreach=True)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    for one, other in zip(weights + buffers, copies[0] + copies[2], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(gradients, copies[1], strict=True))


# --- what every optimizer of torch's can -----------------------------------------------------


def model_and(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).to(dtype)
    return model, SGDW(model.parameters(), lr=0.1, **options)


def take(model: nn.Module, optimizer: Any, numbers: range) -> list[Tensor]:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("through", ["file", "pickle", "deepcopy"])
def test_a_state_goes_on_bitwise(dtype: torch.dtype, through: str) -> None:
    options = {"weight_decay": 0.05, "decay": "normalized", "num_updates": 50}
    model, optimizer = model_and(options, dtype)
    optimizer.param_groups[0]["lr"] = 0.05
    take(model, optimizer, range(3))
    if through == "deepcopy":
        other, again = copy.deepcopy((model, optimizer))
    else:
        other, again = model_and({}, dtype)
        other.load_state_dict(model.state_dict())
        state = optimizer.state_dict()
        if through == "pickle":
            state = pickle.loads(pickle.dumps(state))
        else:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        again.load_state_dict(state)
    assert again.param_groups[0]["reference_lr"] == 0.1
    buffers = [entry["momentum_buffer"] for entry in again.state.values()]
    assert {buffer.dtype for buffer in buffers} == {torch.float32}
    expected = take(model, optimizer, range(3, 6))
    got = take(other, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_bfloat16_weights_take_a_32_bit_step_that_is_rounded_once() -> None:
    model, optimizer = model_and({"weight_decay": 0.01, "nesterov": True}, torch.bfloat16)
    wide = copy.deepcopy(model).float()
    control = SGDW(wide.parameters(), lr=0.1, weight_decay=0.01, nesterov=True)
    for number in range(4):
        for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
            other.data.copy_(parameter.data)  # from the same weights ...
            generator = torch.Generator().manual_seed(number)
            gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
            parameter.grad, other.grad = gradient, gradient.float()
        optimizer.step()
        control.step()
        for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
            assert torch.equal(parameter, other.bfloat16())  # ... to the same, rounded
    for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
        buffers = [o.state[p]["momentum_buffer"] for o, p in
                   ((optimizer, parameter), (control, other))]  # fmt: skip
        assert torch.equal(*buffers)


@pytest.mark.parametrize("decay", ["coupled", "decoupled", "normalized"])
def test_an_lr_of_0_and_no_gradient_move_nothing(decay: str) -> None:
    model = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = SGDW(model.parameters(), 0.0, weight_decay=0.1, decay=decay, num_updates=4)  # type: ignore[arg-type]
    take(model, optimizer, range(3))
    assert all(map(torch.equal, before, model.parameters()))
    optimizer = SGDW(model.parameters(), 0.1, weight_decay=0.1, decay=decay, num_updates=4)  # type: ignore[arg-type]
    optimizer.zero_grad()
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert not optimizer.state
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert not torch.equal(before[0], model.weight)
    assert torch.equal(before[1], model.bias)


def test_groups_have_their_own_settings_and_reference() -> None:
    weights = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(3)]
    optimizer = SGDW(
        [{"params": weights[:1]}, {"params": weights[1:2], "lr": 1.0, "weight_decay": 0.0}],
        lr=0.5, momentum=0.0, weight_decay=0.2,
    )  # fmt: skip
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.add_param_group({"params": weights[2:], "lr": 2.0})
    assert [group["reference_lr"] for group in optimizer.param_groups] == [0.5, 1.0, 2.0]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert [weight.item() for weight in weights] == [0.9, 1.0, 0.8]
    assert all("initial_lr" not in group for group in optimizer.param_groups)


def test_schedulers_move_lr_and_leave_the_reference() -> None:
    for scheduler_of in (
        lambda o: schedule_as_lr_scheduler(Linear(), o, total_updates=4),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, 4),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 7.0, 4),  # sets lr at its construction
    ):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = SGDW([weight], 0.5, weight_decay=0.1, momentum=0.5)
        scheduler = scheduler_of(optimizer)
        expected = 1.0
        for _ in range(4):
            weight.grad = torch.zeros_like(weight)
            expected *= 1.0 - optimizer.param_groups[0]["lr"] / 0.5 * 0.1
            optimizer.step()
            scheduler.step()
        assert weight.item() == pytest.approx(expected, rel=1e-13)


def test_a_closure_is_evaluated_once_with_gradients() -> None:
    model, optimizer = model_and({})
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == calls[0]
    assert len(calls) == 1
    assert optimizer.step() is None


def test_a_grad_scaler_unscales_and_skips() -> None:
    model, optimizer = model_and({"weight_decay": 0.1})
    control, plain = model_and({"weight_decay": 0.1})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True, False):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        inputs = torch.full((2, 4), math.inf if bad else 1.0)
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert all(map(torch.equal, before, model.parameters()))
            continue
        plain.zero_grad()
        control(inputs).square().mean().backward()
        plain.step()
        for one, other in zip(model.parameters(), control.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_shapes_and_layouts_of_any_kind() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    odd = [image, torch.randn(6, 4).T, torch.randn(()), torch.randn(0, 3)]
    parameters = [nn.Parameter(tensor) for tensor in odd]
    plain = [nn.Parameter(tensor.detach().clone().contiguous()) for tensor in odd]
    optimizers = [SGDW(group, 0.1, weight_decay=0.1) for group in (parameters, plain)]
    for _ in range(3):
        for one, other in zip(parameters, plain, strict=True):
            one.grad = torch.ones_like(one) * 0.3
            other.grad = torch.ones_like(other) * 0.3
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, plain, strict=True))


# --- what is refused -------------------------------------------------------------------------


def test_sparse_gradients_and_complex_parameters_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGDW(embedding.parameters(), 0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"gradient must be dense, got torch\.sparse_coo"):
        optimizer.step()
    with pytest.raises(InputError, match="parameters must be real numbers"):
        SGDW([nn.Parameter(torch.ones(2, dtype=torch.complex64))], 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"lr": math.nan}, "lr must be >= 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov must come with momentum > 0"),
        ({"decay": "l2"}, "decay must be one of: coupled, decoupled, normalized"),
        ({"decay": "normalized"}, "num_updates must be given for normalized weight decay"),
        ({"decay": "normalized", "num_updates": 0}, "num_updates must be >= 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    with pytest.raises(InputError, match=message):
        SGDW(weights, **({"lr": 0.1} | options))
    optimizer = SGDW(weights[:1], lr=0.1)
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": weights[1:]} | options)
    assert len(optimizer.param_groups) == 1


def test_an_lr_without_a_reference_is_refused_where_decay_needs_one() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = SGDW([weight], lr=0.0, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    weight.grad = torch.ones(1)
    with pytest.raises(InputError, match="reference_lr must be > 0 under decoupled decay"):
        optimizer.step()
    optimizer.param_groups[0]["reference_lr"] = 0.2
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 - 0.5 * 0.1)


def test_a_recipe_builds_what_it_says() -> None:
    settings = SGDWSettings(lr=0.2, momentum=0.8, nesterov=True, momentum_correction=True,
                            weight_decay=0.03, decay="coupled")  # fmt: skip
    (group,) = build_optimizer(settings, nn.Linear(2, 2)).param_groups
    said = {key: group[key] for key in ("lr", "momentum", "nesterov", "momentum_correction",
                                        "weight_decay", "decay", "reference_lr")}  # fmt: skip
    assert said == {
        "lr": 0.2, "momentum": 0.8, "nesterov": True, "momentum_correction": True,
        "weight_decay": 0.03, "decay": "coupled", "reference_lr": 0.2,
    }  # fmt: skip
