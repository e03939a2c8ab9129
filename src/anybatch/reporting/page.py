"""The report: runs in, one page out that needs neither network nor script to be read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from anybatch.drawing import COLOURS
from anybatch.errors import InputError
from anybatch.records import plain
from anybatch.reporting.batch_size_figures import batch_size_picture, batch_size_rows
from anybatch.reporting.curves import AXES, AxisName, Panel, panels
from anybatch.reporting.figures import (
    Picture,
    curve_picture,
    file_bytes,
    inline_svg,
)
from anybatch.reporting.measurement_figures import measurement_picture
from anybatch.reporting.plan_figures import pilot_picture
from anybatch.reporting.plan_section import PlanSection, plan_sections, plan_tiles
from anybatch.reporting.settings import (
    commands,
    environment_tables,
    recipe_differences,
    recipe_texts,
)
from anybatch.reporting.sources import Group, Source, Subject, read_groups, task_name
from anybatch.reporting.summary import (
    Table,
    arms_table,
    estimates_table,
    findings,
    number_text,
    runs_table,
    verdict,
)
from anybatch.run import new_folder, write_atomically
from anybatch.studies.batch_size_table import KIND, BatchSizeStudy

__all__ = ["FORMATS", "Format", "default_place", "write_report"]

Format: TypeAlias = Literal["html", "md", "png", "svg"]
FORMATS: tuple[Format, ...] = ("html", "md", "png", "svg")

_MOST_VERDICTS = 4


@dataclass(frozen=True, kw_only=True)
class Section:
    """A measurement of a run: its words, numbers and picture."""

    run: str
    kind: str
    table: Table
    settings: str
    picture: Picture | None


def write_report(
    runs: Sequence[Source],
    out: Path | str | None = None,
    *,
    format: Format = "html",
    title: str | None = None,
) -> Path:
    """Write one report about runs and studies, on the same axes.

    Args:
        runs: Runs, Studies, or their folders, or folders of runs.
        out: file of the page, or for "png" and "svg" the folder of the figures; None takes
            `report.html` (and so on) in the folder of the one run or study, or in the working
            directory for several.
        format: "html", one page that holds everything; "md", with the figures as SVG files
            beside it; "png" or "svg", the figures alone.
        title: of the page; None takes the tasks' names.

    Returns:
        What was written: the file, or the folder.

    Raises:
        InputError: there is no run, one is damaged, or the place cannot be written.
    """
    if format not in FORMATS:
        raise InputError("format", f"must be one of: {', '.join(FORMATS)}", format)
    groups = read_groups(runs)
    place = Path(out) if out is not None else default_place(runs, format)
    title = title or _title(groups)
    if format in ("png", "svg"):
        if place.exists() and not place.is_dir():
            raise InputError("out", "must be a folder for figures", str(place))
        return _write_pictures(groups, place, format)
    if place.is_dir():
        raise InputError("out", "must be a file", str(place), hint=str(place / f"report.{format}"))
    if not place.parent.is_dir():
        raise InputError("out", "must lie in a folder that exists", str(place))
    text = _html(groups, title) if format == "html" else _markdown(groups, title, place)
    write_atomically(place, lambda file: file.write(text.encode()))
    return place


def default_place(runs: Sequence[Source], format: Format) -> Path:
    """Where a report goes that is not told: into the one run's folder, else the working folder."""
    name = f"report.{format}" if format in ("html", "md") else "report-figures"
    if len(runs) != 1:
        return Path(name)
    only = runs[0]
    return (Path(only) if isinstance(only, str | Path) else only.path) / name


def _title(groups: Sequence[Group]) -> str:
    """The tasks, and the kinds of measurement where nothing was trained."""
    subjects = [subject for group in groups for subject in group.subjects]
    names = ", ".join(dict.fromkeys(map(task_name, subjects))) or "nothing begun"
    measured = [subject for subject in subjects if subject.is_measurement and not subject.is_plan]
    kinds = dict.fromkeys(kind for subject in measured for kind in subject.measurements)
    if any(subject.is_plan for subject in subjects):
        kinds = {"plan": None} | kinds
    if kinds and all(subject.is_measurement for subject in subjects):
        return f"{names}: {', '.join(kinds)}"
    trained = [subject for subject in subjects if not subject.is_measurement]
    told = [f"{len(trained)} runs"] if len(trained) > 1 else []
    if any(subject.is_plan for subject in subjects):
        told = ["plan", *(told or ["run"])]
    return f"{names}: {' and '.join(told)}" if told else names


