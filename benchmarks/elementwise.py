"""Loops without a recurrent product, as a share of the speed at which memory is copied.

python benchmarks/elementwise.py     writes results/<machine>/elementwise.json and .md

The input's part of the gates is there, as a product would leave it: what is timed is the loop over
time alone, forward as in training, forward without gradients, and backward. Its traffic is counted
once for each number that has to be read or written. The copy is torch's `clone`, of as many bytes:
like the loop it writes into memory that is new to it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from saving import RESULTS, heading, save

import bptt
from bptt.custom.library import cell_named
from bptt.recurrence import ops
from bptt.recurrence.cells import CELLS
from bptt.recurrence.gradients import KEEP_GATES, KEEP_NOTHING
from bptt.tools.bench import machine
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure

BAR = 0.6
SHAPES = ((100_000, 1, 256), (10_000, 8, 256), (1_000, 64, 256), (400, 64, 1024))  # T, B, H
LIBRARY = ("min_gru", "min_lstm", "sru", "diagonal_gru", "diagonal_lstm")


def calls(cell: str, shape: tuple[int, int, int]) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each pass of a cell's loop, and the bytes that it has to move."""
    steps, batch, hidden = shape
    spec = CELLS[cell]
    gates, states, kept = len(spec.gates), len(spec.states), len(spec.saved)
    plane = 4 * steps * batch * hidden
    gates_x = torch.randn(steps, batch, 1, gates, hidden)
    w_hh = torch.empty(1, gates * hidden, 0)
    w_unit = 0.1 * torch.randn(1, len(spec.unit_weights) * hidden) if spec.unit_weights else None
    h0 = torch.zeros(1, batch, hidden)
    c0 = torch.zeros(1, batch, (states - 1) * hidden) if states > 1 else None

    def forward(keep: str) -> Any:
        return torch.ops.bptt.recurrence_forward(
            "cpu", cell, gates_x, None, None, None, w_hh, None, None, w_unit, h0, c0, None, None,
            [0], keep,
        )  # fmt: skip

    y, _, _, saved, cells = forward(KEEP_GATES)
    dy = torch.randn_like(y)

    def backward() -> Any:
        return torch.ops.bptt.recurrence_backward(
            "cpu", cell, dy, None, None, y, saved, cells, w_hh, None, w_unit, h0, c0, None, None,
            [0],
        )  # fmt: skip

    made = gates if spec.shared_gates else 2 * gates
    return {
        "inference": (lambda: forward(KEEP_NOTHING), (gates + 1) * plane),
        "forward": (lambda: forward(KEEP_GATES), (gates + kept + states) * plane),
        # dy, the states before each step, what was kept; the gradients of the gates.
        "backward": (backward, (1 + states + kept + made) * plane),
    }


def rows(name: str, shape: tuple[int, int, int], seconds: float) -> list[dict[str, Any]]:
    cell = name if name in CELLS else cell_named(name).name
    if CELLS[cell].custom is not None:
        ops.prepare_custom(cell, "float32")
    found = []
    for way, (call, moved) in calls(cell, shape).items():
        source = torch.randn(moved // 8)  # each is read and written
        copy = Plain(source.clone)
        times = measure({"loop": Plain(call), "copy": copy}, "cpu", seconds)
        loop, copied = median(times["loop"]), median(times["copy"])
        found.append(
            {
                "cell": name, "shape": list(shape), "way": way, "megabytes": moved / 1e6,
                "loop_ms": loop, "copy_ms": copied, "share": copied / loop,
            }
        )  # fmt: skip
    return found


def text_of(content: dict[str, Any]) -> str:
    found = content["rows"]
    below = [r for r in found if r["share"] < BAR]
    lines = heading("Loops without a recurrent product", content)
    lines += [
        "Share of the speed of a copy of as many bytes, float32. Asked: at least "
        f"{BAR:.0%}; {len(below)} of {len(found)} below.",
        "",
    ]
    body = [
        [
            r["cell"], " x ".join(map(str, r["shape"])), r["way"], f"{r['megabytes']:.0f}",
            f"{r['loop_ms']:.1f}", f"{r['copy_ms']:.1f}", f"{r['share']:.0%}",
        ]
        for r in found
    ]  # fmt: skip
    head = ["cell", "T x B x H", "pass", "MB", "loop ms", "copy ms", "share"]
    return "\n".join([*lines, table(head, body)]) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="for each row")] = 1.5,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    torch.manual_seed(0)
    load = machine.OtherLoad()
    asked = [(name, shape) for name in ("indrnn", *LIBRARY) for shape in SHAPES]
    with bptt.backend("cpu"):
        found = [r for name, shape in track(asked, "loops") for r in rows(name, shape, seconds)]
    save("elementwise", {"rows": found}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
