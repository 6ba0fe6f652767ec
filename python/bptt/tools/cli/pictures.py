"""Pictures that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_kind(path: Path, option: str = "--output") -> str:
    """What picture a name is of, such as "png".

    Raises:
        BadInput: of none that can be written.
    """
    from matplotlib.figure import Figure

    from bptt.data.errors import BadInput

    kind = path.suffix.removeprefix(".").lower()
    if kind not in Figure().canvas.get_supported_filetypes():
        raise BadInput(f"{option} {path}: expected a picture's name, such as shown.png")
    return kind


def save(figure: Figure, path: Path) -> None:
    """Writes a picture of the kind that the name says.

    Raises:
        BadInput: it says none.
    """
    from bptt.train.files import write

    kind = picture_kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda beside: figure.savefig(beside, format=kind, dpi=120))
    typer.echo(f"Written: {path}")
