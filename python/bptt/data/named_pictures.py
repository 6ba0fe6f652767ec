"""Small colour pictures with names: emoji, or a folder of pictures whose files tell the names.

| source | what |
|---|---|
| a font `.ttf` with colours | every emoji of one glyph in it, with the name that Unicode gives it |
| a folder | its pictures; `two_red_hearts.png` is of "two red hearts" |
| nothing | the font Noto Color Emoji, where it is installed |

Skin tones are left out: their names say the same. Names are in lower case. In order of their names,
every tenth is for the test, the one before it for validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput

SIZE = 32
_FONT, _POINTS, _CANVAS = "NotoColorEmoji.ttf", 109, (136, 128)  # its glyphs' only size
_SKIN = frozenset(chr(code) for code in range(0x1F3FB, 0x1F400))
_QUALIFIED = 2  # of Unicode's states of an emoji: the one to use
_EVERY = 10


@dataclass(frozen=True)
class Named:
    """Pictures [N, 3, 32, 32] in [0, 1] and their names."""

    pictures: Tensor
    names: list[str]


def load_named(path: Path | None) -> dict[str, Named]:
    """The parts "train", "validation" and "test".

    Raises:
        BadInput: the font or the folder is missing or cannot be read, the package emoji is not
            installed, or there are fewer than 20 pictures.
    """
    path = path or _installed()
    if path.is_dir():
        named = _of_folder(path)
    elif path.is_file():
        named = _of_font(path)
    else:
        raise BadInput(f"--data {path} does not exist: expected a font or a folder of pictures")
    if len(named) < 2 * _EVERY:
        raise BadInput(f"{path}: {2 * _EVERY} pictures or more are needed, got {len(named)}")
    parts: dict[str, list[tuple[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number, one in enumerate(sorted(named, key=lambda each: each[0])):
        parts[{_EVERY - 1: "test", _EVERY - 2: "validation"}.get(number % _EVERY, "train")].append(
            one
        )
    return {
        part: Named(torch.stack([picture for _, picture in each]), [name for name, _ in each])
        for part, each in parts.items()
    }


def _installed() -> Path:
    from matplotlib.font_manager import findSystemFonts

    found = [font for font in findSystemFonts() if Path(font).name == _FONT]
    if not found:
        raise BadInput(
            f"the font {_FONT} is not installed (Debian's fonts-noto-color-emoji): give it, or a "
            "folder of pictures, with --data"
        )
    return Path(found[0])


def _as_picture(image: Any) -> Tensor:
    small = image.convert("RGB").resize((SIZE, SIZE))
    return torch.from_numpy(np.asarray(small, np.float32).copy() / 255).permute(2, 0, 1)


def _of_folder(folder: Path) -> list[tuple[str, Tensor]]:
    from PIL import Image, UnidentifiedImageError

    named = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in Image.registered_extensions():
            try:
                with Image.open(path) as image:
                    named.append((path.stem.replace("_", " ").lower(), _as_picture(image)))
            except (UnidentifiedImageError, OSError, ValueError) as error:
                raise BadInput(f"{path} cannot be read as a picture: {error}") from None
    return named


def _of_font(path: Path) -> list[tuple[str, Tensor]]:
    from PIL import Image, ImageDraw, ImageFont

    try:
        from emoji import EMOJI_DATA
    except ModuleNotFoundError:
        raise BadInput(
            "names of emoji come from the package emoji, which is not installed: "
            "pip install 'bptt[emoji]'"
        ) from None
    try:
        font = ImageFont.truetype(str(path), _POINTS)
    except OSError as error:
        raise BadInput(f"{path} is no font of colour emoji: {error}") from None
    named = []
    for text, known in EMOJI_DATA.items():
        single = font.getlength(text) <= _CANVAS[0]  # several glyphs: the font lacks this one
        if known["status"] == _QUALIFIED and single and not _SKIN & set(text):
            image = Image.new("RGB", _CANVAS, "white")
            ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
            named.append((known["en"].strip(":").replace("_", " ").lower(), _as_picture(image)))
    return named
