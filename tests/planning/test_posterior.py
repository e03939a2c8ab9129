"""Draws of updates and seconds at any batch size, and what measured ratios make of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import known_world, noise_scale, throughput

from anybatch.errors import InputError
from anybatch.planning.arithmetic.calibration import Calibration, calibration_for
from anybatch.planning.arithmetic.posterior import (
    Posterior,
    RatioObservation,
    make_posterior,
    weighted_quantile,
)
from anybatch.planning.arithmetic.time_model import TimeModel

IMAGES = calibration_for("sgd", "classification")
EXACT = Calibration(kappa_median=3.0, log_spread=0.0, elbow_median=1.0, elbow_log_spread=0.0,
                    source="by hand")  # fmt: skip


def posterior(calibration: Calibration = IMAGES, **changed: object) -> Posterior:
    given = {
        "noise": noise_scale(after_updates=500),
        "time_model": TimeModel.from_measurement(throughput(scatter=0.05)),
        "calibration": calibration,
        "updates_at_pilot": 500.0,
        "pilot_batch_size": 64,
    }
    return make_posterior(**(given | changed))  # type: ignore[arg-type]


def test_without_any_error_it_is_the_hyperbola_times_the_line() -> None:
    world = known_world(critical=200.0, half=30.0, updates=1000.0, pilot=50.0)
    sizes = np.array([10, 50, 400])
    fewest = 1000.0 / 5.0
    updates = fewest * (1.0 + 200.0 / sizes)
    np.testing.assert_allclose(world.updates_to_target(sizes)[0], updates)
    seconds = updates * 1e-3 * (30.0 + sizes)
    np.testing.assert_allclose(world.seconds_to_target(sizes)[0], seconds)


def test_critical_batch_size_is_noise_scale_over_kappa() -> None:
    drawn = posterior(EXACT, noise=noise_scale(trace=600.0, scatter=0.1, after_updates=500))
    assert len(drawn.critical_batch_size) == 2000
    assert float(np.median(drawn.critical_batch_size)) == pytest.approx(200.0, rel=0.1)
    wide = posterior(noise=noise_scale(trace=600.0, scatter=0.1, after_updates=500))
    assert float(np.log(wide.critical_batch_size).std()) == pytest.approx(
        IMAGES.log_spread, rel=0.1
    )


def test_at_the_pilot_the_updates_are_those_given() -> None:
    given = np.random.default_rng(3).lognormal(6.0, 0.4, 2000)
    drawn = posterior(updates_at_pilot=given)
    np.testing.assert_allclose(drawn.updates_to_target([64])[:, 0], given)
    few = posterior(updates_at_pilot=given[:7])
    assert set(few.updates_at_pilot) == set(given[:7])


def test_a_target_out_of_reach_stays_out_of_reach() -> None:
    given = np.where(np.arange(2000) % 4 == 0, np.inf, 900.0)
    drawn = posterior(updates_at_pilot=given)
    for found in (drawn.updates_to_target([8, 64]), drawn.seconds_to_target([8, 64])):
        assert not np.isnan(found).any()
        np.testing.assert_array_equal(np.isinf(found[:, 1]), np.isinf(given))
    assert np.isfinite(drawn.relative_updates([8, 64])).all()


def test_the_same_twice_and_each_source_by_its_own_stream() -> None:
    first, again = posterior(), posterior()
    for name in ("noise_scale", "kappa", "elbow", "updates_at_pilot"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.time.seconds, again.time.seconds)
    other = posterior(noise=None)
    np.testing.assert_array_equal(first.elbow, other.elbow)
    np.testing.assert_array_equal(first.time.seconds, other.time.seconds)
    assert not np.array_equal(first.kappa, posterior(seed=1).kappa)
    sources = np.log([first.kappa, first.elbow, first.noise_scale, first.time.seconds[:, 0]])
    assert np.abs(np.corrcoef(sources) - np.eye(4)).max() < 0.1


def test_without_a_noise_scale_it_is_wide_and_says_so() -> None:
    drawn = posterior(noise=None)
    known = posterior()
    assert np.log(drawn.critical_batch_size).std() > 1.3 * np.log(known.critical_batch_size).std()
    assert "no noise scale was measured" in drawn.notes[0]
    assert known.notes == ()


def test_a_signal_that_was_not_resolved_is_said() -> None:
    drawn = posterior(noise=noise_scale(signal=-0.2, scatter=1.0, after_updates=500))
    assert "not resolved" in drawn.notes[0]
    assert "at least 100" in drawn.notes[0]


def test_a_noise_scale_without_probes_is_left_out_and_said() -> None:
    lost = noise_scale(probes=1, after_updates=900)
    kept = posterior(noise=[noise_scale(after_updates=500), lost])
    np.testing.assert_array_equal(kept.noise_scale, posterior().noise_scale)
    assert kept.notes == ("a noise scale with fewer than two finite probes was left out",)
    none_left = posterior(noise=lost)
    np.testing.assert_array_equal(none_left.noise_scale, posterior(noise=None).noise_scale)
    assert len(none_left.notes) == 2


def test_a_measured_ratio_moves_the_critical_batch_size_to_the_truth() -> None:
    drawn = posterior()
    for truth in (60.0, 900.0):
        world = known_world(critical=truth, elbow=1.8)
        at = world.relative_updates([512, 32])[0]
        seen = RatioObservation(
            batch_size=512,
            reference_batch_size=32,
            log_ratio=float(np.log(at[0] / at[1])),
            standard_error=0.03,
        )
        after = drawn.reweighted([seen])
        assert after.weights.sum() == pytest.approx(1.0)
        found = np.log(after.relative_updates([512, 32]))
        mean = float(after.weights @ (found[:, 0] - found[:, 1]))
        assert mean == pytest.approx(seen.log_ratio, abs=0.08)
        spread = math.sqrt(after.weights @ (found[:, 0] - found[:, 1] - mean) ** 2)
        assert spread < 0.15
        before = abs(np.log(weighted_quantile(
            drawn.critical_batch_size, drawn.weights, [0.5])[0] / truth))  # fmt: skip
        now = weighted_quantile(after.critical_batch_size, after.weights, [0.5])[0]
        assert abs(math.log(now / truth)) < max(0.5 * before, 0.2)
        assert after.notes == drawn.notes


def test_a_vague_ratio_changes_little_and_none_changes_nothing() -> None:
    drawn = posterior()
    vague = RatioObservation(
        batch_size=512, reference_batch_size=32, log_ratio=0.0, standard_error=30.0
    )
    after = drawn.reweighted([vague])
    assert after.effective_draws > 0.99 * drawn.effective_draws
    np.testing.assert_array_equal(drawn.reweighted([]).weights, drawn.weights)


def test_a_ratio_that_contradicts_everything_is_tempered_and_said() -> None:
    drawn = posterior()
    odd = RatioObservation(
        batch_size=512, reference_batch_size=32, log_ratio=3.0, standard_error=0.01
    )
    after = drawn.reweighted([odd])
    assert after.effective_draws == pytest.approx(100.0, rel=0.05)
    assert "contradict" in after.notes[-1]
    assert np.isfinite(after.weights).all()


def test_few_draws_keep_a_tenth() -> None:
    few = posterior(num_draws=50)
    odd = RatioObservation(
        batch_size=512, reference_batch_size=32, log_ratio=3.0, standard_error=0.01
    )
    assert few.reweighted([odd]).effective_draws >= 4.9


def test_two_ratios_one_after_the_other_are_both_together() -> None:
    drawn = posterior()
    pair = [
        RatioObservation(batch_size=256, reference_batch_size=64, log_ratio=-1.0,
                         standard_error=0.3),
        RatioObservation(batch_size=16, reference_batch_size=64, log_ratio=1.2,
                         standard_error=0.3),
    ]  # fmt: skip
    together = drawn.reweighted(pair)
    apart = drawn.reweighted(pair[:1]).reweighted(pair[1:])
    np.testing.assert_allclose(together.weights, apart.weights)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="updates_at_pilot must be > 0"):
        posterior(updates_at_pilot=[10.0, 0.0])
    with pytest.raises(InputError, match="updates_at_pilot must be > 0"):
        posterior(updates_at_pilot=math.nan)
    with pytest.raises(InputError, match="pilot_batch_size must be > 0"):
        posterior(pilot_batch_size=0)
    with pytest.raises(InputError, match="num_draws must be >= 1"):
        posterior(num_draws=0)
    odd = RatioObservation(
        batch_size=2, reference_batch_size=1, log_ratio=math.nan, standard_error=0.1
    )
    with pytest.raises(InputError, match="observation must be finite"):
        posterior().reweighted([odd])
