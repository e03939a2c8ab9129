"""KFAC: the gradient of every layer between the inverses of its two Kronecker factors.

    kfac = KFAC(model)
    loss.backward()
    kfac.step()                         # changes every .grad in place
    optimizer.step()

An update, on one rank or many (Osawa et al. 2019, section 5):

    statistics that are due: raw sums of this rank's backward passes, summed at the rank that owns
        the factor; running averages; what is due is inverted there
    P = G^-1 V A^-1 by the owner, gathered by all; or by all, with gathered inverses
    what has no curvature takes a step of comparable length; all is bounded in the Fisher's metric

The order in a loop with a GradScaler and clipping: backward, unscale, precondition, clip, step
(with weight decay in the optimizer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, final, get_args

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac.applying import (
    gradient_matrix,
    has_gradient,
    preconditioned_matrix,
    write_gradient,
)
from anybatch.kfac.blocks import FisherBlock, find_blocks, unwrapped
from anybatch.kfac.capture import Capture
from anybatch.kfac.constraint import first_order_factor, fisher_products, step_factor
from anybatch.kfac.explain import explain_table
from anybatch.kfac.stages import Stages
from anybatch.kfac.statistics_flow import LossReduction, LossWeight, StatisticsFlow
from anybatch.kfac.written import WrittenGradients
from anybatch.recipe_preconditioner import KFACSettings, KLBound
from anybatch.world import World

__all__ = ["KFAC", "LossReduction"]


class _LossScale(Protocol):
    """What torch's GradScaler offers."""

    def get_scale(self) -> float: ...


