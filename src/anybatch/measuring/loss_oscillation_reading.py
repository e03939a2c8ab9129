"""How much a loss oscillates, read from its samples. Pure arithmetic; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anybatch.measurement import Estimate, Finding
from anybatch.measuring.blow_up import blow_up

__all__ = [
    "bootstrap_interval",
    "explosion",
    "findings_of",
    "read_oscillation",
    "relative_differences",
]

_Array = NDArray[np.float64]

_EXAMPLES_OF_A_MEAN = 25
_WINDOW = 25  # losses of the local mean
_FEWEST = 20  # differences or cosines that tell something
_RESAMPLES = 400
_BLOCK = 20  # neighbours that are drawn together


def explosion(losses: Sequence[float], batch_size: int) -> int | None:
    """Number of the update at which a loss rises for good, or is not finite; None if none does.

    Losses of small batches are averaged over 25 examples first, as single examples are easy or
    hard without any explosion. Then it is the first update after which `blow_up` would have spoken:
    a spike of fewer than five such means is none, and a later recovery plays no part.

    Args:
        losses: of consecutive updates.
        batch_size: of each.

    Example:
        >>> explosion([1.0, 0.9] * 20, 50), explosion([1.0, 0.9] * 20 + [9.0] * 5, 50)
        (None, 40)
        >>> explosion([1.0, 0.9, math.nan], 1)
        2
    """
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            return number
    block = max(1, -(-_EXAMPLES_OF_A_MEAN // batch_size))
    count = len(losses) // block
    means = np.asarray(losses[: count * block], dtype=np.float64).reshape(count, block).mean(1)
    for end in range(1, count + 1):
        found = blow_up(means[:end].tolist())
        if found is not None:
            return found * block
    return None


def relative_differences(losses: Sequence[float]) -> _Array:
    """|loss_t - loss_(t-1)| / local mean of |loss|, the mean over up to 25 losses around t.

    Args:
        losses: of consecutive updates, finite.

    Example:
        >>> relative_differences([1.0, 3.0, 1.0, 3.0])
        array([1., 1., 1.])
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < 2:
        return np.zeros(0)
    sums = np.concatenate([[0.0], np.cumsum(np.abs(values))])
    numbers = np.arange(len(values))
    first = np.maximum(numbers - _WINDOW // 2, 0)
    last = np.minimum(numbers + _WINDOW // 2 + 1, len(values))
    means = (sums[last] - sums[first]) / (last - first)
    differences: _Array = np.abs(np.diff(values)) / np.maximum(means[1:], 1e-300)
    return differences


def bootstrap_interval(
    values: _Array, statistic: str, *, block: int = _BLOCK
) -> tuple[float, float]:
    """95 % interval of the mean or median of neighbours that may err alike.

    Circular block bootstrap: 400 series are put together from runs of `block` neighbours drawn
    with replacement, by a generator of its own with a fixed seed.

    Args:
        values: (n,), in order, n >= 1.
        statistic: "mean" or "median".
        block: neighbours that are drawn together, >= 1.

    Reference:
        Politis and Romano 1992, "A circular block-resampling procedure for stationary data".
    """
    generator = np.random.default_rng(0)
    count = len(values)
    block = max(1, min(block, count // 4))
    starts = generator.integers(0, count, size=(_RESAMPLES, -(-count // block)))
    places = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :count] % count
    resampled = values[places]
    found = np.median(resampled, axis=1) if statistic == "median" else resampled.mean(axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def read_oscillation(samples: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """The estimates of a loss-oscillation measurement, from its stored samples.

    For each batch size B: "oscillation/B", the median of `relative_differences` before an
    explosion; "cosine/B", the mean cosine of neighbouring batches' gradients at the same weights;
    "exploded_at/B", the update.

    Args:
        samples: columns "batch_size", "update", "loss", "difference", "cosine" and
            "cosine_across_updates".
    """
    found: dict[str, Estimate] = {}
    for batch_size, rows in _by_batch_size(samples).items():
        end = explosion(rows["loss"], batch_size)
        calm = slice(0, end)
        kept = relative_differences(rows["loss"][calm])
        cosines = np.array([c for c in rows["cosine"][calm] if math.isfinite(c)])
        found[f"oscillation/{batch_size}"] = _estimate(kept, "median", "of the local mean loss")
        found[f"cosine/{batch_size}"] = _estimate(cosines, "mean", "")
        found[f"exploded_at/{batch_size}"] = _exploded(end, len(rows["loss"]))
    return found


def _by_batch_size(samples: Mapping[str, Sequence[float]]) -> dict[int, dict[str, list[float]]]:
    found: dict[int, dict[str, list[float]]] = {}
    for number, batch_size in enumerate(samples["batch_size"]):
        rows = found.setdefault(int(batch_size), {name: [] for name in samples})
        for name, column in samples.items():
            rows[name].append(column[number])
    return found


def _estimate(values: _Array, statistic: str, unit: str) -> Estimate:
    if len(values) < _FEWEST:
        reason = f"{len(values)} values tell too little; {_FEWEST} are needed"
        return Estimate(value=None, unit=unit, reason=reason)
    value = float(np.median(values) if statistic == "median" else values.mean())
    low, high = bootstrap_interval(values, statistic)
    return Estimate(value=value, low=min(low, value), high=max(high, value), unit=unit)


def _exploded(end: int | None, updates: int) -> Estimate:
    if end is None:
        reason = f"the loss did not explode in {updates} updates"
        return Estimate(value=None, low=float(updates), unit="updates", reason=reason)
    return Estimate(value=float(end), low=float(end), high=float(end), unit="updates")


def _stands_still(losses: Sequence[float]) -> bool:
    """Whether the last quarter of the losses is no lower than 0.9 of the first ten."""
    if len(losses) < 2 * _FEWEST:
        return False
    last = float(np.mean(losses[-(len(losses) // 4) :]))
    first = float(np.mean(losses[:10]))
    return last > first - 0.1 * abs(first)


def findings_of(
    samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]
) -> list[Finding]:
    """What a loss-oscillation measurement noticed, from what is stored.

    Args:
        samples: as of `read_oscillation`.
        settings: "lr", "num_updates" and "max_examples".
    """
    found = []
    for batch_size, rows in _by_batch_size(samples).items():
        end = explosion(rows["loss"], batch_size)
        if end is not None:
            sentence = (
                f"at batch size {batch_size} and lr {settings['lr']:.3g} the loss rises for good "
                f"at update {end}"
            )
            advice = f"--batch-sizes {batch_size} --lr {settings['lr'] / 4.0:.2g}"
            found.append(Finding(name="exploded", sentence=sentence, advice=advice))
        elif _stands_still(rows["loss"]):
            sentence = (
                f"at batch size {batch_size} and lr {settings['lr']:.3g} the loss did not fall, so "
                "its oscillation is not that of a training"
            )
            advice = f"--batch-sizes {batch_size} --lr {settings['lr'] / 4.0:.2g}"
            found.append(Finding(name="not-learning", sentence=sentence, advice=advice))
        if end is None and len(rows["loss"]) < settings["num_updates"]:
            sentence = (
                f"batch size {batch_size} got {len(rows['loss'])} updates, as many as "
                f"{settings['max_examples']:,} examples give"
            )
            wanted = batch_size * int(settings["num_updates"])
            advice = f"--batch-sizes {batch_size} --max-examples {wanted}"
            found.append(Finding(name="shortened", sentence=sentence, advice=advice))
    if not any(math.isfinite(cosine) for cosine in samples["cosine"]):
        sentence = "no two gradients have an angle: they are 0, not finite or too few"
        advice = "anybatch doctor tells whether the gradient reaches the weights"
        found.append(Finding(name="no-gradient", sentence=sentence, advice=advice))
    return found
