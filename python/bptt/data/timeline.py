"""One series of numbers over time, from a CSV file or what packages ship.

| source | what |
|---|---|
| a file `.csv` with a line of names | one of its columns: the one that is named, or the last one of
numbers |
| nothing | sunspots a year, 1700 to 2008, as the package statsmodels ships them |

Rows are taken as equally far apart. Missing numbers between two known ones are filled on the line
between them; missing ones at either end are left off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import BadInput

MOST_MISSING = 0.2


@dataclass(frozen=True)
class Timeline:
    """Numbers [N], float32, by the name of their column, and how many were filled in."""

    name: str
    values: Tensor
    filled: int = 0


def load_timeline(path: Path | None, column: str = "") -> Timeline:
    """Reads what `path` names; see the module's list.

    Raises:
        BadInput: it is missing, no CSV file, without such a column, with text for a number, with an
            infinite number, or with more than a fifth of its numbers missing; or pandas or
            statsmodels is not installed.
    """
    try:
        import pandas as pd
        from statsmodels.datasets import sunspots
    except ModuleNotFoundError as error:
        raise BadInput(
            f"series need the package {error.name}, which is not installed: "
            "pip install 'bptt[forecast]'"
        ) from None
    if path is None:
        values = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy("float32")
        return Timeline("sunspots a year", torch.from_numpy(values.copy()))
    if not path.is_file():
        raise BadInput(f"{path} is no file")
    try:
        table = pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:  # no UTF-8, no line, ragged lines
        raise BadInput(f"{path} cannot be read as CSV: {' '.join(str(error).split())}") from None
    return _column(table, column, str(path))


def _column(table: Any, column: str, source: str) -> Timeline:
    from pandas.api.types import is_numeric_dtype

    names = [str(name) for name in table.columns]
    table.columns = names
    if column and column not in names:
        raise BadInput(f"{source} has no column {column!r}: it has {', '.join(names)}")
    numeric = [name for name in names if is_numeric_dtype(table[name])]
    chosen = column or (numeric or names)[-1]
    series = _numbers(table[chosen], f"{source}, column {chosen!r}")
    missing = int(series.isna().sum())
    if missing > MOST_MISSING * len(series):
        raise BadInput(
            f"{source}, column {chosen!r}: {missing} of {len(series)} numbers are missing, and at "
            f"most {MOST_MISSING:.0%} of them can be filled in"
        )
    return Timeline(
        chosen, torch.from_numpy(series.interpolate().to_numpy("float32").copy()), missing
    )


def _numbers(cells: Any, source: str) -> Any:
    """As numbers, without missing ones at either end."""
    import numpy as np
    import pandas as pd

    series = pd.to_numeric(cells, errors="coerce").astype(float)
    bad = np.flatnonzero(series.isna() & cells.notna() | np.isinf(series))
    if len(bad):
        raise BadInput(
            f"{source}, row {bad[0] + 1}: expected a number, got {str(cells.iloc[bad[0]])!r}"
        )
    known = np.flatnonzero(series.notna())
    return series.iloc[known[0] : known[-1] + 1] if len(known) else series.iloc[:0]
