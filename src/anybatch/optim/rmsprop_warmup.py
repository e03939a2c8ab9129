"""RMSprop warm-up: RMSprop at first, SGD later, with a continuous passage between them.

    g <- g + weight_decay w
    s <- rms_decay s + (1 - rms_decay) g^2
    D <- momentum D - (a + (1 - a) (rms_lr / reference_lr) / (sqrt(s) + eps)) g
    w <- w + lr_t D

a is the share of SGD, `sgd_share`. With the lr outside of D, RMSprop's own lr is rms_lr, times
what the schedule makes of lr. The paper prints the slope of a's middle branch as 2 / width, with
which a would reach 3/2 and then jump to 1; the slope here is that of the branch before it.

Reference: Akiba, Suzuki, Fukuda 2017, "Extremely large minibatch SGD: training ResNet-50 on
ImageNet in 15 minutes", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from anybatch.optim.dense import DenseOptimizer, Part
from anybatch.recipe_checks import (
    require,
    require_decay_rate,
    require_not_negative,
    require_positive,
)

__all__ = ["RMSpropWarmup", "RMSpropWarmupNumbers", "rmsprop_warmup_step", "sgd_share"]


def sgd_share(epoch: float, *, center: float, width: float) -> float:
    """The share of SGD in the step: continuous, with a continuous slope up to its end.

    exp(2 (e - center) / width) / 2 before the center; 1/2 + (e - center) / width up to
    center + width / 2; 1 after it.

    Args:
        epoch: where the update stands; any unit that the two others share.
        center: where SGD and RMSprop have the same share.
        width: of the passage, > 0.

    Raises:
        InputError: width is not > 0.

    Example:
        >>> [round(sgd_share(e, center=10, width=5), 4) for e in (0, 5, 10, 11.25, 12.5, 90)]
        [0.0092, 0.0677, 0.5, 0.75, 1.0, 1.0]

    Reference:
        Akiba, Suzuki, Fukuda 2017, section 3.2, with half the slope that is printed.
    """
    require_positive("width", width)
    distance = (epoch - center) / width
    return math.exp(2.0 * distance) / 2.0 if distance < 0.0 else min(1.0, 0.5 + distance)


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSpropWarmupNumbers:
    """The scalars of one step; see the head of the module.

    Attributes:
        lr: of the step as a whole.
        sgd: a, the share of the plain gradient.
        rms: (1 - a) rms_lr / reference_lr, the share of the normalized gradient.
        momentum: of D, in [0, 1).
        rms_decay: averaging of the squared gradient.
        eps: added to the root.
        weight_decay: added to the gradient.
    """

    lr: float
    sgd: float
    rms: float
    momentum: float = 0.9
    rms_decay: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0


def rmsprop_warmup_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    squares: Sequence[Tensor],
    directions: Sequence[Tensor],
    numbers: RMSpropWarmupNumbers,
    *,
    foreach: bool = False,
) -> None:
    """One step of some tensors, in place; gradients stay as they are.

    Args:
        weights: changed; at least one, all of one device and type.
        gradients: of the same shapes.
        squares: s, likewise; changed, unless numbers.rms is 0, where nobody asks for it.
        directions: D, likewise; changed.
        numbers: scalars of the step.
        foreach: few kernels over all tensors in the place of a loop; the same to rounding.

    Cost:
        No host synchronization. A copy of s, of all tensors with foreach, of one at a time else.

    Example:
        >>> weight, gradient = torch.tensor([1.0]), torch.tensor([2.0])
        >>> square, direction = torch.zeros(1), torch.zeros(1)
        >>> numbers = RMSpropWarmupNumbers(lr=0.1, sgd=0.5, rms=0.25, rms_decay=0.75, eps=0.0)
        >>> rmsprop_warmup_step([weight], [gradient], [square], [direction], numbers)
        >>> square, direction  # 0.25 * 2^2; -(0.5 + 0.25 / 1) * 2
        (tensor([1.]), tensor([-1.5000]))
    """
    if foreach:
        _step_all(list(weights), list(gradients), list(squares), list(directions), numbers)
        return
    for row in zip(weights, gradients, squares, directions, strict=True):
        _step_one(*row, numbers)


def _step_one(w: Tensor, g: Tensor, s: Tensor, d: Tensor, numbers: RMSpropWarmupNumbers) -> None:
    if numbers.weight_decay != 0.0:
        g = g.add(w, alpha=numbers.weight_decay)
    d.mul_(numbers.momentum).sub_(g, alpha=numbers.sgd)
    if numbers.rms != 0.0:
        s.mul_(numbers.rms_decay).addcmul_(g, g, value=1.0 - numbers.rms_decay)
        d.addcdiv_(g, s.sqrt().add_(numbers.eps), value=-numbers.rms)
    w.add_(d, alpha=numbers.lr)


def _step_all(
    w: list[Tensor],
    g: list[Tensor],
    s: list[Tensor],
    d: list[Tensor],
    numbers: RMSpropWarmupNumbers,
) -> None:
    if numbers.weight_decay != 0.0:
        g = list(torch._foreach_add(g, w, alpha=numbers.weight_decay))
    torch._foreach_mul_(d, numbers.momentum)
    torch._foreach_sub_(d, g, alpha=numbers.sgd)
    if numbers.rms != 0.0:
        torch._foreach_mul_(s, numbers.rms_decay)
        torch._foreach_addcmul_(s, g, g, 1.0 - numbers.rms_decay)
        roots = list(torch._foreach_sqrt(s))
        torch._foreach_add_(roots, numbers.eps)
        torch._foreach_addcdiv_(d, g, roots, -numbers.rms)
    torch._foreach_add_(w, d, alpha=numbers.lr)


@final
class RMSpropWarmup(DenseOptimizer):
    """RMSprop that becomes SGD; the formulas stand at the head of this module.

    A schedule writes each group's `sgd_share` before the step; a new group has 0, RMSprop alone:

        for group in optimizer.param_groups:
            group["sgd_share"] = sgd_share(epoch, center=10, width=5)

    From a share of 1 on the step is that of torch's SGD, costs as much, and s rests. A group's
    `reference_lr` is the lr that it came with, unless it is given. Every setting may differ between
    groups. Parameters of 16 bits keep s and D in 32 bits, and are rounded once in a step.

    Args:
        params: parameters, or groups of them; real, with dense gradients.
        lr: of SGD, > 0; what a scheduler moves.
        momentum: share of the previous step kept, in [0, 1).
        rms_decay: averaging of the squared gradient, in [0, 1).
        rms_lr: of RMSprop, > 0.
        eps: added to the root, > 0.
        weight_decay: added to the gradient (coupled), >= 0.

    Raises:
        InputError: a setting out of its bounds, a complex parameter; in a step, a sparse gradient
            or a share outside of [0, 1].

    Cost:
        Memory: two buffers of the parameters' size.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = RMSpropWarmup([weight], lr=0.1, rms_lr=0.01, momentum=0.0)
        >>> optimizer.param_groups[0]["sgd_share"] = 0.5
        >>> weight.grad = torch.ones(1)
        >>> _ = optimizer.step()  # s = 0.01, so 0.1 * (0.5 + 0.5 * 0.1 / 0.1) * 1
        >>> weight.detach()
        tensor([0.9000])

    Reference:
        Akiba, Suzuki, Fukuda 2017, "Extremely large minibatch SGD", section 3.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("square_avg", "direction")

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        rms_decay: float = 0.99,
        rms_lr: float = 3e-4,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "rms_decay": rms_decay,
            "rms_lr": rms_lr,
            "eps": eps,
            "weight_decay": weight_decay,
            "sgd_share": 0.0,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        group.setdefault("reference_lr", float(group["lr"]))
        require_not_negative("lr", float(group["lr"]))
        require_positive("reference_lr", group["reference_lr"])
        require_decay_rate("momentum", group["momentum"])
        require_decay_rate("rms_decay", group["rms_decay"])
        require_positive("rms_lr", group["rms_lr"])
        require_positive("eps", group["eps"])
        require_not_negative("weight_decay", group["weight_decay"])

    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        share = float(group["sgd_share"])
        require("sgd_share", share, "must be in [0, 1]", 0.0 <= share <= 1.0)
        numbers = RMSpropWarmupNumbers(
            lr=float(group["lr"]),
            sgd=share,
            rms=(1.0 - share) * group["rms_lr"] / group["reference_lr"],
            momentum=group["momentum"],
            rms_decay=group["rms_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
        squares, directions = part.buffers["square_avg"], part.buffers["direction"]
        foreach = part.weights[0].device.type != "cpu"
        rmsprop_warmup_step(
            part.weights, part.gradients, squares, directions, numbers, foreach=foreach
        )
