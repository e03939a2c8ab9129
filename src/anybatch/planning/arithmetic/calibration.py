"""From a noise scale to a critical batch size: the calibrated factor and how far it scatters.

    B_crit = B_simple / kappa,    log kappa ~ Normal(log kappa_median, log_spread^2)

kappa comes from trainings of which both were measured: `calibration.json` beside this file, with
sources. Its residual spread is the model error of every plan; what was measured on a user's own
tasks narrows it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError

__all__ = [
    "Calibration",
    "CalibrationRow",
    "MeasuredPair",
    "calibration_for",
    "calibration_rows",
    "narrowed",
]

_Array = NDArray[np.float64]

_DOMAINS = ("classification", "generative", "language", "regression")
_ENOUGH_WEIGHT = 3.0  # of rows of one domain; with less, rows of all domains are taken
_OUTLIER = 3.0  # robust scales, at which a row is drawn in
_OWN_SHARE = 2.0 / 3.0  # of the variance of log kappa that tasks of one user have in common
_Z80 = 1.2815515655446004  # 90 % quantile of the normal distribution
_LEAST_ELBOW_SPREAD = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRow:
    """One training of which the noise scale or the critical batch size is known.

    Attributes:
        name: of the task.
        domain: "classification", "generative", "language" or "regression".
        optimizer: "sgd", "adam", or "unsure" where the source was not clear.
        b_simple: noise scale, averaged over the training, in examples; None where not known.
        b_crit: critical batch size that was measured, in examples.
        elbow: p of the updates model; None where not known.
        weight: how much the row counts for kappa; 0 where it is only shown.
        elbow_weight: how much the row counts for the elbow.
        certainty: "note", "figure" or "measured"; the file says what they mean.
        source: where the numbers are from.
        note: what to know about them.
    """

    name: str
    domain: str
    optimizer: str
    b_simple: float | None
    b_crit: float
    elbow: float | None
    weight: float
    elbow_weight: float
    certainty: str
    source: str
    note: str = ""


class MeasuredPair(Protocol):
    """A row of a user's ledger: both sizes of one task, None where one was not measured."""

    @property
    def b_simple(self) -> float | None:
        """Noise scale, averaged over the training, in examples."""

    @property
    def b_crit(self) -> float | None:
        """Critical batch size, in examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What is believed of kappa and the elbow before a task's own branches speak.

    Attributes:
        kappa_median: of B_simple / B_crit.
        log_spread: standard deviation of its natural log for a task that comes next.
        elbow_median: of p.
        elbow_log_spread: standard deviation of its natural log.
        source: what it rests on, in words.
        unmeasured_median: of B_crit where no noise scale was measured, in examples.
        unmeasured_log_spread: standard deviation of its natural log.
    """

    kappa_median: float
    log_spread: float
    elbow_median: float
    elbow_log_spread: float
    source: str
    unmeasured_median: float = 300.0
    unmeasured_log_spread: float = 1.6

    @property
    def kappa_band(self) -> tuple[float, float]:
        """The 80 % band of kappa."""
        half = _Z80 * self.log_spread
        return self.kappa_median * math.exp(-half), self.kappa_median * math.exp(half)


@functools.cache
def _shipped() -> dict[str, Any]:
    file = importlib.resources.files(__package__) / "calibration.json"
    table: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return table


def calibration_rows() -> tuple[CalibrationRow, ...]:
    """The rows that ship with the package.

    Example:
        >>> rows = {row.name: row for row in calibration_rows()}
        >>> rows["MNIST"].b_simple, rows["MNIST"].b_crit
        (900, 200)
    """
    return tuple(CalibrationRow(**row) for row in _shipped()["rows"])


def calibration_for(
    kind: Literal["sgd", "adam"], domain: str | None, ledger_rows: Sequence[MeasuredPair] = ()
) -> Calibration:
    """What to believe of kappa and the elbow.

    The centre is the weighted median of log kappa over the rows of the domain (of all domains where
    those weigh less than 3). The spread is the standard deviation, rows beyond three robust
    scales drawn in, widened so that a normal band holds 80 % of *next* tasks (Student's t with so
    few rows). Adam has no confirmed row: its wide band is stated in the file. Rows of the user's
    own ledger then narrow it (`narrowed`).

    Args:
        kind: "sgd" for everything with one lr for all weights, "adam" for what divides by a
            second moment or takes signs.
        domain: "classification", "regression", "generative", "language"; None where not known.
        ledger_rows: of the same kind of optimizer.

    Raises:
        InputError: an unknown kind or domain.

    Example:
        >>> images = calibration_for("sgd", "classification")
        >>> round(images.kappa_median, 1), [round(end, 1) for end in images.kappa_band]
        (3.2, [1.0, 10.3])
    """
    if kind not in ("sgd", "adam"):
        raise InputError("kind", "must be sgd or adam", kind)
    if domain is not None and domain not in _DOMAINS:
        raise InputError("domain", f"must be one of {', '.join(_DOMAINS)}", domain)
    rows, stated = calibration_rows(), _shipped()["without_rows"]
    if kind == "adam":
        centre, spread = math.log(stated["adam"]["kappa_median"]), stated["adam"]["log_spread"]
        source = f"Adam, {stated['adam']['note']}"
    else:
        centre, spread, source = _from_rows(rows, domain)
    elbow, elbow_spread = _elbow(rows)
    calibration = Calibration(
        kappa_median=math.exp(centre),
        log_spread=spread,
        elbow_median=elbow,
        elbow_log_spread=elbow_spread,
        source=source,
        unmeasured_median=stated["critical_batch_size"]["median"],
        unmeasured_log_spread=stated["critical_batch_size"]["log_spread"],
    )
    return narrowed(calibration, ledger_rows)


