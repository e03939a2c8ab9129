"""The modules of a model that hold parameters, and which kind of layer K-FAC takes them for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["BlockKind", "NormalizingLayer", "Owner", "find_owners", "num_channels", "unwrapped"]

BlockKind: TypeAlias = Literal["linear", "convolution", "embedding", "norm"]

_FUSED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@runtime_checkable
class NormalizingLayer(Protocol):
    """A norm of your own, scale and shift of which act on dimension 1 of what it normalizes."""

    num_features: int
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def normalized(self, inputs: Tensor) -> Tensor:
        """What the layer gives at scale 1 and shift 0, without any side effect."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """A module with parameters of its own.

    Attributes:
        name: qualified, as the module was first found.
        module: itself.
        kind: of layer; None: not covered.
        reason: why it is not covered, "" where it is.
    """

    name: str
    module: nn.Module
    kind: BlockKind | None
    reason: str

    @property
    def weight(self) -> nn.Parameter | None:
        """Its weight, if that is trained."""
        return self._trained("weight")

    @property
    def bias(self) -> nn.Parameter | None:
        """Its bias, if that is trained."""
        return self._trained("bias")

    @property
    def main(self) -> nn.Parameter | None:
        """The weight; of a norm without a trained one, the bias."""
        return self.bias if self.kind == "norm" and self.weight is None else self.weight

    def _trained(self, parameter: str) -> nn.Parameter | None:
        found = self.module._parameters.get(parameter)
        return found if found is not None and found.requires_grad else None

    def holds(self, key: int) -> bool:
        """Whether the parameter with this id is one of its own."""
        return any(id(each) == key for each in self.module._parameters.values())

    def sizes(self) -> tuple[str, int]:
        """Kind and independent parts: what layers with one weight must have in common."""
        if self.kind == "norm":
            return "norm", num_channels(self.module)
        groups = self.module.groups if isinstance(self.module, _ConvNd) else 1
        return str(self.kind), groups


def find_owners(model: nn.Module, left_out: Sequence[str] = ()) -> list[Owner]:
    """All modules with parameters of their own, once each.

    Args:
        model: any module.
        left_out: names that are not to be covered; * stands for anything.
    """
    inside: dict[int, str] = {}
    owners = []
    for name, module in model.named_modules():
        reason = inside.get(id(module), "")
        if isinstance(module, _FUSED):
            reason = f"{type(module).__name__} computes by fused kernels, not by its layers"
            inside.update((id(each), reason) for each in module.modules())
        if not reason and any(fnmatchcase(name, each) for each in left_out):
            reason = "left out by the settings"
        if module._parameters:
            kind = None if reason else _kind(module)
            if kind is None:
                reason = reason or _reason(module)
            owners.append(Owner(name or "model", module, kind, reason))
    return owners


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of wrappers of DDP and torch.compile."""
    while True:
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def num_channels(norm: nn.Module) -> int:
    """Entries of a norm's scale and shift."""
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return math.prod(norm.normalized_shape)
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    assert isinstance(norm, NormalizingLayer | _BatchNorm)
    return norm.num_features


def _kind(module: nn.Module) -> BlockKind | None:
    if "weight" not in module._parameters:
        return None
    if any(p is not None and p.is_complex() for p in module._parameters.values()):
        return None
    if _has_forward_of(module, nn.Linear):
        return "linear"
    if any(_has_forward_of(module, each) for each in _CONVOLUTIONS):
        return "convolution"
    if _has_forward_of(module, nn.Embedding):
        special = module.sparse or module.scale_grad_by_freq
        return None if special else "embedding"
    if any(_has_forward_of(module, each) for each in _NORMS):
        return "norm"
    return "norm" if isinstance(module, NormalizingLayer) else None


def _has_forward_of(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether the forward pass is the one that torch gave to a class."""
    if not isinstance(module, base) or "forward" in vars(module):
        return False
    own = type(module)
    if getattr(own, "_conv_forward", None) is not getattr(base, "_conv_forward", None):
        return False
    return own.forward is base.forward


def _reason(module: nn.Module) -> str:
    """Why a module with parameters is not covered."""
    kind = type(module).__name__
    if any(p is not None and p.is_complex() for p in module._parameters.values()):
        return "its parameters are complex"
    if isinstance(module, nn.SyncBatchNorm):
        return "statistics of SyncBatchNorm, which span ranks, are not known here"
    if "weight" not in module._parameters and hasattr(module, "weight"):
        return f"the weight of {kind} is computed from other parameters"
    if _has_forward_of(module, nn.Embedding):
        return "its gradient is sparse or divided by the frequency"
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS, nn.Embedding, *_NORMS)):
        return f"{kind} has a forward pass of its own"
    return f"{kind} is no layer that K-FAC knows"
