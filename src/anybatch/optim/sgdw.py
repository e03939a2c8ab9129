"""SGD with momentum and a weight decay whose convention is stated.

    g <- g + weight_decay w                                coupled
    m <- momentum m + lr_t g                               lr inside of the momentum (the paper's)
    m <- momentum (lr_t / lr_{t-1}) m + lr_t g             with momentum correction
    d  = m, or lr_t g + momentum m                         nesterov
    w <- w - d - eta_t weight_decay w                      decoupled, eta_t = lr_t / reference lr
    w <- w - d - eta_t weight_decay / sqrt(num_updates) w  normalized

Decay takes the weights of before the step. With momentum correction m / lr_t is what is kept, so
that an lr of 0 on the way loses nothing; with coupled decay that is torch's SGD.

Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 1 and
appendix B.1; momentum correction: Goyal et al. 2017, "Accurate, large minibatch SGD", equation 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from anybatch.errors import InputError
from anybatch.optim.decay import normalized_decay
from anybatch.optim.dense import DenseOptimizer, Part
from anybatch.recipe_checks import require_decay_rate, require_not_negative

__all__ = [
    "BUFFER",
    "SGDW",
    "Convention",
    "StepNumbers",
    "buffers_of",
    "check_group",
    "sgdw_step",
    "step_part",
]

Convention: TypeAlias = Literal["coupled", "decoupled", "normalized"]

BUFFER = "momentum_buffer"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepNumbers:
    """The scalars of one step.

    Attributes:
        inside: of the gradient on its way into the buffer: lr, or 1 with momentum correction.
        outside: of the direction on its way to the weights: 1, or lr with momentum correction.
        momentum: of the buffer, in [0, 1).
        nesterov: look ahead along the momentum.
        coupled_decay: times the weights, added to the gradient.
        shrink: of the weights beside the step: 1 - eta_t weight_decay.
    """

    inside: float
    outside: float
    momentum: float = 0.0
    nesterov: bool = False
    coupled_decay: float = 0.0
    shrink: float = 1.0


def sgdw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    numbers: StepNumbers,
    *,
    foreach: bool = False,
) -> None:
    """One step of some tensors, in place; gradients stay as they are.

    g' = g + coupled_decay w; m <- momentum m + inside g'; d = m, or inside g' + momentum m with
    nesterov; w <- shrink w - outside d. Without momentum d = inside g'.

    Args:
        weights: changed; of any shapes.
        gradients: of the same shapes, types and devices.
        buffers: changed; none where there is no momentum.
        numbers: scalars of the step.
        foreach: few kernels over all tensors, which is faster where launching one takes long, in
            the place of a loop; the same numbers to rounding.

    Cost:
        No host synchronization. A copy of the gradients for coupled decay.

    Example:
        >>> weight, gradient, buffer = (torch.tensor([value]) for value in (1.0, 2.0, 0.5))
        >>> numbers = StepNumbers(inside=0.1, outside=1.0, momentum=0.5, shrink=0.75)
        >>> sgdw_step([weight], [gradient], [buffer], numbers)
        >>> buffer, weight  # 0.5 * 0.5 + 0.1 * 2; 0.75 * 1 - 0.45
        (tensor([0.4500]), tensor([0.3000]))
    """
    if foreach:
        _step_all(list(weights), list(gradients), list(buffers), numbers)
        return
    kept: Sequence[Tensor | None] = buffers or [None] * len(weights)
    for weight, gradient, buffer in zip(weights, gradients, kept, strict=True):
        _step_one(weight, gradient, buffer, numbers)


def _step_one(w: Tensor, g: Tensor, m: Tensor | None, numbers: StepNumbers) -> None:
    inside, outside, momentum = numbers.inside, numbers.outside, numbers.momentum
    if numbers.coupled_decay != 0.0:
        g = g.add(w, alpha=numbers.coupled_decay)
    if m is not None:
        m.mul_(momentum).add_(g, alpha=inside)
    if numbers.shrink != 1.0:
        w.mul_(numbers.shrink)
    if m is None:
        w.add_(g, alpha=-outside * inside)
    elif numbers.nesterov:
        w.add_(g, alpha=-outside * inside).add_(m, alpha=-outside * momentum)
    else:
        w.add_(m, alpha=-outside)


def _step_all(w: list[Tensor], g: list[Tensor], m: list[Tensor], numbers: StepNumbers) -> None:
    inside, outside, momentum = numbers.inside, numbers.outside, numbers.momentum
    if numbers.coupled_decay != 0.0:
        g = list(torch._foreach_add(g, w, alpha=numbers.coupled_decay))
    if m:
        torch._foreach_mul_(m, momentum)
        torch._foreach_add_(m, g, alpha=inside)
    if numbers.shrink != 1.0:
        torch._foreach_mul_(w, numbers.shrink)
    if not m or numbers.nesterov:
        torch._foreach_add_(w, g, alpha=-outside * inside)
    if m:
        torch._foreach_add_(w, m, alpha=-outside * (momentum if numbers.nesterov else 1.0))


# --- parameter groups ------------------------------------------------------------------------


def step_part(group: Mapping[str, Any], part: Part) -> None:
    """One step of some parameters of a group of SGDW.

    Args:
        group: `check_group` has passed it.
        part: with a momentum buffer where the group has momentum.

    Raises:
        InputError: a decay that cannot be told.
    """
    foreach = part.weights[0].device.type != "cpu"
    buffers = part.buffers.get(BUFFER, [])
    sgdw_step(part.weights, part.gradients, buffers, _numbers(group), foreach=foreach)


def buffers_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The momentum buffer, where the group has momentum."""
    return (BUFFER,) if group["momentum"] != 0.0 else ()


