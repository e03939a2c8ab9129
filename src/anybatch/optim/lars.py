"""LARS: momentum SGD in which every tensor's step is a share of the tensor's own norm.

    r = trust |w| / (|g| + weight_decay |w| + epsilon), at most max_ratio;
        1 where |w| or |g| is 0, and in groups that are not adapted
    d = r (g + weight_decay w)
    "scaled"      v <- momentum v + lr d;   w <- w - v          (lr d + momentum v with nesterov)
    "unscaled"    v <- momentum v + d;      w <- w - lr v       (d + momentum v with nesterov)

The paper's is "scaled". The two are the same under a constant lr; when lr moves, the unscaled
buffer follows at once. Implementations disagree on the rest: timm adapts only where there is weight
decay unless it is told to, pytorch_optimizer leaves vectors alone, LARC takes min(r / lr, 1).

Reference: You, Gitman, Ginsburg 2017, "Large batch training of convolutional networks",
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from anybatch.errors import InputError
from anybatch.optim.dense import DenseOptimizer, Part, norms
from anybatch.recipe_checks import require_decay_rate, require_not_negative, require_positive

__all__ = ["LARS", "LARSNumbers", "lars_ratios", "lars_step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LARSNumbers:
    """The scalars of one step; see the head of the module.

    Attributes:
        inside: of the direction on its way into the buffer: lr where "scaled", or 1.
        outside: of the buffer on its way to the weights: 1 where "scaled", or lr.
        momentum: of the buffer, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: added to the gradient and to the ratio's denominator.
        trust: share of the weights' norm.
        epsilon: added to the ratio's denominator.
        max_ratio: bound of the ratio, or None.
        adapted: whether there is a ratio; it is 1 else.
    """

    inside: float
    outside: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    trust: float = 0.001
    epsilon: float = 0.0
    max_ratio: float | None = None
    adapted: bool = True


def lars_ratios(weight_norms: Tensor, gradient_norms: Tensor, numbers: LARSNumbers) -> Tensor:
    """The ratio r of each tensor, on the norms' device.

    Args:
        weight_norms: |w|, a vector.
        gradient_norms: |g|, likewise, without weight decay.
        numbers: of the step.

    Example:
        >>> numbers = LARSNumbers(inside=1.0, outside=1.0, trust=0.5, weight_decay=0.25)
        >>> lars_ratios(torch.tensor([4.0, 0.0]), torch.tensor([3.0, 3.0]), numbers)
        tensor([0.5000, 1.0000])
    """
    denominators = gradient_norms + numbers.weight_decay * weight_norms + numbers.epsilon
    ratios = numbers.trust * weight_norms / denominators
    if numbers.max_ratio is not None:
        ratios = ratios.clamp(max=numbers.max_ratio)
    # Not "where both are > 0": a norm that is not a number must not be hidden.
    return torch.where((weight_norms == 0) | (gradient_norms == 0), 1.0, ratios)


def lars_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    numbers: LARSNumbers,
    *,
    foreach: bool = False,
) -> None:
    """One step of some tensors, in place; gradients stay as they are.

    v <- momentum v + inside r (g + weight_decay w); w <- w - outside v, or with nesterov
    w <- w - outside (inside r (g + weight_decay w) + momentum v).

    Args:
        weights: changed; at least one, all of one device and type, dense in memory.
        gradients: of the same shapes and layouts.
        buffers: likewise; changed.
        numbers: scalars of the step.
        foreach: few kernels over all tensors, with ratios that never leave the device: for
            accelerators. Else a loop of torch's fused kernels where there are such, in which the
            ratios are read: for the CPU. The same numbers to rounding.

    Cost:
        Two norms and one pass over weights, gradients and buffers; with foreach a copy of the
        gradients and no host synchronization.

    Example:
        >>> weight, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
        >>> buffer = torch.zeros(2)
        >>> numbers = LARSNumbers(inside=0.5, outside=1.0, trust=0.2)
        >>> lars_step([weight], [gradient], [buffer], numbers)
        >>> buffer, weight  # r = 0.2 * 5 / 2
        (tensor([0.0000, 0.5000]), tensor([3.0000, 3.5000]))
    """
    if foreach:
        _step_all(list(weights), list(gradients), list(buffers), numbers)
        return
    factors = [numbers.inside] * len(weights)
    if numbers.adapted:
        ratios = _ratios(list(weights), list(gradients), numbers)
        factors = [numbers.inside * ratio for ratio in ratios.tolist()]
    # The fused kernel knows the factor as 1 - dampening, in 64 bits: exact enough for 32.
    fused = numbers.momentum > 0 and not numbers.nesterov and weights[0].dtype == torch.float32
    step = _step_fused if fused and weights[0].device.type == "cpu" else _step_one
    for weight, gradient, buffer, factor in zip(weights, gradients, buffers, factors, strict=True):
        step(weight, gradient, buffer, factor, numbers)


def _ratios(weights: list[Tensor], gradients: list[Tensor], numbers: LARSNumbers) -> Tensor:
    weight_norms, gradient_norms = norms([*weights, *gradients]).chunk(2)
    return lars_ratios(weight_norms, gradient_norms, numbers)


def _step_fused(w: Tensor, g: Tensor, v: Tensor, factor: float, numbers: LARSNumbers) -> None:
    """In one pass: v <- momentum v + (1 - dampening) (g + weight_decay w); w <- w - lr v."""
    torch._fused_sgd_(
        [w], [g], [v],
        weight_decay=numbers.weight_decay, momentum=numbers.momentum, lr=numbers.outside,
        dampening=1.0 - factor, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


def _step_one(w: Tensor, g: Tensor, v: Tensor, factor: float, numbers: LARSNumbers) -> None:
    decay, outside = factor * numbers.weight_decay, numbers.outside
    v.mul_(numbers.momentum).add_(g, alpha=factor)
    if decay != 0.0:
        v.add_(w, alpha=decay)
    if not numbers.nesterov:
        w.sub_(v, alpha=outside)
        return
    if decay != 0.0:
        w.mul_(1.0 - outside * decay)
    w.sub_(g, alpha=outside * factor).sub_(v, alpha=outside * numbers.momentum)


def _step_all(w: list[Tensor], g: list[Tensor], v: list[Tensor], numbers: LARSNumbers) -> None:
    steps = list(torch._foreach_add(g, w, alpha=numbers.weight_decay))
    if numbers.adapted:
        torch._foreach_mul_(steps, list((_ratios(w, g, numbers) * numbers.inside).unbind()))
    else:
        torch._foreach_mul_(steps, numbers.inside)
    torch._foreach_mul_(v, numbers.momentum)
    torch._foreach_add_(v, steps)
    if numbers.nesterov:
        torch._foreach_sub_(w, steps, alpha=numbers.outside)
    look_ahead = numbers.momentum if numbers.nesterov else 1.0
    torch._foreach_sub_(w, v, alpha=numbers.outside * look_ahead)


@final
class LARS(DenseOptimizer):
    """Layer-wise adaptive rate scaling; the formulas stand at the head of this module.

    Every setting may differ between parameter groups. Biases and norms are best put into a group
    with `"adapted": False` and `"weight_decay": 0.0`. Parameters of 16 bits keep their momentum in
    32 bits, and are rounded once in a step. A parameter must be whole on its rank: the norm of a
    shard (FSDP's flat parameters) is not its layer's.

    Args:
        params: parameters, or groups of them; real, with dense gradients.
        lr: global step size, >= 0; of 0, nothing is moved but by momentum of before.
        momentum: share of the previous step kept, in [0, 1).
        nesterov: look ahead along the momentum; needs momentum > 0.
        weight_decay: >= 0; part of the ratio and of the step.
        trust: the coefficient eta of the paper, > 0.
        epsilon: added to the ratio's denominator, >= 0.
        buffer: "scaled": lr inside of the momentum; "unscaled": outside, as in torch's SGD.
        max_ratio: the ratio is never greater, > 0; None: no bound.

    Raises:
        InputError: a setting out of its bounds, a complex parameter; in a step, a sparse gradient.

    Cost:
        Memory: one buffer of the parameters' size. Time: see benchmarks/RESULTS.md.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LARS([weight], lr=0.5, trust=0.2)
        >>> weight.grad = torch.tensor([0.0, 1000.0])  # its length does not matter
        >>> _ = optimizer.step()
        >>> weight.detach()
        tensor([3.0000, 3.5000])

    Reference:
        You, Gitman, Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        epsilon: float = 0.0,
        buffer: Literal["scaled", "unscaled"] = "scaled",
        max_ratio: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust": trust,
            "epsilon": epsilon,
            "buffer": buffer,
            "max_ratio": max_ratio,
            "adapted": True,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        require_not_negative("lr", float(group["lr"]))
        require_decay_rate("momentum", group["momentum"])
        require_not_negative("weight_decay", group["weight_decay"])
        require_positive("trust", group["trust"])
        require_not_negative("epsilon", group["epsilon"])
        if group["max_ratio"] is not None:
            require_positive("max_ratio", group["max_ratio"])
        if group["nesterov"] and group["momentum"] == 0:
            raise InputError("nesterov", "must come with momentum > 0", group["momentum"])
        if group["buffer"] not in ("scaled", "unscaled"):
            raise InputError("buffer", "must be one of: scaled, unscaled", group["buffer"])

    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        lr, is_scaled = float(group["lr"]), group["buffer"] == "scaled"
        numbers = LARSNumbers(
            inside=lr if is_scaled else 1.0,
            outside=1.0 if is_scaled else lr,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            trust=group["trust"],
            epsilon=group["epsilon"],
            max_ratio=group["max_ratio"],
            adapted=group["adapted"],
        )
        buffers = part.buffers["momentum_buffer"]
        foreach = part.weights[0].device.type != "cpu"
        lars_step(part.weights, part.gradients, buffers, numbers, foreach=foreach)
