"""Image folders and archives: splits, classes, sizes, and what is broken in them."""

from __future__ import annotations

import io
import math
import tarfile

import numpy as np
import pytest
import torch
from data_files import png_bytes, write_tar
from PIL import Image

from anybatch.data.image_dataset import centre_crop, resized_crop_box
from anybatch.data.image_folder import load_image_folder
from anybatch.data.resident import ResidentSource
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

FORKING = (
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)


def tree(*splits: str, count: int = 3, classes=("cat", "dog"), **options) -> dict[str, bytes]:
    """Names and contents; the shade tells class and number."""
    prefixes = [f"{split}/" for split in splits] or [""]
    return {
        f"{prefix}{name}/{number}.png": png_bytes(10 * label + number, **options)
        for prefix in prefixes
        for label, name in enumerate(classes)
        for number in range(count)
    }


def written(root, files: dict[str, bytes]):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def shades(source: ResidentSource) -> list[int]:
    return source.inputs[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("suffix", ["folder", "w:tar", "w:gz:tar.gz", "w:bz2:tar.bz2", "w:xz:tar"])
@pytest.mark.parametrize("wrapping", ["", "./", "pets/", "./all/pets/"])
def test_folders_and_archives_give_the_same_splits(tmp_path, suffix, wrapping):
    files = {f"{wrapping}{name}": content for name, content in tree("train", "test").items()}
    files |= {f"{wrapping}train/cat/notes.txt": b"x", f"{wrapping}train/cat/._0.png": b"x"}
    if suffix == "folder":
        path = written(tmp_path, files)
    else:
        mode, _, ending = suffix.rpartition(":")
        path = write_tar(tmp_path / f"pets.{ending}", files, mode=mode)
    splits = load_image_folder(path)
    assert splits.class_names == ("cat", "dog")
    assert splits.num_outputs == 2
    assert splits.input_shape == (3, 6, 6)
    assert splits.validation is None
    for source in (splits.train, splits.test):
        assert isinstance(source, ResidentSource)
        assert source.targets.tolist() == [0, 0, 0, 1, 1, 1]
        assert shades(source) == [0, 1, 2, 10, 11, 12]
        assert source.inputs[4, 2, 3].tolist() == [11, 0, 244]


def test_val_is_the_validation_split_or_without_test_the_test_split(tmp_path):
    three = load_image_folder(written(tmp_path / "a", tree("train", "test", "val", count=2)))
    assert three.validation.num_examples == three.test.num_examples == 4
    two = load_image_folder(written(tmp_path / "b", tree("train", "val", count=2)))
    assert two.validation is None
    assert two.test.num_examples == 4


@pytest.mark.parametrize("splits", [(), ("train",)])
def test_class_folders_alone_hold_out_a_fixed_tenth_of_each_class(tmp_path, splits):
    written(tmp_path, tree(*splits, count=10, classes=("a", "b", "c")))
    loaded = [load_image_folder(tmp_path) for _ in range(2)]
    assert loaded[0].train.num_examples == 27
    assert loaded[0].test.targets.tolist() == [0, 1, 2]
    assert shades(loaded[0].test) == shades(loaded[1].test)
    everything = shades(loaded[0].train) + shades(loaded[0].test)
    assert sorted(everything) == list(range(30))


def test_images_32_wide_are_normalized_as_cifar10_and_others_as_imagenet(tmp_path):
    small = load_image_folder(written(tmp_path / "a", tree("train", "test", size=(32, 32))))
    large = load_image_folder(written(tmp_path / "b", tree("train", "test", size=(40, 30))))
    assert small.train.normalization.mean == (0.4914, 0.4822, 0.4465)
    assert large.train.normalization.mean == (0.485, 0.456, 0.406)
    assert large.input_shape == (3, 30, 40)


def test_grey_and_palette_images_become_rgb(tmp_path):
    files = tree("train", "test") | tree("test", mode="L")
    palette = io.BytesIO()
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(palette, "PNG", transparency=b"\x80\x40")
    files["train/cat/0.png"] = palette.getvalue()
    splits = load_image_folder(written(tmp_path, files))
    assert splits.test.inputs[5, 0, 0].tolist() == [12, 12, 12]
    assert splits.train.inputs[0, 0, 0].tolist() == [9, 8, 7]


def mixed_tree() -> dict[str, bytes]:
    return tree("train", "test") | tree("train", count=1, size=(20, 9))


@pytest.mark.parametrize("place", ["folder", "tar"])
def test_images_of_several_sizes_are_streamed(tmp_path, place):
    if place == "folder":
        path = written(tmp_path, mixed_tree())
    else:
        path = write_tar(tmp_path / "mixed.tar", mixed_tree())
    splits = load_image_folder(path, image_size=8)
    assert isinstance(splits.train, StreamedSource)
    assert splits.input_shape == (3, 8, 8)
    (batch,) = splits.train.batches([torch.tensor([5, 0])])
    assert batch.inputs.shape == (2, 3, 8, 8)
    assert batch.targets.tolist() == [1, 0]
    red = (12 / 255 - 0.485) / 0.229
    assert batch.inputs[0, 0, 4, 4].item() == pytest.approx(red, abs=1e-5)


def noise_tree() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    files = {}
    for name in tree("train", "test", count=4):
        content = io.BytesIO()
        width, height = random.integers(20, 60, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        files[name] = content.getvalue()
    return files


@pytest.mark.filterwarnings(*FORKING)
@pytest.mark.parametrize("random_resized_crop", [True, False])
def test_streamed_images_do_not_depend_on_grouping_and_processes(tmp_path, random_resized_crop):
    train = load_image_folder(written(tmp_path, noise_tree()), image_size=16).train
    augmentation = Augmentation(
        crop_padding=2,
        flip="random",
        cutout_size=4,
        random_resized_crop=random_resized_crop,
    )
    arguments = {"seed": 1, "epoch": 2, "augmentation": augmentation}
    (whole,) = train.batches([torch.arange(8)], **arguments)
    for num_workers, batch_size in ((0, 3), (2, 1)):
        source = train.to(torch.device("cpu"), num_workers=num_workers)
        batches = source.batches(torch.arange(8).split(batch_size), **arguments)
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), whole.inputs)


