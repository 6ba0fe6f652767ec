"""A cell out of a file: what commands take as `file.py:name`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .program import CellError
from .user_cell import UserCell

_read: dict[Path, object] = {}


def is_named(text: str) -> bool:
    """Whether a text names a cell in a file, rather than one of the library."""
    return ":" in text


def load_cell(text: str) -> UserCell:
    """The cell that `file.py:name` names. A file is run once.

    Raises:
        CellError: no such file, or nothing in it of that name that `bptt.cell` made; or the file
            fails when it is run.
    """
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise CellError(
            f"{text}: there is no file {file or text!r}; a cell is named as file.py:name"
        )
    module = _run(path.resolve())
    cell = getattr(module, name, None)
    if not isinstance(cell, UserCell):
        there = [key for key, value in vars(module).items() if isinstance(value, UserCell)]
        has = f"it has {', '.join(there)}" if there else "it has none that bptt.cell made"
        raise CellError(f"{text}: {file} has no cell {name!r}; {has}")
    return cell


def _run(path: Path) -> object:
    """The module that a file makes, known by its name so that its cells can be pickled."""
    if path not in _read:
        name = f"bptt_cells_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise CellError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except CellError:
            raise
        except Exception as error:
            raise CellError(f"{path} fails: {type(error).__name__}: {error}") from error
        _read[path] = module
    return _read[path]
