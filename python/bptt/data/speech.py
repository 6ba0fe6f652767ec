"""Sound files, and spoken digits with what they say.

A folder of files `{digit}_{speaker}_{take}.wav`, as the Free Spoken Digit Dataset has them: takes 0
to 4 are for the test, as its authors say, takes 5 to 9 for validation, the others to train on.

Source: Z. Jackson and others, github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput

RATE = 8000  # samples a second
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
_TEST, _VALIDATION = 5, 10  # first takes that are no longer of a part


@dataclass(frozen=True)
class Spoken:
    """Recordings [samples] each, and the digit that each says."""

    sounds: list[Tensor]
    digits: list[int]


def load_digits(folder: Path | None) -> dict[str, Spoken]:
    """The parts "train", "validation" and "test".

    Raises:
        BadInput: the folder or a part is missing, or a file cannot be read.
    """
    if folder is None:
        raise BadInput(
            "--data is needed: the folder `recordings` of the Free Spoken Digit Dataset "
            "(github.com/Jakobovski/free-spoken-digit-dataset)"
        )
    parts = {part: Spoken([], []) for part in ("train", "validation", "test")}
    for path in sorted(folder.glob("*.wav")):
        named = _NAME.fullmatch(path.name)
        if named:
            take = int(named[3])
            name = "test" if take < _TEST else "validation" if take < _VALIDATION else "train"
            parts[name].sounds.append(read_sound(path))
            parts[name].digits.append(int(named[1]))
    missing = [name for name, part in parts.items() if not part.sounds]
    if missing:
        raise BadInput(
            f"--data {folder} holds nothing for {', '.join(missing)}: expected files such as "
            "7_george_12.wav, takes 0 to 4 for the test, 5 to 9 for validation"
        )
    return parts


def read_sound(path: Path, rate: int = RATE) -> Tensor:
    """Samples [N] in [-1, 1] of a sound file; channels are averaged, other rates resampled.

    Raises:
        BadInput: it is missing, empty, or no sound file, or the package soundfile is missing.
    """
    try:
        import soundfile
    except ModuleNotFoundError:
        raise BadInput(
            "sound files are read by the package soundfile, which is not installed: "
            "pip install 'bptt[speech]'"
        ) from None
    if not path.is_file():
        raise BadInput(f"{path} is no file")
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadInput(f"{path} cannot be read as sound: {error.error_string}") from None
    mono = samples.mean(1)
    if not len(mono):
        raise BadInput(f"{path} is empty: it holds no sample")
    if found != rate:
        from scipy.signal import resample_poly

        shared = gcd(found, rate)
        mono = resample_poly(mono, rate // shared, found // shared).astype(np.float32)
    return torch.from_numpy(mono)
