"""`anybatch predict-scaling`: measure one rank, and foretell updates on many, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.commands.measure import measure
from anybatch.commands.output import table
from anybatch.errors import ExitCode, InputError
from anybatch.measurement import Measurement
from anybatch.run import Run, write_atomically

if TYPE_CHECKING:
    from anybatch.options.predict_scaling import PredictScaling
    from anybatch.planning.arithmetic.scaling_curve import (
        KnownUpdates,
        Prediction,
        ScalingRequest,
    )
    from anybatch.planning.foretell_scaling import LinkChoice
    from anybatch.recipe import Recipe
    from anybatch.task import Task

__all__ = ["predict_scaling", "summary"]

FIGURE = "scaling.svg"
"""In the folder of the result."""

_SECONDS = 10.0  # for the curve of passes, and as many for the stages
_LOCAL_EVERY = 16  # updates of local SGD between two averagings, where the recipe does not say
_HEAD = [
    "ranks", "method", "batch", "ms/update", "passes", "statistics", "invert+apply", "traffic",
    "loading", "optimizer", "examples/s", "to target",
]  # fmt: skip


def predict_scaling(options: PredictScaling) -> int:
    """Carry out `anybatch predict-scaling` and return its exit code.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.stage_times import StageTimesSettings, measure_stage_times
    from anybatch.measuring.throughput import ThroughputSettings, measure_throughput
    from anybatch.planning.foretell_scaling import chosen_link, with_prediction
    from anybatch.planning.known_updates import known_updates

    ranks = _ranks(options.ranks)
    latency, bandwidth = _link_of(options)
    updates: dict[str, KnownUpdates] = dict(map(known_updates, options.updates_from))
    taken: list[Measurement] = []
    told: list[str] = []

    def take(task: Task, recipe: Recipe) -> Measurement:
        request = _request(options, ranks, task, recipe)  # refused before anything is timed
        shown = not options.json
        plain = recipe.without_preconditioner()  # whose stages are timed apart
        throughput = measure_throughput(
            task, plain, settings=ThroughputSettings(seconds=_SECONDS), progress=shown
        )
        taken.append(throughput)
        choice = chosen_link(throughput, latency_seconds=latency, bytes_per_second=bandwidth)
        largest = -(-request.batch_size_on(min(ranks)) // min(ranks))
        settings = StageTimesSettings(seconds=_SECONDS, max_examples=min(largest, 256))
        stages = measure_stage_times(task, recipe, settings=settings, progress=shown)
        found, predictions = with_prediction(throughput, stages, choice, request, updates=updates)
        told.append(summary(predictions, choice, request))
        return found

    def finish(run: Run, found: Measurement) -> list[str]:
        run.add_measurement(taken[0])
        return [_written_figure(run, found)]

    measure(
        options,
        "predict-scaling",
        take,
        lambda found: "\n".join([*told, *(f"! {finding}" for finding in found.findings)]),
        finish=finish,
    )
    return ExitCode.OK


def _ranks(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        rule = "must be numbers of ranks >= 1"
        raise InputError("--ranks", rule, text, hint="--ranks 1,8,64,1024")
    return found


def _link_of(options: PredictScaling) -> tuple[float | None, float | None]:
    """Seconds of latency and bytes per second, as far as they are given."""
    latency, bandwidth = options.latency_microseconds, options.bandwidth_gigabytes_per_second
    if latency is not None and not 0.0 <= latency < float("inf"):
        raise InputError("--latency-microseconds", "must be >= 0", latency)
    if bandwidth is not None and not 0.0 < bandwidth < float("inf"):
        hint = "25 Gbit/s are 3.125"
        raise InputError("--bandwidth-gigabytes-per-second", "must be > 0", bandwidth, hint=hint)
    return (
        None if latency is None else 1e-6 * latency,
        None if bandwidth is None else 1e9 * bandwidth,
    )


def _request(
    options: PredictScaling, ranks: tuple[int, ...], task: Task, recipe: Recipe
) -> ScalingRequest:
    from anybatch.planning.arithmetic.scaling_curve import ScalingRequest

    every = _LOCAL_EVERY if recipe.communication is None else recipe.communication.every
    if options.batch_size_per_rank is not None:
        size = options.batch_size_per_rank
        return ScalingRequest(ranks=ranks, batch_size_per_rank=size, local_every=every)
    full = task.source("train").num_examples if recipe.batch_size == "full" else None
    size = int(recipe.batch_size) if recipe.batch_size != "full" else int(full or 0)
    if min(ranks) > size:
        hint = "give --batch-size-per-rank, or --set batch_size=..."
        rule = f"must hold an example for each of {min(ranks)} ranks"
        raise InputError("batch_size", rule, size, hint=hint)
    return ScalingRequest(ranks=ranks, batch_size=size, local_every=every)


def _written_figure(run: Run, found: Measurement) -> str:
    """Write the picture beside the measurement; the line that says where."""
    from anybatch.reporting.figures import file_bytes
    from anybatch.reporting.measurement_figures import measurement_picture

    picture = measurement_picture(found, "scaling")
    assert picture is not None
    data = file_bytes(picture, "svg")
    write_atomically(run.path / FIGURE, lambda file: file.write(data))
    return f"figure: {run.path / FIGURE}"


# --- in words ------------------------------------------------------------------------------------


def summary(predictions: list[Prediction], choice: LinkChoice, request: ScalingRequest) -> str:
    """What is foretold as text: a row for each method and number of ranks, and what it rests on.

    Args:
        predictions: in the order of methods.
        choice: of the link.
        request: what was asked.
    """
    rows = [_row(found) for found in sorted(predictions, key=lambda found: found.ranks)]
    link = choice.link
    bandwidth = "infinite" if not link.seconds_per_byte else f"{1e-9 / link.seconds_per_byte:.3g}"
    lines = [
        table(_HEAD, rows),
        f"link: {bandwidth} GB/s, {1e6 * link.latency_seconds:.3g} us a message ({choice.source})",
        f"local SGD averages weights every {request.local_every} updates; no traffic is hidden "
        "behind computing",
        *_left_out(predictions, request),
        *_break_even(predictions),
        *_of_targets(predictions),
    ]
    return "\n".join(lines)


def _row(found: Prediction) -> list[str]:
    stages = found.stages
    parts = (
        stages.forward + stages.backward,
        stages.statistics,
        stages.inversion + stages.precondition,
        stages.gradient_traffic + stages.statistics_traffic + stages.gathering,
        stages.loading,
        stages.apply,
    )
    total = stages.total
    to_target = found.seconds_to_target
    mark = " ?" if found.extrapolated else ""
    return [
        f"{found.ranks:,}",
        found.method,
        f"{found.batch_size:,}",
        f"{1e3 * total:.3g}",
        *(f"{100 * part / total:.0f} %" for part in parts),
        f"{found.batch_size / total:,.0f}",
        "" if to_target is None else f"{to_target:,.3g} s{mark}",
    ]


def _left_out(predictions: list[Prediction], request: ScalingRequest) -> list[str]:
    missing = sorted(set(request.ranks) - {found.ranks for found in predictions})
    if not missing:
        return []
    told = ", ".join(f"{ranks:,}" for ranks in missing)
    return [f"left out: {told} ranks, more than examples in a batch of {request.batch_size:,}"]


def _break_even(predictions: list[Prediction]) -> list[str]:
    from anybatch.planning.arithmetic.scaling_curve import break_even

    found = break_even(predictions, "kfac")
    if not found:
        return []
    told = ", ".join(f"{100 * share:.0f} % on {ranks:,}" for ranks, share in sorted(found.items()))
    return [f"K-FAC pays where it needs less than this share of SGD's updates: {told}"]


def _of_targets(predictions: list[Prediction]) -> list[str]:
    known = list(dict.fromkeys(p.method for p in predictions if p.updates is not None))
    without = list(dict.fromkeys(p.method for p in predictions if p.updates is None))
    lines = []
    if without:
        names = ", ".join(without)
        lines.append(f"no time to a target for {names}: no updates were given (--updates-from)")
    if known and any(p.extrapolated for p in predictions):
        lines.append("?: beyond the batch sizes that were trained with, a guess")
    return lines