def narrowed(calibration: Calibration, ledger_rows: Sequence[MeasuredPair]) -> Calibration:
    """The calibration after what a user's own tasks said: conjugate normal on log kappa.

    Two thirds of the variance are taken as common to the tasks of one user, one third as each
    task's own. With n rows of mean m the common part has precision 1 / common + n / own, and the
    next task scatters about it with variance 1 / precision + own.

    Args:
        calibration: before.
        ledger_rows: those without both sizes tell nothing.

    Example:
        >>> from types import SimpleNamespace as Row
        >>> before = calibration_for("sgd", "classification")
        >>> after = narrowed(before, [Row(b_simple=600.0, b_crit=300.0)] * 5)
        >>> round(after.kappa_median, 2), after.log_spread < before.log_spread
        (2.09, True)
    """
    logs = [
        math.log(row.b_simple / row.b_crit)
        for row in ledger_rows
        if row.b_simple and row.b_crit and math.isfinite(row.b_simple) and math.isfinite(row.b_crit)
    ]
    if not logs:
        return calibration
    common = _OWN_SHARE * calibration.log_spread**2
    own = calibration.log_spread**2 - common
    precision = 1.0 / common + len(logs) / own
    centre = (math.log(calibration.kappa_median) / common + sum(logs) / own) / precision
    return dataclasses.replace(
        calibration,
        kappa_median=math.exp(centre),
        log_spread=math.sqrt(1.0 / precision + own),
        source=f"{calibration.source}; {len(logs)} of your own",
    )


def _from_rows(rows: Sequence[CalibrationRow], domain: str | None) -> tuple[float, float, str]:
    """Centre and spread of log kappa, and their source."""
    usable = [row for row in rows if row.b_simple and row.weight > 0.0 and row.optimizer != "adam"]
    own = [row for row in usable if row.domain == domain]
    is_own = sum(row.weight for row in own) >= _ENOUGH_WEIGHT
    taken = own if is_own else usable
    logs = np.array([math.log((row.b_simple or math.nan) / row.b_crit) for row in taken])
    weights = np.array([row.weight for row in taken])
    of_what = f"of {domain}" if is_own else "of all domains"
    return *_robust_normal(logs, weights), f"{len(taken)} trainings {of_what}"


def _robust_normal(values: _Array, weights: _Array) -> tuple[float, float]:
    """Centre and predictive spread."""
    centre = _weighted_median(values, weights)
    scale = 1.4826 * _weighted_median(np.abs(values - centre), weights)
    drawn_in = np.clip(values, centre - _OUTLIER * scale, centre + _OUTLIER * scale)
    count = float(weights.sum())
    mean = float(weights @ drawn_in) / count
    variance = float(weights @ (drawn_in - mean) ** 2) / (count - 1.0)
    spread = math.sqrt(variance * (1.0 + 1.0 / count))
    return centre, spread * _student_factor(count - 1.0)


def _weighted_median(values: _Array, weights: _Array) -> float:
    """Half of the weight on either side; the middle of two where it falls between them."""
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(passed, 0.5 - 1e-12))
    here = float(values[order[place]])
    if abs(passed[place] - 0.5) < 1e-9 and place + 1 < len(values):
        return 0.5 * (here + float(values[order[place + 1]]))
    return here


def _student_factor(freedom: float) -> float:
    """90 % quantile of Student's t over that of the normal: Cornish and Fisher's expansion."""
    z, n = _Z80, freedom
    first = (z**3 + z) / (4.0 * n)
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / (96.0 * n**2)
    return (z + first + second) / z


def _elbow(rows: Sequence[CalibrationRow]) -> tuple[float, float]:
    """Weighted mean and spread of the log of p, as a median and a spread."""
    known = [row for row in rows if row.elbow and row.elbow_weight > 0.0]
    logs = np.array([math.log(row.elbow or math.nan) for row in known])
    weights = np.array([row.elbow_weight for row in known])
    mean = float(weights @ logs / weights.sum())
    spread = math.sqrt(float(weights @ (logs - mean) ** 2 / weights.sum()))
    return math.exp(mean), max(spread, _LEAST_ELBOW_SPREAD)
