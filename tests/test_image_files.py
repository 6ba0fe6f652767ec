"""Are image and series files read right, and damaged ones refused in a line that names them?"""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from bptt.data.errors import BadInput
from bptt.data.images import load_images, read_idx
from bptt.data.series import load_series


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small set in Fashion-MNIST's layout."""
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = generator.integers(0, 256, (count, 6, 4))
        labels = generator.integers(0, 3, count)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_published_files_are_read(folder):
    images = load_images(folder)
    assert images.train.shape == (12, 6, 4)
    assert images.test.shape == (5, 6, 4)
    assert images.size == (6, 4)
    assert images.train.dtype == torch.float32
    raw = read_idx(folder / "train-images-idx3-ubyte.gz")
    torch.testing.assert_close(images.train * 255, torch.from_numpy(raw.copy()).float())


def test_digits_come_with_a_package():
    pytest.importorskip("sklearn")
    images = load_images(None)
    assert len(images.train) + len(images.test) == 1797
    assert images.classes == 10
    assert 0 <= images.train.min() < images.train.max() <= 1


def damage(content: bytes, how: str) -> bytes:
    return {
        "cut": content[:-3],
        "longer": content + b"\0",
        "foreign": b"\x89PNG" + content[4:],
        "empty": b"",
        "head": content[:5],
    }[how]


@pytest.mark.parametrize("how", ["cut", "longer", "foreign", "empty", "head"])
def test_damaged_idx_files_are_named(folder, how):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(BadInput, match="train-labels-idx1-ubyte"):
        load_images(folder)


@pytest.mark.parametrize("how", ["cut", "foreign", "empty"])
def test_damaged_gzip_files_are_named(folder, how):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(BadInput, match=r"t10k-images-idx3-ubyte\.gz"):
        load_images(folder)


def test_a_missing_file_of_the_set_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(BadInput, match="holds neither t10k-labels-idx1-ubyte nor"):
        load_images(folder)


IMAGES = {"train": np.random.rand(6, 4, 5), "test": np.random.rand(3, 4, 5).astype(np.float32)}


def with_nan(values: np.ndarray) -> np.ndarray:
    changed = values.copy()
    changed[1, 2, 3] = np.nan
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": with_nan(IMAGES["train"])}, "image 1 holds NaN or infinity"),
        ({"train": IMAGES["train"] * 255}, r"expected values in \[0, 1\], got"),
        ({"train": IMAGES["train"][0]}, r"expected images \[N, height, width\], got \[4, 5\]"),
        ({"test": IMAGES["test"][:, :3]}, "differ in size: 4x5 and 3x5"),
        ({"test": IMAGES["test"].astype(int)}, "expected bytes or floating-point numbers"),
        ({"train": np.array([None])}, "cannot be read"),
        ({"train_labels": np.arange(5)}, "expected 6 integers from 0"),
        ({"train_labels": -np.ones(6, int)}, "expected 6 integers from 0"),
        ({"test": None}, "holds no array 'test'"),
    ],
)
def test_bad_arrays_are_named(tmp_path, changes, message):
    arrays = {k: v for k, v in {**IMAGES, **changes}.items() if v is not None}
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(BadInput, match=message) as error:
        load_images(tmp_path / "images.npz")
    assert "images.npz" in str(error.value)


def test_arrays_are_read(tmp_path):
    np.savez(tmp_path / "images.npz", **IMAGES)
    images = load_images(tmp_path / "images.npz")
    assert images.name == "images"
    assert images.classes == 1
    np.testing.assert_allclose(images.train.numpy(), IMAGES["train"], rtol=1e-6)


@pytest.mark.parametrize("load", [load_images, load_series])
@pytest.mark.parametrize("name", ["nowhere", "text.npz", "text.csv"])
def test_other_files_are_refused(tmp_path, load, name):
    if name != "nowhere":
        (tmp_path / name).write_text("1,2,3\n")
    with pytest.raises(BadInput, match=name):
        load(tmp_path / name)


SERIES = {"train": np.random.randn(6, 5, 2), "test": np.random.randn(3, 5, 2)}


def test_series_are_scaled_by_their_training_part(tmp_path):
    lengths = {"train_lengths": np.array([5, 1, 2, 3, 4, 5]), "test_lengths": np.array([1, 5, 2])}
    padded = {**SERIES, "train": SERIES["train"].copy()}
    padded["train"][1, 1:] = np.nan  # past its length: anything
    np.savez(tmp_path / "series.npz", **padded, **lengths)
    series = load_series(tmp_path / "series.npz")
    steps = torch.cat(
        [x[:n] for x, n in zip(series.train.series, series.train.lengths.tolist(), strict=True)]
    )
    torch.testing.assert_close(steps.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps.std(0), torch.ones(2), atol=1e-5, rtol=0)
    assert (series.train.series[1, 1:] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": with_nan(np.random.randn(6, 5, 4))}, "series 1 holds NaN or infinity at step 2"),
        ({"train": np.random.randn(6, 5)}, r"expected floating-point numbers \[N, T, features\]"),
        ({"train_lengths": np.array([0, 1, 2, 3, 4, 5])}, r"expected values in 1\.\.5, got 0 to 5"),
        ({"train_lengths": np.ones(3, int)}, "expected 6 integers, one for each series"),
        ({"test": np.random.randn(3, 5, 3)}, "differ in steps or features"),
        ({"test": None}, "holds no array 'test'"),
    ],
)
def test_bad_series_are_named(tmp_path, changes, message):
    arrays = {k: v for k, v in {**SERIES, **changes}.items() if v is not None}
    np.savez(tmp_path / "series.npz", **arrays)
    with pytest.raises(BadInput, match=message) as error:
        load_series(tmp_path / "series.npz")
    assert "series.npz" in str(error.value)


def test_vowels_come_with_a_package():
    pytest.importorskip("aeon", reason="JapaneseVowels lies in the package aeon")
    series = load_series(None)
    assert series.train.series.shape == (270, 29, 12)
    assert len(series.test.series) == 370
    assert series.train.lengths.min() == 7
