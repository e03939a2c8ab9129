"""LAMB: Adam's step, scaled tensor by tensor to a share of the weight's norm.

    m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2
    m^ = m / (1 - beta1^t), s^ = s / (1 - beta2^t); m and s themselves without bias correction
    u = m^ / (sqrt(s^) + eps) + weight_decay w
    w <- w - lr phi(|w|) / |u| u,  phi(x) = min(x, max_weight_norm);
        the ratio is 1 where |w| or |u| is 0, and in groups that are not adapted (AdamW's step)

Implementations disagree: timm clips the global gradient norm to 1 first and adapts only where there
is weight decay unless it is told to; pytorch_optimizer bounds |w| by 10, knows no bias correction,
and decays the weights beside the step.

Reference: You et al. 2020, "Large batch optimization for deep learning: training BERT in 76
minutes", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from anybatch.optim.dense import DenseOptimizer, Part, norms
from anybatch.recipe_checks import require_decay_rate, require_not_negative, require_positive

__all__ = ["LAMB", "LAMBNumbers", "Moments", "lamb_ratios", "lamb_step", "new_scratch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LAMBNumbers:
    """The scalars of one step; see the head of the module.

    Attributes:
        lr: step size.
        beta1: averaging of the gradient.
        beta2: averaging of the squared gradient.
        eps: added to the root.
        weight_decay: part of u.
        bias_correction: divide the averages by 1 - beta^t.
        max_weight_norm: bound of |w| in the ratio, or None.
        adapted: whether there is a ratio; it is 1 else.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    bias_correction: bool = True
    max_weight_norm: float | None = None
    adapted: bool = True


@dataclass(frozen=True, slots=True)
class Moments:
    """What LAMB remembers of some tensors.

    Attributes:
        first: averages m of the gradients; changed.
        second: averages s of their squares; changed.
        counts: t, updates of each tensor including this one.
    """

    first: list[Tensor]
    second: list[Tensor]
    counts: list[int]


def lamb_ratios(weight_norms: Tensor, update_norms: Tensor, numbers: LAMBNumbers) -> Tensor:
    """phi(|w|) / |u| of each tensor, on the norms' device; 1 where a norm is 0.

    Args:
        weight_norms: |w|, a vector.
        update_norms: |u|, likewise.
        numbers: of the step.

    Example:
        >>> numbers = LAMBNumbers(lr=0.1, max_weight_norm=10.0)
        >>> lamb_ratios(torch.tensor([3.0, 20.0, 0.0]), torch.tensor([2.0, 2.0, 2.0]), numbers)
        tensor([1.5000, 5.0000, 1.0000])
    """
    bounded = weight_norms
    if numbers.max_weight_norm is not None:
        bounded = weight_norms.clamp(max=numbers.max_weight_norm)
    # Not "where both are > 0": a norm that is not a number must not be hidden.
    return torch.where((weight_norms == 0) | (update_norms == 0), 1.0, bounded / update_norms)


def lamb_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Moments,
    numbers: LAMBNumbers,
    *,
    foreach: bool = False,
    scratch: Tensor | None = None,
) -> None:
    """One step of some tensors, in place; gradients stay as they are.

    Args:
        weights: changed; at least one, all of one device and type, dense in memory.
        gradients: of the same shapes and layouts.
        moments: likewise; changed.
        numbers: scalars of the step.
        foreach: few kernels over all tensors, with ratios that never leave the device: for
            accelerators. Else torch's fused kernels tensor by tensor, between which the ratios are
            read: for the CPU. The same numbers to rounding.
        scratch: of at least as many numbers as the longest weight; without foreach, and of the
            same type and device. None: made anew, which takes longer than to use it.

    Cost:
        A copy of the weights: of all with foreach, of one tensor at a time else. Two norms. With
        foreach no host synchronization.

    Example:
        >>> weight, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.1, 0.1])
        >>> moments = Moments([torch.zeros(2)], [torch.zeros(2)], [1])
        >>> lamb_step([weight], [gradient], moments, LAMBNumbers(lr=0.1, eps=0.0, weight_decay=0.0))
        >>> weight  # u = (1, 1), so 0.5 / sqrt(2) along each
        tensor([2.6464, 3.6464])
    """
    if foreach:
        _step_all(list(weights), list(gradients), moments, numbers)
    else:
        _step_each(list(weights), list(gradients), moments, numbers, scratch)


def _step_each(
    w: list[Tensor],
    g: list[Tensor],
    moments: Moments,
    numbers: LAMBNumbers,
    scratch: Tensor | None,
) -> None:
    counts = _counts(moments.counts, numbers)
    rows = zip(w, g, moments.first, moments.second, counts, strict=True)
    if not numbers.adapted:
        for weight, gradient, first, second, count in rows:
            state = ([gradient], [first], [second], [count])
            _adamw([weight], state, numbers, numbers.lr, numbers.weight_decay)
        return
    if scratch is None:
        scratch = new_scratch(w)
    for (weight, gradient, first, second, count), norm in zip(rows, norms(w), strict=True):
        # AdamW of lr -1 on a copy: (1 + decay) w + m^ / (sqrt(s^) + eps), and that is u.
        update = scratch.as_strided(weight.shape, weight.stride()).copy_(weight)
        state = ([gradient], [first], [second], [count])
        _adamw([update], state, numbers, -1.0, numbers.weight_decay - 1.0)
        ratio = lamb_ratios(norm, norms([update])[0], numbers).item()
        weight.sub_(update, alpha=numbers.lr * ratio)


