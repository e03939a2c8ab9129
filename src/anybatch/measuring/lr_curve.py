"""What a curve of loss against learning rate says: a range with intervals, or why there is none.

    losses of all ramps, each from its own beginning, up to where they blow up
    -> one robust local linear fit in log lr (two-sided, so without lag)
    -> where learning starts, where it is steepest, where it ends, where the loss rises again
    -> the same for fits to resampled residuals: intervals

Pure arithmetic. Every threshold is a share of the drop or a multiple of the noise, so the answer
is the same for a loss that is negative, tiny, huge, or shifted by a constant.

Reference: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding
from anybatch.measuring.blow_up import error_inflation, final_rise, noise_of
from anybatch.measuring.local_regression import best_bandwidth, robust_weights, smoother

__all__ = ["CurveReading", "read_curve"]

_Array = NDArray[np.float64]

_FEWEST_POINTS = 12
_MOST_POINTS = 1000
_SIGNIFICANT = 4.5  # standard errors: the lowest of many places is low by chance
_USUAL_START = 1e-7  # of a ramp
_STARTED = 0.1  # share of the drop that counts as a start
_RISEN = 0.2  # share of the drop that counts as a rise
_FEWEST_FLAT = 9  # places of the grid (a fourth of a point each) before the loss may fall
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class CurveReading:
    """What was read from one curve, possibly measured several times.

    Attributes:
        estimates: "learning_starts", "steepest", "minimum", "edge": learning rates.
        findings: named pathologies.
        fitted: columns "lr", "loss", "slope" (per unit of natural log lr), "low" and "high" of
            the fitted loss; empty where nothing could be fitted.
        drop: from the beginning to the lowest fitted loss; nan where nothing could be fitted.
        noise: standard deviation of one loss about the curve.
        start: mean loss before any learning.
        blow_up_lr: at which the first ramp blew up; None where none did.
    """

    estimates: Mapping[str, Estimate]
    findings: tuple[Finding, ...] = ()
    fitted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    drop: float = math.nan
    noise: float = math.nan
    start: float = math.nan
    blow_up_lr: float | None = None


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Points:
    """Losses of all ramps up to the blow-up, as deviations from their ramp's beginning."""

    x: _Array  # natural log of lr
    y: _Array
    level: float  # mean beginning, which was taken off
    end: float | None  # log lr at which the first ramp blew up; None: none did
    shortest: int  # finite points of the shortest ramp before its blow-up
    gaps: tuple[float, ...]  # learning rates at which a loss was not finite, but later ones were
    is_silent: bool  # whether a ramp ended in losses that are not finite without a rise before
    num_ramps: int

    @property
    def blow_up_lr(self) -> float | None:
        """At which the first ramp blew up."""
        return None if self.end is None else math.exp(self.end)


