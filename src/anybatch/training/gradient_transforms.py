"""The recipe's transforms of a gradient, in order, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from anybatch.data.draws import mixed_key
from anybatch.optim.clipping import was_clipped
from anybatch.recipe import ClipGlobalNorm, GradientTransform
from anybatch.training.build import build_gradient_transform

__all__ = ["GradientTransforms"]


@final
class GradientTransforms:
    """Changes gradients in place, and counts how many of those that were taken were clipped.

    Args:
        settings: of the recipe, in order.
        seed: of the run; each transform's noise is its own.

    Attributes:
        norm: of the last gradient, before the first transform that measures it; None where none
            does.
    """

    def __init__(self, settings: Sequence[GradientTransform], *, seed: int) -> None:
        self._settings = tuple(settings)
        self._functions = [
            build_gradient_transform(one, seed=mixed_key(seed, place))
            for place, one in enumerate(settings)
        ]
        self.norm: Tensor | None = None
        self._clipped: Tensor | None = None  # whether the last gradient was
        self._clipped_updates: Tensor | None = None  # on the device until they are asked for
        self._updates = 0

    def apply(self, parameters: Sequence[nn.Parameter], update: int) -> None:
        """Change the gradients.

        Args:
            parameters: of the model, always in the same order.
            update: its number, from 0; enters the noise.
        """
        self.norm = self._clipped = None
        for settings, function in zip(self._settings, self._functions, strict=True):
            norm = function(parameters, update)
            if norm is None:
                continue
            self.norm = norm if self.norm is None else self.norm
            if isinstance(settings, ClipGlobalNorm):
                clipped = was_clipped(norm, settings.max_norm)
                self._clipped = clipped if self._clipped is None else self._clipped | clipped

    def take(self) -> None:
        """Count the last gradient as one that the weights were updated with."""
        if self._clipped is None:
            return
        before = self._clipped_updates
        counted = self._clipped.long()
        self._clipped_updates = counted if before is None else counted + before.to(counted.device)
        self._updates += 1

    def clipped_share(self) -> float | None:
        """Share of the updates since it was asked last whose gradient was clipped.

        None where nothing clips. Waits for the device.
        """
        clipped, updates = self._clipped_updates, self._updates
        self._clipped_updates, self._updates = None, 0
        return None if clipped is None else float(clipped) / updates

    def state_dict(self) -> dict[str, Any]:
        """The last gradient's norm and the counts; tensors are not copied."""
        return {
            "norm": self.norm,
            "clipped": self._clipped,
            "clipped_updates": self._clipped_updates,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.norm, self._clipped = state["norm"], state["clipped"]
        self._clipped_updates, self._updates = state["clipped_updates"], state["updates"]
