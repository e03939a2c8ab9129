"""Real data: read where ANYBATCH_DATA says it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anybatch.data.catalog import load_splits


def real(relative: str) -> Path:
    """The data root, if this file is in it; skips the test otherwise."""
    root = os.environ.get("ANYBATCH_DATA")
    if not root:
        pytest.skip("ANYBATCH_DATA is not set")
    if not (Path(root) / relative).exists():
        pytest.skip(f"{relative} is not in ANYBATCH_DATA")
    return Path(root)


def test_mnist_has_its_sizes_labels_and_normalization():
    splits = load_splits("mnist", data=real("MNIST/raw"))
    assert (splits.train.num_examples, splits.test.num_examples) == (60_000, 10_000)
    assert splits.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert splits.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
    (batch,) = splits.train.batches([torch.arange(60_000)])
    assert abs(batch.inputs.mean().item()) < 1e-3
    assert abs(batch.inputs.std().item() - 1) < 1e-3


def test_the_archive_of_jpegs_has_ten_classes_of_6000():
    splits = load_splits("image-folder:cifar10-jpeg.tar.xz", data=real("cifar10-jpeg.tar.xz"))
    assert splits.input_shape == (3, 32, 32)
    assert torch.bincount(splits.train.targets).tolist() == [5000] * 10
    assert torch.bincount(splits.test.targets).tolist() == [1000] * 10
    assert splits.class_names[0] == "airplane"
    (batch,) = splits.train.batches([torch.arange(50_000)])
    assert batch.inputs.mean(dim=(0, 2, 3)).abs().max() < 5e-3
    assert (batch.inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-2


def test_shakespeare_has_65_characters():
    splits = load_splits("text:tinyshakespeare.txt", data=real("tinyshakespeare.txt"))
    assert splits.vocabulary_size == 65
    assert splits.train.num_examples == 7842
    assert splits.validation.num_examples == splits.test.num_examples == 435
