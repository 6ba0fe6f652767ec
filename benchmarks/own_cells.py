"""Cells written in Python (`bptt.cell`): beside the same cells by hand, and beside a Python loop.

python benchmarks/own_cells.py     writes results/<machine>/own-cells.json and .md

Both layers take turns in one process (`bptt.tools.bench.timing`). Compiling is timed in a cache of
its own, and loading what is compiled in a process of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

FASTER_THAN_LOOP, FASTER_THAN_COMPILED, OF_BUILT_IN = 10.0, 5.0, 0.8
LOOPS = ((100, 32, 128), (100, 1, 64))  # T, B, H
FIRST_USED = ["gru", "slstm"]
BESIDE_LOOPS = ["gru"]  # torch.compile takes minutes for a loop of 100 steps


def rnn(gates_x: Any, gates_h: Any, h: Any) -> Any:
    return torch.tanh(gates_x[0] + gates_h[0])


def gru(gates_x: Any, gates_h: Any, h: Any) -> Any:
    r = torch.sigmoid(gates_x[0] + gates_h[0])
    z = torch.sigmoid(gates_x[1] + gates_h[1])
    n = torch.tanh(gates_x[2] + r * gates_h[2])
    return n + z * (h - n)


def lstm(gates_x: Any, gates_h: Any, h: Any, c: Any) -> Any:
    i, f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def peephole(gates_x: Any, gates_h: Any, h: Any, c: Any, *, p_i: Any, p_f: Any, p_o: Any) -> Any:
    """Gers and Schmidhuber 2000."""
    i, f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


def cifg(gates_x: Any, gates_h: Any, h: Any, c: Any) -> Any:
    """Greff et al. 2015."""
    f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    f, g = torch.sigmoid(f), torch.tanh(g)
    c = g + f * (c - g)
    return torch.sigmoid(o) * torch.tanh(c), c


def slstm(gates_x: Any, gates_h: Any, h: Any, c: Any, n: Any, m: Any) -> Any:
    """Beck et al. 2024."""
    i, f, z, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    kept = torch.nn.functional.logsigmoid(f) + m
    empty = n == 0
    m = torch.where(empty, i, torch.maximum(kept, i))
    written = torch.exp(i - m)
    kept = torch.where(empty, torch.zeros_like(m), torch.exp(torch.where(empty, m, kept) - m))
    c = kept * c + written * torch.tanh(z)
    n = kept * n + written
    return torch.sigmoid(o) * c / n, c, n, m


# By function: gates, the layer by hand and its options.
CELLS: dict[str, tuple[Callable[..., Any], int, Any, dict[str, Any]]] = {
    "rnn": (rnn, 1, bptt.RNN, {}),
    "gru": (gru, 3, bptt.GRU, {}),
    "lstm": (lstm, 4, bptt.LSTM, {}),
    "peephole": (peephole, 4, bptt.LSTM, {"peephole": True}),
    "cifg": (cifg, 3, bptt.CIFG, {}),
    "slstm": (slstm, 4, bptt.SLSTM, {}),
}


def answers(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and every gradient."""
    layer.zero_grad()
    y = layer(x)[0]
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)]


def beside_built_in(name: str, shape: tuple[int, int, int], way: str, seconds: float) -> Any:
    """One shape, in one way: milliseconds of both, and how far apart their answers are."""
    function, gates, by_hand, options = CELLS[name]
    steps, batch, hidden = shape
    ours = bptt.Recurrent(bptt.cell(gates=gates)(function), hidden, hidden)
    theirs = by_hand(hidden, hidden, **options)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(other.data)
    x = torch.randn(steps, batch, hidden)
    apart = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(answers(ours, x), answers(theirs, x), strict=True)
    )

    def call(layer: Any) -> Plain:
        if way == "step":
            return Plain(lambda: layer(x)[0].sum().backward())

        def infer() -> None:
            with torch.no_grad():
                layer(x)

        return Plain(infer)

    times = measure({"ours": call(ours), "by hand": call(theirs)}, "cpu", seconds)
    mine, other = median(times["ours"]), median(times["by hand"])
    return {
        "cell": name, "shape": list(shape), "way": way, "own_ms": mine, "built_in_ms": other,
        "ratio": other / mine, "apart": apart,
    }  # fmt: skip


def products(shape: tuple[int, int, int], gates: int) -> Plain:
    """The products of a layer alone, forward and backward, each over all steps at once."""
    steps, batch, hidden = shape
    rows, wide = torch.randn(steps * batch, hidden), torch.randn(steps * batch, gates * hidden)
    weights = torch.randn(gates * hidden, hidden)

    def run() -> None:
        rows @ weights.t()  # of the input
        rows @ weights.t()  # of the hidden state
        wide @ weights  # its gradient
        wide.t() @ rows  # those of both weights
        wide.t() @ rows

    return Plain(run)


