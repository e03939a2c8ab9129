"""Sharpness: the largest eigenvalue of the training loss's Hessian, against the edge 2/lr.

    for each repeat: other training examples
        Lanczos on Hessian-vector products of their mean loss, until the residual is small
    -> sharpness, the lr at the edge of stability, lr x sharpness, each with an interval

For Adam the Hessian is preconditioned, P^-1/2 H P^-1/2, as its second moments have it.

Reference: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of
Stability".
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anybatch.curvature.hvp import flat, hessian_vector_product, kinks_of
from anybatch.curvature.lanczos import lanczos
from anybatch.errors import InputError
from anybatch.measurement import Measurement
from anybatch.measuring.examples import losses_of, parts_of, portions_of
from anybatch.measuring.sharpness_reading import findings_of, read_sharpness, stability_limit
from anybatch.measuring.subjects import opened_training, recipe_settings
from anybatch.progress import Activity
from anybatch.recipe import AdamSettings, AdamWSettings, Recipe
from anybatch.recipe_checks import require, require_positive
from anybatch.task import Task
from anybatch.training.portion import Portion
from anybatch.training.snapshot import seed_everything
from anybatch.training.training import Training

__all__ = ["SharpnessSettings", "measure_sharpness"]

_UPDATES_OF_A_NEW_ADAM = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SharpnessSettings:
    """How the sharpness is measured.

    Attributes:
        num_examples: of each repeat, >= 1; all of them where the set holds no more.
        repeats: sets of examples, >= 1; one where the whole set is taken.
        max_iterations: of Lanczos, >= 1, one Hessian-vector product each.
        tolerance: residual / eigenvalue at which Lanczos stops, > 0.
        num_updates: taken before; None: 0, but 100 of a new Adam, which preconditions only then.
    """

    num_examples: int = 512
    repeats: int = 3
    max_iterations: int = 50
    tolerance: float = 0.01
    num_updates: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_examples", "repeats", "max_iterations"):
            value = getattr(self, name)
            require(name, value, "must be >= 1", value >= 1)
        require_positive("tolerance", self.tolerance)
        taken = self.num_updates or 0
        require("num_updates", taken, "must be >= 0", taken >= 0)


def measure_sharpness(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: SharpnessSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure the largest eigenvalue of the training loss's Hessian, and what lr it allows.

    The loss is the mean over the examples that is trained on, label smoothing and augmentation
    included, in training mode: BatchNorm by the batches of the recipe, dropout with the same draws
    in every product. Autocast is left out.

    Args:
        task: what is to be learned; or a Training, which is measured where it stands.
        recipe: with a task.
        settings: of the measurement.
        progress: show what is being done.

    Returns:
        A measurement of kind "sharpness". Estimates: "sharpness" (loss per squared weight), or
        for Adam "preconditioned_sharpness"; "edge_lr", above which the whole gradient's updates
        would diverge; "lr_times_sharpness", coupled weight decay included. Findings:
        "beyond-the-edge", "not-converged", "not-smooth", "no-curvature", "not-finite".

    Raises:
        InputError: task and recipe do not fit together, a layer has no second derivative, or
            parameters are complex.

    Cost:
        Up to `repeats * max_iterations` Hessian-vector products, each about two gradients of
        `num_examples`; memory of twice a backward pass, and `max_iterations` vectors as long as
        the parameters.

    Collectives:
        One all-reduce as long as the parameters for each product; every rank must call.
    """
    settings, started = settings or SharpnessSettings(), time.perf_counter()
    with (
        opened_training(task, recipe) as training,
        Activity("sharpness", shown=progress and training.world.is_first) as activity,
    ):
        taken = _taken_first(training, settings)
        examples = _train(training, taken, activity)
        parameters: list[Tensor] = [p for p in training.model.parameters() if p.requires_grad]
        if any(parameter.is_complex() for parameter in parameters):
            raise InputError("model", "must have real parameters only", "complex ones")
        root = _root_of_preconditioner(training, parameters)
        subsets = _subsets(training, settings)
        rows: list[tuple[float, ...]] = []
        for repeat, portions in enumerate(subsets):
            operator = _Curvature(training, parameters, portions, root)
            _search(operator, repeat, settings, activity, rows)
            examples += operator.examples
        found = _described(training, settings, root is not None)
        found |= {"num_updates": taken, "repeats": len(subsets), "kinks": operator.kinks()}
        found["examples_per_repeat"] = operator.num_examples
        found["is_whole_set"] = training.task.source("train").num_examples == operator.num_examples
    columns = dict(zip(_COLUMNS, (tuple(c) for c in zip(*rows, strict=True)), strict=True))
    estimates = read_sharpness(columns, found)
    return Measurement(
        kind="sharpness",
        settings=found,
        samples=columns,
        estimates=estimates,
        seconds=time.perf_counter() - started,
        examples=examples,
        findings=tuple(findings_of(columns, found, estimates)),
    )


_COLUMNS = ("repeat", "iteration", "eigenvalue", "residual")


def _taken_first(training: Training, settings: SharpnessSettings) -> int:
    if settings.num_updates is not None:
        return settings.num_updates
    is_adam = isinstance(training.recipe.optimizer, AdamSettings | AdamWSettings)
    return _UPDATES_OF_A_NEW_ADAM if is_adam and not training.updates else 0


