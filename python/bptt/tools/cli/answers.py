"""What a model answers, as rows: in the terminal, as JSON or as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bptt.data.errors import BadInput

from .terminal import console

Output = Annotated[
    Path | None,
    typer.Option(help="A .json or .csv file to write; a table if not given.", show_default=False),
]
_KINDS = (".json", ".csv")


def check_kind(path: Path | None, kinds: Sequence[str] = _KINDS) -> None:
    """That such a file can be written.

    Raises:
        BadInput: its name ends in no known kind.
    """
    if path is not None and path.suffix.lower() not in kinds:
        known = " or ".join(kinds)
        raise BadInput(f"--output {path}: expected a name that ends in {known}")


def tell(rows: Sequence[dict[str, Any]], output: Path | None, names: Sequence[str] = ()) -> None:
    """Writes rows of equal keys into a file, or prints a table; `names`, the keys, if of none."""
    from rich import box
    from rich.table import Table

    from bptt.train.files import write_text

    names = names or list(rows[0])
    if output is None:
        table = Table(*names, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console().print(table)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".json":
        write_text(output, json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n")
    else:
        with output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    typer.echo(f"Written: {output}")
