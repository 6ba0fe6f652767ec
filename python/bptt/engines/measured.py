"""What was measured to be faster than the first choice: a table that `auto` and plans look into.

A table is a JSON file for one device, as `bptt bench --table FILE` writes it, in the package's
folder `tables` or named by BPTT_MEASURED:

    {"device": "NVIDIA H200", "source": "benchmarks/results/...", "rows": [
      {"cell": "lstm", "dtype": "float16", "directions": 1, "hidden": [768, 768],
       "batch": [8, 32], "backend": "torch"},
      {"cell": "gru", ..., "backend": "cuda", "tier": "grid"}]}

`hidden` and `batch` are ranges, both ends included. `backend` is what `auto` takes; `tier` (for
"cuda") is the tier its plans take. The first row that fits counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Row:
    """One row of a table; see the module's description. `source` says where it was measured."""

    cell: str
    dtype: str
    directions: int
    hidden: tuple[int, int]
    batch: tuple[int, int]
    backend: str
    tier: str
    source: str

    def fits(self, cell: str, dtype: torch.dtype, directions: int, hidden: int, batch: int) -> bool:
        """Whether the row is about such a layer."""
        return (
            (self.cell, self.dtype) == (cell, str(dtype).removeprefix("torch."))
            and self.directions == directions
            and self.hidden[0] <= hidden <= self.hidden[1]
            and self.batch[0] <= batch <= self.batch[1]
        )


@lru_cache
def rows_for(device_name: str) -> tuple[Row, ...]:
    """The rows of every table for a device.

    Raises:
        ValueError: a table is not what the module's description says.
    """
    paths = sorted(FOLDER.glob("*.json")) if FOLDER.is_dir() else []
    named = os.environ.get("BPTT_MEASURED")
    if named:
        paths.insert(0, Path(named))
    return tuple(row for path in paths for row in _read(path, device_name))


def _read(path: Path, device_name: str) -> list[Row]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = [_row(row, table["source"]) for row in table["rows"]]
        return rows if table["device"] == device_name else []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a table of measurements as bptt/engines/measured.py describes it: "
            f"{error!r}"
        ) from error


def _row(row: dict[str, Any], source: str) -> Row:
    hidden, batch = ((int(low), int(high)) for low, high in (row["hidden"], row["batch"]))
    directions = int(row["directions"])
    return Row(
        row["cell"], row["dtype"], directions, hidden, batch, row["backend"],
        row.get("tier", ""), source,
    )  # fmt: skip


@lru_cache
def device_name(device: torch.device) -> str:
    """The name that tables know a device by."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def row_for(
    cell: str, dtype: torch.dtype, directions: int, hidden: int, batch: int, device: torch.device
) -> Row | None:
    """The row about a layer on a device, or None."""
    for row in rows_for(device_name(device)):
        if row.fits(cell, dtype, directions, hidden, batch):
            return row
    return None
