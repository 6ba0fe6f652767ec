"""What bptt brings to packages that use recurrent layers: the examples of `examples/`, in turns.

python benchmarks/neighbours.py     writes results/<machine>/neighbours.json and .md

Examples whose packages are not installed (`pip install bptt[neighbours]`) are left out, and said.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from saving import RESULTS, heading, save

from bptt.tools.bench import machine
from bptt.tools.bench.report import table

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def row(name: str, seconds: float) -> dict[str, Any]:
    """One example: milliseconds both ways, or why there are none."""
    try:
        example = importlib.import_module(name)
    except (ImportError, OSError) as missing:
        return {"example": name, "reason": str(missing)}
    torch.manual_seed(0)
    before, after = importlib.import_module("gain").measured(example.pair(), seconds)
    what = (example.__doc__ or "").splitlines()[0]
    work = (example.pair.__doc__ or "").splitlines()[0]
    return {"example": name, "what": what, "work": work, "before_ms": before, "after_ms": after}


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Neighbours", content)
    lines += ["Medians; before: as the package does it; after: with bptt, to the same numbers.", ""]
    rows = [
        [
            f"{r['example']}.py",
            r["work"],
            f"{r['before_ms']:.1f}",
            f"{r['after_ms']:.1f}",
            f"{r['before_ms'] / r['after_ms']:.2f}",
        ]
        for r in content["rows"]
        if "work" in r
    ]
    lines += [table(["example", "work", "before, ms", "after, ms", "ratio"], rows), ""]
    lines += [f"- {r['example']}.py: {r['reason']}" for r in content["rows"] if "reason" in r]
    return "\n".join(lines) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="for the rounds of one example")] = 5.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(EXAMPLES))
    load = machine.OtherLoad()
    names = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem != "gain")
    rows = []
    for name in names:
        rows.append(row(name, seconds))
        typer.echo(f"{len(rows)} of {len(names)}: {name}")
    save("neighbours", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
