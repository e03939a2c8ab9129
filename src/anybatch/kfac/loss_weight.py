"""Loss weight: what an update's losses were divided by on their way into `backward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["LossReduction", "LossWeight"]

LossReduction: TypeAlias = Literal["mean", "sum", "token-mean", "token-sum"]


@dataclass(frozen=True, slots=True)
class LossWeight:
    """How the losses of an update's backward passes were weighted.

    Attributes:
        reduction: of the loss.
        num_examples: that the caller gave; None: those that passed.
        scale: that the loss was multiplied by.
    """

    reduction: LossReduction
    num_examples: int | None
    scale: float

    def divisor(self, examples: int, terms: int) -> float:
        """What an example's (token's) loss was divided by, over its scale.

        Args:
            examples: that passed on this rank.
            terms: rows of the layer that makes the outputs: tokens, of a loss by tokens.
        """
        if self.reduction in ("sum", "token-sum"):
            return 1.0 / self.scale
        passed = terms if self.reduction == "token-mean" else examples
        return (self.num_examples or passed) / self.scale
