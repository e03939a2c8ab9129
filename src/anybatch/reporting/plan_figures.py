"""Pictures of a plan: seconds against batch size, and how the pilot's learning curve goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anybatch.drawing import Span
from anybatch.drawings.pilot import Forecast, draw_evaluations, draw_forecast, draw_losses
from anybatch.drawings.plan import ActualTime, PlannedTimes, draw_plan
from anybatch.drawings.table import DRAWINGS
from anybatch.measurement import Measurement
from anybatch.plan import Plan, PlanOutcome
from anybatch.recipe import Target
from anybatch.reporting.figures import (
    INCH,
    SIZE,
    Picture,
    frame_of,
    lay_out,
    own_style,
    points_of,
)
from anybatch.reporting.summary import estimate_text, number_text

__all__ = ["pilot_picture", "plan_picture"]

_SIZE = (7.0, 4.0)
_PANEL_HEIGHT = 3.2  # inches


def plan_picture(plan: Plan, outcomes: Sequence[PlanOutcome], name: str) -> Picture:
    """The picture of a plan: predicted seconds against batch size, the choices, what runs took.

    Args:
        plan: to draw.
        outcomes: of runs that follow it.
        name: of the picture, for files and ids.
    """
    from matplotlib.figure import Figure

    actual = tuple(ActualTime(plan.batch_size, o.seconds, o.reached) for o in outcomes)
    every = plan.times()._replace(actual=actual)
    times = every.shown()
    with own_style():
        figure = Figure(figsize=_SIZE, dpi=INCH, layout="constrained")
        ax = figure.add_subplot()
        draw_plan(ax, times)
        lay_out(figure)
        points = [
            points_of(label, colour, times.batch_sizes, values)
            for label, colour, values in (
                ("seconds", 0, times.seconds),
                ("from", -1, times.low),
                ("to", -1, times.high),
            )
            if values
        ]
        frame = frame_of(figure, ax, "batch size", points)
    title = f"Predicted seconds to {plan.request.target} against batch size"
    caption = _plan_caption(plan, times, outcomes)
    missing = len(every.batch_sizes) - len(times.batch_sizes)
    if missing:
        sizes = "1 size takes" if missing == 1 else f"{missing} sizes take"
        caption += f" {sizes} over 10 times the least seconds and stand in the price list alone."
    return Picture(name=name, title=title, caption=caption, figure=figure, frames=(frame,))


def _plan_caption(plan: Plan, times: PlannedTimes, outcomes: Sequence[PlanOutcome]) -> str:
    seconds = plan.predictions.get("seconds")
    present = plan.predictions.get("seconds_of_present")
    known = seconds is not None and math.isfinite(seconds.low)
    bar = (", its pilot included (bar)" if plan.pilot else " (bar)") if known else ""
    level = next((f"{100 * p.seconds.level:.0f} %" for p in plan.prices), "80 %")
    sentences = [
        f"Median (line) and {level} interval (band) for {len(times.batch_sizes)} batch sizes, each "
        "with its own best learning rate and trained from the first update on."
        if times.batch_sizes
        else "No batch size has a prediction.",
        "" if seconds is None else f"Plan, {times.chosen:,}: {estimate_text(seconds)}{bar}.",
        "" if present is None or times.present == times.chosen
        else f"Present, {times.present:,}: {estimate_text(present)}.",
        _flat_words(times),
        _endless_words(times),
        *(_taken_words(outcome) for outcome in outcomes),
    ]  # fmt: skip
    return " ".join(filter(None, sentences))


def _endless_words(times: PlannedTimes) -> str:
    endless, unknown = sum(map(math.isinf, times.high)), sum(map(math.isnan, times.seconds))
    if not endless:
        return ""
    counted = "1 interval has" if endless == 1 else f"{endless} intervals have"
    told = f"{counted} no upper end (band to the upper edge)"
    return f"{told}, {unknown} no median (no line)." if unknown else f"{told}."


def _flat_words(times: PlannedTimes) -> str:
    if not times.near_optimal:
        return ""
    low, high = times.near_optimal
    return (
        f"Shaded: {low:,} to {high:,} cost at most 5 % more than the least."
        if high > low
        else f"Shaded: {low:,}; every other size costs over 5 % more."
    )


def _taken_words(outcome: PlanOutcome) -> str:
    took = number_text(float(f"{outcome.seconds:.3g}"))
    if not outcome.reached:
        return f"A run missed the target in {took} s (triangle)."
    return f"A run took {took} s (diamond)."


def pilot_picture(measurement: Measurement, plan: Plan, name: str) -> Picture | None:
    """The pilot's learning curve with the target and when it is expected; None without looks.

    The interval is that of the price list at the pilot's batch size.

    Args:
        measurement: of kind "pilot".
        plan: that it belongs to.
        name: of the picture, for files and ids.
    """
    if not all(measurement.samples.values()):
        return None
    from matplotlib.figure import Figure

    measured, drawing = measurement.measured, DRAWINGS["pilot"]
    target = Target.parse(plan.request.target)
    forecast = Forecast(plan.request.target, target.value, _needed(measurement, plan))
    on_loss = target.quantity == "loss"
    with own_style():
        figure = Figure(figsize=(SIZE[0], 2 * _PANEL_HEIGHT), dpi=INCH, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        draw_evaluations(above, measured)
        draw_losses(below, measured)
        last = measured.samples["loss" if on_loss else "metric"][-1]
        place = measured.samples["update"][-1], last
        draw_forecast(below if on_loss else above, place, forecast)
        above.set_xlabel("")
        lay_out(figure)
    caption = f"{drawing.caption(measured)} {_forecast_words(forecast)}"
    return Picture(name=name, title=drawing.title, caption=caption, figure=figure)


def _needed(measurement: Measurement, plan: Plan) -> Span:
    """Updates to the target at the pilot's batch size, as the price list has them."""
    size, ranks = int(measurement.settings["batch_size"]), plan.request.ranks
    for price in plan.prices:
        if (price.batch_size, price.ranks) == (size, ranks):
            return Span(price.updates.value, price.updates.low, price.updates.high)
    return Span(None)


def _forecast_words(forecast: Forecast) -> str:
    needed = forecast.updates
    if needed.value is None:
        return f"When {forecast.target} (dashed) is reached is not foreseen."
    low, high = (
        number_text(float(f"{end:.3g}")) if math.isfinite(end) else "without end"
        for end in (needed.low, needed.high)
    )
    return (
        f"At this batch size {forecast.target} (dashed) is expected after "
        f"{number_text(float(f'{needed.value:.3g}'))} updates ({low} to {high}, the bar)."
    )
