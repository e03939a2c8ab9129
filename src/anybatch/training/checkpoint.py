"""Checkpoints of a Run: atomic, checked, and read without executing anything.

A checkpoint is one file, named with its SHA-256 by `checkpoints/latest.json`, which is replaced
only once the file is safely on the disk. So a kill at any moment leaves the old or the new
checkpoint whole. With it are kept the lengths that the logs had.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anybatch.errors import InputError
from anybatch.recipe_file import difference
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.run import SCHEMA, Run, read_json, write_atomically, write_json
from anybatch.training.training import Training

__all__ = [
    "Restored",
    "has_checkpoint",
    "load_checkpoint",
    "restore",
    "save_checkpoint",
    "save_weights",
]


def _latest(run: Run) -> Path:
    return run.path / "checkpoints" / "latest.json"


def has_checkpoint(run: Run) -> bool:
    """Whether the run has a checkpoint to resume from."""
    return _latest(run).is_file()


def save_checkpoint(run: Run, training: Training) -> None:
    """Write the training's state and make it the latest; older ones are then removed.

    Args:
        run: on rank 0, which alone writes.
        training: between two rounds.

    Raises:
        InputError: the disk is full or not writable; the previous checkpoint stays.

    Collectives:
        `Training.state_dict`; every rank must call.
    """
    state = training.state_dict()
    if not training.world.is_first:
        return
    state["recipe"] = recipe_to_mapping(training.recipe)
    state["examples_per_epoch"] = training.clock.examples_per_epoch
    state["data"] = training.data_fingerprint
    path = _latest(run).with_name(f"update-{training.updates:09d}.pt")
    write_atomically(path, lambda file: torch.save(state, file))
    if not has_checkpoint(run):
        _read(path)  # once in a run: what cannot be read back must not be found out at the end
    description = {
        "schema": SCHEMA,
        "file": path.name,
        "sha256": _digest(path),
        "update": training.updates,
        "log_lengths": run.log_lengths(),
    }
    write_json(_latest(run), description)
    for old in path.parent.glob("update-*.pt*"):  # also what a kill left half-written
        if old != path:
            old.unlink(missing_ok=True)


def load_checkpoint(run: Run) -> tuple[dict[str, Any], dict[str, int]]:
    """The state of the latest checkpoint, on the CPU, and the lengths of the logs at its time.

    Raises:
        InputError: the file is missing or not as it was written, or a log is too short.
    """
    description = _described(run)
    path = _latest(run).with_name(description["file"])
    thing = f"checkpoint {path}"
    if not path.is_file():
        raise InputError(thing, "must exist to resume")
    if _digest(path) != description.get("sha256"):
        raise InputError(thing, "must be as it was written", "another SHA-256, so it is damaged")
    state = _read(path)
    run.check_logs(description["log_lengths"])
    return state, description["log_lengths"]


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).partition("\n")[0]
        rule = "must be readable: states may hold tensors and plain values only"
        raise InputError(f"checkpoint {path}", rule, first_line) from None
    return state


def _described(run: Run) -> dict[str, Any]:
    """The content of `latest.json`, of which every name stays inside of the run."""
    description = read_json(_latest(run))
    lengths = description.get("log_lengths")
    if isinstance(lengths, dict):  # older checkpoints know of no events
        description["log_lengths"] = lengths = {"events.jsonl": 0} | lengths
    is_name = re.fullmatch(r"update-\d+\.pt", str(description.get("file"))) is not None
    if not is_name or not isinstance(lengths, dict) or lengths.keys() != run.log_lengths().keys():
        rule = "must name a checkpoint file and the lengths of the logs"
        raise InputError(str(_latest(run)), rule, description)
    for name, length in lengths.items():
        if not isinstance(length, int) or length < 0:
            raise InputError(f"{_latest(run)} {name}", "must be a number of bytes", length)
    return description


class Restored(NamedTuple):
    """What the restored training was at.

    Attributes:
        log_lengths: bytes in each log at the time of the checkpoint; 0 without one.
        extension: the duration in the checkpoint and the longer one now, or None.
    """

    log_lengths: dict[str, int]
    extension: list[str] | None


def restore(training: Training, run: Run, *, extend: bool) -> Restored:
    """Bring a new training to the state of the run's latest checkpoint; nothing is written.

    Args:
        training: of the run's task and recipe.
        run: without a checkpoint, the training stays at its beginning.
        extend: whether the recipe's duration has been lengthened.

    Raises:
        InputError: damaged checkpoint, changed recipe, model or data, or nothing left to do.
    """
    _check_resumable(run)
    if not has_checkpoint(run):
        return Restored(dict.fromkeys(run.log_lengths(), 0), None)
    state, log_lengths = load_checkpoint(run)
    own = recipe_from_mapping(state.pop("recipe"))
    extension = [str(own.duration), str(training.recipe.duration)]
    # An extension may have been begun and killed before its first checkpoint.
    extend = extend or any(extension == entry.get("extension") for entry in run.environments)
    for path, was, now in difference(own, training.recipe):
        if not (extend and path == "duration"):
            raise InputError(path, f"must be as in the checkpoint, {was}", now)
    _load(training, state)
    if extend:
        _check_extensible(training, run)
        training.extend()
    elif training.outcome is not None and run.status.name in ("finished", "target-missed"):
        hint = '--extend "5 epochs" trains on'
        rule = "must have something left to train"
        raise InputError(str(run.path), rule, training.outcome.name, hint=hint)
    return Restored(log_lengths, extension if extend else None)


def _check_extensible(training: Training, run: Run) -> None:
    """Refuse to extend what would stop at once."""
    if training.target is not None and training.target.reached_update is not None:
        rule = "must not have reached its target to be extended"
        hint = "train anew without a target"
        raise InputError(str(run.path), rule, str(training.target), hint=hint)


def _check_resumable(run: Run) -> None:
    """Refuse what would begin anew although the run has ended."""
    status = run.status
    if status.name == "diverged":
        raise InputError(str(run.path), "must not have diverged to be resumed", status.reason)
    if status.name not in ("running", "failed") and not has_checkpoint(run):
        raise InputError(str(run.path), "must have checkpoints/latest.json to be resumed")


def _load(training: Training, state: dict[str, Any]) -> None:
    was, now = state["examples_per_epoch"], training.clock.examples_per_epoch
    if was != now:
        raise InputError("train", f"must hold the {was} examples that the run began with", now)
    if state["data"] != training.data_fingerprint:
        raise InputError("train", "must hold the data that the run began with", "others")
    try:
        training.load_state_dict(state)
    except InputError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        rule = "must have the parameters that are in the checkpoint"
        raise InputError("model", rule, str(error)) from error


def save_weights(run: Run, training: Training) -> None:
    """Write the kept weights (averaged ones, where averaging is on) as `weights.pt`."""
    weights = training.kept_model.state_dict()
    write_atomically(run.path / "weights.pt", lambda file: torch.save(weights, file))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