def new_scratch(weights: Sequence[Tensor]) -> Tensor:
    """What `lamb_step` needs for these weights, one after the other.

    Args:
        weights: of one device and type.
    """
    return weights[0].new_empty(max(weight.numel() for weight in weights))


def _adamw(
    w: list[Tensor],
    state: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
    numbers: LAMBNumbers,
    lr: float,
    weight_decay: float,
) -> None:
    gradients, first, second, counts = state
    torch._fused_adamw_(
        w, gradients, first, second, [], counts,
        lr=lr, beta1=numbers.beta1, beta2=numbers.beta2, weight_decay=weight_decay,
        eps=numbers.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def _counts(counts: list[int], numbers: LAMBNumbers) -> list[Tensor]:
    """As the fused kernel wants them; after infinitely many updates nothing is corrected."""
    known = {t: torch.tensor(float(t) if numbers.bias_correction else math.inf) for t in {*counts}}
    return [known[t] for t in counts]


def _step_all(w: list[Tensor], g: list[Tensor], moments: Moments, numbers: LAMBNumbers) -> None:
    first, second = moments.first, moments.second
    torch._foreach_lerp_(first, g, 1.0 - numbers.beta1)
    torch._foreach_mul_(second, numbers.beta2)
    torch._foreach_addcmul_(second, g, g, 1.0 - numbers.beta2)
    updates = list(torch._foreach_sqrt(second))
    if numbers.bias_correction:
        torch._foreach_div_(updates, [math.sqrt(1.0 - numbers.beta2**t) for t in moments.counts])
    torch._foreach_add_(updates, numbers.eps)
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, first)
    if numbers.bias_correction:
        torch._foreach_div_(updates, [1.0 - numbers.beta1**t for t in moments.counts])
    torch._foreach_add_(updates, w, alpha=numbers.weight_decay)
    if numbers.adapted:
        ratios = lamb_ratios(norms(w), norms(updates), numbers)
        torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_sub_(w, updates, alpha=numbers.lr)


@final
class LAMB(DenseOptimizer):
    """Layer-wise adaptive moments; the formulas stand at the head of this module.

    Every setting may differ between parameter groups. Biases and norms are best put into a group
    with `"adapted": False` and `"weight_decay": 0.0`. Parameters of 16 bits keep their averages in
    32 bits, and are rounded once in a step. A parameter must be whole on its rank: the norm of a
    shard (FSDP's flat parameters) is not its layer's.

    Args:
        params: parameters, or groups of them; real, with dense gradients.
        lr: step size, >= 0.
        betas: averaging of the gradient and of its square, each in [0, 1).
        eps: added to the root, > 0.
        weight_decay: >= 0; part of the step that is scaled.
        bias_correction: divide the averages by 1 - beta^t.
        max_weight_norm: phi(x) = min(x, max_weight_norm), > 0; None: phi(x) = x.

    Raises:
        InputError: a setting out of its bounds, a complex parameter; in a step, a sparse gradient.

    Cost:
        Memory: two buffers of the parameters' size, and on a CPU one of the longest parameter's.
        Time: see benchmarks/RESULTS.md.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LAMB([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.tensor([0.0, 1000.0])  # its length does not matter
        >>> _ = optimizer.step()
        >>> weight.detach()
        tensor([3.0000, 3.5000])

    Reference:
        You et al. 2020, "Large batch optimization for deep learning", algorithm 2.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        max_weight_norm: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "max_weight_norm": max_weight_norm,
            "adapted": True,
        }
        super().__init__(params, defaults)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}  # copies and pickles have none

    def _check(self, group: dict[str, Any]) -> None:
        require_not_negative("lr", float(group["lr"]))
        for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
            require_decay_rate(name, beta)
        require_positive("eps", group["eps"])
        require_not_negative("weight_decay", group["weight_decay"])
        if group["max_weight_norm"] is not None:
            require_positive("max_weight_norm", group["max_weight_norm"])

    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        beta1, beta2 = group["betas"]
        numbers = LAMBNumbers(
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            bias_correction=group["bias_correction"],
            max_weight_norm=group["max_weight_norm"],
            adapted=group["adapted"],
        )
        for state in part.states:
            state["step"] = int(state.get("step", 0)) + 1
        counts = [state["step"] for state in part.states]
        moments = Moments(part.buffers["exp_avg"], part.buffers["exp_avg_sq"], counts)
        if part.weights[0].device.type != "cpu":
            lamb_step(part.weights, part.gradients, moments, numbers, foreach=True)
            return
        scratch = self._scratch_for(part.weights)
        lamb_step(part.weights, part.gradients, moments, numbers, scratch=scratch)

    def _scratch_for(self, weights: list[Tensor]) -> Tensor:
        """Memory kept from step to step: to touch new memory takes longer than to use it."""
        place = (weights[0].device, weights[0].dtype)
        kept = self._scratch.get(place)
        if kept is None or kept.numel() < max(weight.numel() for weight in weights):
            kept = self._scratch[place] = new_scratch(weights)
        return kept
