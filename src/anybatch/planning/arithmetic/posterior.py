"""What is believed of updates and seconds to a target at any batch size: equal-length draws.

    critical batch size = run's average noise scale / kappa      sampling error, model error
    updates(B) = updates at the pilot's batch size * S(B) / S(pilot)
    seconds(B, ranks) = updates(B) * seconds per update(B, ranks)

A row of the arrays is one world in which all of it holds together. Everything is a pure function of
stored measurements and a seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.calibration import Calibration
from anybatch.planning.arithmetic.noise_draws import FEWEST_PROBES, draw_run_average, num_probes
from anybatch.planning.arithmetic.time_model import TimeDraws, TimeModel
from anybatch.planning.arithmetic.updates_model import relative_updates

__all__ = ["Posterior", "RatioObservation", "make_posterior", "weighted_quantile"]

_Array = NDArray[np.float64]

_ELBOWS = (0.5, 6.0)
_MODEL_ERROR = 0.1  # natural log of S(B): scatter of published updates about their best elbow
_LEAST_EFFECTIVE = 100.0  # draws that weights must leave, or a tenth where there are fewer
_LEFT_OUT = "a noise scale with fewer than two finite probes was left out"
_RESOLVED = 0.95  # of the draws, for a signal to count as resolved


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioObservation:
    """Measured: so many times the updates at one batch size as at another, for the same progress.

    Attributes:
        batch_size: B.
        reference_batch_size: of the other.
        log_ratio: natural log of updates at `batch_size` over updates at `reference_batch_size`.
        standard_error: of it, >= 0.
    """

    batch_size: float
    reference_batch_size: float
    log_ratio: float
    standard_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    """Draws of everything that decides, one world in a row.

    Attributes:
        noise_scale: (N,) run's average B_simple, in examples.
        kappa: (N,) noise scale over critical batch size.
        elbow: (N,) p of the updates model.
        updates_at_pilot: (N,) updates to the target at the pilot's batch size; may hold inf.
        pilot_batch_size: in examples.
        time: N curves of seconds per update.
        weights: (N,), of sum 1.
        notes: what to know about it, in sentences.
    """

    noise_scale: _Array
    kappa: _Array
    elbow: _Array
    updates_at_pilot: _Array
    pilot_batch_size: float
    time: TimeDraws
    weights: _Array
    notes: tuple[str, ...] = ()

    @property
    def critical_batch_size(self) -> _Array:
        """(N,) B_crit = noise scale / kappa, in examples."""
        return self.noise_scale / self.kappa

    @property
    def effective_draws(self) -> float:
        """1 / sum of squared weights: so many equal draws would say as much."""
        return 1.0 / float(np.sum(self.weights**2))

    def relative_updates(self, batch_sizes: ArrayLike) -> _Array:
        """Updates over those at the pilot's batch size, (N, sizes).

        Args:
            batch_sizes: (sizes,), in examples.
        """
        sizes = np.atleast_1d(np.asarray(batch_sizes, dtype=np.float64))
        critical, elbow = self.critical_batch_size[:, None], self.elbow[:, None]
        at_pilot = relative_updates(self.pilot_batch_size, critical, elbow)
        return relative_updates(sizes[None, :], critical, elbow) / at_pilot

    def updates_to_target(self, batch_sizes: ArrayLike) -> _Array:
        """Updates to the target, (N, sizes); inf where a world never gets there.

        Args:
            batch_sizes: (sizes,), in examples.
        """
        return self.updates_at_pilot[:, None] * self.relative_updates(batch_sizes)

    def seconds_to_target(self, batch_sizes: ArrayLike, ranks: int = 1) -> _Array:
        """Seconds of training to the target, (N, sizes); inf where a world never gets there.

        Args:
            batch_sizes: (sizes,), global, in examples.
            ranks: that train together.

        Raises:
            InputError: several ranks where no all-reduce was measured.
        """
        seconds = self.time.seconds_per_update(batch_sizes, ranks=ranks)
        return self.updates_to_target(batch_sizes) * seconds

    def reweighted(self, observations: Sequence[RatioObservation]) -> Posterior:
        """The same draws, weighted by how well they foretell measured ratios of updates.

        Each ratio is normal about log S(B) - log S(reference), its variance the squared standard
        error and 0.1 squared, the model error. Where fewer than 100 draws' worth of weight (a tenth
        of few draws) would be left, the likelihood is raised to the power below 1 that leaves as
        much, and a note says so: the ratios contradict what was believed.

        Args:
            observations: of branches; none change nothing.

        Raises:
            InputError: a ratio or a standard error that is not finite.
        """
        if not observations:
            return self
        logs = np.zeros(len(self.weights))
        for observation in observations:
            logs += _log_likelihood(self, observation)
        weights, power = _tempered(self.weights, logs)
        notes = self.notes
        if power < 1.0:
            notes += (
                "the measured ratios of updates contradict what noise scale and calibration let "
                f"expect; they count with power {power:.2g}",
            )
        return dataclasses.replace(self, weights=weights, notes=notes)


def make_posterior(
    noise: Measurement | Sequence[Measurement] | None,
    time_model: TimeModel,
    calibration: Calibration,
    updates_at_pilot: ArrayLike,
    pilot_batch_size: float,
    *,
    num_draws: int = 2000,
    seed: int = 0,
) -> Posterior:
    """Draw noise scale, kappa, elbow, timings and updates to the target.

    Each comes from a random stream of its own, so that one more measurement does not move the
    draws of the others.

    Args:
        noise: of kind "noise-scale", several along the pilot where there are; None takes the
            calibration's wide belief on critical batch sizes in general. One with fewer than two
            finite probes is left out, and a note says so.
        time_model: of a throughput measurement.
        calibration: of kappa and the elbow.
        updates_at_pilot: updates to the target at the pilot's batch size: one number, or draws
            (taken as they are where they are `num_draws`, drawn from otherwise); may hold inf.
        pilot_batch_size: in examples, > 0.
        num_draws: N.
        seed: of all draws.

    Raises:
        InputError: updates or a pilot batch size that are not positive, unusable measurements.

    Cost:
        About 0.1 s for 2,000 draws.
    """
    if not pilot_batch_size > 0.0:
        raise InputError("pilot_batch_size", "must be > 0", pilot_batch_size)
    if num_draws < 1:
        raise InputError("num_draws", "must be >= 1", num_draws)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    updates = _updates_draws(updates_at_pilot, num_draws, streams[0])
    kappa_normal, elbow_normal = (stream.standard_normal(num_draws) for stream in streams[1:3])
    kappa = calibration.kappa_median * np.exp(calibration.log_spread * kappa_normal)
    elbow = calibration.elbow_median * np.exp(calibration.elbow_log_spread * elbow_normal)
    given = [noise] if isinstance(noise, Measurement) else list(noise or ())
    noises = [measured for measured in given if num_probes(measured) >= FEWEST_PROBES]
    notes = (_LEFT_OUT,) * (len(noises) < len(given))
    if noises:
        drawn = draw_run_average(noises, updates, streams[3])
        noise_scale = drawn.values
        if drawn.share_unresolved > 1.0 - _RESOLVED:
            notes += (_unresolved(drawn.share_unresolved, noises[-1]),)
    else:
        median, spread = calibration.unmeasured_median, calibration.unmeasured_log_spread
        critical = median * np.exp(spread * streams[3].standard_normal(num_draws))
        noise_scale, kappa = critical, np.ones(num_draws)
        notes += (
            "no noise scale was measured: the critical batch size is only believed to be as "
            f"those of published trainings, {median:g} within a factor of {math.exp(spread):.0f}",
        )
    return Posterior(
        noise_scale=noise_scale,
        kappa=kappa,
        elbow=np.clip(elbow, *_ELBOWS),
        updates_at_pilot=updates,
        pilot_batch_size=float(pilot_batch_size),
        time=time_model.draws(num_draws, streams[4]),
        weights=np.full(num_draws, 1.0 / num_draws),
        notes=notes,
    )


def weighted_quantile(values: _Array, weights: _Array, levels: Sequence[float]) -> list[float]:
    """The least values that at least so much of the weight lies at or below.

    Args:
        values: (N,), may hold inf.
        weights: (N,), >= 0.
        levels: in [0, 1].

    Example:
        >>> values, weights = np.array([3.0, 1.0, 2.0, np.inf]), np.array([0.25, 0.25, 0.4, 0.1])
        >>> weighted_quantile(values, weights, [0.1, 0.5, 0.95])
        [1.0, 2.0, inf]
    """
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[order])
    places = np.searchsorted(passed, np.asarray(levels) * passed[-1] - 1e-12)
    return [float(values[order[min(int(place), len(order) - 1)]]) for place in places]


def _updates_draws(updates: ArrayLike, num_draws: int, rng: np.random.Generator) -> _Array:
    values = np.atleast_1d(np.asarray(updates, dtype=np.float64))
    if values.ndim != 1 or not len(values) or not (values > 0.0).all():
        raise InputError("updates_at_pilot", "must be > 0, one number or draws", values.tolist())
    if len(values) == num_draws:
        return values
    return values[rng.integers(len(values), size=num_draws)]


def _unresolved(share: float, measurement: Measurement) -> str:
    estimate = measurement.estimates.get("b_simple")
    low = "" if estimate is None or not estimate.low > 0.0 else f": at least {estimate.low:.3g}"
    return f"the noise scale was not resolved in {100.0 * share:.0f} % of the draws{low}"


def _log_likelihood(posterior: Posterior, observation: RatioObservation) -> _Array:
    numbers = (observation.log_ratio, observation.standard_error)
    if not all(map(math.isfinite, numbers)) or observation.standard_error < 0.0:
        raise InputError("observation", "must be finite, with a standard error >= 0", observation)
    sizes = np.array([observation.batch_size, observation.reference_batch_size], dtype=np.float64)
    expected = np.log(posterior.relative_updates(sizes))
    away = observation.log_ratio - (expected[:, 0] - expected[:, 1])
    variance = observation.standard_error**2 + _MODEL_ERROR**2
    return np.asarray(-0.5 * away**2 / variance)


def _tempered(prior: _Array, log_likelihood: _Array) -> tuple[_Array, float]:
    """Weights, and the greatest power of the likelihood that leaves enough effective draws."""
    before = 1.0 / float(np.sum(prior**2))
    enough = min(_LEAST_EFFECTIVE, 0.1 * before)

    def weights(power: float) -> _Array:
        raised = power * log_likelihood
        found = prior * np.exp(raised - raised.max())
        return np.asarray(found / found.sum())

    whole = weights(1.0)
    if 1.0 / float(np.sum(whole**2)) >= enough:
        return whole, 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if 1.0 / float(np.sum(weights(middle) ** 2)) >= enough:
            low = middle
        else:
            high = middle
    return weights(low), low