def beside_loops(name: str, shape: tuple[int, int, int], seconds: float) -> Any:
    """Beside a Python loop over the same function, and torch.compile of that."""
    function, gates, _, _ = CELLS[name]
    steps, batch, hidden = shape
    layer = bptt.Recurrent(bptt.cell(gates=gates)(function), hidden, hidden)
    x = torch.randn(steps, batch, hidden)
    states = len(layer.cell.spec.states)
    w_ih, w_hh, b_ih, b_hh = (p for p in list(layer.parameters())[:4])
    weights = {}
    if layer.cell.spec.unit_weights:
        own = layer.weight_unit_l0.chunk(len(layer.cell.spec.unit_weights))
        weights = dict(zip(layer.cell.spec.unit_weights, own, strict=True))

    def loop(x: torch.Tensor) -> torch.Tensor:
        projected = torch.nn.functional.linear(x, w_ih, b_ih)
        state = tuple(x.new_zeros(batch, hidden) for _ in range(states))
        outputs = []
        for gates_x in projected:
            gates_h = torch.nn.functional.linear(state[0], w_hh, b_hh)
            after = function(gates_x.chunk(gates, -1), gates_h.chunk(gates, -1), *state, **weights)
            state = after if isinstance(after, tuple) else (after,)
            outputs.append(state[0])
        return torch.stack(outputs)

    def step(run: Any) -> Plain:
        return Plain(lambda: run(x).sum().backward())

    compiled = torch.compile(loop)
    start = time.monotonic()
    compiled(x).sum().backward()
    compile_seconds = time.monotonic() - start
    runs = {
        "own": step(lambda x: layer(x)[0]), "loop": step(loop), "compiled": step(compiled),
        "products": products(shape, gates),
    }  # fmt: skip
    times = {run: median(t) for run, t in measure(runs, "cpu", seconds).items()}
    return {
        "cell": name, "shape": list(shape), **{f"{run}_ms": t for run, t in times.items()},
        "over_loop": times["loop"] / times["own"],
        "over_compiled": times["compiled"] / times["own"],
        "torch_compile_s": compile_seconds,
    }  # fmt: skip


_FIRST_USE = """
import time, sys
sys.path.insert(0, {folder!r})
import torch, bptt
import own_cells
start = time.monotonic()
function, gates, _, _ = own_cells.CELLS[{name!r}]
layer = bptt.Recurrent(bptt.cell(gates=gates)(function), 8, 8)
layer(torch.randn(2, 2, 8))[0].sum().backward()
print(time.monotonic() - start)
"""


def first_use(name: str) -> Any:
    """Seconds from the function to the first step: with nothing compiled, and once it is."""
    code = _FIRST_USE.format(folder=str(Path(__file__).parent), name=name)
    with tempfile.TemporaryDirectory() as cache:
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code], check=True, capture_output=True, text=True,
                    env={**os.environ, "BPTT_CACHE": cache},
                ).stdout
            )
            for _ in range(2)
        ]  # fmt: skip
    return {"cell": name, "compiling_s": seconds[0], "again_s": seconds[1]}


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def text_of(content: dict[str, Any]) -> str:
    rows, loops, uses = content["rows"], content["loops"], content["first_use"]
    lines = heading("Cells of one's own", content)
    lines += [
        "Built-in time over own time, of the same cell with the same weights; float32, I = H. "
        f"Asked: at least {OF_BUILT_IN} of its speed.",
        "",
    ]
    body = []
    for name in CELLS:
        for way in ("inference", "step"):
            mine = [r for r in rows if r["cell"] == name and r["way"] == way]
            ratios = [r["ratio"] for r in mine]
            apart = max(r["apart"] for r in mine)
            body.append([name, way, f"{mean(ratios):.2f}", f"{min(ratios):.2f}", f"{apart:.1e}"])
    header = ["cell", "way", "geometric mean", "least", "farthest answer"]
    lines += [table(header, body), ""]
    lines += [
        "Forward and backward beside a Python loop over the function (asked at 100 x 32 x 128: "
        f"{FASTER_THAN_LOOP:.0f} times its speed) and torch.compile of that "
        f"({FASTER_THAN_COMPILED:.0f} times). Products: those of the layer alone, each as one over "
        "all steps, which no loop can go below.",
        "",
    ]
    body = [
        [
            r["cell"], " x ".join(map(str, r["shape"])), f"{r['own_ms']:.2f}",
            f"{r['products_ms']:.2f}", f"{r['loop_ms']:.1f}", f"{r['compiled_ms']:.1f}",
            f"{r['over_loop']:.1f}", f"{r['over_compiled']:.1f}",
        ]
        for r in loops
    ]  # fmt: skip
    header = ["cell", "T x B x H", "own ms", "products ms", "loop ms", "compiled ms"]
    lines += [table([*header, "over the loop", "over torch.compile"], body), ""]
    lines += ["From the function to the end of a first step, in a process of its own.", ""]
    body = [[u["cell"], f"{u['compiling_s']:.1f}", f"{u['again_s']:.2f}"] for u in uses]
    lines += [table(["cell", "compiling, s", "compiled before, s"], body), ""]
    return "\n".join(lines)


def main(
    seconds: Annotated[float, typer.Option(help="for each row")] = 1.5,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    torch.manual_seed(0)
    load = machine.OtherLoad()
    problems = [p for p in grid("standard", "cpu") if p.which == "step" and p.directions == 1]
    shapes = sorted({(p.steps, p.batch, p.hidden) for p in problems})
    asked = [(n, s, w) for n in CELLS for s in shapes for w in ("inference", "step")]
    uses = [first_use(name) for name in track(FIRST_USED, "first use")]
    rows = [beside_built_in(n, s, w, seconds) for n, s, w in track(asked, "beside built-in cells")]
    pairs = [(name, shape) for name in BESIDE_LOOPS for shape in LOOPS]
    loops = [beside_loops(n, s, seconds) for n, s in track(pairs, "beside loops")]
    measured = {"rows": rows, "loops": loops, "first_use": uses}
    save("own-cells", measured, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
