"""Arms of the speed of optimizers: torch's, ours, and those of peers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from anybatch.optim.lamb import LAMB
from anybatch.optim.lars import LARS
from anybatch.optim.rmsprop_warmup import RMSpropWarmup
from anybatch.optim.sgdw import SGDW

__all__ = ["ADAM_DECAY", "ARMS", "LAMB_ARM", "LARS_ARM", "SGD_DECAY", "Arm"]

SGD_DECAY, ADAM_DECAY = 5e-4, 0.01
LARS_ARM, LAMB_ARM = "anybatch LARS", "anybatch LAMB"
_SGD, _ADAMW = "torch SGD", "torch AdamW"
_PLAIN_SGD = "torch SGD, no decay"
_MOMENTUM: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": SGD_DECAY}
_NO_DECAY = _MOMENTUM | {"weight_decay": 0.0}
_AVERAGES: dict[str, Any] = {"lr": 1e-6, "weight_decay": ADAM_DECAY}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One optimizer.

    Attributes:
        name: in tables.
        build: from parameters.
        baseline: the arm that its time is divided by.
        limit: of that ratio, or None.
        package: that must be installed; "" for torch and anybatch.
    """

    name: str
    build: Callable[[Sequence[nn.Parameter]], Any]
    baseline: str
    limit: float | None = None
    package: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether the arm can be measured here."""
        return not self.package or importlib.util.find_spec(self.package) is not None


@dataclass(frozen=True, slots=True)
class _Peer:
    """An optimizer of another package, imported when it is built."""

    module: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, parameters: Sequence[nn.Parameter]) -> Any:
        if self.module.startswith("timm."):
            _bare_timm()
        return getattr(importlib.import_module(self.module), self.name)(parameters, **self.settings)


def _bare_timm() -> None:
    """Let timm's optimizers be imported without its networks, which need torchvision."""
    for name in ("timm", "timm.optim"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            package = sys.modules[name] = ModuleType(name)
            package.__spec__, package.__path__ = spec, spec.submodule_search_locations


def _peer_arms(module: str, name: str, title: str, settings: dict[str, Any]) -> list[Arm]:
    """As it is by default, and tensor by tensor."""
    baseline = _SGD if "LARS" in title else _ADAMW
    package = module.partition(".")[0]
    each = _Peer(module, name, settings | {"foreach": False})
    return [
        Arm(name=title, build=_Peer(module, name, settings), baseline=baseline, package=package),
        Arm(name=f"{title}, each", build=each, baseline=baseline, package=package),
    ]


ARMS = (
    Arm(name=_SGD, build=partial(torch.optim.SGD, **_MOMENTUM), baseline=_SGD),
    Arm(name="torch SGD, fused", build=partial(torch.optim.SGD, fused=True, **_MOMENTUM),
        baseline=_SGD),
    Arm(name="anybatch SGDW", build=partial(SGDW, **_MOMENTUM), baseline=_SGD, limit=1.1),
    Arm(name=LARS_ARM, build=partial(LARS, **_MOMENTUM), baseline=_SGD, limit=1.5),
    *_peer_arms("timm.optim.lars", "Lars", "timm LARS", _MOMENTUM),
    *_peer_arms("pytorch_optimizer", "LARS", "pytorch_optimizer LARS", _MOMENTUM),
    Arm(name=_PLAIN_SGD, build=partial(torch.optim.SGD, **_NO_DECAY), baseline=_PLAIN_SGD),
    Arm(name="anybatch SGDW, no decay", build=partial(SGDW, **_NO_DECAY), baseline=_PLAIN_SGD),
    Arm(name="anybatch LARS, no decay", build=partial(LARS, **_NO_DECAY), baseline=_PLAIN_SGD),
    Arm(name="anybatch RMSpropWarmup, no decay", build=partial(RMSpropWarmup, **_NO_DECAY),
        baseline=_PLAIN_SGD),
    Arm(name=_ADAMW, build=partial(torch.optim.AdamW, **_AVERAGES), baseline=_ADAMW),
    Arm(name="torch AdamW, fused", build=partial(torch.optim.AdamW, fused=True, **_AVERAGES),
        baseline=_ADAMW),
    Arm(name=LAMB_ARM, build=partial(LAMB, **_AVERAGES), baseline=_ADAMW, limit=1.3),
    *_peer_arms("timm.optim.lamb", "Lamb", "timm LAMB", _AVERAGES | {"max_grad_norm": None}),
    *_peer_arms("pytorch_optimizer", "Lamb", "pytorch_optimizer LAMB", _AVERAGES),
)  # fmt: skip
