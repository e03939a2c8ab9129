"""What a dry run trains: a task on made-up data, and the recipe with a smaller update."""

from __future__ import annotations

import dataclasses
import math

import torch

from anybatch.data.catalog import DATA_SETS
from anybatch.data.items import tensors_of
from anybatch.data.resident import Normalization, ResidentSource
from anybatch.errors import InputError
from anybatch.models.table import ModelShape, build_model
from anybatch.objectives import Kind
from anybatch.recipe import Recipe
from anybatch.schedules import Constant
from anybatch.task import Task

__all__ = ["IMAGENET_EXAMPLES", "imagenet_shape", "made_small", "numbers_of", "synthetic_task"]

IMAGENET_EXAMPLES = 1_281_167
"""Training images of ImageNet's 1,000 classes."""

_NUMBERS_OF_A_PASS = 2**21  # of input, on a CPU: 8 images of 224 x 224
_PASSES = 2


def imagenet_shape(image_size: int | None) -> ModelShape:
    """Colour images of 1,000 classes.

    Args:
        image_size: side in pixels; None: 224.
    """
    side = image_size or 224
    return ModelShape(input_shape=(3, side, side), num_outputs=1000)


def numbers_of(task: Task) -> int:
    """How many numbers one example's input has."""
    batch = next(iter(task.source("train").batches([torch.zeros(1, dtype=torch.int64)])))
    return max(1, sum(tensor[0].numel() for tensor in tensors_of(batch.inputs)))


def synthetic_task(name: str, shape: ModelShape, kind: Kind, *, num_examples: int) -> Task:
    """A built-in task with noise in the place of its data: images of bytes, or tokens.

    Args:
        name: of a built-in data set, whose default network it has.
        shape: of its examples.
        kind: "classification" or "language-modelling".
        num_examples: that it holds.

    Raises:
        InputError: examples that are neither images nor tokens.
    """
    random = torch.Generator().manual_seed(0)
    if shape.vocabulary_size is not None:
        sizes = (2, num_examples, *shape.input_shape)
        tokens = torch.randint(0, shape.vocabulary_size, sizes, generator=random)
        source = ResidentSource.from_arrays(tokens[0], tokens[1])
    elif len(shape.input_shape) == 3:
        channels, height, width = shape.input_shape
        sizes = (num_examples, height, width, channels)
        pixels = torch.randint(0, 256, sizes, dtype=torch.uint8, generator=random)
        classes = torch.randint(0, shape.num_outputs, (num_examples,), generator=random)
        normalization = Normalization(mean=(0.5,) * channels, std=(0.3,) * channels)
        source = ResidentSource.from_arrays(pixels, classes, normalization=normalization)
    else:
        raise InputError(name, "must hold images or tokens for a dry run", shape.input_shape)
    default = DATA_SETS[name.partition(":")[0]].default_model
    return Task(
        build_model=lambda: build_model(default, shape),
        train=source,
        validation=source,
        test=source,
        kind=kind,
        shape=shape,
        name=name,
    )


def made_small(
    recipe: Recipe, *, ranks: int, numbers: int, num_examples: int | None
) -> tuple[Recipe, list[str]]:
    """The recipe with an update of at most two passes, and what was changed, in words.

    It is the share of one rank where that is less. On a CPU a pass takes at most about two million
    numbers. The batch size does not change in it.

    Args:
        recipe: of the whole run.
        ranks: that would share an update, >= 1.
        numbers: of one example's input.
        num_examples: of the training set; None: not known.

    Example:
        >>> from anybatch.recipe import SGDSettings
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=4096, micro_batch_size=128)
        >>> small, changes = made_small(recipe, ranks=2, numbers=10, num_examples=50_000)
        >>> small.batch_size, changes
        (256, ['an update of 256 examples in the place of 4,096'])
    """
    size = (num_examples or 1) if recipe.batch_size == "full" else recipe.batch_size
    share = -(-size // ranks)
    whole_pass = one_pass = min(share, recipe.micro_batch_size or share)
    if recipe.compute.device == "cpu" or not torch.cuda.is_available():
        one_pass = min(one_pass, max(2, 1 << int(math.log2(max(2, _NUMBERS_OF_A_PASS // numbers)))))
    ghost = None if recipe.ghost_batch_size is None else min(recipe.ghost_batch_size, one_pass)
    one_pass -= one_pass % (ghost or 1)
    is_divided = ghost is not None or recipe.micro_batch_size is not None
    batch = min(share, _PASSES * one_pass) if is_divided else one_pass
    blocks = recipe.blocks
    if blocks is not None:
        blocks = dataclasses.replace(blocks, size=min(blocks.size, one_pass))
    small = dataclasses.replace(
        recipe,
        batch_size=batch,
        micro_batch_size=one_pass if is_divided else None,
        ghost_batch_size=ghost,
        blocks=blocks,
        batch_control=None,
        batch_norm=dataclasses.replace(recipe.batch_norm, recalibration_examples=None),
        schedules=dataclasses.replace(recipe.schedules, batch_size=Constant()),
        augmentation=dataclasses.replace(recipe.augmentation, random_resized_crop=False),
    )
    sizes = {
        "an update": (size, batch),
        "a pass": (whole_pass, one_pass),
        "a ghost": (recipe.ghost_batch_size or 0, ghost or 0),
    }
    said = [
        f"{thing} of {after:,} examples in the place of {before:,}"
        for thing, (before, after) in sizes.items()
        if before != after
    ]
    if recipe.augmentation.random_resized_crop:
        said.append("no crop of a random size: the images are made in their size")
    if recipe.batch_control is not None or recipe.schedules.batch_size != Constant():
        said.append("a batch size that stays")
    return small, said
