"""Section 3: milliseconds of torch.nn and bptt, measured in turns in the same run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import bptt
from bptt.tools.bench.machine import OtherLoad

from .machine import warning

SHAPES = ((100, 32, 128), (100, 32, 512), (512, 1, 256), (50, 256, 256), (100, 16, 64))
CELLS = ("GRU", "RNN", "LSTM")
LEAST_ROUNDS, MOST_ROUNDS = 3, 50


@dataclass(frozen=True)
class Row:
    """Median times of one problem in milliseconds: torch.nn and bptt."""

    cell: str
    shape: tuple[int, int, int]
    rounds: int
    forward_ms: tuple[float, float]
    training_ms: tuple[float, float]


def section(console: Console, seconds: float) -> bool:
    """Print the table; it reports and never fails.

    Args:
        seconds: time for all rows together; see `measure` for what slow rows do.
    """
    console.rule(f"[bold]3. Speed against torch.nn, {torch.get_num_threads()} threads, float32")
    problems = [(cell, shape) for cell in CELLS for shape in SHAPES]
    rows = []
    others = OtherLoad()
    for cell, shape in track(problems, "measuring", console=console, transient=True):
        rows.append(measure(cell, shape, seconds / len(problems)))
    disturbed = warning(others)
    console.print(_table(rows))
    if disturbed:
        console.print(disturbed)
    console.print(
        "Median of the rounds in ms, lower is better; ratio torch.nn / bptt, above 1 bptt is "
        "faster. Forward runs without gradients, forward+backward goes to the gradients of input "
        "and weights. One layer, one direction."
    )
    return True


def measure(cell: str, shape: tuple[int, int, int], seconds: float) -> Row:
    """Time both libraries in turns, the order swapped every round, until the time is up.

    Where a round is slow, LEAST_ROUNDS may take up to three times as long; then one must do.
    """
    steps, batch, hidden = shape
    torch.manual_seed(0)
    theirs = getattr(nn, cell)(hidden, hidden)
    ours = getattr(bptt, cell)(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden)
    upstream = torch.randn(steps, batch, hidden)
    calls: list[Callable[[], None]] = [
        *(lambda layer=layer: _forward(layer, x) for layer in (theirs, ours)),
        *(lambda layer=layer: _training(layer, x, upstream) for layer in (theirs, ours)),
    ]
    for call in calls:
        call()  # first call: allocations, kernel selection
    times_ms: list[list[float]] = [[] for _ in calls]
    begun = time.perf_counter()
    rounds = 0
    while rounds < MOST_ROUNDS:
        patience = seconds if rounds >= LEAST_ROUNDS else 3 * seconds
        if rounds and time.perf_counter() - begun > patience:
            break
        order = range(len(calls)) if rounds % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            started = time.perf_counter()
            calls[i]()
            times_ms[i].append(1e3 * (time.perf_counter() - started))
        rounds += 1
    nn_forward, bptt_forward, nn_training, bptt_training = map(median, times_ms)
    return Row(cell, shape, rounds, (nn_forward, bptt_forward), (nn_training, bptt_training))


def _forward(layer: nn.RNNBase, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _training(layer: nn.RNNBase, x: Tensor, upstream: Tensor) -> None:
    x = x.detach().requires_grad_()
    output, _ = layer(x)
    torch.autograd.grad(output, [x, *layer.parameters()], upstream)


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    table.add_column("T, B, H=I")
    for head in ("forward\ntorch.nn", "\nbptt", "\nratio"):
        table.add_column(head, justify="right")
    for head in ("forward+backward\ntorch.nn", "\nbptt", "\nratio", "\nrounds"):
        table.add_column(head, justify="right")
    for cell in dict.fromkeys(row.cell for row in rows):
        ratios: tuple[list[float], list[float]] = ([], [])
        for row in (row for row in rows if row.cell == cell):
            shown = []
            for kept, (nn_ms, bptt_ms) in zip(
                ratios, (row.forward_ms, row.training_ms), strict=True
            ):
                kept.append(nn_ms / bptt_ms)
                shown += [f"{nn_ms:.2f}", f"{bptt_ms:.2f}", _ratio(kept[-1])]
            table.add_row(cell, ", ".join(map(str, row.shape)), *shown, str(row.rounds))
        forward, training = (_ratio(geometric_mean(kept)) for kept in ratios)
        table.add_row(cell, "geometric mean", "", "", forward, "", "", training, "", style="bold")
        table.add_section()
    return table


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _ratio(value: float) -> str:
    colour = "green" if value >= 1.0 else "yellow"
    return f"[{colour}]{value:.2f}"
