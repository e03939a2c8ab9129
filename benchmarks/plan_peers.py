"""Ways to choose batch size and lr, the plan among them: each says a recipe and what asking cost.

- present: the recipe as it is;
- lightning: its batch-size scaler ("power"), then its lr finder at that batch size, both with
  their defaults, but no batch above 2,048 (its own limit of 8,192 would only be dearer here); asked
  once in a case, as its user would;
- fill-memory: the largest batch that fits, at most 8,192 or the set, and the lr in proportion;
- adam-3e-4: Adam at 3e-4, all else as it is;
- random-search: batch size and lr drawn log-uniformly, each trained for an equal share of the time
  that a plan may use; the one with the best validation is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from anybatch import AdamSettings, Recipe, Training
from anybatch.recipe_mapping import recipe_to_mapping
from benchmarks.harness import TrialSkippedError
from benchmarks.plan_grid import last_value
from benchmarks.plan_tasks import PlanCase
from benchmarks.plan_training import at, seconds_between, train_to_target

__all__ = ["PEERS", "SEARCH_SECONDS", "Choice", "Peer", "lightning_is_installed"]

SEARCH_SECONDS = 18.0
"""What random search may use: 30 % of a training of a minute, as much as a plan may."""

_DRAWS = 8
_LARGEST_BATCH, _LARGEST_OF_LIGHTNING = 8192, 2048
_LR_RANGES = {"sgd": (1e-4, 1.0), "adam": (1e-5, 1e-1), "adamw": (1e-5, 1e-1)}
_EVER = 10**9  # updates


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one way to choose says.

    Attributes:
        recipe: as a mapping, with the seed.
        asking_seconds: what it took to choose.
        predicted_updates: to the target, as (low, median, high) of 80 %; None: not predicted.
        predicted_seconds: likewise, in seconds.
        said: whatever else is worth keeping, plain values.
    """

    recipe: dict[str, Any]
    asking_seconds: float = 0.0
    predicted_updates: list[float] | None = None
    predicted_seconds: list[float] | None = None
    said: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to choose.

    Attributes:
        name: in keys and tables.
        choose: case, seed, batch size -> seconds of an update; what it says.
    """

    name: str
    choose: Callable[[PlanCase, int, Mapping[int, float]], Choice]


# --- without measuring --------------------------------------------------------------------------


def _choice(recipe: Recipe, **known: Any) -> Choice:
    return Choice(recipe=recipe_to_mapping(recipe), **known)


def _present(case: PlanCase, seed: int, seconds: Mapping[int, float]) -> Choice:
    return _choice(_at(case, seed))


def _fill_memory(case: PlanCase, seed: int, seconds: Mapping[int, float]) -> Choice:
    count = case.task().source("train").num_examples
    assert count is not None
    size = min(_LARGEST_BATCH, count)
    lr = case.recipe.optimizer.lr * size / case.present_batch_size
    return _choice(_at(case, seed, batch_size=size, lr=lr))


def _adam(case: PlanCase, seed: int, seconds: Mapping[int, float]) -> Choice:
    return _choice(dataclasses.replace(_at(case, seed), optimizer=AdamSettings(lr=3e-4)))


def _at(
    case: PlanCase, seed: int, *, batch_size: int | None = None, lr: float | None = None
) -> Recipe:
    return at(
        case.recipe,
        batch_size=batch_size or case.present_batch_size,
        lr=case.recipe.optimizer.lr if lr is None else lr,
        seed=seed,
    )


# --- random search ------------------------------------------------------------------------------


def _random_search(case: PlanCase, seed: int, seconds: Mapping[int, float]) -> Choice:
    draw = random.Random(seed)
    low, high = _LR_RANGES[case.recipe.optimizer.name]
    smallest, largest = (math.log2(size) for size in (case.batch_sizes[0], case.batch_sizes[-1]))
    tried: list[dict[str, Any]] = []
    for _ in range(_DRAWS):
        size = round(2 ** draw.uniform(smallest, largest))
        lr = math.exp(draw.uniform(math.log(low), math.log(high)))
        each = seconds_between(seconds, size)
        curve = train_to_target(
            case.task(),
            _at(case, seed, batch_size=size, lr=lr),
            most_updates=max(1, round(SEARCH_SECONDS / _DRAWS / each)),
            scale_updates=case.scale_seconds / each,
            state=None,
        )
        tried.append({
            "batch_size": size,
            "lr": lr,
            "reached_seconds": curve["reached"] * each if curve["reached"] else math.inf,
            "value": math.inf if curve["diverged"] else last_value(curve, case, _EVER),
            "trained_seconds": curve["trained"] * each,
        })  # fmt: skip
    best = min(tried, key=lambda entry: (entry["reached_seconds"], entry["value"]))
    return _choice(
        _at(case, seed, batch_size=best["batch_size"], lr=best["lr"]),
        asking_seconds=sum(entry["trained_seconds"] for entry in tried),
        said={"tried": [_finite(entry) for entry in tried]},
    )


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in entry.items()}


# --- Lightning ----------------------------------------------------------------------------------


def lightning_is_installed() -> bool:
    """Whether its finders can be asked here."""
    return importlib.util.find_spec("lightning") is not None


def _lightning(case: PlanCase, seed: int, seconds: Mapping[int, float]) -> Choice:
    if not lightning_is_installed():
        raise TrialSkippedError("lightning is not installed")
    with Training(case.task(), _at(case, seed)) as training:
        data = TensorDataset(*_all_examples(training))
        started = time.perf_counter()
        with _silence(), tempfile.TemporaryDirectory() as folder:
            size, lr, scaling_seconds = _ask_lightning(training, data, folder)
        asking = time.perf_counter() - started
    batch_size = min(size, len(data))
    said = {"batch_size": size, "lr": lr, "scaling_seconds": scaling_seconds}
    if lr is None:  # "failed to compute suggestion": its user keeps the lr
        lr = case.recipe.optimizer.lr
    recipe = _at(case, seed, batch_size=batch_size, lr=lr)
    return _choice(recipe, asking_seconds=asking, said=said)


def _all_examples(training: Training) -> tuple[Tensor, Tensor]:
    """The whole training split as tensors, as a user of a `TensorDataset` holds it."""
    source = training.task.source("train")
    count = source.num_examples
    assert count is not None
    batches = list(
        source.batches(
            torch.split(torch.arange(count), 1000), augmentation=training.recipe.augmentation
        )
    )
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


def _ask_lightning(
    training: Training, data: TensorDataset, folder: str
) -> tuple[int, float | None, float]:
    import lightning
    from lightning.pytorch.tuner import Tuner

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size, self.lr = training.model, 2, 1e-3

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            return training.one_step.loss(self.model(batch[0]), batch[1]).mean()

        def configure_optimizers(self) -> Any:
            return training.optimizer

        def train_dataloader(self) -> Any:
            return DataLoader(data, batch_size=self.batch_size, shuffle=True)

    clips = [transform.max_norm for transform in training.recipe.gradient]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if training.recipe.compute.precision == "bf16" else "32-true",
        gradient_clip_val=clips[0] if clips else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module, tuner = Module(), Tuner(trainer)
    started = time.perf_counter()
    size = tuner.scale_batch_size(module, mode="power", max_val=_LARGEST_OF_LIGHTNING)
    scaling_seconds = time.perf_counter() - started
    finder = tuner.lr_find(module)
    return int(size or 2), None if finder is None else finder.suggestion(), scaling_seconds


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    silent = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        warnings.simplefilter("ignore")
        yield


PEERS: tuple[Peer, ...] = (
    Peer(name="present", choose=_present),
    Peer(name="adam-3e-4", choose=_adam),
    Peer(name="fill-memory", choose=_fill_memory),
    Peer(name="random-search", choose=_random_search),
    Peer(name="lightning", choose=_lightning),
)
"""In the order of the table."""
