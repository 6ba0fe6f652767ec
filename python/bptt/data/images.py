"""Grey images with labels, from a folder of idx files, an .npz file, or what packages ship.

    a folder       Fashion-MNIST or MNIST as published: train-images-idx3-ubyte,
                   train-labels-idx1-ubyte, t10k-..., each plain or .gz
    a file .npz    arrays train and test, [N, height, width], bytes or numbers in [0, 1];
                   train_labels and test_labels as integers, or neither
    nothing        scikit-learn's digits: 1,797 of 8x8, every fifth of them for the test

The idx format is described at the foot of yann.lecun.com/exdb/mnist: two zero bytes, the type (8
for unsigned bytes), the number of axes, each axis' length as a big-endian 32-bit integer, the data.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput

_UNSIGNED_BYTE = 8
_FILES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Images:
    """Images [N, height, width], float32 in [0, 1], and labels int64 [N].

    Labels are all 0 where the source has none.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.shape[1], self.train.shape[2]

    @property
    def classes(self) -> int:
        return int(torch.cat([self.train_labels, self.test_labels]).max()) + 1


def load_images(data: Path | None) -> Images:
    """Reads what `data` names; see the module's list.

    Raises:
        BadInput: it is missing, cut short, of another kind, or holds what images cannot.
    """
    if data is None:
        return digits()
    if data.is_dir():
        parts = {part: _idx_pair(data, prefix) for part, prefix in _FILES.items()}
        name = data.resolve().name
    elif data.suffix == ".npz" and data.is_file():
        parts = {part: _arrays(data, part) for part in _FILES}
        name = data.stem
    else:
        what = "an .npz file or a folder of idx files"
        state = "is neither" if data.exists() else "does not exist"
        raise BadInput(f"--data {data} {state}: expected {what}, such as Fashion-MNIST's")
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    if train.shape[1:] != test.shape[1:]:
        sizes = " and ".join("x".join(map(str, x.shape[1:])) for x in (train, test))
        raise BadInput(f"--data {data}: images to train on and to test on differ in size: {sizes}")
    return Images(name, train, train_labels, test, test_labels)


def digits() -> Images:
    """scikit-learn's 1,797 digits, 8x8 pixels of 17 grey values; every fifth is for the test."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).float() / 16
    labels = torch.from_numpy(loaded.target).long()
    test = torch.arange(len(images)) % 5 == 4
    return Images("digits", images[~test], labels[~test], images[test], labels[test])


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file of unsigned bytes, plain or gzipped.

    Raises:
        BadInput: it is no such file, or shorter or longer than it says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path} is cut short or no gzip file ({error}): fetch it again") from None
    zeros, kind, axes = struct.unpack(">HBB", content[:4].ljust(4, b"\xff"))
    if zeros != 0 or kind != _UNSIGNED_BYTE or axes == 0 or len(content) < 4 + 4 * axes:
        raise BadInput(f"{path} is no idx file of unsigned bytes: fetch it again")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != math.prod(shape):
        raise BadInput(
            f"{path} holds {len(values)} bytes of data where its head says {math.prod(shape)} "
            f"({' x '.join(map(str, shape))}): fetch it again"
        )
    return values.reshape(shape)


def read_pictures(path: Path) -> Tensor:
    """Grey images [N, height, width] in [0, 1] of a picture, or of an .npy file of one or several.

    Raises:
        BadInput: it is missing, or neither.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise BadInput(f"{path} is no file: expected a picture or an .npy file")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, ValueError, EOFError, OSError) as error:
        raise BadInput(f"{path} cannot be read as an image: {error}") from None
    return as_images(values[None] if values.ndim == 2 else values, str(path))


def as_images(values: np.ndarray, source: str) -> Tensor:
    """Checks an array [N, height, width] and makes it float32 in [0, 1].

    Raises:
        BadInput: other axes, no image, NaN or infinity, values outside of [0, 1].
    """
    if values.ndim != 3 or 0 in values.shape:
        raise BadInput(f"{source}: expected images [N, height, width], got {list(values.shape)}")
    if values.dtype == np.uint8:
        return torch.from_numpy(values.astype(np.float32) / 255)
    if not np.issubdtype(values.dtype, np.floating):
        raise BadInput(f"{source}: expected bytes or floating-point numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any((1, 2)).argmax())
        raise BadInput(f"{source}: image {bad} holds NaN or infinity: remove or repair it")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise BadInput(f"{source}: expected values in [0, 1], got {low:g} to {high:g}: scale them")
    return torch.from_numpy(values.astype(np.float32))


def _idx_pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    return _checked(read_idx(images), read_idx(labels), str(images), str(labels))


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise BadInput(
        f"--data {folder} holds neither {name} nor {name}.gz: expected the four files of "
        "Fashion-MNIST or MNIST in their published layout"
    )


def _arrays(path: Path, part: str) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if part not in file:
                raise BadInput(f"{path} holds no array {part!r}, only {', '.join(file) or 'none'}")
            images = file[part]
            zeros = np.zeros(len(images) if images.ndim else 0, np.int64)
            labels = file.get(f"{part}_labels", zeros)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is no .npz file or cut short: {error}") from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read: {error}") from None
    return _checked(images, labels, f"{path}, {part}", f"{path}, {part}_labels")


def _checked(
    images: np.ndarray, labels: np.ndarray, images_name: str, labels_name: str
) -> tuple[Tensor, Tensor]:
    made = as_images(images, images_name)
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (len(images),) or not whole or (labels < 0).any():
        raise BadInput(
            f"{labels_name}: expected {len(images)} integers from 0, one for each image, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return made, torch.from_numpy(labels.astype(np.int64))
