"""What another program that takes a core costs a step: beside a data loader, say.

python benchmarks/busy.py        writes results/<machine>/busy.json and busy.md

The members of a team wait for each other at every step of time; one whose core another program has
is late by a turn of the scheduler. Times are means over all calls: the late ones are the point.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from saving import RESULTS, heading, save
from torch import nn

import bptt
from bptt.tools.bench import machine
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure

SHAPES = ((12, 64, 32), (50, 32, 128), (100, 16, 256))  # T, B, H
LAYERS = ("GRU", "LSTM")


def _forever() -> None:
    while True:
        pass


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many other programs, each of which would take a core for itself."""
    others = [multiprocessing.Process(target=_forever, daemon=True) for _ in range(programs)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def row(kind: str, shape: tuple[int, int, int], programs: int, seconds: float) -> dict[str, Any]:
    steps, batch, hidden = shape
    x = torch.randn(steps, batch, hidden)
    layers = {
        "bptt": getattr(bptt, kind)(hidden, hidden),
        "torch": getattr(nn, kind)(hidden, hidden),
    }
    calls = {name: Plain(lambda f=f: f(x)[0].sum().backward()) for name, f in layers.items()}
    with busy(programs):
        times = measure(calls, "cpu", seconds)
    ms = {f"{name}_ms": mean(each) for name, each in times.items()}
    return {"layer": kind, "shape": list(shape), "programs": programs, **ms}


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Beside other programs", content)
    lines += ["Forward and backward, one layer, I = H, float32, milliseconds, means:", ""]
    cells = [
        [
            r["layer"],
            ", ".join(map(str, r["shape"])),
            str(r["programs"]),
            f"{r['bptt_ms']:.1f}",
            f"{r['torch_ms']:.1f}",
            f"{r['torch_ms'] / r['bptt_ms']:.2f}",
        ]
        for r in content["rows"]
    ]
    names = ["layer", "T, B, H", "other programs", "bptt", "torch.nn", "ratio"]
    return "\n".join([*lines, table(names, cells)]) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="For a row.")] = 6.0,
    output: Annotated[Path, typer.Option(help="Folder of results.")] = RESULTS,
) -> None:
    load = machine.OtherLoad()
    cases = [(kind, shape, n) for kind in LAYERS for shape in SHAPES for n in (0, 1)]
    rows = [row(*case, seconds) for case in track(cases)]
    save("busy", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
