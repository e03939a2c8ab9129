"""Finders of the gallery: ours and its peers, each run as its users run it, with its defaults.

All get the same model, optimizer, loss function, batches, range and number of updates. The answer
of a peer is its suggested lr:

- torch-lr-finder: steepest point per update of the smoothed curve, as `plot` returns it;
- Lightning: steepest point per lr of the smoothed curve, `suggestion()`;
- ignite: steepest point per update left of the smoothed minimum, `lr_suggestion()`;
- ours: `max_lr`, with the default probes on tasks; without them on scripted curves, which a
  training at constant lr cannot confirm; `read_curve` alone where our test refuses so few updates.

An exception or None counts as "don't know".
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.gallery_truth import Answer, Problem

__all__ = ["OURS", "TOOLS", "Tool", "ask"]

OURS = "anybatch"
_LONGEST_MESSAGE = 120
_MOST_UPDATES = 5000
_SHORTEST_TEST = 16  # updates; our test refuses fewer


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One finder.

    Attributes:
        name: in the table.
        find: problem -> answer, without its time.
        module: imported to see whether it is there.
        package: whose version is stored.
        names_reasons: whether it has names for what is broken.
    """

    name: str
    find: Callable[[Problem], Answer]
    module: str
    package: str
    names_reasons: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether it can be asked here."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # of the package around it
            return False


def ask(tool: Tool, problem: Problem) -> Answer:
    """Run a finder on a problem, silently; an exception is an answer without a number.

    Args:
        tool: that is installed.
        problem: built for this call alone.
    """
    started = time.perf_counter()
    try:
        with _silence():
            answer = tool.find(problem)
    except Exception as error:  # whatever a peer raises is what its user would see
        message = f"{type(error).__name__}: {error}".partition("\n")[0]
        answer = Answer(error=message[:_LONGEST_MESSAGE])
    return replace(answer, seconds=time.perf_counter() - started)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    silent = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        warnings.simplefilter("ignore")
        yield


def _loader(problem: Problem) -> DataLoader[Any]:
    return DataLoader(list(problem.batches), batch_size=None)  # type: ignore[arg-type]


# --- ours ----------------------------------------------------------------------------------------


def _anybatch(problem: Problem) -> Answer:
    found: Any = _read_curve(problem) if _is_short(problem) else _measure(problem)
    values = {name: estimate.value for name, estimate in found.estimates.items()}
    return Answer(
        lr=values.get("max_lr"),
        edge=values["edge"],
        findings=tuple(finding.name for finding in found.findings),
    )


def _is_short(problem: Problem) -> bool:
    return problem.recorded is not None and problem.ramp.num_updates < _SHORTEST_TEST


def _read_curve(problem: Problem) -> Any:
    from anybatch.measuring.lr_curve import read_curve

    lrs, losses = problem.recorded or ([], [])
    return read_curve(lrs, losses)


def _measure(problem: Problem) -> Any:
    from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range

    batches = cycle(problem.batches)
    taken = count(1)

    def step() -> Tensor:
        if next(taken) > _MOST_UPDATES:
            raise RuntimeError(f"took more than {_MOST_UPDATES} updates")
        inputs, targets = next(batches)
        problem.optimizer.zero_grad()
        loss = problem.loss_function(problem.model(inputs), targets)
        loss.backward()
        problem.optimizer.step()
        return loss.detach()

    ramp = problem.ramp
    settings = LRRangeSettings(
        start_lr=ramp.start_lr,
        end_lr=ramp.end_lr,
        num_updates=ramp.num_updates,
        spacing=ramp.kind,
    )
    if problem.recorded is not None:
        settings = replace(settings, probe_updates=0)
    return measure_lr_range(
        step=step, optimizer=problem.optimizer, restore=[problem.model], settings=settings
    )


# --- peers ---------------------------------------------------------------------------------------


def _torch_lr_finder(problem: Problem) -> Answer:
    os.environ.setdefault("MPLBACKEND", "agg")  # it imports pyplot
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder

    ramp = problem.ramp
    finder = LRFinder(problem.model, problem.optimizer, problem.loss_function, device="cpu")
    finder.range_test(
        _loader(problem),
        start_lr=ramp.start_lr,
        end_lr=ramp.end_lr,
        num_iter=ramp.num_updates,
        step_mode="exp" if ramp.kind == "log" else "linear",
    )
    _, lr = finder.plot(suggest_lr=True, ax=Figure().subplots())
    return Answer(lr=float(lr))


def _lightning(problem: Problem) -> Answer:
    import lightning
    from lightning.pytorch.tuner import Tuner

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = problem.model, problem.ramp.start_lr

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            return problem.loss_function(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return problem.optimizer

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        ramp = problem.ramp
        finder = Tuner(trainer).lr_find(
            Module(),
            train_dataloaders=_loader(problem),
            min_lr=ramp.start_lr,
            max_lr=ramp.end_lr,
            num_training=ramp.num_updates,
            mode="exponential" if ramp.kind == "log" else "linear",
        )
        return Answer(lr=None if finder is None else finder.suggestion())


def _ignite(problem: Problem) -> Answer:
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    ramp, finder = problem.ramp, FastaiLRFinder()
    trainer = create_supervised_trainer(problem.model, problem.optimizer, problem.loss_function)
    with finder.attach(
        trainer,
        to_save={"model": problem.model, "optimizer": problem.optimizer},
        num_iter=ramp.num_updates,
        start_lr=ramp.start_lr,
        end_lr=ramp.end_lr,
        step_mode="exp" if ramp.kind == "log" else "linear",
    ):
        trainer.run(_loader(problem))
    return Answer(lr=float(finder.lr_suggestion()))


TOOLS: tuple[Tool, ...] = (
    Tool(
        name=OURS,
        find=_anybatch,
        module="anybatch.measuring.lr_range",
        package="anybatch",
        names_reasons=True,
    ),
    Tool(
        name="torch-lr-finder",
        find=_torch_lr_finder,
        module="torch_lr_finder",
        package="torch-lr-finder",
    ),
    Tool(name="lightning", find=_lightning, module="lightning", package="lightning"),
    Tool(name="ignite", find=_ignite, module="ignite", package="pytorch-ignite"),
)
"""In the order of the table."""
