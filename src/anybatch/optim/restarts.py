"""SGDW and AdamW that restart: their own cosine over periods, and a decay that knows the period.

In period i of T_i updates, T_cur of them taken,

    eta_t    = e + (1 - e) (1 + cos(pi T_cur / T_i)) / 2,  e = min_lr / lr
    lambda_i = weight_decay_norm / sqrt(T_i)
    T_{i+1}  = period_factor T_i

and the step is SGDW's or AdamW's with the lr eta_t lr and the decay eta_t lambda_i. Lengths are
real numbers: an update belongs to the period that its place 0, 1, 2 ... lies in. No scheduler is
needed, and one would be overwritten. In a recipe the same is `decay = "normalized"` under the
schedule "sgdr".

Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", section 3.2 and
appendix B; Loshchilov and Hutter 2017, "SGDR".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch.optim.optimizer import ParamsT

from anybatch.errors import InputError
from anybatch.optim.decay import state_convention, write_decay
from anybatch.optim.dense import DenseOptimizer, Part
from anybatch.optim.sgdw import BUFFER, buffers_of, check_group, step_part
from anybatch.recipe_checks import require, require_not_negative
from anybatch.schedule_parts import between

__all__ = ["SGDWR", "AdamWR", "Period", "period_at"]

_ROUNDING = 1e-6  # updates by which a restart may be missed: far more than rounding makes


class Period(NamedTuple):
    """A period between two restarts.

    Attributes:
        number: 0 for the first one.
        begin: updates before it.
        length: updates in it; neither need be whole.
    """

    number: int
    begin: float
    length: float


def period_at(update: int, updates_in_first_period: float, period_factor: float = 1.0) -> Period:
    """The period that an update lies in.

    Period i begins after first (f^i - 1) / (f - 1) updates and holds first f^i of them.

    Args:
        update: counted from 0.
        updates_in_first_period: >= 1; need not be whole.
        period_factor: f, of the length at each restart, >= 1.

    Example:
        >>> [period_at(update, 2, 1.5).number for update in range(8)]  # 2, 3 and 4.5 updates
        [0, 0, 1, 1, 1, 2, 2, 2]
    """
    first, growth = float(updates_in_first_period), period_factor - 1.0
    place = update + _ROUNDING
    if growth == 0.0:
        number = math.floor(place / first)
        return Period(number, first * number, first)
    number = math.floor(math.log1p(place / first * growth) / math.log1p(growth))
    begin = first * math.expm1(number * math.log1p(growth)) / growth
    return Period(number, begin, first * period_factor**number)


# --- parameter groups ------------------------------------------------------------------------


def _join(group: dict[str, Any], updates_taken: int) -> None:
    """Let a group take part from here on, its lr being the peak of every period."""
    lr, first, factor = group["lr"], group["updates_in_first_period"], group["period_factor"]
    group["reference_lr"], group["updates_taken"] = float(lr), updates_taken
    require("updates_in_first_period", first, "must be >= 1", first >= 1)
    require("period_factor", factor, "must be in [1, 1000]", 1 <= factor <= 1000)
    require("min_lr", group["min_lr"], f"must be in [0, {lr}], lr", 0 <= group["min_lr"] <= lr)
    require_not_negative("weight_decay_norm", group["weight_decay_norm"])
    if group["weight_decay_norm"] > 0 and lr == 0:
        raise InputError("lr", "must be > 0 under normalized weight decay", lr)


def _write(group: dict[str, Any]) -> None:
    """Set lr and decay of the update that comes."""
    update, reference = group["updates_taken"], group["reference_lr"]
    period = period_at(update, group["updates_in_first_period"], group["period_factor"])
    passed = (update - period.begin) / period.length
    lowest = group["min_lr"] / reference if reference > 0.0 else 0.0
    group["lr"] = reference * between(1.0, lowest, passed, "cosine")
    write_decay(group, group["weight_decay_norm"], period.length)


def _is_at_restart(group: dict[str, Any]) -> bool:
    update, first = group["updates_taken"], group["updates_in_first_period"]
    factor = group["period_factor"]
    if update == 0:
        return False
    return period_at(update, first, factor).number > period_at(update - 1, first, factor).number


# --- the optimizers --------------------------------------------------------------------------


@final
class SGDWR(DenseOptimizer):
    """SGDW with warm restarts.

    Call `step()` after each backward pass and nothing else; a step that a GradScaler leaves out
    does not count. A group's own `lr` is the peak of its periods, kept as `reference_lr`; groups
    may have another `weight_decay_norm` (0 for biases, say). All of it is in `state_dict`.

    Args:
        params: parameters, or groups of them; real, with dense gradients.
        lr: at the beginning of each period, >= 0.
        updates_in_first_period: >= 1; need not be whole. 1 to 10 % of the budget in the paper.
        period_factor: of the length at each restart, in [1, 1000].
        min_lr: that a period ends at, in [0, lr].
        weight_decay_norm: normalized weight decay, >= 0; 0.025 to 0.05 in the paper.
        momentum: share of the previous step kept, in [0, 1); not cleared by a restart.
        nesterov: look ahead along the momentum; needs momentum > 0.
        momentum_correction: let the momentum follow the lr at once, as torch's SGD does.

    Raises:
        InputError: a setting out of its bounds, a complex parameter; in a step, a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = SGDWR([weight], lr=0.5, updates_in_first_period=2, period_factor=2)
        >>> for _ in range(6):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        ...     print(round(optimizer.param_groups[0]["lr"], 3), optimizer.at_restart)
        0.5 False
        0.25 True
        0.5 False
        0.427 False
        0.25 False
        0.073 True

    Reference:
        Loshchilov and Hutter 2019, "Decoupled weight decay regularization", appendix B.
    """

    buffer_names: ClassVar[tuple[str, ...]] = (BUFFER,)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        updates_in_first_period: float,
        period_factor: float = 1.0,
        min_lr: float = 0.0,
        weight_decay_norm: float = 0.025,
        momentum: float = 0.9,
        nesterov: bool = False,
        momentum_correction: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "updates_in_first_period": updates_in_first_period,
            "period_factor": period_factor,
            "min_lr": min_lr,
            "weight_decay_norm": weight_decay_norm,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_correction": momentum_correction,
            "decay": "normalized",
            "weight_decay": weight_decay_norm,
            "num_updates": updates_in_first_period,
        }
        super().__init__(params, defaults)

    @property
    def at_restart(self) -> bool:
        """Whether the next step begins a new period: these weights are a solution to keep."""
        return _is_at_restart(self.param_groups[0])

    def _check(self, group: dict[str, Any]) -> None:
        _join(group, self.param_groups[0].get("updates_taken", 0))
        check_group(group)

    def _buffers_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return buffers_of(group)

    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        step_part(group, part)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update, with the lr and the decay of its place in the period.

        Args:
            closure: evaluated once before, with gradients; its value is returned.

        Raises:
            InputError: a sparse gradient.
        """
        for group in self.param_groups:
            _write(group)
        loss = super().step(closure)
        for group in self.param_groups:
            group["updates_taken"] += 1
        return loss


