"""One table of update rules, each as any torch loop would use it, and the laws that they share."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.lamb import LAMB, LAMBNumbers, Moments, lamb_step
from anybatch.optim.lars import LARS, LARSNumbers, lars_step
from anybatch.optim.muon import MuonWithAdamW
from anybatch.optim.rmsprop_warmup import (
    RMSpropWarmup,
    RMSpropWarmupNumbers,
    rmsprop_warmup_step,
)
from anybatch.optim.sgdw import SGDW, StepNumbers, sgdw_step

Build = Callable[..., Any]

DECAY = 0.1


def muon_with_adamw(parameters: Sequence[nn.Parameter], weight_decay: float = 0.0) -> MuonWithAdamW:
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=weight_decay) if matrices else None
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=weight_decay) if others else None
    return MuonWithAdamW(muon, adamw)


def half_way(parameters: Any, **settings: Any) -> RMSpropWarmup:
    optimizer = RMSpropWarmup(parameters, lr=0.1, rms_lr=0.01, **settings)
    for group in optimizer.param_groups:
        group["sgd_share"] = 0.5
    return optimizer


OURS: dict[str, Build] = {
    "sgdw": partial(SGDW, lr=0.1),
    "sgdw corrected": partial(SGDW, lr=0.1, momentum_correction=True),
    "sgdw nesterov, coupled": partial(SGDW, lr=0.1, nesterov=True, decay="coupled"),
    "lars": partial(LARS, lr=10.0, trust=0.01),
    "lars unscaled": partial(LARS, lr=10.0, trust=0.01, buffer="unscaled"),
    "lars nesterov": partial(LARS, lr=10.0, trust=0.01, nesterov=True, max_ratio=0.05),
    "lars without momentum": partial(LARS, lr=10.0, trust=0.01, momentum=0.0),
    "lamb": partial(LAMB, lr=0.01, weight_decay=0.0),
    "lamb uncorrected": partial(
        LAMB, lr=0.01, weight_decay=0.0, bias_correction=False, max_weight_norm=1.0
    ),
    "rmsprop-warmup": partial(RMSpropWarmup, lr=0.1, rms_lr=0.01),
    "rmsprop-warmup half way": half_way,
}
CONTROLS: dict[str, Build] = {
    "torch sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "torch adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
}
TORCHS = CONTROLS | {"muon with adamw": muon_with_adamw}
RULES = OURS | TORCHS
LIKE_TORCH = OURS | CONTROLS  # whole torch optimizers

SHAPES = ((4, 3), (4,), (2, 4, 3, 3), (), (5, 1))


def new_parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(draw.to(dtype)) for draw in draws]


def put_gradients(parameters: Sequence[nn.Parameter], number: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in parameters:
        draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (draw * scale).to(p.dtype)


def take_steps(
    parameters: Sequence[nn.Parameter], optimizer: Any, numbers: range, scale: float = 1.0
) -> list[Tensor]:
    for number in numbers:
        put_gradients(parameters, number, scale)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def every_state_tensor(optimizer: Any) -> list[Tensor]:
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_saved_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    parameters = new_parameters(dtype)
    optimizer = RULES[name](parameters, weight_decay=DECAY)
    take_steps(parameters, optimizer, range(3))
    others = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    resumed = RULES[name](others, weight_decay=DECAY)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    expected = take_steps(parameters, optimizer, range(3, 6))
    assert same(take_steps(others, resumed, range(3, 6)), expected)


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_an_lr_of_0_moves_nothing(name: str) -> None:
    parameters = new_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = LIKE_TORCH[name](parameters, weight_decay=DECAY)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert same(take_steps(parameters, optimizer, range(3)), before)


@pytest.mark.parametrize("name", RULES)
def test_gradients_of_0_without_decay_move_nothing(name: str) -> None:
    parameters = new_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = RULES[name](parameters)
    assert same(take_steps(parameters, optimizer, range(3), scale=0.0), before)


@pytest.mark.parametrize("name", [name for name in RULES if "rmsprop" not in name])
def test_gradients_of_0_with_decay_shrink(name: str) -> None:  # RMSprop scales coupled decay
    parameters = new_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = RULES[name](parameters, weight_decay=0.01)
    for new, old in zip(take_steps(parameters, optimizer, range(1), 0.0), before, strict=True):
        assert bool((new.abs() < old.abs()).all())
        assert bool((new * old > 0).all())


@pytest.mark.parametrize("name", RULES)
def test_weights_of_0_move(name: str) -> None:
    parameters = [nn.Parameter(torch.zeros_like(p)) for p in new_parameters()]
    after = take_steps(parameters, RULES[name](parameters, weight_decay=DECAY), range(2))
    assert all(bool(weight.isfinite().all() and (weight != 0).all()) for weight in after)


@pytest.mark.parametrize("name", RULES)
def test_a_parameter_without_a_gradient_stays_and_has_no_state(name: str) -> None:
    parameters = new_parameters()
    before = parameters[2].detach().clone()
    optimizer = RULES[name](parameters, weight_decay=DECAY)
    for number in range(2):
        put_gradients(parameters, number)
        parameters[2].grad = None
        optimizer.step()
    assert torch.equal(parameters[2], before)
    if name in LIKE_TORCH:
        assert not optimizer.state.get(parameters[2])
    RULES[name](new_parameters()).step()  # no gradient at all


@pytest.mark.parametrize("name", OURS)
def test_a_gradient_stays_as_it_is(name: str) -> None:
    parameters = new_parameters(torch.float32)
    optimizer = OURS[name](parameters, weight_decay=DECAY)
    put_gradients(parameters, 0)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    optimizer.step()
    assert same([p.grad for p in parameters if p.grad is not None], before)


@pytest.mark.parametrize("name", OURS)
def test_a_gradient_that_is_not_finite_is_not_hidden(name: str) -> None:
    for value in (torch.nan, torch.inf):
        parameters = new_parameters(torch.float32)
        optimizer = OURS[name](parameters)
        put_gradients(parameters, 0)
        assert parameters[0].grad is not None
        parameters[0].grad[0, 0] = value
        optimizer.step()
        assert not bool(parameters[0].isfinite().all())
        assert bool(parameters[1].isfinite().all())


@pytest.mark.parametrize("name", OURS)
def test_sparse_gradients_and_complex_parameters_are_refused(name: str) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = OURS[name](embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match="gradient must be dense"):
        optimizer.step()
    with pytest.raises(InputError, match="parameters must be real"):
        OURS[name]([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize("name", OURS)
def test_16_bit_parameters_are_stepped_in_32_bits_and_rounded_once(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        narrow = new_parameters(dtype)
        wide = [nn.Parameter(p.detach().float()) for p in narrow]
        optimizer, reference = (OURS[name](p, weight_decay=DECAY) for p in (narrow, wide))
        for number in range(3):
            with torch.no_grad():  # begin each step at the same weights
                for p, q in zip(narrow, wide, strict=True):
                    q.copy_(p)
            put_gradients(narrow, number)
            for p, q in zip(narrow, wide, strict=True):
                assert p.grad is not None
                q.grad = p.grad.float()
            optimizer.step()
            reference.step()
            assert same(narrow, [q.detach().to(dtype) for q in wide])
        assert {t.dtype for t in every_state_tensor(optimizer)} == {torch.float32}
        assert same(every_state_tensor(optimizer), every_state_tensor(reference))


@pytest.mark.parametrize("name", OURS)
def test_a_state_of_16_bit_parameters_loads_without_being_rounded(name: str) -> None:
    parameters = new_parameters(torch.bfloat16)
    optimizer = OURS[name](parameters)
    take_steps(parameters, optimizer, range(2))
    other = OURS[name](new_parameters(torch.bfloat16))
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert same(every_state_tensor(other), every_state_tensor(optimizer))


@pytest.mark.parametrize("name", RULES)
def test_a_closure_is_called_once_with_gradients(name: str) -> None:
    parameters = new_parameters()
    optimizer, calls = RULES[name](parameters), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = torch.stack([(p**2).sum() for p in parameters]).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first, second = optimizer.step(closure), optimizer.step(closure)
    assert calls == [True, True]
    assert second.item() < first.item()


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_a_group_that_is_added_has_its_own_settings(name: str) -> None:
    early, late = new_parameters(), new_parameters()
    optimizer = LIKE_TORCH[name](early)
    take_steps(early, optimizer, range(1))
    optimizer.add_param_group({"params": late})
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    optimizer.param_groups[1]["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in late]
    assert same(take_steps(late, optimizer, range(1)), before)
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
    moved = take_steps(late, optimizer, range(1))
    assert all(bool((a != b).all()) for a, b in zip(moved, before, strict=True))


@pytest.mark.parametrize("name", OURS)
def test_a_group_that_is_refused_is_not_added(name: str) -> None:
    optimizer = OURS[name](new_parameters())
    with pytest.raises(InputError, match=r"(momentum|beta1) must be"):
        optimizer.add_param_group(
            {"params": new_parameters(), "momentum": 1.0, "betas": (1.0, 0.9)}
        )
    assert len(optimizer.param_groups) == 1


def in_another_layout(start: Tensor) -> Tensor:
    """The same values with other strides, with gaps where no layout without is another one."""
    if start.dim() == 4:
        return start.to(memory_format=torch.channels_last)
    wide = start.new_zeros((*start.shape, 2))
    wide[..., 0] = start
    return wide[..., 0]


@pytest.mark.parametrize("which", ["parameters", "gradients", "both"])
@pytest.mark.parametrize("name", OURS)
def test_the_layout_in_memory_changes_nothing(name: str, which: str) -> None:
    plain, other = new_parameters(torch.float32), new_parameters(torch.float32)
    if which != "gradients":
        other = [nn.Parameter(in_another_layout(p.detach())) for p in other]
        assert other[0].stride() != plain[0].stride()
        assert other[2].stride() != plain[2].stride()
    optimizers = [OURS[name](p, weight_decay=DECAY) for p in (plain, other)]
    for number in range(3):
        for parameters, optimizer in zip((plain, other), optimizers, strict=True):
            put_gradients(parameters, number)
            if parameters is other:
                for p in parameters:
                    assert p.grad is not None
                    p.grad = in_another_layout(p.grad) if which != "parameters" else p.grad
            optimizer.step()
    for one, two in zip(plain, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OURS)
def test_a_state_loads_into_a_model_of_another_layout(name: str) -> None:
    plain = new_parameters(torch.float32)
    optimizer = OURS[name](plain)
    take_steps(plain, optimizer, range(2))
    other = [nn.Parameter(in_another_layout(p.detach().clone())) for p in plain]
    resumed = OURS[name](other)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for one, two in zip(
        take_steps(plain, optimizer, range(2, 4)), take_steps(other, resumed, range(2, 4)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_parameters_without_elements_are_let_be(name: str) -> None:
    parameters = [nn.Parameter(torch.zeros(0, 3)), *new_parameters(torch.float32)]
    alone = new_parameters(torch.float32)
    optimizers = [LIKE_TORCH[name](p, weight_decay=DECAY) for p in (parameters, alone)]
    expected = take_steps(alone, optimizers[1], range(2))
    found = []
    for number in range(2):
        put_gradients(parameters[1:], number)
        parameters[0].grad = torch.zeros(0, 3)
        optimizers[0].step()
        found = [p.detach() for p in parameters[1:]]
    assert same(found, expected)


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_a_grad_scaler_unscales_and_skips(name: str) -> None:
    scaled, plain = new_parameters(torch.float32), new_parameters(torch.float32)
    optimizers = [LIKE_TORCH[name](p, weight_decay=DECAY) for p in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # the scale is made by its first use
    put_gradients(scaled, 0, scale=1024.0)
    put_gradients(plain, 0)
    scaler.step(optimizers[0])
    scaler.update()
    optimizers[1].step()
    assert same(scaled, plain)
    before = [parameter.detach().clone() for parameter in scaled]
    put_gradients(scaled, 1)
    assert scaled[0].grad is not None
    scaled[0].grad.fill_(torch.inf)
    scaler.step(optimizers[0])
    scaler.update()
    assert same(scaled, before)


@pytest.mark.parametrize("name", OURS)
def test_an_lr_may_be_a_tensor_and_a_copy_goes_its_own_way(name: str) -> None:
    parameters, others = new_parameters(), new_parameters()
    optimizer, other = OURS[name](parameters), OURS[name](others)
    group = optimizer.param_groups[0]
    group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    assert same(take_steps(parameters, optimizer, range(2)), take_steps(others, other, range(2)))
    copied = copy.deepcopy(other)
    copied_parameters = copied.param_groups[0]["params"]
    expected = take_steps(copied_parameters, copied, range(2, 4))
    assert same(take_steps(others, other, range(2, 4)), expected)


# --- scale -----------------------------------------------------------------------------------

SCALED_GRADIENT: dict[str, Build] = {
    "lars": partial(LARS, lr=10.0, trust=0.01),
    "lars unscaled": partial(LARS, lr=10.0, trust=0.01, buffer="unscaled", nesterov=True),
    "lamb": partial(LAMB, lr=0.01, weight_decay=0.0, eps=1e-300),
    "lamb uncorrected": partial(LAMB, lr=0.01, weight_decay=0.0, eps=1e-300, bias_correction=False),
}


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])  # powers of 2 are exact
@pytest.mark.parametrize("name", SCALED_GRADIENT)
def test_the_length_of_the_gradient_does_not_matter(name: str, scale: float) -> None:
    build = SCALED_GRADIENT[name]
    plain, scaled = new_parameters(), new_parameters()
    expected = take_steps(plain, build(plain), range(3))
    assert same(take_steps(scaled, build(scaled), range(3), scale), expected)


@pytest.mark.parametrize("name", SCALED_GRADIENT)
def test_the_step_grows_with_the_weight(name: str) -> None:
    build = SCALED_GRADIENT[name]
    plain, double = new_parameters(), new_parameters()
    with torch.no_grad():
        for parameter in double:
            parameter.mul_(2.0)
    expected = [2.0 * weight for weight in take_steps(plain, build(plain), range(3))]
    assert same(take_steps(double, build(double), range(3)), expected)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_rmsprops_part_does_not_know_the_length_of_the_gradient_and_sgds_does(
    scale: float,
) -> None:
    plain, scaled = new_parameters(), new_parameters()
    build = partial(RMSpropWarmup, lr=0.1, eps=1e-300)
    expected = take_steps(plain, build(plain), range(3))
    assert same(take_steps(scaled, build(scaled), range(3), scale), expected)
    control = new_parameters()
    assert not same(take_steps(control, half_way(control), range(3), scale), expected)


# --- one tensor at a time, and all at once ---------------------------------------------------


def lars_all(w: list[Tensor], g: list[Tensor], buffers: list[list[Tensor]], foreach: bool) -> None:
    numbers = LARSNumbers(inside=10.0, outside=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    lars_step(w, g, buffers[0], numbers, foreach=foreach)


def lars_sgd(w: list[Tensor], g: list[Tensor], buffers: list[list[Tensor]], foreach: bool) -> None:
    numbers = LARSNumbers(inside=0.1, outside=1.0, momentum=0.9, weight_decay=0.1, adapted=False)
    lars_step(w, g, buffers[0], numbers, foreach=foreach)


def lamb_all(w: list[Tensor], g: list[Tensor], buffers: list[list[Tensor]], foreach: bool) -> None:
    moments = Moments(buffers[0], buffers[1], [1] * len(w))
    lamb_step(w, g, moments, LAMBNumbers(lr=0.1), foreach=foreach)


def rms_all(w: list[Tensor], g: list[Tensor], buffers: list[list[Tensor]], foreach: bool) -> None:
    numbers = RMSpropWarmupNumbers(lr=0.1, sgd=0.5, rms=0.05, weight_decay=0.1)
    rmsprop_warmup_step(w, g, buffers[0], buffers[1], numbers, foreach=foreach)


def sgdw_all(w: list[Tensor], g: list[Tensor], buffers: list[list[Tensor]], foreach: bool) -> None:
    numbers = StepNumbers(inside=0.1, outside=1.0, momentum=0.9, nesterov=True, shrink=0.99)
    sgdw_step(w, g, buffers[0], numbers, foreach=foreach)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("step", [lars_all, lars_sgd, lamb_all, rms_all, sgdw_all])
def test_all_at_once_is_one_by_one(step: Callable[..., None], dtype: torch.dtype) -> None:
    both = []
    for foreach in (False, True):
        parameters = new_parameters(dtype)
        weights = [parameter.detach() for parameter in parameters]
        buffers = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
        for number in range(3):
            put_gradients(parameters, number)
            step(weights, [p.grad for p in parameters], buffers, foreach)
        both.append([*weights, *buffers[0], *buffers[1]])
    exact = (
        {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    )
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, **exact)
