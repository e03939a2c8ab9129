"""A plan's reasons, and what would change it, in sentences with their numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anybatch.plan import Reason
from anybatch.planning.arithmetic.decision import Decision
from anybatch.planning.arithmetic.lr_rules import LRRow, default_alpha, lr_table, rule_that_held
from anybatch.planning.arithmetic.posterior import weighted_quantile
from anybatch.planning.arithmetic.preconditioner_choice import SURE
from anybatch.planning.preconditioning import may_precondition, verdict, why_untried
from anybatch.planning.recipe import schedule_of
from anybatch.recipe import Recipe

if TYPE_CHECKING:
    from anybatch.planning.compose import Composer

__all__ = ["reasons_of", "would_change"]


def reasons_of(composer: Composer, decision: Decision, recipe: Recipe) -> list[Reason]:
    """Why each choice is what it is, most important first.

    Args:
        composer: of the plan.
        decision: about the batch size.
        recipe: that is recommended.
    """
    is_moved = composer.batch_size != decision.batch_size  # with a preconditioner
    found = [
        Reason(name="batch-size", sentence=sentence, measurement=_source(sentence))
        for sentence in (*([] if is_moved else _kept(decision)), *decision.reasons)
    ]
    if composer.recommended:
        found = [*_preconditioner_reason(composer), *found, _its_lr(composer)]
    else:
        found += _lr_reasons(composer, decision.batch_size) + _preconditioner_reason(composer)
    found.append(_schedule_reason(composer, composer.batch_size))
    if recipe.averaging != composer.request.recipe.averaging:
        sentence = (
            "evaluated and kept is the average of the weights over about the last ninth of the "
            "run: it does what a decay of the lr does, and needs no end to be known"
        )
        found.append(Reason(name="averaging", sentence=sentence))
    found += _decay_reason(composer, recipe)
    return found


def _preconditioner_reason(composer: Composer) -> list[Reason]:
    """What the branches say of a preconditioner, or why they do not."""
    branches, found = composer.measurements.get("branches"), composer.preconditioner
    if found is None:
        sentence = why_untried(composer.request.recipe, branches)
        source = "" if branches is None else "branches"
        return [Reason(name="preconditioner", sentence=sentence, measurement=source)] * (
            sentence != ""
        )
    sentence = verdict(found)
    size, other = found.trial.batch_size, composer.decision.batch_size
    if size != other:
        sentence += f"; the time is over that at {other:,} without it"
    return [Reason(name="preconditioner", sentence=sentence, measurement="branches")]


def _its_lr(composer: Composer) -> Reason:
    sentence = (
        f"of the branches with K-FAC at {composer.batch_size:,} that with {composer.lr:.3g} ended "
        "best; its learning rates are on a scale of their own, bounded by max_norm"
    )
    return Reason(name="lr", sentence=sentence, measurement="branches")


def _kept(decision: Decision) -> list[str]:
    """Why the present size stays where another one is proposed."""
    size, other = decision.batch_size, decision.choice.batch_size
    if size == other:
        return []
    stays = f"the present batch size, {size:,}, stays"
    gain, near = 100.0 * decision.expected_gain, decision.near_optimal
    if size in near:
        return [f"{stays}: it is among the fastest, {near[0]:,} to {near[-1]:,}"]
    saved = f"{other:,} is expected to save {gain:.0f} % of the time"
    if gain <= 5.0:
        return [f"{stays}: {saved}, and a move must save more than 5 %"]
    risk = f"{100.0 * decision.probability_worse:.0f} %"
    return [f"{stays}: {saved}, but is more than 10 % slower with probability {risk}"]


def _source(sentence: str) -> str:
    if "critical batch size" in sentence or "noise scale" in sentence:
        return "noise-scale"
    return "throughput" if "machine" in sentence or "timing" in sentence else ""


def _lr_reasons(composer: Composer, batch_size: int) -> list[Reason]:
    """Where the lr is from, what the other rules would give, which rule held."""
    request, pilot_size = composer.request, composer.pilot_size
    pilot_lr, lr = composer.pilot_lr(pilot_size), composer.lr_at(batch_size)
    measured = composer.measurements.get("lr-range")
    known = measured is not None and measured.estimates["max_lr"].value is not None
    untried = composer.untried_lr(pilot_size)
    origin = f"the range test at batch size {pilot_size:,} gives {untried:.3g}"
    if not known:
        origin = f"the range test gave none, so the present lr was carried: {untried:.3g} at "
        origin += f"batch size {pilot_size:,}"
    if pilot_lr < 0.99 * untried:
        origin += f", where the pilot diverged, so {pilot_lr:.3g} was taken"
    posterior = composer.posterior
    critical = weighted_quantile(posterior.critical_batch_size, posterior.weights, [0.5])[0]
    carried = ""
    if batch_size != pilot_size:
        alpha = default_alpha(request.recipe.optimizer.name)
        carried = (
            f"; carried to {batch_size:,} by lr ~ (1 + {critical:.3g} / B)^-{alpha:g} "
            f"(McCandlish et al. 2018){_per_example(request.recipe)}: {lr:.3g}"
        )
    if composer.has_branch(batch_size):
        carried = f"; of the branches at {batch_size:,} that with {lr:.3g} ended best"
    found = [Reason(name="lr", sentence=origin + carried, measurement="lr-range")]
    if request.recipe.loss.reduction == "sum":  # the other rules are about a mean
        return found
    edge = measured.estimates["edge"].value if measured is not None else None
    rows = lr_table(
        pilot_lr, pilot_size, sorted({batch_size, request.present_batch_size, pilot_size}),
        num_examples=request.num_examples, noise_scale=critical, edge=edge,
        alpha=default_alpha(request.recipe.optimizer.name),
    )  # fmt: skip
    return found + _linear(rows, request.num_examples) + _rule_check(composer)


def _per_example(recipe: Recipe) -> str:
    is_per_example = recipe.loss.reduction == "sum" and recipe.optimizer.name in ("sgd", "sgdw")
    return ", divided by B as the loss is summed" if is_per_example else ""


def _linear(rows: list[LRRow], num_examples: int) -> list[Reason]:
    """What the linear rule would give for the whole set as one batch, and why it is refused."""
    linear = [row for row in rows if row.rule == "linear" and row.batch_size == num_examples]
    if not linear or not linear[0].refused:
        return []
    sentence = f"the linear rule is not used: at the full batch it would give {linear[0].refused}"
    return [Reason(name="lr-rule", sentence=sentence, measurement="lr-range")]


def _rule_check(composer: Composer) -> list[Reason]:
    """Which rule the best branches' learning rates agree with."""
    arms = composer.measurements.get("branches")
    measured = composer.measurements.get("lr-range")
    top = None if measured is None else measured.estimates["max_lr"]
    if arms is None or top is None or top.value is None:
        return []
    size = composer.decision.choice.batch_size
    flags = arms.samples.get("preconditioned", (0.0,) * len(arms.samples["lr"]))
    rows = zip(arms.samples["batch_size"], arms.samples["lr"], flags, strict=True)
    tried = sorted({lr for b, lr, flag in rows if int(b) == size and not flag})
    if len(tried) < 3 or size == composer.pilot_size:
        return []
    best = composer.lr_at(size)
    points = [
        (composer.pilot_size, max(top.low, 0.1 * top.value), top.value, top.high),
        (size, best / math.sqrt(2.0), best, best * math.sqrt(2.0)),
    ]
    check = rule_that_held(points)
    return [Reason(name="lr-rule", sentence=check.verdict, measurement="branches")]


