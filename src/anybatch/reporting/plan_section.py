"""What a page says of a plan: its picture, prices, reasons, what would change it, its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from anybatch.plan import Plan, Price, Reason
from anybatch.recipe_file import difference
from anybatch.reporting.figures import Picture
from anybatch.reporting.plan_figures import plan_picture
from anybatch.reporting.settings import setting_text
from anybatch.reporting.sources import Subject
from anybatch.reporting.summary import Table, estimate_text, number_text

__all__ = ["PlanSection", "ToldReason", "plan_sections", "plan_tiles", "price_table"]

_MOST_ROWS = 14


class ToldReason(NamedTuple):
    """A reason, and the id of the figure of the measurement that it rests on; "" without one."""

    name: str
    sentence: str
    measurement: str
    figure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSection:
    """A plan as a page shows it.

    Attributes:
        label: of its folder, or of the first run that follows it.
        picture: seconds against batch size.
        prices: what batch sizes and ranks cost.
        changes: fields of the recipe that the plan changes.
        reasons: for each decision.
        would_change: sentences.
        cost: seconds by stage; None where the plan's folder is not on the page.
    """

    label: str
    picture: Picture
    prices: Table
    changes: Table
    reasons: tuple[ToldReason, ...]
    would_change: tuple[str, ...]
    cost: Table | None


def plan_sections(
    subjects: Sequence[Subject], figures: Mapping[tuple[str, str], str]
) -> list[PlanSection]:
    """One section for each different plan, with what the runs that follow it took.

    Args:
        subjects: of the page.
        figures: ids of the measurements' figures by (label of the subject, measurement's name).
    """
    plans: list[tuple[Plan, list[Subject]]] = []
    for subject in subjects:
        if subject.plan is None:
            continue
        known = next((own for plan, own in plans if plan == subject.plan), None)
        if known is None:
            plans.append((subject.plan, [subject]))
        else:
            known.append(subject)
    return [
        _section(plan, own, figures, f"plan-{number}" if number else "plan")
        for number, (plan, own) in enumerate(plans)
    ]


def _section(
    plan: Plan, subjects: Sequence[Subject], figures: Mapping[tuple[str, str], str], name: str
) -> PlanSection:
    holder = next((subject for subject in subjects if subject.is_plan), None)
    label = (holder or subjects[0]).label
    outcomes = [found for subject in subjects if (found := subject.outcome) is not None]
    own = {kind: figure for (owner, kind), figure in figures.items() if owner == label}
    return PlanSection(
        label=label,
        picture=plan_picture(plan, outcomes, name),
        prices=price_table(plan),
        changes=_changes(plan),
        reasons=tuple(_told(reason, own if holder is not None else {}) for reason in plan.reasons),
        would_change=plan.would_change,
        cost=_cost(plan) if holder is not None and plan.cost else None,
    )


def _told(reason: Reason, figures: Mapping[str, str]) -> ToldReason:
    """With the figure of its measurement: of several of a kind, the last."""
    kind = reason.measurement
    names = [name for name in figures if kind and (name == kind or name.startswith(f"{kind}-"))]
    figure = figures[max(names)] if names else ""
    return ToldReason(reason.name, reason.sentence, kind, figure)


def plan_tiles(plan: Plan) -> list[tuple[str, str]]:
    """The few numbers of a plan that are shown large, their intervals beside their names."""
    near = plan.near_optimal
    around = f" ({near[0]:,} to {near[-1]:,} cost at most 5 % more)" if len(near) > 1 else ""
    found = [(f"batch size{around}", f"{plan.batch_size:,}")]
    for name in ("lr", "updates", "seconds"):
        estimate = plan.predictions.get(name)
        if estimate is not None and estimate.value is not None:
            value, _, ends = estimate_text(estimate, unit=False).partition(" ")
            to = "" if name == "lr" else f" to {plan.request.target}"
            told = f"{name}{to} {ends.removesuffix(')')}, {100 * estimate.level:.0f} %)"
            found.append((told, value))
    return found


# --- tables --------------------------------------------------------------------------------------


def price_table(plan: Plan) -> Table:
    """Batch sizes and ranks with what they cost to the target; the flat region is shaded.

    At most some fourteen sizes: among them the plan's, the present one, and the ends of the flat
    region.

    Args:
        plan: whose prices.
    """
    shown = _shown_sizes(plan)
    own = plan.request.ranks
    kept = [price for price in plan.prices if price.batch_size in shown]
    prices = sorted(kept, key=lambda price: (price.ranks != own, price.ranks, price.batch_size))
    several = {price.ranks for price in plan.prices} != {1}
    rows = tuple(_price_row(price, plan, several) for price in prices)
    flat = frozenset(number for number, price in enumerate(prices) if price.near_optimal)
    head = ["batch size", *["ranks"] * several, "updates", "seconds", "device-hours", "within 5 %"]
    level = next((f"{100 * price.seconds.level:.0f} %" for price in prices), "80 %")
    listed = len({price.batch_size for price in plan.prices})
    caption = (
        f"To {plan.request.target}, each size with its own best learning rate and from the first "
        f"update on: median and {level} interval. Shaded: within 5 % of the least expected seconds "
        "on as many ranks."
    )
    if len(shown) < listed:
        caption += f" {len(shown)} of {listed} sizes are shown."
    return Table(head=tuple(head), rows=rows, caption=caption, shaded=flat)


def _shown_sizes(plan: Plan) -> set[int]:
    """Every so many, those that matter in any case."""
    sizes = [price.batch_size for price in plan.prices if price.ranks == plan.request.ranks]
    step = max(1, -(-len(sizes) // _MOST_ROWS))
    kept = {plan.batch_size, plan.request.present_batch_size}
    kept.update(plan.near_optimal[:1], plan.near_optimal[-1:])
    return {size for number, size in enumerate(sizes) if number % step == 0 or size in kept}


def _price_row(price: Price, plan: Plan, several: bool) -> tuple[str, ...]:
    choices = {"plan": plan.batch_size, "present": plan.request.present_batch_size}
    marks = [name for name, size in choices.items() if size == price.batch_size]
    flat = "yes" if price.near_optimal else ""
    return (
        f"{price.batch_size:,}" + (f" ({', '.join(marks)})" if marks else ""),
        *[str(price.ranks)] * several,
        *(estimate_text(estimate, unit=False).partition(":")[0]  # the reason is told above
          for estimate in (price.updates, price.seconds, price.device_hours)),
        flat if price.fits else "does not fit",
    )  # fmt: skip


def _changes(plan: Plan) -> Table:
    """Fields in which the planned recipe differs from the present one."""
    rows = tuple(
        (path, *("-" if value is None else setting_text(value) for value in (before, after)))
        for path, before, after in difference(plan.request.recipe, plan.recipe)
    )
    return Table(head=("field", "present", "plan"), rows=rows)


def _cost(plan: Plan) -> Table:
    """Seconds of each stage; the pilot's are part of the training."""
    rows = tuple(
        (
            stage,
            number_text(float(f"{seconds:.3g}")),
            "training" if stage == "pilot" else "measuring",
        )
        for stage, seconds in plan.cost.items()
    )
    spent = sum(seconds for stage, seconds in plan.cost.items() if stage != "pilot")
    caption = (
        f"{number_text(float(f'{spent:.3g}'))} s of measuring by the {plan.procedure} procedure; "
        "the pilot is the beginning of the run."
    )
    return Table(head=("stage", "seconds", "what"), rows=rows, caption=caption)
