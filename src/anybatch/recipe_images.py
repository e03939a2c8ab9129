"""Random changes of the training images, and mixtures of several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from anybatch.recipe_checks import require, require_choices, require_not_negative, require_positive

__all__ = ["Augmentation", "Mixing", "Mixup", "RandomErasing", "RunningMixup"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomErasing:
    """Fill a random rectangle of an image with noise or the mean colour.

    Attributes:
        probability: per image, in [0, 1].
        smallest_area: share of the image, in (0, 1].
        largest_area: share of the image, in [smallest_area, 1].
        lowest_aspect: height / width of the flattest rectangle, in (0, 1]; the tallest is its
            inverse.
        filling: "noise" draws each value from N(0, 1) in normalized units, "mean" sets it to 0.

    Reference:
        Zhong, Zheng, Kang, Li, Yang (2017), Random erasing data augmentation, algorithm 1.
    """

    probability: float = 0.5
    smallest_area: float = 0.02
    largest_area: float = 0.4
    lowest_aspect: float = 0.3
    filling: Literal["noise", "mean"] = "noise"

    def __post_init__(self) -> None:
        require_choices(self)
        p, low, high = self.probability, self.smallest_area, self.largest_area
        require("probability", p, "must be in [0, 1]", 0 <= p <= 1)
        require("smallest_area", low, "must be in (0, 1]", 0 < low <= 1)
        require("largest_area", high, f"must be in [{low:g}, 1]", low <= high <= 1)
        aspect = self.lowest_aspect
        require("lowest_aspect", aspect, "must be in (0, 1]", 0 < aspect <= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixup:
    """Train on l x + (1 - l) x' with both labels, x' another example of the same ghost.

    Attributes:
        alpha: of the Beta(alpha, alpha) from which l is drawn, > 0.

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz (2018), mixup: beyond empirical risk minimization, eq. 1.
    """

    name: ClassVar[str] = "mixup"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("alpha", self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningMixup:
    """Mix each example with the already mixed one at its place in the update before.

    x~_t = l x_t + (1 - l) x~_{t-1}, the same for one-hot targets; l ~ Beta(alpha, alpha) for each
    example, the greater of l and 1 - l taken. The first update is not mixed.

    Attributes:
        alpha: of the Beta distribution, > 0.

    Reference:
        Osawa et al. (2020), Scalable and practical natural gradient for large-scale deep learning,
        section 5.1.
    """

    name: ClassVar[str] = "running-mixup"
    alpha: float = 0.4

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive("alpha", self.alpha)


Mixing: TypeAlias = Mixup | RunningMixup


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of the training images; none by default.

    Attributes:
        crop_padding: pixels of padding on each side before a random crop back to size, >= 0.
        padding_mode: what the padding holds: the mirrored image or black (raw value 0).
        flip: horizontal mirror: "random" draws per epoch, "alternating" draws once per example
            and then mirrors on every second epoch, so both views are seen in each pair of epochs.
        cutout_size: side in pixels of a square set to the mean colour, >= 0; may reach over the
            edge.
        random_resized_crop: crop 8 % to 100 % of the area at an aspect of 3/4 to 4/3 and resize
            (streamed image folders only).
        erasing: of a rectangle of each image; None: none.
        mixing: of several examples; None: none.
        copies: 0 draws anew in each epoch. k >= 1 fixes k augmented copies of each example, drawn
            once: the training set is then k times as large, and an epoch sees every copy.
    """

    crop_padding: int = 0
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout_size: int = 0
    random_resized_crop: bool = False
    erasing: RandomErasing | None = None
    mixing: Mixing | None = None
    copies: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        require_not_negative("crop_padding", self.crop_padding)
        require_not_negative("cutout_size", self.cutout_size)
        require_not_negative("copies", self.copies)
