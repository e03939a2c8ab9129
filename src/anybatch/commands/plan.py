"""`anybatch plan` and `anybatch explain`: make a plan, and show all that one says."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.measurement import Estimate
from anybatch.plan import PLAN_FILE, Plan, Price
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.records import plain
from anybatch.run import Run

if TYPE_CHECKING:
    from anybatch.options.plan import Explain, MakePlan

__all__ = ["explain", "make", "plan_of"]

_SHOWN_REASONS = ("batch-size", "lr", "schedule", "averaging")
_MOST_ROWS = 14
_PRICED_FROM = "trained from the first update on, each size with its own best lr; 80 % intervals"


def make(options: MakePlan) -> int:
    """Carry out `anybatch plan` and return its exit code: 1 where the target may not be reached.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.planning.procedure import make_plan
    from anybatch.task import load_task
    from anybatch.training.loop import default_out
    from anybatch.world import World

    budget = _share(options.budget)
    recipe = load_recipe(options.recipe or recipe_name_for(options.task), options.set)
    task = load_task(options.task, data=options.data, image_size=recipe.image_size)
    world = World.from_environment(recipe.compute.device)
    out: Path | None = None
    try:
        out = options.out or world.from_first(default_out(f"{task.name}-plan"))
        plan = make_plan(
            task,
            recipe,
            target=options.target,
            budget=budget,
            out=out,
            progress=not options.json,
        )
        if world.is_first:
            _say(plan, options)
    except (KeyboardInterrupt, SystemExit):  # a signal; what was known has been written
        if world.is_first and out is not None and (out / PLAN_FILE).is_file():
            _say(plan_of(out)[1], options)
        raise
    finally:
        world.close(together=False)
    return ExitCode.OK if plan.predictions["seconds"].value is not None else 1


def _share(text: str) -> float:
    """A share written as "5%" or "0.05"."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) * (0.01 if number != text.strip() else 1.0)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise InputError("--budget", 'must be a share in (0, 1], like "5%" or 0.05', text)
    return share


def _say(plan: Plan, options: MakePlan) -> None:
    if options.json:
        show(json.dumps(plain({"plan": plan.folder, **plan.to_dict()})))
        return
    path = Path(plan.folder) / PLAN_FILE
    lines = [*plan.lines(), *_why(plan, _SHOWN_REASONS)]
    lines += [f"! {finding}" for finding in plan.findings]
    lines += [_cost(plan), f"plan: {path}"]
    data = f" --data {shlex.quote(str(options.data))}" if options.data else ""
    quoted = shlex.quote(str(path))
    lines.append(f"next: anybatch train {shlex.quote(options.task)}{data} --plan {quoted}")
    lines.append(f"more: anybatch explain {quoted}")
    show("\n".join(lines))


def _why(plan: Plan, names: tuple[str, ...]) -> list[str]:
    """The first reason of each kind."""
    firsts = {reason.name: reason for reason in reversed(plan.reasons)}
    return [f"why: {firsts[name].sentence}" for name in names if name in firsts]


def _cost(plan: Plan) -> str:
    stages = {name: seconds for name, seconds in plan.cost.items() if name != "pilot"}
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    told = f"cost: {sum(stages.values()):.1f} s of measuring ({plan.procedure} procedure: {parts})"
    if "pilot" not in plan.cost:
        return told
    return f"{told}; {plan.cost['pilot']:.1f} s of pilot, which is the beginning of the run"


def plan_of(path: Path) -> tuple[Run, Plan]:
    """A plan's folder and the plan, from a `plan.json` or the folder.

    Raises:
        InputError: there is none.
    """
    folder = path.parent if path.name == PLAN_FILE else path
    if not (folder / PLAN_FILE).is_file():
        raise InputError("plan", f"must be a folder with a {PLAN_FILE}", str(path))
    run = Run(folder)
    plan = run.plan
    assert plan is not None
    return run, plan


def explain(options: Explain) -> int:
    """Print all that a plan says; what it says makes no difference to the exit code.

    Raises:
        InputError: no plan, or a damaged one.
    """
    run, plan = plan_of(options.plan)
    same = _is_replayed(run, plan) if options.replay else None
    if options.json:
        values = {"plan": plan.folder, **plan.to_dict()}
        show(json.dumps(plain(values | ({} if same is None else {"replayed": same}))))
        return ExitCode.OK if same is not False else 1
    lines = [*plan.lines(), "", "why"]
    lines += [f"  {reason.name}: {reason.sentence}" for reason in plan.reasons]
    lines += ["", "what would change it", *(f"  {sentence}" for sentence in plan.would_change)]
    lines += ["", _price_table(plan), _PRICED_FROM, "", _predictions(plan), ""]
    lines += [f"! {finding}" for finding in plan.findings]
    lines.append(_cost(plan))
    if same is not None:
        lines.append(
            "computed again from the raw samples: the same plan"
            if same
            else "computed again from the raw samples: ANOTHER plan (another version, or ledger)"
        )
    show("\n".join(lines))
    return ExitCode.OK if same is not False else 1


def _is_replayed(run: Run, plan: Plan) -> bool:
    """Whether the same plan follows from the raw samples, without timing or training anything.

    Where the pilot stands is not compared: a winning branch has trained on from it.
    """
    from anybatch.planning.compose import Composer

    composer = Composer(plan.request, run.measurements(), interval_factor=plan.interval_factor)
    again = composer.plan(procedure=plan.procedure, cost=plan.cost, partial=plan.partial)
    return replace(again, pilot=plan.pilot) == plan


def _price_table(plan: Plan) -> str:
    prices = _thinned([price for price in plan.prices if price.ranks == plan.request.ranks], plan)
    prices += [price for price in plan.prices if price.ranks != plan.request.ranks
               and price.batch_size in {p.batch_size for p in prices}]  # fmt: skip
    rows = [
        [
            f"{price.batch_size:,}" + _mark(price, plan),
            str(price.ranks),
            _cell(price.updates),
            _cell(price.seconds),
            _cell(price.device_hours),
            "yes" if price.near_optimal else "",
        ]
        for price in prices
    ]
    head = ["batch size", "ranks", "updates", "seconds", "device-hours", "within 5 %"]
    return table(head, rows)


def _thinned(prices: list[Price], plan: Plan) -> list[Price]:
    """At most so many rows, those of the plan and of the present choice among them."""
    step = max(1, -(-len(prices) // _MOST_ROWS))
    own = {plan.batch_size, plan.request.present_batch_size}
    return [p for n, p in enumerate(prices) if n % step == 0 or p.batch_size in own]


def _mark(price: Price, plan: Plan) -> str:
    is_plan = price.batch_size == plan.batch_size
    is_present = price.batch_size == plan.request.present_batch_size
    return " (plan, present)" * (is_plan and is_present) or (
        " (plan)" * is_plan or " (present)" * is_present
    )


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return str(estimate) if math.isfinite(estimate.low) else "not known"
    value, low, high = (_number(n) for n in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _number(value: float) -> str:
    """Three digits at least, and no exponent in front of the point."""
    if not math.isfinite(value):
        return "without end"
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def _predictions(plan: Plan) -> str:
    rows = [
        [name, _cell(estimate), estimate.unit, f"{100 * estimate.level:.0f} %"]
        for name, estimate in plan.predictions.items()
    ]
    return table(["prediction", "value", "unit", "interval"], rows)
