"""What update rules over whole dense tensors share: parameter groups, precision, memory, states.

A rule is a function over lists of tensors that all lie on one device, in 32 or 64 bits, each dense
in memory and laid out like its weight. `DenseOptimizer` brings parameters into that form: those of
16 bits through a 32-bit copy that is rounded once, views with gaps through a dense copy. Buffers
are kept in the form, so a 16-bit parameter has 32-bit buffers.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anybatch.errors import InputError

__all__ = ["DenseOptimizer", "Part", "norms"]

_DENSE = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
_DIMENSIONS = {torch.channels_last: 4, torch.channels_last_3d: 5}
_ROWS, _LONG = 256, 65_536


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters of one group, device and precision that have a gradient.

    Attributes:
        weights: the parameters, or copies of them in 32 bits or without gaps.
        gradients: laid out like them; not to be changed.
        buffers: by name, likewise; changed in place.
        states: the whole state of each parameter, for what is no buffer.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    buffers: dict[str, list[Tensor]]
    states: list[dict[str, Any]]


class DenseOptimizer(torch.optim.Optimizer, abc.ABC):
    """An update rule over dense real tensors; subclasses check a group and step a part of it."""

    buffer_names: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Complete a new group and refuse settings out of their bounds."""

    def _buffers_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the buffers that a group has use for."""
        return self.buffer_names

    @abc.abstractmethod
    def _step_part(self, group: dict[str, Any], part: Part) -> None:
        """Change the part's weights, buffers and states by one update."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with settings of its own where it has them, the optimizer's else.

        Raises:
            InputError: a setting out of its bounds, a parameter that is not real.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                if not parameter.is_floating_point():
                    raise InputError("parameters", "must be real numbers", parameter.dtype)
            self._check(group)
        except InputError:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluated once before, with gradients; its value is returned.

        Raises:
            InputError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameters in _by_place(group["params"]):
                    part = self._part(parameters, self._buffers_of(group))
                    self._step_part(group, part)
                    for parameter, weight in zip(parameters, part.weights, strict=True):
                        if weight is not parameter:
                            parameter.copy_(weight)
        return loss

    def _part(self, parameters: list[Tensor], names: tuple[str, ...]) -> Part:
        weights = [_working(parameter) for parameter in parameters]
        gradients = [_like(p.grad, w) for p, w in zip(parameters, weights, strict=True)]
        states = [self.state[parameter] for parameter in parameters]
        for state, weight in zip(states, weights, strict=True):
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(weight)
                state[name] = _like(state[name], weight)
        buffers = {name: [state[name] for state in states] for name in names}
        return Part(weights, gradients, buffers, states)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; buffers of 16-bit parameters stay in 32 bits."""
        super().load_state_dict(state_dict)
        numbers = itertools.chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        parameters = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
        for number, parameter in zip(numbers, parameters, strict=True):
            saved = state_dict["state"].get(number, {})
            for name in self.buffer_names:
                if name in saved and parameter.element_size() < 4:  # torch has rounded it
                    buffer = saved[name].to(parameter.device, torch.float32, copy=True)
                    self.state[parameter][name] = buffer


def _by_place(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, those of one device and type together."""
    places: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.layout != torch.strided:
            hint = "embeddings: sparse=False"
            raise InputError("gradient", "must be dense", parameter.grad.layout, hint=hint)
        places.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    yield from places.values()


def _working(parameter: Tensor) -> Tensor:
    """The parameter itself, where it is wide enough and dense; a copy in that form else."""
    wide = parameter.float() if parameter.element_size() < 4 else parameter
    return wide if any(_is_dense(wide, form) for form in _DENSE) else wide.contiguous()


def _is_dense(tensor: Tensor, form: torch.memory_format) -> bool:
    fits = _DIMENSIONS.get(form, tensor.dim()) == tensor.dim()
    return fits and tensor.is_contiguous(memory_format=form)


def _like(tensor: Tensor | None, weight: Tensor) -> Tensor:
    """The tensor in the weight's type and layout: itself, where it has them."""
    assert tensor is not None
    same_place = tensor.dtype == weight.dtype and tensor.device == weight.device
    if same_place and _same_layout(tensor, weight):
        return tensor
    return torch.empty_like(weight).copy_(tensor)


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether elements lie in the same order; the stride along one element says nothing."""
    if one.stride() == other.stride():
        return True
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size <= 1 or a == b for size, a, b in strides)


def norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, as one vector on their device.

    On the CPU long tensors are summed in up to 256 rows: more exact than one long sum in 32 bits,
    shared among threads, and the same for any number of them.

    Args:
        tensors: at least one, of one device, dense in memory.

    Example:
        >>> norms([torch.tensor([3.0, 4.0]), torch.zeros(2)])
        tensor([5., 0.])
    """
    if tensors[0].device.type != "cpu":
        return torch.stack(list(torch._foreach_norm(tensors)))
    return torch.stack([torch.linalg.vector_norm(_row_norms(tensor)) for tensor in tensors])


def _row_norms(tensor: Tensor) -> Tensor:
    """Norms of equal parts of a long tensor, in the order of memory; a short one itself."""
    rows = math.gcd(tensor.numel(), _ROWS)
    if tensor.numel() < _LONG:
        return tensor
    length = tensor.numel() // rows
    parts = tensor.as_strided((rows, length), (length, 1))
    return torch.linalg.vector_norm(parts, dim=1)  # type: ignore[no-any-return]