# --- what is on the page -------------------------------------------------------------------------


def _content(groups: Sequence[Group], title: str) -> dict[str, Any]:
    """Everything that both templates show but the curves' pictures."""
    subjects = [subject for group in groups for subject in group.subjects]
    trained = [subject for subject in subjects if not subject.is_measurement]
    runs = runs_table(groups)
    told = [s for s in subjects if s.is_measurement or s.status.name != "finished"]
    told = subjects if len(subjects) <= _MOST_VERDICTS else told
    told.sort(key=lambda subject: subject.is_plan)  # what happened, then what was planned
    plans, sections = _plans_and_sections(groups)
    agreed, differing = environment_tables(groups)
    return {
        "title": title,
        "verdicts": [(subject, verdict(subject)) for subject in told],
        "not_begun": [group.label for group in groups if not group.subjects],
        "tiles": _tiles(subjects),
        "plans": plans,
        "arms": arms_table(groups) if len(trained) > 1 else None,
        "runs": runs if len(trained) > 1 else None,
        "findings": findings(groups),
        "sections": sections,
        "changed": recipe_differences([g for g in groups if g.subjects]),
        "recipes": recipe_texts(groups),
        "agreed": agreed,
        "differing": differing,
        "commands": [(subject.label, commands(subject)) for subject in subjects],
        "events": [(s.label, event) for s in trained for event in s.events],
        "several": len(subjects) > 1,
    }


