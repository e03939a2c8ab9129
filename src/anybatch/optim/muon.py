"""torch's Muon for hidden matrices beside torch's AdamW for every other parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import nn

__all__ = ["MuonWithAdamW", "divide_parameters"]


def divide_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters for Muon, and all others.

    Muon's are the 2-D weights of Linear layers except the last one of the model, which makes the
    outputs; embeddings, filters, biases and norms are the others.

    Args:
        model: its layers in the order of `model.modules()`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [len(part) for part in divide_parameters(model)]
        [1, 3]
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden = {id(weight) for weight in linear[:-1] if weight.requires_grad} - shared
    trainable = [p for p in model.parameters() if p.requires_grad]
    muon = [p for p in trainable if id(p) in hidden]
    return muon, [p for p in trainable if id(p) not in hidden]


@final
class MuonWithAdamW:
    """Two of torch's optimizers that step together, behind one optimizer's face.

    Args:
        muon: torch.optim.Muon over hidden matrices; None where a model has none.
        adamw: torch.optim.AdamW over the others; None where there are none.

    Reference:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self, muon: torch.optim.Optimizer | None, adamw: torch.optim.Optimizer | None
    ) -> None:
        self._optimizers: Sequence[torch.optim.Optimizer] = [o for o in (muon, adamw) if o]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, Muon's first; changes of their values take effect."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter; the closure, if any, is evaluated once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        for optimizer, part in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
