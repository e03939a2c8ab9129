"""Settings become objects: the one place that knows which settings make which object."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.clipping import clip_global_norm
from anybatch.optim.muon import MuonWithAdamW, divide_parameters
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    ClipGlobalNorm,
    ComputeSettings,
    GradientTransform,
    ModelSettings,
    MuonSettings,
    OptimizerSettings,
    SGDSettings,
)
from anybatch.task import Task
from anybatch.training.precision import model_dtype
from anybatch.world import World

__all__ = ["Optimizer", "build_gradient_transform", "build_model", "build_optimizer"]

# Models handed out once: trained again, they would begin from trained weights.
_BUILT: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Optimizer(Protocol):
    """What a training needs of an optimizer; every torch.optim.Optimizer has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters and their settings."""
        ...

    def step(self) -> Any:
        """One update."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Settings and buffers."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Put back what `state_dict` returned."""
        ...


def build_model(
    task: Task, settings: ModelSettings | None, compute: ComputeSettings, world: World
) -> nn.Module:
    """A new model on this rank's device, in the recipe's precision and memory format.

    Raises:
        InputError: the task returned a wrapped model, which would be parallel twice.
    """
    model = task.new_model(settings)
    if model in _BUILT:
        raise InputError("build_model", "must return a new model each time", type(model).__name__)
    _BUILT.add(model)
    _check_parameters(model, model_dtype(compute))
    for wrapper in (nn.parallel.DistributedDataParallel, nn.DataParallel):
        if isinstance(model, wrapper):
            rule = "must return the plain module"
            hint = "anybatch wraps it for the ranks itself"
            raise InputError("build_model", rule, wrapper.__name__, hint=hint)
    model = model.to(world.device, model_dtype(compute))
    return model.to(memory_format=torch.channels_last) if compute.channels_last else model  # type: ignore[call-overload]


def _check_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse weights that a change of type would damage, or that are not there yet."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            hint = "call the model once on a batch inside of build_model"
            raise InputError(f"parameter {name}", "must not be lazy", hint=hint)
        is_number = parameter.is_floating_point() or parameter.is_complex()
        if is_number and parameter.dtype not in (torch.float32, dtype):
            rule = f"must be float32 or {str(dtype).removeprefix('torch.')}"
            hint = "compute.precision says what the model computes in"
            raise InputError(f"parameter {name}", rule, parameter.dtype, hint=hint)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise InputError(f"layer {name}", "must have dense gradients", "sparse=True")


def build_optimizer(settings: OptimizerSettings, model: nn.Module) -> Optimizer:
    """The optimizer over the model's trainable parameters.

    Raises:
        InputError: nothing in the model can be trained.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("model", "must have at least one trainable parameter")
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    match settings:
        case SGDSettings():
            return torch.optim.SGD(
                parameters,
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
                fused=fused,
            )
        case AdamSettings():
            return torch.optim.Adam(parameters, **_adam_arguments(settings), fused=fused)
        case AdamWSettings():
            return torch.optim.AdamW(parameters, **_adam_arguments(settings), fused=fused)
        case MuonSettings():
            return _build_muon(settings, model)


def _adam_arguments(settings: AdamSettings | AdamWSettings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }


def _build_muon(settings: MuonSettings, model: nn.Module) -> MuonWithAdamW:
    matrices, others = divide_parameters(model)
    muon = None
    if matrices:
        muon = torch.optim.Muon(
            matrices,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            adjust_lr_fn=settings.adjust_lr,
        )
    adamw = None
    if others:
        adamw = torch.optim.AdamW(others, lr=settings.adamw_lr, weight_decay=settings.weight_decay)
    return MuonWithAdamW(muon, adamw)


def build_gradient_transform(
    settings: GradientTransform,
) -> Callable[[Iterable[nn.Parameter]], Tensor | None]:
    """A function that changes gradients in place and returns their norm before, if it knows it."""
    match settings:
        case ClipGlobalNorm(max_norm=max_norm):
            return lambda parameters: clip_global_norm(parameters, max_norm)
