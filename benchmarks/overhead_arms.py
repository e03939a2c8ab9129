"""Arms of the overhead benchmark: the same training, driven by each of the peers.

All train the same network on the same tensors with SGD and momentum, in shuffled batches of 32,
a whole epoch a call, so that the beginning of an epoch counts in every arm. Whatever an arm
must set up once is done outside of the time. Logging, checkpoints, progress bars and evaluation
are off in all of them.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anybatch.recipe import ComputeSettings, Recipe, RecordSettings, SGDSettings, Stopping
from anybatch.run import Run
from anybatch.schedules import epochs
from anybatch.task import Task
from anybatch.training.training import Training

__all__ = ["ARMS", "BARE", "Arm", "Setup", "Timing"]

BARE = "bare loop"
_INPUTS, _HIDDEN, _CLASSES = 784, 100, 10
_BATCH_SIZE = 32
_BATCHES_PER_EPOCH = 260  # a multiple of anybatch's 20 updates a record
_EPOCHS = 1
_LR, _MOMENTUM = 0.01, 0.9
_NEVER = epochs(1_000_000)

Timing = Callable[[], float]
"""Trains `Setup.num_steps` steps and returns the seconds they took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the arms share.

    Attributes:
        inputs: float32, shape (examples, 784).
        targets: int64, shape (examples,).
        folder: empty, for what an arm writes.
    """

    inputs: Tensor
    targets: Tensor
    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Setup:
        """Random data of the benchmark's size.

        Args:
            folder: empty, for what an arm writes.
        """
        generator = torch.Generator().manual_seed(0)
        count = _BATCH_SIZE * _BATCHES_PER_EPOCH
        inputs = torch.randn(count, _INPUTS, generator=generator)
        targets = torch.randint(_CLASSES, (count,), generator=generator)
        return cls(inputs=inputs, targets=targets, folder=folder)

    @property
    def num_steps(self) -> int:
        """Updates in one call of a `Timing`."""
        return _BATCHES_PER_EPOCH * _EPOCHS

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The data in shuffled batches, collated example by example as a DataLoader does."""
        return DataLoader(
            TensorDataset(self.inputs, self.targets), batch_size=_BATCH_SIZE, shuffle=True
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        name: in tables.
        prepare: sets everything up and returns what is timed.
        module: that must be importable; "" where nothing but torch and anybatch is needed.
    """

    name: str
    prepare: Callable[[Setup], Timing]
    module: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether the arm can be measured here."""
        return not self.module or importlib.util.find_spec(self.module) is not None


def _new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(_INPUTS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _CLASSES))


def _sgd(model: nn.Module, *, fused: bool | None = None) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=_LR, momentum=_MOMENTUM, fused=fused)


def _timed(work: Callable[[], object]) -> Timing:
    def timing() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return timing


# --- plain PyTorch -----------------------------------------------------------------------------


def _bare(setup: Setup, *, fused: bool | None = None) -> Timing:
    model = _new_model()
    optimizer = _sgd(model, fused=fused)
    loss_function = nn.CrossEntropyLoss()

    def work() -> None:
        for _ in range(_EPOCHS):
            for chosen in torch.randperm(len(setup.inputs)).split(_BATCH_SIZE):
                optimizer.zero_grad()
                loss_function(model(setup.inputs[chosen]), setup.targets[chosen]).backward()
                optimizer.step()

    return _timed(work)


def _bare_fused(setup: Setup) -> Timing:
    return _bare(setup, fused=True)


def _data_loader(setup: Setup) -> Timing:
    model, loader = _new_model(), setup.loader()
    optimizer = _sgd(model)
    loss_function = nn.CrossEntropyLoss()

    def work() -> None:
        for _ in range(_EPOCHS):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss_function(model(inputs), targets).backward()
                optimizer.step()

    return _timed(work)


# --- anybatch ----------------------------------------------------------------------------------


def _recipe() -> Recipe:
    return Recipe(
        optimizer=SGDSettings(lr=_LR, momentum=_MOMENTUM),
        batch_size=_BATCH_SIZE,
        duration=_NEVER,
        stopping=Stopping(evaluate_every=_NEVER),
        records=RecordSettings(checkpoint_every=_NEVER),
        compute=ComputeSettings(device="cpu"),
    )


def _anybatch(setup: Setup, write: Callable[[Any], object] = lambda record: None) -> Timing:
    data = (setup.inputs, setup.targets)
    task = Task(build_model=_new_model, train=data, validation=data)
    training = Training(task, _recipe())
    rounds: Iterator[list[Any]] = training.rounds()

    def work() -> None:
        end = training.updates + setup.num_steps
        while training.updates < end:
            for record in next(rounds):
                write(record)

    return _timed(work)


def _anybatch_with_log(setup: Setup) -> Timing:
    run = Run.create(setup.folder / "run", _recipe(), {})
    return _anybatch(setup, run.append)


# --- peers -------------------------------------------------------------------------------------


def _ignite(setup: Setup) -> Timing:
    from ignite.engine import create_supervised_trainer

    model, loader = _new_model(), setup.loader()
    trainer = create_supervised_trainer(model, _sgd(model), nn.CrossEntropyLoss())
    return _timed(lambda: trainer.run(loader, max_epochs=_EPOCHS))


def _accelerate(setup: Setup) -> Timing:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain = _new_model()
    model, optimizer, loader = accelerator.prepare(plain, _sgd(plain), setup.loader())
    loss_function = nn.CrossEntropyLoss()

    def work() -> None:
        for _ in range(_EPOCHS):
            for inputs, targets in loader:
                optimizer.zero_grad()
                accelerator.backward(loss_function(model(inputs), targets))
                optimizer.step()

    return _timed(work)


def _lightning(setup: Setup) -> Timing:
    """Timed from hook to hook, since `fit` sets up a trainer each time."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss_function = _new_model(), nn.CrossEntropyLoss()
            self.started = self.seconds = 0.0

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            loss: Tensor = self.loss_function(self.model(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _sgd(self.model)

        def on_train_start(self) -> None:
            self.started = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.started

    module, loader = Module(), setup.loader()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def timing() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on loader processes and loggers
            trainer = lightning.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=_EPOCHS,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=setup.folder,
            )
            trainer.fit(module, loader)
        return module.seconds

    return timing


ARMS: tuple[Arm, ...] = (
    Arm(name=BARE, prepare=_bare),
    Arm(name="bare loop, fused=True", prepare=_bare_fused),
    Arm(name="anybatch Training", prepare=_anybatch),
    Arm(name="anybatch Training, records written", prepare=_anybatch_with_log),
    Arm(name="bare loop, DataLoader", prepare=_data_loader),
    Arm(name="ignite", prepare=_ignite, module="ignite"),
    Arm(name="accelerate", prepare=_accelerate, module="accelerate"),
    Arm(name="lightning", prepare=_lightning, module="lightning"),
)
"""In the order of the table."""