def _points(lrs: Sequence[float], ramps: Sequence[Sequence[float]]) -> _Points:
    xs, ys, ends, gaps, levels, counts, silent = [], [], [], [], [], [], False
    for ramp in ramps:
        values = np.asarray(ramp, dtype=np.float64)
        x = np.log(np.asarray(lrs[: len(values)], dtype=np.float64))
        end = _last_blow_up(values)
        if end is not None:
            ends.append(float(x[min(end, len(x) - 1)]))
            silent = silent or not np.isfinite(values[end:]).any()
        stop = len(values) if end is None else end
        finite = np.isfinite(values[:stop])
        gaps += [float(np.exp(x[i])) for i in np.flatnonzero(~finite)]
        kept = np.flatnonzero(finite)
        counts.append(len(kept))
        if end is not None:  # the beginning of the rise belongs to the curve, cut off at the top
            rising = np.arange(stop, min(stop + 3, len(values)))
            kept = np.concatenate([kept, rising])
        if not len(kept) or counts[-1] == 0:
            continue
        y = _clipped(values[kept], counts[-1])
        levels.append(float(np.median(y[: max(3, counts[-1] // 8)])))
        xs.append(x[kept])
        ys.append(y - levels[-1])
    if not xs:
        nothing = np.empty(0)
        return _Points(nothing, nothing, math.nan, _least(ends), 0, tuple(gaps), silent, len(ramps))
    x, y = np.concatenate(xs), np.concatenate(ys)
    order = np.argsort(x, kind="stable")
    x, y = _thinned(x[order], y[order])
    where = tuple(sorted(set(gaps)))
    level = float(np.mean(levels))
    return _Points(x, y, level, _least(ends), min(counts), where, silent, len(ramps))


def _thinned(x: _Array, y: _Array) -> tuple[_Array, _Array]:
    """Means of neighbours where there are more points than a fit can use."""
    size = -(-len(x) // _MOST_POINTS)
    if size == 1:
        return x, y
    cuts = np.arange(0, len(x), size)
    counts = np.diff([*cuts, len(x)])
    return np.add.reduceat(x, cuts) / counts, np.add.reduceat(y, cuts) / counts


def _least(values: Sequence[float]) -> float | None:
    return min(values) if values else None


def _clipped(values: _Array, num_before: int) -> _Array:
    """Values of which the rise is cut off one drop above the beginning."""
    before = values[:num_before]
    start = float(np.median(before[: max(3, num_before // 8)]))
    top = max(start - float(before.min()), 8.0 * noise_of(before))
    limit = max(float(np.quantile(before, 0.9)), start) + top
    return np.where(np.isfinite(values), np.minimum(values, limit), limit)


def _last_blow_up(values: _Array) -> int | None:
    """Where the loss blows up for good: a rise from which it comes back is none."""
    finite = np.flatnonzero(np.isfinite(values))
    stop = int(finite[-1]) + 1 if len(finite) else 0
    rise = final_rise(values[:stop], 1) if stop else None
    return stop if rise is None and stop < len(values) else rise


@dataclass(frozen=True)
class _Fit:
    """A fitted curve on a fine grid of log lr."""

    grid: _Array
    value: _Array
    slope: _Array
    error: _Array  # standard error of `value`
    resampled: tuple[_Array, _Array]  # (resamples, grid): values and slopes
    noise: float


def _fit(points: _Points) -> _Fit:
    x, y = points.x, points.y
    # Ties (several ramps) are fine; a fine grid lets places fall between two learning rates.
    grid = np.linspace(x[0], x[-1], 4 * min(len(np.unique(x)), 200))
    bandwidth = best_bandwidth(x, y)
    weights = robust_weights(x, y, bandwidth)
    at_points, _ = smoother(x, x, bandwidth, weights)
    values, slopes = smoother(x, grid, bandwidth, weights)
    residual = (y - at_points @ y) / np.sqrt(np.clip(1.0 - np.diag(at_points), 0.3, 1.0))
    used = np.where(weights > 0.0, residual, 0.0)
    local = np.sqrt(np.maximum(smoother(x, x, 2.0 * bandwidth, weights)[0] @ used**2, 0.0))
    noise = float(np.median(local))
    error = np.sqrt((values**2) @ local**2) * error_inflation(used, points.num_ramps)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_RESAMPLES, len(x)))
    drawn = (at_points @ y)[None, :] + signs * used[None, :]
    resampled = drawn @ values.T, drawn @ slopes.T
    return _Fit(grid, values @ y, slopes @ y, error, resampled, noise)


def _drop(value: _Array, error: _Array, lowest: int) -> tuple[float, float]:
    """The drop from the beginning to the lowest place, and the beginning's standard error."""
    head = max(1, min(lowest, len(value) // 10))
    start = float(np.median(value[:head]))
    if value[0] > start + 3.0 * float(error[0]):  # the loss falls from the very beginning
        start = float(value[0])
    return start - float(value[lowest]), float(error[:head].mean())


def _places(value: _Array, slope: _Array, error: _Array) -> dict[str, int | None]:
    """Indices on the grid of what is looked for; None where it is not there."""
    lowest = int(value.argmin())
    drop, start_error = _drop(value, error, lowest)
    steepest = int(slope[: lowest + 1].argmin())
    down = float(value[lowest]) + drop - max(_STARTED * drop, 2.0 * start_error)
    higher = np.flatnonzero(value[: steepest + 1] >= down)
    up = float(value[lowest]) + max(_RISEN * drop, 3.0 * float(error[lowest]))
    risen = np.flatnonzero(value[lowest:] > up)
    return {
        "learning_starts": int(higher[-1]) if len(higher) and higher[-1] >= _FEWEST_FLAT else None,
        "steepest": steepest,
        "minimum": lowest,
        "edge": lowest + int(risen[0]) if len(risen) else None,
    }


def read_curve(lrs: Sequence[float], *losses: Sequence[float]) -> CurveReading:
    """Read an LR range test.

    A loss belongs to the lr of the same place. Learning starts where the fitted loss has lost 10 %
    of its whole drop (or twice its standard error, if that is more); it is steepest at the
    least slope per log lr; the edge is where the loss has come back up by 20 % of the drop.

    Args:
        lrs: (updates,), > 0, rising; evenly spaced in the log, as a rule.
        losses: one sequence for each ramp, each at most as long as `lrs`; nan and inf are kept
            as gaps where finite losses follow, and taken as the end where none do.

    Raises:
        InputError: learning rates that are not positive and rising, or no losses.

    Cost:
        A few milliseconds for 100 points.

    Example:
        >>> lrs = [10 ** (-5 + i / 20) for i in range(100)]
        >>> curve = [2 / (1 + (lr / 1e-3) ** 2) + (lr / 0.1) ** 6 for lr in lrs]
        >>> reading = read_curve(lrs, curve)
        >>> {name: f"{e.value:.1g}" for name, e in reading.estimates.items()}
        {'learning_starts': '0.0003', 'steepest': '0.0009', 'minimum': '0.03', 'edge': '0.08'}
    """
    _check(lrs, losses)
    points = _points(lrs, losses)
    gap = _gap_finding(points)
    few = _too_few(points, lrs)
    if few is not None:
        return _nothing(few, gap, points)
    fit = _fit(points)
    places = _places(fit.value, fit.slope, fit.error)
    lowest = places["minimum"] or 0
    drop, error = _drop(fit.value, fit.error, lowest)
    error = math.hypot(error, float(fit.error[lowest]))
    if drop <= max(_SIGNIFICANT * error, 1e-9 * abs(points.level)):
        finding = _not_learned(points, lrs, fit, drop, error)
        return _nothing(finding, gap, points, fit)
    estimates, findings = _estimates(fit, places, points, lrs)
    return CurveReading(
        estimates=estimates,
        findings=(*gap, *findings),
        fitted=_columns(fit, points.level),
        drop=drop,
        noise=fit.noise,
        start=points.level + float(fit.value[lowest]) + drop,
        blow_up_lr=points.blow_up_lr,
    )


def _check(lrs: Sequence[float], losses: Sequence[Sequence[float]]) -> None:
    values = np.asarray(lrs, dtype=np.float64)
    if not losses or not any(len(ramp) for ramp in losses):
        raise InputError("losses", "must hold at least one loss")
    if not (np.isfinite(values).all() and (values > 0).all() and (np.diff(values) > 0).all()):
        raise InputError("lrs", "must be > 0, finite and rising", list(lrs)[:5])
    if max(map(len, losses)) > len(values):
        raise InputError("losses", f"must be at most the {len(values)} learning rates", len(losses))


def _columns(fit: _Fit, level: float) -> dict[str, tuple[float, ...]]:
    columns = {
        "lr": np.exp(fit.grid),
        "loss": fit.value + level,
        "slope": fit.slope,
        "low": fit.value + level - 1.96 * fit.error,
        "high": fit.value + level + 1.96 * fit.error,
    }
    return {name: tuple(column.tolist()) for name, column in columns.items()}


# --- what is there -----------------------------------------------------------------------------

_NAMES = ("learning_starts", "steepest", "minimum", "edge")


def _estimates(
    fit: _Fit, places: dict[str, int | None], points: _Points, lrs: Sequence[float]
) -> tuple[dict[str, Estimate], list[Finding]]:
    drawn: dict[str, list[float]] = {name: [] for name in _NAMES}
    for value, slope in zip(*fit.resampled, strict=True):
        for name, index in _places(value, slope, fit.error).items():
            if index is not None:
                drawn[name].append(float(fit.grid[index]))
    estimates, findings = {}, []
    places = places | {"edge": _sharp_edge(fit, places, points)}
    for name in _NAMES:
        index = places[name]
        if index is not None and len(drawn[name]) >= _RESAMPLES // 2:
            estimates[name] = _estimate(float(fit.grid[index]), drawn[name], points)
    if "learning_starts" not in estimates:
        reason = f"the loss falls from the first lr {lrs[0]:.3g} on"
        estimates["learning_starts"] = _at_most(float(lrs[0]), reason)
        findings.append(_no_three_regions(reason, f"--start-lr {lrs[0] / 100:.1g}"))
    if "edge" not in estimates:
        estimates |= _open_end(fit, places, points, findings)
    return {name: estimates[name] for name in _NAMES if name in estimates}, findings


def _sharp_edge(fit: _Fit, places: dict[str, int | None], points: _Points) -> int | None:
    """The fitted edge, or the blow-up where the losses between the two have not risen yet.

    A fit cannot jump: before a sudden blow-up it rises too early.
    """
    index, lowest = places["edge"], places["minimum"]
    if index is None or lowest is None or points.end is None:
        return index
    between = (points.x >= fit.grid[index]) & (points.x < points.end)
    level = 0.5 * float(fit.value[lowest] + fit.value[index])
    if between.any() and float(np.median(points.y[between])) > level:
        return index
    return min(int(np.searchsorted(fit.grid, points.end)), len(fit.grid) - 1)


def _estimate(centre: float, drawn: Sequence[float], points: _Points) -> Estimate:
    """The place and the 95 % interval of the resampled ones, at least one point to each side."""
    gaps = np.diff(np.unique(points.x))
    width = float(np.median(gaps)) if len(gaps) else 0.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    low, high = min(float(low), centre - width), max(float(high), centre + width)
    return Estimate(value=math.exp(centre), low=math.exp(low), high=math.exp(high))


def _at_most(lr: float, reason: str) -> Estimate:
    return Estimate(value=None, low=0.0, high=lr, reason=reason)


def _at_least(lr: float, reason: str) -> Estimate:
    return Estimate(value=None, low=lr, high=math.inf, reason=reason)


def _open_end(
    fit: _Fit, places: dict[str, int | None], points: _Points, findings: list[Finding]
) -> dict[str, Estimate]:
    """Estimates where the fitted loss does not come back up."""
    last = math.exp(float(fit.grid[-1]))
    if points.end is not None:  # it blew up too fast for the fit to rise
        end = math.exp(points.end)
        return {"edge": Estimate(value=end, low=end / 2, high=end * 2)}
    reason = f"the loss did not rise again up to lr {last:.3g}"
    findings.append(
        Finding(name="never-diverged", sentence=reason, advice=f"--end-lr {last * 100:.1g}")
    )
    found = {"edge": _at_least(last, reason)}
    lowest = places["minimum"] or 0
    if fit.value[lowest] >= fit.value[-1] - 2.0 * fit.error[-1]:  # still falling, or flat
        found["minimum"] = _at_least(math.exp(float(fit.grid[lowest])), reason)
    return found


def _no_three_regions(sentence: str, advice: str) -> Finding:
    return Finding(name="no-three-regions", sentence=sentence, advice=advice)


# --- what is wrong -----------------------------------------------------------------------------


def _gap_finding(points: _Points) -> tuple[Finding, ...]:
    if not points.gaps:
        return ()
    first, last = min(points.gaps), max(points.gaps)
    sentence = (
        f"{len(points.gaps)} losses between lr {first:.3g} and {last:.3g} are not finite, though "
        "later ones are: a fault of the model or of some data, not of the lr"
    )
    return (Finding(name="nan-gap", sentence=sentence, advice="look at the data and the loss"),)


def _too_few(points: _Points, lrs: Sequence[float]) -> Finding | None:
    if points.shortest >= _FEWEST_POINTS and len(np.unique(points.x)) >= _FEWEST_POINTS:
        return None
    if points.end is not None and points.shortest <= max(3, len(lrs) // 8):
        sentence = f"the loss blew up within the first {points.shortest} updates"
        advice = f"--start-lr {lrs[0] / 1000:.1g}"
        return Finding(name="diverged-at-once", sentence=sentence, advice=advice)
    sentence = f"{points.shortest} finite losses; at least {_FEWEST_POINTS} are needed"
    return Finding(name="too-few-points", sentence=sentence, advice="--updates 100")


def _not_learned(
    points: _Points, lrs: Sequence[float], fit: _Fit, drop: float, error: float
) -> Finding:
    last = math.exp(float(fit.grid[-1]))
    if error > 0 and drop > 2.5 * error:
        sentence = f"a drop of {drop:.3g} is not clear of the noise of {fit.noise:.3g}"
        return Finding(name="noisy", sentence=sentence, advice="--repeats 5, or a larger batch")
    where = f"between lr {lrs[0]:.3g} and {last:.3g}"
    if points.is_silent and points.end is not None:
        sentence = (
            f"from lr {math.exp(points.end):.3g} on no loss is finite, though none had risen "
            "before: a fault of the model or of some data, not of the lr"
        )
        return Finding(name="nan-gap", sentence=sentence, advice="look at the data and the loss")
    if points.end is not None:
        sentence = f"the loss blew up at lr {math.exp(points.end):.3g} without falling before"
        lower = f"--start-lr {_USUAL_START:.0e} " if lrs[0] > 10.0 * _USUAL_START else ""
        advice = f"{lower}--updates 400; or look at data, labels and loss"
    else:
        sentence = f"the loss did not fall anywhere {where}"
        advice = f"--end-lr {last * 100:.1g} --updates 200; or look at data, labels and loss"
    return Finding(name="never-learned", sentence=sentence, advice=advice)


def _nothing(
    finding: Finding, gap: tuple[Finding, ...], points: _Points, fit: _Fit | None = None
) -> CurveReading:
    reason = finding.sentence
    return CurveReading(
        estimates={name: Estimate(value=None, reason=reason) for name in _NAMES},
        findings=(finding, *gap),
        fitted=_columns(fit, points.level) if fit else {},
        noise=fit.noise if fit else math.nan,
        start=points.level,
        blow_up_lr=points.blow_up_lr,
    )
