"""Squared norms of the gradients that backward passes add up, each taken before it is added.

A hook on each parameter sees the gradient of the backward pass under way, fresh: not yet added to
`.grad`, not yet summed over ranks, all uses of a tied weight together. Only its norm is kept, so
accumulation costs no memory that it did not cost before, and nothing is read from the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from anybatch.errors import InputError

__all__ = ["GradientParts", "adam_scales", "layer_names", "squared_norms"]

_MOST_LAYERS = 40


@final
class GradientParts:
    """Squared norms of each backward pass's gradient, parameter by parameter; a context manager.

    Hooks are there inside of the context alone, which may be entered again and goes on counting.

    Args:
        parameters: that require gradients.
        scales: of each parameter, by which its gradient is multiplied for a second norm; none:
            that norm is not taken.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> with GradientParts([weight]) as parts:
        ...     (3.0 * weight[0]).backward()
        ...     (4.0 * weight[1]).backward()
        >>> parts.num_parts, parts.squared_norms()[:, 0].tolist()
        (2, [9.0, 16.0])
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], scales: Sequence[Tensor] | None = None
    ) -> None:
        self._parameters, self._scales = list(parameters), scales
        self._rows: dict[int, dict[int, Tensor]] = {}  # by backward pass, then by parameter
        self._scaled: dict[int, dict[int, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            parameter.register_hook(_Hook(self, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(self._parameters)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self) -> None:
        """Begin with the next backward pass anew."""
        self._rows, self._scaled = {}, {}

    @property
    def num_parts(self) -> int:
        """Backward passes that reached a parameter since the beginning."""
        return len(self._rows)

    def squared_norms(self) -> Tensor:
        """Of each part and parameter, shape (parts, parameters), on the parameters' device."""
        return self._table(self._rows)

    def scaled_squared_norms(self) -> Tensor:
        """Of the gradients times their scales, shape (parts, parameters)."""
        return self._table(self._scaled)

    def _table(self, rows: dict[int, dict[int, Tensor]]) -> Tensor:
        zero = _zero(self._parameters)
        norms = [row.get(n, zero) for row in rows.values() for n in range(len(self._parameters))]
        if not norms:
            return zero.new_zeros(0, len(self._parameters))
        gathered = [norm.to(zero.device) for norm in norms]
        return torch.stack(gathered).view(len(rows), -1).square()

    def take(self, number: int, gradient: Tensor) -> None:
        """Note the norm of a parameter's gradient of the backward pass under way.

        Raises:
            InputError: the pass has given this parameter's gradient before: norms do not add.
        """
        backward = torch._C._current_graph_task_id()
        row = self._rows.setdefault(backward, {})
        if number in row:
            rule = "must reach each parameter once"
            raise InputError("a backward pass", rule, hint="checkpoint with use_reentrant=False")
        row[number] = _norm(gradient)
        if self._scales is not None:
            scaled = _dense(gradient) * self._scales[number]
            self._scaled.setdefault(backward, {})[number] = _norm(scaled)


class _Hook:
    """One parameter's hook; an object, so that copying a model copies no closure."""

    def __init__(self, parts: GradientParts, number: int) -> None:
        self._parts, self._number = parts, number

    def __call__(self, gradient: Tensor) -> None:
        self._parts.take(self._number, gradient)


def squared_norms(
    parameters: Sequence[nn.Parameter], scales: Sequence[Tensor] | None = None
) -> Tensor:
    """Of each parameter's `.grad`, 0 where there is none; shape (parameters,).

    Args:
        parameters: whose.
        scales: of each parameter, by which its gradient is multiplied; None: 1.
    """
    zero = _zero(parameters)
    norms = [zero] * len(parameters)
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None:
            gradient = parameter.grad
            if scales is not None:
                gradient = _dense(gradient) * scales[number]
            norms[number] = _norm(gradient).to(zero.device)
    return torch.stack(norms).square()


def _norm(gradient: Tensor) -> Tensor:
    """Euclidean norm, summed in fp32 at least."""
    values = gradient.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(values, dtype=dtype)
    return norm


def _dense(gradient: Tensor) -> Tensor:
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()


def _zero(parameters: Sequence[nn.Parameter]) -> Tensor:
    first = parameters[0]
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=first.device)


def adam_scales(optimizer: object, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """What Adam multiplies each gradient's running mean by: 1 / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        optimizer: torch's Adam or AdamW; any other has none.
        parameters: whose scales.

    Returns:
        None for another optimizer, or where a parameter has no state yet.

    Cost:
        One copy of the gradient's size.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return None
    scales: dict[nn.Parameter, Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
            if "exp_avg_sq" not in state:
                continue
            correction = 1.0 - group["betas"][1] ** float(state["step"])
            root = (state["exp_avg_sq"] / correction).sqrt()
            scales[parameter] = 1.0 / (root + group["eps"])
    if not all(parameter in scales for parameter in parameters):
        return None
    return [scales[parameter] for parameter in parameters]


def layer_names(names: Sequence[str]) -> list[str]:
    """The layer of each parameter: the module that owns it.

    With more than 40 of them, the first part of the module's name; a parameter of the model itself
    is a layer of its own.

    Args:
        names: of the parameters, as `named_parameters` gives them; a tied weight once.

    Example:
        >>> layer_names(["stem.conv.weight", "stem.conv.bias", "head.weight", "scale"])
        ['stem.conv', 'stem.conv', 'head', 'scale']
    """
    owners = [name.rpartition(".")[0] or name for name in names]
    if len(set(owners)) <= _MOST_LAYERS:
        return owners
    return [name.partition(".")[0] for name in names]
