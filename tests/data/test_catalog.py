"""Catalog: names, places, and nothing of torch until data is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from data_files import png_bytes, write_cifar, write_mnist

from anybatch.data.catalog import (
    DATA_SETS,
    catalog_status,
    default_model,
    find_data_root,
    is_builtin,
    load_splits,
)
from anybatch.errors import InputError


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory, monkeypatch):
    """A working folder without data and no environment variable."""
    monkeypatch.delenv("ANYBATCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("nowhere"))


def test_the_status_does_not_import_torch(tmp_path):
    write_mnist(tmp_path)
    program = (
        "import sys; from pathlib import Path; from anybatch.data.catalog import catalog_status;"
        " rows = catalog_status(Path(sys.argv[1]));"
        " print(*(row.name for row in rows if row.found));"
        " sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "digits mnist", "")


def test_the_status_tells_what_was_found_and_where_it_was_looked_for(tmp_path):
    before = {row.name: row for row in catalog_status(tmp_path)}
    assert [name for name, row in before.items() if row.found] == ["digits"]
    write_mnist(tmp_path, "FashionMNIST", packed=False)
    write_cifar(tmp_path, binary=True)
    rows = {row.name: row for row in catalog_status(tmp_path)}
    assert [name for name, row in rows.items() if row.found] == [
        "digits",
        "fashion-mnist",
        "cifar10",
    ]
    assert rows["cifar10"].looked_for == (
        tmp_path / "cifar-10-batches-py",
        tmp_path / "cifar-10-batches-bin",
    )
    assert rows["text:PATH"].found is None
    assert all(row.description for row in rows.values())


def test_the_root_is_the_option_or_the_environment_or_data(tmp_path, monkeypatch):
    assert [str(root) for root in find_data_root(None)] == ["data"]
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))
    assert find_data_root(None) == [tmp_path]
    other = tmp_path / "other"
    other.mkdir()
    assert find_data_root(other) == [other]
    with pytest.raises(InputError, match=r"--data must be an existing folder, got .*missing"):
        find_data_root(tmp_path / "missing")
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path / "missing"))
    with pytest.raises(
        InputError, match=r"ANYBATCH_DATA must be an existing folder, got .*missing"
    ):
        find_data_root(None)


def test_every_data_set_names_a_network():
    assert {name: default_model(name) for name in DATA_SETS} == {
        "digits": "mlp",
        "mnist": "lenet",
        "fashion-mnist": "lenet",
        "cifar10": "resnet9",
        "image-folder": "resnet9",
        "text": "gpt",
    }
    assert default_model("text:some/file.txt") == "gpt"
    assert is_builtin("image-folder:x")
    assert not is_builtin("my.module:task")


def test_data_sets_are_loaded_by_name(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    write_cifar(tmp_path, binary=False)
    (tmp_path / "some.txt").write_text("to be or not to be\n" * 200)
    for name in ("a/cat/0.png", "a/cat/1.png", "a/dog/0.png", "a/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes(1))
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))
    sizes = {
        "digits": 1437,
        "mnist": 12,
        "fashion-mnist": 12,
        "cifar10": 20,
        "image-folder:a": 2,
        "text:some.txt": 26,
        f"text:{tmp_path}/some.txt": 26,
    }
    for name, size in sizes.items():
        assert load_splits(name).train.num_examples == size, name
    assert load_splits("mnist", data=tmp_path).train.num_examples == 12
    assert load_splits("image-folder:a", image_size=4).input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_splits("mnits"),
            "data set must be a known name, got mnits (did you mean mnist?)",
        ),
        (
            lambda: load_splits("zzz"),
            "data set must be a known name, got zzz (one of digits, mnist, fashion-mnist, cifar10,"
            " image-folder, text)",
        ),
        (lambda: default_model("cifar"), "data set must be a known name, got cifar (did you mean"),
        (
            lambda: load_splits("mnist"),
            "mnist must have MNIST/raw/train-images-idx3-ubyte or"
            " MNIST/raw/train-images-idx3-ubyte.gz in data, but it is not there"
            " (give --data DIR or set ANYBATCH_DATA, or fetch it: anybatch tasks --download mnist)",
        ),
        (lambda: load_splits("mnist:x"), "mnist must be given without a path, got mnist:x"),
        (lambda: load_splits("text"), "text must be given with a path, got text (text:PATH)"),
        (lambda: load_splits("text:"), "text must be given with a path, got text: (text:PATH)"),
        (
            lambda: load_splits("text:a.txt"),
            "path of the data must exist, got a.txt or data/a.txt (give --data DIR or set",
        ),
        (lambda: load_splits("text:/no/such"), "path of the data must exist, got /no/such (give"),
        (
            lambda: load_splits("digits", image_size=32),
            "image_size must be left out for digits, got 32",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).startswith(message)
