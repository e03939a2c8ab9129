"""The run's average noise scale, drawn from stored probes: sampling error and growth apart.

    probes of one measurement  -> draws of B_simple there: means first, divided last
    measurements along a pilot -> B(u), straight lines of log B against log u, carried on to the end
    the run's average          -> mean of B(u) over its updates u

B_simple rises over a training, so the last measurement counts most: everything behind it, most of
the run, hangs on it.

Reference: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Measurement

__all__ = ["FEWEST_PROBES", "NoiseDraws", "draw_noise_scale", "draw_run_average", "num_probes"]

_Array = NDArray[np.float64]

FEWEST_PROBES = 2
"""Of one measurement: fewer have no scatter to draw from."""

_LEAST_SIGNAL = 0.25  # standard errors: a weaker signal cannot be told from none
_USUAL_GROWTH = (0.0, 0.6)  # of d log B / d log u: published averages are 1 to 18 times the start
_MOST_GROWTH = 1.0
_ANY = (1e-3, 1e12)  # examples: a full batch has no noise, a signal of zero no scale
_PLACES = 33  # at which B(u) is averaged


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseDraws:
    """Draws of a noise scale.

    Attributes:
        values: (draws,), in examples, > 0.
        share_unresolved: of draws in which the signal could not be told from none; they stand at
            the largest noise scale that the probes can resolve, an "at least".
    """

    values: _Array
    share_unresolved: float


def draw_noise_scale(
    measurement: Measurement, num_draws: int, rng: np.random.Generator
) -> NoiseDraws:
    """B_simple = mean covariance trace / mean squared gradient norm, probes drawn again.

    Probes are drawn with replacement, their means are taken, and only those are divided. A mean
    signal below a quarter of its standard error, negative ones too, is set to that quarter.

    Args:
        measurement: of kind "noise-scale".
        num_draws: how many.
        rng: that draws.

    Raises:
        InputError: another kind, or fewer than two finite probes.
    """
    signal, noise = _probes(measurement)
    count = len(signal)
    if count < FEWEST_PROBES:
        raise InputError("noise-scale", "must hold at least two finite probes", count)
    chosen = rng.integers(count, size=(num_draws, count))
    wider = math.sqrt(count / (count - 1))  # what is drawn again scatters a little less
    signals = signal.mean() + wider * (signal[chosen].mean(axis=1) - signal.mean())
    noises = noise.mean() + wider * (noise[chosen].mean(axis=1) - noise.mean())
    least_noise = max(0.05 * float(noise.mean()), np.finfo(float).tiny)
    error = float(signal.std(ddof=1)) / math.sqrt(count)
    least = max(_LEAST_SIGNAL * error, 1e-12 * abs(float(noise.mean())), np.finfo(float).tiny)
    values = np.maximum(noises, least_noise) / np.maximum(signals, least)
    return NoiseDraws(
        values=np.clip(values, *_ANY), share_unresolved=float(np.mean(signals < least))
    )


def num_probes(measurement: Measurement) -> int:
    """Probes that are finite.

    Args:
        measurement: of kind "noise-scale".

    Raises:
        InputError: another kind.
    """
    return len(_probes(measurement)[0])


def draw_run_average(
    measurements: Sequence[Measurement],
    num_updates: _Array,
    rng: np.random.Generator,
) -> NoiseDraws:
    """The mean of B_simple over the updates of a run, from measurements in its first part.

    Between two measurements log B is linear in log u, before the first it stays. After the last
    it grows on with g: with two measurements or more, a share drawn evenly between none and all of
    the slope between first and last (held within 0 to 1); with one, evenly from 0 to 0.6, which
    spans published averages over values at the start.

    Args:
        measurements: of kind "noise-scale", each with "after_updates" in its settings (0 where
            it is missing).
        num_updates: (draws,), of the run; inf counts as the longest that is finite.
        rng: that draws.

    Raises:
        InputError: as `draw_noise_scale`, or no measurement.
    """
    if not measurements:
        raise InputError("measurements", "must hold at least one")
    ordered = sorted(measurements, key=_updates_before)
    places = np.array([max(_updates_before(m), 1.0) for m in ordered])
    drawn = [draw_noise_scale(m, len(num_updates), rng) for m in ordered]
    logs = np.log(np.stack([d.values for d in drawn], axis=1))  # (draws, measurements)
    share = rng.random(len(num_updates))
    if places[-1] > places[0]:
        slope = (logs[:, -1] - logs[:, 0]) / math.log(places[-1] / places[0])
        growth = share * np.clip(slope, 0.0, _MOST_GROWTH)
    else:
        growth = _USUAL_GROWTH[0] + share * (_USUAL_GROWTH[1] - _USUAL_GROWTH[0])
    values = _average(np.log(places), logs, growth, _lengths(num_updates, places[-1]))
    return NoiseDraws(values=values, share_unresolved=drawn[-1].share_unresolved)


def _probes(measurement: Measurement) -> tuple[_Array, _Array]:
    """Squared gradient norms and covariance traces, where both are finite."""
    if measurement.kind != "noise-scale":
        raise InputError("measurement", "must be of kind noise-scale", measurement.kind)
    names = ("squared_gradient_norm", "covariance_trace")
    signal, noise = (np.asarray(measurement.samples[name], dtype=np.float64) for name in names)
    usable = np.isfinite(signal) & np.isfinite(noise)
    return signal[usable], noise[usable]


def _updates_before(measurement: Measurement) -> float:
    return float(measurement.settings.get("after_updates") or 0)


def _lengths(num_updates: _Array, last: float) -> _Array:
    """Updates of each run, at least those up to the last measurement."""
    finite = num_updates[np.isfinite(num_updates)]
    longest = float(finite.max()) if len(finite) else 10.0 * last
    return np.maximum(np.where(np.isfinite(num_updates), num_updates, longest), last)


def _average(log_places: _Array, logs: _Array, growth: _Array, lengths: _Array) -> _Array:
    """Mean of B over updates, evenly spaced in each draw's own run: the middles of equal parts."""
    shares = (np.arange(_PLACES) + 0.5) / _PLACES
    at = np.log(np.maximum(shares[None, :] * lengths[:, None], 1.0))  # (draws, places)
    found = logs[:, -1:] + growth[:, None] * np.maximum(at - log_places[-1], 0.0)
    for left in range(len(log_places) - 2, -1, -1):
        gap = max(log_places[left + 1] - log_places[left], 1e-12)
        share = np.clip((at - log_places[left]) / gap, 0.0, 1.0)
        between = logs[:, left : left + 1] * (1.0 - share) + logs[:, left + 1 : left + 2] * share
        found = np.where(at < log_places[left + 1], between, found)
    return np.asarray(np.exp(found).mean(axis=1))
