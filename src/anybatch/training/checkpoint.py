"""Checkpoints of a Run: atomic, checked, and read without executing anything.

A checkpoint is one file, named with its SHA-256 by `checkpoints/latest.json`, which is replaced
only once the file is safely on the disk. So a kill at any moment leaves the old or the new
checkpoint whole. With it are kept the lengths that the logs had.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from anybatch.errors import InputError
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.run import SCHEMA, Run, read_json, write_atomically, write_json
from anybatch.training.training import Training

__all__ = ["has_checkpoint", "load_checkpoint", "save_checkpoint", "save_weights"]


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
    path = _latest(run).with_name(f"update-{training.updates:09d}.pt")
    write_atomically(path, lambda file: torch.save(state, file))
    description = {
        "schema": SCHEMA,
        "file": path.name,
        "sha256": _digest(path),
        "update": training.updates,
        "log_lengths": run.log_lengths(),
    }
    write_json(_latest(run), description)
    for old in path.parent.glob("update-*.pt"):
        if old != path:
            old.unlink(missing_ok=True)


def load_checkpoint(run: Run) -> tuple[dict[str, Any], dict[str, int]]:
    """The state of the latest checkpoint, on the CPU, and the lengths of the logs at its time.

    Raises:
        InputError: the file is missing or not as it was written.
    """
    description = read_json(_latest(run))
    path = _latest(run).with_name(description["file"])
    thing = f"checkpoint {path}"
    if not path.is_file():
        raise InputError(thing, "must exist to resume")
    if _digest(path) != description["sha256"]:
        raise InputError(thing, "must be as it was written", "another SHA-256, so it is damaged")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(thing, "must be readable", str(error)) from None
    return state, description["log_lengths"]


def save_weights(run: Run, training: Training) -> None:
    """Write the kept weights (averaged ones, where averaging is on) as `weights.pt`."""
    weights = training.kept_model.state_dict()
    write_atomically(run.path / "weights.pt", lambda file: torch.save(weights, file))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
