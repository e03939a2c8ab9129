"""Noise scale against closed forms: bias, variance, coverage through the stopping rule, overhead.

Everything but the overhead is a simulation with known gradient G and covariance Sigma:

    quadratic    gradients G + Gaussian noise, variances 1/1 ... 1/20
    regression   g = x (x'd - e), x Gaussian: G = C d, Sigma = G G' + (d'C d + 1) C; heavy tails
    temperature  SGD at rest on a quadratic: E|G|^2 = sum h^2 v, v = lr / (b h (2 - lr h))
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anybatch.curvature.noise_arithmetic import (
    b_simple_estimate,
    covariance_trace_variance,
    looks,
    pair_of_parts,
    squared_norm_variance,
)
from anybatch.measuring.noise_monitor import NoiseScaleMonitor
from anybatch.models.simple_cnn import LeeSimpleCNN
from benchmarks.summaries import markdown_table, median_and_quartiles, median_interval

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "noise_scale"
TITLE = "Gradient noise scale"
QUESTION = (
    "Are the estimates unbiased, with the variances of the formulas? Does the 95 % interval cover "
    "through the stopping rule? Is B_simple proportional to 1 / lr? What does the monitor cost?"
)
PREDICTION = (
    "bias within 3 standard errors; variances within 5 %; coverage 92.5 to 97.5 % in every case; "
    "B_simple x lr as the closed form says within 10 %; the monitor costs under 2 % when it "
    "measures every 10th update, nothing between, and under 5 % when it measures all"
)

_VARIANCES = 1.0 / np.arange(1.0, 21.0)
_EXAMPLES, _PARTS = 64, 4
_REPEATS = 1000
_SHARES = (0.16, 0.64, 2.0)  # n / B_simple
_MOST = (50, 200)  # probes at most
_LRS = (0.1, 0.2, 0.4, 0.8)
_COORDINATES = 400  # so many that the sampling error is below 4 %
_ARMS = {"off": None, "between": 10**9, "every 10th": 10, "every": 1}
_ROUNDS, _UPDATES = 16, 10
_BLOCKS = 2

Array = np.ndarray[Any, np.dtype[np.float64]]


def trials() -> list[str]:
    """Studies of the arithmetic, then blocks of timing."""
    studies = ["pairs", "coverage-quadratic", "coverage-regression", "temperature"]
    return [*studies, *(f"overhead-{number}" for number in range(1, _BLOCKS + 1))]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """One study.

    Args:
        key: one of `trials`.
        folder: not used.
    """
    torch.set_num_threads(1)
    if key == "pairs":
        return {"rows": [_pairs_row(share) for share in _SHARES]}
    if key.startswith("coverage"):
        law = key.partition("-")[2]
        return {"rows": [_coverage_row(law, s, most) for s in _SHARES for most in _MOST]}
    if key == "temperature":
        return {"rows": [_temperature_row(lr) for lr in _LRS]}
    return _overhead()


# --- simulations --------------------------------------------------------------------------------


def _pairs_of_quadratic(probes: int, share: float, seed: int) -> tuple[Array, Array, Array]:
    """Q and S of probes with Gaussian noise, and G."""
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=len(_VARIANCES))
    b_simple = _EXAMPLES / share
    gradient *= math.sqrt(_VARIANCES.sum() / b_simple) / np.linalg.norm(gradient)
    noise = rng.normal(size=(probes, _PARTS, len(_VARIANCES)))
    parts = gradient + noise * np.sqrt(_VARIANCES * _PARTS / _EXAMPLES)
    return (*_pairs(parts), gradient)


def _pairs_of_regression(probes: int, share: float, seed: int) -> tuple[Array, Array]:
    """Q and S of probes of linear regression at a point with this n / B_simple."""
    rng = np.random.default_rng(seed)
    direction = np.ones(len(_VARIANCES))
    along, across = float(direction @ (_VARIANCES * direction)), float(_VARIANCES.sum())
    norm = float(((_VARIANCES * direction) ** 2).sum())
    # B = 1 + (k along + 1) across / (k norm), for the distance sqrt(k) along the direction
    wanted = _EXAMPLES / share
    k = across / ((wanted - 1.0) * norm - along * across)
    d = direction * math.sqrt(k)
    inputs = rng.normal(size=(probes, _PARTS, _EXAMPLES // _PARTS, len(d))) * np.sqrt(_VARIANCES)
    errors = inputs @ d - rng.normal(size=inputs.shape[:-1])
    return _pairs(np.einsum("pmbi,pmb->pmi", inputs, errors) / (_EXAMPLES // _PARTS))


def _pairs(parts: Array) -> tuple[Array, Array]:
    squares = (parts**2).sum(axis=-1).mean(axis=-1)
    of_mean = (parts.mean(axis=1) ** 2).sum(axis=-1)
    found = pair_of_parts(squares, of_mean, num_examples=_EXAMPLES, num_parts=_PARTS)
    return found.squared_norm, found.trace


def _pairs_row(share: float) -> dict[str, float]:
    """Bias in standard errors, and variances over those of the formulas."""
    norms, traces, gradient = _pairs_of_quadratic(200_000, share, seed=int(100 * share))
    square, along = float((_VARIANCES**2).sum()), float(gradient @ (_VARIANCES * gradient))
    variance = squared_norm_variance(square, along, num_examples=_EXAMPLES, num_parts=_PARTS)
    count = math.sqrt(len(norms))
    return {
        "n/B": share,
        "bias of Q in errors": float((norms.mean() - gradient @ gradient) / norms.std() * count),
        "bias of S in errors": float((traces.mean() - _VARIANCES.sum()) / traces.std() * count),
        "var Q ratio": float(norms.var() / variance),
        "var S ratio": float(traces.var() / covariance_trace_variance(square, _PARTS)),
    }


def _coverage_row(law: str, share: float, most: int) -> dict[str, Any]:
    """Measurements through the stopping rule, and how many of their intervals hold B_simple."""
    truth, covered, used, unbounded, ratios = _EXAMPLES / share, 0, 0, 0, []
    for number in range(_REPEATS):
        seed = number + 10_000 * most
        if law == "quadratic":
            norms, traces, _ = _pairs_of_quadratic(most, share, seed)
        else:
            norms, traces = _pairs_of_regression(most, share, seed)
        for count in looks(12, most):
            found = b_simple_estimate(norms[:count], traces[:count])
            if found.value is not None and found.high <= 2.5 * found.low:
                break
        covered += found.low <= truth <= found.high
        used += count
        unbounded += found.value is None
        ratios += [found.value / truth] if found.value is not None else []
    return {
        "law": law, "n/B": share, "most": most, "repeats": _REPEATS,
        "coverage": covered / _REPEATS, "probes": used / _REPEATS,
        "unbounded": unbounded / _REPEATS, "median ratio": float(np.median(ratios)),
    }  # fmt: skip


def _temperature_row(lr: float) -> dict[str, float]:
    """B_simple that the monitor sees of SGD at rest on a quadratic with noise of variance 1."""
    torch.manual_seed(round(100 * lr))
    half = [1.0] * (_COORDINATES // 2), [0.5] * (_COORDINATES // 2)
    eigenvalues = torch.tensor([*half[0], *half[1]], dtype=torch.float64)
    model = nn.Module()
    model.weights = nn.Parameter(torch.zeros(_COORDINATES, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    settle, count = round(10 / lr), 4000
    monitor = NoiseScaleMonitor(model, every=1, capacity=count)
    for number in range(settle + count):
        optimizer.zero_grad()
        for noise in torch.randn(4, 4, _COORDINATES, dtype=torch.float64):
            curve = 0.5 * (eigenvalues * model.weights.square()).sum()
            loss = 0.25 * (curve + noise.mean(0) @ model.weights)
            if number < settle:
                loss.backward()
                continue
            with monitor.part(4):
                loss.backward()
        if number >= settle:
            monitor.update()
        optimizer.step()
    variance = lr / 16 / (eigenvalues * (2.0 - lr * eigenvalues))
    truth = _COORDINATES / float((eigenvalues.square() * variance).sum())
    found = monitor.estimate()
    known = found.value if found.value is not None else math.nan
    return {"lr": lr, "b_simple": known, "low": found.low, "closed form": truth}


# --- overhead -----------------------------------------------------------------------------------


def _overhead() -> dict[str, Any]:
    """Processor time per update of the MNIST CNN of Lee et al., batch 128 in 4 micro-batches."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    timings = {name: _Arm(every, images, labels) for name, every in _ARMS.items()}
    for arm in timings.values():
        arm.updates(2)
    rounds = []
    names = list(timings)
    for number in range(_ROUNDS):
        turn = number % len(names)
        order = [*names[turn:], *names[:turn]]
        rounds.append({name: round(timings[name].updates(_UPDATES), 4) for name in order})
    return {"unit": "milliseconds of processor time per update", "rounds": rounds}


