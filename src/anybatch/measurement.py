"""Measurement: what was measured, raw, and what follows from it.

Stored with its raw samples, so that an estimate or a plan can be computed again from the disk
without timing or training anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anybatch.drawing import Span, axes_or_new, draw_estimates, html_table
from anybatch.drawings.lr_range import draw_lr_range
from anybatch.drawings.picture import Measured
from anybatch.drawings.table import DRAWINGS
from anybatch.errors import InputError
from anybatch.records import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Estimate", "Finding", "Measurement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval, or the reason why there is none.

    Attributes:
        value: the estimate; None where the samples do not tell.
        low: lower end of the interval; -inf where it is unbounded.
        high: upper end of the interval; inf where it is unbounded ("at least low").
        unit: of all three ("examples", "seconds per update").
        level: probability that the interval is meant to cover, in (0, 1).
        reason: why there is no value, or what to know about it.

    Example:
        >>> str(Estimate(value=210.0, low=180.0, high=260.0, unit="examples"))
        '210 examples (180 to 260)'
        >>> str(Estimate(value=None, low=500.0, high=math.inf, unit="examples"))
        'at least 500 examples'
    """

    value: float | None
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    level: float = 0.95
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise InputError("level", "must be in (0, 1)", self.level)
        inside = self.value is None or self.low <= self.value <= self.high
        if not (self.low <= self.high and inside):
            rule = "must satisfy low <= value <= high"
            raise InputError("estimate", rule, (self.low, self.value, self.high))

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.value is not None:
            return f"{self.value:.4g}{unit} ({self.low:.4g} to {self.high:.4g})"
        if math.isfinite(self.low):
            return f"at least {self.low:.4g}{unit}"
        return f"not known{': ' if self.reason else ''}{self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a measurement noticed and that has a name.

    Attributes:
        name: of the kind, with hyphens ("never-diverged").
        sentence: what was seen, with its numbers.
        advice: what to do about it: the next command to run, where there is one.

    Example:
        >>> str(Finding(name="noisy", sentence="the loss jumps by 0.4", advice="use --repeats 5"))
        'noisy: the loss jumps by 0.4; use --repeats 5'
    """

    name: str
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One measurement on a task.

    Attributes:
        kind: what was measured ("lr-range", "noise-scale").
        settings: everything it was taken with, plain values.
        samples: raw columns by name, all of the same length.
        estimates: what follows, by name.
        seconds: that it took.
        examples: that it used.
        findings: what was noticed, most important first.
        fitted: columns of the curve that the estimates were read from, all of the same length.
    """

    kind: str
    settings: Mapping[str, Any]
    samples: Mapping[str, tuple[float, ...]]
    estimates: Mapping[str, Estimate]
    seconds: float
    examples: int
    findings: tuple[Finding, ...] = ()
    fitted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for thing, columns in (("samples", self.samples), ("fitted", self.fitted)):
            lengths = {name: len(column) for name, column in columns.items()}
            if len(set(lengths.values())) > 1:
                raise InputError(thing, "must be columns of the same length", lengths)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON, from which `from_dict` makes the same measurement."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "settings": dict(self.settings),
            "samples": {name: list(column) for name, column in self.samples.items()},
            "estimates": {n: dataclasses.asdict(e) for n, e in self.estimates.items()},
            "seconds": self.seconds,
            "examples": self.examples,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "fitted": {name: list(column) for name, column in self.fitted.items()},
        }
        plain_values: dict[str, Any] = plain(values)
        return plain_values

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the measurement: the first picture of its kind, or its estimates as dots.

        Args:
            ax: of matplotlib, to draw on; None makes a new figure.
        """
        axes, measured = axes_or_new(ax), self.measured
        if self.kind == "lr-range":
            draw_lr_range(axes, self.samples, self.fitted, measured.spans)
        elif self.kind in DRAWINGS and all(self.samples.values()):
            DRAWINGS[self.kind].panels[0](axes, measured)
        else:
            draw_estimates(axes, measured.spans)
        return axes

    @property
    def measured(self) -> Measured:
        """What a picture is drawn from."""
        spans = {name: Span(e.value, e.low, e.high) for name, e in self.estimates.items()}
        return Measured(self.samples, self.fitted, spans, self.settings)

    def _repr_html_(self) -> str:
        """A table of the estimates and findings, for notebooks."""
        estimates = {name: str(estimate) for name, estimate in self.estimates.items()}
        found = {finding.name: str(finding).partition(": ")[2] for finding in self.findings}
        return html_table(self.kind, estimates | found)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_dict` wrote, also after a way through strict JSON."""
        estimates = {
            name: Estimate(**{key: _number(item) for key, item in estimate.items()})
            for name, estimate in values["estimates"].items()
        }
        return cls(
            kind=values["kind"],
            settings=values["settings"],
            samples=_columns(values["samples"]),
            estimates=estimates,
            seconds=values["seconds"],
            examples=values["examples"],
            findings=tuple(Finding(**finding) for finding in values.get("findings", ())),
            fitted=_columns(values.get("fitted", {})),
        )


def _columns(values: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(_number, column)) for name, column in values.items()}


def _number(value: Any) -> Any:
    """A number that strict JSON holds as text; anything else as it is."""
    return float(value) if value in ("nan", "inf", "-inf") else value
