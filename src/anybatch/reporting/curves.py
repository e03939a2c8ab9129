"""Curves of runs as series of numbers: which panels there are, what each shows, in words too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from anybatch.records import EvalRecord, StepRecord
from anybatch.reporting.sources import Group, Subject
from anybatch.reporting.summary import number_text

__all__ = ["AXES", "AxisName", "Mark", "Panel", "Series", "panels", "series_caption", "thinned"]

AxisName: TypeAlias = Literal["updates", "examples", "seconds"]
AXES: tuple[AxisName, ...] = ("updates", "examples", "seconds")

_MOST_POINTS = 500
_MOST_TOLD = 4

_SETTINGS = {
    "lr": "learning rate",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "gradient_norm": "gradient norm",
    "clipped_share": "share of clipped updates",
    "block_gradient_norm": "gradient norm of a block",
    "damping": "damping",
}
_COUNTED = {"refreshes": "statistics measured", "inversions": "inverses made"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One quantity of one run along its way.

    Attributes:
        label: of the run, or of the quantity where there is one run.
        colour: number of its colour.
        style: as in `Line`.
        updates: done, one a point.
        examples: seen, one a point.
        seconds: of training, one a point.
        values: one a point; need not be finite.
        records: of the run, of which these points are some.
    """

    label: str
    colour: int
    style: Literal["line", "dashed", "dots"]
    updates: tuple[float, ...]
    examples: tuple[float, ...]
    seconds: tuple[float, ...]
    values: tuple[float, ...]
    records: int

    def along(self, axis: AxisName) -> tuple[float, ...]:
        """Positions on the axis."""
        return {"updates": self.updates, "examples": self.examples, "seconds": self.seconds}[axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something that happened: its places on the axes, what it was, whether a pilot's end."""

    updates: float
    examples: float
    seconds: float
    sentence: str
    is_pilot: bool = False

    def along(self, axis: AxisName) -> float:
        """Position on the axis."""
        return {"updates": self.updates, "examples": self.examples, "seconds": self.seconds}[axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture of curves.

    Attributes:
        name: for files and ids, with hyphens.
        title: of the picture.
        y_label: of its axis.
        series: what is drawn.
        marks: events to draw as vertical lines.
        constant: in words, where nothing changes and no picture is needed; else "".
        note: of its caption, after what the curves show.
    """

    name: str
    title: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    constant: str = ""
    note: str = ""


def thinned(values: Sequence[float], most: int = _MOST_POINTS) -> list[int]:
    """Indices of at most `most` points that keep every peak, in order.

    The points are cut into stretches of equal length; each keeps its lowest, its highest and its
    first value that is not finite. The first and the last point stay.

    Example:
        >>> thinned([1.0, 2.0, 3.0])
        [0, 1, 2]
        >>> thinned([0.0] * 1000 + [9.0] + [0.0] * 1000, most=11)
        [0, 667, 1000, 1334, 2000]
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    stretches = max(1, (most - 2) // 3)
    kept = {0, count - 1}
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        finite = [i for i in stretch if math.isfinite(values[i])]
        if finite:
            kept.add(min(finite, key=lambda i: values[i]))
            kept.add(max(finite, key=lambda i: values[i]))
        kept.update([i for i in stretch if not math.isfinite(values[i])][:1])
    return sorted(kept)


def panels(groups: Sequence[Group]) -> list[Panel]:
    """Every panel that the runs have records for: losses, metrics, settings, norms, refreshes."""
    coloured = _coloured(groups)
    made = _loss_panels(coloured) + _metric_panels(coloured)
    for name, words in _SETTINGS.items():
        series = _of_steps(coloured, _values_of(name))
        if len(coloured) == 1:
            series = [replace(item, label=words) for item in series]
        panel = Panel(name=name.replace("_", "-"), title=words.capitalize(), y_label=words,
                      series=tuple(series))  # fmt: skip
        if name in ("lr", "batch_size"):
            panel = replace(panel, marks=_marks(coloured, name))
        if series:
            made.append(replace(panel, constant=_constant(panel, coloured)))
    made += _refresh_panels(coloured)
    pilots = _pilot_marks(coloured)
    return [replace(panel, marks=panel.marks + pilots) for panel in made]


def _coloured(groups: Sequence[Group]) -> list[tuple[Subject, int]]:
    """Runs with the number of their colour: that of the group, or their own in a lone group."""
    groups = [g for g in groups if any(not s.is_measurement for s in g.subjects)]
    pairs = [
        (subject, number if len(groups) > 1 else place)
        for number, group in enumerate(groups)
        for place, subject in enumerate(group.subjects)
    ]
    return [(subject, colour) for subject, colour in pairs if not subject.is_measurement]


def _loss_panels(coloured: Sequence[tuple[Subject, int]]) -> list[Panel]:
    training = _of_steps(coloured, lambda record: record.loss)
    validation = _of_evals(coloured, "validation", lambda record: record.loss)
    if len(coloured) == 1:
        both = [replace(series, label="training") for series in training]
        both += [replace(series, label="validation", colour=1) for series in validation]
        if not both:
            return []
        return [Panel(name="loss", title="Loss", y_label="loss", series=tuple(both))]
    made = []
    for split, found in (("training", training), ("validation", validation)):
        if found:
            title = f"{split.capitalize()} loss"
            made.append(
                Panel(name=f"{split}-loss", title=title, y_label="loss", series=tuple(found))
            )
    return made


def _metric_panels(coloured: Sequence[tuple[Subject, int]]) -> list[Panel]:
    """One panel for each metric, since studies of different tasks may stand side by side."""
    names = dict.fromkeys(
        record.metric_name for subject, _ in coloured for record in subject.evals_of("validation")
    )
    made = []
    for number, name in enumerate(names):
        own = [
            (replace(s, evals=tuple(r for r in s.evals if r.metric_name == name)), colour)
            for s, colour in coloured
        ]
        series = _of_evals(own, "validation", lambda record: record.metric)
        if len(coloured) == 1:
            series = [replace(item, label=f"validation {name}", colour=1) for item in series]
        made.append(
            Panel(
                name=f"metric-{number}" if number else "metric",
                title=f"Validation {name}",
                y_label=name,
                series=tuple(series),
            )
        )
    return made


def _refresh_panels(coloured: Sequence[tuple[Subject, int]]) -> list[Panel]:
    """What a preconditioner has measured and inverted so far: one panel, of several runs two."""
    found = {name: _of_steps(coloured, _values_of(name)) for name in _COUNTED}
    if not found["refreshes"]:
        return []
    label = "all factors, so far"
    if len(coloured) == 1:
        both = [
            replace(series, label=words, colour=colour)
            for colour, (name, words) in enumerate(_COUNTED.items())
            for series in found[name]
        ]
        note = _saved(coloured[0][0])
        return [
            Panel(name="refreshes", title="Refreshes", y_label=label, series=tuple(both), note=note)
        ]
    told = [(s, _saved(s)) for s, _ in coloured]
    note = " ".join(f"{subject.label}: {saved}" for subject, saved in told if saved)
    return [
        Panel(
            name=name, title=words.capitalize(), y_label=label, series=tuple(found[name]), note=note
        )
        for name, words in _COUNTED.items()
    ]


def _saved(subject: Subject) -> str:
    """How many refreshes fewer than one of each factor in every update; "" of none."""
    last = next((r for r in reversed(subject.steps) if r.refreshes is not None), None)
    if last is None:
        return ""
    whole = (last.refreshes or 0) + (last.refreshes_saved or 0)
    return (
        f"Of {whole:,} measurements and inversions, all factors in every update, "
        f"{last.refreshes_saved or 0:,} and {last.inversions_saved or 0:,} were saved."
    )


def _values_of(name: str) -> Callable[[StepRecord], float | None]:
    def value(record: StepRecord) -> float | None:
        found: float | None = getattr(record, name)
        return found

    return value


def _of_steps(
    coloured: Sequence[tuple[Subject, int]], value: Callable[[StepRecord], float | None]
) -> list[Series]:
    made = []
    for subject, colour in coloured:
        records = [record for record in subject.steps if value(record) is not None]
        values = [float(value(record) or 0.0) for record in records]
        if records:
            made.append(_series(subject.label, colour, "line", records, values))
    return made


def _of_evals(
    coloured: Sequence[tuple[Subject, int]], split: str, value: Callable[[EvalRecord], float]
) -> list[Series]:
    made = []
    for subject, colour in coloured:
        records = subject.evals_of(split)
        if records:
            values = [value(record) for record in records]
            made.append(_series(subject.label, colour, "dots", records, values))
    return made


def _series(
    label: str,
    colour: int,
    style: Literal["line", "dashed", "dots"],
    records: Sequence[StepRecord] | Sequence[EvalRecord],
    values: Sequence[float],
) -> Series:
    kept = thinned(values)
    if len(kept) > 60 and style == "dots":
        style = "line"
    return Series(
        label=label,
        colour=colour,
        style=style,
        updates=tuple(float(records[i].update) for i in kept),
        examples=tuple(float(records[i].examples) for i in kept),
        seconds=tuple(records[i].seconds for i in kept),
        values=tuple(values[i] for i in kept),
        records=len(records),
    )


def _constant(panel: Panel, coloured: Sequence[tuple[Subject, int]]) -> str:
    """A sentence where no series changes; "" where one does, or where events are to be marked.

    The last update of an epoch, which is smaller than the others, is no change of the batch size.
    """
    moves = any(s.recipe.schedules.batch_size.name != "constant" or s.recipe.batch_control
                for s, _ in coloured)  # fmt: skip
    epoch_ends = panel.name == "batch-size" and not moves and not _changes_after_pilot(coloured)
    varies = any(len(set(series.values)) > 1 for series in panel.series)
    if panel.marks or panel.name == "gradient-norm" or (varies and not epoch_ends):
        return ""
    first = [max(series.values) for series in panel.series]
    if len(set(first)) == 1:
        tail = " (the last update of an epoch is smaller)" if varies else ""
        return f"{panel.y_label} {number_text(first[0])} throughout{tail}"
    told = ", ".join(
        f"{series.label} {number_text(value)}"
        for series, value in zip(panel.series, first, strict=True)
    )
    return f"{panel.y_label} the same throughout each run ({told})"


def _marks(coloured: Sequence[tuple[Subject, int]], setting: str) -> tuple[Mark, ...]:
    """Events that moved a setting, each at the seconds of the record that follows it."""
    alone = len(coloured) == 1
    return tuple(
        Mark(
            updates=event.update,
            examples=event.examples,
            seconds=next(
                (record.seconds for record in subject.steps if record.update >= event.update),
                subject.status.seconds,
            ),
            sentence=event.sentence if alone else f"{subject.label}: {event.sentence}",
        )
        for subject, _ in coloured
        for event in subject.events
        if event.name != "batch-size-looked-at"
        and (setting == "lr" or event.name == "batch-size-changed")
    )


def _changes_after_pilot(coloured: Sequence[tuple[Subject, int]]) -> bool:
    """Whether a run was begun by the pilot of its plan at another batch size."""
    return any(
        subject.plan is not None and subject.steps[0].batch_size != subject.plan.batch_size
        for subject, _ in coloured
        if subject.steps
    )


def _pilot_marks(coloured: Sequence[tuple[Subject, int]]) -> tuple[Mark, ...]:
    """Where the pilots ended that runs were begun by, one mark a place."""
    pilots = [subject.plan.pilot for subject, _ in coloured if subject.plan is not None]
    marks = [
        Mark(
            updates=pilot["updates"],
            examples=pilot["examples"],
            seconds=pilot["seconds"],
            sentence="the plan's pilot ended",
            is_pilot=True,
        )
        for pilot in pilots
        if pilot.get("updates")
    ]
    return tuple(dict.fromkeys(marks))


# --- in words ------------------------------------------------------------------------------------


def series_caption(panel: Panel) -> str:
    """What the curves show: first, last, lowest and highest value, and what was left out."""
    if len(panel.series) <= _MOST_TOLD:
        sentences = [_told(series) for series in panel.series]
    else:
        sentences = [_told_together(panel.series)]
    thin = [series for series in panel.series if len(series.values) < series.records]
    if thin:
        records, points = (sum(n) for n in zip(*((s.records, len(s.values)) for s in thin)))  # noqa: B905
        sentences.append(
            f"{records:,} records are drawn as {points:,} points; the lowest and the highest of "
            "each stretch are kept."
        )
    if any(not math.isfinite(value) for series in panel.series for value in series.values):
        sentences.append("Crosses at the bottom mark values that are not finite.")
    events = sum(not mark.is_pilot for mark in panel.marks)
    if events:
        counted = "1 event is" if events == 1 else f"{events} events are"
        sentences.append(f"{counted} marked by dotted lines.")
    pilots = [f"{mark.updates:,.0f}" for mark in panel.marks if mark.is_pilot]
    if pilots:
        sentences.append(
            f"The plan's pilot ended at the dashed line, update {' and '.join(pilots)}."
        )
    return " ".join([*sentences, *filter(None, [panel.note])])


def _told(series: Series) -> str:
    pairs = [
        (value, update)
        for value, update in zip(series.values, series.updates, strict=True)
        if math.isfinite(value)
    ]
    name = series.label
    if not pairs:
        counted = "1 record" if series.records == 1 else f"{series.records:,} records"
        return f"{name}: no finite value in {counted}."
    if len(pairs) == 1:
        text = f"{name}: {number_text(pairs[0][0])} at update {pairs[0][1]:,.0f}"
    else:
        ends = f"from {number_text(pairs[0][0])} to {number_text(pairs[-1][0])}"
        low, high = min(pairs), max(pairs)
        text = f"{name}: {ends}"
        if (low[0], high[0]) != (pairs[0][0], pairs[-1][0]):
            text += (
                f"; lowest {number_text(low[0])} at update {low[1]:,.0f}, "
                f"highest {number_text(high[0])} at update {high[1]:,.0f}"
            )
    gaps = [u for v, u in zip(series.values, series.updates, strict=True) if not math.isfinite(v)]
    return text + (f"; not finite from update {gaps[0]:,.0f}." if gaps else ".")


def _told_together(many: Sequence[Series]) -> str:
    last = [
        finite[-1]
        for series in many
        if (finite := [value for value in series.values if math.isfinite(value)])
    ]
    if not last:
        return f"{len(many)} runs without a finite value."
    return (
        f"{len(many)} runs, ending between {number_text(min(last))} and {number_text(max(last))}."
    )
