"""Arms of the benchmark of K-FAC's cost: one training step each, with three parts timed.

Every K-FAC repeats a cycle of eight updates, so that each kind of update comes up:

    inversion    statistics and inverses anew
    after        neither, right after such work, whose memory has just been given back
    plain        neither, twice
    statistics   statistics anew
    after
    plain        twice

that is statistics every 4 and inverses every 8 updates. All take the empirical Fisher and damping
1e-3 and precondition for SGD with momentum. kfac-pytorch is read from the folder
ANYBATCH_KFAC_PYTORCH; other peers are found where they are installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anybatch.kfac.preconditioner import KFAC
from anybatch.optim.muon import MuonWithAdamW, divide_parameters
from anybatch.recipe_preconditioner import AdaptiveRefresh, FixedRefresh, KFACSettings

__all__ = [
    "ARMS",
    "CYCLE",
    "SGD_ARM",
    "SGD_FROZEN_ARM",
    "SGD_LAST_ARM",
    "Arm",
    "Kind",
    "Parts",
    "Trainer",
]

Kind = Literal["plain", "after", "statistics", "inversion", "any"]

_REST: tuple[Kind, ...] = ("after", "plain", "plain")
CYCLE: tuple[Kind, ...] = ("inversion", *_REST, "statistics", *_REST)
_JOINT: tuple[Kind, ...] = ("inversion", *_REST)  # one interval for both
_ALIKE: tuple[Kind, ...] = ("any",) * 8
SGD_ARM, SGD_LAST_ARM = "torch SGD", "torch SGD, channels_last"
SGD_FROZEN_ARM = "torch SGD, frozen norms"
_FOLDER = "ANYBATCH_KFAC_PYTORCH"
_LR, _MOMENTUM, _DAMPING = 1e-3, 0.9, 1e-3


class Parts(NamedTuple):
    """Seconds of one update.

    Attributes:
        forward_backward: with whatever hooks do there.
        precondition: between backward and the optimizer; 0 without.
        apply: the optimizer's step.
    """

    forward_backward: float
    precondition: float
    apply: float


Trainer = Callable[[Tensor, Tensor], Parts]
"""Takes one update on images and labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        name: in tables.
        prepare: makes a trainer of a model that is its own.
        kinds: of the updates of a cycle.
        package: that must be importable; "" for none, "kfac" for the folder in the environment.
        channels_last: layout of images and weights.
        frozen_norms: whether linear layers and convolutions alone are trained.
        is_usual: whether it is of the few that are timed more often.
    """

    name: str
    prepare: Callable[[nn.Module], Trainer]
    kinds: tuple[Kind, ...] = _ALIKE
    package: str = ""
    channels_last: bool = False
    frozen_norms: bool = False
    is_usual: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether the arm can be measured here."""
        if self.package == "kfac":
            return os.path.isdir(os.environ.get(_FOLDER, ""))
        return not self.package or importlib.util.find_spec(self.package) is not None

    @property
    def baseline(self) -> str:
        """Name of the arm that its times are divided by."""
        if self.frozen_norms:
            return SGD_FROZEN_ARM
        return SGD_LAST_ARM if self.channels_last else SGD_ARM


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels)


def _trainer(model: nn.Module, optimizer: Any, preconditioner: Any = None) -> Trainer:
    def train(images: Tensor, labels: Tensor) -> Parts:
        optimizer.zero_grad()
        times = [_now(images)]
        _loss(model, images, labels).backward()
        times.append(_now(images))
        if preconditioner is not None:
            preconditioner.step()
        times.append(_now(images))
        optimizer.step()
        times.append(_now(images))
        return Parts(*(after - before for before, after in itertools.pairwise(times)))

    return train


def _now(images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _sgd(model: nn.Module) -> torch.optim.SGD:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=_LR, momentum=_MOMENTUM)


# --- ours ----------------------------------------------------------------------------------------


def _ours(model: nn.Module, *, adaptive: bool = False, **others: Any) -> Trainer:
    # Kinds of updates are told apart by their number, from the first on.
    fixed = FixedRefresh(statistics_every=4, inverse_every=8, early_inverses=False)
    refresh = AdaptiveRefresh() if adaptive else fixed
    optimizer = _sgd(model)
    settings = KFACSettings(damping=_DAMPING, refresh=refresh, **others)
    return _trainer(model, optimizer, KFAC(model, optimizer, settings=settings))


# --- peers ---------------------------------------------------------------------------------------


def _kfac_pytorch(model: nn.Module, *, method: str) -> Trainer:
    if "kfac" not in sys.modules:  # whose __init__ asks for metadata of an installation
        bare = sys.modules["kfac"] = ModuleType("kfac")
        bare.__path__ = [os.path.join(os.environ[_FOLDER], "kfac")]
    preconditioner = importlib.import_module("kfac.preconditioner").KFACPreconditioner(
        model,
        factor_update_steps=4,
        inv_update_steps=8,
        damping=_DAMPING,
        lr=_LR,
        compute_method=method,
    )
    return _trainer(model, _sgd(model), preconditioner)


