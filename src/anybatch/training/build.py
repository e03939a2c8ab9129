"""Settings become objects: the one place that knows which settings make which object."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.optim.clipping import clip_global_norm
from anybatch.optim.decay import state_convention
from anybatch.optim.gradient_noise import add_gradient_noise, multiply_gradient_noise
from anybatch.optim.lamb import LAMB
from anybatch.optim.lars import LARS
from anybatch.optim.muon import MuonWithAdamW, divide_parameters
from anybatch.optim.normalizing import normalize_global_norm
from anybatch.optim.rmsprop_warmup import RMSpropWarmup
from anybatch.optim.sgdw import SGDW
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdditiveNoise,
    ClipGlobalNorm,
    ComputeSettings,
    GradientTransform,
    LAMBSettings,
    LARSSettings,
    ModelSettings,
    MultiplicativeNoise,
    MuonSettings,
    NormalizeGradient,
    OptimizerSettings,
    ParameterKinds,
    RMSpropWarmupSettings,
    SGDSettings,
    SGDWSettings,
)
from anybatch.task import Task
from anybatch.training.parameter_groups import parameter_groups
from anybatch.training.precision import model_dtype
from anybatch.world import World

__all__ = [
    "Optimizer",
    "TransformFunction",
    "build_gradient_transform",
    "build_model",
    "build_optimizer",
]

TransformFunction: TypeAlias = Callable[[Iterable[nn.Parameter], int], Tensor | None]
"""(parameters, number of the update) -> norm of the gradients before, or None."""

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


def build_optimizer(
    settings: OptimizerSettings, model: nn.Module, *, decayed: ParameterKinds | None = None
) -> Optimizer:
    """The optimizer over the model's trainable parameters.

    They form one group where all are treated alike, else one for each treatment, the weights first.

    Args:
        settings: which optimizer.
        model: its parameters.
        decayed: kinds that weight decay applies to beside weights; None: all.

    Raises:
        InputError: nothing in the model can be trained.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("model", "must have at least one trainable parameter")
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    decayed = decayed or ParameterKinds()
    groups = parameter_groups(parameters, model, settings, decayed)
    match settings:
        case SGDSettings():
            return torch.optim.SGD(
                groups,
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
                fused=fused,
            )
        case AdamSettings():
            return torch.optim.Adam(groups, **_adam_arguments(settings), fused=fused)
        case AdamWSettings():
            adamw = torch.optim.AdamW(groups, **_adam_arguments(settings), fused=fused)
            for group in adamw.param_groups:
                state_convention(group, settings.decay)
            return adamw
        case MuonSettings():
            return _build_muon(settings, model, decayed)
        case SGDWSettings() | LARSSettings() | LAMBSettings() | RMSpropWarmupSettings():
            return _build_own(settings, groups)


def _build_own(
    settings: SGDWSettings | LARSSettings | LAMBSettings | RMSpropWarmupSettings,
    groups: list[dict[str, Any]],
) -> Optimizer:
    """One of the rules in `anybatch.optim`."""
    match settings:
        case SGDWSettings():
            return _build_sgdw(settings, groups)
        case LARSSettings():
            return _build_lars(settings, groups)
        case LAMBSettings():
            return LAMB(
                groups,
                **_adam_arguments(settings),
                bias_correction=settings.bias_correction,
                max_weight_norm=settings.max_weight_norm,
            )
        case RMSpropWarmupSettings():
            return _build_rmsprop_warmup(settings, groups)


def _adam_arguments(settings: AdamSettings | AdamWSettings | LAMBSettings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }


def _build_sgdw(settings: SGDWSettings, groups: list[dict[str, Any]]) -> SGDW:
    sgdw = SGDW(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        momentum_correction=settings.momentum_correction,
        weight_decay=settings.weight_decay,
        decay=settings.decay,
        num_updates=1,
    )
    for group in sgdw.param_groups:  # Hyperparameters knows them
        group["num_updates"] = None
    return sgdw


def _build_lars(settings: LARSSettings, groups: list[dict[str, Any]]) -> LARS:
    return LARS(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        trust=settings.trust,
        epsilon=settings.epsilon,
        buffer=settings.buffer,
        max_ratio=settings.max_ratio,
    )


def _build_rmsprop_warmup(
    settings: RMSpropWarmupSettings, groups: list[dict[str, Any]]
) -> RMSpropWarmup:
    optimizer = RMSpropWarmup(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        rms_decay=settings.rms_decay,
        rms_lr=settings.rms_lr,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    for group in optimizer.param_groups:  # Hyperparameters makes `sgd_share` of them
        group["center"], group["width"] = str(settings.center), str(settings.width)
    return optimizer


def _build_muon(settings: MuonSettings, model: nn.Module, decayed: ParameterKinds) -> MuonWithAdamW:
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
        groups = parameter_groups(others, model, settings, decayed)
        adamw = torch.optim.AdamW(groups, lr=settings.adamw_lr, weight_decay=settings.weight_decay)
    return MuonWithAdamW(muon, adamw)


def build_gradient_transform(settings: GradientTransform, *, seed: int) -> TransformFunction:
    """A function that changes gradients in place and returns their norm before, if it knows it.

    Args:
        settings: which one.
        seed: of noise; another one for each transform of a recipe.
    """
    match settings:
        case ClipGlobalNorm(max_norm=max_norm):
            return lambda parameters, update: clip_global_norm(parameters, max_norm)
        case NormalizeGradient(norm=norm):
            return lambda parameters, update: normalize_global_norm(parameters, norm)
        case AdditiveNoise(std=std):

            def add(parameters: Iterable[nn.Parameter], update: int) -> None:
                add_gradient_noise(parameters, std, seed=seed, update=update)

            return add
        case MultiplicativeNoise(std=std):

            def multiply(parameters: Iterable[nn.Parameter], update: int) -> None:
                multiply_gradient_noise(parameters, std, seed=seed, update=update)

            return multiply
