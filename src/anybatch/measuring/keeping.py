"""What a measurement on somebody's own loop keeps and puts back, bit for bit.

parameters of every optimizer, gradients, the optimizers' state and settings
modules: parameters, every buffer (also one that was replaced), extra state, training mode
objects with state_dict and load_state_dict; generators; lists and dicts of all of these
the global generators of torch, CUDA, numpy and Python
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from anybatch.training.snapshot import load_random_state, random_state, seed_everything

__all__ = ["Kept"]

_PutBack = Callable[[], None]
_Generator: TypeAlias = torch.Generator | np.random.Generator | random.Random
_PLAIN = (type(None), bool, int, float, complex, str, bytes, frozenset)


@final
class Kept:
    """Copies of things as they were found.

    Args:
        optimizers: kept with every parameter that they update.
        things: modules, gradient scalers, averaged models, schedulers, loaders or generators.

    Attributes:
        not_covered: what could not be kept, in words.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], things: Sequence[Any]) -> None:
        self.not_covered: list[str] = []
        self._scalers: list[Any] = []
        self._generators: list[_Generator] = []
        self._has_module = False
        self._seen: set[int] = set()
        self._random = random_state()
        parameters = _parameters(optimizers)
        self._watched = [(p, p.detach().clone()) for p in parameters]
        self._actions: list[_PutBack] = []
        for thing in (*optimizers, *things):
            self._keep(thing)
        if not self._has_module:
            self.not_covered.append(
                "buffers (BatchNorm's running statistics) and train/eval mode, as no module is in "
                "restore"
            )

    def _keep(self, thing: Any) -> None:
        """Note how to put `thing` back; of what has no way, that it has none."""
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if isinstance(thing, nn.Module):
            self._has_module = True
            self._actions += [_tensors(thing.parameters()), _gradients(thing.parameters())]
            self._actions += [_buffers(thing), _modes(thing)]
        elif isinstance(thing, torch.optim.Optimizer):
            parameters = _parameters([thing])
            self._actions += [_tensors(parameters), _gradients(parameters), _optimizer(thing)]
        elif isinstance(thing, (torch.Generator, np.random.Generator, random.Random)):
            self._generators.append(thing)
            self._actions.append(_generator(thing))
        elif isinstance(thing, (MutableMapping, MutableSequence, tuple)):
            if not isinstance(thing, tuple):
                self._actions.append(_container(thing))
            for item in list(thing.values() if isinstance(thing, MutableMapping) else thing):
                self._keep(item)
        else:
            self._keep_other(thing)

    def _keep_other(self, thing: Any) -> None:
        """What is neither a module, an optimizer, a generator nor a container of things."""
        if isinstance(thing, Tensor):
            self._actions.append(_tensors([thing]))
        elif hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
            self._actions.append(_stateful(thing))
            if callable(getattr(thing, "get_scale", None)):
                self._scalers.append(thing)
        elif not isinstance(thing, _PLAIN):
            self.not_covered.append(_described(thing))

    def put_back(self) -> None:
        """Everything as it was found.

        Raises:
            Exception: the first that one of them raised, after all others have been put back.
        """
        first: Exception | None = None
        for action in self._actions:
            try:
                action()
            except Exception as error:  # one that fails must not keep the others away
                first = first or error
        load_random_state(self._random)
        if first is not None:
            raise first

    def reseed(self, seed: int) -> None:
        """Other draws than those of before, from every generator that is known."""
        seed_everything(seed)
        for generator in self._generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif isinstance(generator, random.Random):
                generator.seed(seed)
            else:
                kind: Any = type(generator.bit_generator)
                generator.bit_generator.state = kind(seed).state

    def has_changed(self) -> bool:
        """Whether a parameter of the optimizers differs from how it was found."""
        return any(not torch.equal(now.detach(), before) for now, before in self._watched)

    def scales(self) -> list[float]:
        """Present scale of each gradient scaler: it falls where an update was skipped."""
        return [float(scaler.get_scale()) for scaler in self._scalers]


def _parameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    found = {id(p): p for o in optimizers for g in o.param_groups for p in g["params"]}
    return list(found.values())


