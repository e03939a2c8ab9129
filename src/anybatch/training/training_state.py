"""A training's state: all that another process needs to go on bit for bit."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from anybatch.training.outcome import Outcome
from anybatch.training.rank_steps import own_step, steps_of_ranks
from anybatch.training.snapshot import load_random_state, random_state

if TYPE_CHECKING:
    from anybatch.training.training import Training

__all__ = ["begin_from_state", "load_training_state", "training_state"]


def training_state(training: Training) -> dict[str, Any]:
    """See `Training.state_dict`."""
    step, control = training.one_step, training.batch_control
    own = {
        "random": random_state(),
        "window": training.since_record.window_state(),
        "mixing": step.mixing.state_dict(),
    }
    return {
        "step": step.state_dict(),
        "feed": training.feed.state_dict(),
        "seconds": training.seconds,
        "window_seconds": training.since_record.window_seconds,
        "hyperparameters": step.hyperparameters.state_dict(),
        **training.judge.state_dict(),
        "batch_control": None if control is None else control.state_dict(),
        "outcome": None if training.outcome is None else dataclasses.asdict(training.outcome),
        "ranks": training.world.all_values(own),
        "steps_of_ranks": steps_of_ranks(step, training.world),
    }


def load_training_state(training: Training, state: dict[str, Any]) -> None:
    """See `Training.load_state_dict`."""
    step, control, ranks = training.one_step, training.batch_control, state["ranks"]
    step.load_state_dict(own_step(state, training.world))
    training.feed.load_state_dict(state["feed"])
    training.seconds = state["seconds"]
    if "hyperparameters" in state:  # not in checkpoints of older versions
        step.hyperparameters.load_state_dict(state["hyperparameters"])
    training.judge.load_state_dict(state)
    if control is not None and state.get("batch_control") is not None:
        control.load_state_dict(state["batch_control"])
    outcome = state["outcome"]
    resumable = outcome is None or outcome["name"] == "interrupted"
    training.outcome = None if resumable else Outcome(**outcome)
    if training.world.rank < len(ranks):  # a further rank keeps the generators it began with
        load_random_state(ranks[training.world.rank]["random"])
    windows = [rank["window"] for rank in ranks]  # of other ranks, what can be kept
    training.since_record.load_state(windows, state["window_seconds"])
    step.mixing.load_state_dict([rank.get("mixing") for rank in ranks])


def begin_from_state(training: Training, state: dict[str, Any]) -> None:
    """See `Training.begin_from`."""
    hyperparameters = training.one_step.hyperparameters
    own = copy.deepcopy(state)
    own |= {"target": None, "patience": None, "plateau": None, "outcome": None}
    own["batch_control"] = None
    own["hyperparameters"] = hyperparameters.state_dict()
    load_training_state(training, own)
    hyperparameters.restore_settings()
