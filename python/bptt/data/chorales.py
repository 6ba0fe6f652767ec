"""Piano rolls: which of the 88 keys sound at each step of a piece.

A JSON file with lists of pieces under "train", "valid" and "test": a piece is a list of steps, a
step a list of MIDI pitches from 21 (the lowest key) to 108. JSB Chorales come so: four voices of
Bach's chorales, a step a quarter note, in the split of Boulanger-Lewandowski, Bengio and Vincent
2012 (arXiv 1206.6392).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import BadInput

LOWEST, KEYS = 21, 88


@dataclass(frozen=True)
class Rolls:
    """Pieces [N, T, 88], bool, with silence past their lengths int64 [N]."""

    keys: Tensor
    lengths: Tensor


def load_chorales(path: Path | None) -> dict[str, Rolls]:
    """The parts "train", "valid" and "test".

    Raises:
        BadInput: the file is missing, damaged or of another form, or a piece is shorter than two
            steps.
    """
    if path is None:
        raise BadInput(
            "--data is needed: a JSON file of piano rolls such as jsb-chorales-quarter.json "
            "(github.com/czhuang/JSB-Chorales-dataset)"
        )
    if not path.is_file():
        raise BadInput(f"--data {path} is no file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, dict) or not {"train", "valid", "test"} <= set(content):
        raise BadInput(f"{path}: expected lists of pieces under train, valid and test")
    return {part: _rolls(content[part], f"{path}, {part}") for part in ("train", "valid", "test")}


def _rolls(pieces: Any, source: str) -> Rolls:
    if not isinstance(pieces, list) or not pieces:
        raise BadInput(f"{source}: expected a list of pieces, got {str(pieces)[:40]!r}")
    for i, piece in enumerate(pieces):
        if not isinstance(piece, list) or len(piece) < 2:
            raise BadInput(f"{source}: piece {i} is no list of two steps or more")
        for t, step in enumerate(piece):
            if not isinstance(step, list) or not all(
                isinstance(pitch, int) and LOWEST <= pitch < LOWEST + KEYS for pitch in step
            ):
                raise BadInput(
                    f"{source}: piece {i}, step {t}: expected MIDI pitches from {LOWEST} to "
                    f"{LOWEST + KEYS - 1}, got {step!r}"
                )
    lengths = torch.tensor([len(piece) for piece in pieces])
    keys = torch.zeros(len(pieces), int(lengths.max()), KEYS, dtype=torch.bool)
    for row, piece in zip(keys, pieces, strict=True):
        for t, step in enumerate(piece):
            row[t, [pitch - LOWEST for pitch in step]] = True
    return Rolls(keys, lengths)
