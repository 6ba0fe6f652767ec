"""Series of numbers with lengths and labels, from an .npz file or what packages ship.

| source | what |
|---|---|
| a file `.npz` | `train` and `test` [N, T, features]; `train_lengths` and `test_lengths` [N] or
neither (all T); `train_labels` and `test_labels`, or neither |
| nothing | JapaneseVowels as the package aeon ships it: 270 and 370 utterances of nine speakers, 12
cepstral coefficients, 7 to 29 steps |

Each feature is scaled to mean 0 and standard deviation 1 over the steps to train on. Steps past a
length are 0.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput


@dataclass(frozen=True)
class Part:
    """Series [N, T, features] float32, lengths int64 [N], labels int64 [N]."""

    series: Tensor
    lengths: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Series:
    """Series to train on and to test on, of equal T and features."""

    name: str
    train: Part
    test: Part


def load_series(data: Path | None) -> Series:
    """Reads what `data` names; see the module's list.

    Raises:
        BadInput: it is missing, cut short, of another kind, or holds NaN.
    """
    if data is None:
        return _scaled("JapaneseVowels", *japanese_vowels())
    if data.suffix != ".npz" or not data.is_file():
        state = "is no .npz file" if data.exists() else "does not exist"
        raise BadInput(
            f"--data {data} {state}: expected an .npz file with arrays train and test, "
            "[N, T, features]"
        )
    train, test = _part(data, "train"), _part(data, "test")
    if train.series.shape[1:] != test.series.shape[1:]:
        shapes = f"{list(train.series.shape)} and {list(test.series.shape)}"
        raise BadInput(f"{data}: train and test differ in steps or features: {shapes}")
    return _scaled(data.stem, train, test)


def japanese_vowels() -> tuple[Part, Part]:
    """The published split, from the package aeon.

    Raises:
        BadInput: aeon is not installed.
    """
    try:
        from aeon.datasets import load_japanese_vowels
    except ModuleNotFoundError:
        raise BadInput(
            "without --data this task takes JapaneseVowels from the package aeon, which is not "
            "installed: pip install aeon, or give --data FILE.npz"
        ) from None
    train, train_labels = load_japanese_vowels(split="train")
    test, test_labels = load_japanese_vowels(split="test")
    steps = max(one.shape[1] for one in (*train, *test))
    return _padded(train, train_labels, steps), _padded(test, test_labels, steps)


def _padded(series: list[np.ndarray], labels: np.ndarray, steps: int) -> Part:
    """aeon's list of [features, length] arrays as one tensor."""
    lengths = torch.tensor([one.shape[1] for one in series])
    padded = torch.zeros(len(series), steps, series[0].shape[0])
    for row, one in zip(padded, series, strict=True):
        row[: one.shape[1]] = torch.from_numpy(one.T)
    return Part(padded, lengths, torch.tensor([int(label) - 1 for label in labels]))


def _part(path: Path, part: str) -> Part:
    try:
        with np.load(path, allow_pickle=False) as file:
            if part not in file:
                raise BadInput(f"{path} holds no array {part!r}, only {', '.join(file) or 'none'}")
            arrays = {key: file[key] for key in file}
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is no .npz file or cut short: {error}") from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read: {error}") from None
    series = arrays[part]
    if series.ndim != 3 or 0 in series.shape or not np.issubdtype(series.dtype, np.floating):
        raise BadInput(
            f"{path}, {part}: expected floating-point numbers [N, T, features], got "
            f"{series.dtype} {list(series.shape)}"
        )
    count, steps, _ = series.shape
    lengths = _whole(arrays, f"{part}_lengths", np.full(count, steps), path)
    labels = _whole(arrays, f"{part}_labels", np.zeros(count, np.int64), path)
    if lengths.min() < 1 or lengths.max() > steps:
        raise BadInput(
            f"{path}, {part}_lengths: expected values in 1..{steps}, got "
            f"{int(lengths.min())} to {int(lengths.max())}"
        )
    within = torch.arange(steps) < lengths[:, None]  # [N, T]
    values = torch.from_numpy(series.astype(np.float32))
    wrong = (~values.isfinite()).any(2) & within
    if wrong.any():
        row, step = wrong.nonzero()[0].tolist()
        raise BadInput(
            f"{path}, {part}: series {row} holds NaN or infinity at step {step}: mend or remove it"
        )
    return Part(values.where(within[..., None], 0.0), lengths, labels)


def _whole(arrays: dict[str, Any], name: str, default: np.ndarray, path: Path) -> Tensor:
    values = arrays.get(name, default)
    if values.shape != default.shape or not np.issubdtype(values.dtype, np.integer):
        raise BadInput(
            f"{path}, {name}: expected {len(default)} integers, one for each series, got "
            f"{values.dtype} {list(values.shape)}"
        )
    return torch.from_numpy(values.astype(np.int64))


def _scaled(name: str, train: Part, test: Part) -> Series:
    steps = torch.cat(
        [one[:n] for one, n in zip(train.series, train.lengths.tolist(), strict=True)]
    )
    mean, deviation = steps.mean(0), steps.std(0).clamp_min(1e-6)

    def scaled(part: Part) -> Part:
        within = (torch.arange(part.series.shape[1]) < part.lengths[:, None])[..., None]
        return Part(
            ((part.series - mean) / deviation).where(within, 0.0), part.lengths, part.labels
        )

    return Series(name, scaled(train), scaled(test))
