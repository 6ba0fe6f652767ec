"""What cell variants and options cost, how long a step of a stream takes, what compile_cell gains.

python benchmarks/variants.py        writes results/<machine>/variants.json and variants.md

Times are medians of calls in turns (`bptt.tools.bench.timing`), on every core that torch uses.
Beside the variants stands bptt's reference backend: what a user would write with torch's
operations. Beside `compile_cell` stands a loop over the same function.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from saving import RESULTS, heading, save
from torch import Tensor, nn

import bptt
from bptt.tools.bench import machine
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure

STEPS, BATCH, HIDDEN = 100, 32, 256
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "LSTM": (bptt.LSTM, {}),
    "LSTM, layer_norm": (bptt.LSTM, {"layer_norm": True}),
    "LSTM, zoneout": (bptt.LSTM, {"zoneout": (0.1, 0.3)}),
    "LSTM, recurrent_dropout": (bptt.LSTM, {"recurrent_dropout": 0.3}),
    "LSTM, weight_drop": (bptt.LSTM, {"weight_drop": 0.3}),
    "LSTM, truncate": (bptt.LSTM, {"truncate": 20}),
    "LSTM, clip_grad_norm": (bptt.LSTM, {"clip_grad_norm": 1.0}),
    "LSTM, hard_sigmoid": (bptt.LSTM, {"gate_activation": "hard_sigmoid"}),
    "LSTM, 4 heads": (bptt.LSTM, {"num_heads": 4}),
    "CIFG": (bptt.CIFG, {}),
    "sLSTM": (bptt.SLSTM, {}),
    "sLSTM, 4 heads": (bptt.SLSTM, {"num_heads": 4}),
    "GRU": (bptt.GRU, {}),
    "GRU, layer_norm": (bptt.GRU, {"layer_norm": True}),
    "IndRNN": (bptt.IndRNN, {}),
    **{
        name: (getattr(bptt, name), {})
        for name in ("MinGRU", "MinLSTM", "SRU", "DiagonalGRU", "DiagonalLSTM", "LightGRU", "MGU")
    },
}
COMPILED = ((1, 16), (1, 64), (8, 32), (32, 32), (32, 128))  # B, H
STREAMED = {"RNN": (64, 256, 512), "GRU": (64, 256, 512), "LSTM": (64, 256, 512)}


def step_of(layer: nn.Module, x: torch.Tensor, backend: str) -> Plain:
    """A forward and a backward pass."""

    def run() -> None:
        with bptt.backend(backend):
            layer(x)[0].sum().backward()

    return Plain(run)


def variant_row(name: str, seconds: float) -> dict[str, Any]:
    cls, options = VARIANTS[name]
    layer = cls(HIDDEN, HIDDEN, **options)
    x = torch.randn(STEPS, BATCH, HIDDEN)
    calls = {"bptt": step_of(layer, x, "auto"), "python": step_of(layer, x, "reference")}
    times = measure(calls, "cpu", seconds)
    ours, theirs = (median(times[who]) for who in ("bptt", "python"))
    return {"variant": name, "bptt_ms": ours, "python_ms": theirs, "ratio": theirs / ours}


def stream_row(kind: str, hidden: int, seconds: float) -> dict[str, Any]:
    layers = [getattr(package, kind)(hidden, hidden).eval() for package in (bptt, nn)]
    cell = getattr(nn, f"{kind}Cell")(hidden, hidden).eval()
    x = torch.randn(1, hidden)
    states = [torch.zeros(1, 1, hidden), torch.zeros(1, hidden)]
    state, cell_state = ((s, s) if kind == "LSTM" else s for s in states)
    calls = {
        "bptt": Plain(lambda: layers[0].step(x, state)),
        "torch_layer": Plain(lambda: layers[1](x.unsqueeze(0), state)),
        "torch_cell": Plain(lambda: cell(x, cell_state)),
    }
    with torch.no_grad():
        times = measure(calls, "cpu", seconds)
    microseconds = {f"{name}_us": median(ms) * 1e3 for name, ms in times.items()}
    return {"layer": kind, "hidden": hidden, **microseconds}


def lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + h @ w.t()).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def loop(x: Tensor, state: tuple[Tensor, Tensor], params: tuple[Tensor]) -> tuple[Tensor, Any]:
    outputs = []
    for x_t in x.unbind():
        state = lstm(x_t, *state, *params)
        outputs.append(state[0])
    return torch.stack(outputs), state


def compiled_row(batch: int, hidden: int, seconds: float) -> dict[str, Any]:
    x = torch.randn(STEPS, batch, 4 * hidden, requires_grad=True)
    state = (torch.zeros(batch, hidden), torch.zeros(batch, hidden))
    params = ((torch.randn(4 * hidden, hidden) / hidden**0.5).requires_grad_(),)
    compiled = bptt.compile_cell(lstm)
    row: dict[str, Any] = {"batch": batch, "hidden": hidden}
    functions = {"compiled": compiled, "python": loop}
    inference = {
        name: Plain(lambda f=f: f(x.detach(), state, (params[0].detach(),)))
        for name, f in functions.items()
    }
    step = {
        name: Plain(lambda f=f: f(x, state, params)[0].sum().backward())
        for name, f in functions.items()
    }
    for what, calls in (("inference", inference), ("step", step)):
        times = {name: median(ms) for name, ms in measure(calls, "cpu", seconds).items()}
        row |= {f"{what}_{name}_ms": time for name, time in times.items()}
        row[f"{what}_ratio"] = times["python"] / times["compiled"]
    return row


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Variants and streams", content)
    lines += [f"Forward and backward, T = {STEPS}, B = {BATCH}, I = H = {HIDDEN}, float32:", ""]
    lines.append(
        table(
            ["variant", "bptt ms", "loop in Python ms", "ratio"],
            [
                [r["variant"], f"{r['bptt_ms']:.1f}", f"{r['python_ms']:.1f}", f"{r['ratio']:.1f}"]
                for r in content["variants"]
            ],
        )
    )
    lines += ["", "One step of one sequence, without gradients, I = H, microseconds:", ""]
    lines.append(
        table(
            ["layer", "H", "bptt `layer.step`", "torch.nn layer, T = 1", "torch.nn cell"],
            [
                [r["layer"], str(r["hidden"])]
                + [f"{r[f'{who}_us']:.0f}" for who in ("bptt", "torch_layer", "torch_cell")]
                for r in content["streams"]
            ],
        )
    )
    lines += ["", f"An LSTM as a step function, T = {STEPS}, milliseconds:", ""]
    lines.append(
        table(
            ["B", "H", "inference: compile_cell", "loop", "ratio"]
            + ["forward and backward: compile_cell", "loop", "ratio"],
            [
                [str(r["batch"]), str(r["hidden"])]
                + [
                    text
                    for what in ("inference", "step")
                    for text in (
                        f"{r[f'{what}_compiled_ms']:.2f}", f"{r[f'{what}_python_ms']:.2f}",
                        f"{r[f'{what}_ratio']:.1f}",
                    )
                ]
                for r in content["compiled"]
            ],
        )
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="for each row")] = 2.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    torch.manual_seed(0)
    # First: its compilers would count as other programs.
    compiled = [compiled_row(*sizes, seconds) for sizes in track(COMPILED, "compile_cell")]
    load = machine.OtherLoad()
    rows = [variant_row(name, seconds) for name in track(VARIANTS, "variants")]
    pairs = [(kind, hidden) for kind, sizes in STREAMED.items() for hidden in sizes]
    streams = [stream_row(*pair, seconds) for pair in track(pairs, "streams")]
    measured = {"variants": rows, "streams": streams, "compiled": compiled}
    save("variants", measured, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
