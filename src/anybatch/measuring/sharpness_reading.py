"""What follows from the sharpness: edges of stability. Pure arithmetic on stored samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from anybatch.measurement import Estimate, Finding

__all__ = ["findings_of", "read_sharpness", "stability_limit"]

# Student's t, 0.975 quantile, by degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NEGLIGIBLE = 1e-12


def stability_limit(optimizer: str, momentum: float, *, nesterov: bool = False) -> float | None:
    """Largest lr * curvature at which an optimizer is stable on a quadratic; None if not known.

    | optimizer | limit |
    |---|---|
    | gradient descent | 2 |
    | heavy ball, v <- m v + g | 2 + 2 m |
    | torch's Nesterov | (2 + 2 m) / (1 + 2 m) |
    | Adam, on the preconditioned Hessian | (2 + 2 b1) / (1 - b1) |

    Adam's is that of a heavy ball whose gradient weighs (1 - b1): v <- b1 v + (1 - b1) g, with a
    preconditioner that stands still.

    Args:
        optimizer: name in a recipe.
        momentum: or Adam's beta1, in [0, 1).
        nesterov: whether SGD looks ahead.

    Example:
        >>> stability_limit("sgd", 0.0), stability_limit("sgd", 0.5), stability_limit("muon", 0.9)
        (2.0, 3.0, None)
        >>> round(stability_limit("adam", 0.9), 9)
        38.0

    Reference:
        Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of
        Stability", appendix B; Cohen et al. 2022, "Adaptive Gradient Methods at the Edge of
        Stability", section 2.
    """
    if optimizer == "sgd":
        return (2.0 + 2.0 * momentum) / (1.0 + 2.0 * momentum * nesterov)
    if optimizer in ("adam", "adamw"):
        return (2.0 + 2.0 * momentum) / (1.0 - momentum)
    return None


def read_sharpness(
    samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]
) -> dict[str, Estimate]:
    """The estimates of a sharpness measurement, from its stored samples and settings.

    Of each repeat counts the last eigenvalue theta. One repeat: [theta, theta + residual].
    Several: mean +- t s / sqrt(repeats), and the mean residual more above.

    Args:
        samples: columns "repeat", "iteration", "eigenvalue" and "residual".
        settings: "optimizer", "preconditioned", "stability_limit", "lr", "coupled_decay" (0 where
            it is decoupled), "loss_weight" (1, or the batch size where the loss is summed) and
            "is_whole_set".
    """
    sharpness = _sharpness(_last(samples), bool(settings["is_whole_set"]))
    name = "preconditioned_sharpness" if settings["preconditioned"] else "sharpness"
    limit = settings["stability_limit"]
    unknown = _why_no_edge(settings, sharpness)
    if unknown:
        times = edge = Estimate(value=None, reason=unknown)
    else:
        times, edge = _edges(sharpness, settings, float(limit))
    return {name: sharpness, "edge_lr": edge, "lr_times_sharpness": times}


def _last(samples: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """Eigenvalue and residual of each repeat's last iteration."""
    columns = (samples[name] for name in ("repeat", "eigenvalue", "residual"))
    found = {repeat: (value, error) for repeat, value, error in zip(*columns, strict=True)}
    return list(found.values())


def _sharpness(last: Sequence[tuple[float, float]], is_whole_set: bool) -> Estimate:
    values = [value for value, _ in last]
    if not all(map(math.isfinite, values)):
        return Estimate(value=None, reason="the loss or its curvature is not finite")
    error = statistics.fmean(residual for _, residual in last)
    mean = statistics.fmean(values)
    if len(values) == 1:
        what = "of the whole training set" if is_whole_set else "of these examples alone"
        return Estimate(value=mean, low=mean, high=mean + error, reason=what)
    degrees = len(values) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.7 / degrees
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half + error)


