"""Lines of text files, with errors that name the file."""

from __future__ import annotations

import gzip
from pathlib import Path

from .errors import BadInput


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, which may be compressed by gzip (`.gz`).

    Raises:
        BadInput: the file is missing, damaged, or not UTF-8.
    """
    if not path.is_file():
        raise BadInput(f"{path} is no file")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start} cannot be read") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is damaged: {error}") from None


def lines_of(text: str) -> list[str]:
    """The lines of a file, or the text itself where it names none.

    Raises:
        BadInput: as `read_lines`, or a line is empty.
    """
    path = Path(text)
    lines = read_lines(path) if len(text) < 256 and path.is_file() else [text]
    if not any(line.strip() for line in lines):
        raise BadInput(f"there is no text in {text!r}")
    empty = [i for i, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise BadInput(f"{path}, line {empty[0]} is empty")
    return lines


def read_table(path: Path, columns: int) -> list[list[str]]:
    """The rows of a table with a tab between its columns; empty lines are skipped.

    Raises:
        BadInput: as `read_lines`, or a row has another number of columns.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        row = [cell.strip() for cell in line.split("\t")]
        if len(row) != columns or not all(row):
            raise BadInput(
                f"{path}, line {number}: expected {columns} columns with a tab between, "
                f"got {line!r}"
            )
        rows.append(row)
    return rows