def _train(training: Training, num_updates: int, activity: Activity) -> int:
    """Take the updates that come first; returns how many examples they took."""
    before = training.feed.examples
    training.one_step.train_mode()
    for update in range(num_updates):
        training.step()
        activity.show(f"update {update + 1} of {num_updates}")
    return training.feed.examples - before


def _subsets(training: Training, settings: SharpnessSettings) -> list[list[Portion]]:
    """Other examples for each repeat; the whole set only once."""
    available = training.task.source("train").num_examples
    if available is not None and settings.num_examples >= available:
        return [portions_of(training, available)]
    found, skip = [], 0
    for _ in range(settings.repeats):
        found.append(portions_of(training, settings.num_examples, skip=skip))
        skip += sum(portion.num_examples for portion in found[-1])
    return found


class _Curvature:
    """Products with the (preconditioned) Hessian of the mean loss over some examples."""

    def __init__(
        self,
        training: Training,
        parameters: list[Tensor],
        portions: list[Portion],
        root: Tensor | None,
    ) -> None:
        self._training, self._parameters, self._portions = training, parameters, portions
        self._root = root
        self.num_examples = sum(portion.num_examples for portion in portions)
        self.examples = 0  # used so far, over all ranks

    def product(self, vector: Tensor) -> Tensor:
        """H v, or P^-1/2 H P^-1/2 v; the sum over ranks.

        Collectives: one all-reduce as long as the vector.
        """
        scaled = vector if self._root is None else vector / self._root
        seed_everything(self._training.recipe.seed)  # the same dropout in every product
        found = hessian_vector_product(self._losses(), self._parameters, scaled)
        self._training.world.sum_in_place(found)
        self.examples += self.num_examples
        return found if self._root is None else found / self._root

    def _losses(self) -> Iterator[Tensor]:
        self._training.one_step.train_mode()
        for part in parts_of(self._training, self._portions):
            yield losses_of(self._training, part).sum() / self.num_examples

    def start(self, repeat: int) -> Tensor:
        """A random direction, the same on every rank."""
        generator = torch.Generator().manual_seed(self._training.recipe.seed + repeat)
        like = flat([parameter.detach() for parameter in self._parameters])
        return torch.randn(len(like), generator=generator).to(like)

    def kinks(self) -> list[str]:
        """Operations that are not smooth; of the first rank."""
        first = next(self._losses(), None)
        return self._training.world.from_first([] if first is None else kinks_of(first))


def _search(
    operator: _Curvature,
    repeat: int,
    settings: SharpnessSettings,
    activity: Activity,
    rows: list[tuple[float, ...]],
) -> None:
    """Lanczos on one set of examples, a row for each iteration."""
    found = lanczos(operator.product, operator.start(repeat))
    for number, ritz in enumerate(itertools.islice(found, settings.max_iterations), start=1):
        rows.append((repeat, number, ritz.eigenvalue, ritz.residual))
        done = (repeat + number / settings.max_iterations) / settings.repeats
        activity.show(f"examples {repeat + 1}  largest {ritz.eigenvalue:.4g}", share=done)
        if ritz.residual <= settings.tolerance * abs(ritz.eigenvalue):
            return


def _root_of_preconditioner(training: Training, parameters: list[Tensor]) -> Tensor | None:
    """P^1/2 of Adam, P = (1 - b1^(t+1)) (sqrt(v / (1 - b2^t)) + eps); None where there is none."""
    settings: Any = training.scaled_recipe.optimizer
    if not isinstance(settings, AdamSettings | AdamWSettings):
        return None
    state = getattr(training.optimizer, "state", {})
    if not state:
        return None
    pieces = []
    for parameter in parameters:
        own = state.get(parameter, {})
        if "exp_avg_sq" not in own:  # no gradient has reached it: its rows of H are 0
            pieces.append(torch.ones_like(parameter))
            continue
        t = float(own["step"])
        second = own["exp_avg_sq"] / (1.0 - settings.beta2**t)
        first = 1.0 - settings.beta1 ** (t + 1.0)
        pieces.append((first * (second.sqrt() + settings.epsilon)).sqrt())
    return flat([piece.detach() for piece in pieces])


def _described(
    training: Training, settings: SharpnessSettings, preconditioned: bool
) -> dict[str, Any]:
    """Everything that the estimates are computed from, beside the samples."""
    recipe = training.recipe
    optimizer: Any = recipe.optimizer
    current = training.one_step.hyperparameters.current()
    summed = recipe.loss.reduction == "sum"
    nesterov = bool(getattr(optimizer, "nesterov", False))
    coupled = optimizer.decay == "coupled" and not preconditioned
    size = training.feed.standing_still().next().num_examples if summed else 1
    return {
        **dataclasses.asdict(settings),
        **recipe_settings(training.task, recipe),
        "after_updates": training.updates,
        "lr": current["lr"],
        "momentum": current["momentum"],
        "nesterov": nesterov,
        "preconditioned": preconditioned,
        "stability_limit": stability_limit(optimizer.name, current["momentum"], nesterov=nesterov),
        "loss_weight": float(size),
        "coupled_decay": current["weight_decay"] if coupled else 0.0,
    }
