"""Data sets: what their files hold comes out, and each broken file gives one clear error."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from data_files import cifar_images, gzipped, idx_bytes, write_cifar, write_mnist

from anybatch.data.cifar10 import load_cifar10
from anybatch.data.digits import load_digits
from anybatch.data.mnist import load_fashion_mnist, load_mnist, read_idx
from anybatch.data.text import load_text
from anybatch.errors import InputError


def test_the_digits_are_split_the_same_way_always():
    splits = load_digits()
    assert splits.input_shape == (1, 8, 8)
    assert splits.num_outputs == len(splits.class_names) == 10
    assert splits.validation is None
    train, test = splits.train, splits.test
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert int(train.inputs.max()) == 16
    # Written down once: another split would make old results incomparable.
    assert test.targets[:10].tolist() == [7, 3, 1, 0, 8, 4, 2, 7, 7, 2]
    counts = [143, 155, 135, 143, 148, 147, 145, 129, 140, 152]
    assert torch.bincount(train.targets).tolist() == counts
    counts = torch.bincount(torch.cat([train.targets, test.targets])).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI states
    (batch,) = train.batches([torch.arange(1437)])
    assert batch.inputs.shape == (1437, 1, 8, 8)
    assert abs(batch.inputs.mean().item()) < 0.01
    assert abs(batch.inputs.std().item() - 1) < 0.01


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "load", "mean", "std"),
    [("MNIST", load_mnist, 0.1307, 0.3081), ("FashionMNIST", load_fashion_mnist, 0.2860, 0.3530)],
)
def test_mnist_is_read_gzipped_or_not(tmp_path, name, load, mean, std, packed):
    arrays = write_mnist(tmp_path, name, packed=packed)
    splits = load(tmp_path)
    assert splits.input_shape == (1, 28, 28)
    assert splits.num_outputs == len(splits.class_names) == 10
    for source, stem in ((splits.train, "train"), (splits.test, "t10k")):
        images = arrays[f"{stem}-images-idx3-ubyte"]
        (batch,) = source.batches([torch.arange(len(images))])
        expected = (torch.from_numpy(images)[:, None] / 255 - mean) / std
        torch.testing.assert_close(batch.inputs, expected, rtol=1e-5, atol=1e-5)
        assert batch.targets.tolist() == arrays[f"{stem}-labels-idx1-ubyte"].tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_cifar10_is_read_from_python_and_binary_batches(tmp_path, binary):
    write_cifar(tmp_path, binary=binary)
    splits = load_cifar10(tmp_path)
    images, labels = cifar_images()
    assert splits.input_shape == (3, 32, 32)
    assert (splits.train.num_examples, splits.test.num_examples) == (20, 4)
    assert splits.train.targets.tolist() == labels[:5].flatten().tolist()
    assert splits.test.targets.tolist() == labels[5].tolist()
    (batch,) = splits.test.batches([torch.arange(4)])
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
    expected = (torch.from_numpy(images[5]).reshape(4, 3, 32, 32) / 255 - mean) / std
    torch.testing.assert_close(batch.inputs, expected, rtol=1e-5, atol=1e-5)


def test_text_becomes_windows_and_the_characters_that_follow(tmp_path):
    text = "héllo wörld, 你好!\r\n" * 100
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    splits = load_text(path, context_length=7)
    vocabulary = sorted(set(text))
    assert splits.kind == "language-modelling"
    assert splits.input_shape == (7,)
    assert splits.vocabulary_size == splits.num_outputs == len(vocabulary)
    assert list(splits.class_names) == vocabulary
    edges = {"train": (0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1)}
    for split, (low, high) in edges.items():
        part = text[int(low * len(text)) : int(high * len(text))]
        source = getattr(splits, split)
        (batch,) = source.batches([torch.arange(source.num_examples)])
        count = (len(part) - 1) // 7
        assert source.num_examples == count
        assert "".join(vocabulary[token] for token in batch.inputs.flatten()) == part[: 7 * count]
        follow = "".join(vocabulary[token] for token in batch.targets.flatten())
        assert follow == part[1 : 7 * count + 1]


GZ = "MNIST/raw/{}.gz"
TRAIN_IMAGES = GZ.format("train-images-idx3-ubyte")
TRAIN_LABELS = GZ.format("train-labels-idx1-ubyte")
TEST_LABELS = GZ.format("t10k-labels-idx1-ubyte")
IMAGES = np.zeros((12, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TRAIN_IMAGES, gzipped(idx_bytes(IMAGES))[:-9], "must be a whole gzip file, got Com"),
        (TRAIN_IMAGES, b"\x1f\x8b\x08\x00junk junk junk", "must be a whole gzip file"),
        (TRAIN_IMAGES, idx_bytes(IMAGES), "must be a whole gzip file, got Not a gzipped file"),
        (TRAIN_IMAGES, gzipped(b"\x00\x00\x0d\x03" + bytes(99)), "must be an IDX file of"),
        (TRAIN_IMAGES, gzipped(b"\x00\x00\x08\x00" + bytes(99)), "must be an IDX file of"),
        (TRAIN_IMAGES, gzipped(b""), "must be an IDX file of unsigned bytes"),
        (TRAIN_IMAGES, gzipped(b"\x00\x00\x08\x03\x00"), "must hold"),
        (
            TRAIN_IMAGES,
            gzipped(idx_bytes(IMAGES)[:-1]),
            "must hold 9408 bytes after its header for shape (12, 28, 28), got 9407",
        ),
        (TRAIN_IMAGES, gzipped(idx_bytes(IMAGES) + b"x"), "must hold 9408 bytes"),
        (TRAIN_IMAGES, gzipped(idx_bytes(IMAGES[:, :20])), "must hold 28x28 images, got"),
        (TRAIN_IMAGES, gzipped(idx_bytes(IMAGES[0, 0])), "must hold 28x28 images, got"),
        (
            TRAIN_LABELS,
            gzipped(idx_bytes(IMAGES[:11, 0, 0])),
            "must hold 12 labels, as many as train-images-idx3-ubyte.gz has images, got",
        ),
        (
            TEST_LABELS,
            gzipped(idx_bytes(np.array([1, 2, 10, 11, 0], dtype=np.uint8))),
            "must hold labels 0 ... 9, got 10 at example 2",
        ),
    ],
)
def test_broken_mnist_files_are_named(tmp_path, file, content, message):
    write_mnist(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_mnist(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / file} {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_mnist_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    with pytest.raises(InputError) as caught:
        load_mnist(tmp_path)
    assert str(caught.value).startswith(
        f"{tmp_path}/MNIST/raw/t10k-labels-idx1-ubyte[.gz] must exist (give --data DIR or set ANY"
    )


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match="must be readable: Is a directory"):
        read_idx(tmp_path)


def pickled(**changes) -> bytes:
    batch = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 2]}
    batch.update({key.encode(): value for key, value in changes.items()})
    return pickle.dumps({k: v for k, v in batch.items() if v is not None}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2], protocol=2), "must hold a dict, got list"),
        (pickled(data=None), "must hold an entry 'data', got keys"),
        (pickled(labels=None), "must hold an entry 'labels', got keys"),
        (pickled(data=[1, 2]), "must hold data of shape (n, 3072) and uint8, got list"),
        (pickled(data=np.zeros((2, 3072))), "must hold data of shape (n, 3072) and uint8, got"),
        (pickled(data=np.zeros((2, 99), np.uint8)), "must hold data of shape (n, 3072) and uint8"),
        (pickled(labels=[1, 2.5]), "must hold labels as a list of whole numbers"),
        (pickled(labels=[1]), "must hold 2 labels, got 1"),
        (pickled(labels=[1, 10]), "must hold labels 0 ... 9, got 10 at example 1"),
        (pickled(labels=[-1, 10]), "must hold labels 0 ... 9, got -1 at example 0"),
        (pickled()[:-9], "must be a whole pickle of arrays, lists and numbers"),
        (pickled(labels=Exception()), "must hold only arrays, lists and numbers, but names"),
        (None, "must exist"),
    ],
)
def test_broken_python_batches_are_named(tmp_path, content, message):
    write_cifar(tmp_path, binary=False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_cifar10(tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold 3,073 bytes for each image (label, then pixels), got 0"),
        (bytes(3072), "must hold 3,073 bytes for each image (label, then pixels), got 3072"),
        (bytes(3073) + b"\x0a" + bytes(3072), "must hold labels 0 ... 9, got 10 at example 1"),
        (None, "must exist"),
    ],
)
def test_broken_binary_batches_are_named(tmp_path, content, message):
    write_cifar(tmp_path, binary=True)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_cifar10(tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold about 220 characters, so that each part has a window of 10 and one more"),
        (b"short" * 3, "must hold about 220 characters"),
        (b"x" * 199, "must hold about 220 characters"),
        (b"fine\xff" * 100, "must be text in UTF-8, but byte 4 is not: invalid start byte"),
        (None, "must be readable: No such file or directory"),
    ],
)
def test_broken_texts_are_named(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_text(path, context_length=10)
    assert str(caught.value).startswith(f"{path} {message}")


def test_a_window_has_at_least_one_character(tmp_path):
    with pytest.raises(InputError, match="context_length must be >= 1, got 0"):
        load_text(tmp_path, context_length=0)
