"""Methods: what the five articles name, each as lines of a recipe, with its paper.

The lines are TOML and, one by one, what `--set` takes. They are put on top of any recipe (the
shipped "default", say); numbers in them are examples, not advice.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    """One method of an article.

    Attributes:
        title: what it is called.
        lines: of the recipe; each stands for itself.
        paper: authors and year; where there is none, empty.
        article: number of the article that describes or compares it, 1 ... 5; 0: none.
        page: of the documentation, which says when it helps, what it costs and when it does not.
    """

    title: str
    lines: tuple[str, ...]
    paper: str
    article: int
    page: str


def _optimizer(name: str, settings: str) -> str:
    return f'optimizer = {{ name = "{name}", {settings} }}'


def _lr(settings: str) -> str:
    return f"schedules.lr = {{ {settings} }}"


_SGD = _optimizer("sgd", "lr = 0.1, momentum = 0.9, weight_decay = 5e-4")
_KFAC = 'preconditioner = { name = "kfac", damping = 1e-3 }'
_SGDR = _lr('name = "sgdr", first_cycle = "1 epoch", cycle_growth = 2.0')

_UPDATE_RULES = (
    Method("SGD with momentum", (_SGD,), "Polyak 1964", 2, "weight-decay"),
    Method(
        "SGDW: decay beside the step",
        (_optimizer("sgdw", 'lr = 0.1, weight_decay = 5e-5, decay = "decoupled"'),),
        "Loshchilov, Hutter 2019", 5, "weight-decay",
    ),
    Method(
        "SGDWR: warm restarts, normalized decay",
        (_optimizer("sgdw", 'lr = 0.1, weight_decay = 0.025, decay = "normalized"'), _SGDR),
        "Loshchilov, Hutter 2019", 5, "weight-decay",
    ),
    Method(
        "Adam at 3e-4", (_optimizer("adam", "lr = 3e-4"),), "Kingma, Ba 2015", 5, "weight-decay"
    ),
    Method(
        "AdamW: decay beside the step",
        (_optimizer("adamw", "lr = 1e-3, weight_decay = 0.05"),),
        "Loshchilov, Hutter 2019", 5, "weight-decay",
    ),
    Method(
        "AdamW: normalized decay",
        (_optimizer("adamw", 'lr = 1e-3, weight_decay = 0.025, decay = "normalized"'),),
        "Loshchilov, Hutter 2019", 5, "weight-decay",
    ),
    Method(
        "AdamWR: warm restarts, normalized decay",
        (_optimizer("adamw", 'lr = 1e-3, weight_decay = 0.025, decay = "normalized"'), _SGDR),
        "Loshchilov, Hutter 2019", 5, "weight-decay",
    ),
    Method(
        "LARS, lr inside of the momentum",
        (_optimizer("lars", "lr = 10.0, weight_decay = 1e-4"),),
        "You, Gitman, Ginsburg 2017", 3, "large-batch-optimizers",
    ),
    Method(
        "LARS, lr outside of the momentum",
        (_optimizer("lars", 'lr = 10.0, weight_decay = 1e-4, buffer = "unscaled"'),),
        "You, Gitman, Ginsburg 2017", 3, "large-batch-optimizers",
    ),
    Method(
        "LAMB", (_optimizer("lamb", "lr = 5e-3"),), "You et al. 2020", 3, "large-batch-optimizers"
    ),
    Method(
        "RMSprop warm-up, then SGD",
        (_optimizer("rmsprop-warmup", 'lr = 0.1, center = "2 epochs", width = "1 epoch"'),),
        "Akiba, Suzuki, Fukuda 2017", 3, "large-batch-optimizers",
    ),
    Method(
        "Muon for hidden matrices",
        (_optimizer("muon", "lr = 0.02"),),
        "Jordan et al. 2024", 0, "large-batch-optimizers",
    ),
    Method("K-FAC", (_SGD, _KFAC), "Martens, Grosse 2015", 3, "kfac"),
    Method(
        "K-FAC, adaptive refresh of its statistics",
        (_SGD, 'preconditioner = { name = "kfac", refresh = { name = "adaptive" } }'),
        "Osawa et al. 2020", 3, "kfac",
    ),
    Method(
        "momentum that falls with the lr, which stands inside",
        (
            _optimizer("sgdw", "lr = 0.05"),
            _lr('name = "polynomial", power = 3.0'),
            'schedules.momentum = { name = "polynomial", power = 3.0 }',
        ),
        "Osawa et al. 2019", 3, "kfac",
    ),
    Method(
        "weights rescaled to a bound on their norm", ("rescaling = {}",), "Osawa et al. 2019", 3,
        "kfac",
    ),
    Method(
        "no decay of biases and norms",
        ("decayed = { biases = false, norms = false }",),
        "Goyal et al. 2017", 3, "weight-decay",
    ),
)  # fmt: skip

_SCHEDULES = (
    Method(
        "cyclical lr",
        (_lr('name = "cyclic", up = "1 epoch", start = 0.1'),),
        "Smith 2017", 5, "schedules",
    ),
    Method("warm restarts (SGDR)", (_SGDR,), "Loshchilov, Hutter 2017", 5, "schedules"),
    Method(
        "one cycle, momentum against lr",
        (
            _lr('name = "one-cycle"'),
            'schedules.momentum = { name = "one-cycle", start = 1.0, peak = 0.89, end = 1.0 }',
        ),
        "Smith, Topin 2018", 5, "schedules",
    ),
    Method(
        "gradual warm-up from the single worker's lr",
        (_lr('name = "warmup", duration = "1 epoch", start = 0.125'),),
        "Goyal et al. 2017", 3, "batch-rules",
    ),
    Method(
        "slow start in steps",
        (_lr('name = "levels", values = [0.5, 0.075, 0.01], '
             'boundaries = ["0.4 fraction", "0.8 fraction"]'),),
        "Akiba, Suzuki, Fukuda 2017", 3, "schedules",
    ),
    Method(
        "lr linear over some epochs, then constant",
        (_lr('name = "warmup", duration = "1 epoch"'),),
        "Page 2018", 1, "schedules",
    ),
    Method(
        "polynomial lr that ends beyond the run",
        (_lr('name = "polynomial", power = 8.0, length = "3 epochs"'),),
        "Osawa et al. 2019", 3, "schedules",
    ),
    Method("lower lr on a plateau", ("plateau = { patience = 2 }",), "", 2, "plateau"),
    Method(
        "decaying momentum",
        (_SGD, 'schedules.momentum = { name = "decaying-momentum", momentum = 0.9 }'),
        "Chen et al. 2022", 4, "schedules",
    ),
)  # fmt: skip

_BATCH_RULES = (
    Method(
        "linear lr rule",
        ('scaling = { base_batch_size = 64, lr = "linear" }',),
        "Krizhevsky 2014", 3, "batch-rules",
    ),
    Method(
        "square-root lr rule, Adam's averages with it",
        ('scaling = { base_batch_size = 64, lr = "square-root" }',),
        "Malladi et al. 2022", 0, "batch-rules",
    ),
    Method(
        "noise-scale lr rule",
        ('scaling = { base_batch_size = 64, lr = "noise-scale", noise_scale = 400.0 }',),
        "McCandlish et al. 2018", 0, "batch-rules",
    ),
    Method(
        "momentum by batch size",
        (_SGD, 'scaling = { base_batch_size = 160, lr = "constant", momentum = "constant-noise" }'),
        "Smith, Le 2018", 4, "batch-rules",
    ),
    Method(
        "summed loss",
        (_optimizer("sgd", "lr = 8e-4, momentum = 0.9"), 'loss = { reduction = "sum" }'),
        "Page 2018", 1, "batch-rules",
    ),
    Method(
        "batch size grows in steps",
        ('schedules.batch_size = { name = "step", every = "1 epoch", factor = 2.0 }',),
        "Smith et al. 2018", 3, "batch-rules",
    ),
    Method(
        "batch size follows the noise scale",
        ('batch_control = { every = "500 examples" }', "ghost_batch_size = 32"),
        "McCandlish et al. 2018", 3, "batch-rules",
    ),
    Method(
        "ghost BatchNorm", ("ghost_batch_size = 32",), "Hoffer, Hubara, Soudry 2017", 1,
        "batch-norm",
    ),
    Method(
        "BatchNorm without moving averages",
        ('batch_norm = { evaluated_with = "last-update" }',),
        "Akiba, Suzuki, Fukuda 2017", 3, "batch-norm",
    ),
    Method(
        "BatchNorm recalibrated before evaluation",
        ('batch_norm = { evaluated_with = "whole-set" }',),
        "Izmailov et al. 2018", 4, "batch-norm",
    ),
    Method("BatchNorm frozen", ("batch_norm = { frozen = true }",), "", 0, "batch-norm"),
    Method(
        "residual branches begin at zero",
        ('model = { name = "resnet18", width = 0.125, zero_gamma = true }',),
        "Goyal et al. 2017", 3, "batch-norm",
    ),
    Method(
        "a loss that couples a batch, in parts",
        ('loss = { coupled = "cached-outputs" }', "micro_batch_size = 32", "ghost_batch_size = 32"),
        "Gao et al. 2021", 2, "coupled-losses",
    ),
    Method(
        "local SGD", ("communication = { every = 4 }",), "Stich 2019", 3, "local-updates"
    ),
    Method(
        "post-local SGD",
        ('communication = { every = 4, begin_after = "1 epoch" }',),
        "Lin et al. 2020", 3, "local-updates",
    ),
)  # fmt: skip

_GRADIENTS = (
    Method(
        "full batch", ('batch_size = "full"', "micro_batch_size = 128"), "Geiping et al. 2022", 4,
        "full-batch",
    ),
    Method(
        "clipping by the global norm",
        ('gradient = [{ name = "clip-global-norm", max_norm = 0.25 }]',),
        "Pascanu, Mikolov, Bengio 2013", 4, "gradient-transforms",
    ),
    Method(
        "clipping of each block",
        ("blocks = { size = 128, clip_norm = 1.0 }",),
        "Geiping et al. 2022", 4, "full-batch",
    ),
    Method(
        "penalty on the blocks' gradient norms",
        ('blocks = { size = 128, penalty = { name = "gradient-penalty" } }',),
        "Geiping et al. 2022", 4, "full-batch",
    ),
    Method(
        "sharpness-aware minimization",
        ('blocks = { size = 128, penalty = { name = "sharpness-aware" } }',),
        "Foret et al. 2021", 4, "full-batch",
    ),
    Method(
        "normalized gradient", ('gradient = [{ name = "normalize" }]',), "Novack et al. 2023", 4,
        "gradient-transforms",
    ),
    Method(
        "additive gradient noise",
        ('gradient = [{ name = "additive-noise", std = 1e-3 }]',),
        "Wu et al. 2020", 4, "gradient-transforms",
    ),
    Method(
        "multiplicative gradient noise",
        ('gradient = [{ name = "multiplicative-noise", std = 0.5 }]',),
        "Hoffer, Hubara, Soudry 2017", 4, "gradient-transforms",
    ),
    Method(
        "label smoothing", ("loss = { label_smoothing = 0.1 }",), "Szegedy et al. 2016", 4,
        "augmentation",
    ),
    Method(
        "mixup", ('augmentation.mixing = { name = "mixup" }',), "Zhang et al. 2018", 3,
        "augmentation",
    ),
    Method(
        "running mixup", ('augmentation.mixing = { name = "running-mixup" }',), "Osawa et al. 2020",
        3, "augmentation",
    ),
    Method(
        "random erasing", ("augmentation.erasing = {}",), "Zhong et al. 2017", 3, "augmentation"
    ),
    Method(
        "a few fixed augmented copies",
        ("augmentation.crop_padding = 1", "augmentation.copies = 2"),
        "Geiping et al. 2022", 4, "full-batch",
    ),
)  # fmt: skip

METHODS: tuple[Method, ...] = (*_UPDATE_RULES, *_SCHEDULES, *_BATCH_RULES, *_GRADIENTS)