class _Arm:
    """A loop with accumulation, with a monitor or without."""

    def __init__(self, every: int | None, images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.manual_seed(1)
        self._model = LeeSimpleCNN()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9)
        self._parts = list(zip(images.split(32), labels.split(32), strict=True))
        self._monitor = None if every is None else NoiseScaleMonitor(self._model, every=every)
        if self._monitor is not None and every == 10**9:
            self._monitor.updates = 1  # never the first of its updates

    def updates(self, count: int) -> float:
        """Milliseconds of processor time per update."""
        started = time.process_time()  # other programs on the machine do not count
        for _ in range(count):
            self._optimizer.zero_grad()
            for images, labels in self._parts:
                if self._monitor is None:
                    self._backward(images, labels)
                else:
                    with self._monitor.part(len(labels)):
                        self._backward(images, labels)
            if self._monitor is not None:
                self._monitor.update()
            self._optimizer.step()
        return 1000.0 * (time.process_time() - started) / count

    def _backward(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        (0.25 * nn.functional.cross_entropy(self._model(images), labels)).backward()


# --- report -------------------------------------------------------------------------------------


def _rows(results: dict[str, dict[str, Any]], start: str) -> list[dict[str, Any]]:
    return [row for key, v in results.items() if key.startswith(start) for row in v["rows"]]


def _costs(results: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Ratio of each arm's time to that without a monitor, round by round."""
    rounds = [r for key, v in results.items() if key.startswith("overhead") for r in v["rounds"]]
    arms = [name for name in _ARMS if name != "off"]
    return {name: [taken[name] / taken["off"] for taken in rounds] for name in arms if rounds}


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Which of the predictions hold, with their figures.

    Args:
        results: key -> values of finished trials.
    """
    said = []
    pairs, covered = _rows(results, "pairs"), _rows(results, "coverage")
    if pairs:
        bias = max(abs(r[f"bias of {x} in errors"]) for r in pairs for x in "QS")
        away = max(abs(r[f"var {x} ratio"] - 1.0) for r in pairs for x in "QS")
        good = bias <= 3.0 and away <= 0.05
        said.append(f"{_held(good)} bias at most {bias:.1f} errors, variances within {away:.1%}")
    if covered:
        low, high = (f(r["coverage"] for r in covered) for f in (min, max))
        said.append(f"{_held(low >= 0.925 and high <= 0.975)} coverage {low:.1%} to {high:.1%}")
    rows = _rows(results, "temperature")
    if rows:
        away = max(abs(r["b_simple"] / r["closed form"] - 1.0) for r in rows)
        said.append(f"{_held(away <= 0.1)} 1 / lr law within {away:.1%}")
    for name, ratios in _costs(results).items():
        limit = {"every": 1.05}.get(name, 1.02)
        median, (low, high) = median_and_quartiles(ratios)[0], median_interval(ratios)
        good = f"monitor, {name}: {median:.3f} x ({low:.3f} to {high:.3f})"
        said.append(f"{_held(median <= limit)} {good}")
    return "; ".join(said)


def _held(good: bool) -> str:
    return "holds:" if good else "does not hold:"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Coverage and cost.

    Args:
        results: key -> values of finished trials.
    """
    head = ["law", "n / B_simple", "probes at most", "n", "coverage", "mean probes", "at least"]
    rows: Sequence[Sequence[str]] = [
        [r["law"], f"{r['n/B']:g}", str(r["most"]), str(r["repeats"]), f"{r['coverage']:.1%}",
         f"{r['probes']:.0f}", f"{r['unbounded']:.0%}"]
        for r in _rows(results, "coverage")
    ]  # fmt: skip
    texts = [markdown_table(head, rows)] if rows else []
    costs = [
        [name, str(len(ratios)), f"{median_and_quartiles(ratios)[0]:.3f}",
         "{:.3f} to {:.3f}".format(*median_interval(ratios))]
        for name, ratios in _costs(results).items()
    ]  # fmt: skip
    if costs:
        texts.append(
            markdown_table(["monitor", "rounds", "processor time / without", "95 %"], costs)
        )
    temperature = [
        [f"{r['lr']:g}", f"{r['b_simple']:.0f}", f"{r['closed form']:.0f}"]
        for r in _rows(results, "temperature")
    ]
    if temperature:
        texts.append(markdown_table(["lr", "B_simple measured", "closed form"], temperature))
    note = (
        f"Probes of {_EXAMPLES} examples in {_PARTS} parts; nominal 95 %, the rule looks after 12, "
        "17, 24, ... probes and stops at high / low <= 2.5. Overhead: MNIST CNN, batch 128 in 4 "
        f"micro-batches, one thread, rounds of {_UPDATES} updates, arms in turn."
    )
    return "\n\n".join([*texts, note])
