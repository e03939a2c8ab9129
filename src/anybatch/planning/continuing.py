"""A run that follows a plan: it begins where the pilot ended, and is held to the prediction."""

from __future__ import annotations

import datetime
import importlib.metadata
from typing import Any

from anybatch.errors import InputError
from anybatch.measurement import Estimate
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning.ledger import Foretold, LedgerRow, append_to_ledger
from anybatch.records import EvalRecord, Record, StepRecord
from anybatch.run import SCHEMA, Run, write_json
from anybatch.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from anybatch.training.training import Training

__all__ = ["begin_planned", "conclude_planned", "predicted_and_actual"]


def begin_planned(training: Training, run: Run, plan_run: Run, plan: Plan) -> None:
    """Bring a new training to where the plan's pilot stands; its records begin the new run.

    Args:
        training: new, of the plan's task and recipe.
        run: of the training; new.
        plan_run: the plan's folder.
        plan: in it.

    Raises:
        InputError: other data or another model than the pilot's, or a damaged checkpoint.

    Collectives:
        Those of `Training.state_dict`; every rank must call.
    """
    if training.world.is_first:
        write_json(run.path / PLAN_FILE, {"schema": SCHEMA} | plan.to_dict())
    if not has_checkpoint(plan_run):
        return
    state, lengths = load_checkpoint(plan_run)
    if state["data"] != training.data_fingerprint:
        raise InputError("train", "must hold the data that the plan was made with", "others")
    try:
        training.begin_from(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        rule = "must have the parameters of the plan's pilot"
        raise InputError("model", rule, str(error)) from error
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
    plan, status = run.plan, run.status
    if plan is None or status.name not in ("finished", "target-missed", "diverged"):
        return None
    reached = status.target_update is not None
    seconds = status.target_seconds if reached else status.seconds
    updates = status.target_update if reached else status.update
    foretold = {name: plan.predictions[name] for name in ("seconds", "updates")}
    actual = {"seconds": float(seconds or 0.0), "updates": float(updates or 0)}
    told: dict[str, Any] = {
        name: [actual[name], estimate.value, estimate.low, estimate.high]
        for name, estimate in foretold.items()
    }
    inside = reached and foretold["seconds"].low <= actual["seconds"] <= foretold["seconds"].high
    return told | {"inside": inside, "reached": reached, "level": foretold["seconds"].level}


def conclude_planned(run: Run) -> list[str]:
    """Say what was predicted beside what happened, and add it to the ledger.

    Args:
        run: that has ended and follows a plan.

    Returns:
        Lines for people; none where the run has not come to an end of its own.
    """
    found, plan = predicted_and_actual(run), run.plan
    if found is None or plan is None:
        return []
    seconds, updates = plan.predictions["seconds"], plan.predictions["updates"]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    noise = plan.predictions.get("noise_scale")
    append_to_ledger(LedgerRow(
        time=now,
        task=str(plan.request.task.get("name") or ""),
        optimizer=plan.recipe.optimizer.name,
        batch_size=plan.batch_size,
        seconds=_foretold(seconds),
        updates=_foretold(updates),
        actual_seconds=found["seconds"][0],
        actual_updates=int(found["updates"][0]),
        reached=found["reached"],
        level=found["level"],
        b_simple=None if noise is None else noise.value,
        version=importlib.metadata.version("anybatch"),
    ))  # fmt: skip
    if seconds.value is None:
        return [f"predicted: {seconds}; took {found['seconds'][0]:.1f} s"]
    verdict = "inside" if found["inside"] else "outside"
    if not found["reached"]:
        verdict = "not reached, so outside"
    return [
        f"predicted {seconds.value:.1f} s ({seconds.low:.1f} to {seconds.high:.1f}, "
        f"{100 * seconds.level:.0f} %) and {_count(updates)} updates; took "
        f"{found['seconds'][0]:.1f} s and {found['updates'][0]:,.0f} updates: {verdict}"
    ]


def _count(estimate: Estimate) -> str:
    return "an unknown number of" if estimate.value is None else f"{estimate.value:,.0f}"


def _foretold(estimate: Estimate) -> Foretold:
    value = float("inf") if estimate.value is None else estimate.value
    return Foretold(value=value, low=max(estimate.low, 0.0), high=estimate.high)
