"""Losses and metrics: what a task minimizes and what it is judged by, one value per example."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from anybatch.errors import InputError

__all__ = [
    "Kind",
    "LossFunction",
    "Metric",
    "default_loss",
    "default_metric",
    "logits_of",
    "per_example",
]

Kind: TypeAlias = Literal["classification", "regression", "language-modelling"]
LossFunction: TypeAlias = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What a task is judged by: the mean over examples of a per-example value.

    Attributes:
        name: as it appears in targets, tables and records ("accuracy").
        direction: "max" where more is better, "min" where less is.
        per_example: (outputs, targets) -> values of shape (examples,).
    """

    name: str
    direction: Literal["max", "min"]
    per_example: LossFunction

    def __post_init__(self) -> None:
        if self.direction not in ("max", "min"):
            raise InputError("metric direction", 'must be "max" or "min"', self.direction)


def default_loss(kind: Kind, label_smoothing: float = 0.0) -> LossFunction:
    """The loss of a kind of task, one value per example.

    Cross-entropy in nats for classification (mean over positions for language modelling), squared
    error averaged over the target's elements for regression.

    Args:
        kind: of the task.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).

    Raises:
        InputError: label smoothing of a regression.
    """
    if kind == "regression":
        if label_smoothing:
            rule = "must be 0 for a regression task"
            raise InputError("loss.label_smoothing", rule, label_smoothing)
        return squared_error
    if kind == "language-modelling":
        return lambda outputs, targets: token_cross_entropy(outputs, targets, label_smoothing)
    if label_smoothing == 0.0:
        return cross_entropy
    return lambda outputs, targets: F.cross_entropy(
        logits_of(outputs), targets, reduction="none", label_smoothing=label_smoothing
    )


def default_metric(kind: Kind) -> Metric:
    """Accuracy, squared error or bits per token, by the kind of task."""
    if kind == "classification":
        return Metric(name="accuracy", direction="max", per_example=is_correct)
    if kind == "regression":
        return Metric(name="squared_error", direction="min", per_example=squared_error)
    return Metric(name="bits_per_token", direction="min", per_example=_bits_per_token)


def logits_of(outputs: Any) -> Any:
    """The logits in a model's outputs: of a dict or object that holds "logits", or all of it."""
    if isinstance(outputs, Tensor):
        return outputs
    return (
        outputs["logits"]
        if isinstance(outputs, dict) and "logits" in outputs
        else getattr(outputs, "logits", outputs)
    )


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """-log softmax(outputs)[target] in nats: logits (n, C) and classes (n,) give (n,)."""
    return F.cross_entropy(logits_of(outputs), targets, reduction="none")


def token_cross_entropy(outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy averaged over positions: logits (n, T, V) and tokens (n, T) give (n,)."""
    losses = F.cross_entropy(
        logits_of(outputs).flatten(0, 1),
        targets.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(targets.shape).mean(1)


def _bits_per_token(outputs: Any, targets: Tensor) -> Tensor:
    return token_cross_entropy(outputs, targets) / math.log(2.0)


def squared_error(outputs: Any, targets: Tensor) -> Tensor:
    """Mean over elements of (output - target)^2, per example; a trailing 1 may be left out."""
    values: Tensor = logits_of(outputs)
    if values.dim() == targets.dim() + 1 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    if values.shape != targets.shape:
        rule = f"must have the targets' shape {tuple(targets.shape)}"
        raise InputError("model output", rule, tuple(values.shape))
    errors = (values - targets).square()
    return errors.flatten(1).mean(1) if errors.dim() > 1 else errors


def is_correct(outputs: Any, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target's class, else 0: (n, C) and (n,) give (n,)."""
    logits: Tensor = logits_of(outputs)
    return (logits.argmax(1) == targets).to(torch.float32)


def per_example(loss: LossFunction) -> LossFunction:
    """A user's loss as one value per example.

    A torch loss module with reduction "mean" or "none" is taken with "none"; what it returns per
    element is averaged over all but the first dimension. Elements that it ignores count as 0. Any
    other callable must already return one value per example.

    Args:
        loss: the task's; copied, where it is a torch loss module.

    Raises:
        InputError: a module whose own reduction would weigh the examples in another way: "sum",
            "batchmean", or the mean with class weights, which divides by the weights' sum; or one
            that has parameters to train.
    """
    if not isinstance(loss, nn.Module) or not hasattr(loss, "reduction"):
        return loss
    _check_reduction(loss)
    return _PerExample(loss)


def _check_reduction(loss: nn.Module) -> None:
    thing = f"loss {type(loss).__name__}"
    if loss.reduction not in ("mean", "none"):
        rule = 'must have reduction "mean" or "none"'
        raise InputError(thing, rule, loss.reduction, hint='the recipe has loss.reduction = "sum"')
    by_class = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and loss.weight is not None
    if by_class and loss.reduction == "mean":
        rule = "must have no class weights, by whose sum its mean would be divided"
        raise InputError(thing, rule, hint='reduction="none" divides by the examples')
    if any(True for _ in loss.parameters()):
        raise InputError(thing, "must have no parameters", hint="put them into the model")


class _PerExample(nn.Module):
    """A torch loss module as one value per example."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        elementwise: Any = copy.deepcopy(loss)
        elementwise.reduction = "none"
        self.elementwise = elementwise

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        losses: Tensor = self.elementwise(outputs, targets)
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses
