"""What a reproduction is made of: problem, arms, contrasts, effects, verdict. Needs no torch.

A claim is a module beside this one: plain text about what was published and what is expected, the
experiment, and a verdict that is a pure function of what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from anybatch.recipe import GradientPenalty, Recipe, SharpnessAware

if TYPE_CHECKING:
    from anybatch.studies.reproductions.results import Results

__all__ = [
    "FEWEST_SEEDS",
    "RESOLVED",
    "Accumulated",
    "Arm",
    "Claim",
    "Contrast",
    "Effect",
    "Experiment",
    "Problem",
    "Procedure",
    "SameLR",
    "Searched",
    "SharpnessTracked",
    "Trained",
    "Verdict",
    "passes_per_example",
]

FEWEST_SEEDS = 3
"""With fewer, there is no verdict."""

RESOLVED = 0.005
"""A smaller difference of accuracy is no effect: a test set of 10,000 is as coarse as that."""

_USUAL = "test_accuracy"

Network: TypeAlias = Literal[
    "lenet", "conv", "conv-batch-norm", "conv-group-norm", "tanh", "resnet8"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A fixed part of a data set, and the network that learns it.

    Two sets of `validation` examples are held out beside `train`: one to search by, and one that
    only the final trials see.

    Attributes:
        data: "mnist", "cifar10-jpeg" (a JPEG copy, not CIFAR-10 itself) or "digits".
        train: examples to train with.
        validation: examples in each of the two validation sets.
        test: examples of the test split; None: all.
        side: of the images in pixels; a whole multiple or part of the published one.
        network: which network.
        width: factor on its channels.
        loss: cross-entropy, or half the squared distance to the one-hot target.
    """

    data: Literal["mnist", "cifar10-jpeg", "digits"]
    train: int
    validation: int
    test: int | None = None
    side: int
    network: Network
    width: float = 1.0
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """The lr is found by trials on validation, as many as every other searched arm has.

    Attributes:
        around: the recipe's lr, or what an LR range test names, which counts as one trial.
    """

    around: Literal["recipe", "range-test"] = "recipe"


@dataclass(frozen=True, kw_only=True, slots=True)
class SameLR:
    """The lr is another arm's, times a factor; nothing is searched.

    Attributes:
        arm: whose lr.
        factor: on it, > 0.
    """

    arm: str
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trial is a training.

    Attributes:
        block: of training examples, over which the mean squared norm of the gradient is taken when
            it has ended; None: it is not.
    """

    block: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SharpnessTracked:
    """A trial is a training in which the sharpness is measured again and again.

    Attributes:
        every: updates between two measurements.
    """

    every: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulated:
    """A trial compares one gradient, formed part by part, with that of a single pass.

    Attributes:
        method: count-weighted sums, the mean of the parts' means, or the running average with a
            constant divisor of the code that was public in 2021.
        parts: examples of a part, one comparison each.
    """

    method: Literal["count-weighted", "mean-of-means", "constant-divisor"]
    parts: tuple[int, ...]


Procedure: TypeAlias = Trained | SharpnessTracked | Accumulated


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        recipe: its lr is where the search begins, or final where nothing is searched.
        problem: what is learned.
        lr: how the lr is found; None: as in the recipe.
        procedure: what a trial does.
        group: arms of a grid that belong together; "" where there is no grid.
        place: of the arm in its grid.
    """

    recipe: Recipe
    problem: Problem
    lr: Searched | SameLR | None = None
    procedure: Procedure = Trained()
    group: str = ""
    place: tuple[float, ...] = ()

    def with_lr(self, lr: float) -> Arm:
        """The same arm with another lr."""
        optimizer = replace(self.recipe.optimizer, lr=lr)
        return replace(self, recipe=replace(self.recipe, optimizer=optimizer))


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A difference that is looked at, named before the first run.

    Attributes:
        arm: the one.
        control: the other; the effect is arm - control, seed by seed.
        foretold: what is expected of it; None where it is shown only.
        quantity: a name of the trials' values.
        smallest: in the quantity's unit; what lies below is no effect.
    """

    arm: str
    control: str
    foretold: Literal["more", "less"] | None = None
    quantity: str = _USUAL
    smallest: float = RESOLVED

    @property
    def name(self) -> str:
        """Of the contrast, in tables; with its quantity where that is not the usual one."""
        quantity = "" if self.quantity == _USUAL else f", {self.quantity}"
        return f"{self.arm} - {self.control}{quantity}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A contrast with its 95 % interval over pairs of trials with the same seed.

    Attributes:
        contrast: what is compared.
        value: the mean difference.
        low: end of Student's interval; -inf below two pairs.
        high: end of it; inf below two pairs.
        number: pairs.
    """

    contrast: Contrast
    value: float
    low: float
    high: float
    number: int

    @property
    def reading(self) -> Literal["more", "less", "none", "unresolved", "too few"]:
        """What the effect says, whatever was foretold.

        "none": smaller than what counts. "unresolved": the interval holds 0.
        """
        if self.number < FEWEST_SEEDS:
            return "too few"
        if abs(self.value) < self.contrast.smallest:
            return "none"
        if self.low <= 0.0 <= self.high:
            return "unresolved"
        return "more" if self.value > 0.0 else "less"

    @property
    def excludes_loss(self) -> bool:
        """Whether the arm is no worse than its control by as much as counts (non-inferiority)."""
        return self.number >= FEWEST_SEEDS and self.low > -self.contrast.smallest


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        name: "seen", "not seen" (the opposite, or a law that fails), "null" (no effect that could
            be told from none), or "open" while trials are missing.
        sentence: with its numbers.
    """

    name: Literal["seen", "not seen", "null", "open"]
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The arms of a claim at one size.

    Attributes:
        arms: by name, which is that of a folder; the order is that of the page.
        contrasts: all that are looked at.
        search_trials: of every searched arm, >= 1; lr a factor of 2 apart.
        picture: the arms' values, a grid of them, or the paths of a quantity.
        shown: quantities that the picture shows, a panel each.
        axes: of the grid, what its rows and columns are.
        limits: what departs from the published protocol, and what it cannot show.
    """

    arms: Mapping[str, Arm]
    contrasts: tuple[Contrast, ...] = ()
    search_trials: int = 5
    picture: Literal["arms", "grid", "paths"] = "arms"
    shown: tuple[str, ...] = ("train_loss", _USUAL)
    axes: tuple[str, str] = ("lr", "weight decay")
    limits: tuple[str, ...] = ()


class Claim(Protocol):
    """What a module must hold to be a claim.

    Attributes:
        NAME: on the command line.
        TITLE: of the page.
        SOURCE: paper and year, and the article that tells of it.
        CLAIM: what was published.
        PREDICTION: what is expected here, written before the first run.
    """

    NAME: str
    TITLE: str
    SOURCE: str
    CLAIM: str
    PREDICTION: str

    def experiment(self, *, quick: bool) -> Experiment:
        """The arms, at a size that says something or at one that only shows that all runs."""
        ...

    def verdict(self, results: Results, effects: Mapping[str, Effect]) -> Verdict:
        """What was found, from complete results with three seeds or more; contrast -> effect."""
        ...


def passes_per_example(recipe: Recipe) -> int:
    """Forward and backward passes that an update takes of each of its examples.

    Example:
        >>> from anybatch.recipe import BlockSettings, SGDSettings
        >>> penalized = BlockSettings(size=32, penalty=GradientPenalty(method="central"))
        >>> passes_per_example(Recipe(optimizer=SGDSettings(lr=0.1), blocks=penalized))
        3
    """
    penalty = None if recipe.blocks is None else recipe.blocks.penalty
    if isinstance(penalty, GradientPenalty) and penalty.coefficient > 0:
        return 2 if penalty.method == "forward" else 3
    return 2 if isinstance(penalty, SharpnessAware) else 1