class _Optimizer(Protocol):
    """The part of a torch optimizer that is read."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


@final
class KFAC:
    """Preconditions a model's gradients; stands between `backward` and the optimizer's step.

    Factors do not depend on how the loss is reduced, on the batch size or on a declared loss scale:
    they are those of one example's loss (of one token's under "token-mean" and "token-sum").

    Args:
        model: bare, or wrapped by torch's DDP or torch.compile; its hooks stay until `close`.
            Its layers get examples in their inputs' first dimension.
        optimizer: read for lr, which only a bound of the divergence needs.
        settings: what is measured, and when.
        world: ranks that share statistics and work; None: torch's process group, if there is one.
        loss_reduction: of the loss that is given to `backward`.
        loss_scale: that the loss was multiplied by, or a GradScaler that says so.

    Attributes:
        model: the bare module.
        damping: at present; may be set before any step.
        refresh_factor: on the intervals of a fixed refresh; may be set before any step.
        updates: steps taken so far.
        stages: seconds of the last step by stage, where `stages.timed` is set.

    Raises:
        InputError: nothing to precondition; parameters that are not whole on every rank; a bound
            of the divergence without an optimizer; an optimizer that scales every coordinate by
            itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
        >>> kfac = KFAC(model, settings=KFACSettings(damping=0.1))
        >>> model(torch.randn(8, 3)).square().mean().backward()
        >>> kfac.step()
        >>> kfac.counts()["refreshes"], kfac.counts()["inversions"]
        (4, 4)

    Cost:
        A step: outputs * inputs * (outputs + inputs) multiply-adds a layer. A measurement of the
        statistics: examples * positions * (inputs^2 + outputs^2). An inversion: about inputs^3 +
        outputs^3. Memory: twice the factors (see `explain`).

    Collectives:
        In `step`: a reduce-scatter of the statistics and an all-gather of inverses where they are
        due, an all-gather of the gradients' size under distribution "gradients"; every rank must
        call it, and `state_dict`, in the same order.

    Reference:
        Martens, Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature; Osawa et al. (2019), Large-scale distributed second-order optimization.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: _Optimizer | None = None,
        *,
        settings: KFACSettings | None = None,
        world: World | None = None,
        loss_reduction: LossReduction = "mean",
        loss_scale: float | _LossScale = 1.0,
    ) -> None:
        settings = settings or KFACSettings()
        _check_arguments(model, optimizer, settings, loss_reduction, loss_scale)
        self.model = unwrapped(model)
        self.settings = settings
        if isinstance(settings.bound, KLBound) and optimizer is None:
            rule = "must come with KFAC(model, optimizer), whose lr it bounds"
            raise InputError("bound", rule, settings.bound.name)
        device = _device_of(self.model)
        self._world = world or World.of_group(device)
        self._optimizer, self._loss_scale = optimizer, loss_scale
        self.coverage = find_blocks(self.model, settings)
        if not self.coverage.blocks:
            rule = "must hold a layer that K-FAC covers"
            hint = "all is left out by the settings" if settings.left_out else ""
            raise InputError("model", rule, type(self.model).__name__, hint=hint)
        self.stages = Stages(device)
        self._capture = Capture(
            self.coverage.blocks, settings, rank=self._world.rank, stages=self.stages
        )
        self._flow = StatisticsFlow(self.coverage.blocks, settings, self._world, self.stages)
        self._reduction = loss_reduction
        self.damping, self.refresh_factor, self.updates = settings.damping, 1.0, 0
        self._num_examples: int | None = None
        self._written = WrittenGradients()
        self._prepare()

    # --- one update --------------------------------------------------------------------------

    def begin_update(self, num_examples: int | None = None) -> None:
        """Say how the losses of the coming backward passes are weighted; forgets passes so far.

        Not needed where one backward pass, or several of equal size whose losses are divided by
        their number, make an update.

        Args:
            num_examples: by which a mean loss is divided in this rank's backward passes together
                (tokens under "token-mean"); of a sum the examples over all ranks.
        """
        if num_examples is not None and num_examples < 1:
            raise InputError("num_examples", "must be >= 1", num_examples)
        self._num_examples = num_examples
        self._prepare()

    def begin_last_pass(self) -> None:
        """Let statistics leave for their owners while the coming backward pass goes on.

        Not needed; of effect on many ranks, where `begin_update` was given a number (or the loss is
        a sum). Every rank must call it before the same backward pass, its last one of the update.

        Collectives:
            Those of `step`, begun in that pass.
        """
        self._capture.departures = self._flow.departures(self._weight())

    def _weight(self) -> LossWeight:
        return LossWeight(self._reduction, self._num_examples, self._scale())

    def _prepare(self) -> None:
        """Have the coming passes observed, as far as something is due."""
        wanted = self._flow.due(self.updates, self.refresh_factor)
        self._capture.clear()
        self._capture.draw_from(self.updates)
        self._capture.wanted = wanted
        self._capture.observing = bool(wanted)

    @property
    def observing(self) -> bool:
        """Whether passes count; set to False around one that must not (a placeholder, a probe)."""
        return self._capture.observing

    @observing.setter
    def observing(self, value: bool) -> None:
        self._capture.observing = value and bool(self._capture.wanted)

    def observe_outputs(
        self, outputs: Tensor, family: Literal["softmax", "gaussian"] = "softmax"
    ) -> None:
        """Take G from the model's own distribution, where `fisher` says so; before `backward`.

        Args:
            outputs: of the model, with their graph: (examples, classes) logits, or (examples,
                positions, classes), or means of a Gaussian for the squared error.
            family: distribution whose negative log-likelihood the loss is.

        Cost:
            For "sampled" one further backward pass to the layers' outputs, for "exact" one for
            each class (and position).
        """
        if self.settings.fisher != "empirical" and self.observing:
            by_token = self._reduction in ("token-mean", "token-sum")
            positions = math.prod(outputs.shape[1:-1]) if by_token else 1
            self._capture.add_model_statistics(outputs, family, scale=math.sqrt(positions))

    @torch.no_grad()
    def step(self) -> None:
        """Precondition every gradient, in place.

        Raises:
            InputError: a covered layer that took no part in the first update; gradients that are as
                the last step left them, which would be preconditioned twice.

        Collectives:
            See the class; every rank must call.
        """
        if self._written.are_untouched():
            rule = "must come once after an update's backward passes"
            raise InputError("kfac.step()", rule, "gradients as its last call left them")
        weight = self._weight()
        self._flow.take(self._capture, weight, self.updates, self.damping)
        self._precondition(weight)
        self.updates += 1
        self._num_examples = None
        self.stages.end()
        self._prepare()

    def _scale(self) -> float:
        """What the loss was multiplied by; a GradScaler is asked where statistics are due."""
        scale = self._loss_scale
        if isinstance(scale, (int, float)):
            return float(scale)
        return scale.get_scale() if self._capture.wanted else 1.0

    def _precondition(self, weight: LossWeight) -> None:
        """P in the place of V for every block with inverses, and what follows for the others.

        Before a block has its inverses nothing is known of a step's length, and none is taken.
        """
        # On many ranks all that are ready, the same blocks everywhere: what travels has one layout.
        several = self._world.size > 1
        blocks = [b for b in self.coverage.blocks if self._flow.is_ready(b)]
        if not blocks:
            for gradient in (p.grad for p in self.model.parameters() if p.grad is not None):
                gradient.zero_()
            self._flow.count_dropped(True)
        blocks = [b for b in blocks if has_gradient(b) or several]
        if not blocks:
            return
        with self.stages.of("precondition"):
            gradients = {block.name: gradient_matrix(block) for block in blocks}
            mine = [block for block in blocks if self._flow.preconditions(block)]
            own = {b.name: self._preconditioned(b, gradients[b.name]) for b in mine}
        with self.stages.of("share"):
            steps = self._flow.gathered(blocks, own)
        with self.stages.of("write"):
            self._write(blocks, steps, gradients, self._flow.gradient_unit(weight))

    def _preconditioned(self, block: FisherBlock, gradient: Tensor) -> Tensor:
        return preconditioned_matrix(block, gradient, self._flow.inverses)

    def _write(
        self,
        blocks: list[FisherBlock],
        steps: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        unit: float,
    ) -> None:
        """Bounded steps into the `.grad` of covered parameters, comparable ones into the rest."""
        ordered = [steps[b.name] for b in blocks], [gradients[b.name] for b in blocks]
        if isinstance(self.settings.bound, KLBound):
            unit = 1.0  # lr p is the change of the weights, whatever p's unit
        products = fisher_products(*ordered) * unit**2
        factor = step_factor(products, self.settings.bound, self._lrs(blocks, products))
        dropped = factor == 0  # what is not finite would not be 0 times 0
        self._flow.count_dropped(dropped)
        covered = {id(p) for b in blocks for p in (b.weight, b.bias)}
        others = [p for p in self.model.parameters() if id(p) not in covered]
        rest = [p.grad for p in others if p.grad is not None]
        if rest:
            torch._foreach_mul_(rest, factor * first_order_factor(*ordered))
            for gradient in rest:
                gradient.masked_fill_(dropped, 0.0)
        for block in blocks:
            step = steps[block.name]
            if has_gradient(block):
                write_gradient(block, (step * factor.to(step.dtype)).masked_fill_(dropped, 0.0))
        self._written.remember(p for b in blocks for p in (b.weight, b.bias) if p is not None)

    def _lrs(self, blocks: list[FisherBlock], like: Tensor) -> Tensor | None:
        """The lr of each block; None where no bound needs it."""
        if not isinstance(self.settings.bound, KLBound) or self._optimizer is None:
            return None
        groups = self._optimizer.param_groups
        lr_of = {id(p): lr for g in groups for lr in (float(g["lr"]),) for p in g["params"]}
        lrs = [lr_of.get(id(block.weight), lr_of.get(id(block.bias), 0.0)) for block in blocks]
        return torch.tensor(lrs, dtype=like.dtype).to(like.device, non_blocking=True)

    # --- what is known -----------------------------------------------------------------------

    def explain(self) -> str:
        """A table of every parameter: its block, sizes, memory and cost, or why it has none."""
        return explain_table(self.coverage)

    def counts(self) -> dict[str, Any]:
        """Refreshes, inversions, what was saved of both, bytes sent, and failures by name."""
        return {"updates": self.updates, **self._flow.counts()}

    def close(self) -> None:
        """Take the hooks away; the model stays usable."""
        self._capture.remove()
        self._flow.close()

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Factors, inverses, intervals, counts, draws: all that a resumed training needs.

        The same on every rank and free of their number; tensors are not copied, but where they
        come from other ranks.

        Collectives:
            One gather of all factors and inverses; every rank must call.
        """
        return {
            "updates": self.updates,
            "damping": self.damping,
            "refresh_factor": self.refresh_factor,
            "flow": self._flow.state_dict(),
            "capture": self._capture.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, also on another device or number of ranks.

        Raises:
            InputError: the state is another model's.
        """
        if "flow" not in state:
            raise InputError("state", "must be one of KFAC.state_dict", sorted(state)[:3])
        self._flow.load_state_dict(state["flow"])
        self._capture.load_state_dict(state["capture"])
        self.updates, self.damping = state["updates"], state["damping"]
        self.refresh_factor = state["refresh_factor"]
        self._written.forget()
        self._prepare()


