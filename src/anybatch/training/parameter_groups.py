"""Which parameters an optimizer treats alike: groups by what a recipe spares them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from anybatch.optim.parameter_kinds import divide_by_kind
from anybatch.recipe import LAMBSettings, LARSSettings, OptimizerSettings, ParameterKinds

__all__ = ["parameter_groups"]


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    model: nn.Module,
    settings: OptimizerSettings,
    decayed: ParameterKinds,
) -> list[dict[str, Any]]:
    """Parameter groups, as torch wants them, by what their parameters are spared.

    That is weight decay, and a ratio of their own under LARS and LAMB. One group where nothing
    differs; else those that are spared nothing come first. Within a group the order is as given.

    Args:
        parameters: trainable ones of the model.
        model: says of which kind each is; see `divide_by_kind`.
        settings: of the optimizer; without weight decay in them nobody is spared it.
        decayed: kinds beside weights that weight decay applies to.

    Example:
        >>> from anybatch.recipe import SGDSettings
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> settings = SGDSettings(lr=0.1, weight_decay=5e-4)
        >>> decayed = ParameterKinds(biases=True, norms=False)
        >>> groups = parameter_groups(model.parameters(), model, settings, decayed)
        >>> [(len(group["params"]), group.get("weight_decay")) for group in groups]
        [(2, None), (2, 0.0)]
    """
    adapted = ParameterKinds()
    if isinstance(settings, (LARSSettings, LAMBSettings)):
        adapted = settings.adapted
    kinds = divide_by_kind(model)
    treatments = dict.fromkeys(map(id, kinds.weights), (True, True))
    treatments |= dict.fromkeys(map(id, kinds.biases), (decayed.biases, adapted.biases))
    treatments |= dict.fromkeys(map(id, kinds.norms), (decayed.norms, adapted.norms))
    grouped: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        is_decayed, is_adapted = treatments[id(parameter)]
        treatment = (is_decayed or settings.weight_decay == 0.0, is_adapted)
        grouped.setdefault(treatment, []).append(parameter)
    return [
        {"params": members}
        | ({} if is_decayed else {"weight_decay": 0.0})
        | ({} if is_adapted else {"adapted": False})
        for (is_decayed, is_adapted), members in sorted(grouped.items(), reverse=True)
    ]
