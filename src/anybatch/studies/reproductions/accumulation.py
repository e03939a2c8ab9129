"""A gradient that is formed part by part, beside that of one pass: three ways, two of them wrong.

count-weighted     sum over parts of the examples' gradients / examples of all parts
mean-of-means      mean over parts of the parts' mean gradients: wrong where parts differ in size
constant-divisor   a <- a + (g_k - a) / K for each of K parts, begun at 0: its weights
                   (1 - 1/K)^(K-k) / K add up to 1 - (1 - 1/K)^K, 0.63 for many parts, and the last
                   part counts up to e times as much as the first

Reference: the last is the public code of Geiping et al., Stochastic training is not necessary for
generalization, as it was from September 2021 to January 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from anybatch.curvature.hvp import flat
from anybatch.recipe import Recipe
from anybatch.task import Task
from anybatch.training.portion import Portion
from anybatch.training.training import Training

__all__ = ["accumulation_errors", "combined"]

Method = Literal["count-weighted", "mean-of-means", "constant-divisor"]


def accumulation_errors(
    task: Task, recipe: Recipe, method: Method, sizes: Sequence[int]
) -> dict[str, float]:
    """|gradient in parts - gradient in one pass| / |gradient in one pass|, at the initial weights.

    Args:
        task: what is learned.
        recipe: its batch is the whole set; its precision and seed count.
        method: how parts are combined; "count-weighted" is the training's own accumulation.
        sizes: examples of a part; the last part takes what is left.

    Returns:
        "error_equal_parts" and "error_unequal_parts", each the largest over its sizes, and
        "norm_ratio", |gradient in parts| / |gradient in one pass|, of the first size.
    """
    errors: dict[str, list[float]] = {"error_equal_parts": [], "error_unequal_parts": []}
    with Training(task, recipe) as training:
        training.one_step.train_mode()
        portion = training.feed.next()
        whole = _gradient(training, portion, portion.num_examples)
        ratios = []
        for size in sizes:
            if method == "count-weighted":
                found = _gradient(training, portion, size)
            else:
                found = combined(_means(training, portion, size), method)
            kind = "un" * bool(portion.num_examples % size)
            error = torch.linalg.vector_norm(found - whole) / torch.linalg.vector_norm(whole)
            errors[f"error_{kind}equal_parts"].append(float(error))
            ratios.append(float(found.norm() / whole.norm()))
    largest = {name: max(values) for name, values in errors.items() if values}
    return largest | {"norm_ratio": ratios[0]}


def _gradient(training: Training, portion: Portion, size: int) -> Tensor:
    training.one_step.gradient(portion, micro_batch_size=size)
    return _found(training)


def _found(training: Training) -> Tensor:
    parameters = [p for p in training.model.parameters() if p.requires_grad]
    return flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])


def _means(training: Training, portion: Portion, size: int) -> list[Tensor]:
    """The mean gradient of each part."""
    found = []
    for part in portion.parts(size):
        count = len(part.indices)
        training.one_step.gradient(Portion(part, count, counted=True), micro_batch_size=count)
        found.append(_found(training))
    return found


def combined(means: Sequence[Tensor], method: Method) -> Tensor:
    """Mean gradients of parts, combined in one of the wrong ways.

    Args:
        means: (n,) each.
        method: "mean-of-means" or "constant-divisor".

    Example:
        >>> combined([torch.tensor([4.0]), torch.tensor([8.0])], "mean-of-means")
        tensor([6.])
        >>> combined([torch.tensor([4.0]), torch.tensor([8.0])], "constant-divisor")
        tensor([5.])
    """
    if method == "mean-of-means":
        return torch.stack(list(means)).mean(0)
    average = torch.zeros_like(means[0])
    for mean in means:
        average += (mean - average) / len(means)
    return average
