"""Packed sequences beside torch.nn: time and memory over kinds of lengths.

python benchmarks/packed.py          writes results/<machine>/packed.json and packed.md

Times are medians of calls in turns (`bptt.tools.bench.timing`), on every core that torch uses;
memory is the most that tensors took during one call, as torch.profiler counts it on a CPU.
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
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from bptt.tools.bench import machine
from bptt.tools.bench.memory import peak_bytes
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure

STEPS, BATCH, HIDDEN = 100, 32, 256


def one_long(count: int) -> Tensor:
    lengths = torch.full((count,), STEPS // 10)
    lengths[0] = 10 * STEPS
    return lengths


LENGTHS: dict[str, Callable[[int], Tensor]] = {
    "equal": lambda count: torch.full((count,), STEPS),
    "uniform": lambda count: torch.randint(1, STEPS + 1, (count,)),
    "log-normal": lambda count: torch.randn(count).mul(0.6).add(4).exp().long().clamp(min=1),
    "one long": one_long,
}


def calls_of(kind: str, packed: PackedSequence, step: bool) -> dict[str, Plain]:
    """A pass of either implementation over one packed batch, with gradients or without."""

    def call(layer: nn.Module) -> Callable[[], Any]:
        def infer() -> None:
            with torch.no_grad():
                layer(packed)

        def train() -> None:
            layer(packed)[0].data.sum().backward()

        return train if step else infer

    theirs = getattr(nn, kind)(HIDDEN, HIDDEN)
    ours = getattr(bptt, kind)(HIDDEN, HIDDEN)
    ours.load_state_dict(theirs.state_dict())
    return {"bptt": Plain(call(ours)), "torch": Plain(call(theirs))}


def row(kind: str, lengths: str, step: bool, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    each = LENGTHS[lengths](BATCH)
    x = torch.randn(int(each.max()), BATCH, HIDDEN)
    packed = pack_padded_sequence(x, each, enforce_sorted=False)
    calls = calls_of(kind, packed, step)
    times = {name: median(ms) for name, ms in measure(calls, "cpu", seconds).items()}
    memory = {f"{name}_mib": peak_bytes(call, "cpu") / 2**20 for name, call in calls.items()}
    return {
        "layer": kind,
        "lengths": lengths,
        "valid": int(each.sum()),
        "padded": each.numel() * int(each.max()),
        "what": "step" if step else "inference",
        **{f"{name}_ms": ms for name, ms in times.items()},
        **memory,
    }


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Packed sequences", content)
    lines += [f"One layer of one direction, B = {BATCH}, I = H = {HIDDEN}, float32:", ""]
    rows = [
        [
            r["layer"], r["lengths"], f"{r['valid']} of {r['padded']}", r["what"],
            f"{r['bptt_ms']:.2f}", f"{r['torch_ms']:.2f}", f"{r['torch_ms'] / r['bptt_ms']:.2f}",
            f"{r['bptt_mib']:.1f}", f"{r['torch_mib']:.1f}",
        ]
        for r in content["rows"]
    ]  # fmt: skip
    head = ["layer", "lengths", "rows", "what", "bptt ms", "torch.nn ms", "speed"]
    lines.append(table([*head, "bptt MiB", "torch.nn MiB"], rows))
    return "\n".join(lines) + "\n"


def main(
    seconds: Annotated[float, typer.Option(help="for each row")] = 2.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    load = machine.OtherLoad()
    problems = [(k, n, s) for k in ("RNN", "GRU", "LSTM") for n in LENGTHS for s in (False, True)]
    rows = [row(*problem, seconds) for problem in track(problems, "packed")]
    save("packed", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
