"""Hessian-vector products by double backward: exact, one micro-batch's graph alive at a time.

H v = d/dw (dL/dw . v), v held fixed. Nothing is approximated by differences of gradients.

Reference: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from anybatch.errors import InputError

__all__ = ["flat", "hessian_vector_product", "kinks_of"]

_KINKED = ("Relu", "Hardtanh", "Hardswish", "Hardsigmoid", "Threshold", "MaxPool", "Abs",
           "SmoothL1", "Huber", "Maximum", "Minimum", "Clamp")  # fmt: skip


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors as one vector, in order; a copy.

    Example:
        >>> flat([torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)])
        tensor([1., 2., 3.])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_vector_product(
    losses: Iterable[Tensor], parameters: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """H v of the sum of some losses: the second derivative at the parameters' present values.

    A generator of losses is asked for the next one when the last one's graph has been let go, so
    the memory is that of one micro-batch. Parameters that a loss does not depend on, or only
    linearly, have rows of zeros. Where the loss has kinks (ReLU, max-pooling) H is that of the
    smooth piece on which the parameters lie, which is the Hessian almost everywhere.

    Args:
        losses: scalars; together they are the loss. Each still has its graph.
        parameters: real tensors that require gradients, each one once.
        vector: (n,) as `flat(parameters)`.

    Returns:
        (n,), in the parameters' type.

    Raises:
        InputError: a layer has no second derivative.

    Cost:
        About twice a forward and backward pass over the same examples, and twice the memory.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> parts = (part for part in (w[0] ** 2 * w[1], 3 * w[1] ** 2))
        >>> hessian_vector_product(parts, [w], torch.tensor([1.0, 1.0]))
        tensor([6., 8.])
    """
    total = torch.zeros_like(vector)
    pieces = [
        piece.view_as(parameter)
        for piece, parameter in zip(
            torch.split(vector, [p.numel() for p in parameters]), parameters, strict=True
        )
    ]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        for loss in losses:
            if loss.requires_grad:
                total += _product(loss, parameters, pieces)
    return total


def _product(loss: Tensor, parameters: Sequence[Tensor], pieces: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    curved = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g.requires_grad]
    if not curved:
        return torch.zeros_like(flat(pieces))
    outputs = [gradient for gradient, _ in curved]
    if any(node.name().endswith("Error") for node in _nodes(outputs)):
        raise _no_second_derivative("a function marked once_differentiable")  # else taken as 0
    try:
        vectors = [vector for _, vector in curved]
        rows = torch.autograd.grad(outputs, parameters, vectors, materialize_grads=True)
    except RuntimeError as error:
        raise _no_second_derivative(str(error)) from error
    return flat([row.detach() for row in rows])


def _no_second_derivative(reason: str) -> InputError:
    return InputError("model", "must have a second derivative in every layer", reason)


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """Every node of the graph that some tensors come from, once."""
    seen: set[Node] = set()
    waiting: list[Node | None] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node


def kinks_of(loss: Tensor) -> list[str]:
    """Operations in a loss's graph whose derivative jumps, by autograd's names, sorted.

    There the Hessian is that of the piece on which the weights lie.

    Example:
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> kinks_of(w.relu() + w.tanh()), kinks_of(w.tanh())
        (['Relu'], [])
    """
    names = {node.name().rstrip("0123456789").removesuffix("Backward") for node in _nodes([loss])}
    return sorted(name for name in names if any(kink in name for kink in _KINKED))
