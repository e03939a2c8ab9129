"""One trial of a reproduction: trained, or measured, from wherever it stands, in this process."""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range
from anybatch.measuring.sharpness import SharpnessSettings, measure_sharpness
from anybatch.recipe import Recipe
from anybatch.records import EvalRecord, Record
from anybatch.run import Run, write_json
from anybatch.studies.reproductions.accumulation import accumulation_errors
from anybatch.studies.reproductions.parts import (
    Accumulated,
    Arm,
    SharpnessTracked,
    Trained,
    passes_per_example,
)
from anybatch.studies.reproductions.problems import Stage, problem_task
from anybatch.studies.reproductions.results import OUTCOME
from anybatch.studies.trials import train_until_stopped, why_stop
from anybatch.task import Task
from anybatch.training.environment import describe_environment
from anybatch.training.loop import continue_run, create_run, raise_if_signalled
from anybatch.training.training import Training
from anybatch.world import World

__all__ = ["Job"]

_SHARPNESS = "sharpness.jsonl"
_LATE = 0.75  # of a run: its last quarter says where the sharpness has come to
_KEPT_OF_ENVIRONMENT = ("anybatch", "python", "torch", "system", "cpu", "device", "commit")
_RANGE = LRRangeSettings(start_lr=1e-6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A trial to be carried out.

    Attributes:
        path: of its folder, new or not; ends as one that holds outcome.json.
        arm: with its lr and seed.
        stage: of the reproduction.
        data: folder of data sets; None takes ANYBATCH_DATA, then ./data.
        deadline: `time.time()` after which it is to be saved and left; None: none.
    """

    path: Path
    arm: Arm
    stage: Stage
    data: str | None = None
    deadline: float | None = None

    @property
    def recipe(self) -> Recipe:
        """What it trains with."""
        return self.arm.recipe

    def carry_out(self, task: Task | None) -> None:
        """Carry the trial out; after the deadline nothing is begun.

        Raises:
            InputError: bad input met by the trial.
            KeyboardInterrupt: after Ctrl-C, once it is saved.
            SystemExit: after SIGTERM, likewise.
        """
        if why_stop(self.deadline):
            return
        task = task or problem_task(self.arm.problem, self.stage, self.data)
        started = time.perf_counter()
        found: dict[str, Any] | None
        if self.stage == "range":
            found = _ranged(self, task)
        else:
            match self.arm.procedure:
                case Accumulated(method=method, parts=parts):
                    found = _measured(accumulation_errors(task, self.recipe, method, parts))
                case Trained() | SharpnessTracked() as procedure:
                    found = _trained(self, task, procedure)
        if found is not None:
            found |= {"lr": self.recipe.optimizer.lr, "seed": self.recipe.seed}
            found.setdefault("seconds", time.perf_counter() - started)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / OUTCOME, found | {"environment": _environment()})


@functools.cache
def _environment() -> dict[str, Any]:
    """The same for all trials of this process."""
    described = describe_environment(World.from_environment("cpu"))
    return {name: described[name] for name in _KEPT_OF_ENVIRONMENT}


def _measured(values: Mapping[str, float]) -> dict[str, Any]:
    return {"outcome": "finished", "values": dict(values), "series": {}}


def _ranged(job: Job, task: Task) -> dict[str, Any]:
    """The lr that a range test names, if it does."""
    found = measure_lr_range(task, job.recipe, settings=_RANGE)
    named = {name: estimate.value for name, estimate in found.estimates.items()}
    known = {name: value for name, value in named.items() if value is not None}
    return _measured(known) | {"seconds": found.seconds, "examples": found.examples}


# --- a training ----------------------------------------------------------------------------------


def _trained(job: Job, task: Task, procedure: Trained | SharpnessTracked) -> dict[str, Any] | None:
    """What a training came to; None where it was stopped before its end."""
    with _opened(job, task) as (training, run):
        for record in train_until_stopped(training, run, job.deadline):
            if isinstance(procedure, SharpnessTracked):
                _track(training, run, record, procedure.every)
        raise_if_signalled(training, run)
        outcome = training.outcome
        if outcome is None or outcome.name not in ("finished", "diverged"):
            return None
        found: dict[str, Any] = {"outcome": outcome.name, "values": {}, "series": {}}
        found["seconds"] = training.seconds
        if outcome.name == "finished":
            found["values"], found["series"] = _values(training, run, procedure), _series(run)
    for path in (*(run.path / "checkpoints").glob("*.pt"), run.path / "weights.pt"):
        path.unlink(missing_ok=True)  # a trial is never lengthened
    return found


@contextmanager
def _opened(job: Job, task: Task) -> Iterator[tuple[Training, Run]]:
    """A training where its run stands; one that ended without being noted begins anew."""
    found = Run(job.path) if (job.path / "recipe.json").is_file() else None
    if found is None or found.status.name in ("finished", "diverged"):
        shutil.rmtree(job.path, ignore_errors=True)
        found = None
    with Training(task, job.recipe) as training:
        if found is not None:
            continue_run(training, found, extend=False)
        yield training, found or create_run(training, job.path)


def _track(training: Training, run: Run, record: Record, every: int) -> None:
    """Add the sharpness to the run's own log where it is due; a line written twice is the same."""
    if isinstance(record, EvalRecord) or training.updates % every:
        return
    measured = measure_sharpness(training, settings=SharpnessSettings(num_examples=10**9))
    estimate = measured.estimates.get("sharpness")
    if estimate is None or estimate.value is None:
        return
    limit = measured.settings["stability_limit"]
    values = {
        "update": training.updates,
        "sharpness": estimate.value,
        "share_of_edge": estimate.value * measured.settings["lr"] / limit,
        "lr_times_sharpness": estimate.value * measured.settings["lr"],
    }
    with (run.path / _SHARPNESS).open("a") as file:
        file.write(json.dumps(values) + "\n")


def _tracked(run: Run) -> list[dict[str, float]]:
    """What was tracked, by update; of lines written again after a kill, the last ones."""
    path = run.path / _SHARPNESS
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [
        {row["update"]: row for row in rows}[key] for key in sorted({r["update"] for r in rows})
    ]


def _values(
    training: Training, run: Run, procedure: Trained | SharpnessTracked
) -> dict[str, float]:
    """Everything that is known of a finished training, by name."""
    values = {
        "updates": float(training.updates),
        "epochs": training.feed.epochs,
        "passes": training.feed.epochs * passes_per_example(training.recipe),
    }
    records = [training.evaluate("train"), run.last_eval("validation"), run.last_eval("test")]
    for record in records:
        if record is not None:
            values |= {f"{record.split}_accuracy": record.metric}
            values |= {f"{record.split}_loss": record.loss}
    if isinstance(procedure, Trained) and procedure.block is not None:
        values["squared_block_gradient_norm"] = _block_gradient_norm(training, procedure.block)
    rows = _tracked(run)
    if rows:
        values["first_share_of_edge"] = rows[0]["share_of_edge"]
        late = [r for r in rows if r["update"] >= _LATE * training.updates]
        for name in ("share_of_edge", "lr_times_sharpness"):
            values[f"late_{name}"] = statistics.median(row[name] for row in late or rows[-1:])
    return values


def _series(run: Run) -> dict[str, list[float]]:
    """Validation along the way, where it was looked at more than once; what was tracked."""
    series: dict[str, list[float]] = {}
    looks = [record for record in run.evals() if record.split == "validation"]
    if len(looks) > 1:
        series["update"] = [float(record.update) for record in looks]
        series["validation_accuracy"] = [record.metric for record in looks]
    rows = _tracked(run)
    if rows:
        series |= {name: [float(row[name]) for row in rows] for name in rows[0]}
    return series


def _block_gradient_norm(training: Training, block: int) -> float:
    """Mean over blocks of the squared norm of the gradient of their mean loss, in evaluation."""
    training.model.eval()
    source = training.task.source("train")
    indices = torch.split(torch.arange(source.num_examples or 0), block)
    parameters = [p for p in training.model.parameters() if p.requires_grad]
    loss, norms = training.task.loss_function(), list[float]()
    for batch in source.batches(iter(indices)):
        mean = loss(training.model(batch.inputs), batch.targets).mean()
        norms.append(_squared_norm(torch.autograd.grad(mean, parameters)))
    return statistics.fmean(norms)


def _squared_norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(sum(gradient.double().square().sum() for gradient in gradients))
