"""What zoneout and recurrent dropout cost a training step, over the shapes of the standard grid.

python benchmarks/regularised.py     writes results/<machine>/regularised.json and .md

Both options are on, for cell and hidden states. The plain layer takes turns with them in one
process (`bptt.tools.bench.timing`), so that both see the same clock. Times are medians.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from saving import RESULTS, heading, save

import bptt
from bptt.tools.bench import machine
from bptt.tools.bench.problems import grid
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure

BAR = 1.1  # of the plain layer's time
DROPOUT = 0.3
ZONEOUT = {"LSTM": (0.1, 0.3), "GRU": 0.1, "RNN": 0.1}


def row(problem: Any, seconds: float) -> dict[str, Any]:
    """One shape: milliseconds of a step of both layers."""
    way = {"bidirectional": problem.directions == 2}
    both = {"zoneout": ZONEOUT[problem.layer], "recurrent_dropout": DROPOUT}
    cls = getattr(bptt, problem.layer)
    x = torch.randn(problem.steps, problem.batch, problem.input)

    def step(options: dict[str, Any]) -> Plain:
        layer = cls(problem.input, problem.hidden, **way, **options)
        return Plain(lambda: layer(x)[0].sum().backward())

    times = measure({"plain": step({}), "regularised": step(both)}, "cpu", seconds)
    plain, regularised = (median(times[name]) for name in ("plain", "regularised"))
    return {
        "layer": problem.layer,
        "directions": problem.directions,
        "shape": [problem.steps, problem.batch, problem.hidden],
        "plain_ms": plain,
        "regularised_ms": regularised,
        "ratio": regularised / plain,
    }


def text_of(content: dict[str, Any]) -> str:
    rows = content["rows"]
    mean = math.exp(sum(math.log(r["ratio"]) for r in rows) / len(rows))
    lines = heading("Zoneout and recurrent dropout", content)
    lines += [
        f"Forward and backward, float32, I = H. Geometric mean {mean:.2f} of the plain layer's "
        f"time; {sum(r['ratio'] > BAR for r in rows)} of {len(rows)} rows above {BAR}.",
        "",
    ]
    cells = [
        [r["layer"], str(r["directions"]), " x ".join(map(str, r["shape"]))]
        + [f"{r['plain_ms']:.1f}", f"{r['regularised_ms']:.1f}", f"{r['ratio']:.2f}"]
        for r in rows
    ]
    head = ["layer", "directions", "T x B x H", "plain ms", "both on, ms", "ratio"]
    return "\n".join([*lines, table(head, cells)]) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="for each row")] = 2.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    torch.manual_seed(0)
    load = machine.OtherLoad()
    problems = [p for p in grid("standard", "cpu") if p.which == "step"]
    rows = [row(problem, seconds) for problem in track(problems, "shapes")]
    save("regularised", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
