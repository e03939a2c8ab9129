"""A run that follows a plan: it begins where the pilot ended, and is held to the prediction."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import math
from typing import Any

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning.ledger import Foretold, LedgerRow, append_to_ledger
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.run import SCHEMA, Run, plan_outcome, write_json
from anybatch.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from anybatch.training.training import Training

__all__ = ["begin_planned", "check_planned", "conclude_planned", "predicted_and_actual"]


_LEAST = 1e-9  # seconds or updates: the ledger compares logarithms

_CONCLUDED = "concluded.json"
"""In the folder of a run that follows a plan: its row of the ledger, once it has ended."""


def check_planned(training: Training, plan_run: Run, plan: Plan) -> dict[str, int] | None:
    """Refuse to follow a plan that was made for something else; nothing is written.

    Args:
        training: new; where the plan has a pilot, it stands at its end afterwards.
        plan_run: the plan's folder.
        plan: in it.

    Returns:
        Bytes of each of the pilot's logs that belong to it; None without a pilot.

    Raises:
        InputError: other data or another model than the pilot's, or a damaged checkpoint.
    """
    expected, found = plan.request.num_examples, training.feed.source.num_examples
    if found != expected:
        raise InputError("train", f"must hold the {expected:,} examples of the plan", found)
    if not (plan.pilot and has_checkpoint(plan_run)):
        return None  # one that diverged may have left a checkpoint all the same
    state, lengths = load_checkpoint(plan_run)
    if state["data"] != training.data_fingerprint:
        raise InputError("train", "must hold the data that the plan was made with", "others")
    try:
        training.begin_from(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        rule = "must have the parameters of the plan's pilot"
        raise InputError("model", rule, " ".join(str(error).split())) from error
    return lengths


def begin_planned(training: Training, run: Run, plan_run: Run, plan: Plan) -> None:
    """Bring a new training to where the plan's pilot stands; its records begin the new run.

    Args:
        training: new, of the plan's task and recipe; see `check_planned`.
        run: of the training; new.
        plan_run: the plan's folder.
        plan: in it.

    Raises:
        InputError: as `check_planned`.

    Collectives:
        Those of `Training.state_dict`; every rank must call.
    """
    lengths = check_planned(training, plan_run, plan)
    if training.world.is_first:
        write_json(run.path / PLAN_FILE, {"schema": SCHEMA} | plan.to_dict())
    if lengths is None:
        return
    if training.world.is_first:
        kinds: tuple[type[Record], ...] = (StepRecord, EvalRecord)
        for kind in kinds:
            source = plan_run.log_path(kind)
            if source.exists():
                own = source.read_bytes()[: lengths[source.name]]
                run.log_path(kind).write_bytes(own)
    training.world.barrier()
    save_checkpoint(run, training)


def predicted_and_actual(run: Run) -> dict[str, Any] | None:
    """What the plan foretold and what the run took; None without a plan or before the end.

    Args:
        run: that has ended.

    Returns:
        "seconds" and "updates", each [actual, predicted, low, high], "inside" and "reached".
    """
    plan = run.plan
    outcome = None if plan is None else plan_outcome(plan, run.status)
    if outcome is None:
        return None
    seconds, updates = outcome.foretold_seconds, outcome.foretold_updates
    return {
        "seconds": [outcome.seconds, seconds.value, seconds.low, seconds.high],
        "updates": [float(outcome.updates), updates.value, updates.low, updates.high],
        "inside": outcome.inside,
        "reached": outcome.reached,
        "level": seconds.level,
    }


def conclude_planned(run: Run) -> list[str]:
    """Say what was predicted beside what happened, and add it to the ledger, once for a run.

    Args:
        run: that has ended and follows a plan.

    Returns:
        Lines for people; none where the run has not come to an end of its own.
    """
    plan = run.plan
    outcome = None if plan is None else plan_outcome(plan, run.status)
    if plan is None or outcome is None:
        return []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    noise = plan.predictions.get("noise_scale")
    row = LedgerRow(
        time=now,
        task=str(plan.request.task.get("name") or ""),
        optimizer=plan.recipe.optimizer.name,
        batch_size=plan.batch_size,
        seconds=_foretold(outcome.foretold_seconds),
        updates=_foretold(outcome.foretold_updates),
        actual_seconds=outcome.seconds,
        actual_updates=outcome.updates,
        reached=outcome.reached,
        level=outcome.foretold_seconds.level,
        b_simple=None if noise is None else noise.value,
        version=importlib.metadata.version("anybatch"),
    )
    lines, marker = [outcome.sentence()], run.path / _CONCLUDED
    if marker.exists():  # before it was extended
        return lines
    try:
        append_to_ledger(row)
        write_json(marker, {"schema": SCHEMA} | dataclasses.asdict(row))
    except (OSError, InputError) as error:  # the training is done and whole all the same
        lines.append(f"not added to the ledger: {' '.join(str(error).split())}")
    return lines


def _foretold(estimate: Estimate) -> Foretold:
    low = max(estimate.low, _LEAST)
    value = math.inf if estimate.value is None else max(estimate.value, low)
    return Foretold(value=value, low=low, high=max(estimate.high, value))