def _why_no_edge(settings: Mapping[str, Any], sharpness: Estimate) -> str:
    if sharpness.value is None:
        return sharpness.reason
    if settings["stability_limit"] is None:
        return f"no edge of stability is known for {settings['optimizer']}"
    if settings["optimizer"] != "sgd" and not settings["preconditioned"]:
        return "Adam has no state yet that preconditions; take updates first"
    if _curvature(sharpness.value, settings) <= _NEGLIGIBLE:
        return "no direction curves upwards, so none limits the lr"
    return ""


def _curvature(sharpness: float, settings: Mapping[str, Any]) -> float:
    """What multiplies lr in the update: coupled decay adds to every eigenvalue."""
    return float(settings["loss_weight"]) * sharpness + float(settings["coupled_decay"])


def _edges(
    sharpness: Estimate, settings: Mapping[str, Any], limit: float
) -> tuple[Estimate, Estimate]:
    """The lr times curvature, and the lr at which that reaches the limit."""
    assert sharpness.value is not None
    lr = float(settings["lr"])
    ends = [_curvature(v, settings) for v in (sharpness.low, sharpness.value, sharpness.high)]
    edges = [limit / end if end > _NEGLIGIBLE else math.inf for end in ends]
    times = Estimate(
        value=lr * ends[1], low=lr * ends[0], high=lr * ends[2], reason=sharpness.reason
    )
    edge = Estimate(value=edges[1], low=edges[2], high=edges[0], reason=sharpness.reason)
    return times, edge


def findings_of(
    samples: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any],
    estimates: Mapping[str, Estimate],
) -> list[Finding]:
    """What a sharpness measurement noticed, from what is stored.

    Args:
        samples: as of `read_sharpness`.
        settings: likewise, with "tolerance" and "kinks".
        estimates: that `read_sharpness` returned.
    """
    found = [*_edge_findings(settings, estimates)]
    rough = [
        (value, residual)
        for value, residual in _last(samples)
        if residual > settings["tolerance"] * abs(value) and abs(value) > _NEGLIGIBLE
    ]
    if rough and math.isfinite(rough[0][1]):
        value, residual = rough[0]
        sentence = f"the eigenvalue {value:.4g} is known to {residual:.2g} only"
        more = 2 * int(settings["max_iterations"])
        found.append(_finding("not-converged", sentence, f"--iterations {more}"))
    if settings["kinks"]:
        sentence = (
            f"the loss has kinks ({', '.join(settings['kinks'])}); this is the curvature "
            "between them"
        )
        advice = "take it as a local value: where a step crosses kinks, the loss can bend more"
        found.append(_finding("not-smooth", sentence, advice))
    return found


def _edge_findings(settings: Mapping[str, Any], estimates: Mapping[str, Estimate]) -> list[Finding]:
    sharpness, edge, times = estimates.values()
    if sharpness.value is None:
        advice = (
            "anybatch doctor names what is broken; anybatch lr-range a lr that is not too large"
        )
        return [_finding("not-finite", sharpness.reason, advice)]
    if _curvature(sharpness.value, settings) <= _NEGLIGIBLE:
        sentence = f"the largest eigenvalue is {sharpness.value:.3g}: nothing curves upwards"
        advice = "anybatch doctor tells whether the gradient reaches the weights"
        return [_finding("no-curvature", sentence, advice)]
    limit = settings["stability_limit"]
    if times.value is None or edge.value is None or not times.low > limit:
        return []
    sentence = (
        f"lr {settings['lr']:.3g} x curvature = {times.value:.3g} is above {limit:.3g}, where the "
        "whole gradient would diverge along the sharpest direction"
    )
    advice = f"train with --set optimizer.lr={edge.value:.2g} or less, or run anybatch lr-range"
    return [_finding("beyond-the-edge", sentence, advice)]


def _finding(name: str, sentence: str, advice: str) -> Finding:
    return Finding(name=name, sentence=sentence, advice=advice)
