"""What a measurement on somebody's own loop keeps and puts back, bit for bit.

parameters of every optimizer, gradients, the optimizers' state and settings
modules: parameters, every buffer, training mode of each part
objects with state_dict and load_state_dict; generators; lists and dicts
the global generators of torch, CUDA, numpy and Python
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from anybatch.training.snapshot import load_random_state, random_state

__all__ = ["Kept"]

_PutBack = Callable[[], None]


@final
class Kept:
    """Copies of things as they were found.

    Args:
        optimizers: kept with every parameter that they update.
        things: modules, gradient scalers, averaged models, schedulers, loaders or generators.

    Attributes:
        not_covered: what could not be kept, in words.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], things: Iterable[Any]) -> None:
        self.not_covered: list[str] = []
        self._scalers = [thing for thing in things if callable(getattr(thing, "get_scale", None))]
        self._random = random_state()
        parameters = {id(p): p for o in optimizers for g in o.param_groups for p in g["params"]}
        self._watched = [(p, p.detach().clone()) for p in parameters.values()]
        self._actions: list[_PutBack] = [_tensors(parameters.values())]
        self._actions += [_gradients(parameters.values())]
        self._actions += [_optimizer(optimizer) for optimizer in optimizers]
        known = {id(optimizer) for optimizer in optimizers}
        for thing in things:
            if id(thing) not in known:
                self._actions += self._keep(thing)
        if not any(isinstance(thing, nn.Module) for thing in things):
            self.not_covered.append(
                "buffers (BatchNorm's running statistics) and train/eval mode, as no module is in "
                "restore"
            )

    def _keep(self, thing: Any) -> list[_PutBack]:
        """Ways to put `thing` back; what has none is noted."""
        if isinstance(thing, nn.Module):
            tensors = [*thing.parameters(), *thing.buffers()]
            return [_tensors(tensors), _gradients(thing.parameters()), _modes(thing)]
        if isinstance(thing, torch.optim.Optimizer):
            parameters = [p for group in thing.param_groups for p in group["params"]]
            return [_tensors(parameters), _gradients(parameters), _optimizer(thing)]
        if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
            return [_stateful(thing)]
        if isinstance(thing, (torch.Generator, np.random.Generator, random.Random)):
            return [_generator(thing)]
        if isinstance(thing, Tensor):
            return [_tensors([thing])]
        if isinstance(thing, (MutableMapping, MutableSequence)):
            return [_container(thing)]
        self.not_covered.append(_described(thing))
        return []

    def put_back(self) -> None:
        """Everything as it was found."""
        for action in self._actions:
            action()
        load_random_state(self._random)

    def has_changed(self) -> bool:
        """Whether a parameter of the optimizers differs from how it was found."""
        return any(not torch.equal(now.detach(), before) for now, before in self._watched)

    def scales(self) -> list[float]:
        """Present scale of each gradient scaler: it falls where an update was skipped."""
        return [float(scaler.get_scale()) for scaler in self._scalers]


def _described(thing: Any) -> str:
    if isinstance(thing, torch.utils.data.DataLoader):
        return "the position in a DataLoader without state_dict"
    if hasattr(thing, "__next__"):
        return f"the position of an iterator ({type(thing).__name__})"
    return f"an object without state_dict ({type(thing).__name__})"


def _tensors(tensors: Iterable[Tensor]) -> _PutBack:
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value in kept:
            tensor.copy_(value)

    return put_back


def _gradients(parameters: Iterable[Tensor]) -> _PutBack:
    kept = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]

    def put_back() -> None:
        for parameter, gradient, value in kept:
            if gradient is not None and value is not None:
                gradient.copy_(value)
            parameter.grad = gradient  # the tensor itself: others may hold a view of it

    return put_back


def _modes(module: nn.Module) -> _PutBack:
    kept = [(part, part.training) for part in module.modules()]

    def put_back() -> None:
        for part, mode in kept:
            part.training = mode

    return put_back


def _optimizer(optimizer: torch.optim.Optimizer) -> _PutBack:
    """State and settings, exactly: `load_state_dict` would cast them to the parameters' type."""
    state = {p: copy.deepcopy(values) for p, values in optimizer.state.items()}
    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    tensor_lrs = [group["lr"] for group in optimizer.param_groups]

    def put_back() -> None:
        optimizer.state.clear()
        optimizer.state.update({p: copy.deepcopy(values) for p, values in state.items()})
        for group, kept, lr in zip(optimizer.param_groups, groups, tensor_lrs, strict=True):
            for key in [key for key in group if key != "params" and key not in kept]:
                del group[key]
            group.update({key: copy.deepcopy(value) for key, value in kept.items()})
            if isinstance(lr, Tensor):  # the same tensor: a compiled step holds it
                group["lr"] = lr.fill_(float(kept["lr"]))

    return put_back


def _stateful(thing: Any) -> _PutBack:
    state = copy.deepcopy(thing.state_dict())

    def put_back() -> None:
        thing.load_state_dict(copy.deepcopy(state))

    return put_back


def _container(thing: MutableMapping[Any, Any] | MutableSequence[Any]) -> _PutBack:
    kept: Any = copy.deepcopy(dict(thing) if isinstance(thing, MutableMapping) else list(thing))

    def put_back() -> None:
        thing.clear()
        if isinstance(thing, MutableMapping):
            thing.update(copy.deepcopy(kept))
        else:
            thing.extend(copy.deepcopy(kept))

    return put_back


def _generator(thing: torch.Generator | np.random.Generator | random.Random) -> _PutBack:
    if isinstance(thing, torch.Generator):
        state: Any = thing.get_state()
    elif isinstance(thing, random.Random):
        state = thing.getstate()
    else:
        state = copy.deepcopy(thing.bit_generator.state)

    def put_back() -> None:
        if isinstance(thing, torch.Generator):
            thing.set_state(state)
        elif isinstance(thing, random.Random):
            thing.setstate(state)
        else:
            thing.bit_generator.state = copy.deepcopy(state)

    return put_back
