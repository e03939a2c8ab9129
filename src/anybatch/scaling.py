"""A recipe's settings carried to its own batch size, or from mean to summed losses and back.

Both give another recipe that trains; neither knows torch. The rules themselves, on numbers, are in
`lr_carrying`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from anybatch.errors import InputError
from anybatch.lr_carrying import (
    AdamAverages,
    carried_adam_averages,
    carried_lr,
    default_alpha,
    momentum_for_batch_size,
    paper_of,
)
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdditiveNoise,
    ClipGlobalNorm,
    GradientPenalty,
    GradientTransform,
    LARSSettings,
    MuonSettings,
    NormalizeGradient,
    OptimizerSettings,
    Recipe,
    RMSpropWarmupSettings,
    ScalingRule,
    SGDSettings,
    SGDWSettings,
)
from anybatch.schedules import Constant

__all__ = ["reduction_sentences", "scaled_recipe", "scaling_sentences", "with_lr",
           "with_reduction"]  # fmt: skip

Reduction: TypeAlias = Literal["mean", "sum"]


# --- another batch size -------------------------------------------------------------------------


def scaled_recipe(recipe: Recipe, num_examples: int | None) -> Recipe:
    """The recipe as it is trained: its optimizer's settings carried to its batch size.

    With k = B / B0, B the recipe's batch size (without the factor of a schedule), B0 the rule's
    base, and f = lr(B) / lr(B0) by the rule:

        every lr of the optimizer       times f
        Adam, AdamW under square-root   1 - beta -> k (1 - beta), epsilon -> epsilon / sqrt(k)
        momentum "constant-noise"       1 - momentum -> (1 - momentum) f / k

    The last line keeps the noise of SGD's steps, lr N / (B (1 - momentum)) with N examples: with a
    constant lr, momentum rises with the batch size. The noise-scale rule has the exponent 1 for
    SGD and its kind, 1/2 where steps are divided by the gradient's size (`default_alpha`). Weight
    decay stays as written. Under `loss.reduction = "sum"` the settings are those of the sum over
    B0 examples; the rule applies to what they mean for the mean loss.

    Args:
        recipe: with its `scaling`; without one it is returned as it is.
        num_examples: of the training set, for the "full" batch; None: a stream.

    Raises:
        InputError: Adam's rule at its end, k (1 - beta) >= 1; a momentum outside of [0, 1), or of
            an update rule without such noise; a summed loss that cannot be converted.

    Example:
        >>> rule = ScalingRule(base_batch_size=256, lr="linear")
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=8192, scaling=rule)
        >>> scaled_recipe(recipe, None).optimizer.lr
        3.2

    Reference:
        Krizhevsky (2014), section 5; Goyal et al. (2017), section 2.1; McCandlish et al. (2018),
        eq. 2.6; Malladi et al. (2022), definition 5.2; Smith, Le (2018), section 5 (momentum).
    """
    rule = recipe.scaling
    if rule is None:
        return recipe
    size = num_examples if recipe.batch_size == "full" else recipe.batch_size
    if size is None:
        raise InputError("batch_size", "must be a number for a stream of unknown length", "full")
    if size == rule.base_batch_size:
        return replace(recipe, scaling=None)
    optimizer, summed = recipe.optimizer, recipe.loss.reduction == "sum"
    if summed:
        optimizer = _reduced(optimizer, "mean", rule.base_batch_size)
    optimizer = _scaled(optimizer, rule, size)
    if summed:
        optimizer = _reduced(optimizer, "sum", size)
    return replace(recipe, optimizer=optimizer, scaling=None)


def scaling_sentences(recipe: Recipe) -> list[str]:
    """What a recipe's scaling rule gives, with its paper, or why it cannot; none without a rule.

    Example:
        >>> rule = ScalingRule(base_batch_size=256, lr="square-root")
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=1024, scaling=rule)
        >>> scaling_sentences(recipe)
        ['from batch size 256 to 1024: lr 0.1 -> 0.2 (square-root rule: Krizhevsky 2014)']
    """
    rule = recipe.scaling
    if rule is None:
        return []
    papers = [f"{rule.lr} rule: {_paper(rule, recipe.optimizer)}"]
    if rule.momentum == "constant-noise":
        papers.append("noise of momentum: Smith, Le 2018")
    told = f"({'; '.join(papers)})"
    if recipe.batch_size == "full":
        return [
            f"settings of batch size {rule.base_batch_size} are carried to the whole set {told}"
        ]
    try:
        before, after = recipe.optimizer, scaled_recipe(recipe, None).optimizer
    except InputError as error:  # to be told; training refuses it
        return [f"the scaling rule cannot be applied: {error}"]
    changes = [
        f"{name} {getattr(before, name):.6g} -> {getattr(after, name):.6g}"
        for name in _SCALED
        if getattr(before, name, None) != getattr(after, name, None)
    ]
    sizes = f"from batch size {rule.base_batch_size} to {recipe.batch_size}"
    return [f"{sizes}: {', '.join(changes) or 'every setting stays'} {told}"]


_LRS = ("lr", "adamw_lr", "rms_lr")
_SCALED = (*_LRS, "momentum", "beta1", "beta2", "epsilon", "trust", "weight_decay")


def _paper(rule: ScalingRule, optimizer: OptimizerSettings) -> str:
    if rule.lr != "square-root":
        return paper_of(rule.lr)
    is_adam = isinstance(optimizer, (AdamSettings, AdamWSettings))
    return "Malladi et al. 2022" if is_adam else "Krizhevsky 2014"


def _scaled(optimizer: OptimizerSettings, rule: ScalingRule, size: int) -> OptimizerSettings:
    base = rule.base_batch_size
    factor = carried_lr(
        rule.lr, 1.0, base, size, noise_scale=rule.noise_scale, alpha=default_alpha(optimizer.name)
    )
    lrs = {name: getattr(optimizer, name) * factor for name in _LRS if hasattr(optimizer, name)}
    scaled: OptimizerSettings = replace(optimizer, **lrs)
    if rule.momentum == "constant-noise":
        return _with_constant_noise(scaled, rule, size, factor)
    if rule.lr == "square-root" and isinstance(scaled, (AdamSettings, AdamWSettings)):
        averages = AdamAverages(beta1=scaled.beta1, beta2=scaled.beta2, epsilon=scaled.epsilon)
        new = carried_adam_averages(averages, base, size)
        return replace(scaled, beta1=new.beta1, beta2=new.beta2, epsilon=new.epsilon)
    return scaled


def _with_constant_noise(
    optimizer: OptimizerSettings, rule: ScalingRule, size: int, factor: float
) -> OptimizerSettings:
    """1 - momentum times factor / k, so that lr / (B (1 - momentum)) stays what it was."""
    if not isinstance(optimizer, (SGDSettings, SGDWSettings)):
        told = f'must be "kept" under {optimizer.name}: lr N / (B (1 - momentum)) is SGD\'s noise'
        raise InputError("scaling.momentum", told, rule.momentum)
    if rule.lr == "linear":
        told = 'must be "kept" under the linear rule, which keeps the noise by lr alone'
        raise InputError("scaling.momentum", told, rule.momentum, hint='scaling.lr = "constant"')
    before, base = optimizer.momentum, rule.base_batch_size
    try:
        momentum = momentum_for_batch_size(before, base, size, lr_ratio=factor)
    except InputError as error:
        raise error.renamed("optimizer.momentum") from None
    return replace(optimizer, momentum=momentum)


def with_lr(settings: OptimizerSettings, lr: float) -> OptimizerSettings:
    """The optimizer at another lr; its other ones (Muon's for AdamW, RMSprop's) keep their ratio.

    Args:
        settings: of the optimizer.
        lr: of its first group.

    Example:
        >>> with_lr(MuonSettings(lr=0.02, adamw_lr=0.001), 0.04).adamw_lr
        0.002
    """
    others = {
        name: float(f"{getattr(settings, name) * lr / settings.lr:.4g}")
        for name in _LRS[1:]
        if hasattr(settings, name) and settings.lr > 0.0
    }
    changed: OptimizerSettings = replace(settings, lr=lr, **others)  # type: ignore[arg-type]
    return changed


# --- mean and sum -------------------------------------------------------------------------------


def with_reduction(recipe: Recipe, reduction: Reduction, batch_size: int) -> Recipe:
    """The recipe with losses summed instead of averaged, or the other way round: the same updates.

    The sum's gradient over B examples is B times the mean's. The same weights follow from

        SGD                 lr / B,  coupled weight_decay B
        SGDW                lr / B;  its coupled decay times B, others stay as they are
        Adam                epsilon B,  coupled weight_decay B
        AdamW, LAMB         epsilon B
        LARS                lr / B,  trust B,  weight_decay B,  epsilon B
        RMSprop warm-up     lr / B,  epsilon B,  coupled weight_decay B
        clip-global-norm    max_norm B (exact but for the 1e-6 in torch's formula)
        normalize           norm B
        additive-noise      std B
        plateau             min_lr and eps as lr
        gradient-penalty    in units of lr: coefficient times what lr is divided by

    and from the inverse for a mean. It holds for updates of B examples. In the last one of an
    epoch, with b < B, an example counts for as much as in any other: the gradient's part of the
    step is b / B of that of a mean, coupled decay stays whole, and Adam's averages take the short
    batch in as a smaller gradient.

    Args:
        recipe: with its `loss.reduction`; where that is the one asked for it is returned.
        reduction: "mean" or "sum".
        batch_size: B, of the recipe, or of its whole set where it says "full".

    Raises:
        InputError: a batch size that moves or is another; a scaling rule that is yet to be
            applied; Muon, whose AdamW has an epsilon that is no setting.

    Example:
        >>> mean = Recipe(optimizer=SGDSettings(lr=0.5, weight_decay=0.25), batch_size=16)
        >>> summed = with_reduction(mean, "sum", 16)
        >>> summed.optimizer.lr, summed.optimizer.weight_decay, summed.loss.reduction
        (0.03125, 4.0, 'sum')
        >>> with_reduction(summed, "mean", 16) == mean
        True
    """
    if reduction not in ("mean", "sum"):
        raise InputError("reduction", "must be mean or sum", reduction)
    if recipe.loss.reduction == reduction:
        return recipe
    _check_one_size(recipe, batch_size)
    optimizer = _reduced(recipe.optimizer, reduction, batch_size)
    scale = _gradient_scale(reduction, batch_size)
    lr_scale = 1.0 / scale if _divides_lr(recipe.optimizer) else 1.0
    plateau, blocks = recipe.plateau, recipe.blocks
    if plateau is not None:
        eps = plateau.eps * lr_scale
        plateau = replace(plateau, min_lr=plateau.min_lr * lr_scale, eps=eps)
    penalty = None if blocks is None else blocks.penalty
    if blocks is not None and isinstance(penalty, GradientPenalty) and penalty.unit == "lr":
        penalty = replace(penalty, coefficient=penalty.coefficient / lr_scale)
        blocks = replace(blocks, penalty=penalty)
    return replace(
        recipe,
        optimizer=optimizer,
        gradient=tuple(_transform(settings, scale) for settings in recipe.gradient),
        loss=replace(recipe.loss, reduction=reduction),
        plateau=plateau,
        blocks=blocks,
    )


def reduction_sentences(recipe: Recipe) -> list[str]:
    """What a summed loss's settings would be for the mean; none where losses are averaged.

    Example:
        >>> from anybatch.recipe import LossSettings
        >>> summed = LossSettings(reduction="sum")
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.5), batch_size=16, loss=summed)
        >>> reduction_sentences(recipe)
        ['losses are summed: the same with the mean loss at batch size 16: lr 8']
    """
    if recipe.loss.reduction == "mean":
        return []
    told, size = "losses are summed", recipe.batch_size
    if size == "full" or isinstance(recipe.optimizer, MuonSettings):
        return [told]
    try:
        optimizer = scaled_recipe(recipe, None).optimizer
    except InputError:  # `scaling_sentences` says so
        return [told]
    mean = _reduced(optimizer, "mean", size)
    changes = [
        f"{name} {getattr(mean, name):.6g}"
        for name in _SCALED
        if getattr(mean, name, None) != getattr(optimizer, name, None)
    ]
    return [f"{told}: the same with the mean loss at batch size {size}: {', '.join(changes)}"]


def _check_one_size(recipe: Recipe, batch_size: int) -> None:
    """Refuse a recipe whose updates no single factor stands for."""
    if batch_size < 1:
        raise InputError("batch_size", "must be >= 1 example", batch_size)
    if recipe.scaling is not None:
        hint = "scaled_recipe(recipe, num_examples) applies it"
        raise InputError("scaling", "must be applied before the reduction is changed", hint=hint)
    if recipe.schedules.batch_size != Constant() or recipe.batch_control is not None:
        rule = "must be constant, as the lr of a summed loss is that of one batch size"
        raise InputError("batch_size", rule, "scheduled or controlled")
    if recipe.batch_size not in ("full", batch_size):
        raise InputError("batch_size", f"must be the recipe's, {recipe.batch_size}", batch_size)


def _gradient_scale(reduction: Reduction, batch_size: int) -> float:
    """The gradient under this reduction over that under the other one."""
    return float(batch_size) if reduction == "sum" else 1.0 / batch_size


def _divides_lr(optimizer: OptimizerSettings) -> bool:
    """Whether the step is proportional to the gradient's scale, and lr takes that back."""
    kinds = (SGDSettings, SGDWSettings, LARSSettings, RMSpropWarmupSettings)
    return isinstance(optimizer, kinds)