def _singd(model: nn.Module) -> Trainer:
    """Its own update of the layers that it covers; SGD for the others."""
    optimizer_of = importlib.import_module("singd.optim.optimizer").SINGD
    covered = optimizer_of(
        model, lr=_LR, momentum=_MOMENTUM, damping=_DAMPING, T=4, warn_unsupported=False
    )
    known = {id(p) for group in covered.param_groups for p in group["params"]}
    others = [p for p in model.parameters() if id(p) not in known]
    rest = torch.optim.SGD(others, lr=_LR, momentum=_MOMENTUM) if others else None
    train = _trainer(model, covered)

    def both(images: Tensor, labels: Tensor) -> Parts:
        if rest is not None:
            rest.zero_grad()
        parts = train(images, labels)
        started = _now(images)
        if rest is not None:
            rest.step()
        return parts._replace(apply=parts.apply + _now(images) - started)

    return both


def _asdl(model: nn.Module) -> Trainer:
    """Forward, backward, statistics and preconditioning are one call of the package."""
    with _silent():
        precondition = importlib.import_module("asdl.precondition")
        config = precondition.PreconditioningConfig(
            data_size=1,
            damping=_DAMPING,
            curvature_upd_interval=4,
            preconditioner_upd_interval=8,
            ignore_modules=[nn.BatchNorm2d],
        )
        maker = precondition.KfacGradientMaker(model, config, fisher_type="fisher_emp")
    optimizer = _sgd(model)

    def train(images: Tensor, labels: Tensor) -> Parts:
        optimizer.zero_grad()
        started = _now(images)
        with _silent():
            outputs = maker.setup_model_call(model, images)
            maker.setup_loss_call(functional.cross_entropy, outputs, labels)
            maker.forward_and_backward()
        middle = _now(images)
        optimizer.step()
        return Parts(middle - started, 0.0, _now(images) - middle)

    return train


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _optimizer(build: Callable[..., Any], model: nn.Module, **settings: Any) -> Trainer:
    return _trainer(model, build(model.parameters(), **settings))


def _peer_optimizer(model: nn.Module, *, name: str, **settings: Any) -> Trainer:
    build = getattr(importlib.import_module("pytorch_optimizer"), name)
    return _optimizer(build, model, lr=_LR, **settings)


def _muon(model: nn.Module) -> Trainer:
    matrices, others = divide_parameters(model)
    muon = torch.optim.Muon(matrices, lr=_LR) if matrices else None
    return _trainer(model, MuonWithAdamW(muon, torch.optim.AdamW(others, lr=_LR)))


ARMS: tuple[Arm, ...] = (
    Arm(name=SGD_ARM, prepare=lambda model: _trainer(model, _sgd(model)), is_usual=True),
    Arm(name=SGD_LAST_ARM, prepare=lambda model: _trainer(model, _sgd(model)), channels_last=True,
        is_usual=True),
    Arm(name=SGD_FROZEN_ARM, prepare=lambda model: _trainer(model, _sgd(model)), frozen_norms=True,
        is_usual=True),
    Arm(name="torch AdamW", prepare=partial(_optimizer, torch.optim.AdamW, lr=_LR)),
    Arm(name="Muon", prepare=_muon),
    Arm(name="K-FAC", prepare=_ours, kinds=CYCLE, is_usual=True),
    Arm(name="K-FAC, channels_last", prepare=_ours, kinds=CYCLE, channels_last=True, is_usual=True),
    Arm(name="K-FAC, frozen norms", prepare=_ours, kinds=CYCLE, frozen_norms=True, is_usual=True),
    Arm(name="K-FAC, eigen", prepare=partial(_ours, solver="eigen"), kinds=CYCLE),
    Arm(name="K-FAC, adaptive", prepare=partial(_ours, adaptive=True)),
    Arm(name="kfac-pytorch, inverse", prepare=partial(_kfac_pytorch, method="inverse"),
        kinds=CYCLE, package="kfac"),
    Arm(name="kfac-pytorch, inverse, frozen norms", kinds=CYCLE, package="kfac",
        prepare=partial(_kfac_pytorch, method="inverse"), frozen_norms=True),
    Arm(name="kfac-pytorch, eigen", prepare=partial(_kfac_pytorch, method="eigen"),
        kinds=CYCLE, package="kfac"),
    Arm(name="kfac-pytorch, channels_last", prepare=partial(_kfac_pytorch, method="inverse"),
        kinds=CYCLE, package="kfac", channels_last=True),
    Arm(name="ASDL K-FAC", prepare=_asdl, kinds=CYCLE, package="asdl"),
    Arm(name="SINGD", prepare=_singd, kinds=_JOINT, package="singd"),
    Arm(name="pytorch_optimizer SOAP", prepare=partial(_peer_optimizer, name="SOAP"),
        kinds=("any",) * 10, package="pytorch_optimizer"),  # new bases every 10 updates
    Arm(name="pytorch_optimizer Shampoo", package="pytorch_optimizer",
        prepare=partial(_peer_optimizer, name="ScalableShampoo", start_preconditioning_step=1,
                        preconditioning_compute_steps=4), kinds=("any",) * 4),
)  # fmt: skip
"""In the order of the table."""
