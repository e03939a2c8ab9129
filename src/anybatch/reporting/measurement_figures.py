"""Pictures of measurements: an LR range test, and estimates with their intervals."""

from __future__ import annotations

import math
from typing import Any

from anybatch.drawing import draw_estimates
from anybatch.drawings.lr_range import draw_lr_metric, draw_lr_probes, draw_lr_range
from anybatch.drawings.table import DRAWINGS
from anybatch.measurement import Measurement
from anybatch.reporting.figures import (
    INCH,
    SIZE,
    Picture,
    frame_of,
    lay_out,
    own_style,
    points_of,
)
from anybatch.reporting.summary import number_text

__all__ = ["measurement_picture"]

_PANEL_HEIGHT = 3.2  # inches


def measurement_picture(measurement: Measurement, name: str) -> Picture | None:
    """The picture of a measurement; None where it has nothing to draw."""
    if measurement.kind == "lr-range" and measurement.samples.get("lr"):
        return _lr_range_picture(measurement, name)
    if measurement.kind in DRAWINGS and all(measurement.samples.values()):
        return _own_picture(measurement, name)
    spans = measurement.measured.spans
    known = [name for name, span in spans.items() if span.value is not None]
    units = {measurement.estimates[found].unit for found in known}
    if len(units) != 1:
        return None  # rows of different units have no axis in common
    from matplotlib.figure import Figure

    with own_style():
        size = (SIZE[0], 0.9 + 0.35 * len(known))
        figure = Figure(figsize=size, dpi=INCH, layout="constrained")
        ax = figure.add_subplot()
        draw_estimates(ax, spans)
        ax.set_xlabel(units.pop())
        lay_out(figure)
    told = "; ".join(f"{found} {measurement.estimates[found]}" for found in known)
    title = f"{measurement.kind}: estimates"
    return Picture(name=name, title=title, caption=f"Dots with intervals: {told}.", figure=figure)


def _own_picture(measurement: Measurement, name: str) -> Picture:
    """The panels of its kind below each other."""
    from matplotlib.figure import Figure

    drawing, measured = DRAWINGS[measurement.kind], measurement.measured
    with own_style():
        size = (SIZE[0], _PANEL_HEIGHT * len(drawing.panels))
        figure = Figure(figsize=size, dpi=INCH, layout="constrained")
        axes = figure.subplots(len(drawing.panels), 1, squeeze=False)[:, 0]
        for panel, ax in zip(drawing.panels, axes, strict=True):
            panel(ax, measured)
        lay_out(figure)
    return Picture(name=name, title=drawing.title, caption=drawing.caption(measured), figure=figure)


def _lr_range_picture(measurement: Measurement, name: str) -> Picture:
    from matplotlib.figure import Figure

    samples = measurement.samples
    has_probes = 1.0 in samples["stage"]
    has_metric = any(map(math.isfinite, samples.get("metric", ())))
    num_below = has_probes + has_metric
    with own_style():
        figure = Figure(figsize=(7.0, 3.6 + 1.3 * num_below), dpi=INCH, layout="constrained")
        ratios = (2.6, *[1.0] * num_below)
        ax, *below = figure.subplots(
            len(ratios), 1, height_ratios=ratios, sharex=True, squeeze=False
        )[:, 0]
        above = draw_lr_range(ax, samples, measurement.fitted, measurement.measured.spans)
        limits = [ax.get_xlim()]
        if has_metric:
            metric_name = measurement.settings.get("metric_name") or "metric"
            draw_lr_metric(below[0], samples, str(metric_name))
        num_probes = draw_lr_probes(below[-1], samples) if has_probes else 0
        limits += [panel.get_xlim() for panel in below]
        ax.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        for panel in (ax, *below)[:-1]:
            panel.set_xlabel("")
        lay_out(figure)
        frame = frame_of(figure, ax, "lr", _ramp_points(measurement))
    title = "Loss against learning rate"
    caption = _lr_range_caption(measurement, above, num_probes)
    return Picture(name=name, title=title, caption=caption, figure=figure, frames=(frame,))


def _ramp_points(measurement: Measurement) -> list[dict[str, Any]]:
    """The fitted curve, and the losses of each ramp."""
    samples, fitted = measurement.samples, measurement.fitted
    found = []
    if fitted.get("lr"):
        found.append(points_of("fitted", 0, fitted["lr"], fitted["loss"]))
    ramps: dict[tuple[float, float], tuple[list[float], list[float]]] = {}
    columns = (samples[name] for name in ("stage", "repeat", "series", "lr", "loss"))
    for stage, repeat, series, lr, loss in zip(*columns, strict=True):
        if stage == 0.0:
            lrs, losses = ramps.setdefault((repeat, series), ([], []))
            lrs.append(lr)
            losses.append(loss)
    for number, (lrs, losses) in enumerate(ramps.values(), start=1):
        label = "loss" if len(ramps) == 1 else f"loss, ramp {number}"
        found.append(points_of(label, -1, lrs, losses))
    return found


def _lr_range_caption(measurement: Measurement, above: int, num_probes: int) -> str:
    stages, losses = measurement.samples["stage"], measurement.samples["loss"]
    ramp = [loss for stage, loss in zip(stages, losses, strict=True) if stage == 0.0]
    gaps = sum(not math.isfinite(loss) for loss in ramp)
    told = [
        f"{name} {number_text(estimate.value)}"
        for name, estimate in measurement.estimates.items()
        if estimate.value is not None
    ]
    unknown = [name for name, e in measurement.estimates.items() if e.value is None]
    sentences = [
        f"Training loss of {len(ramp):,} updates while the learning rate rises (dots)"
        + (", with the fitted curve." if measurement.fitted.get("lr") else "."),
        f"{', '.join(told)}." if told else "",
        f"Not known: {', '.join(unknown)}." if unknown else "",
        f"{gaps} losses are not finite (crosses at the bottom)." if gaps else "",
        f"{above} losses lie above the frame (triangles)." if above else "",
        f"{num_probes} short trainings at a constant learning rate, below: the mean of the last "
        "third of their losses."
        if num_probes
        else "",
    ]
    return " ".join(filter(None, sentences))
