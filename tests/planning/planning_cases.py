"""Measurements made by hand, of which everything is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybatch.measurement import Estimate, Measurement
from anybatch.planning.arithmetic.posterior import Posterior
from anybatch.planning.arithmetic.time_model import AllReduce, TimeDraws

ALL_REDUCE = {"latency_seconds": 1e-3, "seconds_per_byte": 1e-9, "bytes": 4e6}


def throughput(
    *,
    fixed: float = 0.01,
    per_example: float = 1e-4,
    scatter: float = 0.0,
    rounds: int = 9,
    sizes: tuple[int, ...] = (1, 4, 16, 64, 256),
    largest: int | None = None,
    loading: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> Measurement:
    """t(b) = fixed + per_example * b, each timing off by a log-normal scatter."""
    rng = np.random.default_rng(seed)
    names = ("batch_size", "round", "forward_seconds", "backward_seconds", "optimizer_seconds",
             "loading_seconds", "update_seconds", "memory_bytes")  # fmt: skip
    rows = []
    for number in range(rounds):
        for size in sizes:
            seconds = (fixed + per_example * size) * float(np.exp(scatter * rng.standard_normal()))
            rows.append((size, number, 0.3 * seconds, 0.5 * seconds, 0.002, 0.0, seconds, np.nan))
    knots = [[float(b), fixed + per_example * b] for b in (sizes[0], sizes[-1])]
    estimates = {
        "largest_micro_batch": Estimate(value=largest, low=largest or 512.0, unit="examples"),
    }
    if loading is not None:
        estimates["loading_seconds_per_example"] = Estimate(
            value=loading, low=loading, high=loading, unit="seconds"
        )
    return Measurement(
        kind="throughput",
        settings={"fit": {"kind": "affine", "knots": knots}, "all_reduce": None} | settings,
        samples={
            name: tuple(float(value) for value in column)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        },
        estimates=estimates,
        seconds=1.0,
        examples=1000,
    )


def noise_scale(
    *,
    signal: float = 1.0,
    trace: float = 600.0,
    scatter: float = 0.3,
    probes: int = 40,
    after_updates: int = 0,
    seed: int = 0,
) -> Measurement:
    """Probes of a squared gradient norm and a covariance trace; B_simple = trace / signal."""
    rng = np.random.default_rng(seed)
    signals = signal + scatter * rng.standard_normal(probes)
    traces = trace * (1.0 + 0.05 * rng.standard_normal(probes))
    columns = {
        "probe": np.arange(probes),
        "examples": np.full(probes, 256),
        "parts": np.full(probes, 4),
        "squared_gradient_norm": signals,
        "covariance_trace": traces,
    }
    resolved = signals.mean() > 0.0
    value = float(traces.mean() / signals.mean()) if resolved else None
    return Measurement(
        kind="noise-scale",
        settings={"after_updates": after_updates},
        samples={n: tuple(float(v) for v in column) for n, column in columns.items()},
        estimates={
            "b_simple": Estimate(
                value=value, low=100.0 if value is None else 0.5 * value, unit="examples"
            ),
        },
        seconds=1.0,
        examples=256 * probes,
    )


def known_world(
    *,
    critical: float = 200.0,
    elbow: float = 1.0,
    half: float = 30.0,
    updates: float = 1000.0,
    pilot: float = 64.0,
    largest: int | None = None,
    all_reduce: AllReduce | None = None,
) -> Posterior:
    """One draw, nothing unsure: t(b) = (half + b) milliseconds."""
    knots = np.array([1.0, 100000.0])
    time = TimeDraws(
        knots=knots,
        seconds=1e-3 * (half + knots)[None, :],
        optimizer_seconds=0.0,
        loading_seconds_per_example=np.zeros(1),
        largest_micro_batch=largest,
        all_reduce=all_reduce,
    )
    return Posterior(
        noise_scale=np.array([critical]),
        kappa=np.ones(1),
        elbow=np.array([elbow]),
        updates_at_pilot=np.array([updates]),
        pilot_batch_size=pilot,
        time=time,
        weights=np.ones(1),
    )
