"""Random state and whole trainings, kept and put back bit for bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anybatch.errors import InputError

if TYPE_CHECKING:
    from anybatch.training.training import Training

__all__ = [
    "load_random_state",
    "preserved_random_state",
    "preserved_training",
    "random_state",
    "seed_everything",
]


def random_state() -> dict[str, Any]:
    """State of the generators of torch, CUDA, numpy and Python, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(key) for key in keys], position, has_gauss, gauss],
        "python": [version, list(words), gauss_next],
    }


def load_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state((name, words, position, has_gauss, gauss))  # noqa: NPY002
    version, python_words, gauss_next = state["python"]
    random.setstate((version, tuple(python_words), gauss_next))


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, CUDA, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Every generator as found afterwards, also after an exception."""
    state = random_state()
    try:
        yield
    finally:
        load_random_state(state)


@contextmanager
def preserved_training(training: Training) -> Iterator[None]:
    """A training bitwise as found afterwards, also after an exception.

    Model, buffers, optimizer, averages, generators, position, mode: everything that its
    `state_dict` covers, copied in memory.

    Args:
        training: may be stepped, evaluated or changed inside of the context.

    Raises:
        InputError: the training data is a stream, which cannot be put back.

    Cost:
        One copy of the training's state.
    """
    if not training.task.source("train").random_access:
        rule = "must have random access for a measurement that leaves no trace"
        raise InputError("train", rule, "a stream", hint="give tensors or a map-style Dataset")
    state = copy.deepcopy(training.state_dict())
    # What a saved state leaves out: losses between `gradient` and `update`, an interruption.
    losses, outcome = training.one_step.losses, training.outcome
    modes = [(module, module.training) for module in training.model.modules()]
    gradients = [
        (p, None if p.grad is None else p.grad.clone()) for p in training.model.parameters()
    ]
    try:
        yield
    finally:
        training.load_state_dict(state)
        training.one_step.losses, training.outcome = losses, outcome
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