def _described(thing: Any) -> str:
    if isinstance(thing, torch.utils.data.DataLoader):
        return "the position in a DataLoader without state_dict"
    if hasattr(thing, "__next__"):
        return f"the position of an iterator ({type(thing).__name__})"
    return f"an object without state_dict ({type(thing).__name__})"


def _tensors(tensors: Iterable[Tensor]) -> _PutBack:
    kept = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value, requires_grad in kept:
            tensor.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)

    return put_back


def _gradients(parameters: Iterable[Tensor]) -> _PutBack:
    kept = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]

    def put_back() -> None:
        for parameter, gradient, value in kept:
            if gradient is not None and value is not None:
                gradient.copy_(value)
            parameter.grad = gradient  # the tensor itself: others may hold a view of it

    return put_back


def _buffers(module: nn.Module) -> _PutBack:
    """The buffers of every part, the same tensors also where they were replaced; extra state."""
    parts = list(module.modules())
    kept = [(part, dict(part._buffers)) for part in parts]
    buffers = [b for _, found in kept for b in found.values() if b is not None]
    values = [(buffer, buffer.detach().clone()) for buffer in buffers]
    extra = [
        (part, copy.deepcopy(part.get_extra_state()))
        for part in parts
        if type(part).get_extra_state is not nn.Module.get_extra_state
    ]

    @torch.no_grad()
    def put_back() -> None:
        for part, found in kept:
            part._buffers.clear()
            part._buffers.update(found)
        for buffer, value in values:
            buffer.copy_(value)
        for part, state in extra:
            part.set_extra_state(copy.deepcopy(state))

    return put_back


def _modes(module: nn.Module) -> _PutBack:
    kept = [(part, part.training) for part in module.modules()]

    def put_back() -> None:
        for part, mode in kept:
            part.training = mode

    return put_back


def _optimizer(optimizer: torch.optim.Optimizer) -> _PutBack:
    """State and settings, exactly: `load_state_dict` would cast them to the parameters' type."""
    state = {p: (values, copy.deepcopy(values)) for p, values in optimizer.state.items()}
    groups = [
        (group, dict(group), {k: copy.deepcopy(v) for k, v in group.items() if k != "params"})
        for group in optimizer.param_groups
    ]

    def put_back() -> None:
        optimizer.state.clear()
        for parameter, (found, values) in state.items():
            _restore_values(found, values)
            optimizer.state[parameter] = found
        del optimizer.param_groups[len(groups) :]  # added during the measurement
        for group, found, values in groups:
            group.clear()
            group.update(found)
            _restore_values(group, {"params": found["params"]} | values)

    return put_back


@torch.no_grad()
def _restore_values(live: dict[str, Any], values: dict[str, Any]) -> None:
    """Make `live` hold `values`, its own tensors refilled where they fit: others may hold them."""
    for key in [key for key in live if key not in values]:
        del live[key]
    for key, value in values.items():
        found = live.get(key)
        if _fits(found, value):
            live[key].copy_(value)
        else:
            live[key] = value if key == "params" else copy.deepcopy(value)


def _fits(found: Any, value: Any) -> bool:
    """Whether one tensor can be refilled from the other."""
    both = isinstance(found, Tensor) and isinstance(value, Tensor)
    return both and found.shape == value.shape and found.dtype == value.dtype


def _stateful(thing: Any) -> _PutBack:
    state = copy.deepcopy(thing.state_dict())
    unscaled = copy.deepcopy(getattr(thing, "_per_optimizer_states", None))  # of a GradScaler

    def put_back() -> None:
        thing.load_state_dict(copy.deepcopy(state))
        if unscaled is not None:
            thing._per_optimizer_states = copy.deepcopy(unscaled)

    return put_back


def _container(thing: MutableMapping[Any, Any] | MutableSequence[Any]) -> _PutBack:
    """The same things in it as before; they are themselves put back apart."""
    kept: Any = dict(thing) if isinstance(thing, MutableMapping) else list(thing)

    def put_back() -> None:
        thing.clear()
        if isinstance(thing, MutableMapping):
            thing.update(kept)
        else:
            thing.extend(kept)

    return put_back


def _generator(thing: _Generator) -> _PutBack:
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
