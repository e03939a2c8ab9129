"""Learning-rate rules: what each gives at other batch sizes, where it is refused, which one held.

The face of `lr_carrying` (the rules) and `lr_rule_check` (the check on measured learning rates).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anybatch.errors import InputError
from anybatch.lr_carrying import (
    LR_RULES,
    AdamAverages,
    DecayConvention,
    LRRule,
    carried_adam_averages,
    carried_lr,
    carried_weight_decay,
    default_alpha,
    paper_of,
    warmup_in_examples,
)
from anybatch.planning.arithmetic.lr_rule_check import RuleCheck, RuleFit, rule_that_held

__all__ = [
    "LR_RULES",
    "AdamAverages",
    "DecayConvention",
    "LRRow",
    "LRRule",
    "RuleCheck",
    "RuleFit",
    "carried_adam_averages",
    "carried_lr",
    "carried_weight_decay",
    "default_alpha",
    "lr_table",
    "paper_of",
    "rule_that_held",
    "warmup_in_examples",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LRRow:
    """What a rule gives at a batch size, and why it should not be used there, if so.

    Attributes:
        rule: which one.
        batch_size: examples per update.
        lr: that the rule gives; None where it cannot give any.
        refused: one sentence, or empty where the batch size is in the rule's domain.
    """

    rule: LRRule
    batch_size: int
    lr: float | None
    refused: str = ""


def lr_table(
    lr: float,
    batch_size: int,
    batch_sizes: Sequence[int],
    *,
    num_examples: int,
    noise_scale: float | None = None,
    edge: float | None = None,
    alpha: float = 1.0,
) -> list[LRRow]:
    """What every rule gives at some batch sizes and at the full batch, with refusals.

    The linear and the square-root rule take the noise of a batch for all there is: they are refused
    where one of the two batch sizes is above the noise scale, and at the full batch, which has
    none. Every rule but "constant" is refused where its lr is above the edge.

    Args:
        lr: known for `batch_size`, > 0.
        batch_size: examples per update.
        batch_sizes: to be told of; `num_examples` is added.
        num_examples: of the training set.
        noise_scale: measured, in examples; None: not known.
        edge: largest constant lr at which the loss still falls; None: not known.
        alpha: exponent of the noise-scale rule.

    Example:
        >>> rows = lr_table(0.1, 128, [512], num_examples=50_000)
        >>> print(rows[-4].rule, rows[-4].lr, rows[-4].refused, sep="; ")
        linear; 39.0625; 0.1 x 50,000 / 128 = 39.1: the full batch has no noise for the rule to keep
    """
    sizes = sorted({*batch_sizes, num_examples})
    if sizes[-1] > num_examples:
        raise InputError("batch_sizes", f"must be <= the {num_examples} examples", sizes[-1])
    rows = []
    for size in sizes:
        for rule in LR_RULES:
            if rule == "noise-scale" and noise_scale is None:
                rows.append(LRRow(rule=rule, batch_size=size, lr=None, refused=_UNMEASURED))
                continue
            carried = carried_lr(rule, lr, batch_size, size, noise_scale=noise_scale, alpha=alpha)
            told = f"{_formula(rule, lr, batch_size, size)} = {carried:.3g}: "
            reason = _refusal(rule, carried, (batch_size, size, num_examples), noise_scale, edge)
            refused = told + reason if reason else ""
            rows.append(LRRow(rule=rule, batch_size=size, lr=carried, refused=refused))
    return rows


_UNMEASURED = "needs a noise scale, and none was measured"


def _formula(rule: LRRule, lr: float, batch_size: int, size: int) -> str:
    match rule:
        case "linear":
            return f"{lr:.3g} x {size:,} / {batch_size:,}"
        case "square-root":
            return f"{lr:.3g} x sqrt({size:,} / {batch_size:,})"
        case _:
            return f"{lr:.3g} carried to {size:,}"


def _refusal(
    rule: LRRule,
    carried: float,
    sizes: tuple[int, int, int],
    noise_scale: float | None,
    edge: float | None,
) -> str:
    """Why a rule leaves its domain at sizes (known, new, all examples); empty where it does not."""
    known, size, num_examples = sizes
    if rule == "constant" or size == known:
        return ""
    if edge is not None and carried > edge:
        times = carried / edge
        return f"{times:.3g} times the largest lr that still learns, {edge:.3g}"
    if rule == "noise-scale":
        return ""
    if size == num_examples:
        return "the full batch has no noise for the rule to keep"
    larger = max(known, size)
    if noise_scale is not None and larger > noise_scale:
        return (
            f"the rule holds below the noise scale of {noise_scale:.3g} examples, not at {larger:,}"
        )
    return ""