def _reduced(
    optimizer: OptimizerSettings, reduction: Reduction, batch_size: int
) -> OptimizerSettings:
    """The settings that make the same updates of a gradient with this reduction."""
    scale = _gradient_scale(reduction, batch_size)
    if isinstance(optimizer, MuonSettings):
        rule = "must be one that a mean and a sum can serve alike"
        raise InputError("optimizer", rule, "muon", hint="the epsilon of its AdamW is no setting")
    changes: dict[str, float] = {}
    if _divides_lr(optimizer):
        changes["lr"] = optimizer.lr / scale
    if isinstance(optimizer, LARSSettings):
        changes["trust"] = optimizer.trust * scale
    if optimizer.decay == "coupled":
        changes["weight_decay"] = optimizer.weight_decay * scale
    if not isinstance(optimizer, (SGDSettings, SGDWSettings)):
        changes["epsilon"] = optimizer.epsilon * scale
    converted: OptimizerSettings = replace(optimizer, **changes)  # type: ignore[arg-type]
    return converted


def _transform(settings: GradientTransform, scale: float) -> GradientTransform:
    match settings:
        case ClipGlobalNorm(max_norm=norm):
            return replace(settings, max_norm=norm * scale)
        case NormalizeGradient(norm=norm):
            return replace(settings, norm=norm * scale)
        case AdditiveNoise(std=std):
            return replace(settings, std=std * scale)
        case _:
            return settings
