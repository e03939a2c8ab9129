"""Verdicts and tables in words and numbers: how each run ended, what arms add up to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.recipe import Target
from anybatch.records import EvalRecord
from anybatch.reporting.sources import Group, Subject

__all__ = [
    "Table",
    "arms_table",
    "duration_text",
    "estimate_text",
    "estimates_table",
    "findings",
    "number_text",
    "runs_table",
    "target_sentence",
    "verdict",
]

_OUTCOMES = {
    "running": "Still running, or killed",
    "finished": "Finished",
    "target-missed": "Finished without reaching the target",
    "diverged": "Diverged",
    "interrupted": "Interrupted",
    "failed": "Failed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells of text under a head; the first column names its row.

    Attributes:
        head: one text a column.
        rows: of cells.
        caption: what the table holds; may be empty.
        shaded: numbers of the rows that stand out.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    shaded: frozenset[int] = frozenset()


def number_text(value: float | None) -> str:
    """A number with four significant digits, thousands apart, a dash for none.

    Example:
        >>> number_text(0.98611), number_text(60000.0), number_text(1e-7), number_text(None)
        ('0.9861', '60,000', '1e-07', '-')
    """
    if value is None:
        return "-"
    if math.isfinite(value) and value == round(value) and 1000.0 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """Seconds, and above two minutes also as hours and minutes.

    Example:
        >>> duration_text(0.109), duration_text(3725.0)
        ('0.11 s', '3,725 s (1 h 2 min)')
    """
    if not math.isfinite(seconds) or seconds < 10.0:
        return f"{seconds:.2g} s"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{seconds:,.0f} s ({f'{hours} h ' if hours else ''}{minutes} min)"


def estimate_text(estimate: Estimate, *, unit: bool = True) -> str:
    """A value with its interval, three significant digits; "at least", or the reason without one.

    Args:
        estimate: what.
        unit: whether to name it.

    Example:
        >>> known = Estimate(value=1234.5, low=800.0, high=math.inf, unit="updates")
        >>> estimate_text(known)
        '1,230 updates (800 to without end)'
        >>> estimate_text(Estimate(value=None, low=12.34, unit="s", reason="far"), unit=False)
        'at least 12.3'
    """
    name = f" {estimate.unit}" if unit and estimate.unit else ""
    if estimate.value is not None:
        low, high = _rounded(estimate.low), _rounded(estimate.high)
        return f"{_rounded(estimate.value)}{name} ({low} to {high})"
    if math.isfinite(estimate.low):
        return f"at least {_rounded(estimate.low)}{name}"
    return f"not known{': ' if estimate.reason else ''}{estimate.reason}"


def _rounded(value: float) -> str:
    return number_text(float(f"{value:.3g}")) if math.isfinite(value) else "without end"


def verdict(subject: Subject) -> str:
    """One or two sentences: how a run ended, with what, after how long, and the target.

    A plan's are its lines; a run that followed one begins with predicted against actual.
    """
    if subject.plan is not None and subject.is_plan:
        return " ".join(map(_as_sentence, subject.plan.lines()))
    if subject.is_measurement:
        return " ".join(map(_measurement_sentence, subject.measurements.values()))
    status = subject.status
    how = _OUTCOMES.get(status.name, str(status.name))
    if status.reason and status.name not in ("finished", "target-missed"):
        how += f": {status.reason}"
    records = [subject.last_eval(split) for split in ("validation", "test")]
    values = ", ".join(
        f"{record.split} {record.metric_name} {record.metric:.4f}" for record in records if record
    )
    spent = (
        f"after {status.update:,} updates ({status.examples:,} examples) "
        f"in {duration_text(status.seconds)} of training"
    )
    body = f"{values} {spent}" if values else f"no evaluation, {spent}"
    outcome = subject.outcome
    compared = "" if outcome is None else _as_sentence(outcome.sentence())
    return " ".join(filter(None, [compared, f"{how}: {body}.", target_sentence(subject)]))


def _as_sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def target_sentence(subject: Subject) -> str:
    """Whether the target was reached and when, or by how much it was missed; "" without one."""
    status, split = subject.status, subject.recipe.stopping.target_on
    if status.target is None:
        return ""
    if status.target_seconds is not None:
        return (
            f"The target {status.target} on {split} was reached at update "
            f"{status.target_update or 0:,}, after {duration_text(status.target_seconds)}."
        )
    try:
        target = Target.parse(status.target)
    except InputError:
        return f"The target {status.target} on {split} was not reached."
    evals = subject.evals_of(split)
    values = [_measured(record, target.quantity) for record in evals]
    sound = [value for value in values if math.isfinite(value)]
    if not sound:
        return f"The target {status.target} on {split} was not reached; nothing was measured."
    best = min(sound) if target.relation == "<=" else max(sound)
    missed = abs(target.value - best)
    return (
        f"The target {status.target} on {split} was not reached: the best was "
        f"{number_text(best)}, {number_text(missed)} short of it."
    )


def _measured(record: EvalRecord, quantity: str) -> float:
    return record.loss if quantity == "loss" else record.metric


def _measurement_sentence(measurement: Measurement) -> str:
    known = [name for name in ("base_lr", "max_lr") if name in measurement.estimates]
    names = known or list(measurement.estimates)
    told = ", ".join(f"{name} {measurement.estimates[name]}" for name in names)
    spent = f"{measurement.examples:,} examples, {duration_text(measurement.seconds)}"
    return f"Measured {measurement.kind}: {told or 'no estimate'} ({spent})."


# --- tables --------------------------------------------------------------------------------------


def runs_table(groups: Sequence[Group]) -> Table:
    """One row for each run: outcome, evaluations, updates, seconds."""
    subjects = [s for group in groups for s in group.subjects if not s.is_measurement]
    rows = []
    for subject in subjects:
        status = subject.status
        validation, test = (subject.last_eval(split) for split in ("validation", "test"))
        rows.append(
            (
                subject.label,
                status.name,
                str(subject.recipe.seed),
                _metric_text(validation),
                _metric_text(test),
                f"{status.update:,}",
                f"{status.examples:,}",
                duration_text(status.seconds),
                "-" if status.target_seconds is None else duration_text(status.target_seconds),
            )
        )
    head = ("run", "outcome", "seed", "validation", "test", "updates", "examples", "training")
    return Table(head=(*head, "to target"), rows=tuple(rows))


def _metric_text(record: EvalRecord | None) -> str:
    return "-" if record is None else f"{record.metric_name} {record.metric:.4f}"


def arms_table(groups: Sequence[Group]) -> Table:
    """One row for each group: n, mean, standard deviation, range, diverged, reached, seconds.

    The metric is that of the test split where the group has one, else of validation. Only runs
    that came to an end of their own count; those that diverged have no value and are counted.
    """
    rows = [_arm_row(group) for group in groups if _is_training(group)]
    head = ("arm", "runs", "metric", "n", "mean", "standard deviation", "range", "diverged")
    caption = "Mean and standard deviation (n - 1) over the n runs that ended without diverging."
    return Table(head=(*head, "reached target", "seconds"), rows=tuple(rows), caption=caption)


def _is_training(group: Group) -> bool:
    return not group.subjects or any(not subject.is_measurement for subject in group.subjects)


def _arm_row(group: Group) -> tuple[str, ...]:
    ended = [s for s in group.subjects if s.status.name in ("finished", "target-missed")]
    diverged = [s for s in group.subjects if s.status.name == "diverged"]
    split = "test" if any(s.last_eval("test") for s in ended) else "validation"
    records = [found for s in ended if (found := s.last_eval(split)) is not None]
    values = [record.metric for record in records]
    sound = [value for value in values if math.isfinite(value)]
    has_target = any(s.status.target for s in group.subjects)
    reached = sum(s.status.target_seconds is not None for s in ended)
    seconds = [
        s.status.seconds if s.status.target_seconds is None else s.status.target_seconds
        for s in ended
    ]
    return (
        group.label,
        f"{len(ended) + len(diverged)} of {group.planned}",
        f"{split} {records[0].metric_name}" if records else "-",
        str(len(sound)),
        f"{statistics.fmean(sound):.4f}" if sound else "-",
        f"{statistics.stdev(sound):.4f}" if len(sound) > 1 else "-",
        f"{min(sound):.4f} to {max(sound):.4f}" if sound else "-",
        str(len(diverged)),
        f"{reached} of {len(ended) + len(diverged)}" if has_target else "-",
        duration_text(statistics.fmean(seconds)) if seconds else "-",
    )


def estimates_table(measurement: Measurement) -> Table:
    """One row for each estimate: value, interval, what to know about it."""
    rows = [
        (name, _value_text(e), _interval_text(e), e.reason)
        for name, e in measurement.estimates.items()
    ]
    if not any(note for *_, note in rows):
        return Table(head=("estimate", "value", "interval"), rows=tuple(row[:3] for row in rows))
    return Table(head=("estimate", "value", "interval", "note"), rows=tuple(rows))


def _value_text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not known"
    return f"{number_text(estimate.value)} {estimate.unit}".strip()


def _interval_text(estimate: Estimate) -> str:
    if not (math.isfinite(estimate.low) or math.isfinite(estimate.high)):
        return "-"
    if not math.isfinite(estimate.high):
        return f"at least {number_text(estimate.low)}"
    if not math.isfinite(estimate.low):
        return f"at most {number_text(estimate.high)}"
    level = f"{100 * estimate.level:.3g} %"
    return f"{number_text(estimate.low)} to {number_text(estimate.high)} ({level})"


def findings(groups: Sequence[Group]) -> list[tuple[str, str, str, str]]:
    """(run, name, sentence, advice) of everything that a plan or a measurement noticed."""
    return [
        (subject.label, finding.name, finding.sentence, finding.advice)
        for group in groups
        for subject in group.subjects
        for finding in _findings_of(subject)
    ]


def _findings_of(subject: Subject) -> list[Finding]:
    if subject.plan is not None and subject.is_plan:  # those of its measurements among them
        return list(subject.plan.findings)
    return [finding for found in subject.measurements.values() for finding in found.findings]
