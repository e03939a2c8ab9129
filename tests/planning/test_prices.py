"""The price list, and the whole arithmetic replayed from disk."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planning_cases import ALL_REDUCE, known_world, noise_scale, throughput

from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.planning.arithmetic.calibration import calibration_for
from anybatch.planning.arithmetic.decision import Decision, decide
from anybatch.planning.arithmetic.posterior import RatioObservation, make_posterior
from anybatch.planning.arithmetic.prices import price_list, summary
from anybatch.planning.arithmetic.time_model import AllReduce, TimeModel

RING = AllReduce(latency_seconds=1e-3, seconds_per_byte=1e-9, num_bytes=4e6)


def test_prices_of_a_known_world() -> None:
    world = known_world(critical=200.0, half=30.0, updates=1000.0, pilot=50.0, all_reduce=RING)
    prices = price_list(world, [50, 400], [1, 2])
    assert [(price.batch_size, price.ranks) for price in prices] == [
        (50, 1), (400, 1), (50, 2), (400, 2),
    ]  # fmt: skip
    one, two = prices[1], prices[3]
    assert one.updates.value == two.updates.value == pytest.approx(200 * 1.5)
    assert one.seconds.value == pytest.approx(300 * 0.43)
    assert two.seconds.value == pytest.approx(300 * (0.23 + 1e-3 + 4e-3))
    for price in prices:
        assert price.seconds.value is not None
        assert price.device_hours.value == pytest.approx(price.seconds.value * price.ranks / 3600.0)
        assert price.seconds.level == 0.8
        assert price.fits


def test_the_flat_region_is_told_for_each_number_of_ranks() -> None:
    world = known_world(critical=200.0, half=30.0, all_reduce=RING)
    sizes = [2**k for k in range(13)]
    prices = price_list(world, sizes, [1, 8])
    for ranks in (1, 8):
        own = [price for price in prices if price.ranks == ranks and price.fits]
        values = {p.batch_size: p.seconds.value or math.nan for p in own}
        flat = {p.batch_size for p in own if p.near_optimal}
        assert flat == {b for b, s in values.items() if s <= 1.05 * min(values.values())}
    assert flat


def test_ranks_without_an_example_do_not_fit() -> None:
    world = known_world(all_reduce=RING)
    fits = {(p.batch_size, p.ranks): p.fits for p in price_list(world, [1, 64], [1, 4])}
    assert fits == {(1, 1): True, (64, 1): True, (1, 4): False, (64, 4): True}
    assert not any(p.near_optimal for p in price_list(world, [1, 2], [4]))
    tight = known_world(largest=16)
    assert [p.fits for p in price_list(tight, [64], [1], ghost=32)] == [False]
    assert [p.fits for p in price_list(tight, [64], [1], ghost=16)] == [True]


def test_a_target_that_is_rarely_reached_has_no_median() -> None:
    values = np.array([10.0, 20.0, np.inf, np.inf, np.inf])
    found = summary(values, np.full(5, 0.2), "seconds")
    assert found.value is None
    assert found.low == 10.0
    assert found.reason == "not reached in 60 % of the draws"
    mostly = summary(values, np.array([0.4, 0.4, 0.1, 0.05, 0.05]), "seconds")
    assert mostly.value == 20.0
    assert mostly.high == math.inf
    never = summary(np.full(5, np.inf), np.full(5, 0.2), "seconds")
    assert never.value is None


def test_bad_input() -> None:
    with pytest.raises(InputError, match="batch_sizes must hold sizes >= 1"):
        price_list(known_world(), [0, 1], [1])
    with pytest.raises(InputError, match="ranks need a measured all-reduce"):
        price_list(known_world(), [8], [1, 2])


# --- replay ------------------------------------------------------------------------------------


def planned(measurements: dict[str, Measurement]) -> tuple[Decision, list[object]]:
    posterior = make_posterior(
        [measurements["early"], measurements["late"]],
        TimeModel.from_measurement(measurements["throughput"]),
        calibration_for("sgd", "classification"),
        np.random.default_rng(7).lognormal(6.0, 0.4, 2000),
        64,
        seed=3,
    )
    seen = RatioObservation(
        batch_size=512, reference_batch_size=64, log_ratio=-1.4, standard_error=0.1
    )
    after = posterior.reweighted([seen])
    decision = decide(after, 512, set_size=54_000, ranks=2, device="cuda")
    return decision, list(price_list(after, [64, 512], [1, 2]))


def measurements() -> dict[str, Measurement]:
    return {
        "throughput": throughput(scatter=0.1, largest=2048, loading=1e-6, all_reduce=ALL_REDUCE),
        "early": noise_scale(trace=200.0, scatter=0.7, after_updates=20),
        "late": noise_scale(trace=600.0, scatter=0.7, after_updates=200, seed=1),
    }


def test_a_plan_is_computed_again_from_disk_bit_for_bit(tmp_path: Path) -> None:
    taken = measurements()
    for name, measurement in taken.items():
        text = json.dumps(measurement.to_dict(), allow_nan=False)
        (tmp_path / f"{name}.json").write_text(text)
    stored = {
        name: Measurement.from_dict(json.loads((tmp_path / f"{name}.json").read_text()))
        for name in taken
    }
    first, again = planned(taken), planned(stored)
    assert dataclasses.asdict(first[0]) == dataclasses.asdict(again[0])
    assert first[1] == again[1]
    touched = dict(stored) | {"late": noise_scale(trace=900.0, after_updates=200)}
    assert dataclasses.asdict(planned(touched)[0]) != dataclasses.asdict(first[0])


def test_the_arithmetic_needs_no_torch() -> None:
    program = (
        "import sys, anybatch.planning.arithmetic.prices, anybatch.planning.arithmetic.decision;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