def _check_arguments(
    model: nn.Module,
    optimizer: _Optimizer | None,
    settings: KFACSettings,
    loss_reduction: str,
    loss_scale: float | _LossScale,
) -> None:
    """One line for what would otherwise train on, and wrongly."""
    for thing, kind, value in (("model", nn.Module, model), ("settings", KFACSettings, settings)):
        if not isinstance(value, kind):
            raise InputError(thing, f"must be a {kind.__name__}", type(value).__name__)
    known = get_args(LossReduction)
    if loss_reduction not in known:
        raise InputError("loss_reduction", f"must be one of: {', '.join(known)}", loss_reduction)
    is_number = isinstance(loss_scale, (int, float))
    if not (loss_scale > 0 if is_number else hasattr(loss_scale, "get_scale")):  # type: ignore[operator]
        raise InputError("loss_scale", "must be a number > 0 or a GradScaler", loss_scale)
    if optimizer is not None and any("betas" in group for group in optimizer.param_groups):
        rule = "must not scale every coordinate by itself"
        hint = "SGD, SGDW or LARS take the steps that K-FAC makes"
        raise InputError("optimizer", rule, type(optimizer).__name__, hint=hint)


def _device_of(model: nn.Module) -> torch.device:
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh"):  # FSDP2's
            rule = "must be whole on every rank"
            raise InputError(f"parameter {name}", rule, "a DTensor", hint="use DDP with K-FAC")
        return parameter.device
    return torch.device("cpu")