def test_random_resized_crops_differ_between_epochs_and_seeds(tmp_path):
    train = load_image_folder(written(tmp_path, noise_tree()), image_size=16).train
    augmentation = Augmentation(random_resized_crop=True)
    seen = [
        next(train.batches([torch.arange(8)], epoch=epoch, seed=seed, augmentation=augmentation))
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    for other in seen[1:]:
        assert (seen[0].inputs != other.inputs).flatten(1).any(1).all()


def test_the_centre_crop_takes_the_centre_of_the_resized_image():
    pixels = np.zeros((256, 512, 3), dtype=np.uint8)
    pixels[:, 144:368] = 200  # the middle 224 columns
    crop = np.asarray(centre_crop(Image.fromarray(pixels), 224))
    assert crop.shape == (224, 224, 3)
    assert (crop == 200).all()
    assert centre_crop(Image.new("RGB", (30, 300)), 224).size == (224, 224)


def test_random_boxes_keep_their_bounds_and_fill_them():
    boxes = [resized_crop_box(500, 375, i, seed=0, epoch=0) for i in range(2000)]
    areas, aspects = [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        aspects.append(math.log((right - left) / (bottom - top)))
    assert 0.075 < min(areas) < 0.09
    assert 0.95 < max(areas) <= 1
    assert math.log(3 / 4) - 0.02 < min(aspects) < -0.27
    assert 0.27 < max(aspects) < math.log(4 / 3) + 0.02
    assert len(set(boxes)) > 1990
    assert resized_crop_box(1000, 1, 0, seed=0, epoch=0) == (499, 0, 500, 1)


def test_boxes_of_a_strip_are_its_centre():
    assert resized_crop_box(1000, 30, 0, seed=0, epoch=0) == (480, 0, 520, 30)
    assert resized_crop_box(30, 1000, 0, seed=0, epoch=0) == (0, 480, 30, 520)


GOOD = tree("train", "test")


def without(files: dict[str, bytes], start: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, " must hold JPEG or PNG images in class folders"),
        ({"train/cat/notes.txt": b"x"}, " must hold JPEG or PNG images in class folders"),
        (without(GOOD, "train"), " must hold the folders train and test"),
        (GOOD | {"extra/cat/0.png": b"x"}, " must hold the folders train and test"),
        (without(GOOD, "train/dog"), "/train must hold at least two class folders, got cat"),
        (
            without(GOOD, "test/dog") | {"test/fox/0.png": png_bytes(1)},
            ": train and test must have the same class folders, these are in only one, got dog, fo",
        ),
        (
            without(GOOD, "train/dog") | {"train/dog/a.txt": b"x", "train/fox/0.png": png_bytes(1)},
            "/train/dog must hold at least one JPEG or PNG image",
        ),
        (GOOD | {"train/0.png": png_bytes(1)}, ": train/0.png must lie in a class folder"),
        (tree(count=1), "/cat must hold at least two images, as one is held out to test"),
        (
            GOOD | {"test/dog/1.png": GOOD["test/dog/1.png"][:-30]},
            ": test/dog/1.png must be a whole JPEG or PNG image, got",
        ),
        (
            GOOD | {"test/dog/1.jpg": b"\xff\xd8\xff junk"},
            ": test/dog/1.jpg must be a whole JPEG or PNG image, got cannot identify it",
        ),
        (
            GOOD | {"train/cat/0.png": b""},
            ": train/cat/0.png must be a whole JPEG or PNG image, got cannot identify it",
        ),
        (
            GOOD | {"train/cat/1.png": png_bytes(1, mode="I;16")},
            ": train/cat/1.png must have 8 bits a channel, got mode I",
        ),
    ],
)
@pytest.mark.parametrize("place", ["folder", "tar"])
def test_what_breaks_a_rule_is_named(tmp_path, place, files, message):
    if place == "folder":
        path = written(tmp_path, files)
    else:
        # With entries for the folders, as tar writes them.
        path = tmp_path / "images.tar.gz"
        written(tmp_path / "top", files).mkdir(exist_ok=True)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "top", ".")
    with pytest.raises(InputError) as caught:
        load_image_folder(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_a_broken_jpeg_is_named_when_it_is_streamed(tmp_path):
    files = mixed_tree() | {"train/dog/2.png": b"junk"}
    train = load_image_folder(written(tmp_path, files), image_size=8).train
    with pytest.raises(InputError) as caught:
        list(train.batches([torch.arange(6)]))
    assert str(caught.value) == (
        f"{tmp_path}: train/dog/2.png must be a whole JPEG or PNG image, got cannot identify it"
    )


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_an_archive_that_breaks_off_is_refused(tmp_path, mode, kept):
    path = write_tar(tmp_path / "images.tar", noise_tree(), mode=mode)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError) as caught:
        load_image_folder(path, image_size=8)
    assert str(caught.value).startswith(f"{path} must be a folder or a whole .tar, .tar.gz")


