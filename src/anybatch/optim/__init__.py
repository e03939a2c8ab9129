"""Update rules and gradient transforms, one per file; each is usable alone in any torch loop.

    from anybatch.optim import SGDW
    optimizer = SGDW(model.parameters(), lr=0.1, weight_decay=5e-5)

Names are loaded when first used: the conversions of weight decay need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anybatch.optim.clipping import clip_global_norm as clip_global_norm
    from anybatch.optim.decay import decay_norm_of as decay_norm_of
    from anybatch.optim.decay import normalized_decay as normalized_decay
    from anybatch.optim.decay import stated_decay as stated_decay
    from anybatch.optim.decay import torch_decay as torch_decay
    from anybatch.optim.gradient_noise import add_gradient_noise as add_gradient_noise
    from anybatch.optim.gradient_noise import multiply_gradient_noise as multiply_gradient_noise
    from anybatch.optim.lamb import LAMB as LAMB
    from anybatch.optim.lars import LARS as LARS
    from anybatch.optim.lr_scheduler import schedule_as_lr_scheduler as schedule_as_lr_scheduler
    from anybatch.optim.muon import MuonWithAdamW as MuonWithAdamW
    from anybatch.optim.normalizing import normalize_global_norm as normalize_global_norm
    from anybatch.optim.parameter_kinds import divide_by_kind as divide_by_kind
    from anybatch.optim.restarts import SGDWR as SGDWR
    from anybatch.optim.restarts import AdamWR as AdamWR
    from anybatch.optim.rmsprop_warmup import RMSpropWarmup as RMSpropWarmup
    from anybatch.optim.rmsprop_warmup import sgd_share as sgd_share
    from anybatch.optim.sgdw import SGDW as SGDW

_HOMES = {
    "clipping": ("clip_global_norm",),
    "decay": ("decay_norm_of", "normalized_decay", "stated_decay", "torch_decay"),
    "gradient_noise": ("add_gradient_noise", "multiply_gradient_noise"),
    "lamb": ("LAMB",),
    "lars": ("LARS",),
    "lr_scheduler": ("schedule_as_lr_scheduler",),
    "muon": ("MuonWithAdamW",),
    "normalizing": ("normalize_global_norm",),
    "parameter_kinds": ("divide_by_kind",),
    "restarts": ("SGDWR", "AdamWR"),
    "rmsprop_warmup": ("RMSpropWarmup", "sgd_share"),
    "sgdw": ("SGDW",),
}
_HOME_OF = {name: f"anybatch.optim.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'anybatch.optim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