def _plain_step() -> Any:
    """AdamW's step without the hooks around it, which torch puts around AdamWR's, too."""
    step: Any = torch.optim.AdamW.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


@final
class AdamWR(torch.optim.AdamW):
    """torch's AdamW with warm restarts.

    The rules of `SGDWR` hold. The groups' `weight_decay` is what torch's step makes of the paper's:
    weight_decay_norm / (lr sqrt(T_i)).

    Args:
        params: parameters, or groups of them.
        lr: at the beginning of each period, >= 0.
        updates_in_first_period: >= 1; need not be whole.
        period_factor: of the length at each restart, in [1, 1000].
        min_lr: that a period ends at, in [0, lr].
        weight_decay_norm: normalized weight decay, >= 0; 0.025 to 0.05 in the paper.
        betas: averaging of the gradient and of its square, each in [0, 1); averages are not
            cleared by a restart.
        eps: added to the root, > 0.

    Raises:
        InputError: a setting out of its bounds.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = AdamWR([weight], lr=1e-3, updates_in_first_period=100, period_factor=2)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(optimizer.param_groups[0]["weight_decay"], 6)  # 0.025 / sqrt(100) / 1e-3
        2.5

    Reference:
        Loshchilov and Hutter 2019, "Decoupled weight decay regularization", section 3.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        updates_in_first_period: float,
        period_factor: float = 1.0,
        min_lr: float = 0.0,
        weight_decay_norm: float = 0.025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0)
        own = {
            "updates_in_first_period": updates_in_first_period,
            "period_factor": period_factor,
            "min_lr": min_lr,
            "weight_decay_norm": weight_decay_norm,
        }
        self.defaults |= own
        for group in self.param_groups:
            group |= {name: group.get(name, value) for name, value in own.items()}
            self._join(group)

    def _join(self, group: dict[str, Any]) -> None:
        group["weight_decay"] = group["weight_decay_norm"]
        state_convention(group, "normalized")
        _join(group, self.param_groups[0].get("updates_taken", 0))

    @property
    def at_restart(self) -> bool:
        """Whether the next step begins a new period: these weights are a solution to keep."""
        return _is_at_restart(self.param_groups[0])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which joins the present period; its lr is its peak.

        Raises:
            InputError: a setting out of its bounds.
        """
        super().add_param_group(param_group)
        if "updates_in_first_period" not in self.defaults:
            return  # torch's own constructor is still at work
        try:
            self._join(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update, with the lr and the decay of its place in the period.

        Args:
            closure: evaluated once before, with gradients; its value is returned.
        """
        for group in self.param_groups:
            _write(group)
        loss: float | None = _plain_step()(self, closure)
        for group in self.param_groups:
            group["updates_taken"] += 1
        return loss