def _numbers(group: Mapping[str, Any]) -> StepNumbers:
    lr, convention = float(group["lr"]), group["decay"]
    corrected = bool(group["momentum_correction"]) and group["momentum"] != 0.0
    is_coupled = convention == "coupled"
    return StepNumbers(
        inside=1.0 if corrected else lr,
        outside=lr if corrected else 1.0,
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        coupled_decay=group["weight_decay"] if is_coupled else 0.0,
        shrink=1.0 if is_coupled else 1.0 - _decoupled(group, lr),
    )


def _decoupled(group: Mapping[str, Any], lr: float) -> float:
    """eta_t weight_decay, the share of the weights that decay takes in this step."""
    decay, reference = float(group["weight_decay"]), float(group["reference_lr"])
    if decay == 0.0 or lr == 0.0:
        return 0.0
    if reference <= 0.0:
        raise InputError("reference_lr", f"must be > 0 under {group['decay']} decay", reference)
    if group["decay"] == "normalized":
        decay = normalized_decay(decay, _known(group["num_updates"]))
    return lr / reference * decay


def _known(num_updates: float | None) -> float:
    if num_updates is None:
        raise InputError("num_updates", "must be given for normalized weight decay")
    return num_updates


def check_group(group: Mapping[str, Any]) -> None:
    """Refuse settings and parameters that SGDW cannot take.

    Raises:
        InputError: the first that breaks its rule.
    """
    require_not_negative("lr", float(group["lr"]))
    require_not_negative("reference_lr", float(group["reference_lr"]))
    require_decay_rate("momentum", group["momentum"])
    require_not_negative("weight_decay", group["weight_decay"])
    if group["nesterov"] and group["momentum"] == 0:
        raise InputError("nesterov", "must come with momentum > 0", group["momentum"])
    conventions = get_args(Convention)
    if group["decay"] not in conventions:
        raise InputError("decay", f"must be one of: {', '.join(conventions)}", group["decay"])
    if group["decay"] == "normalized":
        normalized_decay(0.0, _known(group["num_updates"]))  # refuses what is not >= 1


# --- the optimizer ---------------------------------------------------------------------------


@final
class SGDW(DenseOptimizer):
    """SGD with decoupled weight decay; the formulas stand at the head of this module.

    Every setting may differ between parameter groups. What a scheduler moves is a group's `lr`;
    its `reference_lr`, to which decay compares it, is the lr that the group came with unless it is
    given, and lives in the group and in the state under that name. Parameters of 16 bits keep
    their momentum in 32 bits, and are rounded once in a step.

    Args:
        params: parameters, or groups of them; real, with dense gradients.
        lr: step size, >= 0; of 0, nothing is moved but by momentum of before.
        momentum: share of the previous step kept, in [0, 1).
        nesterov: look ahead along the momentum; needs momentum > 0.
        momentum_correction: let the momentum follow a moving lr at once, as torch's SGD does.
        weight_decay: >= 0, by the convention.
        decay: "coupled", "decoupled" or "normalized".
        num_updates: of the run, or of the present restart, >= 1; for "normalized", and only there
            looked at.

    Raises:
        InputError: a setting out of its bounds, a complex parameter; in a step, a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = SGDW([weight], lr=0.5, momentum=0.0, weight_decay=0.25)
        >>> optimizer.param_groups[0]["lr"] = 0.25  # half of its reference: decay halves, too
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight.item()  # 1 - 0.25 * 1 - 0.5 * 0.25 * 1
        0.625

    Reference:
        Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 1.
    """

    buffer_names: ClassVar[tuple[str, ...]] = (BUFFER,)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        momentum_correction: bool = False,
        weight_decay: float = 0.0,
        decay: Convention = "decoupled",
        num_updates: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_correction": momentum_correction,
            "weight_decay": weight_decay,
            "decay": decay,
            "num_updates": num_updates,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        group.setdefault("reference_lr", float(group["lr"]))
        check_group(group)

    def _buffers_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return buffers_of(group)

    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        step_part(group, part)