def _schedule_reason(composer: Composer, batch_size: int) -> Reason:
    predictions = composer.predictions
    choice = schedule_of(composer.request, batch_size, predictions, composer.pilot)
    return Reason(name="schedule", sentence=f"{choice.kind}: {choice.reason}")


def _decay_reason(composer: Composer, recipe: Recipe) -> list[Reason]:
    before = getattr(composer.request.recipe.optimizer, "weight_decay", 0.0)
    after = getattr(recipe.optimizer, "weight_decay", 0.0)
    if before == after:
        return []
    sentence = (
        f"weight decay {after:.3g} for {before:.3g}: what it shrinks the weights by for each "
        f"example, lr x decay / batch size, is kept"
    )
    return [Reason(name="weight-decay", sentence=sentence)]


def would_change(composer: Composer, decision: Decision) -> list[str]:
    """What would change the advice.

    Args:
        composer: of the plan.
        decision: about the batch size.
    """
    posterior, size = composer.posterior, composer.batch_size
    critical = weighted_quantile(posterior.critical_batch_size, posterior.weights, [0.5])[0]
    half = composer.time_model.half_batch_size
    found = [
        f"a critical batch size 4 times as large ({4 * critical:,.0f}; harder targets and later "
        f"phases have larger ones) would move the best size about twice as high",
        "another optimizer, another lr or more augmentation: the noise scale belongs to them",
    ]
    if math.isfinite(half):
        found.append(
            f"a machine that needs larger batches (here half of its speed is reached at "
            f"{half:,.0f} examples): a GPU moves the best size up"
        )
    if composer.request.ranks == 1:
        found.append("more ranks: measure under torchrun, the price list then holds them")
    shares = decision.shares_of_seconds
    if shares:
        name = max(shares, key=shares.__getitem__)
        found.append(f"the time to the target is unsure mostly because of the {name}")
    if size == decision.present_batch_size and decision.expected_gain > 0.0:
        found.append(
            f"a clearer measurement: {decision.choice.batch_size:,} looks better than the present "
            f"{size:,}, but not by enough"
        )
    return found + _other_preconditioner(composer)


def _other_preconditioner(composer: Composer) -> list[str]:
    found = composer.preconditioner
    if found is not None and not found.recommended and found.probability > 1.0 - SURE:
        return ["longer branches: K-FAC may be faster, but they are not sure enough of it"]
    if "branches" not in composer.measurements and may_precondition(composer.request.recipe):
        return ["a longer run: K-FAC is tried beside the optimizer where branches are trained"]
    return []
