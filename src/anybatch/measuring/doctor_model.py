"""What the doctor finds out about a model by running it: losses, gradients, activations."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anybatch.measuring.examples import losses_of, parts_of
from anybatch.objectives import logits_of
from anybatch.training.checks import call_model
from anybatch.training.portion import Portion
from anybatch.training.precision import cast
from anybatch.training.training import Training

__all__ = [
    "ByHeart",
    "Watched",
    "learn_by_heart",
    "mean_loss",
    "names_of_parameters",
    "train_mode_without_dropout",
    "watched_forward",
]

_RELUS = (F.relu, torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_, F.relu6)
_FACTORS = (1.0, 10.0, 0.1, 100.0, 0.01)  # on the recipe's lr
_UPDATES = 60
_LEARNED = 0.08  # of the loss is left: a little less than the 10 % that are asked for
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def train_mode_without_dropout(training: Training) -> None:
    """Training mode, in which BatchNorm uses its batch, but no dropout layer draws."""
    training.one_step.train_mode()
    for module in training.model.modules():
        if isinstance(module, _DROPOUTS):
            module.training = False


def mean_loss(training: Training, portions: list[Portion]) -> float:
    """Mean loss over some examples without label smoothing, over all ranks.

    Collectives: one all-reduce of a number; every rank must call.
    """
    total = torch.zeros(1, dtype=torch.float64, device=training.world.device)
    with torch.no_grad():
        for part in parts_of(training, portions):
            total += losses_of(training, part, plain=True).sum(dtype=torch.float64)
    training.world.sum_in_place(total)
    return float(total) / sum(portion.num_examples for portion in portions)


def names_of_parameters(model: nn.Module) -> tuple[list[str], list[str], int]:
    """Frozen ones; "first = second" of those with several names; how many there are."""
    names: dict[int, list[str]] = {}
    parameters = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters:
        names.setdefault(id(parameter), []).append(name)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    tied = [" = ".join(same) for same in names.values() if len(same) > 1]
    return frozen, tied, len(names)


# --- activations -------------------------------------------------------------------------------


@dataclass(slots=True)
class Watched:
    """What the layers put out.

    Attributes:
        greatest: of each unit after a ReLU, by layer.
        moments: count, sum and sum of squares of each weight layer's outputs.
        loss: mean over the examples and all ranks, without label smoothing.
        logits: shape of the model's outputs for a part; () where it has none.
    """

    greatest: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    loss: float = math.nan
    logits: tuple[int, ...] = ()

    @property
    def dead(self) -> dict[str, tuple[int, int]]:
        """By layer: how many units never fired, of how many."""
        return {name: (int((top <= 0).sum()), len(top)) for name, top in self.greatest.items()}

    @property
    def deviations(self) -> dict[str, float]:
        """By layer: the standard deviation of its outputs; nan where they are not finite."""
        found = {}
        for name, moments in self.moments.items():
            count, total, squares = moments.tolist()
            variance = squares / count - (total / count) ** 2
            found[name] = math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan
        return found


class _Watch(TorchFunctionMode):
    """Sees every ReLU, a module's as a function's, and notes the greatest output of each unit."""

    def __init__(self, watched: Watched, path: list[str]) -> None:
        super().__init__()
        self._watched, self._path = watched, path
        self.calls: dict[str, int] = {}

    def __torch_function__(  # torch's own name and form
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in _RELUS and isinstance(found, Tensor) and found.dim() > 1:
            name = self._path[-1] if self._path else "relu"
            number = self.calls[name] = self.calls.get(name, 0) + 1
            key = name if number == 1 else f"{name} ({number})"
            tops, known = _greatest(found.detach()), self._watched.greatest
            known[key] = torch.maximum(known[key], tops) if key in known else tops
        return found


def _greatest(outputs: Tensor) -> Tensor:
    """Of each unit: of channels in images, of the last dimension elsewhere."""
    dimension = 1 if outputs.dim() > 3 else outputs.dim() - 1
    return outputs.transpose(0, dimension).flatten(1).amax(1)


def watched_forward(training: Training, portions: list[Portion]) -> Watched:
    """Run some examples through the model and watch its layers; those of this rank's share.

    Collectives: one all-reduce of a number, for the loss; every rank must call.
    """
    watched, path = Watched(), list[str]()
    total = torch.zeros(1, dtype=torch.float64, device=training.world.device)
    with torch.no_grad(), _named_hooks(training.model, watched, path):
        for part in parts_of(training, portions):
            with _Watch(watched, path):  # calls are counted anew for each part
                total += losses_of(training, part, plain=True).sum(dtype=torch.float64)
    training.world.sum_in_place(total)
    watched.loss = float(total) / sum(portion.num_examples for portion in portions)
    return watched


@contextmanager
def _named_hooks(model: nn.Module, watched: Watched, path: list[str]) -> Iterator[None]:
    """While it lasts, `path` holds the names of the modules that are being called."""
    handles = []

    def note(name: str, module: nn.Module, outputs: Any) -> None:
        weight = getattr(module, "weight", None)
        is_layer = isinstance(weight, Tensor) and weight.dim() > 1
        if is_layer and isinstance(outputs, Tensor) and not isinstance(module, nn.Embedding):
            values = outputs.detach().double()
            count = torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device)
            moments = torch.stack([count, values.sum(), values.square().sum()])
            watched.moments[name] = watched.moments.get(name, torch.zeros_like(moments)) + moments

    def enter(name: str) -> Any:
        return lambda module, inputs: path.append(name)

    def leave(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            path.pop()
            note(name, module, outputs)
            logits = logits_of(outputs) if module is model else None
            if isinstance(logits, Tensor):
                watched.logits = tuple(logits.shape)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name or "model")))
        handles.append(module.register_forward_hook(leave(name or "model")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- one batch by heart ------------------------------------------------------------------------


@dataclass(slots=True)
class ByHeart:
    """How learning one batch by heart went.

    Attributes:
        start: loss before.
        end: lowest loss that was reached.
        updates: taken at the best lr.
        lr: the best one that was tried.
        metrics: of the batch, before and at the end of the best lr.
        in_time: whether every lr was tried to its end, or one sufficed.
        unmoved: names of trainable parameters that no update gave a gradient.
        examples: used.
    """

    start: float
    end: float
    updates: int = 0
    lr: float = math.nan
    metrics: tuple[float, float] = (math.nan, math.nan)
    in_time: bool = True
    unmoved: list[str] = field(default_factory=list)
    examples: int = 0


def learn_by_heart(training: Training, portions: list[Portion], *, seconds: float) -> ByHeart:
    """Train on one batch, from the same beginning at up to five learning rates.

    The training is where it was afterwards, but for modes and generators.

    Args:
        training: what is trained.
        portions: the batch; the first is taken.
        seconds: for all of it, about.

    Collectives: those of the updates, and a broadcast each; every rank must call.
    """
    state = copy.deepcopy(training.state_dict())
    batch, deadline = portions[:1], time.perf_counter() + seconds
    start = mean_loss(training, batch)
    found = ByHeart(start=start, end=start, metrics=(_metric(training, batch), math.nan))
    training.one_step.gradient(batch[0])
    trained = [name for name, p in training.model.named_parameters() if p.requires_grad]
    found.unmoved = [name for name in trained if not _moves(training, name)]
    hyperparameters = training.one_step.hyperparameters
    own = hyperparameters.current()["lr"]
    for factor in _FACTORS if hyperparameters.can_move_lr and own > 0.0 else ():
        hyperparameters.fixed_lr = own * factor
        _try(training, batch, found, deadline)
        training.load_state_dict(copy.deepcopy(state))
        if found.end <= _LEARNED * start or not found.in_time:
            break
    hyperparameters.fixed_lr = None
    train_mode_without_dropout(training)
    return found


def _try(training: Training, batch: list[Portion], found: ByHeart, deadline: float) -> None:
    """Up to 60 updates at the lr that is set; keeps the lowest loss of all."""
    step, world = training.one_step, training.world
    position = training.feed.position()
    for update in range(1, _UPDATES + 1):
        train_mode_without_dropout(training)
        step.gradient(batch[0])
        if found.unmoved:
            found.unmoved = [name for name in found.unmoved if not _moves(training, name)]
        step.update(position)
        loss = mean_loss(training, batch)
        found.examples += batch[0].num_examples
        if loss < found.end or math.isnan(found.lr):
            found.end, found.updates = min(loss, found.end), update
            found.lr = step.hyperparameters.fixed_lr or math.nan
            found.metrics = (found.metrics[0], _metric(training, batch))
        if loss <= _LEARNED * found.start or not math.isfinite(loss):
            return
        if world.from_first(time.perf_counter() > deadline):
            found.in_time = False
            return


def _moves(training: Training, name: str) -> bool:
    gradient = training.model.get_parameter(name).grad
    return gradient is not None and bool((gradient != 0).any())


def _metric(training: Training, batch: list[Portion]) -> float:
    """Mean of the task's metric over a batch, over all ranks; nan where it has no such values.

    Collectives: one all-reduce of a number; every rank must call.
    """
    compute, judge = training.recipe.compute, training.task.judge
    total = torch.zeros(1, dtype=torch.float64, device=training.world.device)
    with torch.no_grad():
        for part in parts_of(training, batch):
            outputs = call_model(training.model, cast(part.inputs, compute))
            values = judge.per_example(outputs, cast(part.targets, compute))
            total += values.sum(dtype=torch.float64)
    training.world.sum_in_place(total)
    return float(total) / sum(portion.num_examples for portion in batch)
