"""Rescaling of weights after an update: w <- w sqrt(2 d) / (|w| + 1e-9) where w is too long.

A weight whose output a norm follows may have any length: its function stays the same, and its
gradient falls as 1 / |w|. A bound on |w| keeps the size of its steps, for which else weight decay
is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from anybatch.errors import InputError
from anybatch.recipe_preconditioner import WeightRescaling

__all__ = ["Rescaling", "rescale_weights", "rescaled_weights"]

_EPSILON = 1e-9


@torch.no_grad()
def rescale_weights(weights: Sequence[Tensor], bounds: Sequence[float]) -> list[Tensor]:
    """Shorten each weight to its bound, in place: w <- min(1, bound / (|w| + 1e-9)) w.

    A weight within its bound keeps every bit.

    Args:
        weights: of any shapes.
        bounds: greatest Euclidean norm of each, > 0.

    Returns:
        The norms before, a tensor without dimensions for each.

    Cost:
        Two readings and one writing of the weights; no host synchronization.

    Example:
        >>> weights = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])]
        >>> norms = rescale_weights(weights, [1.0, 1.0])
        >>> weights[0].norm().item(), weights[1].tolist() == torch.tensor([0.3, 0.4]).tolist()
        (1.0, True)

    Reference:
        Osawa et al. (2019), Large-scale distributed second-order optimization using K-FAC.
    """
    if not weights:
        return []
    norms = list(torch._foreach_norm(list(weights)))
    pairs = zip(norms, bounds, strict=True)
    scales = [(bound / (norm + _EPSILON)).clamp(max=1.0) for norm, bound in pairs]
    torch._foreach_mul_(list(weights), scales)
    return norms


def rescaled_weights(model: nn.Module) -> list[tuple[nn.Parameter, float]]:
    """Trainable weights of linear layers and convolutions, each once, with sqrt(2 outputs).

    Args:
        model: any module; a weight that is computed (by a parametrization) is passed over.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
        >>> [bound for _, bound in rescaled_weights(model)]
        [4.0, 2.0]
    """
    found: dict[int, tuple[nn.Parameter, float]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            outputs = module.out_features
        elif isinstance(module, _ConvNd):
            outputs = module.out_channels
        else:
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.requires_grad:
            found.setdefault(id(weight), (weight, math.sqrt(2.0 * outputs)))
    return list(found.values())


@final
class Rescaling:
    """Rescales a model's weights after each update, as a recipe has it.

    It follows from the weights alone, so ranks that hold the same ones stay the same.

    Args:
        settings: of the recipe.
        model: whose weights `rescaled_weights` finds.

    Raises:
        InputError: the model has no such weight.
    """

    def __init__(self, settings: WeightRescaling, model: nn.Module) -> None:
        self._settings = settings
        self._found = rescaled_weights(model)
        if not self._found:
            rule = "must meet a model with trainable linear layers or convolutions"
            raise InputError("rescaling", rule)
        self._intervals = [0] * len(self._found)  # updates from one look to the next, less one
        self._waits = [0] * len(self._found)

    def take(self) -> None:
        """Rescale the weights that are due; to be called after the optimizer's step.

        Cost:
            See `rescale_weights`; with skipping, one host synchronization wherever one is due.
        """
        due = [number for number, wait in enumerate(self._waits) if wait == 0]
        self._waits = [max(0, wait - 1) for wait in self._waits]
        weights = [self._found[number][0] for number in due]
        bounds = [self._found[number][1] for number in due]
        norms = rescale_weights(weights, bounds)
        if self._settings.longest_skip == 0 or not due:
            return
        for number, norm, bound in zip(due, torch.stack(norms).tolist(), bounds, strict=True):
            is_short = norm < self._settings.margin * bound
            doubled = max(1, 2 * self._intervals[number])
            interval = min(doubled, self._settings.longest_skip) if is_short else 0
            self._intervals[number] = self._waits[number] = interval

    def state_dict(self) -> dict[str, Any]:
        """When each weight is looked at again."""
        return {"intervals": list(self._intervals), "waits": list(self._waits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._intervals, self._waits = list(state["intervals"]), list(state["waits"])
