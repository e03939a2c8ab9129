"""K-FAC, usable in any torch loop; see `KFAC`.

    from anybatch.kfac import KFAC
    kfac = KFAC(model)                  # then, before optimizer.step(): kfac.step()

Names are loaded when first used: placements need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anybatch.kfac.blocks import find_blocks as find_blocks
    from anybatch.kfac.preconditioner import KFAC as KFAC
    from anybatch.recipe_preconditioner import AdaptiveRefresh as AdaptiveRefresh
    from anybatch.recipe_preconditioner import FixedRefresh as FixedRefresh
    from anybatch.recipe_preconditioner import KFACSettings as KFACSettings

_HOME_OF = {
    "AdaptiveRefresh": "anybatch.recipe_preconditioner",
    "FixedRefresh": "anybatch.recipe_preconditioner",
    "KFAC": "anybatch.kfac.preconditioner",
    "KFACSettings": "anybatch.recipe_preconditioner",
    "find_blocks": "anybatch.kfac.blocks",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'anybatch.kfac' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
