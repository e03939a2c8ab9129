"""Gradients whose outer products make the Fisher of a model's own distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from anybatch.errors import InputError

__all__ = ["Family", "output_gradients"]

Family: TypeAlias = Literal["softmax", "gaussian"]


def output_gradients(
    outputs: Tensor,
    family: Family,
    kind: Literal["sampled", "exact"],
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Vectors v by the outputs whose outer products are the Hessian H of one example's loss.

    "sampled": one v with E[v v^T] = H; "exact": as many as outputs of an example, whose v v^T sum
    to H. H by the outputs z of one example, T positions of which the loss is the mean:

        softmax: (diag p - p p^T) / T at each position, p = softmax(z)
            sampled v = (p - onehot(y)) / sqrt(T), y drawn from p; exact v_c = column c of
            (diag(sqrt p) - p sqrt(p)^T) / sqrt(T), one position at a time
        gaussian: 2 / d I, that of the mean over d elements of (z - target)^2
            sampled v = sqrt(2 / d) eps, eps drawn from N(0, I); exact v_c = sqrt(2 / d) e_c

    This H is that of the mean over positions as one loss; the gradients of labels ("empirical")
    are of that mean too and give 1 / T of it, up to what positions have in common.

    Args:
        outputs: softmax: logits (n, C) or (n, T, C); gaussian: means (n, ...).
        family: distribution whose negative log-likelihood the loss is.
        kind: "sampled" or "exact".
        generator: of the draws, on the outputs' device; None: torch's own.

    Yields:
        Tensors like outputs; examples are independent in each.

    Raises:
        InputError: logits of another shape.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> sum(v.T @ v for v in output_gradients(logits, "softmax", "exact"))
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])

    Reference:
        Martens (2020), New insights and perspectives on the natural gradient method, section 9.
    """
    values = outputs.detach()
    values = values.double() if values.dtype == torch.float64 else values.float()
    if family == "softmax":
        vectors = _of_softmax(values, kind, generator)
    else:
        vectors = _of_gaussian(values, kind, generator)
    for vector in vectors:
        yield vector.to(outputs.dtype)


def _of_softmax(
    logits: Tensor, kind: Literal["sampled", "exact"], generator: torch.Generator | None
) -> Iterator[Tensor]:
    if logits.dim() not in (2, 3):
        rule = "must be logits (examples, classes) or (examples, positions, classes)"
        raise InputError("model output", rule, tuple(logits.shape))
    classes, positions = logits.shape[-1], logits[0, ..., 0].numel()
    scale = 1.0 / math.sqrt(positions)
    p = torch.softmax(logits, -1)
    if kind == "sampled":
        drawn = torch.multinomial(p.view(-1, classes), 1, generator=generator)
        onehot = torch.zeros_like(p).view(-1, classes).scatter_(1, drawn, 1.0)
        yield (p - onehot.view_as(p)) * scale
        return
    root = p.sqrt()
    for column in range(classes):
        vector = -p * root[..., column : column + 1]
        vector[..., column] += root[..., column]
        vector *= scale
        if logits.dim() == 2:
            yield vector
            continue
        for position in range(positions):
            only = torch.zeros_like(vector)
            only[:, position] = vector[:, position]
            yield only


def _of_gaussian(
    means: Tensor, kind: Literal["sampled", "exact"], generator: torch.Generator | None
) -> Iterator[Tensor]:
    count = means[0].numel()
    scale = math.sqrt(2.0 / count)
    if kind == "sampled":
        noise = torch.empty_like(means).normal_(generator=generator)
        yield noise * scale
        return
    for element in range(count):
        vector = torch.zeros_like(means).flatten(1) if means.dim() > 1 else means.new_zeros(())
        if means.dim() == 1:
            yield torch.full_like(means, scale)
            continue
        vector[:, element] = scale
        yield vector.view_as(means)
