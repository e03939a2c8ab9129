"""Task: a model to build, data to train, choose and test with, a loss and a metric.

A task comes from a name (`load_task("mnist")`), from "package.module:function", or is made by hand
from any module and any data. It holds no choices of training: those are the Recipe's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from anybatch.data.catalog import DATA_SETS, load_splits
from anybatch.data.coerce import as_source
from anybatch.data.copies import copied
from anybatch.data.download import download_data
from anybatch.data.draws import permutation
from anybatch.data.order import Order, epoch_order
from anybatch.data.source import Batch, Source
from anybatch.errors import InputError
from anybatch.models.table import ModelShape, build_model
from anybatch.objectives import (
    Kind,
    LossFunction,
    Metric,
    default_loss,
    default_metric,
    per_example,
)
from anybatch.recipe import Augmentation, ModelSettings
from anybatch.recipe_file import made_by

__all__ = ["SplitName", "Task", "load_task"]

SplitName: TypeAlias = Literal["train", "validation", "test"]

_VALIDATION_FRACTION = 0.1
_VALIDATION_LIMIT = 10_000
_VALIDATION_SEED = 0x5EED  # of the split alone: the same examples whatever the run's seed
_KINDS = ("classification", "regression", "language-modelling")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be learned.

    Data may be a pair (inputs, targets) of tensors or arrays, a map-style `Dataset`, a
    `DataLoader` (its data set and collation are used; batch size and order are the recipe's), or
    an iterable of (input, target) tuples or of dicts with a "target" key.

    Attributes:
        build_model: makes a new model; called after torch's generator has been seeded.
        train: training data.
        validation: data to choose by. None sets a fixed 10 % of the training data aside, at most
            10,000 examples, the same ones whatever the run's seed.
        test: data read once, at the end; None where there is none.
        kind: "classification", "regression" or "language-modelling"; sets loss and metric.
        loss: own loss (outputs, targets) -> (examples,), or a torch loss module.
        metric: own metric.
        loss_scope: "batch" where the loss couples the examples of a batch and returns one value;
            such a batch is divided by the recipe's loss.coupled = "cached-outputs" alone.
        target_key: where an example that is a dict holds its target; the other entries are the
            model's arguments by name.
        num_examples: length of the training data, where it is a stream of known length.
        shape: what a network of the package must know, so that `recipe.model` can choose one.
        name: in tables and records.
        reference: how `load_task` makes it again, plain values; empty for a task made by hand.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(20, 3), torch.arange(20) % 2
        >>> task = Task(build_model=lambda: nn.Linear(3, 2), train=(inputs, targets))
        >>> task.source("train").num_examples, task.source("validation").num_examples
        (18, 2)
        >>> task.batch(epoch=0, position=16, batch_size=8).indices.shape
        torch.Size([2])
    """

    build_model: Callable[[], nn.Module]
    train: Any
    validation: Any = None
    test: Any = None
    kind: Kind = "classification"
    loss: LossFunction | nn.Module | None = None
    metric: Metric | None = None
    loss_scope: Literal["example", "batch"] = "example"
    target_key: str = "target"
    num_examples: int | None = None
    shape: ModelShape | None = None
    name: str = "task"
    reference: dict[str, Any] = field(default_factory=dict)
    _sources: dict[str, Source] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.build_model) or isinstance(self.build_model, nn.Module):
            rule = "must be a function that returns a new model"
            raise InputError("build_model", rule, type(self.build_model).__name__)
        metric: Any = self.metric
        if not (metric is None or isinstance(metric, Metric)):
            raise InputError("metric", "must be an anybatch.Metric", type(metric).__name__)
        if self.kind not in _KINDS:
            raise InputError("kind", f"must be one of: {', '.join(_KINDS)}", self.kind)
        if self.loss_scope not in ("example", "batch"):
            raise InputError("loss_scope", 'must be "example" or "batch"', self.loss_scope)
        train = self._as_source(self.train, "train", self.num_examples)
        if self.validation is None:
            train, validation = _set_validation_aside(train)
        else:
            validation = self._as_source(self.validation, "validation")
        self._sources.update(train=train, validation=validation)
        if self.test is not None:
            self._sources["test"] = self._as_source(self.test, "test")

    def _as_source(self, data: Any, split: str, num_examples: int | None = None) -> Source:
        return as_source(data, split, target_key=self.target_key, num_examples=num_examples)

    def source(self, split: SplitName) -> Source:
        """The examples of a split.

        Raises:
            InputError: the task has no such split.
        """
        if split not in self._sources:
            raise InputError("split", f"must be one of: {', '.join(self._sources)}", split)
        return self._sources[split]

    def has(self, split: SplitName) -> bool:
        """Whether the task has this split."""
        return split in self._sources

    @property
    def judge(self) -> Metric:
        """The metric: the task's own, or the one of its kind."""
        return self.metric or default_metric(self.kind)

    def loss_function(self, label_smoothing: float = 0.0) -> LossFunction:
        """The loss, one value per example (one in all where `loss_scope` is "batch").

        Raises:
            InputError: label smoothing of a task that brings its own loss.
        """
        if self.loss is None:
            return default_loss(self.kind, label_smoothing)
        if label_smoothing:
            rule = "must be 0 for a task with its own loss"
            raise InputError("loss.label_smoothing", rule, label_smoothing)
        return self.loss if self.loss_scope == "batch" else per_example(self.loss)

    def new_model(self, settings: ModelSettings | None = None) -> nn.Module:
        """A new model: the task's own, or the network of the package that `settings` name.

        Raises:
            InputError: `settings` given for a task without a shape, or nothing was built.
        """
        if settings is not None:
            if self.shape is None:
                rule = "must be left out for a task without a shape"
                raise InputError(
                    "model",
                    rule,
                    settings.name,
                    hint="its own model is used: remove model from the recipe",
                )
            return build_model(
                settings.name, self.shape, width=settings.width, zero_gamma=settings.zero_gamma
            )
        model: Any = self._called_builder()
        if not isinstance(model, nn.Module):
            rule = "must return a torch.nn.Module"
            raise InputError("build_model", rule, type(model).__name__)
        return model

    def _called_builder(self) -> Any:
        try:
            inspect.signature(self.build_model).bind()
        except TypeError as error:
            raise InputError(
                "build_model", "must be callable without arguments", str(error)
            ) from None
        except ValueError:  # some built-in callables have no signature
            return self.build_model()
        return self.build_model()

    def batch(
        self,
        epoch: int,
        position: int,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        order: Order = "shuffled",
    ) -> Batch:
        """Any training batch, past or future, bit for bit as a run saw or will see it.

        Args:
            epoch: number of the pass, from 0.
            position: examples of that pass seen before this batch.
            batch_size: examples of the whole (global) update; fewer are left at an epoch's end.
            seed: the run's seed.
            augmentation: the run's augmentation; of fixed copies an epoch holds each.
            order: the run's.

        Raises:
            InputError: the position lies outside of the epoch.
        """
        source = copied(self.source("train"), augmentation or Augmentation())
        numbers = epoch_order(source, seed=seed, epoch=epoch, order=order)
        if not 0 <= position < len(numbers):
            raise InputError("position", f"must be in [0, {len(numbers)})", position)
        indices = numbers[position : position + batch_size]
        made = source.batches([indices], epoch=epoch, seed=seed, augmentation=augmentation)
        return next(iter(made))