def test_a_header_broken_within_an_archive_is_refused(tmp_path):
    path = write_tar(tmp_path / "images.tar", GOOD)
    content = bytearray(path.read_bytes())
    second_header = 512 + -(-len(GOOD["train/cat/0.png"]) // 512) * 512
    content[second_header + 150] ^= 0xFF  # its checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"must be a folder or a whole .tar, .* broken at byte"):
        load_image_folder(path)


@pytest.mark.parametrize("content", [b"", b"not an archive" * 100])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "images.tar"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"must be a folder or a whole .tar"):
        load_image_folder(path)


def test_several_sizes_need_an_image_size(tmp_path):
    with pytest.raises(InputError, match=r"image_size must be given, as the images in .* not have"):
        load_image_folder(written(tmp_path, mixed_tree()))
    with pytest.raises(InputError, match="image_size must be >= 1, got 0"):
        load_image_folder(tmp_path, image_size=0)


def test_a_compressed_archive_cannot_be_streamed(tmp_path):
    path = write_tar(tmp_path / "mixed.tar.gz", mixed_tree(), mode="w:gz")
    with pytest.raises(InputError, match=r"must be uncompressed, .* \(unpack it and give the fold"):
        load_image_folder(path, image_size=8)


def test_another_image_size_streams_even_images_of_one_size(tmp_path):
    splits = load_image_folder(written(tmp_path, GOOD), image_size=4)
    assert isinstance(splits.train, StreamedSource)
    assert isinstance(load_image_folder(tmp_path, image_size=6).train, ResidentSource)


def test_images_that_do_not_fit_are_streamed_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("anybatch.data.image_files.MEMORY_LIMIT_BYTES", 12 * 6 * 6 * 3 - 1)
    path = written(tmp_path, GOOD)
    assert isinstance(load_image_folder(path, image_size=6).train, StreamedSource)
    with pytest.raises(InputError, match="image_size must be given"):
        load_image_folder(path)
    monkeypatch.setattr("anybatch.data.image_files.MEMORY_LIMIT_BYTES", 100)
    packed = write_tar(tmp_path / "packed.tar.xz", GOOD, mode="w:xz")
    with pytest.raises(InputError, match=r"must hold at most 0 GiB if compressed .*unpack it"):
        load_image_folder(packed)
