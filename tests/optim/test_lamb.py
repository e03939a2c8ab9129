"""LAMB: a trace by hand, AdamW as its special case, timm's formula, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.lamb import LAMB, LAMBNumbers, Moments, lamb_ratios, lamb_step

GRADIENTS = ((1.0, 2.0), (-0.5, 1.0), (0.25, -3.0))
LRS = (0.1, 0.2, 0.05)
BETA1, BETA2, EPS, DECAY = 0.5, 0.75, 0.125, 0.25


def by_hand(bias_correction: bool, bound: float) -> list[list[float]]:
    """Three steps from (3, 4), number by number."""
    w, m, s, path = [3.0, 4.0], [0.0, 0.0], [0.0, 0.0], []
    for t, (g, lr) in enumerate(zip(GRADIENTS, LRS, strict=True), start=1):
        u = []
        for i in (0, 1):
            m[i] = BETA1 * m[i] + (1 - BETA1) * g[i]
            s[i] = BETA2 * s[i] + (1 - BETA2) * g[i] ** 2
            m_hat = m[i] / (1 - BETA1**t) if bias_correction else m[i]
            s_hat = s[i] / (1 - BETA2**t) if bias_correction else s[i]
            u.append(m_hat / (math.sqrt(s_hat) + EPS) + DECAY * w[i])
        ratio = min(math.hypot(*w), bound) / math.hypot(*u)
        w = [w[i] - lr * ratio * u[i] for i in (0, 1)]
        path.append(w)
    return path


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("bound", [None, 4.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_three_steps_by_hand(
    bias_correction: bool, bound: float | None, dtype: torch.dtype
) -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
    optimizer = LAMB(
        [weight], lr=1.0, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY,
        bias_correction=bias_correction, max_weight_norm=bound,
    )  # fmt: skip
    for gradient, lr, expected in zip(
        GRADIENTS, LRS, by_hand(bias_correction, bound or math.inf), strict=True
    ):
        weight.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        exact = 1e-13 if dtype == torch.float64 else 1e-6
        assert weight.tolist() == pytest.approx(expected, rel=exact)


def test_the_first_of_these_steps_in_numbers() -> None:
    # m^ = g and s^ = g^2 at t = 1, so u = (1 / 1.125 + 0.75, 2 / 2.125 + 1) = (59/36, 33/17),
    # |u| = 2.540497..., |w| = 5, and the step is 0.1 * 5 / |u| * u = (0.322553..., 0.382047...)
    assert by_hand(True, math.inf)[0] == pytest.approx([2.677447, 3.617953], abs=1e-6)


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_many_tensors_at_once_take_the_same_steps(bias_correction: bool, adapted: bool) -> None:
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (), (2, 3, 3, 3)]
    numbers = LAMBNumbers(lr=0.1, bias_correction=bias_correction, adapted=adapted)
    starts = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    both = []
    for foreach in (False, True):
        weights = [start.clone() for start in starts]
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        for t in range(1, 4):
            generator = torch.Generator().manual_seed(t)
            gradients = [
                torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
            ]
            counts = [t, t + 1, t, t]  # one tensor is an update ahead
            moments = Moments(first, second, counts)
            lamb_step(weights, gradients, moments, numbers, foreach=foreach)
        both.append([*weights, *first, *second])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_the_ratio_and_its_bounds() -> None:
    weight_norms, update_norms = torch.tensor([3.0, 20.0, 0.0, 3.0]), torch.tensor([2.0, 4, 2, 0])
    numbers = LAMBNumbers(lr=1.0)
    assert lamb_ratios(weight_norms, update_norms, numbers).tolist() == [1.5, 5.0, 1.0, 1.0]
    numbers = LAMBNumbers(lr=1.0, max_weight_norm=10.0)
    assert lamb_ratios(weight_norms, update_norms, numbers).tolist() == [1.5, 2.5, 1.0, 1.0]
    assert lamb_ratios(torch.tensor([1.0]), torch.tensor([math.nan]), numbers).isnan().all()


def test_a_group_that_is_not_adapted_takes_adamws_step() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lamb = LAMB([{"params": [ours], "adapted": False}], lr=0.1, eps=1e-8, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for lr in (0.1, 0.2, 0.05, 0.1):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        for optimizer, weight in ((lamb, ours), (adamw, theirs)):
            weight.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_a_parameter_counts_its_own_updates() -> None:
    late, always = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = LAMB([late, always], lr=0.1)
    for number in range(3):
        always.grad = torch.ones(2, dtype=torch.float64)
        late.grad = torch.ones(2, dtype=torch.float64) if number == 2 else None
        optimizer.step()
    assert [optimizer.state[p]["step"] for p in (late, always)] == [1, 3]
    alone = nn.Parameter(torch.ones(2, dtype=torch.float64))
    alone.grad = torch.ones(2, dtype=torch.float64)
    LAMB([alone], lr=0.1).step()
    assert torch.equal(late, alone)


def test_a_longer_parameter_may_join_later() -> None:
    short, long = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(200))
    optimizer = LAMB([short], lr=0.1)
    short.grad = torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": [long]})
    long.grad = torch.ones(200)
    optimizer.step()  # |u| is as long as |w|, but for decay in both
    torch.testing.assert_close(long.detach(), torch.full((200,), 0.9))


def timm_step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float) -> None:
    """timm.optim.Lamb of 1.0.31, max_grad_norm=None, always_adapt=True, betas as by default."""
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["s"] = 0.999 * state["s"] + 0.001 * g * g
    correction1, correction2 = 1 - 0.9 ** state["t"], 1 - 0.999 ** state["t"]
    denominator = state["s"].sqrt() / math.sqrt(correction2) + 1e-6
    update = state["m"] / correction1 / denominator + decay * w
    w_norm, u_norm = w.norm(2.0), update.norm(2.0)
    ratio = torch.where(w_norm > 0, torch.where(u_norm > 0, w_norm / u_norm, 1.0), 1.0)
    w -= lr * ratio * update


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_it_is_timms_formula(decay: float) -> None:
    torch.manual_seed(0)
    starts = [torch.randn(4, 3).double(), torch.zeros(3).double(), torch.randn(2, 2, 3, 3).double()]
    ours = [nn.Parameter(start.clone()) for start in starts]
    theirs = [start.clone() for start in starts]
    states = [{"t": 0, "m": torch.zeros_like(w), "s": torch.zeros_like(w)} for w in theirs]
    optimizer = LAMB(ours, lr=1.0, weight_decay=decay)
    for lr in (0.1, 0.3, 0.05, 0.2):
        optimizer.param_groups[0]["lr"] = lr
        for number, weight in enumerate(ours):
            weight.grad = torch.randn_like(weight)
            timm_step(theirs[number], weight.grad, states[number], lr, decay)
        optimizer.step()
        for weight, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"betas": (1.0, 0.9)}, "beta1 must be"),
        ({"betas": (0.9, -0.1)}, "beta2 must be"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"max_weight_norm": 0.0}, "max_weight_norm must be > 0"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LAMB([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | settings))