def _set_validation_aside(train: Source) -> tuple[Source, Source]:
    """Training data without, and the fixed validation part (see `Task.validation`)."""
    count = train.num_examples
    if count is None or not train.random_access:
        rule = "must be given for a stream, which cannot be divided"
        raise InputError("validation", rule)
    held_out = min(max(1, round(count * _VALIDATION_FRACTION)), _VALIDATION_LIMIT)
    if count < 2:
        raise InputError("train", "must hold at least 2 examples to set validation aside", count)
    order = permutation(count, seed=_VALIDATION_SEED, epoch=0)
    validation, rest = order[:held_out].sort().values, order[held_out:].sort().values
    return train.subset(rest), train.subset(validation)


def load_task(
    name: str,
    *,
    data: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Task:
    """A task by name.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", "image-folder:PATH", "text:PATH" or
            "package.module:function", the function taking nothing and returning a Task.
        data: folder to look in for data sets; None takes ANYBATCH_DATA, then ./data.
        image_size: side in pixels that streamed images are brought to.
        download: fetch the data set if it is not there (see `download_data`). Every rank may ask:
            one downloads, the others wait for it.

    Raises:
        InputError: unknown name, missing or broken files, or the function returns something else.
    """
    if download:
        download_data(name, data)
    reference = {
        "name": name,
        "data": str(data.resolve()) if data is not None else None,
        "image_size": image_size,
        "folder": str(Path.cwd()),
    }
    base = name.partition(":")[0]
    if base not in DATA_SETS and ":" in name:
        made = made_by(name)
        if not isinstance(made, Task):
            raise InputError(name, "must return a Task", type(made).__name__)
        return replace(made, reference=reference)
    splits = load_splits(name, data=data, image_size=image_size)
    shape = ModelShape(
        input_shape=splits.input_shape,
        num_outputs=splits.num_outputs,
        vocabulary_size=splits.vocabulary_size,
    )
    return Task(
        build_model=lambda: build_model(DATA_SETS[base].default_model, shape),
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        kind=splits.kind,
        shape=shape,
        name=name,
        reference=reference,
    )
