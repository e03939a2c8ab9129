"""LARS: traces by hand, its variants, timm's formula, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.lars import LARS, LARSNumbers, lars_ratios, lars_step

LRS = (1.0, 0.5, 2.0)
SETTINGS: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.25, "trust": 0.25}

# One weight that begins at 4. Gradients are chosen such that r is 1/2, 1/2 and 1/4: the first two
# are weight_decay w, so r = trust w / (2 weight_decay w); the third is -3 weight_decay w. Hence
# d = w/4, w/4 and -w/8. All numbers are exact in binary.
TRACES = {
    # d 1: v = 1 * 1, w = 4 - 1; d 3/4: v = 1/2 + 3/8, w = 3 - 7/8; d -17/64: v = 7/16 - 17/32
    "scaled": ({"buffer": "scaled"}, (1.0, 0.75, -1.59375), (3.0, 2.125, 2.21875)),
    # v = 1, w = 4 - 1; v = 1/2 + 3/4, w = 3 - 5/8; d = -19/64: v = 5/8 - 19/64, w = 19/8 - 2 v
    "unscaled": ({"buffer": "unscaled"}, (1.0, 0.75, -1.78125), (3.0, 2.375, 1.71875)),
    # v = 1, w = 4 - 1 - 1/2; d = 5/8: v = 1/2 + 5/16, w = 5/2 - 5/16 - 13/32; d = -57/256:
    # v = 13/32 - 57/128 = -5/128, w = 57/32 + 57/128 + 5/256
    "scaled nesterov": (
        {"buffer": "scaled", "nesterov": True},
        (1.0, 0.625, -1.3359375),
        (2.5, 1.78125, 2.24609375),
    ),
    # v = 1, w = 4 - 3/2; d = 5/8: v = 9/8, w = 5/2 - 1/2 (5/8 + 9/16) = 61/32; d = -61/256:
    # v = 9/16 - 61/256 = 83/256, w = 61/32 - 2 (-61/256 + 83/512) = 527/256
    "unscaled nesterov": (
        {"buffer": "unscaled", "nesterov": True},
        (1.0, 0.625, -1.4296875),
        (2.5, 1.90625, 2.05859375),
    ),
}


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_three_steps_by_hand_under_a_moving_lr(name: str, dtype: torch.dtype) -> None:
    variant, gradients, expected = TRACES[name]
    weight = parameter(4.0, dtype=dtype)
    optimizer = LARS([weight], lr=1.0, **SETTINGS, **variant)
    seen = []
    for lr, gradient in zip(LRS, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([gradient], dtype=dtype)
        optimizer.step()
        seen.append(weight.item())
    exact = 1e-12 if dtype == torch.float64 else 1e-6
    assert seen == pytest.approx(expected, rel=exact)


@pytest.mark.parametrize("name", TRACES)
def test_many_tensors_at_once_take_the_same_three_steps(name: str) -> None:
    variant, gradients, expected = TRACES[name]
    weights = [torch.tensor([4.0]).double(), torch.tensor([[-4.0]]).double()]
    buffers = [torch.zeros_like(weight) for weight in weights]
    is_scaled = variant["buffer"] == "scaled"
    for lr, gradient, value in zip(LRS, gradients, expected, strict=True):
        numbers = LARSNumbers(
            inside=lr if is_scaled else 1.0,
            outside=1.0 if is_scaled else lr,
            nesterov=bool(variant.get("nesterov", False)),
            **SETTINGS,
        )
        given = [torch.full_like(weights[0], gradient), torch.full_like(weights[1], -gradient)]
        lars_step(weights, given, buffers, numbers, foreach=True)
        assert weights[0].item() == pytest.approx(value, rel=1e-12)
        assert weights[1].item() == pytest.approx(-value, rel=1e-12)


def test_the_norms_are_those_of_whole_tensors() -> None:
    # |w| = 5, |g| = 2: r = 0.2 * 5 / (2 + 0.4 * 5) = 1/4, d = 1/4 ((0, 2) + 0.4 (3, 4))
    weight = parameter(3.0, 4.0)
    optimizer = LARS([weight], lr=0.5, momentum=0.9, weight_decay=0.4, trust=0.2)
    weight.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == pytest.approx([3 - 0.15, 4 - 0.45], rel=1e-15)


def test_the_ratio_and_its_bounds() -> None:
    weight_norms = torch.tensor([4.0, 4.0, 0.0, 4.0, 0.0]).double()
    gradient_norms = torch.tensor([1.0, 0.0, 1.0, 1e-9, 0.0]).double()
    numbers = LARSNumbers(inside=1.0, outside=1.0, trust=0.5, weight_decay=0.25)
    ratios = lars_ratios(weight_norms, gradient_norms, numbers)
    assert ratios.tolist() == pytest.approx([1.0, 1.0, 1.0, 2.0, 1.0])
    numbers = LARSNumbers(inside=1.0, outside=1.0, trust=0.5, epsilon=1.0, max_ratio=0.75)
    ratios = lars_ratios(weight_norms, gradient_norms, numbers)
    assert ratios.tolist() == [0.75, 1.0, 1.0, 0.75, 1.0]  # a missing ratio is 1, bounded or not
    not_a_number = lars_ratios(torch.tensor([1.0]), torch.tensor([torch.nan]), numbers)
    assert not_a_number.isnan().all()


def test_a_group_that_is_not_adapted_takes_sgds_step() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "adapted": False}
    lars = LARS([group], lr=0.1, momentum=0.9, weight_decay=0.01, buffer="unscaled")
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for lr in (0.1, 0.2, 0.05):
        gradient = torch.randn(5, dtype=torch.float64)
        for optimizer, weight in ((lars, ours), (sgd, theirs)):
            weight.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


def test_scaled_and_unscaled_are_the_same_under_a_constant_lr() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, dtype=torch.float64)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [
        LARS([weights[0]], lr=3.0, weight_decay=0.01, buffer="scaled"),
        LARS([weights[1]], lr=3.0, weight_decay=0.01, buffer="unscaled"),
    ]
    for _ in range(5):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=0)


def timm_step(w: Tensor, g: Tensor, buffer: Tensor | None, lr: float, **settings: float) -> Tensor:
    """timm.optim.Lars of 1.0.31, always_adapt=True, trust_clip=False; the new buffer."""
    decay, eps = settings["weight_decay"], settings["eps"]
    w_norm, g_norm = w.norm(2.0), g.norm(2.0)
    ratio = settings["trust_coeff"] * w_norm / (g_norm + w_norm * decay + eps)
    ratio = torch.where(w_norm > 0, torch.where(g_norm > 0, ratio, 1.0), 1.0)
    g = (g + decay * w) * ratio
    buffer = g.clone() if buffer is None else settings["momentum"] * buffer + g
    w -= lr * (g + settings["momentum"] * buffer if settings["nesterov"] else buffer)
    return buffer


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_it_is_timms_formula_with_the_unscaled_buffer(nesterov: bool, decay: float) -> None:
    torch.manual_seed(0)
    starts = [torch.randn(4, 3).double(), torch.zeros(3).double(), torch.randn(2, 2, 3, 3).double()]
    ours = [nn.Parameter(start.clone()) for start in starts]
    theirs, buffers = [start.clone() for start in starts], [None, None, None]
    settings = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": decay}
    optimizer = LARS(ours, lr=1.0, trust=0.02, epsilon=1e-8, buffer="unscaled", **settings)
    for lr in (1.0, 3.0, 0.5, 2.0):
        optimizer.param_groups[0]["lr"] = lr
        for number, weight in enumerate(ours):
            weight.grad = torch.randn_like(weight)
            buffers[number] = timm_step(
                theirs[number], weight.grad, buffers[number], lr,
                trust_coeff=0.02, eps=1e-8, **settings,
            )  # fmt: skip
        optimizer.step()
        for weight, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"trust": 0.0}, "trust must be > 0"),
        ({"epsilon": -1e-9}, "epsilon must be >= 0"),
        ({"max_ratio": 0.0}, "max_ratio must be > 0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov must come with momentum > 0"),
        ({"buffer": "outside"}, "buffer must be one of: scaled, unscaled"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LARS([parameter(1.0)], **({"lr": 0.1} | settings))