def _tiles(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """The few numbers that are shown large: of a lone run, also beside its plan, or a lone plan."""
    runs = [subject for subject in subjects if not subject.is_plan]
    if len(subjects) == 1 and subjects[0].plan is not None and not runs:
        return plan_tiles(subjects[0].plan)
    if len(runs) != 1 or runs[0].is_measurement:
        return []
    subject, found = runs[0], []
    for split in ("test", "validation"):
        record = subject.last_eval(split)
        if record is not None:
            found.append((f"{split} {record.metric_name}", f"{record.metric:.4f}"))
    found.append(("seconds of training", number_text(float(f"{subject.status.seconds:.3g}"))))
    found.append(("updates", f"{subject.status.update:,}"))
    return found


def _sections(subjects: Sequence[Subject]) -> list[Section]:
    made: list[Section] = []
    for subject in subjects:
        for kind, measurement in subject.measurements.items():
            settings = ", ".join(
                f"{name} {value}" for name, value in measurement.settings.items()
                if isinstance(value, str | int | float)
            )  # fmt: skip
            name = f"measurement-{len(made)}"
            is_pilot = subject.is_plan and measurement.kind == "pilot"
            picture = (
                pilot_picture(measurement, subject.plan, name)
                if is_pilot and subject.plan is not None
                else measurement_picture(measurement, name)
            )
            table = estimates_table(measurement)
            made.append(
                Section(run=subject.label, kind=kind, table=table, settings=settings,
                        picture=picture)
            )  # fmt: skip
    return made


def _plans_and_sections(groups: Sequence[Group]) -> tuple[list[PlanSection], list[Section]]:
    """Of every plan, and of everything that was measured or studied."""
    subjects = [subject for group in groups for subject in group.subjects]
    sections = _study_sections(groups) + _sections(subjects)
    figures = {(s.run, s.kind): s.picture.name for s in sections if s.picture is not None}
    return plan_sections(subjects, figures), sections


def _measured_pictures(content: Mapping[str, Any]) -> list[Picture]:
    """Those of plans and sections."""
    told: list[PlanSection | Section] = [*content["plans"], *content["sections"]]
    return [section.picture for section in told if section.picture is not None]


def _study_sections(groups: Sequence[Group]) -> list[Section]:
    """What studies of batch sizes have found, one section each."""
    studies = {group.study.path: group.study for group in groups if group.study is not None}
    made = []
    for number, path in enumerate(p for p, s in studies.items() if s.about.get("kind") == KIND):
        study = BatchSizeStudy(path)
        picture = batch_size_picture(study, f"batch-size-{number}" if number else "batch-size")
        made.append(
            Section(run=path.resolve().name, kind="Batch sizes", table=batch_size_rows(study),
                    settings="", picture=picture)
        )  # fmt: skip
    return made


def _legend(groups: Sequence[Group]) -> list[tuple[int, str]]:
    """(number of the colour, label), as curves are coloured; nothing for one run."""
    trained = [g for g in groups if any(not s.is_measurement for s in g.subjects)]
    if len(trained) > 1:
        return [(number % len(COLOURS), group.label) for number, group in enumerate(trained)]
    subjects = [s for group in trained for s in group.subjects]
    if len(subjects) < 2:
        return []
    return [(number % len(COLOURS), subject.label) for number, subject in enumerate(subjects)]


def _own(panel: Panel) -> list[tuple[int, str]]:
    """A legend of the panel's own series, where there are several."""
    entries = [(series.colour, series.label) for series in panel.series]
    return entries if len(entries) > 1 else []


def _end(found: Sequence[Panel], axis: AxisName) -> float:
    """Where the longest run ends on an axis."""
    places = (place for panel in found for series in panel.series for place in series.along(axis))
    return max(filter(math.isfinite, places), default=0.0)


def _drawn(found: Sequence[Panel]) -> list[Panel]:
    return [panel for panel in found if not panel.constant]


# --- as HTML -------------------------------------------------------------------------------------


def _html(groups: Sequence[Group], title: str) -> str:
    from markupsafe import Markup

    found, legend = panels(groups), _legend(groups)
    content = _content(groups, title)
    curves: dict[AxisName, list[Picture]] = {
        axis: [
            curve_picture(panel, axis, end=_end(found, axis), legend=() if legend else _own(panel))
            for panel in _drawn(found)
        ]
        for axis in AXES
    }
    pictures = [picture for axis in AXES for picture in curves[axis]]
    pictures += _measured_pictures(content)
    svgs = {picture.name: Markup(inline_svg(picture)) for picture in pictures}
    frames = {picture.name: picture.frames for picture in pictures if picture.frames}
    template = _template("template.html", escaped=True)
    return str(
        template.render(
            **content,
            curves=curves,
            constants=[panel.constant for panel in found if panel.constant],
            legend=legend,
            svgs=svgs,
            frames=plain(frames),
        )
    )


def _template(name: str, *, escaped: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anybatch", "reporting"),
        autoescape=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(name)


# --- as Markdown and as files --------------------------------------------------------------------


def _markdown(groups: Sequence[Group], title: str, place: Path) -> str:
    folder = place.parent / f"{place.stem}-figures"
    content = _content(groups, title)
    pictures = _curve_pictures(groups)
    _save(folder, [*pictures, *_measured_pictures(content)], "svg")
    found = panels(groups)
    return str(
        _template("template.md", escaped=False).render(
            **content,
            curves=pictures,
            constants=[panel.constant for panel in found if panel.constant],
            folder=folder.name.replace(" ", "%20"),
        )
    )


def _markdown_cell(text: Any) -> str:
    """Text that Markdown leaves as it is: on one line, its signs escaped."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|~$#" else sign for sign in str(text))
    return " ".join(escaped.replace("&", "&amp;").split())


def _curve_pictures(groups: Sequence[Group]) -> list[Picture]:
    """The curves against updates, with legends, for files."""
    found = panels(groups)
    end = _end(found, "updates")
    legend = _legend(groups)
    return [
        curve_picture(panel, "updates", end=end, legend=legend or _own(panel))
        for panel in _drawn(found)
    ]


def _write_pictures(groups: Sequence[Group], folder: Path, kind: Literal["png", "svg"]) -> Path:
    plans, sections = _plans_and_sections(groups)
    measured = _measured_pictures({"plans": plans, "sections": sections})
    pictures = [*_curve_pictures(groups), *measured]
    if not pictures:
        raise InputError("run", "must have records or measurements to draw")
    _save(folder, pictures, kind)
    return folder


def _save(folder: Path, pictures: Sequence[Picture], kind: Literal["png", "svg"]) -> None:
    if not pictures:
        return
    with contextlib.nullcontext() if folder.is_dir() else new_folder(folder):
        for picture in pictures:
            save = partial(_write_picture, picture, kind)
            write_atomically(folder / f"{picture.name}.{kind}", save)


def _write_picture(picture: Picture, kind: Literal["png", "svg"], file: BinaryIO) -> None:
    file.write(file_bytes(picture, kind))
